"""What get_next_task gives to whom: order, one worker, one running task of a PO."""

from __future__ import annotations

import threading

import pytest

from poqueue import TaskQueue, TaskStatus
from tests.contract.conftest import MakeQueue
from tests.contract.scene import (
    NOON_UTC,
    Clock,
    counts,
    failure,
    find,
    finish,
    lease,
    leased_id,
    nothing_changes,
    success,
    task,
)
from workers.task_queue import WorkerMismatchError


@pytest.mark.contract("Part 1")
def test_an_empty_queue_gives_none(queue: TaskQueue) -> None:
    with nothing_changes(queue):
        assert queue.get_next_task("w1") is None


@pytest.mark.contract("Part 1")
def test_a_leased_task_is_processing_assigned_and_stamped(queue: TaskQueue, clock: Clock) -> None:
    queue.add_task(task("PO-1", "a"))
    clock.advance(7)

    leased = lease(queue, "w1")

    assert (leased.task_id, leased.status, leased.worker_id, leased.attempt) == ("a", TaskStatus.PROCESSING, "w1", 1)
    assert (leased.created_at, leased.assigned_at, leased.completed_at) == (NOON_UTC, NOON_UTC + 7, None)
    assert find(queue, "a") == leased
    assert counts(queue, "pending_tasks", "processing_tasks", "queue_length") == (0, 1, 0)


@pytest.mark.contract("Part 1")
def test_a_leased_task_is_given_to_nobody_else(queue: TaskQueue) -> None:
    queue.add_task(task())
    lease(queue, "w1")

    with nothing_changes(queue):
        assert queue.get_next_task("w2") is None
        assert queue.get_next_task("w1") is None


@pytest.mark.contract("R5")
def test_the_most_urgent_comes_first_and_within_a_priority_the_first_added(queue: TaskQueue) -> None:
    for number, priority in enumerate([5, 10, 1, 5, 1, 10, 2, 5]):
        queue.add_task(task(f"PO-{number}", f"{priority}/{number}"), priority)

    served = [leased_id(queue, f"w{number}") for number in range(8)]

    assert served == ["1/2", "1/4", "2/6", "5/0", "5/3", "5/7", "10/1", "10/5"]


@pytest.mark.contract("R5")
def test_a_late_urgent_task_overtakes(queue: TaskQueue) -> None:
    queue.add_task(task("PO-1", "slow"), 9)
    queue.add_task(task("PO-2", "slower"), 9)
    finish(queue)

    queue.add_task(task("PO-3", "urgent"), 1)

    assert [leased_id(queue, "w1"), leased_id(queue, "w2")] == ["urgent", "slower"]


@pytest.mark.contract("R5")
def test_a_priority_left_out_is_5(queue: TaskQueue) -> None:
    queue.add_task(task("PO-6", "6"), 6)
    queue.add_task(task("PO-5", "5"))
    queue.add_task(task("PO-4", "4"), 4)

    assert [leased_id(queue, f"w{number}") for number in range(3)] == ["4", "5", "6"]


@pytest.mark.contract("R5")
def test_without_priorities_the_first_added_comes_first(make_queue: MakeQueue) -> None:
    queue = make_queue(enable_priority=False)
    for number, priority in enumerate([5, 10, 1, 3, 7]):
        queue.add_task(task(f"PO-{number}", str(number)), priority)

    assert [leased_id(queue, f"w{number}") for number in range(5)] == ["0", "1", "2", "3", "4"]


@pytest.mark.contract("R5")
@pytest.mark.parametrize("step", [0.0, -1.0], ids=["standing", "backwards"])
def test_first_in_first_out_follows_no_clock(queue: TaskQueue, clock: Clock, step: float) -> None:
    for number in range(10):
        queue.add_task(task(f"PO-{number}", str(number)))
        clock.set_wall(clock.wall() + step)

    assert [leased_id(queue, f"w{number}") for number in range(10)] == [str(number) for number in range(10)]


@pytest.mark.contract("R7")
def test_tasks_of_one_po_stay_separate_and_never_run_at_once(queue: TaskQueue) -> None:
    queue.add_task(task("PO-1", "a"))
    queue.add_task(task("PO-1", "b"))

    assert counts(queue, "total_tasks", "pending_tasks") == (2, 2)
    assert leased_id(queue, "w1") == "a"
    with nothing_changes(queue):
        assert queue.get_next_task("w2") is None
    queue.complete_task("a", "w1", success())
    assert leased_id(queue, "w2") == "b"


@pytest.mark.contract("R7")
def test_a_blocked_task_keeps_its_place_while_the_next_is_served(queue: TaskQueue) -> None:
    for po_number, task_id in [("PO-1", "a"), ("PO-1", "b"), ("PO-2", "c"), ("PO-1", "d"), ("PO-3", "e")]:
        queue.add_task(task(po_number, task_id))

    assert leased_id(queue, "w1") == "a"
    assert leased_id(queue, "w2") == "c"
    queue.complete_task("a", "w1", success())
    assert leased_id(queue, "w1") == "b"
    assert leased_id(queue, "w3") == "e"
    queue.complete_task("b", "w1", success())
    assert leased_id(queue, "w1") == "d"


