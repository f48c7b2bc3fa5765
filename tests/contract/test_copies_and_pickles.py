"""Nobody outside can change a task inside; and records and errors travel whole."""

from __future__ import annotations

import copy
import math
import pickle
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from poqueue import ProcessingTask, TaskQueue, TaskResult, TaskStatus
from poqueue import errors as poqueue_errors
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
    success,
    task,
    wait_until,
)
from workers.task_queue import QueueFullError, TaskNotFoundError, WorkerMismatchError

pytestmark = pytest.mark.contract("R26")

ERRORS = [
    each
    for each in vars(poqueue_errors).values()
    if isinstance(each, type) and issubclass(each, Exception) and each.__module__ == poqueue_errors.__name__
]

LOOKUPS: dict[str, Callable[[TaskQueue], list[ProcessingTask]]] = {
    "find by id": lambda queue: [find(queue, name.name) for name in TaskStatus],
    "find by number": lambda queue: [queue.find_task(f"PO-{name.name}") for name in TaskStatus],  # type: ignore[misc]
    "by status": lambda queue: [each for status in TaskStatus for each in queue.get_tasks_by_status(status)],
    "by worker": lambda queue: queue.get_tasks_by_worker("w1"),
}


def spoil(given: ProcessingTask) -> None:
    given.task_id = "spoiled"
    given.status = TaskStatus.COMPLETED
    given.priority = 1
    given.attempt = given.retry_count = 77
    given.max_retries = 0
    given.worker_id = "spoiled"
    given.po_data["po_number"] = "spoiled"
    given.po_data.setdefault("rows", []).append("spoiled")
    given.error_history.append({"error": "spoiled"})
    for each in given.error_history:
        each["error"] = "spoiled"
        each.setdefault("lines", []).append("spoiled")
    if given.result:
        given.result.success = not given.result.success
        given.result.downloads.append("spoiled")


@pytest.mark.parametrize("lookup", LOOKUPS)
def test_what_is_done_to_a_task_that_was_looked_up_never_changes_the_queue(queue: TaskQueue, lookup: str) -> None:
    one_of_each(queue)

    with nothing_changes(queue):
        for each in LOOKUPS[lookup](queue):
            spoil(each)


def test_what_is_done_to_a_leased_task_never_changes_the_queue(queue: TaskQueue) -> None:
    queue.add_task(ProcessingTask("a", {"po_number": "PO-1", "rows": [{"amount": "1.00"}]}))
    leased = lease(queue)

    with nothing_changes(queue):
        leased.po_data["rows"][0]["amount"] = "9.99"
        spoil(leased)
    queue.complete_task("a", "w1", success())
    assert find(queue, "a").po_data == {"po_number": "PO-1", "rows": [{"amount": "1.00"}]}


def test_what_is_done_to_the_details_of_a_past_error_never_changes_the_queue(queue: TaskQueue) -> None:
    queue.add_task(task("PO-1", "a"))
    lease(queue)
    queue.retry_task("a", {"error": "boom", "pages": [{"number": 1}], "context": {"url": "x"}})

    with nothing_changes(queue):
        (error,) = find(queue, "a").error_history
        error["pages"][0]["number"] = 9
        error["pages"].append("spoiled")
        error["context"]["url"] = "spoiled"


def test_what_is_done_to_an_added_task_never_changes_the_queue(queue: TaskQueue) -> None:
    added = ProcessingTask("a", {"po_number": "PO-1", "rows": [{"amount": "1.00"}]})
    queue.add_task(added)

    with nothing_changes(queue):
        added.po_data["rows"][0]["amount"] = "9.99"
        spoil(added)
    assert lease(queue).po_data == {"po_number": "PO-1", "rows": [{"amount": "1.00"}]}


def test_what_is_done_to_a_reported_result_never_changes_the_queue(queue: TaskQueue) -> None:
    queue.add_task(task("PO-1", "a"))
    lease(queue)
    result = TaskResult(True, [{"path": "a.pdf"}], 1.0, None)
    queue.complete_task("a", "w1", result)

    with nothing_changes(queue):
        result.downloads[0]["path"] = "spoiled"
        result.success = False
    assert find(queue, "a").result == TaskResult(True, [{"path": "a.pdf"}], 1.0, None)


