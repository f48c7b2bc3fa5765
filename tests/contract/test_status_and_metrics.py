"""Counts that balance, throughput, ETA and rates."""

from __future__ import annotations

import math

import pytest

from poqueue import TaskQueue, TaskStatus
from poqueue.task import Report
from tests.contract.conftest import MakeQueue
from tests.contract.scene import (
    COUNTS,
    Clock,
    counts,
    fail,
    failure,
    finish,
    give_back,
    lease,
    one_of_each,
    success,
    task,
)

STATUS_KEYS = {*COUNTS, "status", "estimated_completion", "throughput"}
METRIC_KEYS = {
    "average_task_duration",
    "throughput_last_minute",
    "throughput_last_hour",
    "retry_rate",
    "failure_rate",
    "queue_wait_time",
    "worker_utilization",
}


def lease_and_take(queue: TaskQueue, clock: Clock, seconds: float, worker_id: str = "w1") -> None:
    leased = lease(queue, worker_id)
    clock.advance(seconds)
    queue.complete_task(leased.task_id, worker_id, success(processing_time=seconds))


@pytest.mark.contract("R11", "Part 1")
@pytest.mark.parametrize("is_used", [False, True], ids=["fresh", "used"])
def test_the_status_has_its_keys_and_types(queue: TaskQueue, clock: Clock, is_used: bool) -> None:
    if is_used:
        one_of_each(queue)
        clock.advance(10)

    status = queue.get_queue_status()

    assert set(status) >= STATUS_KEYS
    assert {name: type(status[name]) for name in COUNTS} == dict.fromkeys(COUNTS, int)
    assert type(status["throughput"]) is float
    assert type(status["estimated_completion"]) in (float, type(None))
    assert status["status"] == "ACTIVE"


@pytest.mark.contract("R13", "Part 1")
@pytest.mark.parametrize("is_used", [False, True], ids=["fresh", "used"])
def test_the_metrics_have_their_keys_and_types(queue: TaskQueue, clock: Clock, is_used: bool) -> None:
    if is_used:
        one_of_each(queue)
        clock.advance(10)

    metrics = queue.get_performance_metrics()

    assert set(metrics) >= METRIC_KEYS
    numbers = METRIC_KEYS - {"worker_utilization"}
    assert {name: type(metrics[name]) for name in numbers} == dict.fromkeys(numbers, float)
    assert all(math.isfinite(metrics[name]) and metrics[name] >= 0 for name in numbers)
    assert isinstance(metrics["worker_utilization"], dict)
    assert all(type(share) is float for share in metrics["worker_utilization"].values())


@pytest.mark.contract("R11")
def test_a_fresh_queue_counts_nothing(queue: TaskQueue) -> None:
    assert counts(queue, *COUNTS) == (0,) * len(COUNTS)


@pytest.mark.contract("R11")
def test_the_total_is_the_sum_of_all_that_was_ever_added(queue: TaskQueue) -> None:
    one_of_each(queue)
    assert counts(queue, *COUNTS) == (5, 1, 1, 1, 1, 1, 0, 2)

    queue.clear_queue()
    assert counts(queue, *COUNTS) == (5, 0, 1, 1, 1, 0, 2, 0)
    queue.add_task(task("PO-new"))
    assert counts(queue, *COUNTS) == (6, 1, 1, 1, 1, 0, 2, 1)


@pytest.mark.contract("R11")
def test_the_counts_agree_with_the_lists(queue: TaskQueue) -> None:
    one_of_each(queue)
    names = {
        TaskStatus.PENDING: "pending_tasks",
        TaskStatus.PROCESSING: "processing_tasks",
        TaskStatus.COMPLETED: "completed_tasks",
        TaskStatus.FAILED: "failed_tasks",
        TaskStatus.RETRY_PENDING: "retry_tasks",
    }

    status = queue.get_queue_status()

    assert {name: len(queue.get_tasks_by_status(each)) for each, name in names.items()} == {
        name: status[name] for name in names.values()
    }


