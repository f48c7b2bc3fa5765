"""Time limits that follow the running median."""

import statistics
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st

from poqueue import ProcessingTask, TaskQueue, TaskResult, adaptive
from poqueue.adaptive import MIN_SAMPLES, TIMEOUT_ERROR, AdaptiveTimeout, RunningMedian
from poqueue.task import Report


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=40), st.integers(1, 9))
def test_the_median_is_that_of_the_latest_values(values: list[float], window: int) -> None:
    median = RunningMedian()
    with mock.patch.object(adaptive, "WINDOW", window):
        for value in values:
            median.add(value)

    assert median.value == statistics.median_high(values[-window:])


def learned(count: int, seconds: float = 2.0, group: str = "") -> AdaptiveTimeout:
    limits = AdaptiveTimeout(2.0, floor_s=1.0)
    for _ in range(count):
        limits.note(group, seconds)
    return limits


def test_before_enough_has_completed_the_tasks_own_limit_holds() -> None:
    assert learned(MIN_SAMPLES - 1).limit_s("", 300.0, was_cut_off=False) == 300.0
    assert learned(MIN_SAMPLES).limit_s("", 300.0, was_cut_off=False) == 4.0


def test_the_limit_stays_between_the_floor_and_the_tasks_own() -> None:
    assert learned(50, seconds=0.001).limit_s("", 300.0, was_cut_off=False) == 1.0
    assert learned(50, seconds=1000.0).limit_s("", 300.0, was_cut_off=False) == 300.0
    assert learned(50, seconds=0.001).limit_s("", 0.5, was_cut_off=False) == 0.5


def test_an_attempt_after_one_that_was_cut_off_has_the_tasks_own_limit() -> None:
    assert learned(50).limit_s("", 300.0, was_cut_off=True) == 300.0


def test_a_wish_for_a_retry_does_not_hide_that_the_attempt_was_cut_off() -> None:
    now = [100.0]
    queue = TaskQueue(2, 0.0, 300.0, timeout_share=2.0, timeout_floor=1.0, clock=lambda: now[0])
    queue.add_tasks([ProcessingTask(f"t{n}", {"po_number": f"P{n}"}) for n in range(MIN_SAMPLES + 1)])
    leases = queue.exchange("w", limit=MIN_SAMPLES).leases
    now[0] += 5.0
    for lease in leases:
        queue.complete_task(lease.task_id, "w", TaskResult(True, [], 5.0))
    [lease] = queue.exchange("w").leases
    assert lease.task_timeout == 10.0
    cut_off = {"error_type": TIMEOUT_ERROR, "error": "too slow"}
    queue.exchange("w", [Report(lease.task_id, lease.token, 10.0, None, cut_off, None, True)], limit=0)

    assert queue.retry_task(lease.task_id, {"error": "again, please"}) is True

    assert [lease.task_timeout for lease in queue.exchange("w").leases] == [300.0]


def test_a_group_goes_by_itself_once_it_has_completed_enough() -> None:
    limits = learned(50)
    for _ in range(MIN_SAMPLES - 1):
        limits.note("slow", 20.0)
    assert limits.limit_s("slow", 300.0, was_cut_off=False) == 4.0
    limits.note("slow", 20.0)

    assert limits.limit_s("slow", 300.0, was_cut_off=False) == 40.0
    assert limits.limit_s("other", 300.0, was_cut_off=False) == 4.0
    assert set(limits.view(300.0)) == {"", "slow"}
    assert limits.view(300.0)["slow"] == {"count": MIN_SAMPLES, "median_s": 20.0, "limit_s": 40.0}
