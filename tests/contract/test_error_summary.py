"""Errors counted, named and placed in their hours."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

from poqueue import TaskQueue, TaskStatus
from poqueue.task import Report
from tests.contract.conftest import MakeQueue
from tests.contract.scene import NOON_UTC, Clock, fail, find, finish, give_back, lease, nothing_changes, task
from workers.task_queue import TaskNotFoundError

pytestmark = pytest.mark.contract("R14")

KEYS = {"total_errors", "unique_error_types", "most_common_errors", "error_trends", "retry_success_rate"}


def counted(queue: TaskQueue) -> dict[str, int]:
    return {each["error_type"]: each["count"] for each in queue.get_error_summary()["most_common_errors"]}


def give_back_with(queue: TaskQueue, details: dict[str, Any]) -> None:
    queue.add_task(task())
    queue.retry_task(lease(queue).task_id, details)


@pytest.mark.contract("Part 1")
@pytest.mark.parametrize("is_used", [False, True], ids=["fresh", "used"])
def test_the_summary_has_its_keys_and_types(queue: TaskQueue, is_used: bool) -> None:
    if is_used:
        give_back_with(queue, {"error": "boom"})

    summary = queue.get_error_summary()

    assert set(summary) >= KEYS
    assert type(summary["total_errors"]) is type(summary["unique_error_types"]) is int
    assert type(summary["retry_success_rate"]) is float
    assert isinstance(summary["most_common_errors"], list)
    assert all(isinstance(each, dict) for each in summary["most_common_errors"])
    assert isinstance(summary["error_trends"], dict)


def test_a_fresh_queue_has_no_errors(queue: TaskQueue) -> None:
    summary = queue.get_error_summary()

    assert (summary["total_errors"], summary["unique_error_types"]) == (0, 0)
    assert (summary["most_common_errors"], summary["error_trends"]) == ([], {})


@pytest.mark.parametrize(
    ("details", "error_type"),
    [
        ({"error_type": "TimeoutError", "exception": "OSError", "error": "slow"}, "TimeoutError"),
        ({"exception": "OSError", "error": "disk"}, "OSError"),
        ({"exception": ValueError("bad amount"), "error": "disk"}, "ValueError"),
        ({"error": "boom\nat line 3", "error_message": "other", "message": "third"}, "boom"),
        ({"error_message": "boom\r\nat line 3", "message": "third"}, "boom"),
        ({"message": "third\nline"}, "third"),
        ({"error_type": "", "error": "boom"}, "boom"),
        ({"error_type": None, "exception": None, "error": None, "message": "third"}, "third"),
        ({"error": ValueError("PO 1: bad amount"), "message": "third"}, "ValueError"),
        ({"message": KeyError("total")}, "KeyError"),
    ],
)
def test_the_type_of_an_error_is_the_best_name_it_has(
    queue: TaskQueue, details: dict[str, Any], error_type: str
) -> None:
    give_back_with(queue, details)

    assert counted(queue) == {error_type: 1}


def test_the_text_of_an_exception_is_the_message_of_the_error(queue: TaskQueue) -> None:
    give_back_with(queue, {"error": ValueError("bad amount")})

    assert queue.get_error_summary()["most_common_errors"][0]["last_message"] == "bad amount"


class TwoPartError(Exception):
    """As many a library has it: it cannot be unpickled, for its arguments are not its message."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")


def test_the_name_of_an_exception_counts_even_if_it_cannot_travel(queue: TaskQueue) -> None:
    class LocalError(Exception):
        pass

    give_back_with(queue, {"exception": TwoPartError(404, "no such page")})
    give_back_with(queue, {"exception": LocalError("no such PO")})

    assert counted(queue) == {"TwoPartError": 1, "LocalError": 1}


