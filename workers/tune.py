"""`poqueue tune`: what to set for these orders, from a sample of them, from a finished run, or from two numbers.

    ORDERS ──► a sample is run (sample.py) ──┐
    RUN ─────► its attempts are read ────────┴─► Measurement ──► Recommendation ──► tables, JSON, a configuration file
    --tasks, --duration ──► optimize_for_workload

What a sample writes is removed; what its POs have done elsewhere stays done.
"""

import argparse
import json
import math
import os
import statistics
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any, NoReturn, Protocol

from poqueue.adaptive import TIMEOUT_ERROR
from poqueue.errors import ConfigError, OrdersError
from poqueue.simulation import (
    COMPLETED,
    FAILED,
    RETRY,
    TYPICAL_COSTS,
    Attempt,
    Costs,
    History,
    Prediction,
    Rules,
    predict,
)
from poqueue.tuning import MIN_TIMEOUT_S, WORKER_BYTES, Machine, look_at_machine, retries_for
from poqueue.verdict import INTERRUPTED_ERROR
from workers.quantities import MAX_DURATION_S, MAX_JOBS, parse_duration, parse_jobs, usable_cores
from workers.resolved import Resolved, load_settings
from workers.safe_text import safe_text
from workers.sample import CRASHES, MeasuredAttempt, SampleInterruptedError, choose, run_sample
from workers.settings import SETTINGS, RunSettings, given_settings

WAITS_BELOW, COMPUTES_ABOVE = 0.3, 0.7
TIMEOUT_OF_LONGEST, TIMEOUT_OF_P95 = 3.0, 5.0
MAX_EXTRAPOLATION = 16  # times as many workers as were measured at once; what they talk to may not stand more
WORTH_IT = 1.10  # more workers are worth it while the batch is not within this of the shortest time
MEMORY_SHARE = 0.8
CANDIDATES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
LISTED_POS = 10
NOT_FOR_TUNE = ("check", "run_dir", "report", "results")
NOT_WRITTEN = (*NOT_FOR_TUNE, "limit", "progress", "quiet", "verbose", "log_format")


