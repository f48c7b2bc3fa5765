"""Advice on settings for a batch whose attempts were measured: what to set, why, and what it is predicted to bring."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from poqueue.simulation import Prediction, Rules, predict
from poqueue.span import span_text
from poqueue.tuning import MIN_TIMEOUT_S, START_SAVES, WORKER_BYTES, Machine, retries_for
from workers.measurement import Measurement, percentile
from workers.quantities import MAX_DURATION_S, MAX_JOBS, megabytes
from workers.safe_text import safe_text
from workers.sample import CRASHES
from workers.setting_values import Timeout
from workers.settings import RunSettings

TIMEOUT_OF_LONGEST, TIMEOUT_OF_P95 = 3.0, 5.0
MAX_EXTRAPOLATION = 16  # times as many workers as were measured at once; what they talk to may not stand more
COMPUTING_DELAY_S = 0.1
COMPUTES_ONLY = 0.95  # of the time of attempts; below, they wait for something
WORTH_IT = 1.10  # more workers are worth it while the batch is not within this of the shortest time
MEMORY_SHARE = 0.8
CANDIDATES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
LISTED_POS = 10


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
        start_delay=settings.start_delay,
        max_tasks_per_worker=settings.max_tasks_per_worker,
    )


def predict_batch(measurement: Measurement, priorities: Sequence[int], rules: Rules, *, runs: int = 15) -> Prediction:
    """Predict these POs; where computing was not measured the range is from all waiting to all computing."""
    rules = replace(rules, workers=min(rules.workers, max(1, len(priorities))))  # no more are started
    histories = measurement.histories
    found = predict(histories, priorities, rules, measurement.costs, Random(1), runs=runs)
    if measurement.cpu_share is not None or rules.workers <= rules.cores:
        return found
    computing = [tuple(replace(attempt, cpu_share=1.0) for attempt in history) for history in histories]
    slowest = predict(computing, priorities, rules, measurement.costs, Random(1), runs=runs)
    return replace(found, high_s=max(found.high_s, slowest.high_s))


def recommend(
    measurement: Measurement,
    priorities: Sequence[int],
    settings: RunSettings,
    machine: Machine,
    what_if: Sequence[int] = (),
) -> Recommendation:
    """Advise on workers, timeout, retries and start method, and predict the batch with and without it."""
    now = rules_of(settings, machine.cores)
    reasons: dict[str, str] = {}
    timeout_s = recommended_timeout(measurement, reasons)
    if settings.task_timeout.share:
        reasons["task_timeout"] += (
            "; the prediction as set reckons with the most that the share of the median may come to"
        )
    retries = retries_for(
        settings.max_retries, measurement.recovered, measurement.in_vain, measurement.retries_needed, reasons
    )
    if not measurement.failures and len(measurement.histories) < len(priorities):
        unseen = min(1.0, 3.0 / len(measurement.histories))
        reasons["max_retries"] += f"; up to {unseen:.1%} of all POs may still need some (rule of three)"
    delay_s = recommended_retry_delay(measurement, settings.retry_delay, reasons)
    rules = replace(now, task_timeout=timeout_s, max_retries=retries, retry_delay=delay_s)
    jobs = recommended_jobs(measurement, priorities, rules, settings.jobs, machine, reasons)
    start = recommended_start(measurement, priorities, replace(rules, workers=jobs), settings.start_method, reasons)
    started = measurement
    if start != settings.start_method and measurement.forkserver_costs is not None:
        started = replace(measurement, costs=measurement.forkserver_costs)
        jobs = recommended_jobs(started, priorities, rules, settings.jobs, machine, reasons)
    advised = predict_batch(started, priorities, replace(rules, workers=jobs))
    items = [
        Item("jobs", settings.jobs, jobs, reasons["jobs"]),
        Item("task_timeout", _as_set(settings.task_timeout), timeout_s, reasons["task_timeout"]),
        Item("max_retries", settings.max_retries, retries, reasons["max_retries"]),
        Item("retry_delay", settings.retry_delay, delay_s, reasons["retry_delay"]),
        Item("start_method", settings.start_method, start, reasons["start_method"]),
    ]
    table = [
        WhatIf(
            n,
            predict_batch(started, priorities, replace(rules, workers=n)),
            min(n, len(priorities)) * memory_per_worker(measurement),
        )
        for n in what_if
    ]
    return Recommendation(
        items,
        would_kill(measurement, timeout_s),
        predict_batch(measurement, priorities, now),
        advised,
        table,
        stops_paying(table) if measurement.cpu_share is not None and not measurement.repeated else None,
    )


def recommended_retry_delay(measurement: Measurement, current_s: float, reasons: dict[str, str]) -> float:
    """A short pause where nothing but a PO's own computing can fail; else as set, since only its service knows."""
    delay_s = current_s
    if not measurement.retried:
        reasons["retry_delay"] = "as set: nothing was retried, so there is nothing to learn from"
    elif not _fails_alone(measurement):
        reasons["retry_delay"] = (
            "as set: how long what the work waits for needs to recover, a measurement does not tell"
        )
    else:
        delay_s = min(current_s, COMPUTING_DELAY_S)
        reasons["retry_delay"] = (
            "the work computes, so no service needs time to recover, and at the end of a batch workers stand still for a delay"
        )
    return delay_s


