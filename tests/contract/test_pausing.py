"""What a pause stops, and what goes on."""

from __future__ import annotations

import pytest

from poqueue import TaskQueue, TaskStatus
from tests.contract.scene import Clock, counts, find, finish, lease, leased_id, nothing_changes, success, task

pytestmark = pytest.mark.contract("R15")


def test_a_fresh_queue_is_active(queue: TaskQueue) -> None:
    assert queue.get_queue_status()["status"] == "ACTIVE"


def test_a_paused_queue_gives_nothing_and_keeps_everything(queue: TaskQueue) -> None:
    queue.add_task(task("PO-1", "a"))
    queue.add_task(task("PO-2", "b"), 1)

    queue.pause_queue()

    assert queue.get_queue_status()["status"] == "PAUSED"
    with nothing_changes(queue):
        assert queue.get_next_task("w1") is None
    assert counts(queue, "pending_tasks") == (2,)


def test_a_paused_queue_gives_no_due_retry(queue: TaskQueue, clock: Clock) -> None:
    queue.add_task(task("PO-1", "a"))
    lease(queue)
    queue.retry_task("a", {"error": "boom"})
    queue.pause_queue()
    clock.advance(5)

    assert queue.get_next_task("w1") is None
    queue.resume_queue()
    assert leased_id(queue) == "a"


def test_adding_retrying_and_completing_go_on_while_paused(queue: TaskQueue) -> None:
    for task_id in ("a", "b"):
        queue.add_task(task(f"PO-{task_id}", task_id))
        lease(queue, f"w-{task_id}")

    queue.pause_queue()
    queue.complete_task("a", "w-a", success())
    assert queue.retry_task("b", {"error": "boom"}) is True
    queue.add_task(task("PO-c", "c"))

    assert find(queue, "a").status is TaskStatus.COMPLETED
    assert counts(queue, "completed_tasks", "retry_tasks", "pending_tasks", "processing_tasks") == (1, 1, 1, 0)


def test_a_resumed_queue_goes_on_in_its_order(queue: TaskQueue) -> None:
    queue.add_task(task("PO-1", "a"))
    queue.pause_queue()
    queue.add_task(task("PO-2", "b"), 1)

    queue.resume_queue()

    assert queue.get_queue_status()["status"] == "ACTIVE"
    assert [finish(queue), finish(queue)] == ["b", "a"]


def test_pausing_and_resuming_twice_is_as_good_as_once(queue: TaskQueue) -> None:
    queue.add_task(task("PO-1", "a"))
    queue.resume_queue()
    queue.pause_queue()
    with nothing_changes(queue):
        queue.pause_queue()

    queue.resume_queue()
    with nothing_changes(queue):
        queue.resume_queue()

    assert leased_id(queue) == "a"


def test_delays_run_on_while_paused(queue: TaskQueue, clock: Clock) -> None:
    queue.add_task(task("PO-1", "a"))
    lease(queue)
    queue.retry_task("a", {"error": "boom"})
    queue.pause_queue()
    clock.advance(4)
    queue.resume_queue()

    assert queue.get_next_task("w1") is None
    clock.advance(1)
    assert leased_id(queue) == "a"
