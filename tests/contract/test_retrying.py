"""What retry_task grants, and when a retry runs."""

from __future__ import annotations

import pytest

from poqueue import TaskQueue, TaskStatus
from tests.contract.conftest import MakeQueue
from tests.contract.scene import (
    Clock,
    Recorder,
    counts,
    fail,
    find,
    finish,
    give_back,
    lease,
    leased_id,
    nothing_changes,
    one_of_each,
    success,
    task,
)
from workers.task_queue import TaskNotFoundError, WorkerMismatchError

FAR = 100_000.0


def attempts_until_failed(queue: TaskQueue, clock: Clock, task_id: str) -> int:
    attempts = 1
    lease(queue)
    while queue.retry_task(task_id, {"error": f"attempt {attempts}"}):
        clock.advance(FAR)
        assert leased_id(queue) == task_id
        attempts += 1
    return attempts


@pytest.mark.contract("R1")
@pytest.mark.parametrize("max_retries", [0, 1, 2, 3, 7])
def test_n_retries_are_n_plus_1_attempts(make_queue: MakeQueue, clock: Clock, max_retries: int) -> None:
    queue = make_queue(max_retries=max_retries)
    queue.add_task(task("PO-1", "a"))

    assert attempts_until_failed(queue, clock, "a") == max_retries + 1

    failed = find(queue, "a")
    assert (failed.status, failed.attempt, failed.retry_count) == (TaskStatus.FAILED, max_retries + 1, max_retries)
    assert len(failed.error_history) == max_retries + 1
    assert counts(queue, "total_tasks", "failed_tasks", "retry_tasks", "queue_length") == (1, 1, 0, 0)
    clock.advance(FAR)
    assert queue.get_next_task("w1") is None


@pytest.mark.contract("R1", "R21")
def test_without_retries_the_first_failure_is_the_last(make_queue: MakeQueue) -> None:
    queue = make_queue(max_retries=0)
    recorder = Recorder(queue)
    queue.add_task(task("PO-1", "a"))
    lease(queue)

    assert queue.retry_task("a", {"error": "boom"}) is False

    assert find(queue, "a").status is TaskStatus.FAILED
    assert recorder.until("empty") == [("failed", "a", "boom"), ("empty",)]


@pytest.mark.contract("R3")
def test_the_retry_of_a_running_task_waits_and_remembers_its_error(queue: TaskQueue, clock: Clock) -> None:
    queue.add_task(task("PO-1", "a"))
    lease(queue)

    assert queue.retry_task("a", {"error_type": "TimeoutError", "error": "slow"}) is True

    waiting = find(queue, "a")
    assert (waiting.status, waiting.attempt, waiting.retry_count) == (TaskStatus.RETRY_PENDING, 1, 1)
    assert len(waiting.error_history) == 1
    assert waiting.error_history[0].items() >= {"error_type": "TimeoutError", "error": "slow"}.items()
    assert counts(queue, "retry_tasks", "processing_tasks", "pending_tasks", "queue_length") == (1, 0, 0, 1)


@pytest.mark.contract("R3")
def test_the_retry_of_a_failed_task_with_retries_left_takes_it_out_of_the_failed(
    make_queue: MakeQueue, clock: Clock
) -> None:
    queue = make_queue(max_retries=1)
    queue.add_task(task("PO-1", "a"))
    fail(queue)

    assert queue.retry_task("a", {"error": "again, please"}) is True

    assert counts(queue, "failed_tasks", "retry_tasks", "total_tasks") == (0, 1, 1)
    assert find(queue, "a").status is TaskStatus.RETRY_PENDING
    assert [error["message"] for error in find(queue, "a").error_history] == ["boom", "again, please"]
    assert queue.get_error_summary()["total_errors"] == 1, "one attempt has failed"
    clock.advance(FAR)
    assert finish(queue) == "a"
    assert counts(queue, "failed_tasks", "completed_tasks", "retry_tasks", "total_tasks") == (0, 1, 0, 1)


@pytest.mark.contract("R3", "R4")
def test_the_retry_of_a_failed_task_waits_like_any_other(make_queue: MakeQueue, clock: Clock) -> None:
    queue = make_queue(retry_delay=8.0)
    queue.add_task(task("PO-1", "a"))
    fail(queue)
    queue.retry_task("a", {"error": "again, please"})

    clock.advance(7.5)
    assert queue.get_next_task("w1") is None
    clock.advance(0.5)
    assert leased_id(queue) == "a"


@pytest.mark.contract("R3", "R21")
def test_the_retry_of_a_failed_task_without_retries_left_changes_and_fires_nothing(make_queue: MakeQueue) -> None:
    queue = make_queue(max_retries=0)
    recorder = Recorder(queue)
    queue.add_task(task("PO-1", "a"))
    fail(queue, error="boom")

    with nothing_changes(queue):
        assert queue.retry_task("a", {"error": "again"}) is False
        assert queue.retry_task("a", {"error": "and again"}) is False
    queue.add_task(task("PO-2", "b"))
    finish(queue)

    recorder.until("complete", "b")
    assert recorder.events[:3] == [("failed", "a", "boom"), ("empty",), ("complete", "b")]


