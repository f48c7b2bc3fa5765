"""Telling others what happened: handlers in this process, and a numbered feed for other processes.

Events are noted under the queue's lock and delivered after it is let go, in the order of the changes. A handler may call
the queue; what it raises is logged and swallowed, since the change it hears of has already been made.
"""

import contextlib
import logging
import math
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from itertools import groupby, islice

from poqueue.entry import Done, Entry, columns_of, packed_done
from poqueue.errors import QueueError
from poqueue.hints import Any, NamedTuple
from poqueue.packing import PackedEvents
from poqueue.payload import thaw_task
from poqueue.task import TaskRecord

logger = logging.getLogger(__name__)
queue_logger = logging.getLogger("poqueue.task_queue")  # whose lines they are

HANDLER_NAMES = {
    "completed": "on_task_complete",
    "failed": "on_task_failed",
    "empty": "on_queue_empty",
    "full": "on_queue_full",
}
GATHERED = frozenset({"failed", "retry"})  # for one of these, as for one "completed", who gathers is not woken
UNSET: Any = object()  # an argument that was left out, where None means something
MAX_UNDELIVERED = 10_000
MAX_FEED = 200_000
MANY = 10  # neighbours that are worth columns
SILENCE_S = 30.0  # a reader that has not asked for what follows within this time hangs: nobody waits for it


class HandlerSet:
    """Up to one handler for each kind of event."""

    def __init__(self) -> None:
        self._handlers: dict[str, Callable[..., None]] = {}

    def __bool__(self) -> bool:
        return bool(self._handlers)

    def update(self, completed: Any, failed: Any, empty: Any, full: Any) -> None:
        """Set handlers; None unsets one, UNSET leaves it as it is.

        Raises:
            ValueError: one cannot be called; none was changed.
        """
        given = dict(zip(HANDLER_NAMES, (completed, failed, empty, full), strict=True))
        for kind, handler in given.items():
            if handler is not UNSET and handler is not None and not callable(handler):
                raise ValueError(f"{HANDLER_NAMES[kind]} must be callable or None, got {handler!r}")
        for kind, handler in given.items():
            if handler is None:
                self._handlers.pop(kind, None)
            elif handler is not UNSET:
                self._handlers[kind] = handler

    def listens(self, kind: str) -> bool:
        """Whether a handler for this kind is set."""
        return kind in self._handlers

    def call(self, kind: str, record: TaskRecord | None, error: str) -> None:
        """Call the handler, if one is still set; never raises."""
        handler = self._handlers.get(kind)
        if handler is None:
            return
        try:
            task = thaw_task(record) if record is not None else None
            arguments: tuple[Any, ...] = {"completed": (task,), "failed": (task, error)}.get(kind, ())
            handler(*arguments)
        except (Exception, SystemExit, GeneratorExit):  # its fault must not undo or hide a change already made
            logger.exception("%s raised; ignored", HANDLER_NAMES[kind])


class EventDelivery:
    """A bounded buffer of events for this process's handlers, emptied in order by one thread at a time."""

    def __init__(self) -> None:
        self.handlers = HandlerSet()
        self.is_heard = False  # whether there is any
        self.dropped = 0
        self.waiting: deque[tuple[str, TaskRecord | None, str]] = deque()
        self.lines: deque[tuple[Any, ...]] = deque(maxlen=MAX_UNDELIVERED)  # for the log
        self._claiming = threading.RLock()
        self._is_claimed = False  # by the thread that calls the handlers

    def update(self, *handlers: Any) -> None:
        """Set handlers, as HandlerSet.update does."""
        self.handlers.update(*handlers)
        self.is_heard = bool(self.handlers)

    def note(self, kind: str, entry: Entry | None, error: str) -> None:
        """Remember an event; called under the queue's lock."""
        if not self.handlers.listens(kind):
            return
        if len(self.waiting) >= MAX_UNDELIVERED:
            self.dropped += 1
            return
        self.waiting.append((kind, entry.record() if entry is not None else None, error))

    def log(self, level: int, text: str, *arguments: object) -> None:
        """Remember a line for the log; called under the queue's lock, where a handler of the program's own might call in."""
        self.lines.append((level, text, *arguments))

    def deliver(self) -> None:
        """Write the log, call the handlers; called without the queue's lock. A thread that finds another at it leaves at once."""
        while self.lines:
            with contextlib.suppress(IndexError):  # another thread has taken it
                level, text, *arguments = self.lines.popleft()
                log_now(level, text, *arguments)
        while self.waiting and self._call_handlers():
            pass

    def _call_handlers(self) -> bool:
        """Unless somebody does already; a Ctrl-C, wherever it comes, leaves the rest to the next call."""
        is_ours = False
        try:
            with self._claiming:
                if self._is_claimed:
                    return False
                self._is_claimed = is_ours = True
            while self.waiting:
                self.handlers.call(*self.waiting.popleft())
            return True
        finally:
            if is_ours:
                self._is_claimed = False


