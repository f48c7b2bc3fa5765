"""Every task of the queue, in exactly one status, with the counters and indexes that follow each move.

Plain and single-threaded: the queue holds the lock. The table below is the only thing that moves a status.
"""

import math
from collections import deque
from collections.abc import Collection, Container, Iterable, Iterator, Sequence
from itertools import chain, islice
from operator import add

from poqueue.hints import Any, NamedTuple
from poqueue.task import COMPLETED, PENDING, PROCESSING, TaskRecord, instance
from poqueue.task import TaskStatus as S

TRANSITIONS: dict[S, frozenset[S]] = {  # every arrow a task may take; nothing else in the project writes a status
    S.PENDING: frozenset({S.PROCESSING, S.FAILED}),  # leased | cancelled
    S.PROCESSING: frozenset(
        {S.COMPLETED, S.RETRY_PENDING, S.FAILED, S.PENDING}
    ),  # reported | given back | used up | undone
    S.RETRY_PENDING: frozenset({S.PROCESSING, S.FAILED}),  # due and leased | cancelled
    S.FAILED: frozenset({S.RETRY_PENDING}),  # somebody asks again
    S.COMPLETED: frozenset(),
}
TERMINAL = (S.COMPLETED, S.FAILED)
_LEASABLE = frozenset(before for before, after in TRANSITIONS.items() if PROCESSING in after)
_NOTHING: dict[int, "Entry"] = {}


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

    def __init__(
        self, task_id: str, po_number: str, payload: bytes, priority: int, rank: int,
        max_retries: int, retry_delay: float, task_timeout: float, ready: float, created_at: float, group: str = "",
    ) -> None:  # fmt: skip
        self.task_id = task_id
        self.po_number = po_number
        self.payload = payload
        self.priority = priority
        self.rank = rank
        self.max_retries = max_retries
        self.retry_delay = retry_delay
        self.task_timeout = task_timeout
        self.ready = ready
        self.created_at = created_at
        self.group = group
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


class Tally(NamedTuple):
    """Sums of one moment: all that were added = those that were cleared + those of each status; retention lowers none."""

    added: int
    cleared: int
    counts: dict[S, int]