KILLED = {"error_type": "WorkerDied", "error": "SIGKILL", "worker_id": "w1"}


@pytest.mark.contract("R3", "R17", "R27")
@pytest.mark.parametrize("cancelled", ["while it ran", "while it waited"])
def test_a_report_that_is_repeated_after_a_cancel_asks_for_no_retry(
    make_queue: MakeQueue, clock: Clock, cancelled: str
) -> None:
    queue = make_queue(max_retries=3)
    queue.add_task(task("PO-1", "a"))
    lease(queue, "w1")
    if cancelled == "while it ran":
        queue.cancel_task("a")
        assert queue.retry_task("a", KILLED) is False
    else:
        assert queue.retry_task("a", KILLED) is True
        queue.cancel_task("a")

    with nothing_changes(queue):
        assert queue.retry_task("a", KILLED) is False
    clock.advance(FAR)
    assert queue.get_next_task("w2") is None
    assert queue.retry_task("a", {"error": "somebody wants it again"}) is True


@pytest.mark.contract("R3")
def test_a_worker_that_has_reported_a_failure_may_ask_for_another_attempt_each_time(
    make_queue: MakeQueue, clock: Clock
) -> None:
    queue = make_queue(max_retries=2)
    queue.add_task(task("PO-1", "a"))

    for _ in range(2):
        fail(queue, "w1", "busy")
        assert queue.retry_task("a", {"error": "busy", "worker_id": "w1"}) is True
        clock.advance(FAR)
    assert fail(queue, "w1") == "a"
    assert queue.retry_task("a", {"error": "busy", "worker_id": "w1"}) is False


@pytest.mark.contract("R3", "R17")
def test_a_failed_task_is_given_back_by_none_but_its_last_worker(make_queue: MakeQueue, clock: Clock) -> None:
    queue = make_queue(max_retries=3)
    queue.add_task(task("PO-1", "a"))
    give_back(queue, "w1")
    clock.advance(FAR)
    fail(queue, "w2")

    for worker_id in ("w1", "somebody"):
        with nothing_changes(queue), pytest.raises(WorkerMismatchError):
            queue.retry_task("a", {"error": "boom", "worker_id": worker_id})


@pytest.mark.contract("R3")
def test_the_retry_of_a_waiting_retry_is_granted_and_uses_nothing_up(make_queue: MakeQueue, clock: Clock) -> None:
    queue = make_queue(max_retries=1, retry_delay=8.0)
    queue.add_task(task("PO-1", "a"))
    give_back(queue)
    clock.advance(7)

    before = find(queue, "a")
    assert queue.retry_task("a", {"error": "boom"}) is True

    after = find(queue, "a")
    assert (after.status, after.retry_count, after.attempt) == (before.status, before.retry_count, before.attempt)
    assert counts(queue, "retry_tasks", "queue_length", "total_tasks") == (1, 1, 1)
    assert queue.get_next_task("w1") is None
    clock.advance(1)
    assert leased_id(queue, "w1") == "a"
    assert queue.get_tasks_by_status(TaskStatus.RETRY_PENDING) == []
    queue.complete_task("a", "w1", success())
    clock.advance(FAR)
    assert queue.get_next_task("w2") is None


@pytest.mark.contract("R3")
def test_the_retry_of_a_pending_task_is_granted_and_changes_nothing(queue: TaskQueue, clock: Clock) -> None:
    queue.add_task(task("PO-1", "a"))

    with nothing_changes(queue):
        assert queue.retry_task("a", {"error": "boom"}) is True
    assert leased_id(queue, "w1") == "a"
    clock.advance(FAR)
    assert queue.get_next_task("w2") is None
    queue.complete_task("a", "w1", success())
    assert queue.get_next_task("w2") is None  # a second entry would have been hidden by its running PO


@pytest.mark.contract("R3", "R27")
def test_the_retry_of_a_completed_task_is_refused_and_changes_nothing(queue: TaskQueue) -> None:
    one_of_each(queue)

    with nothing_changes(queue):
        assert queue.retry_task("COMPLETED", {"error": "boom"}) is False


@pytest.mark.contract("R3")
def test_the_retry_of_an_unknown_task_changes_nothing(queue: TaskQueue) -> None:
    one_of_each(queue)

    with nothing_changes(queue), pytest.raises(TaskNotFoundError):
        queue.retry_task("nobody", {"error": "boom"})


@pytest.mark.contract("R4")
@pytest.mark.parametrize("enable_priority", [True, False], ids=["priority", "fifo"])
def test_the_kth_retry_waits_the_delay_doubled_k_minus_1_times(
    make_queue: MakeQueue, clock: Clock, enable_priority: bool
) -> None:
    queue = make_queue(max_retries=6, retry_delay=5.0, enable_priority=enable_priority)
    queue.add_task(task("PO-1", "a"))

    for delay in [5, 10, 20, 40, 80, 160]:
        give_back(queue)
        clock.advance(delay - 0.5)
        assert queue.get_next_task("w1") is None
        clock.advance(0.5)


