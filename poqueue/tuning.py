"""Advice on settings for a workload: what to set, why, and the figures behind it. Pure; applies nothing."""

import math
from dataclasses import dataclass
from typing import Any

from poqueue.config import check_seconds, check_whole

TIMEOUT_FACTOR = 4.0
MIN_TIMEOUT_S = 1.0
LEASE_AHEAD_S = 0.010
MAX_LEASES_AHEAD = 64
BYTES_PER_TASK = 3_000
WORKER_BYTES = 60_000_000
PASS_TIMES = 2.0


@dataclass(frozen=True, slots=True)
class Machine:
    """What the machine offers: usable cores and free memory in bytes."""

    cores: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Measured:
    """What this queue has measured so far; `completed` 0 means nothing yet. Durations in seconds."""

    completed: int = 0
    failed: int = 0
    retried: int = 0
    average_s: float = 0.0
    longest_s: float = 0.0
    retry_success_percent: float = 0.0


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
) -> dict[str, Any]:
    """Recommend settings for a workload.

    Returns:
        plain JSON types: `queue_size_limit`, `retry_delay`, `max_retries`, `task_timeout` as update_configuration names
        them; `worker_count`, `leases_ahead`, `priority_thresholds`, `memory_bytes`; `predicted_completion_s` with
        `predicted_range_s`; `based_on`; and under `reasons` one sentence for each of them.

    Raises:
        ValueError: an argument is of the wrong type or out of range.
    """
    check_whole(expected_task_count, "expected task count (expected_task_count)", minimum=0)
    check_seconds(average_task_duration, "average task duration (average_task_duration)", minimum=0.0, exclusive=True)
    check_whole(worker_count, "worker count (worker_count)", minimum=1)

    duration_s = measured.average_s if measured.completed >= 20 else float(average_task_duration)
    seen = f"{duration_s:.3g} s a task " + (
        f"(measured on {measured.completed} tasks)" if measured.completed >= 20 else "(as given)"
    )
    reasons: dict[str, str] = {}
    advice: dict[str, Any] = {
        "task_timeout": _timeout(duration_s, seen, measured, reasons),
        "max_retries": _retries(max_retries, measured, reasons),
        "retry_delay": _retry_delay(retry_delay, duration_s, seen, reasons),
        "worker_count": _workers(expected_task_count, worker_count, machine, reasons),
        "leases_ahead": _leases_ahead(duration_s, seen, reasons),
    }
    advice["queue_size_limit"] = _size_limit(expected_task_count, machine, reasons)
    advice["priority_thresholds"] = _thresholds(expected_task_count, duration_s, advice["worker_count"], reasons)
    advice["memory_bytes"] = expected_task_count * BYTES_PER_TASK + advice["worker_count"] * WORKER_BYTES
    reasons["memory_bytes"] = (
        f"{expected_task_count} tasks at about {BYTES_PER_TASK} bytes and {advice['worker_count']} workers at about "
        f"{WORKER_BYTES // 1_000_000} MB before what the processing function needs; {machine.free_bytes // 1_000_000} MB are free"
    )
    advice |= _prediction(expected_task_count, duration_s, seen, advice["worker_count"], measured, reasons)
    advice["based_on"] = {
        "durations": "measured" if measured.completed >= 20 else "given",
        "measured_tasks": measured.completed + measured.failed,
        "cores": machine.cores,
        "free_bytes": machine.free_bytes,
    }
    advice["reasons"] = reasons
    return advice


def _timeout(duration_s: float, seen: str, measured: Measured, reasons: dict[str, str]) -> float:
    longest_s = max(duration_s, measured.longest_s)
    timeout_s = round(max(MIN_TIMEOUT_S, TIMEOUT_FACTOR * duration_s, 1.5 * longest_s), 3)
    reasons["task_timeout"] = (
        f"{TIMEOUT_FACTOR:g} x {seen}, not under 1.5 x the longest seen ({longest_s:.3g} s) nor {MIN_TIMEOUT_S:g} s: "
        "a hung task is noticed soon and a slow one is not killed"
    )
    return timeout_s