@pytest.mark.contract("R11")
def test_a_status_is_a_snapshot(queue: TaskQueue) -> None:
    before = queue.get_queue_status()
    queue.add_task(task())
    before["total_tasks"] = 99

    assert queue.get_queue_status()["total_tasks"] == 1


@pytest.mark.contract("R12")
def test_throughput_is_completions_over_the_time_since_the_first_dispatch(queue: TaskQueue, clock: Clock) -> None:
    for number in range(3):
        queue.add_task(task(f"PO-{number}"))
    clock.advance(1000)
    assert queue.get_queue_status()["throughput"] == 0.0

    for number in range(3):
        lease(queue, f"w{number}")
    clock.advance(10)
    for each in queue.get_tasks_by_status(TaskStatus.PROCESSING):
        queue.complete_task(each.task_id, str(each.worker_id), success())

    assert queue.get_queue_status()["throughput"] == pytest.approx(0.3)
    clock.advance(10)
    assert queue.get_queue_status()["throughput"] == pytest.approx(0.15)


@pytest.mark.contract("R12")
def test_throughput_looks_back_one_minute(queue: TaskQueue, clock: Clock) -> None:
    for number in range(6):
        queue.add_task(task(f"PO-{number}"))
    for _ in range(3):
        clock.advance(5)
        finish(queue)
    clock.advance(40)
    assert queue.get_queue_status()["throughput"] == pytest.approx(3 / 50)

    clock.advance(15)
    for _ in range(3):
        finish(queue)
    clock.advance(30)
    assert queue.get_queue_status()["throughput"] == pytest.approx(3 / 60)
    clock.advance(62)
    assert queue.get_queue_status()["throughput"] == 0.0


@pytest.mark.contract("R12")
def test_throughput_is_finite_when_no_time_has_passed(queue: TaskQueue) -> None:
    queue.add_task(task())
    finish(queue)

    assert math.isfinite(queue.get_queue_status()["throughput"])
    metrics = queue.get_performance_metrics()
    assert math.isfinite(metrics["throughput_last_minute"])
    assert math.isfinite(metrics["throughput_last_hour"])


@pytest.mark.contract("R12")
def test_the_last_minute_and_the_last_hour_have_throughputs_of_their_own(queue: TaskQueue, clock: Clock) -> None:
    for number in range(4):
        queue.add_task(task(f"PO-{number}"))
    for _ in range(4):
        lease_and_take(queue, clock, 5)

    metrics = queue.get_performance_metrics()
    assert metrics["throughput_last_minute"] == pytest.approx(0.2)
    assert metrics["throughput_last_hour"] > 0

    clock.advance(600)
    metrics = queue.get_performance_metrics()
    assert metrics["throughput_last_minute"] == 0.0
    assert metrics["throughput_last_hour"] > 0
    clock.advance(7200)
    assert queue.get_performance_metrics()["throughput_last_hour"] == 0.0


@pytest.mark.contract("R12")
def test_there_is_no_eta_before_the_first_completion(queue: TaskQueue, clock: Clock) -> None:
    queue.add_task(task("PO-1"))
    queue.add_task(task("PO-2"))
    assert queue.get_queue_status()["estimated_completion"] is None

    lease(queue)
    clock.advance(3)
    assert queue.get_queue_status()["estimated_completion"] is None


@pytest.mark.contract("R12")
def test_the_eta_is_zero_when_nothing_is_left(queue: TaskQueue, clock: Clock) -> None:
    queue.add_task(task())
    lease_and_take(queue, clock, 2)

    assert queue.get_queue_status()["estimated_completion"] == 0.0


