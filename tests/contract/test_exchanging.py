"""What a pool's workers say and hear: reports by the dozen, leases by the dozen, and how much is left for each."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from poqueue import ProcessingTask, TaskQueue, TaskResult, TaskStatus
from poqueue.payload import freeze_plain_result, freeze_success
from poqueue.task import Lease, Report, Success
from tests.contract.conftest import MakeQueue
from tests.contract.scene import COUNTS, Clock, counts, nothing_changes, wait_until

TOOK_S = 0.25


def add(queue: TaskQueue, count: int) -> None:
    queue.add_tasks([ProcessingTask(f"t{number}", {"po_number": f"PO-{number}"}) for number in range(count)])


def in_short(lease: Lease) -> Success:
    return Success(lease.task_id, lease.token, TOOK_S, freeze_success(["a.pdf"], int(TOOK_S * 1e9), {"x": 1}))


def in_full(lease: Lease) -> Report:
    result = freeze_plain_result(TaskResult(True, ["a.pdf"], TOOK_S, None, {"x": 1}))
    return Report(lease.task_id, lease.token, TOOK_S, result)


@pytest.mark.contract("R17", "R26")
def test_a_success_in_short_is_one_in_full(make_queue: MakeQueue, clock: Clock) -> None:
    shown = []
    for told in (in_short, in_full):
        queue = make_queue()
        add(queue, 3)
        leases = queue.exchange("w1", limit=2).leases
        clock.advance(1.0)

        queue.exchange("w1", [told(lease) for lease in leases], limit=0)

        done = queue.get_tasks_by_status(TaskStatus.COMPLETED)
        assert [task.result for task in done] == [TaskResult(True, ["a.pdf"], TOOK_S, None, {"x": 1})] * 2
        metrics = queue.get_performance_metrics()
        shown.append((counts(queue, *COUNTS), metrics, [(task.task_id, task.worker_id, task.attempt) for task in done]))
        clock.advance(-1.0)
    assert shown[0] == shown[1]


@pytest.mark.contract("R17")
def test_a_success_that_comes_twice_or_too_late_or_from_another_counts_once_or_not_at_all(queue: TaskQueue) -> None:
    add(queue, 2)
    first, second = queue.exchange("w1", limit=2).leases

    queue.exchange("w2", [in_short(first)], limit=0)
    assert counts(queue, "completed_tasks", "processing_tasks") == (0, 2)
    queue.exchange("w1", [in_short(first), in_short(first)], limit=0)
    queue.exchange("w1", [in_short(first)], limit=0)
    assert counts(queue, "completed_tasks", "processing_tasks") == (1, 1)
    queue.release_worker("w1")
    queue.exchange("w1", [in_short(second)], limit=0)

    assert counts(queue, "completed_tasks", "pending_tasks") == (1, 1)


@pytest.mark.contract("R3", "R17")
def test_successes_and_failures_of_one_report_are_all_counted(queue: TaskQueue) -> None:
    add(queue, 4)
    done, failed, undone, refused = queue.exchange("w1", limit=4).leases

    queue.exchange("w1", [
        Report(failed.task_id, failed.token, 0.1, error={"error_type": "X", "message": "x"}),
        in_short(done),
        Report(undone.task_id, undone.token, 0.0),
        Report(refused.task_id, refused.token, 0.1, error={"error_type": "Y", "message": "y"}, give_up=True),
    ], limit=0)  # fmt: skip

    assert counts(queue, "completed_tasks", "retry_tasks", "pending_tasks", "failed_tasks") == (1, 1, 1, 1)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "limit of text": ({"limit": "3"}, "limit"),
    "limit below 0": ({"limit": -1}, "limit"),
    "limit True": ({"limit": True}, "limit"),
    "turn of text": ({"turn": "4"}, "turn"),
    "turn of half": ({"turn": 2.5}, "turn"),
    "turn below 0": ({"turn": -1}, "turn"),
    "wait of text": ({"wait_s": "1"}, "wait_s"),
    "wait without end": ({"wait_s": math.inf}, "wait_s"),
    "wait of no number": ({"wait_s": math.nan}, "wait_s"),
    "keeps nothing": ({"keeps": None}, "keeps"),
    "keeps text": ({"keeps": "12"}, "keeps"),
    "keeps lists": ({"keeps": [[1]]}, "keeps"),
}


@pytest.mark.contract("R16", "R17")
@pytest.mark.parametrize("wrong", WRONG)
def test_an_exchange_with_a_wrong_argument_is_refused_and_changes_nothing(queue: TaskQueue, wrong: str) -> None:
    add(queue, 3)
    queue.exchange("w1", turn=1)
    queue.clear_queue(preserve_processing=False)  # w1 may still run one of them
    add(queue, 3)
    lease = queue.exchange("w2", turn=1).leases[0]
    named, match = WRONG[wrong]
    arguments: dict[str, Any] = {"limit": 2, "turn": 2, **named}

    with nothing_changes(queue):
        for worker_id in ("w1", "w2"):
            with pytest.raises(ValueError, match=match):
                queue.exchange(worker_id, [in_short(lease)], **arguments)

    assert len(queue.exchange("w2", [in_short(lease)], 2, turn=2).leases) == 1, "w1 may still run the other one"
    assert len(queue.exchange("w1", limit=2, turn=2).leases) == 1


NO_REPORTS: dict[str, Callable[[Lease], Any]] = {
    "a number": lambda lease: 5,
    "text": lambda lease: "abc",
    "what is no report": lambda lease: [in_short(lease), None],
    "a report of three fields": lambda lease: [in_short(lease), tuple(lease)[:3]],
    "an id that is no text": lambda lease: [in_short(lease), in_short(lease)._replace(task_id=7)],  # type: ignore[arg-type]
    "a token that cannot be looked up": lambda lease: [in_short(lease), in_short(lease)._replace(token=[1])],  # type: ignore[arg-type]
    "a token of text": lambda lease: [in_short(lease), in_full(lease)._replace(token="1")],  # type: ignore[arg-type]
}


@pytest.mark.contract("R17")
@pytest.mark.parametrize("wrong", NO_REPORTS)
def test_what_is_no_report_is_refused_with_all_that_came_with_it(wrong: str) -> None:
    queue = TaskQueue()
    add(queue, 2)
    lease = queue.exchange("w1", turn=1).leases[0]

    for turn in (0, 2):
        with nothing_changes(queue), pytest.raises(ValueError, match="invalid report"):
            queue.exchange("w1", NO_REPORTS[wrong](lease), turn=turn)

    assert len(queue.exchange("w1", [in_short(lease)], turn=2).leases) == 1


@pytest.mark.contract("R11")
def test_a_worker_hears_how_much_is_left_for_each_that_works(queue: TaskQueue) -> None:
    add(queue, 9)

    assert queue.exchange("w1", limit=2).left == 7
    assert queue.exchange("w2", limit=2).left == 3  # 5 are pending, for two
    assert queue.exchange("w3", limit=2).left == 1
    assert queue.exchange("w4", limit=9).left == 0
    assert queue.exchange("w5", limit=9).left == 0


@pytest.mark.contract("R6")
def test_a_call_that_was_overtaken_takes_no_work_from_the_one_that_did() -> None:
    """A worker's client has hung up and asked again, and its first call still waits here."""
    queue = TaskQueue()
    leases: dict[int, Any] = {}

    def ask(turn: int) -> None:
        leases[turn] = queue.exchange("w", wait_s=5.0, turn=turn).leases

    calls = [threading.Thread(target=ask, args=(turn,)) for turn in (1, 2)]
    for count, call in enumerate(calls, 1):
        call.start()
        wait_until(lambda count=count: len(queue._work) == count)  # type: ignore[misc]
    begun = time.monotonic()
    add(queue, 1)
    for call in calls:
        call.join()

    assert {turn: len(got) for turn, got in leases.items()} == {1: 0, 2: 1}
    assert time.monotonic() - begun < 2.5  # it was woken; it would have looked by itself at the end of its five seconds


@pytest.mark.contract("R26")
def test_what_a_reader_of_records_does_changes_nothing_inside() -> None:
    queue = TaskQueue(max_retries=3, retry_delay=0.0)
    add(queue, 1)
    for _ in range(2):
        lease = queue.exchange("w").leases[0]
        queue.retry_task(lease.task_id, {"error": "boom"})
    queue.exchange("w")

    record = next(iter(queue.get_leases().values()))

    assert isinstance(record.error_history, tuple) and len(record.error_history) == 2


@pytest.mark.contract("R26")
def test_what_runs_can_be_looked_at_without_its_data(queue: TaskQueue) -> None:
    queue.add_task(ProcessingTask("a", {"po_number": "PO-1"}))
    queue.exchange("w1")

    [(token, record)] = queue.get_leases(brings_data=False).items()

    assert (record.task_id, record.worker_id, record.payload) == ("a", "w1", b"")
    assert queue.get_leases()[token].payload