def test_what_is_done_to_the_error_details_never_changes_the_queue(queue: TaskQueue) -> None:
    queue.add_task(task("PO-1", "a"))
    lease(queue)
    details: dict[str, Any] = {"error": "boom", "lines": ["one"]}
    queue.retry_task("a", details)

    with nothing_changes(queue):
        details["lines"].append("spoiled")
        details["error"] = "spoiled"
    assert find(queue, "a").error_history[0]["lines"] == ["one"]


def test_two_looks_at_one_task_are_equal_and_share_nothing(queue: TaskQueue) -> None:
    one_of_each(queue)

    for status in TaskStatus:
        first, second = find(queue, status.name), find(queue, status.name)
        assert first == second
        assert first is not second
        assert first.po_data is not second.po_data
        assert first.error_history is not second.error_history


def test_what_is_done_to_the_figures_never_changes_the_queue(queue: TaskQueue, clock: Clock) -> None:
    one_of_each(queue)
    clock.advance(10)

    with nothing_changes(queue):
        queue.get_queue_status().clear()
        metrics = queue.get_performance_metrics()
        metrics["worker_utilization"].clear()
        summary = queue.get_error_summary()
        summary["error_trends"].clear()
        for each in summary["most_common_errors"]:
            each.clear()
        summary["most_common_errors"].clear()


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_tasks_of_every_status_pickle(queue: TaskQueue, protocol: int) -> None:
    one_of_each(queue)

    for status in TaskStatus:
        (kept,) = queue.get_tasks_by_status(status)
        again = pickle.loads(pickle.dumps(kept, protocol))
        assert again == kept
        assert again.status is status


def test_a_task_comes_back_with_its_group(queue: TaskQueue) -> None:
    told: list[str] = []
    queue.set_event_handlers(on_task_complete=lambda done: told.append(done.group))
    queue.add_task(task("PO-1", "a", group="ACME"))
    assert [find(queue, "a").group, lease(queue).group] == ["ACME", "ACME"]

    queue.complete_task("a", "w1", success())

    [done] = queue.get_tasks_by_status(TaskStatus.COMPLETED)
    assert done.group == "ACME"
    wait_until(lambda: told == ["ACME"], "the handler is told")


def test_the_data_of_a_task_are_opened_once_and_are_the_callers_own(queue: TaskQueue) -> None:
    queue.add_task(ProcessingTask("A", {"po_number": "PO-1", "rows": [{"x": 1}]}))
    one, other = lease(queue), find(queue, "A")

    one.po_data["rows"].append("mine")

    assert one.po_data["rows"] == [{"x": 1}, "mine"] and one.po_data is one.po_data
    assert other.po_data == find(queue, "A").po_data == {"po_number": "PO-1", "rows": [{"x": 1}]}
    other.po_data = {"po_number": "another"}
    assert other.po_number == "another"
    with pytest.raises(AttributeError, match="nonsense"):
        _ = one.nonsense  # type: ignore[attr-defined]


@pytest.mark.parametrize("do", [pickle.dumps, copy.copy, copy.deepcopy, repr, lambda each: each == ProcessingTask()])
def test_what_was_not_looked_at_yet_is_there_for_everybody(queue: TaskQueue, do: Callable[[object], object]) -> None:
    queue.add_task(task("PO-1", "A"))
    seen = find(queue, "A")
    assert seen.po_data == {"po_number": "PO-1"}

    assert (do(find(queue, "A")) == do(seen)) is True
    assert find(queue, "A") == seen