class AttemptRecord(Protocol):
    """What is read of an attempt, wherever it comes from; the other fields of MeasuredAttempt are used where there."""

    @property
    def seconds(self) -> float | None: ...
    @property
    def outcome(self) -> str: ...
    @property
    def error_type(self) -> str: ...
    @property
    def po_number(self) -> str: ...
    @property
    def supplier(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Measurement:
    """What is known of the POs' attempts.

    Attributes:
        source: what was measured, for people.
        seconds: of the attempts that ended well, ascending.
        failures: failed attempts by type.
        hung: POs of which an attempt was killed by its timeout, with the longest that one ran.
        retried, recovered: POs that were retried, and those of them that ended well.
        retries, retries_helped: attempts that were retries, and those of them that ended well.
        cpu_share: of the time of all attempts, the part in which they computed; None: not measured.
        rss_bytes: the most that a worker held; None: not measured.
        jobs: how many attempts ran at once.
    """

    source: str
    histories: list[History]
    seconds: list[float]
    attempts: int
    failures: dict[str, int]
    hung: dict[str, float]
    retried: int
    recovered: int
    retries: int
    retries_helped: int
    cpu_share: float | None
    rss_bytes: int | None
    longest_by_po: dict[str, float]
    costs: Costs = TYPICAL_COSTS
    jobs: int = 1

    @property
    def kind(self) -> str:
        """Whether the work waits or computes."""
        if self.cpu_share is None:
            return "unknown"
        if self.cpu_share < WAITS_BELOW:
            return "waits"
        return "computes" if self.cpu_share > COMPUTES_ABOVE else "both"


@dataclass(frozen=True, slots=True)
class Item:
    """One setting: as it is, as it is advised, and why."""

    key: str
    now: Any
    advice: Any
    why: str


@dataclass(frozen=True, slots=True)
class WhatIf:
    """The batch with another number of workers."""

    jobs: int
    prediction: Prediction
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The advice, and what the batch is predicted to take with it and without."""

    items: list[Item]
    would_kill: list[str]
    now: Prediction
    advised: Prediction
    what_if: list[WhatIf]
    stops_paying_at: int | None


def tune(arguments: argparse.Namespace) -> int:
    """The command; returns the exit code.

    Raises:
        ConfigError, OrdersError, ProcessorError: nothing ran; the text says what to do.
    """
    _refuse_what_does_nothing(arguments)
    if arguments.source is None:
        return _tune_workload(arguments)
    what_if = parse_what_if(arguments.what_if) if arguments.what_if else []
    if arguments.write is not None:
        check_new_file(arguments.write)
    source = Path(arguments.source)
    if source.is_dir():
        measurement, priorities, resolved, note = _measure_run(source, arguments)
    else:
        measurement, priorities, resolved, note = _measure_sample(source, arguments)
    machine = look_at_machine()
    recommendation = recommend(measurement, priorities, resolved.settings, machine, what_if)
    if arguments.json:
        print(json.dumps(as_json(measurement, recommendation, len(priorities)), ensure_ascii=False, allow_nan=False))
    else:
        print(as_text(measurement, recommendation, len(priorities)))
        if note:
            print(note)
    if arguments.write is not None:
        command = f"poqueue run {source} --config {arguments.write}" if not source.is_dir() else None
        text = as_yaml(measurement, recommendation, resolved, len(priorities), command)
        _write_new(arguments.write, text)
        _say(f"written: {arguments.write}" + (f"; take it with: {command}" if command else ""))
    return 0


def _refuse_what_does_nothing(arguments: argparse.Namespace) -> None:
    given = vars(arguments)
    if arguments.source is not None and (arguments.tasks is not None or arguments.duration is not None):
        raise ConfigError("--tasks and --duration stand for an order file or a run that is not there: leave them out")
    if arguments.source is None:
        for key, flag in (("what_if", "--what-if"), ("write", "--write")):
            if given[key] is not None:
                raise ConfigError(f"{flag} needs something that was measured: name an order file or a run directory")
    for key in NOT_FOR_TUNE:
        if key in given:
            raise ConfigError(f"{SETTINGS[key].flags[-1]} has no meaning for tune: it makes no run directory")


# ---------------------------------------------------------------------- two numbers


def _tune_workload(arguments: argparse.Namespace) -> int:
    """Advice as optimize_for_workload gives it."""
    from poqueue import TaskQueue

    if arguments.tasks is None or arguments.duration is None:
        raise ConfigError("name an order file, a run directory, or --tasks N and --duration D")
    try:
        duration_s = parse_duration(arguments.duration, "--duration")
        jobs = parse_jobs(getattr(arguments, "jobs", "auto"), "--jobs")
        advice = TaskQueue().optimize_for_workload(arguments.tasks, duration_s, jobs)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if arguments.json:
        print(json.dumps(advice))
        return 0
    reasons = advice.pop("reasons")
    rows = [(key, _value_text(value), reasons.get(key, "")) for key, value in advice.items()]
    print(_table(rows, ("setting", "advice", "why"), [None, 28, 70]))
    return 0


def _value_text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_value_text(item)}" for key, item in value.items())
    if isinstance(value, list):
        return " to ".join(map(_value_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


# ---------------------------------------------------------------------- a sample


_Measured = tuple[Measurement, list[int], Resolved, str]


def _measure_sample(source: Path, arguments: argparse.Namespace) -> _Measured:
    """Run a sample of an order file."""
    from workers.batch import Batch, processor_spec
    from workers.progress import make_progress

    resolved = _resolve(given_settings(arguments), arguments)
    settings = resolved.settings
    progress = make_progress(sys.stderr, enabled=settings.progress, quiet=settings.quiet)
    book = Batch(source, resolved, progress=progress).check()
    if not book.orders:
        raise OrdersError(f"{source}: holds no PO that can be run; poqueue run {source} --check lists the rows")
    places = choose(book.orders, _sample_size(arguments.sample), Random(arguments.seed))
    jobs = min(settings.jobs, usable_cores(), len(places))
    _say(
        f"running {len(places)} of {len(book.orders)} POs for real on {jobs} workers; "
        f"an attempt may take up to {_span(settings.task_timeout.seconds)} (--timeout)"
    )
    progress.start()
    try:
        sample = run_sample(
            [book.orders[n] for n in places], [book.priorities[n] for n in places], settings, processor_spec(settings),
            progress, jobs=jobs,
        )  # fmt: skip
    except SampleInterruptedError as error:
        _leave_interrupted(error.args[0])
    finally:
        progress.close()
    measurement = measured_from_history(sample.attempts)
    name = f"{len(places):,} of {len(book.orders):,} POs of {source.name}, run on {jobs} workers in {_span(sample.seconds)}"
    return replace(measurement, source=name, costs=sample.costs, jobs=jobs), book.priorities, resolved, ""


def _sample_size(value: int) -> int:
    if value < 1:
        raise ConfigError(f"--sample must be a whole number of POs, 1 or more, got {value}")
    return value


def _leave_interrupted(number: int) -> NoReturn:
    _say("poqueue: interrupted; a part of a sample gives no advice")
    raise SystemExit(128 + number)


def _resolve(given: dict[str, Any], arguments: argparse.Namespace) -> Resolved:
    resolved = load_settings(given, arguments.config, os.environ)
    for note in resolved.notes:
        _say(note)
    return resolved


# ---------------------------------------------------------------------- a finished run


def _measure_run(run_dir: Path, arguments: argparse.Namespace) -> _Measured:
    """Learn from what a run has written; nothing is run."""
    report = _read_report(run_dir)
    attempts = attempts_of_run(run_dir)
    kept = {
        key: entry["value"]
        for key, entry in report["run"]["settings"].items()
        if entry["from"] != "default" and not entry["from"].startswith("not used") and key not in NOT_WRITTEN
    }
    resolved = _resolve({**kept, **given_settings(arguments)}, arguments)
    priorities = [int(task["priority"]) for task in report["tasks"]]
    measurement = measured_from_history(attempts)
    jobs = int(report["run"]["settings"]["jobs"]["value"])
    measurement = replace(measurement, source=f"{len(priorities):,} POs of the run {run_dir}", jobs=jobs)
    seconds, is_whole = report["run"].get("seconds"), report["run"].get("reason") == "done"
    if not seconds or not is_whole:
        return measurement, priorities, resolved, ""
    measurement = _fitted(measurement, priorities, resolved.settings, seconds)
    replayed = predict_batch(measurement, priorities, rules_of(resolved.settings, usable_cores(), jobs=jobs), runs=0)
    note = f"the run took {_span(seconds)}; with the pool's costs fitted to it, the simulation takes {_span(replayed.seconds)}"
    return measurement, priorities, resolved, note


def _fitted(measurement: Measurement, priorities: Sequence[int], settings: RunSettings, seconds: float) -> Measurement:
    """A run does not tell what lay between its attempts; its whole time does."""
    rules = rules_of(settings, usable_cores(), jobs=measurement.jobs)
    for _ in range(3):
        replayed = predict_batch(measurement, priorities, rules, runs=0)
        costs = measurement.costs
        step_s = (seconds - replayed.seconds) * rules.workers / measurement.attempts
        dispatch_s = max(0.0, costs.dispatch_s + step_s)
        cpu_s = min(costs.dispatch_cpu_s, costs.dispatch_cpu_s * dispatch_s / max(costs.dispatch_s, 1e-9))
        measurement = replace(measurement, costs=replace(costs, dispatch_s=dispatch_s, dispatch_cpu_s=cpu_s))
    return measurement


def attempts_of_run(run_dir: Path) -> list[MeasuredAttempt]:
    """Every attempt of a finished run, PO by PO, from its report.

    Raises:
        ConfigError: the folder holds no report of a run.
    """
    return [attempt for task in _read_report(run_dir)["tasks"] for attempt in _attempts_of_task(task)]


def _read_report(run_dir: Path) -> dict[str, Any]:
    path = run_dir / "report.json"
    try:
        report = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ConfigError(f"{run_dir} is no finished run: there is no {path}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    if (
        not isinstance(report, dict)
        or not isinstance(report.get("tasks"), list)
        or "settings" not in report.get("run", {})
    ):
        raise ConfigError(f"{path} is no report of a run: it has no tasks or no settings")
    return report


def _attempts_of_task(task: dict[str, Any]) -> list[MeasuredAttempt]:
    number, supplier = str(task["po_number"]), str(task["po_data"].get("supplier") or "")
    errors = task["error_history"]
    has_failed = task["status"] == "failed"
    found = []
    for error in errors:
        is_last = has_failed and error is errors[-1]
        is_final = is_last and task["retry_count"] < task["max_retries"]
        kind = str(error.get("error_type", ""))
        if kind == INTERRUPTED_ERROR:
            continue  # the run ended, not the attempt: it tells nothing of how long one takes
        outcome = "failed" if is_last else "retry"
        found.append(MeasuredAttempt(number, supplier, error.get("seconds"), outcome, kind, is_final))
    if task["status"] == "completed":
        found.append(MeasuredAttempt(number, supplier, task["processing_time"], "completed"))
    return found


# ---------------------------------------------------------------------- attempts, summed up


def measured_from_history(attempts: Iterable[AttemptRecord]) -> Measurement:
    """Sum up attempts, PO by PO in order; what was interrupted, or still runs, is left out.

    Raises:
        OrdersError: no attempt ended well, so there is nothing to learn from.
    """
    groups = _by_po(one for one in attempts if one.outcome not in ("interrupted", "running"))
    everything = [one for group in groups for one in group]
    well = sorted(one.seconds for one in everything if one.outcome == "completed" and one.seconds is not None)
    failures = Counter(one.error_type or "error" for one in everything if one.outcome != "completed")
    if not well:
        listed = ", ".join(f"{count} x {safe_text(kind, 60)}" for kind, count in failures.most_common(3))
        raise OrdersError(f"no attempt ended well ({listed or 'there was none'}): there is nothing to learn from")
    usual_s = statistics.median(well)
    retried = [group for group in groups if len(group) > 1]
    retries = [one for group in retried for one in group[1:]]
    computed = [(getattr(one, "cpu_s", None), one.seconds) for one in everything]
    known = [(cpu_s, seconds) for cpu_s, seconds in computed if cpu_s is not None and seconds]
    return Measurement(
        source="",
        histories=[tuple(_as_simulated(one, usual_s) for one in group) for group in groups],
        seconds=well,
        attempts=len(everything),
        failures=dict(failures.most_common()),
        hung=_longest_of(one for one in everything if one.error_type == TIMEOUT_ERROR),
        retried=len(retried),
        recovered=sum(group[-1].outcome == "completed" for group in retried),
        retries=len(retries),
        retries_helped=sum(one.outcome == "completed" for one in retries),
        cpu_share=sum(cpu_s for cpu_s, _ in known) / sum(seconds for _, seconds in known) if known else None,
        rss_bytes=max((getattr(one, "max_rss_bytes", None) or 0 for one in everything), default=0) or None,
        longest_by_po=_longest_of(one for one in everything if one.outcome == "completed"),
    )


def _by_po(attempts: Iterable[AttemptRecord]) -> list[list[AttemptRecord]]:
    """The attempts of each task; one that ended closes its group, as two tasks may have one PO number."""
    groups: list[list[AttemptRecord]] = []
    open_groups: dict[str, list[AttemptRecord]] = {}
    for attempt in attempts:
        group = open_groups.get(attempt.po_number)
        if group is None:
            group = open_groups[attempt.po_number] = []
            groups.append(group)
        group.append(attempt)
        if attempt.outcome in ("completed", "failed"):
            del open_groups[attempt.po_number]
    return groups


def _longest_of(attempts: Iterable[AttemptRecord]) -> dict[str, float]:
    longest: dict[str, float] = {}
    for one in attempts:
        longest[one.po_number] = max(longest.get(one.po_number, 0.0), one.seconds or 0.0)
    return longest


def _as_simulated(one: AttemptRecord, usual_s: float) -> Attempt:
    """For the simulation; an attempt whose time nobody knows took the usual one."""
    seconds = one.seconds if one.seconds is not None else usual_s
    cpu_s = getattr(one, "cpu_s", None) or 0.0
    outcome = COMPLETED if one.outcome == "completed" else FAILED if getattr(one, "is_final", False) else RETRY
    return Attempt(
        seconds=math.inf if one.error_type == TIMEOUT_ERROR else seconds,
        cpu_share=cpu_s / seconds if seconds else 0.0,
        outcome=outcome,
        retry_after_s=getattr(one, "retry_after_s", None),
        ends_worker=one.error_type in CRASHES,
    )


# ---------------------------------------------------------------------- the advice


def rules_of(settings: RunSettings, cores: int, *, jobs: int | None = None) -> Rules:
    """What the simulation needs of a run's settings."""
    return Rules(
        workers=jobs or settings.jobs,
        cores=cores,
        task_timeout=settings.task_timeout.seconds,
        max_retries=settings.max_retries,
        retry_delay=settings.retry_delay,
        max_retry_delay=settings.max_retry_delay,
        jitter=settings.jitter,
        by_priority=settings.priority,
    )


def predict_batch(
    measurement: Measurement, priorities: Sequence[int], rules: Rules, *, runs: int = 15, seed: int = 1
) -> Prediction:
    """Predict these POs; where computing was not measured the range is from all waiting to all computing."""
    histories = measurement.histories
    found = predict(histories, priorities, rules, measurement.costs, Random(seed), runs=runs)
    if measurement.cpu_share is not None or rules.workers <= rules.cores:
        return found
    computing = [tuple(replace(attempt, cpu_share=1.0) for attempt in history) for history in histories]
    slowest = predict(computing, priorities, rules, measurement.costs, Random(seed), runs=runs)
    return replace(found, high_s=max(found.high_s, slowest.high_s))


def recommend(
    measurement: Measurement,
    priorities: Sequence[int],
    settings: RunSettings,
    machine: Machine,
    what_if: Sequence[int] = (),
) -> Recommendation:
    """Advise on workers, timeout and retries, and predict the batch with and without it."""
    now = rules_of(settings, machine.cores)
    reasons: dict[str, str] = {}
    success = 100.0 * measurement.retries_helped / measurement.retries if measurement.retries else 0.0
    timeout_s = recommended_timeout(measurement, settings.task_timeout.seconds, reasons)
    retries = retries_for(settings.max_retries, measurement.retried, success, reasons)
    if not measurement.retried and len(measurement.histories) < len(priorities):
        unseen = min(1.0, 3.0 / len(measurement.histories))
        reasons["max_retries"] += f"; up to {unseen:.1%} of all POs may still need some (rule of three)"
    rules = replace(now, task_timeout=timeout_s, max_retries=retries)
    jobs = recommended_jobs(measurement, priorities, rules, settings.jobs, machine, reasons)
    advised = predict_batch(measurement, priorities, replace(rules, workers=jobs))
    items = [
        Item("jobs", settings.jobs, jobs, reasons["jobs"]),
        Item("task_timeout", settings.task_timeout.seconds, timeout_s, reasons["task_timeout"]),
        Item("max_retries", settings.max_retries, retries, reasons["max_retries"]),
    ]
    table = [
        WhatIf(n, predict_batch(measurement, priorities, replace(rules, workers=n)), n * memory_per_worker(measurement))
        for n in what_if
    ]
    return Recommendation(
        items,
        would_kill(measurement, timeout_s),
        predict_batch(measurement, priorities, now),
        advised,
        table,
        stops_paying(table) if measurement.cpu_share is not None else None,
    )


def recommended_timeout(measurement: Measurement, current_s: float, reasons: dict[str, str]) -> float:
    """Well above what ended well; never so that it would have killed one of those."""
    seconds = measurement.seconds
    longest_s, p95_s = seconds[-1], percentile(seconds, 95)
    timeout_s = _rounded_up(max(MIN_TIMEOUT_S, TIMEOUT_OF_LONGEST * longest_s, TIMEOUT_OF_P95 * p95_s))
    timeout_s = min(timeout_s, MAX_DURATION_S)
    killed = would_kill(measurement, timeout_s)
    reasons["task_timeout"] = (
        f"the most of {TIMEOUT_OF_LONGEST:g} x the longest that ended well ({_span(longest_s)}), {TIMEOUT_OF_P95:g} x p95 "
        f"({_span(p95_s)}) and {MIN_TIMEOUT_S:g} s; of what was measured it kills {_killed_text(killed, measurement)}"
    )
    return timeout_s


def would_kill(measurement: Measurement, timeout_s: float) -> list[str]:
    """POs of which this timeout would have killed an attempt: those that hung, and those that took longer."""
    slow = [number for number, seconds in measurement.longest_by_po.items() if seconds > timeout_s]
    return [*measurement.hung, *(number for number in slow if number not in measurement.hung)]


def _killed_text(killed: Sequence[str], measurement: Measurement) -> str:
    if not killed:
        return "no PO"
    listed = ", ".join(safe_text(number, 40) for number in killed[:LISTED_POS])
    more = f" and {len(killed) - LISTED_POS} more" if len(killed) > LISTED_POS else ""
    hung = sum(number in measurement.hung for number in killed)
    return f"{len(killed)} POs ({listed}{more}), of which {hung} hung"


def recommended_jobs(
    measurement: Measurement,
    priorities: Sequence[int],
    rules: Rules,
    current: int,
    machine: Machine,
    reasons: dict[str, str],
) -> int:
    """The fewest workers that come near the shortest predicted time, within memory and what was measured."""
    each_bytes = memory_per_worker(measurement)
    by_memory = max(1, int(machine.free_bytes * MEMORY_SHARE) // each_bytes)
    if measurement.cpu_share is None:
        reasons["jobs"] = (
            "as set: whether the work waits or computes was not measured; tune ORDERS --sample measures it"
        )
        return min(current, by_memory)
    most = max(1, min(MAX_JOBS, len(priorities), by_memory, MAX_EXTRAPOLATION * measurement.jobs))
    candidates = sorted({n for n in (*CANDIDATES, most) if n <= most})
    took = {n: predict_batch(measurement, priorities, replace(rules, workers=n), runs=0).seconds for n in candidates}
    limit_s = WORTH_IT * min(took.values())
    jobs = min(n for n, seconds in took.items() if seconds <= limit_s)
    reasons["jobs"] = _jobs_reason(measurement, machine, took, jobs, each_bytes)
    return jobs


def _jobs_reason(measurement: Measurement, machine: Machine, took: dict[int, float], jobs: int, each_bytes: int) -> str:
    share = measurement.cpu_share or 0.0
    kind = {"waits": "the work waits", "computes": "the work computes", "both": "the work waits and computes"}
    fastest = min(took, key=lambda n: took[n])
    near = f"; {fastest} would take {_span(took[fastest])}" if fastest != jobs else ""
    caution = (
        f"; measured with {measurement.jobs} at once, so go up in steps if they all ask one server"
        if jobs > 2 * measurement.jobs
        else ""
    )
    return (
        f"{kind[measurement.kind]} (a core is used {share:.0%} of an attempt's time, {machine.cores} cores): "
        f"{jobs} workers take {_span(took[jobs])}{near}; they hold {_megabytes(jobs * each_bytes)} of "
        f"{_megabytes(machine.free_bytes)} free{caution}"
    )


def memory_per_worker(measurement: Measurement) -> int:
    """Bytes; a usual worker's where it was not measured."""
    return measurement.rss_bytes or WORKER_BYTES


def stops_paying(table: Sequence[WhatIf]) -> int | None:
    """The fewest workers of a table that come near its shortest time."""
    if not table:
        return None
    limit_s = WORTH_IT * min(row.prediction.seconds for row in table)
    return min(row.jobs for row in table if row.prediction.seconds <= limit_s)


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The value that this share does not exceed (nearest rank)."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100.0) - 1)]


def _rounded_up(seconds: float) -> float:
    """To two digits."""
    unit = 10.0 ** (math.floor(math.log10(seconds)) - 1)
    return round(math.ceil(round(seconds / unit, 6)) * unit, 6)


def parse_what_if(text: str) -> list[int]:
    """Numbers of workers, from "jobs=2,4,8".

    Raises:
        ConfigError: anything else.
    """
    key, equals, values = text.partition("=")
    if not equals or key.strip() not in ("jobs", "workers"):
        raise ConfigError(f"--what-if must be written jobs=2,4,8, got {safe_text(text, 80)!r}")
    try:
        return sorted({parse_jobs(value.strip(), "--what-if jobs") for value in values.split(",")})
    except ValueError as error:
        raise ConfigError(str(error)) from None


# ---------------------------------------------------------------------- shown


def as_text(measurement: Measurement, advice: Recommendation, pos: int) -> str:
    """The advice for people."""
    rows = [(item.key, _shown(item.key, item.now), _shown(item.key, item.advice), item.why) for item in advice.items]
    parts = [
        f"measured: {measurement.source}; {measurement.attempts:,} attempts",
        _table(_measured_rows(measurement), ("measured", "value"), [None, 90]),
        _table(rows, ("setting", "now", "advice", "why"), [None, None, None, 76]),
        f"all {pos:,} POs: as set now {_predicted(advice.now)}; as advised {_predicted(advice.advised)}",
    ]
    if advice.now.is_heavy_tailed:
        parts[-1] += (
            "\nfew attempts take much of the time: a sample easily misses the longest ones, so the range reaches beyond "
            "what was seen; a larger --sample narrows it"
        )
    if advice.what_if:
        parts.append(_what_if_table(advice.what_if))
        parts.append(
            f"it stops paying at {advice.stops_paying_at} workers: more save less than {WORTH_IT - 1:.0%}"
            if advice.stops_paying_at is not None
            else "the time is that of work which only waits; the range reaches to work which only computes"
        )
    return "\n\n".join(parts)


def _measured_rows(measurement: Measurement) -> list[tuple[str, str]]:
    seconds = measurement.seconds
    spread = [f"p{percent} {_span(percentile(seconds, percent))}" for percent in (50, 95, 99)]
    failed = sum(measurement.failures.values())
    kinds = ", ".join(f"{count} x {safe_text(kind, 60)}" for kind, count in list(measurement.failures.items())[:5])
    rows = [("time of an attempt", ", ".join([*spread, f"longest {_span(seconds[-1])}"]))]
    if measurement.cpu_share is not None:
        verb = {"waits": "the work waits", "computes": "the work computes", "both": "the work does both"}
        rows.append(("computing", f"{measurement.cpu_share:.0%} of that: {verb[measurement.kind]}"))
    if measurement.rss_bytes is not None:
        rows.append(("memory of a worker", _megabytes(measurement.rss_bytes)))
    rows.append(("failed attempts", f"{failed} of {measurement.attempts}" + (f": {kinds}" if kinds else "")))
    if measurement.retried:
        rows.append(("retried POs", f"{measurement.retried}, of which {measurement.recovered} ended well"))
    return rows


def _what_if_table(table: Sequence[WhatIf]) -> str:
    rows = [
        (
            row.jobs, _span(row.prediction.seconds), f"{_span(row.prediction.low_s)} to {_span(row.prediction.high_s)}",
            _megabytes(row.memory_bytes), f"{row.prediction.run.busy_share:.0%}", f"{row.prediction.run.cpu_share:.0%}",
        )
        for row in table
    ]  # fmt: skip
    return _table(rows, ("jobs", "time", "range", "memory", "workers busy", "cores busy"), None)


def _table(rows: Sequence[Sequence[Any]], headers: Sequence[str], widths: list[int | None] | None) -> str:
    from tabulate import tabulate

    return tabulate(rows, headers=headers, tablefmt="simple", maxcolwidths=widths, disable_numparse=True)


def _predicted(prediction: Prediction) -> str:
    return f"{_span(prediction.seconds)} ({_span(prediction.low_s)} to {_span(prediction.high_s)})"


def _shown(key: str, value: Any) -> str:
    entry = SETTINGS[key]
    return str(entry.show(entry.parse(value, key)))


def _span(seconds: float) -> str:
    """Seconds for people, to three digits."""
    units = ((0.9995, 0.001, "ms"), (120.0, 1.0, "s"), (7200.0, 60.0, "min"), (math.inf, 3600.0, "h"))
    size, unit = next((size, unit) for limit, size, unit in units if seconds < limit)
    return f"{float(f'{seconds / size:.3g}'):g} {unit}"


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1024**2:,.0f} MB"


def _say(text: str) -> None:
    """To people on stderr; nobody has to listen."""
    try:
        print(safe_text(text), file=sys.stderr, flush=True)
    except (OSError, ValueError):
        return


def as_json(measurement: Measurement, advice: Recommendation, pos: int) -> dict[str, Any]:
    """The advice in plain JSON types; times in seconds, sizes in bytes."""
    seconds = measurement.seconds
    return {
        "source": measurement.source,
        "pos": pos,
        "measured": {
            "attempts": measurement.attempts,
            "seconds": {f"p{p}": percentile(seconds, p) for p in (50, 95, 99)} | {"longest": seconds[-1]},
            "cpu_share": measurement.cpu_share,
            "kind": measurement.kind,
            "rss_bytes": measurement.rss_bytes,
            "failures": measurement.failures,
            "retried_pos": measurement.retried,
            "recovered_pos": measurement.recovered,
            "hung_pos": list(measurement.hung),
            "jobs": measurement.jobs,
            "costs": asdict(measurement.costs),
        },
        "advice": {item.key: {"now": item.now, "advice": item.advice, "why": item.why} for item in advice.items},
        "would_kill": advice.would_kill,
        "predicted": {"now": _prediction_json(advice.now), "advised": _prediction_json(advice.advised)},
        "what_if": [
            {"jobs": row.jobs, "memory_bytes": row.memory_bytes, **_prediction_json(row.prediction)}
            for row in advice.what_if
        ],
        "stops_paying_at": advice.stops_paying_at,
    }


def _prediction_json(prediction: Prediction) -> dict[str, Any]:
    run = prediction.run
    return {
        "seconds": prediction.seconds,
        "range": [prediction.low_s, prediction.high_s],
        "is_heavy_tailed": prediction.is_heavy_tailed,
        "busy_share": run.busy_share,
        "cpu_share": run.cpu_share,
        "attempts": run.attempts,
        "killed": run.killed,
        "failed": run.failed,
    }


# ---------------------------------------------------------------------- written


def check_new_file(path: Path) -> None:
    """Before anything runs: a file that is there is not written over.

    Raises:
        ConfigError: it exists, or its folder does not.
    """
    if os.path.lexists(path):
        raise ConfigError(
            f"--write: {path} exists, and may hold settings of yours: name a new file, or remove it first"
        )
    if not path.parent.is_dir():
        raise ConfigError(f"--write: there is no directory {str(path.parent)!r}")


def as_yaml(measurement: Measurement, advice: Recommendation, resolved: Resolved, pos: int, command: str | None) -> str:
    """A configuration file with the advice, the reasons as comments, and what else was set for the orders."""
    import yaml

    now = datetime.now(UTC)
    head = [
        f"Advised by poqueue tune on {now:%Y-%m-%d}, measured on {measurement.source}.",
        f"Predicted for all {pos:,} POs: {_predicted(advice.advised)}; as it was set before: {_predicted(advice.now)}.",
        *([f"Take it with: {command}"] if command else []),
    ]
    lines = [line for text in head for line in _comment(text)]
    for item in advice.items:
        lines += ["", *_comment(item.why), _yaml_line(yaml, item.key, item.advice)]
    advised = {item.key for item in advice.items}
    kept = [
        key
        for key, origin in resolved.origins.items()
        if key not in advised and key not in NOT_WRITTEN and origin != "default" and not origin.startswith("not used")
    ]
    if kept:
        lines += ["", "# As it was set when this was measured:"]
        lines += [_yaml_line(yaml, key, getattr(resolved.settings, key)) for key in kept]
    return "\n".join(lines) + "\n"


def _yaml_line(yaml: Any, key: str, value: Any) -> str:
    entry = SETTINGS[key]
    shown = {key: entry.show(entry.parse(value, key))}
    text: str = yaml.safe_dump(shown, allow_unicode=True, sort_keys=False, width=10_000)
    return text.rstrip("\n")


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(safe_text(text), 116)]


def _write_new(path: Path, text: str) -> None:
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        check_new_file(path)
    except OSError as error:
        raise ConfigError(f"--write: {path} cannot be written: {error.strerror}") from None
