"""The lines of a journal's log, as values; a queue without a journal decides in them as well."""

from enum import IntEnum

from poqueue.hints import NamedTuple


class Kind(IntEnum):
    """What a line of the log says. All from COMPLETED to INTERRUPTED end the lease of their token."""

    LEASED = 1
    COMPLETED = 2
    FAILED = 3
    RETRY = 4  # the attempt failed; the task waits `delay_s`
    UNDONE = 5  # the lease's attempt was never begun
    INTERRUPTED = 6  # the attempt was broken off, through no fault that is charged
    REQUEUED = 7  # somebody asks for a failed task again, with all its retries
    CLEARED = 8
    PAUSED = 9
    RESUMED = 10
    CONFIGURED = 11
    OPENED = 12
    RETRIED = 13  # a failed task that has retries left waits `delay_s`
    CANCELLED = 14  # a waiting task was ended as failed
    CANCEL_ASKED = 15  # a running task is to end as failed; its lease goes on until it does, and so is not named


# what is looked at for each PO, as in poqueue.task
LEASED, DONE = Kind.LEASED, Kind.COMPLETED
WAITS = (Kind.RETRY, Kind.RETRIED)
NAME_ENDED = (Kind.REQUEUED, Kind.RETRIED, Kind.CLEARED)  # what may be said of a task that has ended


class Record(NamedTuple):
    """One line of the log. `at` is UTC seconds; `due` monotonic seconds of the boot it was written in.

    `delay_s` of COMPLETED is the duration that counts in the metrics.
    """

    kind: int
    rank: int | None
    token: int | None
    at: float
    worker: str | None = None
    seconds: float | None = None
    delay_s: float | None = None
    due: float | None = None
    result: bytes | None = None
    error: str | None = None
