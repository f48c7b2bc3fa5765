"""Names, signatures and module paths, as Part 1 of the contract gives them."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

import poqueue
import poqueue.errors
import workers.task_queue
from poqueue import ProcessingTask, TaskQueue, TaskResult, TaskStatus
from tests.contract.conftest import MakeQueue
from tests.contract.scene import success, task

pytestmark = pytest.mark.contract("Part 1")

REQUIRED = inspect.Parameter.empty
SIGNATURES: dict[str, dict[str, Any]] = {
    "add_task": {"task": REQUIRED, "priority": 5},
    "get_next_task": {"worker_id": REQUIRED},
    "complete_task": {"task_id": REQUIRED, "worker_id": REQUIRED, "result": REQUIRED},
    "retry_task": {"task_id": REQUIRED, "error_details": REQUIRED},
    "get_queue_status": {},
    "pause_queue": {},
    "resume_queue": {},
    "clear_queue": {"preserve_processing": True},
    "get_tasks_by_status": {"status": REQUIRED},
    "get_tasks_by_worker": {"worker_id": REQUIRED},
    "find_task": {"po_number": None, "task_id": None},
    "get_performance_metrics": {},
    "get_error_summary": {},
    "export_queue_report": {"format": "json", "include_completed": True},
    "_cleanup_resources": {},
    "_ensure_thread_safety": {},
    "update_configuration": {
        "max_retries": None,
        "retry_delay": None,
        "task_timeout": None,
        "queue_size_limit": None,
    },
    "optimize_for_workload": {
        "expected_task_count": REQUIRED,
        "average_task_duration": REQUIRED,
        "worker_count": REQUIRED,
    },
}
CONSTRUCTOR = {"max_retries": 3, "retry_delay": 5.0, "task_timeout": 300.0, "enable_priority": True}
HANDLERS = ["on_task_complete", "on_task_failed", "on_queue_empty", "on_queue_full"]
PUBLIC = [name for name in [*SIGNATURES, "set_event_handlers"] if not name.startswith("_")]
CONTRACT_NAMES = (
    "TaskQueue",
    "ProcessingTask",
    "TaskResult",
    "TaskStatus",
    "TaskNotFoundError",
    "WorkerMismatchError",
    "QueueFullError",
)


@pytest.mark.parametrize("name", SIGNATURES)
def test_a_method_takes_the_arguments_of_the_contract_by_place_and_by_name(name: str) -> None:
    parameters = list(inspect.signature(getattr(TaskQueue, name)).parameters.values())[1:]

    assert {each.name: each.default for each in parameters} == SIGNATURES[name]
    assert {each.kind for each in parameters} <= {inspect.Parameter.POSITIONAL_OR_KEYWORD}


def test_the_constructor_takes_four_arguments_by_place_and_whatever_else_by_name_only() -> None:
    parameters = list(inspect.signature(TaskQueue).parameters.values())

    by_place = [each for each in parameters if each.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert {each.name: each.default for each in by_place} == CONSTRUCTOR
    assert [each.name for each in by_place] == list(CONSTRUCTOR)
    extra = [each for each in parameters if each not in by_place]
    assert all(each.kind is inspect.Parameter.KEYWORD_ONLY for each in extra)
    assert all(each.default is not REQUIRED for each in extra)


def test_every_event_handler_may_be_omitted() -> None:
    parameters = list(inspect.signature(TaskQueue.set_event_handlers).parameters.values())[1:]

    assert [each.name for each in parameters] == HANDLERS
    assert all(each.default is not REQUIRED for each in parameters)
    assert {each.kind for each in parameters} <= {inspect.Parameter.POSITIONAL_OR_KEYWORD}


@pytest.mark.parametrize("name", CONTRACT_NAMES)
def test_the_modules_path_of_the_contract_hands_on_the_same_names(name: str) -> None:
    home = poqueue if hasattr(poqueue, name) else poqueue.errors

    assert getattr(workers.task_queue, name) is getattr(home, name)


def test_the_errors_are_exceptions_of_three_kinds() -> None:
    kinds = (
        workers.task_queue.TaskNotFoundError,
        workers.task_queue.WorkerMismatchError,
        workers.task_queue.QueueFullError,
    )

    assert all(issubclass(kind, Exception) for kind in kinds)
    assert not any(issubclass(a, b) for a in kinds for b in kinds if a is not b)


def test_a_status_is_one_of_five() -> None:
    assert [status.name for status in TaskStatus] == [
        "PENDING",
        "PROCESSING",
        "COMPLETED",
        "FAILED",
        "RETRY_PENDING",
    ]


def test_a_task_is_made_of_an_id_and_the_po_data() -> None:
    made = ProcessingTask(task_id="T-1", po_data={"po_number": "PO-1"})

    assert (made.task_id, made.po_data) == ("T-1", {"po_number": "PO-1"})


def test_a_result_is_made_of_four_fields() -> None:
    made = TaskResult(success=False, downloads=["a.pdf"], processing_time=1.5, error_message="boom")

    assert (made.success, made.downloads, made.processing_time, made.error_message) == (False, ["a.pdf"], 1.5, "boom")


def test_a_queue_has_every_public_method_here_and_through_the_manager(make_queue: MakeQueue) -> None:
    queue = make_queue()

    assert [name for name in PUBLIC if not callable(getattr(queue, name, None))] == []


def test_every_method_can_be_called_with_named_arguments(make_queue: MakeQueue) -> None:
    queue = make_queue(max_retries=1, retry_delay=1.0, task_timeout=9.0, enable_priority=False)

    assert queue.add_task(task=task("PO-1", "a"), priority=3) == "a"
    assert queue.get_next_task(worker_id="w1").task_id == "a"  # type: ignore[union-attr]
    assert queue.retry_task(task_id="a", error_details={"error": "boom"}) is True
    assert queue.add_task(task("PO-2", "b")) == "b"
    assert queue.get_next_task(worker_id="w1").task_id == "b"  # type: ignore[union-attr]
    assert queue.complete_task(task_id="b", worker_id="w1", result=success()) is None
    assert queue.find_task(po_number="PO-2", task_id="b").task_id == "b"  # type: ignore[union-attr]
    assert len(queue.get_tasks_by_status(status=TaskStatus.COMPLETED)) == 1
    assert len(queue.get_tasks_by_worker(worker_id="w1")) == 2
    assert isinstance(queue.export_queue_report(format="json", include_completed=False), dict)
    assert isinstance(
        queue.optimize_for_workload(expected_task_count=10, average_task_duration=1.0, worker_count=2), dict
    )
    assert queue.set_event_handlers(on_task_complete=None, on_task_failed=None) is None
    assert queue.set_event_handlers(on_queue_empty=None, on_queue_full=None) is None
    assert queue.update_configuration(max_retries=2, retry_delay=1, task_timeout=9, queue_size_limit=9) is None
    assert queue.clear_queue(preserve_processing=True) == 1


def test_what_returns_nothing_returns_none(make_queue: MakeQueue) -> None:
    queue = make_queue()

    assert queue.pause_queue() is None
    assert queue.resume_queue() is None
    assert queue.update_configuration() is None
    assert queue.set_event_handlers() is None


def test_the_resource_methods_can_be_called_at_any_time() -> None:
    queue = TaskQueue()

    assert queue._cleanup_resources() is None
    assert queue._ensure_thread_safety() is None
