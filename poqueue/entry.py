"""One task as the queue keeps it: a row until it first moves, then an Entry, and in the end, if it succeeds, a tuple again.

What cannot change stands in a plain tuple of text, bytes and numbers, for at such a tuple the garbage collector looks once
and not again (docs of gc.is_tracked): what waits, and what is done, costs its passes nothing, however much it is.
"""

from poqueue.hints import Any, Final
from poqueue.task import COMPLETED, PENDING, TaskRecord, instance

NewTask = tuple[str, str, bytes, int, int, float, float, str]
"""What is known of a task before it is added: task_id, po_number, payload, priority, max_retries, retry_delay, task_timeout,
group."""

Row = tuple[str, str, bytes, int, int, float, float, str, int, float, float]
"""The same of one that was added, and its rank, ready, created_at: as in an Entry."""

PO_NUMBER: Final = 1  # places in a row
PRIORITY: Final = 3
RANK: Final = 8
ROW_LENGTH: Final = 11

Done = tuple[Any, ...]
"""A task that has succeeded: what Entry.done() gives."""


class Entry:
    """The queue's own record of one task. Times without `_at` are monotonic seconds; `_at` is UTC for people."""

    __slots__ = (
        "assigned_at",
        "attempt",
        "completed_at",
        "crashes",
        "created_at",
        "error_history",
        "finished",
        "group",
        "interruptions",
        "is_unwanted",
        "leased",
        "max_retries",
        "payload",
        "po_number",
        "priority",
        "rank",
        "ready",
        "result",
        "retry_count",
        "retry_delay",
        "status",
        "task_id",
        "task_timeout",
        "token",
        "was_retried",
        "worker_id",
    )

    def __init__(self, row: Row) -> None:
        (
            self.task_id, self.po_number, self.payload, self.priority, self.max_retries, self.retry_delay, self.task_timeout,
            self.group, self.rank, self.ready, self.created_at,
        ) = row  # fmt: skip
        self.status = PENDING
        self.attempt = 0
        self.retry_count = 0
        self.was_retried = False  # ever: who asks for a failed task sets the count back
        self.interruptions = 0
        self.crashes = 0  # interruptions by a crash of the whole run, in a row, since somebody last asked for the task
        self.is_unwanted = False  # cancelled while it ran: no other attempt follows
        self.token = 0
        self.leased = 0.0
        self.finished = 0.0
        self.worker_id: str | None = None
        self.assigned_at: float | None = None
        self.completed_at: float | None = None
        self.result: bytes | None = None
        self.error_history: tuple[dict[str, Any], ...] = ()  # records hold it too

    def row(self) -> Row:
        """What never changes, or is as the task was added with."""
        return (
            self.task_id, self.po_number, self.payload, self.priority, self.max_retries, self.retry_delay, self.task_timeout,
            self.group, self.rank, self.ready, self.created_at,
        )  # fmt: skip

    def done(self) -> Done:
        """All that is asked of a task that has succeeded; it begins as its row."""
        return (
            self.task_id, self.po_number, self.payload, self.priority, self.max_retries, self.retry_delay, self.task_timeout,
            self.group, self.rank, self.ready, self.created_at,
            self.attempt, self.retry_count, self.interruptions, self.token, self.finished, self.worker_id,
            self.assigned_at, self.completed_at, self.result, self.error_history,
        )  # fmt: skip

    @classmethod
    def of_done(cls, done: Done) -> "Entry":
        """The task as it was when it had succeeded."""
        entry = cls(done[:ROW_LENGTH])
        entry.status = COMPLETED
        (
            entry.attempt, entry.retry_count, entry.interruptions, entry.token, entry.finished, entry.worker_id,
            entry.assigned_at, entry.completed_at, entry.result, entry.error_history,
        ) = done[ROW_LENGTH:]  # fmt: skip
        return entry

    def record(self) -> TaskRecord:
        """What the queue knows of the task, its payload and result unopened."""
        return instance(TaskRecord, self.packed())

    def packed(self, *, brings_data: bool = True) -> tuple[Any, ...]:
        """The record as a plain tuple; with an empty payload if nobody needs it."""
        return (
            self.task_id, self.payload if brings_data else b"", self.priority, self.status, self.attempt, self.retry_count,
            self.max_retries, self.retry_delay, self.task_timeout, self.worker_id,
            self.created_at, self.assigned_at, self.completed_at, self.result, self.error_history,
            self.interruptions, self.po_number, self.group,
        )  # fmt: skip