@pytest.mark.contract("R7")
def test_a_blocked_urgent_task_does_not_block_a_less_urgent_one(queue: TaskQueue) -> None:
    queue.add_task(task("PO-1", "a"), 1)
    queue.add_task(task("PO-1", "b"), 1)
    queue.add_task(task("PO-2", "c"), 10)

    assert [leased_id(queue, "w1"), leased_id(queue, "w2"), leased_id(queue, "w3")] == ["a", "c", None]
    queue.complete_task("a", "w1", success())
    assert leased_id(queue, "w1") == "b"


@pytest.mark.contract("R7")
@pytest.mark.parametrize("other_way", [" PO-7 ", "PO-7\t"])
def test_one_po_is_recognised_with_blanks_around_it(queue: TaskQueue, other_way: str) -> None:
    queue.add_task(task("PO-7", "a"))
    queue.add_task(task(other_way, "b"))

    assert [leased_id(queue, "w1"), leased_id(queue, "w2")] == ["a", None]


@pytest.mark.contract("R7", "R8")
def test_one_po_is_recognised_as_a_number_and_as_text(queue: TaskQueue) -> None:
    queue.add_task(task(4500017, "a"))
    queue.add_task(task(" 4500017", "b"))

    assert [leased_id(queue, "w1"), leased_id(queue, "w2")] == ["a", None]


@pytest.mark.contract("R7")
def test_a_po_is_free_again_when_its_task_failed(queue: TaskQueue) -> None:
    queue.add_task(task("PO-1", "a"))
    queue.add_task(task("PO-1", "b"))
    lease(queue)

    queue.complete_task("a", "w1", failure())

    assert leased_id(queue) == "b"


@pytest.mark.contract("R7", "R4")
def test_a_po_is_free_while_its_task_waits_for_a_retry(queue: TaskQueue) -> None:
    queue.add_task(task("PO-1", "a"))
    queue.add_task(task("PO-1", "b"))
    lease(queue)

    queue.retry_task("a", {"error": "boom"})

    assert leased_id(queue) == "b"


@pytest.mark.contract("R7", "R4")
def test_a_due_retry_waits_for_the_other_task_of_its_po(queue: TaskQueue, clock: Clock) -> None:
    queue.add_task(task("PO-1", "a"))
    queue.add_task(task("PO-1", "b"))
    lease(queue, "w1")
    queue.retry_task("a", {"error": "boom"})
    assert leased_id(queue, "w2") == "b"
    clock.advance(5)
    queue.add_task(task("PO-2", "c"))

    assert [leased_id(queue, "w1"), leased_id(queue, "w3")] == ["c", None]
    queue.complete_task("b", "w2", success())
    assert leased_id(queue, "w2") == "a"


@pytest.mark.contract("R25")
def test_the_worker_is_who_the_call_says_whatever_thread_it_comes_from(queue: TaskQueue) -> None:
    queue.add_task(task("PO-1", "a"))
    queue.add_task(task("PO-2", "b"))
    lease(queue, "w1")
    lease(queue, "w2")
    errors: list[BaseException] = []

    def report_both() -> None:
        try:
            queue.complete_task("b", "w2", success())
            queue.complete_task("a", "w1", success())
        except BaseException as error:
            errors.append(error)

    other_thread = threading.Thread(target=report_both)
    other_thread.start()
    other_thread.join(10)

    assert errors == []
    assert (find(queue, "a").worker_id, find(queue, "b").worker_id) == ("w1", "w2")
    assert counts(queue, "completed_tasks", "processing_tasks") == (2, 0)


@pytest.mark.contract("R27")
def test_the_queue_takes_no_overdue_task_away_from_its_worker(make_queue: MakeQueue, clock: Clock) -> None:
    queue = make_queue(task_timeout=10.0)
    queue.add_task(task("PO-1", "a"))
    lease(queue, "w1")
    clock.advance(10_000)

    with nothing_changes(queue):
        assert queue.get_next_task("w2") is None
    queue.complete_task("a", "w1", success())
    assert find(queue, "a").status is TaskStatus.COMPLETED


@pytest.mark.contract("R27")
def test_a_completion_that_was_recorded_beats_the_retry_of_the_timeout(queue: TaskQueue) -> None:
    queue.add_task(task("PO-1", "a"))
    lease(queue, "w1")
    queue.complete_task("a", "w1", success())

    with nothing_changes(queue):
        assert queue.retry_task("a", {"error_type": "TimeoutError", "error": "killed after 300 s"}) is False
    assert queue.get_next_task("w2") is None


@pytest.mark.contract("R27", "R3")
def test_after_the_retry_of_a_timeout_the_killed_worker_reports_in_vain(queue: TaskQueue, clock: Clock) -> None:
    queue.add_task(task("PO-1", "a"))
    lease(queue, "w1")
    queue.retry_task("a", {"error_type": "TimeoutError"})
    clock.advance(5)
    assert leased_id(queue, "w2") == "a"

    with nothing_changes(queue), pytest.raises(WorkerMismatchError):
        queue.complete_task("a", "w1", success())
    queue.complete_task("a", "w2", success())
    assert counts(queue, "completed_tasks", "failed_tasks", "total_tasks") == (1, 0, 1)