@pytest.mark.contract("R12", "R15")
def test_there_is_no_eta_while_paused(queue: TaskQueue, clock: Clock) -> None:
    for number in range(3):
        queue.add_task(task(f"PO-{number}"))
    lease_and_take(queue, clock, 2)
    queue.pause_queue()
    assert queue.get_queue_status()["estimated_completion"] is None

    queue.resume_queue()
    assert queue.get_queue_status()["estimated_completion"] > 0


@pytest.mark.contract("R12")
def test_there_is_no_eta_while_the_queue_is_held(queue: TaskQueue, clock: Clock) -> None:
    for number in range(3):
        queue.add_task(task(f"PO-{number}"))
    lease_and_take(queue, clock, 2)
    queue.hold_queue("no memory")
    assert queue.get_queue_status()["estimated_completion"] is None

    queue.hold_queue("")
    assert queue.get_queue_status()["estimated_completion"] > 0


@pytest.mark.contract("R12", "R15")
@pytest.mark.parametrize("is_held", [False, True], ids=["paused", "held"])
@pytest.mark.parametrize("stood_still_s", [20.0, 3600.0])
def test_the_eta_goes_by_the_time_in_which_tasks_could_run(
    queue: TaskQueue, clock: Clock, stood_still_s: float, is_held: bool
) -> None:
    for number in range(40):
        queue.add_task(task(f"PO-{number}"))
    for _ in range(10):
        lease_and_take(queue, clock, 1)

    queue.hold_queue("no memory") if is_held else queue.pause_queue()
    clock.advance(stood_still_s)
    queue.hold_queue("") if is_held else queue.resume_queue()
    clock.advance(2.0)
    etas = [queue.get_queue_status()["estimated_completion"]]
    for _ in range(2):
        lease_and_take(queue, clock, 1)
        etas.append(queue.get_queue_status()["estimated_completion"])

    assert etas == [pytest.approx(left, rel=0.1) for left in (30, 29, 28)]


@pytest.mark.contract("R12")
def test_what_ends_just_after_a_pause_began_before_it_and_says_nothing_of_the_pace(
    queue: TaskQueue, clock: Clock
) -> None:
    queue.add_tasks([task(f"PO-{number}") for number in range(40)])
    lease_and_take(queue, clock, 1)
    before = lease(queue, "w1")
    queue.pause_queue()
    clock.advance(0.9)
    queue.resume_queue()
    lease(queue, "w2")
    clock.advance(0.001)
    queue.complete_task(before.task_id, "w1", success(1.0))

    assert queue.get_queue_status()["estimated_completion"] == pytest.approx(38, rel=0.1)


@pytest.mark.contract("R12")
def test_the_eta_goes_by_what_ended_well_or_not_and_the_throughput_by_what_ended_well(
    queue: TaskQueue, clock: Clock
) -> None:
    for number in range(200):
        queue.add_task(task(f"PO-{number}"))
    lease_and_take(queue, clock, 1)
    told = []
    for count, seconds in ((19, 1.0), (80, 2.0)):
        for _ in range(count):
            leased = lease(queue)
            clock.advance(seconds)
            queue.complete_task(leased.task_id, "w1", failure())
        status = queue.get_queue_status()
        told.append((status["estimated_completion"], status["throughput"]))

    assert told == [(pytest.approx(180, rel=0.1), pytest.approx(1 / 20)), (pytest.approx(200, rel=0.1), 0.0)]


@pytest.mark.contract("R12")
def test_the_eta_grows_with_what_waits(queue: TaskQueue, clock: Clock) -> None:
    queue.add_task(task("PO-0"))
    lease_and_take(queue, clock, 2)
    etas = []
    for number in range(1, 4):
        queue.add_tasks([task(f"PO-{number}-{each}") for each in range(10)])
        etas.append(queue.get_queue_status()["estimated_completion"])

    assert 0 < etas[0] < etas[1] < etas[2]
    assert all(type(eta) is float for eta in etas)
    assert etas[2] == pytest.approx(60, rel=0.5)


