"""Tasks by status, by worker, by PO number and by id."""

from __future__ import annotations

from typing import Any

import pytest

from poqueue import TaskQueue, TaskStatus
from poqueue.errors import TaskNotFoundError
from tests.contract.scene import (
    Clock,
    NoText,
    fail,
    find,
    finish,
    give_back,
    ids,
    lease,
    nothing_changes,
    one_of_each,
    success,
    task,
)


@pytest.mark.contract("Part 1")
def test_each_task_is_listed_under_its_status_only(queue: TaskQueue) -> None:
    one_of_each(queue)

    for status in TaskStatus:
        listed = queue.get_tasks_by_status(status)
        assert ids(listed) == {status.name}
        assert {each.status for each in listed} == {status}


@pytest.mark.contract("Part 1")
@pytest.mark.parametrize("status", TaskStatus)
def test_a_fresh_queue_lists_nothing(queue: TaskQueue, status: TaskStatus) -> None:
    assert queue.get_tasks_by_status(status) == []


@pytest.mark.contract("R18")
def test_finding_by_nothing_is_an_error(queue: TaskQueue) -> None:
    with pytest.raises(ValueError, match="po_number"):
        queue.find_task()
    with pytest.raises(ValueError, match="task_id"):
        queue.find_task(po_number=None, task_id=None)


@pytest.mark.contract("R18")
def test_a_task_is_found_by_either_and_by_both_if_they_agree(queue: TaskQueue) -> None:
    queue.add_task(task("PO-1", "a"))
    queue.add_task(task("PO-2", "b"))

    assert queue.find_task("PO-1") == queue.find_task(task_id="a") == queue.find_task("PO-1", "a")
    assert find(queue, "b").po_data["po_number"] == "PO-2"
    assert queue.find_task("PO-1", "b") is None
    assert queue.find_task("PO-3", "a") is None
    assert queue.find_task("PO-1", "c") is None


@pytest.mark.contract("R18")
def test_both_agree_for_each_task_of_a_repeated_number(queue: TaskQueue) -> None:
    queue.add_task(task("PO-1", "a"))
    queue.add_task(task("PO-1", "b"))

    assert queue.find_task("PO-1", "a") == find(queue, "a")
    assert queue.find_task("PO-1", "b") == find(queue, "b")


@pytest.mark.contract("R18", "R19")
@pytest.mark.parametrize("nothing", [[], {}, set()])
def test_what_can_be_no_id_is_no_task_s(queue: TaskQueue, nothing: Any) -> None:
    one_of_each(queue)

    with nothing_changes(queue):
        assert queue.find_task(task_id=nothing) is None
        assert queue.find_task("PO-1", nothing) is None
        assert queue.get_tasks_by_worker(nothing) == []
        for call in (
            lambda: queue.complete_task(nothing, "w1", success()),
            lambda: queue.retry_task(nothing, {"error": "boom"}),
            lambda: queue.cancel_task(nothing),
        ):
            with pytest.raises(TaskNotFoundError):
                call()


@pytest.mark.contract("R18")
@pytest.mark.parametrize("number", [10**5000, NoText("PO-1")], ids=["huge", "no text"])
def test_a_number_without_a_text_is_no_task_s(number: Any) -> None:
    queue = TaskQueue()
    queue.add_task(task("PO-1", "a"))

    assert queue.find_task(po_number=number) is None
    assert queue.find_task(po_number=number, task_id="a") is None


@pytest.mark.contract("R18")
def test_what_is_not_there_is_none(queue: TaskQueue) -> None:
    assert queue.find_task(po_number="PO-1") is None
    assert queue.find_task(task_id="a") is None


@pytest.mark.contract("R18", "R8")
def test_a_po_number_is_found_as_stripped_text(queue: TaskQueue) -> None:
    queue.add_task(task(4500017, "number"))
    queue.add_task(task(" PO-1 ", "text"))

    assert queue.find_task("4500017") == find(queue, "number")
    assert queue.find_task("PO-1") == queue.find_task(" PO-1") == find(queue, "text")


@pytest.mark.contract("R18")
@pytest.mark.parametrize("end", [finish, fail])
def test_of_a_repeated_number_the_live_task_comes_before_a_finished_one(queue: TaskQueue, end: object) -> None:
    queue.add_task(task("PO-1", "older"), 9)
    queue.add_task(task("PO-1", "newer"), 1)
    assert end(queue) == "newer"  # type: ignore[operator]

    assert queue.find_task("PO-1") == find(queue, "older")
    lease(queue)
    assert queue.find_task("PO-1") == find(queue, "older")
    queue.retry_task("older", {"error": "boom"})
    assert queue.find_task("PO-1") == find(queue, "older")


@pytest.mark.contract("R18")
def test_of_finished_tasks_of_a_number_the_newest_is_found(queue: TaskQueue) -> None:
    for task_id in ("first", "second", "third"):
        queue.add_task(task("PO-1", task_id))
        finish(queue)

    assert queue.find_task("PO-1") == find(queue, "third")


@pytest.mark.contract("R19")
def test_a_worker_has_its_current_completed_and_failed_tasks(queue: TaskQueue) -> None:
    for task_id in ("done", "failed", "running", "other"):
        queue.add_task(task(f"PO-{task_id}", task_id))
    finish(queue, "w1")
    fail(queue, "w1")
    lease(queue, "w1")
    lease(queue, "w2")

    assert ids(queue.get_tasks_by_worker("w1")) == {"done", "failed", "running"}
    assert ids(queue.get_tasks_by_worker("w2")) == {"other"}
    assert queue.get_tasks_by_worker("w3") == []


@pytest.mark.contract("R19")
def test_a_worker_has_the_tasks_that_failed_there_once(queue: TaskQueue, clock: Clock) -> None:
    queue.add_task(task("PO-1", "a"))
    give_back(queue, "w1")
    assert ids(queue.get_tasks_by_worker("w1")) == {"a"}

    clock.advance(5)
    lease(queue, "w2")
    assert ids(queue.get_tasks_by_worker("w1")) == ids(queue.get_tasks_by_worker("w2")) == {"a"}
    queue.complete_task("a", "w2", success())

    assert queue.get_tasks_by_worker("w1") == queue.get_tasks_by_worker("w2") == [find(queue, "a")]


@pytest.mark.contract("R19")
def test_a_task_that_failed_twice_at_one_worker_is_listed_once(queue: TaskQueue, clock: Clock) -> None:
    queue.add_task(task("PO-1", "a"))
    give_back(queue, "w1")
    clock.advance(5)
    give_back(queue, "w1")

    assert [each.task_id for each in queue.get_tasks_by_worker("w1")] == ["a"]
