"""The stage of the contract's tests: a clock that stands still, tasks, results, and what a queue says of itself."""

from __future__ import annotations

import mmap
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

from poqueue import ProcessingTask, TaskQueue, TaskResult, TaskStatus

DEADLINE_S = 10.0
NOON_UTC = 1_700_049_600.0  # 2023-11-15 12:00:00 UTC, what the wall clock of a test shows when it starts

COUNTS = (
    "total_tasks",
    "pending_tasks",
    "processing_tasks",
    "completed_tasks",
    "failed_tasks",
    "retry_tasks",
    "cleared_tasks",
    "queue_length",
)


class Clock:
    """Monotonic and wall seconds that pass only when a test says so.

    The two numbers live in shared memory, so a manager process forked from the test reads the same clock.
    """

    def __init__(self) -> None:
        self._cells = mmap.mmap(-1, 16)
        self._write(1000.0, NOON_UTC)

    def __call__(self) -> float:
        return self._read()[0]

    def wall(self) -> float:
        return self._read()[1]

    def advance(self, seconds: float) -> None:
        monotonic, wall = self._read()
        self._write(monotonic + seconds, wall + seconds)

    def set_wall(self, seconds: float) -> None:
        self._write(self._read()[0], seconds)

    def _read(self) -> tuple[float, float]:
        monotonic, wall = struct.unpack_from("2d", self._cells)
        return monotonic, wall

    def _write(self, monotonic: float, wall: float) -> None:
        struct.pack_into("2d", self._cells, 0, monotonic, wall)


class NoText(str):
    """A text that cannot be looked at."""

    __slots__ = ()

    def __str__(self) -> str:
        raise RuntimeError


class Recorder:
    """Event handlers that write down what they are called with, in order."""

    def __init__(self, queue: TaskQueue) -> None:
        self.events: list[tuple[str, ...]] = []
        queue.set_event_handlers(
            on_task_complete=lambda task: self.events.append(("complete", task.task_id)),
            on_task_failed=lambda task, error: self.events.append(("failed", task.task_id, error)),
            on_queue_empty=lambda: self.events.append(("empty",)),
            on_queue_full=lambda: self.events.append(("full",)),
        )

    def until(self, *last: str) -> list[tuple[str, ...]]:
        """All events up to the one named, once it has arrived; events come in order, so none is still on its way."""
        wait_until(lambda: last in self.events, f"event {last}, have {self.events}")
        return list(self.events)


def task(po_number: Any = "PO-1", task_id: str = "", **fields: Any) -> ProcessingTask:
    return ProcessingTask(task_id=task_id, po_data={"po_number": po_number}, **fields)


def success(processing_time: float = 0.0) -> TaskResult:
    return TaskResult(success=True, downloads=[], processing_time=processing_time, error_message=None)


def failure(error_message: str = "boom") -> TaskResult:
    return TaskResult(success=False, downloads=[], processing_time=0.0, error_message=error_message)


def wait_until(condition: Callable[[], bool], what: str = "condition") -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S} s: {what}"
        time.sleep(0.001)


def lease(queue: TaskQueue, worker_id: str = "w1") -> ProcessingTask:
    """The next task, which has to be there."""
    leased = queue.get_next_task(worker_id)
    assert leased is not None
    return leased


def leased_id(queue: TaskQueue, worker_id: str = "w1") -> str | None:
    leased = queue.get_next_task(worker_id)
    return leased.task_id if leased else None


def find(queue: TaskQueue, task_id: str) -> ProcessingTask:
    """The task of that id, which has to be there."""
    found = queue.find_task(task_id=task_id)
    assert found is not None
    return found


def finish(queue: TaskQueue, worker_id: str = "w1") -> str:
    """Lease the next task and report its success."""
    leased = lease(queue, worker_id)
    queue.complete_task(leased.task_id, worker_id, success())
    return leased.task_id


def fail(queue: TaskQueue, worker_id: str = "w1", error: str = "boom") -> str:
    """Lease the next task and report its final failure."""
    leased = lease(queue, worker_id)
    queue.complete_task(leased.task_id, worker_id, failure(error))
    return leased.task_id


def give_back(queue: TaskQueue, worker_id: str = "w1", error: str = "boom") -> str:
    """Lease the next task and ask for its retry, which has to be granted."""
    leased = lease(queue, worker_id)
    assert queue.retry_task(leased.task_id, {"error": error}) is True
    return leased.task_id


def counts(queue: TaskQueue, *names: str) -> tuple[int, ...]:
    status = queue.get_queue_status()
    return tuple(status[name] for name in names)


def ids(tasks: list[ProcessingTask]) -> set[str]:
    return {each.task_id for each in tasks}


def picture(queue: TaskQueue) -> dict[str, Any]:
    """All that a queue says of itself: equal pictures, nothing changed (while the clock stands)."""
    shown = {
        "status": queue.get_queue_status(),
        "tasks": {status.name: queue.get_tasks_by_status(status) for status in TaskStatus},
        "metrics": queue.get_performance_metrics(),
        "errors": queue.get_error_summary(),
    }
    return deepcopy(shown)  # a queue that hands out what it holds would otherwise repaint the picture


@contextmanager
def nothing_changes(queue: TaskQueue) -> Iterator[None]:
    before = picture(queue)
    yield
    assert picture(queue) == before


def one_of_each(queue: TaskQueue) -> dict[str, str]:
    """Bring one task into each status; says which: status name to task id. Asks for max_retries >= 1."""
    for name in ("COMPLETED", "FAILED", "RETRY_PENDING", "PROCESSING", "PENDING"):
        queue.add_task(task(f"PO-{name}", name))
    finish(queue)
    fail(queue)
    give_back(queue)
    lease(queue)
    return {name: name for name in ("COMPLETED", "FAILED", "RETRY_PENDING", "PROCESSING", "PENDING")}