@pytest.mark.contract("R12")
def test_the_eta_covers_what_runs(queue: TaskQueue, clock: Clock) -> None:
    queue.add_task(task("PO-0"))
    queue.add_task(task("PO-1"))
    lease_and_take(queue, clock, 2)
    lease(queue)

    assert queue.get_queue_status()["estimated_completion"] > 0


@pytest.mark.contract("R12")
def test_the_eta_covers_retries_with_their_due_times(make_queue: MakeQueue, clock: Clock) -> None:
    queue = make_queue(retry_delay=500.0)
    queue.add_task(task("PO-0"))
    queue.add_task(task("PO-1"))
    lease_and_take(queue, clock, 2)
    give_back(queue)

    assert 500 <= queue.get_queue_status()["estimated_completion"] < 600


@pytest.mark.contract("R13")
def test_durations_and_waits_are_averages_in_seconds(queue: TaskQueue, clock: Clock) -> None:
    queue.add_task(task("PO-0"))
    queue.add_task(task("PO-1"))
    clock.advance(10)
    lease_and_take(queue, clock, 4)
    lease_and_take(queue, clock, 8)

    metrics = queue.get_performance_metrics()

    assert metrics["average_task_duration"] == pytest.approx(6.0)
    assert metrics["queue_wait_time"] == pytest.approx((10 + 14) / 2)


@pytest.mark.contract("R13")
def test_a_lease_that_was_given_back_unbegun_counts_as_no_wait(queue: TaskQueue, clock: Clock) -> None:
    queue.add_task(task("PO-0"))
    for turn in range(1, 9, 2):
        clock.advance(10)
        lease = queue.exchange("w1", turn=turn).leases[0]
        queue.exchange("w1", [Report(lease.task_id, lease.token, 0.0)], limit=0, turn=turn + 1)
    clock.advance(10)
    queue.exchange("w1", turn=9)

    assert queue.get_performance_metrics()["queue_wait_time"] == pytest.approx(50.0)


@pytest.mark.contract("R13")
def test_rates_are_percentages(make_queue: MakeQueue, clock: Clock) -> None:
    queue = make_queue(max_retries=1)
    for number in range(4):
        queue.add_task(task(f"PO-{number}"))
    give_back(queue)
    give_back(queue)
    clock.advance(10)
    finish(queue)
    retried = lease(queue)
    assert queue.retry_task(retried.task_id, {"error": "boom"}) is False
    finish(queue)
    finish(queue)

    metrics = queue.get_performance_metrics()

    assert metrics["retry_rate"] == pytest.approx(50.0)
    assert metrics["failure_rate"] == pytest.approx(25.0)
    assert queue.get_error_summary()["retry_success_rate"] == pytest.approx(50.0)


@pytest.mark.contract("R13")
def test_rates_are_zero_when_there_is_nothing(queue: TaskQueue) -> None:
    metrics = queue.get_performance_metrics()

    assert (metrics["retry_rate"], metrics["failure_rate"]) == (0.0, 0.0)
    assert queue.get_error_summary()["retry_success_rate"] == 0.0
    assert metrics["worker_utilization"] == {}


@pytest.mark.contract("R13")
def test_rates_never_leave_0_to_100(make_queue: MakeQueue, clock: Clock) -> None:
    queue = make_queue(max_retries=5)
    queue.add_task(task("PO-0", "a"))
    for _ in range(5):
        give_back(queue)
        clock.advance(3600)
    fail(queue)

    rates = [queue.get_performance_metrics()[name] for name in ("retry_rate", "failure_rate")]
    assert rates == [100.0, 100.0]
    assert queue.get_error_summary()["retry_success_rate"] == 0.0
    queue.add_task(task("PO-1"))
    finish(queue)
    assert all(0 <= queue.get_performance_metrics()[name] <= 100 for name in ("retry_rate", "failure_rate"))