@pytest.mark.contract("R4")
def test_the_delay_is_capped(make_queue: MakeQueue, clock: Clock) -> None:
    queue = make_queue(max_retries=6, retry_delay=5.0, max_retry_delay=30.0)
    queue.add_task(task("PO-1", "a"))

    for delay in [5, 10, 20, 30, 30, 30]:
        give_back(queue)
        clock.advance(delay - 0.5)
        assert queue.get_next_task("w1") is None
        clock.advance(0.5)


@pytest.mark.contract("R4")
def test_the_thousandth_retry_waits_an_hour_by_default(make_queue: MakeQueue, clock: Clock) -> None:
    queue = make_queue(max_retries=2000)
    queue.add_task(task("PO-1", "a"))

    for _ in range(1101):
        clock.advance(3600)
        lease = queue.exchange("w1").leases[0]  # a task would bring a copy of all its errors, each time
        queue.retry_task(lease.task_id, {"error": "boom"})

    clock.advance(3599)
    assert queue.get_next_task("w1") is None
    clock.advance(1)
    assert leased_id(queue) == "a"


@pytest.mark.contract("R4")
def test_a_jump_of_the_wall_clock_neither_hastens_nor_delays_a_retry(queue: TaskQueue, clock: Clock) -> None:
    queue.add_task(task("PO-1", "a"))
    give_back(queue)

    clock.set_wall(clock.wall() + 86_400)
    assert queue.get_next_task("w1") is None
    clock.set_wall(clock.wall() - 10 * 86_400)
    clock.advance(5)
    assert leased_id(queue) == "a"


@pytest.mark.contract("R4")
def test_jitter_only_lengthens(make_queue: MakeQueue, clock: Clock) -> None:
    queue = make_queue(max_retries=50, retry_delay=8.0, max_retry_delay=8.0, retry_jitter=0.5)
    queue.add_task(task("PO-1", "a"))

    for _ in range(50):
        give_back(queue)
        clock.advance(8.0)
        assert queue.get_next_task("w1") is None  # the cap holds before jitter
        clock.advance(4.0)


@pytest.mark.contract("R4")
def test_a_waiting_retry_blocks_nobody(queue: TaskQueue, clock: Clock) -> None:
    queue.add_task(task("PO-1", "urgent"), 1)
    queue.add_task(task("PO-2", "patient"), 10)
    give_back(queue)

    assert finish(queue) == "patient"
    queue.add_task(task("PO-3", "late"), 10)
    assert finish(queue) == "late"
    clock.advance(5)
    assert finish(queue) == "urgent"


@pytest.mark.contract("R4")
@pytest.mark.parametrize("enable_priority", [True, False], ids=["priority", "fifo"])
def test_a_due_retry_has_its_original_rank_in_its_own_priority(
    make_queue: MakeQueue, clock: Clock, enable_priority: bool
) -> None:
    queue = make_queue(enable_priority=enable_priority)
    for task_id in "abc":
        queue.add_task(task(f"PO-{task_id}", task_id))
    lease(queue, "w1")
    lease(queue, "w2")
    queue.retry_task("b", {"error": "boom"})
    queue.retry_task("a", {"error": "boom"})
    queue.add_task(task("PO-d", "d"))
    clock.advance(5)

    assert [leased_id(queue, f"w{number}") for number in range(4)] == ["a", "b", "c", "d"]


@pytest.mark.contract("R4", "R5")
def test_a_due_retry_does_not_overtake_a_more_urgent_task(queue: TaskQueue, clock: Clock) -> None:
    queue.add_task(task("PO-1", "a"), 5)
    give_back(queue)
    queue.add_task(task("PO-2", "b"), 4)
    queue.add_task(task("PO-3", "c"), 6)
    clock.advance(5)

    assert [leased_id(queue, f"w{number}") for number in range(3)] == ["b", "a", "c"]


@pytest.mark.contract("R4")
def test_retries_become_due_by_their_own_delays(make_queue: MakeQueue, clock: Clock) -> None:
    queue = make_queue()
    queue.add_task(task("PO-1", "long", retry_delay=100.0))
    queue.add_task(task("PO-2", "short", retry_delay=10.0))
    give_back(queue)
    give_back(queue)

    clock.advance(10)
    assert finish(queue) == "short"
    assert queue.get_next_task("w1") is None
    clock.advance(90)
    assert finish(queue) == "long"


@pytest.mark.contract("R4")
def test_a_due_retry_is_still_a_waiting_retry_until_it_is_leased(queue: TaskQueue, clock: Clock) -> None:
    queue.add_task(task("PO-1", "a"))
    give_back(queue)
    clock.advance(FAR)

    assert counts(queue, "retry_tasks", "pending_tasks", "queue_length") == (1, 0, 1)
    assert [each.task_id for each in queue.get_tasks_by_status(TaskStatus.RETRY_PENDING)] == ["a"]
    assert lease(queue).attempt == 2
    assert counts(queue, "retry_tasks", "processing_tasks", "queue_length") == (0, 1, 0)