def _fails_alone(measurement: Measurement) -> bool:
    """Whether nothing but the POs' own computing can have failed: no service, and no want of memory."""
    asks_for_time = any(attempt.retry_after_s is not None for history in measurement.histories for attempt in history)
    is_crash = any(kind in CRASHES for kind in measurement.failures)
    return (measurement.cpu_share or 0.0) >= COMPUTES_ONLY and not asks_for_time and not is_crash


def _as_set(timeout: Timeout) -> float | str:
    return str(timeout) if timeout.share else timeout.seconds


def recommended_timeout(measurement: Measurement, reasons: dict[str, str]) -> float:
    """Well above what ended well; never so that it would have killed one of those."""
    seconds = measurement.seconds
    longest_s, p95_s = seconds[-1], percentile(seconds, 95)
    timeout_s = _rounded_up(max(MIN_TIMEOUT_S, TIMEOUT_OF_LONGEST * longest_s, TIMEOUT_OF_P95 * p95_s))
    timeout_s = min(timeout_s, MAX_DURATION_S)
    killed = would_kill(measurement, timeout_s)
    reasons["task_timeout"] = (
        f"the most of {TIMEOUT_OF_LONGEST:g} x the longest that ended well ({span_text(longest_s)}), {TIMEOUT_OF_P95:g} x p95 "
        f"({span_text(p95_s)}) and {MIN_TIMEOUT_S:g} s; of what was measured it kills {_killed_text(killed, measurement)}"
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
    if measurement.cpu_share is None or measurement.repeated:
        if by_memory < min(current, len(priorities)):  # no more are started than there are POs
            reasons["jobs"] = (
                f"no more than {by_memory} fit into the memory: {megabytes(each_bytes)} each, of "
                f"{megabytes(machine.free_bytes)} free"
            )
            return by_memory
        reasons["jobs"] = (
            "as set: there are never two of one number at once, and the prediction leaves that out"
            if measurement.repeated
            else "as set: whether the work waits or computes was not measured; tune ORDERS --sample measures it"
        )
        return current
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
    near = f"; {fastest} would take {span_text(took[fastest])}" if fastest != jobs else ""
    caution = (
        f"; measured with {measurement.jobs} at once, so go up in steps if they all ask one server"
        if jobs > 2 * measurement.jobs
        else ""
    )
    return (
        f"{kind[measurement.kind]} (a core is used {share:.0%} of an attempt's time, {machine.cores} cores): "
        f"{jobs} workers take {span_text(took[jobs])}{near}; they hold {megabytes(jobs * each_bytes)} of "
        f"{megabytes(machine.free_bytes)} free{caution}"
    )


def recommended_start(
    measurement: Measurement, priorities: Sequence[int], rules: Rules, current: str, reasons: dict[str, str]
) -> str:
    """Workers from a forkserver if that saves a share of the batch that is worth a change."""
    other = measurement.forkserver_costs
    if other is None:
        reasons["start_method"] = (
            "as set: how long workers take to start was not measured; tune ORDERS --sample measures it"
            if current == "spawn"
            else f"as set: workers by {current} start faster than by spawn already"
        )
        return current
    now_s = predict_batch(measurement, priorities, rules, runs=0).seconds
    other_s = predict_batch(replace(measurement, costs=other), priorities, rules, runs=0).seconds
    saved = 1.0 - other_s / now_s
    figures = (
        f"a worker's start takes {span_text(measurement.costs.boot_s)} by spawn and {span_text(other.boot_s)} by forkserver, "
        f"the {rules.workers} workers' batch {span_text(now_s)} and {span_text(other_s)}"
    )
    if saved < START_SAVES:
        reasons["start_method"] = f"{figures}: less than {START_SAVES:.0%} is no reason to leave the default"
        return current
    reasons["start_method"] = (
        f"{figures}: {saved:.0%} less; workers are forked from a small clean process that has imported no processor"
    )
    return "forkserver"


def memory_per_worker(measurement: Measurement) -> int:
    """Bytes; a usual worker's where it was not measured."""
    return measurement.rss_bytes or WORKER_BYTES


def stops_paying(table: Sequence[WhatIf]) -> int | None:
    """The fewest workers of a table that come near its shortest time."""
    if not table:
        return None
    limit_s = WORTH_IT * min(row.prediction.seconds for row in table)
    return min(row.jobs for row in table if row.prediction.seconds <= limit_s)


def _rounded_up(seconds: float) -> float:
    """To two digits."""
    unit = 10.0 ** (math.floor(math.log10(seconds)) - 1)
    return round(math.ceil(round(seconds / unit, 6)) * unit, 6)