class Unshowable:
    """It raises where it should say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("more", "kept"),
    [
        ({("page", 7): "lost"}, ["page", "7", "lost"]),
        ({1: "first", "1": "second"}, ["first", "second"]),
        ({"message": Unshowable()}, ["Unshowable"]),
        ({"n": 10**5000, "of": 7}, ["int", "7"]),
        ({"n": [-(10**5000)], "of": 10**300}, ["int", str(10**300)]),
        ({"n": {10**5000: 1}}, ["dict"]),
    ],
)
def test_details_of_any_kind_are_kept_and_refused_by_nobody(
    queue: TaskQueue, more: dict[Any, Any], kept: list[str]
) -> None:
    queue.add_task(task("PO-1", "a"))
    lease(queue)

    assert queue.retry_task("a", {**more, "error_type": "OSError"}) is True

    assert counted(queue) == {"OSError": 1}
    [details] = find(queue, "a").error_history
    assert all(text in str(details) for text in kept)


@pytest.mark.parametrize("details", [{}, {"worker": "w1"}, {"error": ""}])
def test_an_error_without_a_name_is_still_one_occurrence(queue: TaskQueue, details: dict[str, Any]) -> None:
    give_back_with(queue, details)

    summary = queue.get_error_summary()
    assert (summary["total_errors"], summary["unique_error_types"]) == (1, 1)
    assert list(counted(queue).values()) == [1]


def test_each_failed_attempt_is_one_occurrence(make_queue: MakeQueue, clock: Clock) -> None:
    queue = make_queue(max_retries=2)
    queue.add_task(task("PO-1", "a"))
    for _ in range(2):
        give_back(queue, error="boom")
        clock.advance(100)
    lease(queue)
    assert queue.retry_task("a", {"error": "boom"}) is False
    queue.add_task(task("PO-2", "b"))
    fail(queue, error="no such PO")
    queue.add_task(task("PO-3", "c"))
    finish(queue)

    summary = queue.get_error_summary()
    assert (summary["total_errors"], summary["unique_error_types"]) == (4, 2)
    assert counted(queue) == {"boom": 3, "no such PO": 1}
    assert [each["error_type"] for each in summary["most_common_errors"]] == ["boom", "no such PO"]


def failed_attempts(queue: TaskQueue) -> int:
    """As the report counts them by worker, and so does the summary."""
    report = queue.export_queue_report()
    assert isinstance(report, dict)
    failed: int = sum(worker["failed_attempts"] for worker in report["workers"].values())
    assert failed == report["errors"]["total_errors"]
    return failed


def test_somebodys_wish_for_a_retry_or_an_end_is_no_failed_attempt(queue: TaskQueue) -> None:
    queue.add_task(task("PO-1", "a"))
    fail(queue)
    assert failed_attempts(queue) == 1

    queue.retry_task("a", {"error": "again, please"})
    assert failed_attempts(queue) == 1
    queue.cancel_task("a")

    assert failed_attempts(queue) == 1
    assert [each["message"] for each in find(queue, "a").error_history] == ["boom", "again, please", "cancelled"]


def test_an_attempt_that_was_broken_off_has_not_failed(queue: TaskQueue) -> None:
    queue.add_task(task("PO-1", "a"))
    token = queue.exchange("w1").leases[0].token

    queue.interrupt_leases([token], "the run was stopped", is_crash=False)

    assert failed_attempts(queue) == 0
    assert find(queue, "a").interruptions == 1


def test_a_cancelled_task_that_its_worker_never_began_has_no_failed_attempt(queue: TaskQueue) -> None:
    queue.add_tasks([task(f"PO-{name}", name) for name in "abc"])
    leases = {lease.task_id: lease for lease in queue.exchange("w1", limit=3, turn=1).leases}
    for name in leases:
        assert queue.cancel_task(name) == "stopping"

    queue.exchange("w1", [Report("a", leases["a"].token, 0.0)], limit=0, turn=2, keeps=[leases["c"].token])
    queue.take_back("w1")

    assert failed_attempts(queue) == 0
    assert queue.get_performance_metrics()["failure_rate"] == 100.0
    for name in leases:
        ended = find(queue, name)
        assert (ended.status, ended.attempt) == (TaskStatus.FAILED, 0)
        assert [error["error_type"] for error in ended.error_history] == ["Cancelled"]
        assert queue.retry_task(name, {"error": "again, please"}) is True
    assert queue.get_tasks_by_worker("w1") == []


def test_what_was_no_attempt_is_no_error(queue: TaskQueue) -> None:
    queue.add_task(task("PO-1", "a"))

    with nothing_changes(queue):
        queue.retry_task("a", {"error": "pending"})
        with pytest.raises(TaskNotFoundError):
            queue.retry_task("nobody", {"error": "unknown"})
    finish(queue)
    with nothing_changes(queue):
        queue.retry_task("a", {"error": "completed"})
    assert queue.get_error_summary()["total_errors"] == 0


def test_the_most_common_errors_come_first(queue: TaskQueue) -> None:
    for error, times in [("rare", 1), ("usual", 5), ("seldom", 2)]:
        for _ in range(times):
            give_back_with(queue, {"error_type": error})

    common = queue.get_error_summary()["most_common_errors"]

    assert [(each["error_type"], each["count"]) for each in common] == [("usual", 5), ("seldom", 2), ("rare", 1)]


def test_errors_are_counted_by_the_hour(queue: TaskQueue, clock: Clock) -> None:
    for seconds in (60, 60, 3600):
        clock.advance(seconds)
        give_back_with(queue, {"error": "boom"})

    assert sorted(queue.get_error_summary()["error_trends"].values()) == [1, 2]


@pytest.fixture
def far_from_greenwich() -> Iterator[None]:
    before = os.environ.get("TZ")
    os.environ["TZ"] = "Asia/Kolkata"
    time.tzset()
    yield
    os.environ.pop("TZ")
    if before is not None:
        os.environ["TZ"] = before
    time.tzset()


@pytest.mark.usefixtures("far_from_greenwich")
def test_the_hours_are_utc_wherever_the_queue_runs(queue: TaskQueue, clock: Clock) -> None:
    clock.set_wall(NOON_UTC + 15 * 60)
    give_back_with(queue, {"error": "boom"})

    (hour,) = queue.get_error_summary()["error_trends"]

    assert hour.startswith("2023-11-15")
    assert "12" in hour.removeprefix("2023-11-15")


def test_the_trends_are_bounded_and_keep_the_newest(queue: TaskQueue, clock: Clock) -> None:
    for _ in range(1000):
        give_back_with(queue, {"error": "boom"})
        clock.advance(3600)
    give_back_with(queue, {"error": "boom"})

    summary = queue.get_error_summary()
    newest = time.strftime("%Y-%m-%d", time.gmtime(clock.wall()))
    assert len(summary["error_trends"]) < 1000
    assert any(hour.startswith(newest) for hour in summary["error_trends"])
    assert summary["total_errors"] == 1001


def test_endless_kinds_of_errors_do_not_make_the_summary_endless(queue: TaskQueue) -> None:
    for number in range(2000):
        give_back_with(queue, {"error": f"invoice {number} not found"})

    summary = queue.get_error_summary()
    assert summary["total_errors"] == 2000
    assert len(summary["most_common_errors"]) < 2000


@pytest.mark.contract("R3")
def test_the_history_of_a_task_keeps_the_details_of_each_failed_attempt(queue: TaskQueue, clock: Clock) -> None:
    queue.add_task(task("PO-1", "a"))
    for number in (1, 2):
        lease(queue)
        queue.retry_task("a", {"error_type": "OSError", "error": f"attempt {number}", "page": number})
        clock.advance(100)

    history = find(queue, "a").error_history
    assert [each["page"] for each in history] == [1, 2]
    assert [each["error"] for each in history] == ["attempt 1", "attempt 2"]