def test_threads_that_look_first_at_the_same_time_see_the_same_data(queue: TaskQueue) -> None:
    data = {"po_number": "PO-1", "lines": [{"line": number} for number in range(3_000)]}
    queue.add_task(ProcessingTask("A", data))
    lease(queue)
    queue.complete_task("A", "w1", TaskResult(True, [{"line": number} for number in range(3_000)]))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(50):
            seen, start = find(queue, "A"), threading.Barrier(4)

            def look(key: str, seen: ProcessingTask = seen, start: threading.Barrier = start) -> None:
                start.wait()
                seen.po_data[key] = True
                assert seen.result is not None
                seen.result.downloads.append(key)

            threads = [threading.Thread(target=look, args=(key,)) for key in "abcd"]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert seen.po_data.keys() >= set("abcd")
            assert seen.result is not None and set(seen.result.downloads[3_000:]) == set("abcd")
    finally:
        sys.setswitchinterval(interval)


class HttpError(Exception):
    """As many a program has it: it can be pickled, and not be opened again."""

    def __init__(self, code: int, url: str) -> None:
        super().__init__(f"{code} {url}")


@pytest.mark.contract("R21", "R26")
def test_a_result_that_cannot_be_opened_keeps_nobody_from_looking_at_the_tasks(queue: TaskQueue) -> None:
    told: list[str] = []
    queue.set_event_handlers(on_task_complete=lambda done: told.append(done.task_id))
    for task_id in "abc":
        queue.add_task(task(f"PO-{task_id}", task_id))
        lease(queue)
        queue.complete_task(task_id, "w1", TaskResult(True, [HttpError(404, "u")] if task_id == "b" else []))

    assert [done.task_id for done in queue.get_tasks_by_status(TaskStatus.COMPLETED)] == list("abc")
    assert [done.task_id for done in queue.get_tasks_by_worker("w1")] == list("abc")
    bad = find(queue, "b")
    assert (bad.status, bad.po_number) == (TaskStatus.COMPLETED, "PO-b")
    for _ in range(2):
        with pytest.raises(TypeError, match="url"):
            _ = bad.result
    wait_until(lambda: told == list("abc"), "the handler is told of all")
    report = queue.export_queue_report()
    assert isinstance(report, dict) and [each["task_id"] for each in report["tasks"]] == list("abc")


@pytest.mark.parametrize("do", [pickle.dumps, copy.copy, copy.deepcopy, repr])
def test_a_result_that_was_not_looked_at_yet_is_there_for_everybody(
    queue: TaskQueue, do: Callable[[object], object]
) -> None:
    queue.add_task(task("PO-1", "A"))
    lease(queue)
    queue.complete_task("A", "w1", TaskResult(True, ["a.pdf"], 0.5))
    seen = find(queue, "A")
    assert seen.result == TaskResult(True, ["a.pdf"], 0.5) and seen.result is seen.result

    assert (do(find(queue, "A")) == do(seen)) is True
    assert find(queue, "A") == seen
    assert seen.result is not None
    seen.result.downloads.append("mine")
    assert find(queue, "A").result == TaskResult(True, ["a.pdf"], 0.5)


def test_data_that_were_replaced_do_not_travel_on(queue: TaskQueue) -> None:
    """As somebody does who takes a secret out."""
    queue.add_task(ProcessingTask("A", {"po_number": "PO-1", "password": "SECRET"}))
    seen = find(queue, "A")
    looked_at = find(queue, "A")
    assert looked_at.po_data["password"] == "SECRET"

    seen.po_data = {"po_number": "PO-1"}
    looked_at.po_data["password"] = ""

    for each in (seen, looked_at):
        assert b"SECRET" not in pickle.dumps(each)
        assert "SECRET" not in str(copy.copy(each))


class _OwnTask(ProcessingTask):
    """With a field of the program's own."""

    vendor = ""


