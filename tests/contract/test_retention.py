"""Finished tasks are forgotten after their time; counters and live tasks never."""

from __future__ import annotations

import pytest

from poqueue import TaskQueue
from tests.contract.conftest import MakeQueue
from tests.contract.scene import COUNTS, Clock, counts, fail, find, finish, give_back, lease, one_of_each, picture, task

pytestmark = pytest.mark.contract("R24")

RETENTION_S = 100.0


def is_known(queue: TaskQueue, task_id: str) -> bool:
    return queue.find_task(task_id=task_id) is not None


def keep_completing(queue: TaskQueue, rounds: int = 1000) -> None:
    for _ in range(rounds):
        queue.add_task(task("PO-later"), 1)
        finish(queue)


def test_finished_tasks_are_forgotten_by_themselves_as_others_complete(make_queue: MakeQueue, clock: Clock) -> None:
    queue = make_queue(retention_s=RETENTION_S)
    queue.add_task(task("PO-1", "completed"))
    queue.add_task(task("PO-2", "failed"))
    finish(queue)
    fail(queue)
    clock.advance(RETENTION_S + 1)

    keep_completing(queue)

    assert (is_known(queue, "completed"), is_known(queue, "failed")) == (False, False)
    assert queue.find_task("PO-1") is None
    assert counts(queue, "total_tasks", "completed_tasks", "failed_tasks") == (1002, 1001, 1)


def test_within_the_period_everything_is_kept(make_queue: MakeQueue, clock: Clock) -> None:
    queue = make_queue(retention_s=RETENTION_S)
    queue.add_task(task("PO-1", "completed"))
    finish(queue)
    clock.advance(RETENTION_S - 1)

    keep_completing(queue)

    assert is_known(queue, "completed")


def test_live_tasks_are_never_forgotten(make_queue: MakeQueue, clock: Clock) -> None:
    queue = make_queue(retention_s=RETENTION_S, retry_delay=3000.0)
    for task_id in ("waiting", "running", "pending"):
        queue.add_task(task(f"PO-{task_id}", task_id))
    give_back(queue, "w2")
    lease(queue, "w3")
    clock.advance(RETENTION_S * 10)

    keep_completing(queue)

    assert all(is_known(queue, task_id) for task_id in ("waiting", "running", "pending"))
    assert counts(queue, "retry_tasks", "processing_tasks", "pending_tasks") == (1, 1, 1)


def test_cleaning_up_drops_what_is_old_and_no_counter(clock: Clock) -> None:
    queue = TaskQueue(retention_s=RETENTION_S, clock=clock, wall_clock=clock.wall)
    one_of_each(queue)
    before = counts(queue, *COUNTS)
    clock.advance(RETENTION_S + 1)

    queue._cleanup_resources()

    assert counts(queue, *COUNTS) == before == (5, 1, 1, 1, 1, 1, 0, 2)
    assert [is_known(queue, name) for name in ("COMPLETED", "FAILED")] == [False, False]
    assert [is_known(queue, name) for name in ("RETRY_PENDING", "PROCESSING", "PENDING")] == [True, True, True]
    assert {each.task_id for each in queue.get_tasks_by_worker("w1")} == {"RETRY_PENDING", "PROCESSING"}


def test_cleaning_up_before_the_time_changes_nothing(clock: Clock) -> None:
    queue = TaskQueue(retention_s=RETENTION_S, clock=clock, wall_clock=clock.wall)
    one_of_each(queue)
    clock.advance(RETENTION_S - 1)
    before = picture(queue)

    queue._cleanup_resources()

    assert picture(queue) == before


def test_a_jump_of_the_wall_clock_forgets_nothing(clock: Clock) -> None:
    queue = TaskQueue(retention_s=RETENTION_S, clock=clock, wall_clock=clock.wall)
    queue.add_task(task("PO-1", "a"))
    finish(queue)
    clock.set_wall(clock.wall() + 10 * RETENTION_S)

    queue._cleanup_resources()

    assert is_known(queue, "a")


def test_a_failed_task_that_is_tried_again_is_live_again(clock: Clock) -> None:
    queue = TaskQueue(retention_s=RETENTION_S, clock=clock, wall_clock=clock.wall)
    queue.add_task(task("PO-1", "a"))
    fail(queue)
    clock.advance(RETENTION_S - 1)
    queue.retry_task("a", {"error": "again, please"})
    clock.advance(2)

    queue._cleanup_resources()

    assert find(queue, "a").retry_count == 1
    assert finish_later(queue, clock) == "a"
    queue._cleanup_resources()
    assert is_known(queue, "a")


def finish_later(queue: TaskQueue, clock: Clock) -> str:
    clock.advance(10)
    return finish(queue)
