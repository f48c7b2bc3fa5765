"""What a program's own kind of task may do, and the summary of errors that a signal handler asks for in the middle of a step."""

from collections import Counter
from typing import Any

import pytest

from poqueue import ProcessingTask, TaskQueue, TaskResult
from poqueue.error_log import ErrorLog


class Standard(ProcessingTask):
    """With fields of the class, and names that lie close at hand."""

    po_data: dict[str, Any] = {"po_number": "DEFAULT"}  # noqa: RUF012
    result = None
    _po_data = "its own"
    _result = "its own"


class Watching(ProcessingTask):
    seen: list[str]

    def __setattr__(self, name: str, value: Any) -> None:
        self.__dict__.setdefault("seen", []).append(name)
        super().__setattr__(name, value)


def test_a_task_of_a_programs_own_class_is_what_it_was_made_with() -> None:
    queue = TaskQueue()
    made = Standard(po_data={"po_number": "4711"}, result=TaskResult(True))

    assert made.result == TaskResult(True)
    assert queue.find_task(task_id=queue.add_task(made)).po_data == {"po_number": "4711"}  # type: ignore[union-attr]
    assert (made._po_data, made._result) == ("its own", "its own")
    assert {"po_data", "result"} <= set(Watching(po_data={"po_number": "4711"}).seen)


def test_an_error_that_is_being_noted_is_in_the_summary_whole_or_not_at_all() -> None:
    summaries: list[dict[str, Any]] = []

    class Asked(Counter[str]):
        def __setitem__(self, kind: str, count: int) -> None:
            super().__setitem__(kind, count)
            summaries.append(errors.summary())

    errors = ErrorLog()
    errors._by_type = Asked()
    errors.add("Timeout", "took too long", "4711", 0.0)

    assert [each["last_message"] for each in summaries[0]["most_common_errors"]] == ["took too long"]


def test_a_task_that_a_signal_handler_drops_while_one_of_its_number_is_looked_for_does_not_hide_the_others() -> None:
    queue = TaskQueue()
    ids = [queue.add_task(ProcessingTask(po_data={"po_number": "4711"})) for _ in range(3)]

    class Interrupted(dict[int, Any]):
        def __contains__(self, rank: object) -> bool:
            queue.drop_tasks(ids[:1])
            return super().__contains__(rank)

    queue._ledger._completed = Interrupted()
    found = queue.find_task(po_number="4711")

    assert found is not None and found.task_id in ids[1:]


@pytest.mark.parametrize("live", [0, 999])
def test_of_many_tasks_of_one_number_the_one_that_is_found_is_made_alone(
    live: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = TaskQueue()
    ids = [queue.add_task(ProcessingTask(po_data={"po_number": "4711"}, max_retries=0)) for _ in range(1000)]
    for _ in range(live):
        task = queue.get_next_task("w1")
        assert task is not None
        queue.complete_task(task.task_id, "w1", TaskResult(True))
    made, of_rank = [], queue._ledger.of_rank
    monkeypatch.setattr(queue._ledger, "of_rank", lambda rank: made.append(rank) or of_rank(rank))

    found = queue.find_task(po_number="4711")

    assert found is not None and found.task_id == ids[live]
    assert len(made) == 1
