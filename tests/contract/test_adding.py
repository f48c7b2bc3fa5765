"""What add_task takes, what it refuses, and the ids that it gives."""

from __future__ import annotations

import os
from typing import Any
from uuid import RFC_4122, UUID

import pytest

from poqueue import ProcessingTask, TaskQueue, TaskResult, TaskStatus
from tests.contract.conftest import MakeQueue
from tests.contract.scene import NoText, counts, fail, find, finish, ids, lease, leased_id, nothing_changes, task

INCOMPLETE = [
    pytest.param({}, id="empty"),
    pytest.param({"supplier": "ACME"}, id="no-po-number"),
    pytest.param({"po_number": ""}, id="blank"),
    pytest.param({"po_number": " \t\n"}, id="only-blanks"),
    pytest.param({"po_number": None}, id="none"),
    pytest.param({"po_number": 1.5}, id="float"),
    pytest.param({"po_number": ["PO-1"]}, id="list"),
    pytest.param(None, id="data-none"),
    pytest.param("PO-1", id="data-text"),
    pytest.param([("po_number", "PO-1")], id="data-list"),
]


@pytest.mark.contract("R6")
def test_a_given_id_is_kept_and_returned(queue: TaskQueue) -> None:
    assert queue.add_task(task("PO-1", "T-1")) == "T-1"
    assert find(queue, "T-1").po_data["po_number"] == "PO-1"


@pytest.mark.contract("R6")
def test_a_task_without_an_id_gets_one_of_its_own(queue: TaskQueue) -> None:
    given = [queue.add_task(task(f"PO-{number}")) for number in range(20)]

    assert all(UUID(each).version == 8 and UUID(each).variant == RFC_4122 and str(UUID(each)) == each for each in given)
    assert len(set(given)) == 20
    assert ids(queue.get_tasks_by_status(TaskStatus.PENDING)) == set(given)