class Ledger:
    """All tasks by id, by status, by PO number and by worker; each query costs what it returns."""

    def __init__(self) -> None:
        self._totals = [0, 0]  # added, cleared
        self._forgotten = dict.fromkeys(S, 0)  # those that have ended, and whose history is dropped
        self._by_id: dict[str, Entry] = {}
        self._by_status: dict[S, dict[int, Entry]] = {
            status: {} for status in S
        }  # by rank: neighbours lie side by side
        self.pending = self._by_status[PENDING]  # outside these are only looked at
        self.processing = self._by_status[PROCESSING]
        self.retrying = self._by_status[S.RETRY_PENDING]
        self._completed = self._by_status[COMPLETED]
        self._by_po: dict[str, Entry | list[Entry]] = {}
        self._by_worker: dict[str, dict[int, Entry]] = {}  # by rank as well
        self._held: dict[str, dict[int, Entry]] = {}  # worker -> token -> what it holds now
        self._cleared_of: dict[str, dict[int, Entry]] = {}  # likewise, what it may still run though it was cleared
        self._finished: deque[Entry] = deque()  # in the order of their ends,
        self._finished_at: deque[float] = deque()  # and when: no pair for each, which the garbage collector would visit
        self._expired = 0  # how many have left at the front of `_finished`, so that a place in it stays what it is

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._by_id.values())

    def get(self, task_id: str) -> Entry | None:
        """The task with this id."""
        try:
            return self._by_id.get(task_id)
        except TypeError:  # what has no hash is no task's id
            return None

    def of_rank(self, rank: int) -> Entry | None:
        """The task with this rank."""
        for tasks in self._by_status.values():
            if rank in tasks:
                return tasks[rank]
        return None

    def knows_any(self, ids: Iterable[str]) -> bool:
        """Whether one of these is the id of a task."""
        return not self._by_id.keys().isdisjoint(ids)

    def tally(self) -> Tally:
        """How many tasks there are, at one moment: it is one call of C that looks, and no signal handler comes into one."""
        numbers = tuple(chain(self._totals, map(len, self._by_status.values()), self._forgotten.values()))
        here, forgotten = numbers[2 : 2 + len(S)], numbers[2 + len(S) :]
        return Tally(numbers[0], numbers[1], dict(zip(S, map(add, here, forgotten), strict=True)))

    @property
    def is_idle(self) -> bool:
        """Whether all tasks have ended."""
        return not (self.pending or self.processing or self.retrying)

    @property
    def waiting(self) -> int:
        """How many tasks wait, for a worker or for their retry."""
        return len(self.pending) + len(self.retrying)

    def add(self, entries: Sequence[Entry], first_rank: int, now: float, at: float) -> None:
        """Take new tasks in, as PENDING, under ranks from the first one on."""
        by_id, pending, by_po, totals, rank = self._by_id, self.pending, self._by_po, self._totals, first_rank
        for entry in entries:
            entry.rank = rank
            entry.ready = now
            entry.created_at = at
            by_id[entry.task_id] = pending[rank] = entry
            totals[0] += 1
            known = by_po.setdefault(entry.po_number, entry)
            if known is not entry:  # rare: most PO numbers are held by one task, which then needs no list
                if isinstance(known, list):
                    known.append(entry)
                else:
                    by_po[entry.po_number] = [known, entry]
            rank += 1

    def lease(
        self, entries: Sequence[Entry], first_token: int, worker_id: str, now: float, at: float
    ) -> tuple[int, float]:
        """A worker holds tasks from now on, under tokens from the first one on.

        Returns:
            How many of them have their first attempt, and how long they had been ready together, seconds.
        """
        by_status, processing, token = self._by_status, self.processing, first_token
        started, waited_s = 0, 0.0
        held, tasks = self._held.get(worker_id), self._by_worker.get(worker_id)
        if held is None:
            held = self._held[worker_id] = {}
        if tasks is None:
            # also while it holds some: an undo forgets it first, and a signal handler may lease in between
            tasks = self._by_worker[worker_id] = {}
        for entry in entries:
            before, rank = entry.status, entry.rank
            if before not in _LEASABLE:
                raise _no_arrow(entry, PROCESSING)
            entry.token = token
            entry.worker_id = worker_id
            entry.leased = now
            entry.assigned_at = at
            entry.attempt = attempt = entry.attempt + 1
            if attempt == 1:
                started += 1
            if now > entry.ready:
                waited_s += now - entry.ready
            del by_status[before][rank]
            processing[rank] = tasks[rank] = held[token] = entry
            entry.status = PROCESSING
            token += 1
        return started, waited_s

    def held_by(self, worker_id: str) -> dict[int, Entry]:
        """What a worker holds now, by token, in the order of the leases; not to be changed."""
        return self._held.get(worker_id, _NOTHING)

    @property
    def holders(self) -> int:
        """How many workers hold something now."""
        return len(self._held)

    def held_since(self) -> dict[str, float]:
        """When each worker that holds leases now got the first of them, monotonic seconds."""
        # a signal handler may read in the middle of a step, where there is an empty one
        held = ((worker_id, held) for worker_id, held in self._held.items() if held)
        return {worker_id: min(entry.leased for entry in entries.values()) for worker_id, entries in held}

    def complete(self, entries: Sequence[Entry], now: float) -> None:
        """These tasks, all held by one worker, are done; `now` is remembered, for retention."""
        processing, completed, finished, ends = self.processing, self._completed, self._finished, self._finished_at
        worker_id = entries[0].worker_id or ""
        held = self._held.get(worker_id, _NOTHING)
        for entry in entries:
            if entry.status is not PROCESSING:
                raise _no_arrow(entry, COMPLETED)
            rank = entry.rank
            held.pop(entry.token, None)
            del processing[rank]
            completed[rank] = entry
            entry.status = COMPLETED
            entry.finished = now
            finished.append(entry)
            ends.append(now)
        if not held:
            self._held.pop(worker_id, None)

    def move(self, entry: Entry, status: S, now: float = 0.0) -> None:
        """Follow one arrow of the table. To COMPLETED or FAILED: `now` is remembered, for retention."""
        before, rank = entry.status, entry.rank
        if status not in TRANSITIONS[before]:
            raise _no_arrow(entry, status)
        if before is PROCESSING:
            self._let_go(entry)
        del self._by_status[before][rank]
        self._by_status[status][rank] = entry
        entry.status = status
        if status in TERMINAL:
            entry.finished = now
            self._finished.append(entry)
            self._finished_at.append(now)

    def forget_worker(self, entry: Entry, worker_id: str) -> None:
        """The worker never began the task."""
        tasks = self._by_worker.get(worker_id, {})
        tasks.pop(entry.rank, None)
        if not tasks:
            self._by_worker.pop(worker_id, None)

    def of_status(self, status: S) -> list[Entry]:
        """Tasks of one status, oldest move first."""
        return list(self._by_status[status].values())

    def of_worker(self, worker_id: str) -> list[Entry]:
        """Tasks that this worker runs, ran, or failed an attempt of."""
        try:
            return list(self._by_worker.get(worker_id, {}).values())
        except TypeError:  # likewise
            return []

    def of_po(self, po_number: str | None) -> Entry | None:
        """The task of a PO number: a live one first, then the newest."""
        found = self._by_po.get(po_number) if po_number is not None else None
        if not isinstance(found, list):
            return found
        return next((e for e in found if e.status not in TERMINAL), found[-1])

    def clear(self, entry: Entry, *, may_still_run: bool) -> None:
        """Drop a task and count it as cleared; one that may still run is known to do so until take_cleared."""
        if entry.status is PROCESSING:
            self._let_go(entry)
            if may_still_run:
                self._cleared_of.setdefault(entry.worker_id or "", {})[entry.token] = entry
        self._drop(entry, is_cleared=True)

    @property
    def has_cleared_leases(self) -> bool:
        """Whether a worker may still run what was cleared."""
        return bool(self._cleared_of)

    def take_cleared(self, worker_id: str, keeps: Collection[int]) -> list[Entry]:
        """Forget what was cleared while this worker had it, but for leases that it still has."""
        cleared = self._cleared_of.pop(worker_id, {})
        if kept := {token: entry for token, entry in cleared.items() if token in keeps}:
            self._cleared_of[worker_id] = kept
        return [entry for token, entry in cleared.items() if token not in kept]

    def finished(self, start: int, limit: int) -> tuple[list[Entry], int]:
        """Tasks that have ended, in the order of their ends, from a place in that order; and the place to go on from."""
        start = max(start, self._expired)
        first, last = start - self._expired, start - self._expired + limit
        if len(self._finished) != len(self._finished_at):  # a signal handler reads in the middle of a step
            return [], start
        entries, ends = list(islice(self._finished, first, last)), islice(self._finished_at, first, last)
        found = [entry for entry, at in zip(entries, ends, strict=True) if self._has_ended(entry, at)]
        return found, start + len(entries)

    @property
    def oldest_end(self) -> float:
        """When the task ended whose end is the oldest that is remembered."""
        return self._finished_at[0] if self._finished_at else math.inf

    def expire(self, before: float, but: Container[int] = ()) -> int:
        """Drop the history of tasks that finished earlier than `before`; counters keep them.

        Args:
            but: ranks of tasks that are to stay, and with them all that finished later.
        """
        dropped = 0
        while self._finished_at and self._finished_at[0] < before and self._finished[0].rank not in but:
            finished, entry = self._finished_at.popleft(), self._finished.popleft()
            self._expired += 1
            if self._has_ended(entry, finished):
                self._drop(entry)
                dropped += 1
        return dropped

    def forget(self, entry: Entry) -> None:
        """Drop the history of one task that has ended; counters keep it."""
        if entry.status not in TERMINAL:
            raise AssertionError(f"task {entry.task_id} has not ended")
        self._drop(entry)

    def _has_ended(self, entry: Entry, at: float) -> bool:
        """Whether this end is the task's last one, and the task still known: its id may be another's by now."""
        return entry.status in TERMINAL and entry.finished == at and self._by_id.get(entry.task_id) is entry

    def _let_go(self, entry: Entry) -> None:
        worker_id = entry.worker_id or ""
        held = self._held.get(worker_id)
        if held is not None:
            held.pop(entry.token, None)
            if not held:
                del self._held[worker_id]

    def _drop(self, entry: Entry, *, is_cleared: bool = False) -> None:
        del self._by_id[entry.task_id]
        by_rank = self._by_status[entry.status]
        if is_cleared:  # in both cases the two lines that a tally adds up stand beside each other
            del by_rank[entry.rank]
            self._totals[1] += 1
        else:
            del by_rank[entry.rank]
            self._forgotten[entry.status] += 1
        known = self._by_po[entry.po_number]
        if isinstance(known, list) and len(known) > 1:
            known.remove(entry)
        else:
            del self._by_po[entry.po_number]
        workers = {error.get("worker_id") for error in entry.error_history}
        for worker_id in workers | {entry.worker_id}:
            if worker_id is not None:
                self.forget_worker(entry, worker_id)


def _no_arrow(entry: Entry, status: S) -> AssertionError:
    return AssertionError(f"task {entry.task_id}: {entry.status.name} may not become {status.name}")
