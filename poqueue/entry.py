"""One task as the queue keeps it: a row until it first moves, then an Entry, and in the end, if it succeeds, a tuple again.

What cannot change stands in a plain tuple of text, bytes and numbers, for at such a tuple the garbage collector looks once
or twice, and not again (docs of gc.is_tracked): what waits, and what is done, costs its passes nothing, however much it is.
"""

from collections.abc import Sequence
from itertools import repeat
from operator import is_, itemgetter

from poqueue.hints import Any, Final
from poqueue.task import COMPLETED, PENDING, TaskRecord, instance

NewTask = tuple[str, str, bytes, int, int, float, float, str]
"""What is known of a task before it is added: task_id, po_number, payload, priority, max_retries, retry_delay, task_timeout,
group."""

Row = tuple[str, str, bytes, int, int, float, float, str, int, float, float]
"""The same of one that was added, and its rank, ready (monotonic seconds), created_at (UTC seconds)."""

TASK_ID: Final = 0  # places in a row
PO_NUMBER: Final = 1
PAYLOAD: Final = 2
PRIORITY: Final = 3
LIMITS: Final = {"max_retries": 4, "retry_delay": 5, "task_timeout": 6}
RANK: Final = 8

Done = tuple[Any, ...]
"""A task that has succeeded: what Entry.done() gives."""

_FIELDS = (  # of a Done, then of its row, and what all have
    "row", "attempt", "retry_count", "interruptions", "token", "finished", "worker_id",
    "assigned_at", "completed_at", "result", "error_history",
    "task_id", "po_number", "payload", "priority", "max_retries", "retry_delay", "task_timeout", "group",
    "rank", "ready", "created_at",
    "status",
)  # fmt: skip
_in_order = itemgetter(*map(_FIELDS.index, TaskRecord._fields))

Columns = list[tuple[Any, ...]]
"""Many records, field by field: all ids, and of each other field all values, or one where all have the very same."""


def packed_done(done: Done, *, brings_data: bool) -> tuple[Any, ...]:
    """The record of a task that has succeeded, as Entry.packed gives it."""
    row = [*done[0]]
    if not brings_data:
        row[PAYLOAD] = b""
    record: tuple[Any, ...] = _in_order((*done, *row, COMPLETED))
    return record


def columns_of(done: Sequence[Done], *, brings_data: bool) -> Columns:
    """The records of many: as columns they cross in half the time."""
    fields = [*zip(*done, strict=True)]
    of_rows = [*zip(*fields[0], strict=True)]
    if not brings_data:
        of_rows[PAYLOAD] = (b"",)
    task_id, *others = _in_order((*fields, *of_rows, (COMPLETED,)))
    return [task_id, *(column[:1] if all(map(is_, column, repeat(column[0]))) else column for column in others)]


def with_limits(row: Row, limits: dict[str, Any]) -> Row:
    """The same task with other max_retries, retry_delay, task_timeout."""
    fields: list[Any] = list(row)
    for name, value in limits.items():
        fields[LIMITS[name]] = value
    return tuple(fields)


class Entry:
    """The queue's own record of one task. Times without `_at` are monotonic seconds; `_at` is UTC for people."""

    __slots__ = (
        "assigned_at",
        "attempt",
        "completed_at",
        "crashes",
        "error_history",
        "finished",
        "interruptions",
        "is_unwanted",
        "kept",
        "leased",
        "ready",
        "result",
        "retry_count",
        "row",
        "status",
        "token",
        "was_retried",
        "worker_id",
    )

    def __init__(self, row: Row) -> None:
        self.row = row  # whoever is in a hurry looks here, and not by the properties below
        self.ready = row[9]
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
        self.kept: Done = ()  # in its place, once it has succeeded
        self.worker_id: str | None = None
        self.assigned_at: float | None = None
        self.completed_at: float | None = None
        self.result: bytes | None = None
        self.error_history: tuple[dict[str, Any], ...] = ()  # records hold it too

    @property
    def task_id(self) -> str:
        return self.row[TASK_ID]

    @property
    def po_number(self) -> str:
        return self.row[PO_NUMBER]

    @property
    def max_retries(self) -> int:
        return self.row[4]

    @property
    def retry_delay(self) -> float:
        return self.row[5]

    @property
    def task_timeout(self) -> float:
        return self.row[6]

    @property
    def group(self) -> str:
        return self.row[7]

    @property
    def rank(self) -> int:
        return self.row[RANK]

    def done(self) -> Done:
        """All that is asked of a task that has succeeded."""
        return (
            self.row, self.attempt, self.retry_count, self.interruptions, self.token, self.finished, self.worker_id,
            self.assigned_at, self.completed_at, self.result, self.error_history,
        )  # fmt: skip

    @classmethod
    def of_done(cls, done: Done) -> "Entry":
        """The task as it was when it had succeeded."""
        entry = cls(done[0])
        entry.status = COMPLETED
        entry.kept = done
        (
            _, entry.attempt, entry.retry_count, entry.interruptions, entry.token, entry.finished, entry.worker_id,
            entry.assigned_at, entry.completed_at, entry.result, entry.error_history,
        ) = done  # fmt: skip
        return entry

    def record(self) -> TaskRecord:
        """What the queue knows of the task, its payload and result unopened."""
        return instance(TaskRecord, self.packed())

    def packed(self, *, brings_data: bool = True) -> tuple[Any, ...]:
        """The record as a plain tuple; with an empty payload if nobody needs it."""
        task_id, po_number, payload, priority, max_retries, retry_delay, task_timeout, group, _, _, created_at = (
            self.row
        )
        return (
            task_id, payload if brings_data else b"", priority, self.status, self.attempt, self.retry_count,
            max_retries, retry_delay, task_timeout, self.worker_id,
            created_at, self.assigned_at, self.completed_at, self.result, self.error_history,
            self.interruptions, po_number, group,
        )  # fmt: skip