def _retries(max_retries: int, measured: Measured, reasons: dict[str, str]) -> int:
    if not measured.retried:
        reasons["max_retries"] = f"as configured ({max_retries}): nothing has been retried yet to learn from"
        return max_retries
    if measured.retry_success_percent < 5.0:
        reasons["max_retries"] = f"retries hardly help here: {measured.retry_success_percent:.0f} % of them succeeded"
        return min(max_retries, 1)
    fails = 1.0 - min(99.0, measured.retry_success_percent) / 100.0
    needed = max(1, math.ceil(math.log(0.01) / math.log(fails)))
    reasons["max_retries"] = (
        f"{measured.retry_success_percent:.0f} % of retries succeeded: {needed} leave under 1 % of the failing tasks failed"
    )
    return min(10, needed)


def _retry_delay(retry_delay: float, duration_s: float, seen: str, reasons: dict[str, str]) -> float:
    delay_s = round(min(max(retry_delay, duration_s / 2), 60.0), 3)
    reasons["retry_delay"] = (
        f"the configured {retry_delay:g} s, but at least half of {seen}, so that a fault has time to pass, and at most 60 s"
    )
    return delay_s


def _workers(tasks: int, worker_count: int, machine: Machine, reasons: dict[str, str]) -> int:
    by_memory = max(1, int(machine.free_bytes * 0.8) // WORKER_BYTES)
    workers = max(1, min(worker_count, max(tasks, 1), by_memory))
    if workers < worker_count:
        limit = "there are no more tasks" if workers == tasks else "more would not fit into the free memory"
        reasons["worker_count"] = f"{workers} instead of {worker_count}: {limit}"
    elif worker_count > machine.cores:
        reasons["worker_count"] = (
            f"as given; above the {machine.cores} cores this pays only while tasks wait (network, disk) rather than compute"
        )
    else:
        reasons["worker_count"] = f"as given; the machine has {machine.cores} cores, and tasks that wait can use more"
    return workers


def _leases_ahead(duration_s: float, seen: str, reasons: dict[str, str]) -> int:
    ahead = max(1, min(MAX_LEASES_AHEAD, int(LEASE_AHEAD_S / duration_s)))
    reasons["leases_ahead"] = f"about {LEASE_AHEAD_S * 1000:g} ms of work at {seen}; 1 for longer tasks"
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
            f"the whole batch takes about {batch_s:.3g} s: priorities hardly change when a PO is done"
        )
        return {"urgent_max_priority": 5, "urgent_share": 1.0}
    share = round(max(0.01, min(0.2, 60.0 / batch_s)), 3)
    reasons["priority_thresholds"] = (
        f"the batch takes about {batch_s:.3g} s; with at most {share:.0%} of the tasks at priority 1 to 3 "
        "the urgent ones are through in about a minute"
    )
    return {"urgent_max_priority": 3, "urgent_share": share}


def _prediction(
    tasks: int, duration_s: float, seen: str, workers: int, measured: Measured, reasons: dict[str, str]
) -> dict[str, Any]:
    ended = measured.completed + measured.failed
    attempts = 1.0 + (measured.retried / ended if ended else 0.0)
    work_s = tasks * duration_s * attempts
    best_s = max(work_s / workers, duration_s if tasks else 0.0)
    worst_s = work_s / workers + duration_s * PASS_TIMES if tasks else 0.0
    reasons["predicted_completion_s"] = (
        f"{tasks} tasks x {seen} x {attempts:.2f} attempts on {workers} workers; list scheduling ends between the even share "
        "of the work and that plus its longest tasks (Graham 1969)"
    )
    return {
        "predicted_completion_s": round((best_s + min(worst_s, best_s + duration_s)) / 2, 3),
        "predicted_range_s": [round(best_s, 3), round(worst_s, 3)],
    }
