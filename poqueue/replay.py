"""Reading a journal back: the queue's collaborators as they were at the last commit.

Due times were written as monotonic seconds: within one boot of the machine they are taken as they stand, so that a clock
set forward starts no retry early. After another boot the delay counts from the time of writing, by the wall clock, and is
never longer than it was.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from poqueue.config import QueueConfig
from poqueue.entry import Entry
from poqueue.errors import JournalError
from poqueue.journal import Journal
from poqueue.ledger import Ledger
from poqueue.moves import Moves
from poqueue.payload import is_json
from poqueue.records import NAME_ENDED, Kind, Record
from poqueue.schedule import PRIORITIES

FORGET_EVERY = 4096  # lines
FARTHEST_AT = 6e10  # UTC seconds from 1970 on, or before: of what is farther away than 1,900 years no date can be told
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Replayed:
    """What stands beside the tasks: the pause, and settings that were changed."""

    def __init__(self) -> None:
        self.is_paused = False
        self.settings: dict[str, Any] = {}


def boot_id() -> str:
    """Which boot of the machine this is."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def replay(journal: Journal, ledger: Ledger, moves: Moves, now: float, wall: float, retention_s: float) -> Replayed:
    """Move every task to where it was. `now` is monotonic, `wall` UTC seconds, both of this moment.

    Args:
        retention_s: what ended so long ago may be forgotten on the way; the caller will not keep it.

    Raises:
        JournalError: the journal tells something that cannot have happened.
    """
    try:
        wall = max(wall, journal.last_at())  # a clock that was set back: what was written last is past at least
        reader = _Reader(ledger, moves, now, wall, retention_s, journal.named_again)
        _read_in_order(reader, journal.tasks(), journal.records())
    except (ArithmeticError, AssertionError, AttributeError, LookupError, OSError, TypeError, ValueError) as error:
        raise JournalError(f"{journal.path}: the journal is damaged: {type(error).__name__}: {error}") from None
    return reader.found


def _read_in_order(reader: "_Reader", tasks: Iterator[tuple[Any, ...]], records: Iterator[Record]) -> None:
    """Each task after the lines that were there when it was added: only then an id is free again, a limit not yet changed."""
    row = next(tasks, None)
    for lines, record in enumerate(records):
        while row is not None and row[-1] <= lines:
            reader.add(row)
            row = next(tasks, None)
        reader.read(record)
    while row is not None:
        reader.add(row)
        row = next(tasks, None)


