"""What complete_task records, and whom it believes."""

from __future__ import annotations

from contextlib import suppress

import pytest

from poqueue import TaskQueue, TaskResult, TaskStatus
from tests.contract.conftest import MakeQueue
from tests.contract.scene import (
    Clock,
    Recorder,
    counts,
    fail,
    find,
    finish,
    lease,
    leased_id,
    nothing_changes,
    one_of_each,
    success,
    task,
)
from workers.task_queue import TaskNotFoundError, WorkerMismatchError


@pytest.mark.contract("Part 1")
def test_a_success_completes_the_task_with_its_result_and_its_times(queue: TaskQueue, clock: Clock) -> None:
    queue.add_task(task("PO-1", "a"))
    lease(queue)
    clock.advance(4)

    queue.complete_task("a", "w1", TaskResult(True, ["a.pdf", {"path": "b.pdf"}], 4.0, None))

    done = find(queue, "a")
    assert (done.status, done.worker_id, done.attempt) == (TaskStatus.COMPLETED, "w1", 1)
    assert (done.completed_at, done.assigned_at) == (clock.wall(), clock.wall() - 4)
    assert done.result == TaskResult(True, ["a.pdf", {"path": "b.pdf"}], 4.0, None)
    assert counts(queue, "completed_tasks", "processing_tasks", "failed_tasks") == (1, 0, 0)


@pytest.mark.contract("R2")
def test_a_reported_failure_is_final_however_many_retries_are_left(make_queue: MakeQueue, clock: Clock) -> None:
    queue = make_queue(max_retries=3)
    queue.add_task(task("PO-1", "a"))
    lease(queue)

    queue.complete_task("a", "w1", TaskResult(False, [], 1.0, "no such PO"))

    failed = find(queue, "a")
    assert (failed.status, failed.worker_id, failed.retry_count) == (TaskStatus.FAILED, "w1", 0)
    assert (failed.completed_at, failed.result) == (clock.wall(), TaskResult(False, [], 1.0, "no such PO"))
    assert counts(queue, "failed_tasks", "completed_tasks", "retry_tasks", "queue_length") == (1, 0, 0, 0)
    clock.advance(100_000)
    assert queue.get_next_task("w1") is None


@pytest.mark.contract("R2", "R21")
def test_a_reported_failure_fires_on_task_failed_with_its_error(queue: TaskQueue) -> None:
    recorder = Recorder(queue)
    queue.add_task(task("PO-1", "a"))

    fail(queue, error="no such PO")

    assert recorder.until("empty") == [("failed", "a", "no such PO"), ("empty",)]


@pytest.mark.contract("R2")
def test_a_failure_without_a_message_is_still_a_failure(queue: TaskQueue) -> None:
    queue.add_task(task("PO-1", "a"))
    lease(queue)

    queue.complete_task("a", "w1", TaskResult(success=False))

    assert find(queue, "a").status is TaskStatus.FAILED


@pytest.mark.contract("R17")
def test_a_report_on_an_unknown_task_changes_nothing(queue: TaskQueue) -> None:
    one_of_each(queue)

    with nothing_changes(queue), pytest.raises(TaskNotFoundError):
        queue.complete_task("nobody", "w1", success())


@pytest.mark.contract("R17")
def test_a_report_by_another_worker_changes_nothing(queue: TaskQueue) -> None:
    queue.add_task(task("PO-1", "a"))
    lease(queue, "w1")

    with nothing_changes(queue), pytest.raises(WorkerMismatchError):
        queue.complete_task("a", "w2", success())
    queue.complete_task("a", "w1", success())
    assert find(queue, "a").worker_id == "w1"


@pytest.mark.contract("R17")
@pytest.mark.parametrize("status", ["PENDING", "RETRY_PENDING", "COMPLETED", "FAILED"])
@pytest.mark.parametrize("worker_id", ["w1", "w2"])
@pytest.mark.parametrize("is_success", [True, False])
def test_a_report_on_a_task_that_does_not_run_is_never_counted(
    queue: TaskQueue, status: str, worker_id: str, is_success: bool
) -> None:
    task_id = one_of_each(queue)[status]

    with nothing_changes(queue), suppress(WorkerMismatchError):
        queue.complete_task(task_id, worker_id, TaskResult(success=is_success, error_message="late"))


@pytest.mark.contract("R17", "R21")
def test_a_late_or_double_report_fires_no_handler(queue: TaskQueue) -> None:
    recorder = Recorder(queue)
    queue.add_task(task("PO-1", "a"))
    finish(queue)
    for worker_id, result in [("w1", success()), ("w2", success()), ("w1", TaskResult(success=False))]:
        with suppress(WorkerMismatchError):
            queue.complete_task("a", worker_id, result)
    queue.add_task(task("PO-2", "b"))
    finish(queue)

    recorder.until("complete", "b")
    assert recorder.events[:3] == [("complete", "a"), ("empty",), ("complete", "b")]


@pytest.mark.contract("R17")
def test_a_report_after_the_lease_was_taken_back_changes_nothing(queue: TaskQueue, clock: Clock) -> None:
    queue.add_task(task("PO-1", "a"))
    lease(queue, "w1")
    queue.retry_task("a", {"error": "killed"})

    with nothing_changes(queue), suppress(WorkerMismatchError):
        queue.complete_task("a", "w1", success())

    clock.advance(5)
    assert leased_id(queue, "w2") == "a"
    with nothing_changes(queue), pytest.raises(WorkerMismatchError):
        queue.complete_task("a", "w1", success())


@pytest.mark.contract("Part 1")
@pytest.mark.parametrize("result", [True, "done", {"success": True}])
def test_a_report_of_what_is_no_result_is_refused_and_the_task_runs_on(queue: TaskQueue, result: object) -> None:
    queue.add_task(task("PO-1", "a"))
    lease(queue)

    with nothing_changes(queue), pytest.raises(ValueError, match="result"):
        queue.complete_task("a", "w1", result)  # type: ignore[arg-type]
    queue.complete_task("a", "w1", success())
    assert find(queue, "a").status is TaskStatus.COMPLETED