@pytest.mark.contract("R6")
def test_a_process_and_its_fork_give_ids_of_their_own() -> None:
    queue = TaskQueue()
    queue.add_task(task("PO-0"))
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.write(writer, " ".join(queue.add_task(task(f"PO-C{number}")) for number in range(5)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as pipe:
        theirs = pipe.read().split()
    os.waitpid(pid, 0)
    ours = [queue.add_task(task(f"PO-P{number}")) for number in range(5)]

    assert len(set(theirs + ours)) == 10
    assert {each[:24] for each in theirs}.isdisjoint(each[:24] for each in ours)


@pytest.mark.contract("R6")
@pytest.mark.parametrize("known_as", ["pending", "processing", "completed", "failed"])
def test_a_known_id_is_never_merged(queue: TaskQueue, known_as: str) -> None:
    queue.add_task(task("PO-1", "T-1"))
    {"pending": lambda _: None, "processing": lease, "completed": finish, "failed": fail}[known_as](queue)
    before = find(queue, "T-1")
    total_before = counts(queue, "total_tasks")[0]

    try:
        second = queue.add_task(task("PO-2", "T-1"))
    except ValueError:
        assert counts(queue, "total_tasks") == (total_before,)
    else:
        assert second != "T-1"
        assert find(queue, second).po_data["po_number"] == "PO-2"

    assert find(queue, "T-1") == before


@pytest.mark.contract("R6", "R26")
def test_the_same_object_added_twice_without_an_id_makes_two_tasks_or_is_refused(queue: TaskQueue) -> None:
    twice = task("PO-1")
    first = queue.add_task(twice)

    try:
        second = queue.add_task(twice)
    except ValueError:
        assert counts(queue, "total_tasks") == (1,)
    else:
        assert second != first
        assert counts(queue, "total_tasks", "pending_tasks") == (2, 2)


@pytest.mark.contract("R8")
@pytest.mark.parametrize("po_data", INCOMPLETE)
def test_a_task_without_a_po_number_is_invalid_and_changes_nothing(queue: TaskQueue, po_data: Any) -> None:
    with nothing_changes(queue), pytest.raises(ValueError, match="invalid"):
        queue.add_task(ProcessingTask(task_id="T-1", po_data=po_data))


@pytest.mark.contract("R8")
@pytest.mark.parametrize("number", [10**5000, NoText("PO-1")], ids=["huge", "no text"])
def test_a_po_number_without_a_text_is_invalid_and_changes_nothing(number: Any) -> None:
    queue = TaskQueue()

    with nothing_changes(queue), pytest.raises(ValueError, match="invalid"):
        queue.add_task(ProcessingTask(task_id="T-1", po_data={"po_number": number}))


@pytest.mark.contract("R8")
@pytest.mark.parametrize("what", [None, "PO-1", {"po_number": "PO-1"}, TaskResult(success=True)])
def test_what_is_no_task_is_invalid_and_changes_nothing(queue: TaskQueue, what: Any) -> None:
    with nothing_changes(queue), pytest.raises(ValueError, match="invalid"):
        queue.add_task(what)


@pytest.mark.contract("R8")
def test_after_a_refusal_the_same_id_is_still_free(queue: TaskQueue) -> None:
    with pytest.raises(ValueError, match="invalid"):
        queue.add_task(ProcessingTask(task_id="T-1", po_data={}))

    assert queue.add_task(task("PO-1", "T-1")) == "T-1"


@pytest.mark.contract("R8")
@pytest.mark.parametrize("po_number", ["PO-1", "  PO-1 ", 4500017, "Ä-1 / 2", "nan", "../x", "0"])
def test_any_text_or_whole_number_will_do_as_a_po_number(queue: TaskQueue, po_number: str | int) -> None:
    added = queue.add_task(task(po_number))

    assert lease(queue).task_id == added
    assert find(queue, added).po_data["po_number"] == po_number


@pytest.mark.contract("R8")
def test_all_other_po_data_is_optional_and_handed_on_as_it_came(queue: TaskQueue) -> None:
    po_data = {"po_number": "PO-1", "rows": [{"amount": "1,50", "supplier": None}], "row_numbers": [2], "ok": True}
    queue.add_task(ProcessingTask(task_id="T-1", po_data=po_data))

    assert lease(queue).po_data == po_data


@pytest.mark.contract("R5")
@pytest.mark.parametrize("enable_priority", [True, False])
@pytest.mark.parametrize("priority", [0, 11, -1, 10**30, 5.0, 1.5, float("nan"), True, False, "5", "high", None])
def test_a_priority_that_is_no_int_from_1_to_10_is_refused_and_changes_nothing(
    make_queue: MakeQueue, priority: Any, enable_priority: bool
) -> None:
    queue = make_queue(enable_priority=enable_priority)
    queue.add_task(task("PO-0"))

    with nothing_changes(queue), pytest.raises(ValueError, match="priority"):
        queue.add_task(task("PO-1"), priority)


@pytest.mark.contract("R5")
@pytest.mark.parametrize("priority", range(1, 11))
def test_a_priority_from_1_to_10_is_taken_and_kept(queue: TaskQueue, priority: int) -> None:
    added = queue.add_task(task(), priority)

    assert find(queue, added).priority == priority


@pytest.mark.contract("R6", "R11")
def test_an_added_task_starts_as_pending_whatever_it_says_of_itself(queue: TaskQueue) -> None:
    queue.add_task(task("PO-1", "first"))
    finish(queue)
    again = find(queue, "first")
    again.task_id = "second"

    queue.add_task(again)

    fresh = find(queue, "second")
    assert (fresh.status, fresh.attempt, fresh.retry_count, fresh.worker_id) == (TaskStatus.PENDING, 0, 0, None)
    assert (fresh.result, fresh.error_history) == (None, [])
    assert counts(queue, "total_tasks", "pending_tasks", "completed_tasks") == (2, 1, 1)
    assert leased_id(queue) == "second"


@pytest.mark.contract("R6", "R11")
def test_many_tasks_at_once_are_added_as_one_by_one(queue: TaskQueue) -> None:
    added = queue.add_tasks([task("PO-1", "a"), task("PO-2"), task("PO-3", "c")], priority=2)

    assert (added[0], added[2], len(set(added))) == ("a", "c", 3)
    assert counts(queue, "total_tasks", "pending_tasks") == (3, 3)
    assert [leased_id(queue, f"w{number}") for number in range(3)] == added
    assert {find(queue, each).priority for each in added} == {2}


@pytest.mark.contract("R8", "R9")
def test_many_tasks_at_once_are_refused_as_a_whole(make_queue: MakeQueue) -> None:
    queue = make_queue()

    with nothing_changes(queue), pytest.raises(ValueError, match="invalid"):
        queue.add_tasks([task("PO-1", "a"), task("", "b"), task("PO-3", "c")])
    with nothing_changes(queue), pytest.raises(ValueError):
        queue.add_tasks([task("PO-1", "a"), task("PO-2", "b")], priority=11)


class CountedId(str):
    """An id that knows how often ids were compared."""

    __hash__ = str.__hash__
    comparisons = 0

    def __eq__(self, other: object) -> bool:
        CountedId.comparisons += 1
        return str.__eq__(self, other)


@pytest.mark.contract("R6")
def test_an_id_given_twice_among_many_is_named_after_one_look_at_each() -> None:
    queue = TaskQueue()
    tasks = [task(f"PO-{number}", CountedId(f"T-{number}")) for number in range(2000)]
    CountedId.comparisons = 0

    with nothing_changes(queue), pytest.raises(ValueError, match="'T-1999' is already in the queue"):
        queue.add_tasks([*tasks, task("PO-again", CountedId("T-1999"))])

    assert CountedId.comparisons < 10 * len(tasks)
