"""What a run tells of its POs, whether it has ended, crashed or goes on: read from its journal, and nothing is run.

journal ──► RunHistory (history.py) ──► every attempt, PO by PO ──► PastRun
report.json, of a run that kept no journal ───────────────────────────┘
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from poqueue.adaptive import TIMEOUT_ERROR
from poqueue.errors import ConfigError
from poqueue.journal import JOURNAL_NAME
from poqueue.task import TaskStatus
from poqueue.verdict import CANCELLED_ERROR, INTERRUPTED_ERROR
from workers.history import Attempt, RunHistory
from workers.measuring import alone_seconds
from workers.report_files import read_history
from workers.resolved import load_settings, render_config
from workers.run_record import REPORT_NAME, read_report, read_run_record
from workers.sample import MIN_GAPS, MeasuredAttempt, mean_of_usual
from workers.worker_files import Usage

LEFT_S = 1.0  # who has had no PO for so long while others went on is no worker any more
MAX_GAP_S = 0.2  # more between two attempts is no cost of the pool: several ends are told at once, but not so many
BESIDE_S = 0.0005  # what a worker computes between two attempts, at most
UNTOLD = ("interrupted", "running")  # such an attempt tells nothing of how long one takes


@dataclass(frozen=True, slots=True)
class PastRun:
    """A run as it is learned from.

    Attributes:
        attempts: those that ended, PO by PO in order.
        priorities: of all its POs.
        settings: what it was given, by key; those at their default left out.
        jobs: how many workers it had.
        repeated: POs that have the number of another one, and so never ran beside it.
        seconds: from its beginning to its end, if that is one stretch of work with `jobs` workers; else None.
        outside_s: the part of that before its first attempt and behind its last one.
        gap_s: what lay between two attempts of one worker, on average; None: too few, or spaced by a delay.
        replaced_s: likewise from the last attempt of a worker that made as many as it may to the first of the next one.
        source: for people.
        note: what must be known of it, for people; or empty.
    """

    attempts: list[MeasuredAttempt]
    priorities: list[int]
    settings: dict[str, Any]
    jobs: int
    seconds: float | None
    source: str
    note: str = ""
    repeated: int = 0
    outside_s: float = 0.0
    gap_s: float | None = None
    replaced_s: float | None = None


def read_past_run(run_dir: Path) -> PastRun:
    """Read a run directory.

    Raises:
        ConfigError: it is no run directory, or the run kept no journal and has no report.
        JournalError, ManagerLostError: its journal cannot be read.
    """
    if not (run_dir / JOURNAL_NAME).exists() and _keeps_no_journal(run_dir):
        return _from_report(run_dir)
    return _from_journal(run_dir, read_history(run_dir))


def _keeps_no_journal(run_dir: Path) -> bool:
    return read_run_record(run_dir).settings.get("journal") is False


def with_usage(told: Iterable[MeasuredAttempt], usage: Usage | None) -> list[MeasuredAttempt]:
    """Each attempt with its part of the computing, and as long as it would have been with a core at hand."""
    attempts = list(told)
    if usage is None:
        return attempts
    computing_s = usage.cpu_s
    if computing_s < usage.busy_s + BESIDE_S * len(attempts):  # else they kept several cores busy
        computing_s = min(computing_s, usage.busy_s)
    queued_s = min(usage.queued_s, max(0.0, usage.busy_s - computing_s))  # the rest lay between attempts
    alone_s = alone_seconds(usage.busy_s, computing_s, queued_s)
    stretch, share = usage.busy_s / alone_s, computing_s / alone_s
    return [
        replace(
            one, seconds=one.seconds / stretch, cpu_s=share * one.seconds / stretch, max_rss_bytes=usage.max_rss_bytes,
            taken_s=one.seconds,
        )
        if one.seconds is not None and one.error_type != TIMEOUT_ERROR
        else one
        for one in attempts
    ]  # fmt: skip


def _changed(settings: dict[str, Any]) -> dict[str, Any]:
    """By key, those that differ from their default; `settings` as a report has them."""
    defaults = {key: value for key, value, _ in render_config(load_settings({}, None, {}))}
    found = {
        key: entry["value"]
        for key, entry in settings.items()
        if entry["value"] != defaults.get(key) and not entry["from"].startswith("not used")
    }
    if "command" in found:
        found.pop("processor", None)
    return found


# ── from the journal ─────────────────────────────────────────────────────────────────────────────────────────────────


def _from_journal(run_dir: Path, history: RunHistory) -> PastRun:
    settings = history.run["settings"]
    jobs = int(settings["jobs"]["value"])
    max_retries = int(settings["max_retries"]["value"])
    by_task: dict[str, list[Attempt]] = defaultdict(list)
    for attempt in history.attempts:
        by_task[attempt.task_id].append(attempt)
    told = [list(_told(task, max_retries)) for task in by_task.values()]
    attempts = with_usage([one for task in told for one in task], Usage.of_run(history.run))
    is_whole = history.run.get("reason") == "done" and not history.pauses and "resumed" not in history.run
    changed = _changed(settings)
    seconds = history.run.get("seconds") if is_whole and _is_as_set(history, jobs) else None
    return PastRun(
        attempts,
        [order.priority for order in history.orders],
        changed,
        jobs,
        seconds,
        f"{len(history.orders):,} POs of the run {run_dir}",
        _how_far(history, sum(bool(task) and task[-1].outcome == "retry" for task in told)),
        len(history.orders) - len({order.po_number for order in history.orders}),
        max(0.0, seconds - (history.until - history.began_at)) if seconds else 0.0,
        _gap_s(history) if "start_delay" not in changed else None,
        _gap_s(history, is_replaced=True) if "max_tasks_per_worker" in changed else None,
    )


def _is_as_set(history: RunHistory, jobs: int) -> bool:
    """Nobody has scaled it: no more places than that, and none that was left while others began what had long been ready."""
    last_ends: dict[str, float] = defaultdict(float)
    for attempt in history.attempts:
        last_ends[attempt.slot] = max(last_ends[attempt.slot], attempt.ended_at or 0.0)
    begun = max((attempt.started_at for attempt in history.attempts if attempt.attempt == 1), default=0.0)
    is_one_missing = len(last_ends) < min(jobs, len(history.orders))
    left_at = min(history.began_at if is_one_missing else math.inf, *last_ends.values(), math.inf)
    return len(last_ends) <= jobs and left_at > begun - LEFT_S


def _gap_s(history: RunHistory, *, is_replaced: bool = False) -> float | None:
    """Before first attempts only: those had been ready, and a retry may not have been due yet."""
    created = {order.task_id: order.created_at for order in history.orders}
    by_slot: dict[str, list[Attempt]] = defaultdict(list)
    for attempt in history.attempts:
        by_slot[attempt.slot].append(attempt)
    gaps = [
        max(0.0, after.started_at - before.ended_at)
        for attempts in by_slot.values()
        for before, after in pairwise(attempts)
        if before.ended_at is not None and after.attempt == 1
        and (before.worker_id != after.worker_id) is is_replaced
        and created.get(after.task_id, math.inf) <= before.ended_at
    ]  # fmt: skip
    return mean_of_usual(gaps, MAX_GAP_S) if len(gaps) >= MIN_GAPS else None


def _told(task: list[Attempt], max_retries: int) -> Iterator[MeasuredAttempt]:
    """The attempts at one PO that ended by themselves or were killed for what they did."""
    told = [one for one in task if one.outcome not in UNTOLD and one.error_type != CANCELLED_ERROR]
    for number, one in enumerate(told, 1):
        is_final = one.outcome == "failed" and number <= max_retries
        yield MeasuredAttempt(one.po_number, one.seconds, one.outcome, one.error_type, is_final)


def _how_far(history: RunHistory, waiting: int) -> str:
    ended = history.counts[TaskStatus.COMPLETED.value] + history.counts[TaskStatus.FAILED.value]
    pos = history.counts["total"]
    if history.has_ended and ended == pos:
        return ""
    end = "ended early" if history.has_ended else "did not come to its end"
    state = "goes on" if history.run.get("is_live") else end
    running = sum(attempt.outcome == "running" for attempt in history.attempts)
    return (
        f"the run {state}: {_learned(ended, pos)}"
        + (f", and from failed attempts at {waiting} that " + ("has not" if waiting == 1 else "have not") if waiting else "")
        + (f"; {running} attempts that run, or ran at its end, tell nothing yet" if running else "")
    )  # fmt: skip


def _learned(ended: int, pos: int) -> str:
    return f"learned from the {ended:,} of {pos:,} POs that have ended"


# ── from the report ──────────────────────────────────────────────────────────────────────────────────────────────────


def _from_report(run_dir: Path) -> PastRun:
    report = read_report(run_dir)
    if report is None or not isinstance(report.get("tasks"), list) or "settings" not in report["run"]:
        raise ConfigError(
            f"{run_dir}: nothing to learn from: the run kept no journal, and there is no whole {REPORT_NAME} of it"
        )
    run, tasks = report["run"], report["tasks"]
    ended = sum(task["status"] in (TaskStatus.COMPLETED.value, TaskStatus.FAILED.value) for task in tasks)
    early = f"; it ended early: {_learned(ended, len(tasks))}" if ended < len(tasks) else ""
    return PastRun(
        with_usage(attempts_of_report(tasks), Usage.of_run(run)),
        [int(task["priority"]) for task in tasks],
        _changed(run["settings"]),
        int(run["settings"]["jobs"]["value"]),
        None,  # how much of that lay between the attempts it does not tell
        f"{len(tasks):,} POs of the run {run_dir}",
        f"the run kept no journal: this is from its {REPORT_NAME}{early}",
        len(tasks) - len({task["po_number"] for task in tasks}),
    )


def attempts_of_report(tasks: Iterable[dict[str, Any]]) -> Iterator[MeasuredAttempt]:
    """Every attempt of a run, PO by PO, as its report tells."""
    for task in tasks:
        number = str(task["po_number"])
        errors = task["error_history"]
        for error in errors:
            kind = str(error.get("error_type", ""))
            if kind in (INTERRUPTED_ERROR, CANCELLED_ERROR) or error.get("worker_id") is None:  # no failed attempt
                continue
            is_last = task["status"] == TaskStatus.FAILED.value and error is errors[-1]
            is_final = is_last and task["retry_count"] < task["max_retries"]
            outcome = "failed" if is_last else "retry"
            yield MeasuredAttempt(number, error.get("seconds"), outcome, kind, is_final)
        if task["status"] == TaskStatus.COMPLETED.value:
            yield MeasuredAttempt(number, task["processing_time"], "completed")
