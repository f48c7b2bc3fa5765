"""Advice on settings for a workload: what to set, why, and the figures behind it. Pure; applies nothing.

The prediction replays what was measured, or stands for the average that was given, in the simulation (simulation.py).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from poqueue.config import MAX_TIMEOUT_S, check_seconds, check_whole
from poqueue.simulation import COMPLETED, RETRY, TYPICAL_BY_START, Attempt, Costs, History, Prediction, Rules, predict
from poqueue.span import span_text
from poqueue.task import DEFAULT_PRIORITY, LEASE_AHEAD_S, MAX_LEASES

TIMEOUT_FACTOR = 4.0
MIN_TIMEOUT_S = 1.0
BYTES_PER_TASK = 3_000
WORKER_BYTES = 60_000_000
MIN_MEASURED = 20
HISTORIES = 100
MAX_TASKS = 10**15
SIMULATED_TASKS = 2_000  # the advice is asked for in the queue's own process, which has other things to do
PREDICTION_RUNS = 8
START_SAVES = 0.10  # of the predicted time; less than that two runs differ by, and is no reason to leave the default
SEED = 1


@dataclass(frozen=True, slots=True)
class Machine:
    """What the machine offers: usable cores and free memory in bytes."""

    cores: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Measured:
    """What this queue has measured so far; `completed` 0 means nothing yet. Durations in seconds.

    Attributes:
        retried: tasks of which at least one attempt was retried.
        recovered, in_vain: of those, the ones that then ended well, and that failed for good.
        retries_needed: the most that one used which recovered.
        durations: (seconds, count) of completed tasks, the shortest first.
    """

    completed: int = 0
    failed: int = 0
    retried: int = 0
    recovered: int = 0
    in_vain: int = 0
    retries_needed: int = 0
    average_s: float = 0.0
    longest_s: float = 0.0
    durations: tuple[tuple[float, int], ...] = ()


def look_at_machine() -> Machine:
    """Read cores and free memory with psutil."""
    import psutil  # only here: every worker process imports this package

    try:
        cores = len(psutil.Process().cpu_affinity())
    except (AttributeError, psutil.Error):
        cores = psutil.cpu_count() or 1
    return Machine(cores, psutil.virtual_memory().available)


def advise(
    expected_task_count: int,
    average_task_duration: float,
    worker_count: int,
    *,
    machine: Machine,
    measured: Measured,
    max_retries: int,
    retry_delay: float,
    max_retry_delay: float,
) -> dict[str, Any]:
    """Recommend settings for a workload.

    From MIN_MEASURED completed tasks on, the queue's own durations count instead of the average that is given.

    Returns:
        plain JSON types: `queue_size_limit`, `retry_delay`, `max_retries`, `task_timeout` as update_configuration names
        them; `worker_count`, `start_method`, `leases_ahead`, `priority_thresholds`, `memory_bytes`; `predicted_completion_s` with
        `predicted_range_s`; `based_on`, which says what was measured and what was only given; and under `reasons` one
        sentence for each of them.

    Raises:
        ValueError: an argument is of the wrong type or out of range.
    """
    check_whole(expected_task_count, "expected task count (expected_task_count)", minimum=0, maximum=MAX_TASKS)
    check_seconds(average_task_duration, "average task duration (average_task_duration)", minimum=0.0, exclusive=True)
    check_whole(worker_count, "worker count (worker_count)", minimum=1)

    is_measured = measured.completed >= MIN_MEASURED and measured.average_s > 0.0
    duration_s = measured.average_s if is_measured else float(average_task_duration)
    seen = f"{span_text(duration_s)} a task " + (
        f"(measured on {measured.completed} tasks)" if is_measured else "(as given)"
    )
    reasons: dict[str, str] = {}
    workers = _workers(expected_task_count, worker_count, machine, reasons)
    advice: dict[str, Any] = {
        "task_timeout": _timeout(duration_s, seen, measured, reasons),
        "max_retries": retries_for(max_retries, measured.recovered, measured.in_vain, measured.retries_needed, reasons),
        "retry_delay": _retry_delay(retry_delay, max_retry_delay, duration_s, seen, reasons),
        "worker_count": workers,
        "leases_ahead": _leases_ahead(duration_s, seen, reasons),
        "queue_size_limit": _size_limit(expected_task_count, machine, reasons),
        "memory_bytes": expected_task_count * BYTES_PER_TASK + workers * WORKER_BYTES,
    }
    reasons["memory_bytes"] = (
        f"{expected_task_count} tasks at about {BYTES_PER_TASK} bytes and {workers} workers at about "
        f"{WORKER_BYTES // 1_000_000} MB before what the processing function needs; {machine.free_bytes // 1_000_000} MB are free"
    )
    advice["priority_thresholds"] = _thresholds(expected_task_count, duration_s, workers, reasons)
    rules = Rules(
        workers,
        task_timeout=advice["task_timeout"],
        max_retries=advice["max_retries"],
        retry_delay=advice["retry_delay"],
        max_retry_delay=max_retry_delay,
    )
    histories = measured_histories(measured) if is_measured else given_histories(duration_s, expected_task_count)
    advice |= _prediction(expected_task_count, histories, rules, machine, seen, reasons)
    advice["based_on"] = {
        "durations": "measured" if is_measured else "given",
        "failures": "measured" if measured.completed + measured.failed else "none assumed",
        "measured_tasks": measured.completed + measured.failed,
        "retried_tasks": measured.retried,
        "cores": machine.cores,
        "free_bytes": machine.free_bytes,
    }
    reasons["based_on"] = (
        f"this queue has measured {measured.completed} completed, {measured.failed} failed and {measured.retried} retried "
        f"tasks ({MIN_MEASURED} completed are needed); the machine has {machine.cores} cores and "
        f"{machine.free_bytes // 1_000_000} MB free"
    )
    advice["reasons"] = reasons
    return advice


# ---------------------------------------------------------------------- one setting each


def _timeout(duration_s: float, seen: str, measured: Measured, reasons: dict[str, str]) -> float:
    longest_s = max(duration_s, measured.longest_s)
    timeout_s = round(min(MAX_TIMEOUT_S, max(MIN_TIMEOUT_S, TIMEOUT_FACTOR * duration_s, 1.5 * longest_s)), 3)
    reasons["task_timeout"] = (
        f"{TIMEOUT_FACTOR:g} x {seen}, not under 1.5 x the longest seen ({span_text(longest_s)}) nor {span_text(MIN_TIMEOUT_S)}: "
        "a hung task is noticed soon and a slow one is not killed"
    )
    return timeout_s


def retries_for(max_retries: int, recovered: int, in_vain: int, needed: int, reasons: dict[str, str]) -> int:
    """How many retries, from what they have brought; the reason goes into `reasons`.

    No share of retries that succeed is reckoned with: tasks differ, and one that failed after all may be one that no retry helps.

    Args:
        max_retries: as configured.
        recovered, in_vain: tasks that were retried and then ended well, or failed for good.
        needed: the most retries that one needed which ended well.
    """
    ended = recovered + in_vain
    if not ended:
        reasons["max_retries"] = f"as configured ({max_retries}): nothing that was retried has ended yet"
        return max_retries
    found = f"{recovered or 'none'} of {ended} that were retried recovered"
    found += f", needing {needed} at most" if recovered else ""
    if recovered and needed > max_retries:
        reasons["max_retries"] = found
        return needed
    ample = 2 * needed + 1  # a task that is lost costs more than retries in vain
    if ended >= MIN_MEASURED and in_vain and ample < max_retries:
        reasons["max_retries"] = f"{found}; {ample} leaves room for others"
        return ample
    caution = "; too few to go by" if ended < MIN_MEASURED else ""
    if not caution and in_vain and needed == max_retries:
        caution = "; more may help the others"
    reasons["max_retries"] = f"as configured ({max_retries}): {found}{caution}"
    return max_retries


def _retry_delay(
    retry_delay: float, max_retry_delay: float, duration_s: float, seen: str, reasons: dict[str, str]
) -> float:
    most_s = min(60.0, max_retry_delay)
    delay_s = round(min(max(retry_delay, duration_s / 2), most_s), 3)
    reasons["retry_delay"] = (
        f"the configured {span_text(retry_delay)}, but at least half of {seen}, so that a fault has time to pass, "
        f"and at most {span_text(most_s)}"
    )
    return delay_s


def _workers(tasks: int, worker_count: int, machine: Machine, reasons: dict[str, str]) -> int:
    by_memory = max(1, int(machine.free_bytes * 0.8) // WORKER_BYTES)
    workers = max(1, min(worker_count, max(tasks, 1), by_memory))
    if workers < worker_count:
        limit = "there are no more tasks" if workers >= tasks else "more would not fit into the free memory"
        reasons["worker_count"] = f"{workers} instead of {worker_count}: {limit}"
    elif worker_count > machine.cores:
        reasons["worker_count"] = (
            f"as given; above the {machine.cores} cores this pays only while tasks wait (network, disk) rather than compute"
        )
    else:
        reasons["worker_count"] = f"as given; the machine has {machine.cores} cores, and tasks that wait can use more"
    return workers


def _leases_ahead(duration_s: float, seen: str, reasons: dict[str, str]) -> int:
    ahead = max(1, int(min(MAX_LEASES, LEASE_AHEAD_S / duration_s)))
    reasons["leases_ahead"] = f"about {span_text(LEASE_AHEAD_S)} of work at {seen}; 1 for longer tasks"
    return ahead


def _size_limit(tasks: int, machine: Machine, reasons: dict[str, str]) -> int:
    by_memory = max(1000, machine.free_bytes // 4 // BYTES_PER_TASK)
    limit = min(max(1000, math.ceil(tasks * 1.1)), by_memory)
    reasons["queue_size_limit"] = (
        f"room for {tasks} tasks and a tenth more (at least 1000), within a quarter of the free memory ({by_memory} tasks)"
    )
    return limit


def _thresholds(tasks: int, duration_s: float, workers: int, reasons: dict[str, str]) -> dict[str, Any]:
    batch_s = tasks * duration_s / workers
    if batch_s <= 60.0 or tasks <= workers:
        reasons["priority_thresholds"] = (
            f"the whole batch takes about {span_text(batch_s)}: priorities hardly change when a PO is done"
        )
        return {"urgent_max_priority": 5, "urgent_share": 1.0}
    share = round(max(0.01, min(0.2, 60.0 / batch_s)), 3)
    reasons["priority_thresholds"] = (
        f"the batch takes about {span_text(batch_s)}; with at most {share:.1%} of the tasks at priority 1 to 3 "
        f"the urgent ones are through in about {span_text(share * batch_s)}"
    )
    return {"urgent_max_priority": 3, "urgent_share": share}


# ---------------------------------------------------------------------- the prediction


def measured_histories(measured: Measured) -> list[History]:
    """HISTORIES tasks as this queue has seen them: durations at even quantiles, some retried, some of those in vain."""
    ended = measured.completed + measured.failed
    durations = _quantiles(measured.durations, HISTORIES) or [measured.average_s] * HISTORIES
    scale = measured.average_s / (sum(durations) / len(durations))  # the buckets are coarse; their mean is known
    retried = round(HISTORIES * min(1.0, measured.retried / ended))
    retries_told = measured.recovered + measured.in_vain
    in_vain = round(retried * measured.in_vain / retries_told) if retries_told else 0
    step = max(1, HISTORIES // max(1, retried))
    histories: list[History] = []
    for number, seconds in enumerate(durations):
        nth = number // step if number % step == 0 else retried  # spread over short and long ones
        failing, ending = Attempt(seconds * scale, outcome=RETRY), Attempt(seconds * scale, outcome=COMPLETED)
        histories.append((failing,) if nth < in_vain else (failing, ending) if nth < retried else (ending,))
    return histories


def given_histories(average_s: float, tasks: int = HISTORIES) -> list[History]:
    """Tasks with this average, spread like exponential ones: of all with a given mean the least presuming.

    As many as there are `tasks`, up to HISTORIES: of more than that the few that were drawn might have another average.
    """
    count = max(1, min(tasks, HISTORIES))
    shapes = [-math.log(1.0 - (n + 0.5) / count) for n in range(count)]
    mean = sum(shapes) / count
    return [(Attempt(average_s * shape / mean),) for shape in shapes]


def _quantiles(durations: Sequence[tuple[float, int]], count: int) -> list[float]:
    total = sum(n for _, n in durations)
    found: list[float] = []
    passed = 0
    for seconds, n in durations:
        passed += n
        while len(found) < count and (len(found) + 0.5) * total <= passed * count:
            found.append(seconds)
    return found


def _prediction(
    tasks: int, histories: Sequence[History], rules: Rules, machine: Machine, seen: str, reasons: dict[str, str]
) -> dict[str, Any]:
    if not tasks:
        reasons["predicted_completion_s"] = reasons["start_method"] = "there is nothing to do"
        return {"start_method": "spawn", "predicted_completion_s": 0.0, "predicted_range_s": [0.0, 0.0]}
    longest = max(attempt.seconds for history in histories for attempt in history)
    # An average alone does not say that anything hangs: what was spread round it is not to be killed.
    patient = replace(rules, task_timeout=max(rules.task_timeout, 2.0 * longest))
    start = _start_method(tasks, histories, patient, reasons)
    expected_s, low_s, high_s, attempts = _simulated(
        tasks, histories, patient, TYPICAL_BY_START[start], PREDICTION_RUNS
    )
    crowd = max(1.0, rules.workers / machine.cores)
    reasons["predicted_completion_s"] = (
        f"{tasks} tasks x {seen} x {attempts:.2f} attempts on {rules.workers} workers, simulated from their start on"
        + (f"; up to {crowd:.3g} times that if the tasks compute, on {machine.cores} cores" if crowd > 1.0 else "")
    )
    return {
        "start_method": start,
        "predicted_completion_s": round(expected_s, 3),
        "predicted_range_s": [round(low_s, 3), round(high_s * crowd, 3)],
    }


def _start_method(tasks: int, histories: Sequence[History], rules: Rules, reasons: dict[str, str]) -> str:
    took = {
        method: _simulated(tasks, histories, rules, TYPICAL_BY_START[method], 0)[0]
        for method in ("spawn", "forkserver")
    }
    saved = 1.0 - took["forkserver"] / took["spawn"]
    figures = (
        f"with typical start times (measured elsewhere) the batch takes {span_text(took['spawn'])} by spawn and "
        f"{span_text(took['forkserver'])} by forkserver"
    )
    if saved < START_SAVES:
        reasons["start_method"] = f"{figures}: less than {START_SAVES:.0%} is no reason to leave the default"
        return "spawn"
    reasons["start_method"] = (
        f"{figures}, {saved:.0%} less; workers are forked from a small clean process that has imported no processor"
    )
    return "forkserver"


def _simulated(
    tasks: int, histories: Sequence[History], rules: Rules, costs: Costs, runs: int
) -> tuple[float, float, float, float]:
    """Expected, lowest and highest seconds, and attempts a task; a long batch goes on at its pace."""
    count = min(tasks, SIMULATED_TASKS)
    whole = _predict(count, histories, rules, costs, runs)
    attempts = whole.run.attempts / count
    if count == tasks:
        return whole.seconds, whole.low_s, whole.high_s, attempts
    half = _predict(count // 2, histories, rules, costs, 0)
    pace_s = max(0.0, whole.seconds - half.seconds) / (count - count // 2)
    expected_s = whole.seconds + pace_s * (tasks - count)
    return (
        expected_s,
        expected_s * whole.low_s / whole.seconds,
        expected_s * whole.high_s / whole.seconds,
        attempts,
    )


def _predict(count: int, histories: Sequence[History], rules: Rules, costs: Costs, runs: int) -> Prediction:
    return predict(histories, [DEFAULT_PRIORITY] * count, rules, costs, Random(SEED), runs=runs)