@pytest.mark.contract("R13")
def test_a_task_that_has_never_started_is_none_that_was_retried(queue: TaskQueue, clock: Clock) -> None:
    queue.add_task(task("PO-0", "done"))
    finish(queue)
    for name in "abc":
        queue.add_task(task(f"PO-{name}", name))
        queue.cancel_task(name)
        assert queue.retry_task(name, {"error": "again, please"}) is True
    assert queue.get_performance_metrics()["retry_rate"] == 0.0

    clock.advance(100)
    queue.retry_task(lease(queue).task_id, {"error": "boom"})

    assert queue.get_performance_metrics()["retry_rate"] == 50.0  # of two that have started


@pytest.mark.contract("R13")
def test_a_task_that_is_asked_for_again_and_again_is_one_that_was_retried(queue: TaskQueue, clock: Clock) -> None:
    queue.add_task(task("PO-0", max_retries=1))
    queue.add_task(task("PO-1"))
    for _ in range(3):
        give_back(queue)
        clock.advance(3600)
        fail(queue)
        assert queue.requeue_failed() == 1
    clock.advance(3600)
    finish(queue)
    finish(queue)

    assert queue.get_performance_metrics()["retry_rate"] == 50.0


@pytest.mark.contract("R13")
def test_a_task_that_was_broken_off_waits_anew(queue: TaskQueue, clock: Clock) -> None:
    queue.add_task(task("PO-0"))
    clock.advance(1.0)
    queue.exchange("w1")
    clock.advance(100.0)
    assert queue.interrupt_leases(list(queue.get_leases()), "stopped", is_crash=False) == 1
    clock.advance(2.0)
    queue.exchange("w2")

    assert queue.get_performance_metrics()["queue_wait_time"] == pytest.approx((1.0 + 2.0) / 2)


@pytest.mark.contract("R13")
def test_utilization_is_a_share_per_worker(queue: TaskQueue, clock: Clock) -> None:
    for number in range(3):
        queue.add_task(task(f"PO-{number}"))
    lease_and_take(queue, clock, 1, "idle")
    lease_and_take(queue, clock, 30, "busy")

    shares = queue.get_performance_metrics()["worker_utilization"]

    assert set(shares) == {"idle", "busy"}
    assert all(0.0 <= share <= 1.0 for share in shares.values())
    assert shares["idle"] < shares["busy"]


@pytest.mark.contract("R13")
def test_a_worker_counts_as_busy_while_its_task_runs(queue: TaskQueue, clock: Clock) -> None:
    queue.add_task(task())
    lease(queue)
    clock.advance(30)

    assert queue.get_performance_metrics()["worker_utilization"]["w1"] == pytest.approx(1.0)


@pytest.mark.contract("R13")
@pytest.mark.parametrize("end", ["release_worker", "retire_worker"])
def test_the_time_of_a_worker_ends_when_it_is_gone(queue: TaskQueue, clock: Clock, end: str) -> None:
    queue.add_task(task())
    lease_and_take(queue, clock, 30)
    clock.advance(10)
    getattr(queue, end)("w1")
    clock.advance(3600)

    assert queue.get_performance_metrics()["worker_utilization"]["w1"] == pytest.approx(30 / 40)


@pytest.mark.contract("R13")
def test_a_worker_that_is_to_go_works_until_its_last_task_has_ended(queue: TaskQueue, clock: Clock) -> None:
    queue.add_task(task("PO-0"))
    queue.add_task(task("PO-1"))
    lease_and_take(queue, clock, 30)
    clock.advance(10)
    last = lease(queue)
    queue.retire_worker("w1")
    clock.advance(20)
    assert queue.get_performance_metrics()["worker_utilization"]["w1"] == pytest.approx(50 / 60)
    queue.complete_task(last.task_id, "w1", success(20.0))
    clock.advance(3600)

    assert queue.get_performance_metrics()["worker_utilization"]["w1"] == pytest.approx(50 / 60)