def log_now(level: int, text: str, *arguments: object) -> None:
    """A line of the queue's in the log, whatever the filters and handlers of the program do about it."""
    try:
        queue_logger.log(level, text, *arguments)
    except Exception:  # a filter of the program's own: the change that it tells of has been made
        logger.debug("a log line was refused", exc_info=True)


class _Told(NamedTuple):
    """An event but the end of a task that succeeded; the task packed, as it was then."""

    kind: str
    record: tuple[Any, ...] | None
    error: str


class EventFeed:
    """The latest events by number, for readers in other processes; kept only while somebody reads, and until all have.

    An event's number is its place in the order of all: none is kept beside it, and so none is wrong once a step is over,
    whatever a signal handler has told in the middle of it.
    """

    def __init__(self) -> None:
        self.is_read = False  # whether anybody does,
        self.waiting = 0  # how many of them have nothing to read yet,
        self.full_at = math.inf  # the event with which one of those that gather may have all that it asks for,
        self.view: Any = None  # and what else there is for them to see
        self.last = 0
        self.last_urgent = 0
        self._events: deque[Done | _Told] = deque(maxlen=MAX_FEED)  # a Done is what the ledger has of it
        self._read_to: dict[int, int] = {}
        self._read_by: dict[int, int] = {}  # the thread that read last,
        self._read_at: dict[int, float] = {}  # and when
        self._without_data: set[int] = set()  # readers that need none
        self._readers = int.from_bytes(
            os.urandom(4), "big"
        )  # numbers that the queue before a replacement has not given

    def count(self, after: int) -> int:
        """How many there are with numbers above `after`, those that were dropped included."""
        return self.last - after if self._events else 0

    def open(self, now: float, *, brings_data: bool) -> tuple[int, int]:
        """A new reader's number, and the number of the last event before it."""
        self._readers += 1
        if not brings_data:
            self._without_data.add(self._readers)
        self._note_read(self._readers, self.last, now)
        return self._readers, self.last

    def close(self, reader: int) -> None:
        """This reader reads no more."""
        self._read_to.pop(reader, None)
        self._read_by.pop(reader, None)
        self._read_at.pop(reader, None)
        self._without_data.discard(reader)
        self.is_read = bool(self._read_to)
        self._let_go()

    def note_done(self, done: Sequence[Done]) -> bool:
        """Keep "completed" of these tasks; True if readers are to be woken."""
        count = len(done)
        self._events.extend(done)
        self.last += count
        return self._is_awaited()

    def note(self, kind: str, entry: Entry | None, error: str) -> bool:
        """Keep any other event, with its task as it is now; True if readers are to be woken."""
        self._events.append(_Told(kind, None if entry is None else entry.packed(), error))
        self.last += 1
        if kind not in GATHERED:
            self.last_urgent = self.last
            return True
        return self._is_awaited()

    def _is_awaited(self) -> bool:
        if not self.waiting and self.last < self.full_at:
            return False
        self.full_at = math.inf  # who is woken looks for himself
        return True

    def read(self, reader: int, after: int, limit: int) -> PackedEvents:
        """Up to `limit` events with numbers above `after`, packed, oldest first; a gap means that some were dropped.

        Raises:
            QueueError: the reader is closed; for what has happened since, there may be nothing that shows a gap.
        """
        self.guard_open(reader)
        brings_data = reader not in self._without_data
        events = self._events
        first = self.last - len(events) + 1
        number = max(first, after + 1)
        packed: PackedEvents = []
        for kind, group in groupby(list(islice(events, number - first, number - first + limit)), type):
            alike: list[Any] = list(group)
            if kind is _Told:
                packed += [(number, *told) for number, told in enumerate(alike, number)]
            elif len(alike) < MANY:
                records = [packed_done(one, brings_data=brings_data) for one in alike]
                packed += [(number, "completed", record, "") for number, record in enumerate(records, number)]
            else:
                packed.append((number, "completed", columns_of(alike, brings_data=brings_data), ""))
            number += len(alike)
        return packed

    def release(self, reader: int, up_to: int, now: float) -> None:
        """This reader has seen events up to a number; what all have seen is let go. Errors as in read."""
        self.guard_open(reader)
        self._note_read(reader, up_to, now)
        self._let_go()

    def is_unheard(self, but: int, now: float) -> bool:
        """Whether a reader, `but` this one, may still act on an event: it has not asked for what follows the last."""
        return any(
            up_to < self.last and reader != but and now - self._read_at[reader] < SILENCE_S
            for reader, up_to in self._read_to.items()
        )

    def readers_of(self, thread: int) -> list[int]:
        """The readers that this thread was the last to read for, or to open."""
        return [reader for reader, last in self._read_by.items() if last == thread]

    def guard_open(self, reader: int) -> None:
        """Errors as in read."""
        if reader not in self._read_to:
            raise QueueError(f"reader {reader} is closed")

    def _note_read(self, reader: int, up_to: int, now: float) -> None:
        self._read_to[reader] = up_to
        self._read_by[reader] = threading.get_ident()
        self._read_at[reader] = now
        self.is_read = True

    def _let_go(self) -> None:
        up_to = min(self._read_to.values(), default=self.last)
        events = self._events
        while events and self.last - len(events) < up_to:
            events.popleft()