@pytest.mark.parametrize("do", [copy.copy, copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_what_a_subclass_adds_travels_along(do: Callable[[_OwnTask], _OwnTask]) -> None:
    own = _OwnTask("A", {"po_number": "PO-1"})
    own.vendor = "ACME"

    again = do(own)

    assert again == own and again.vendor == "ACME"


def test_records_compare_match_and_show_themselves_by_their_fields() -> None:
    result = TaskResult(True, ["a.pdf"], math.nan)

    assert result == result and result != TaskResult(True, ["b.pdf"]) and result != "result"  # noqa: PLR0124
    assert (
        repr(TaskResult(True))
        == "TaskResult(success=True, downloads=[], processing_time=0.0, error_message=None, data={})"
    )
    match result:
        case TaskResult(True, downloads):
            assert downloads == ["a.pdf"]
    with pytest.raises(TypeError):
        hash(result)


@pytest.mark.parametrize("record", [ProcessingTask(), TaskResult(success=True), task("PO-1"), *TaskStatus])
def test_records_pickle_and_copy(record: object) -> None:
    assert pickle.loads(pickle.dumps(record)) == record
    assert copy.deepcopy(record) == record


@pytest.mark.parametrize("kind", ERRORS)
def test_errors_pickle_with_their_arguments(kind: type[Exception]) -> None:
    error = kind("task T-1: no such task")

    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(error, protocol))
        assert type(again) is kind
        assert (again.args, str(again)) == (error.args, str(error))
    assert str(error) == "task T-1: no such task"


REFUSALS: dict[str, tuple[type[Exception], Callable[[TaskQueue], object]]] = {
    "unknown id": (TaskNotFoundError, lambda queue: queue.complete_task("nobody", "w1", success())),
    "unknown retry": (TaskNotFoundError, lambda queue: queue.retry_task("nobody", {"error": "boom"})),
    "other worker": (WorkerMismatchError, lambda queue: queue.complete_task("PROCESSING", "w2", success())),
    "full": (QueueFullError, lambda queue: queue.add_task(task("PO-1"))),
    "invalid task": (ValueError, lambda queue: queue.add_task(task(""))),
    "bad priority": (ValueError, lambda queue: queue.add_task(task("PO-1"), 11)),
    "bad timeout": (ValueError, lambda queue: queue.update_configuration(task_timeout=-1)),
    "find nothing": (ValueError, lambda queue: queue.find_task()),
    "bad format": (ValueError, lambda queue: queue.export_queue_report("xml")),
    "bad workload": (ValueError, lambda queue: queue.optimize_for_workload(10, 1.0, 0)),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_an_error_comes_back_whole(make_queue: MakeQueue, refusal: str) -> None:
    here, queue = TaskQueue(queue_size_limit=3), make_queue(queue_size_limit=3)
    for each in (here, queue):
        one_of_each_within(each)
    kind, call = REFUSALS[refusal]

    with pytest.raises(kind) as expected:
        call(here)
    with nothing_changes(queue), pytest.raises(kind) as raised:
        call(queue)

    assert type(raised.value) is kind
    assert raised.value.args == expected.value.args
    assert str(raised.value) == str(expected.value) != ""


def one_of_each_within(queue: TaskQueue) -> None:
    queue.add_task(task("PO-0", "PROCESSING"))
    lease(queue)
    for number in range(1, 4):
        queue.add_task(task(f"PO-{number}", f"PENDING-{number}"))


def test_a_task_that_cannot_travel_is_refused_and_the_queue_goes_on(queue: TaskQueue) -> None:
    with nothing_changes(queue), pytest.raises(Exception, match=r"(?i)pickle|local object|lambda"):
        queue.add_task(ProcessingTask("a", {"po_number": "PO-1", "callback": lambda: None}))

    assert queue.add_task(task("PO-1", "a")) == "a"
    assert finish(queue) == "a"


def test_a_result_that_cannot_travel_is_refused_and_the_task_runs_on(queue: TaskQueue) -> None:
    queue.add_task(task("PO-1", "a"))
    lease(queue)

    with nothing_changes(queue), pytest.raises(Exception, match=r"(?i)pickle|local object|lambda"):
        queue.complete_task("a", "w1", TaskResult(success=True, downloads=[lambda: None]))

    queue.complete_task("a", "w1", success())
    assert counts(queue, "completed_tasks", "processing_tasks") == (1, 0)


def test_a_large_task_travels_whole(queue: TaskQueue) -> None:
    rows = [{"amount": "1,234.50", "supplier": "Ä" * 100, "row": number} for number in range(10_000)]
    queue.add_task(ProcessingTask("a", {"po_number": "PO-1", "rows": rows}))

    assert lease(queue).po_data["rows"] == rows
    assert leased_id(queue) is None
