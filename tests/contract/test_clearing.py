"""What clear_queue removes, and what it leaves."""

from __future__ import annotations

import pytest

from poqueue import TaskQueue, TaskStatus
from tests.contract.conftest import MakeQueue
from tests.contract.scene import (
    Clock,
    counts,
    find,
    finish,
    lease,
    leased_id,
    nothing_changes,
    one_of_each,
    picture,
    success,
    task,
)
from workers.task_queue import TaskNotFoundError

pytestmark = pytest.mark.contract("R16")

ALL_COUNTS = ("total_tasks", "pending_tasks", "processing_tasks", "completed_tasks", "failed_tasks", "retry_tasks")


def test_clearing_removes_what_waits_and_says_how_many(queue: TaskQueue) -> None:
    one_of_each(queue)

    assert queue.clear_queue() == 2

    assert counts(queue, *ALL_COUNTS) == (5, 0, 1, 1, 1, 0)
    assert counts(queue, "cleared_tasks", "queue_length") == (2, 0)


def test_clearing_with_the_running_ones_removes_them_too(queue: TaskQueue) -> None:
    one_of_each(queue)

    assert queue.clear_queue(preserve_processing=False) == 3

    assert counts(queue, *ALL_COUNTS) == (5, 0, 0, 1, 1, 0)
    assert counts(queue, "cleared_tasks", "queue_length") == (3, 0)


@pytest.mark.parametrize(
    ("preserve_processing", "gone"),
    [(True, {"PENDING", "RETRY_PENDING"}), (False, {"PENDING", "RETRY_PENDING", "PROCESSING"})],
)
def test_cleared_tasks_are_nowhere_to_be_found(queue: TaskQueue, preserve_processing: bool, gone: set[str]) -> None:
    one_of_each(queue)

    queue.clear_queue(preserve_processing)

    for status in TaskStatus:
        left = {each.task_id for each in queue.get_tasks_by_status(status)}
        assert left == {status.name} - gone
    for name in gone:
        assert queue.find_task(task_id=name) is None
        assert queue.find_task(po_number=f"PO-{name}") is None
    assert gone.isdisjoint(each.task_id for each in queue.get_tasks_by_worker("w1"))


def test_cleared_tasks_never_run(queue: TaskQueue, clock: Clock) -> None:
    one_of_each(queue)
    queue.clear_queue()
    clock.advance(100_000)

    assert queue.get_next_task("w2") is None
    queue.complete_task("PROCESSING", "w1", success())
    assert counts(queue, "completed_tasks", "total_tasks") == (2, 5)


def test_a_report_on_a_dropped_running_task_finds_no_task_and_counts_nothing(queue: TaskQueue) -> None:
    queue.add_task(task("PO-1", "a"))
    lease(queue)
    queue.clear_queue(preserve_processing=False)

    with nothing_changes(queue), pytest.raises(TaskNotFoundError):
        queue.complete_task("a", "w1", success())
    with nothing_changes(queue), pytest.raises(TaskNotFoundError):
        queue.retry_task("a", {"error": "boom"})
    assert counts(queue, "total_tasks", "cleared_tasks", "completed_tasks") == (1, 1, 0)


def test_clearing_an_empty_queue_removes_nothing(queue: TaskQueue) -> None:
    with nothing_changes(queue):
        assert queue.clear_queue() == 0
        assert queue.clear_queue(preserve_processing=False) == 0


def test_clearing_twice_counts_once(queue: TaskQueue) -> None:
    one_of_each(queue)
    queue.clear_queue()
    before = picture(queue)

    assert queue.clear_queue() == 0

    assert picture(queue) == before


def test_a_cleared_queue_takes_and_serves_new_tasks_of_the_same_po(queue: TaskQueue) -> None:
    queue.add_task(task("PO-1", "a"), 1)
    queue.clear_queue()

    queue.add_task(task("PO-1", "b"))

    assert leased_id(queue) == "b"
    queue.complete_task("b", "w1", success())
    assert counts(queue, "total_tasks", "completed_tasks", "cleared_tasks") == (2, 1, 1)


def test_clearing_makes_room(make_queue: MakeQueue) -> None:
    queue = make_queue(queue_size_limit=1)
    queue.add_task(task("PO-1", "a"))

    queue.clear_queue()

    queue.add_task(task("PO-2", "b"))
    assert counts(queue, "queue_length", "total_tasks") == (1, 2)


@pytest.mark.contract("R15")
def test_a_paused_queue_can_be_cleared_and_stays_paused(queue: TaskQueue) -> None:
    queue.add_task(task("PO-1", "a"))
    queue.pause_queue()

    assert queue.clear_queue() == 1

    assert queue.get_queue_status()["status"] == "PAUSED"
    queue.resume_queue()
    assert queue.get_next_task("w1") is None


def test_a_running_task_that_was_kept_may_still_be_retried(queue: TaskQueue, clock: Clock) -> None:
    queue.add_task(task("PO-1", "a"))
    lease(queue)
    queue.clear_queue()

    assert queue.retry_task("a", {"error": "boom"}) is True

    assert find(queue, "a").status is TaskStatus.RETRY_PENDING
    clock.advance(5)
    assert finish(queue) == "a"