class _Reader:
    def __init__(
        self,
        ledger: Ledger,
        moves: Moves,
        now: float,
        wall: float,
        retention_s: float,
        named_again: Callable[[int], dict[int, int]],
    ) -> None:
        self.found = Replayed()
        self._ledger = ledger
        self._moves = moves
        self._now = now
        self._wall = wall
        self._boot = boot_id()
        self._is_this_boot = False
        self._retention_s = retention_s
        self._ask_named_again = named_again
        self._named_again: dict[int, int] | None = None  # None as long as nothing is so old that it might be forgotten
        self._lines = 0
        self._checked: tuple[Any, ...] = ()  # the limits of the last task
        self._by_token: dict[int, Entry] = {}

    def add(self, row: tuple[Any, ...]) -> None:
        rank, task_id, po_number, priority, retries, delay, timeout, created_at, payload, group, _ = row
        _check_json(payload)
        if priority not in PRIORITIES:
            raise ValueError(f"priority {priority!r}")
        if not -FARTHEST_AT < created_at < FARTHEST_AT:
            raise ValueError(f"a task of {created_at!r}")
        if (limits := (retries, delay, timeout)) != self._checked:  # most have the same
            QueueConfig.checked(*limits)
            self._checked = limits
        namesake = self._ledger.get(task_id)
        if namesake is not None:  # it had ended so long ago that the queue had forgotten it
            self._ledger.forget(namesake)
        task = task_id, po_number, payload, priority, retries, delay, timeout, group
        self._moves.add([task], rank, self._then(created_at), created_at)

    def read(self, record: Record) -> None:
        kind = Kind(record.kind)
        if not -FARTHEST_AT < record.at < FARTHEST_AT:
            raise ValueError(f"a line of {record.at!r}")
        if kind is Kind.LEASED:
            self._lease(record)
        elif kind in (Kind.PAUSED, Kind.RESUMED):
            self.found.is_paused = kind is Kind.PAUSED
        elif kind is Kind.CONFIGURED:
            self._configure(json.loads(record.error or "{}"))
        elif kind is Kind.OPENED:
            boot = json.loads(record.error or "{}").get("boot_id")
            self._is_this_boot = bool(boot) and boot == self._boot  # where boots cannot be told apart, each is another
        elif record.token is not None:
            self._end(kind, record, self._by_token.pop(record.token))
        else:
            self._move_waiting(kind, record, self._of_rank(record.rank))
        self._lines += 1
        if self._lines % FORGET_EVERY == 0:
            self._forget_old(self._then(record.at) - self._retention_s)

    def _of_rank(self, rank: int | None) -> Entry:
        entry = self._ledger.of_rank(rank or 0)
        if entry is None:
            raise LookupError(f"no task has the rank {rank}")
        return entry

    def _forget_old(self, before: float) -> None:
        """Else every task that there ever was would be held until the end. A task that the log names again has to stay: it
        may have been kept for longer then, or by another clock.
        """
        if before <= self._ledger.oldest_end:
            return
        if self._named_again is None:
            self._named_again = self._ask_named_again(self._lines)
        self._ledger.expire(before, self._named_again)

    def _lease(self, record: Record) -> None:
        token = record.token or 0
        if token <= self._ledger.last_token:
            raise ValueError(f"lease {token} comes after lease {self._ledger.last_token}")
        [entry] = self._moves.lease([record.rank or 0], token, record.worker or "", self._then(record.at), record.at)
        self._by_token[token] = entry

    def _end(self, kind: Kind, record: Record, entry: Entry) -> None:
        moves, now, at = self._moves, self._then(record.at), record.at
        details = json.loads(record.error) if record.error else {}
        if record.result is not None:
            _check_json(record.result)
        if kind is Kind.COMPLETED:
            moves.complete([(entry, record.result or b"", max(0.0, record.delay_s or 0.0), record.seconds)], now, at)
        elif kind is Kind.FAILED:
            moves.fail(entry, details, record.result, record.seconds, now, at)
        elif kind is Kind.RETRY:
            moves.retry(entry, details, self._due(record), record.seconds, now, at)
        elif kind is Kind.UNDONE:
            moves.undo(entry)
        elif kind is Kind.INTERRUPTED:
            moves.interrupt(entry, details, bool(details.get("is_crash")), now, at)
        elif kind is Kind.CLEARED:
            moves.clear(entry, now)
        else:
            raise ValueError(f"{kind.name} cannot end a lease")

    def _move_waiting(self, kind: Kind, record: Record, entry: Entry) -> None:
        now = self._then(record.at)
        if self._named_again and kind in NAME_ENDED:
            self._note_named(self._named_again, entry.rank)
        if kind is Kind.CLEARED:
            self._moves.clear(entry, now)
        elif kind is Kind.CANCELLED:
            self._moves.cancel(entry, json.loads(record.error or "{}"), now, record.at)
        elif kind is Kind.REQUEUED:
            self._moves.requeue(entry, now)
        elif kind is Kind.RETRIED:
            self._moves.retry_ended(entry, json.loads(record.error or "{}"), self._due(record), record.at)
        elif kind is Kind.CANCEL_ASKED:
            entry.is_unwanted = True
        else:
            raise ValueError(f"{kind.name} needs a lease")

    def _note_named(self, times: dict[int, int], rank: int) -> None:
        times[rank] -= 1
        if not times[rank]:
            del times[rank]

    def _configure(self, changes: dict[str, Any]) -> None:
        waiting = changes.pop("waiting", None)
        self.found.settings |= changes
        if waiting is not None:
            QueueConfig().changed(waiting)  # only to check them
            self._ledger.reconfigure(waiting)

    def _then(self, at: float) -> float:
        """A wall time as monotonic seconds of this boot; never after now."""
        return self._now - max(0.0, self._wall - at)

    def _due(self, record: Record) -> float:
        delay_s = record.delay_s or 0.0
        if self._is_this_boot and record.due is not None:
            return float(record.due)
        return self._then(record.at) + delay_s


def _check_json(blob: bytes) -> None:
    """What is no JSON would be opened as a pickle, and a pickle may do anything."""
    if type(blob) is not bytes or not is_json(blob):
        raise ValueError("data that is no JSON")
