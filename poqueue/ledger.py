"""Every task of the queue, in exactly one status, with the counters and indexes that follow each move.

Plain and single-threaded: the queue holds the lock. The table below is the only thing that moves a status.
"""

import math
from collections import deque
from collections.abc import Collection, Container, Iterable, Iterator, Sequence
from itertools import chain, islice, repeat
from operator import add

from poqueue.entry import PO_NUMBER, RANK, Done, Entry, NewTask, Row, with_limits
from poqueue.hints import Any, NamedTuple
from poqueue.task import COMPLETED, PENDING, PROCESSING
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
_NOTHING: dict[int, Entry] = {}


class Tally(NamedTuple):
    """Sums of one moment: all that were added = those that were cleared + those of each status; retention lowers none."""

    added: int
    cleared: int
    counts: dict[S, int]


class Ledger:
    """All tasks by id, by status, by PO number and by worker; each query costs what it returns.

    What a task is kept as stands in its status alone, under its rank; everything else knows it by that. A query gives an
    Entry: of a task that has never moved, or has succeeded, one made for the asker, which is kept if it is then moved.
    """

    def __init__(self) -> None:
        self.last_rank = 0
        self.last_token = 0
        self._totals = [0, 0]  # added, cleared
        self._forgotten = dict.fromkeys(S, 0)  # those that have ended, and whose history is dropped
        self._ranks: dict[str, int] = {}  # by id
        self._by_status: dict[S, dict[int, Any]] = {status: {} for status in S}  # by rank: neighbours lie side by side
        self.pending: dict[int, Row | Entry] = self._by_status[PENDING]  # outside these are only looked at
        self.processing: dict[int, Entry] = self._by_status[PROCESSING]
        self.retrying: dict[int, Entry] = self._by_status[S.RETRY_PENDING]
        self._completed: dict[int, Done] = self._by_status[COMPLETED]
        self._by_po: dict[str, int | list[int]] = {}
        self._by_worker: dict[str, dict[int, None]] = {}  # ranks as well
        self._held: dict[str, dict[int, Entry]] = {}  # worker -> token -> what it holds now
        self._cleared_of: dict[str, dict[int, Entry]] = {}  # likewise, what it may still run though it was cleared
        self._finished: deque[int] = deque()  # ranks in the order of their ends,
        self._finished_at: deque[float] = deque()  # and when: no pair for each, which the garbage collector would visit
        self._expired = 0  # how many have left at the front of `_finished`, so that a place in it stays what it is

    def __len__(self) -> int:
        return len(self._ranks)

    def tasks(self, *, but_completed: bool = False) -> Iterator[Entry]:
        """All of them, or those that have not succeeded, in the order in which they were added."""
        passed_over = self._completed if but_completed else _NOTHING
        return self._of_ranks([rank for rank in list(self._ranks.values()) if rank not in passed_over])

    def get(self, task_id: str) -> Entry | None:
        """The task with this id."""
        try:
            rank = self._ranks.get(task_id)
        except TypeError:  # what has no hash is no task's id
            return None
        if rank is None:
            return None
        return self.processing.get(rank) or self.of_rank(rank)

    def of_rank(self, rank: int) -> Entry | None:
        """The task with this rank."""
        done = self._completed.get(rank)
        if done is not None:  # it will stay there
            return Entry.of_done(done)
        # by one call of C: a signal handler that works comes into none, and so it is in one of them or in none
        pending, processing, done, *others = map(dict.get, self._by_status.values(), repeat(rank))
        if pending is not None:
            return pending if isinstance(pending, Entry) else Entry(pending)
        if done is not None:
            return Entry.of_done(done)
        return processing or next(filter(None, others), None)

    def _of_ranks(self, ranks: Iterable[int]) -> Iterator[Entry]:
        return filter(None, map(self.of_rank, ranks))

    def row(self, rank: int) -> Row:
        """What never changes of a task that waits."""
        found = self.pending.get(rank) or self.retrying[rank]
        return found.row if isinstance(found, Entry) else found

    def knows_any(self, ids: Iterable[str]) -> bool:
        """Whether one of these is the id of a task."""
        return not self._ranks.keys().isdisjoint(ids)

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

    def add(self, tasks: Sequence[NewTask], first_rank: int, now: float, at: float) -> list[Row]:
        """Take new tasks in, as PENDING, under ranks from the first one on.

        Returns:
            What they are kept as.
        """
        by_id, pending, by_po, totals, rank = self._ranks, self.pending, self._by_po, self._totals, first_rank
        self.last_rank = first_rank + len(tasks) - 1
        rows = []
        for task in tasks:
            row = (*task, rank, now, at)
            by_id[row[0]] = rank
            pending[rank] = row
            totals[0] += 1
            known = by_po.setdefault(row[PO_NUMBER], rank)
            if known != rank:  # rare: most PO numbers are held by one task, which then needs no list
                if isinstance(known, list):
                    known.append(rank)
                else:
                    by_po[row[PO_NUMBER]] = [known, rank]
            rows.append(row)
            rank += 1
        return rows

    def lease(
        self, ranks: Sequence[int], first_token: int, worker_id: str, now: float, at: float
    ) -> tuple[list[Entry], int, float]:
        """A worker holds tasks from now on, under tokens from the first one on.

        Returns:
            The tasks; how many of them have their first attempt; and how long they had been ready together, seconds.
        """
        pending, retrying, processing, token = self.pending, self.retrying, self.processing, first_token
        self.last_token = first_token + len(ranks) - 1
        leased: list[Entry] = []
        started, waited_s = 0, 0.0
        held, tasks = self._held.get(worker_id), self._by_worker.get(worker_id)
        if held is None:
            held = self._held[worker_id] = {}
        if tasks is None:
            # also while it holds some: an undo forgets it first, and a signal handler may lease in between
            tasks = self._by_worker[worker_id] = {}
        for rank in ranks:
            if rank in pending:
                before: dict[int, Any] = pending
                found = pending[rank]
                entry = found if isinstance(found, Entry) else Entry(found)
            elif rank in retrying:
                before = retrying
                entry = retrying[rank]
            else:
                raise self._cannot_run(rank)
            entry.token = token
            entry.worker_id = worker_id
            entry.leased = now
            entry.assigned_at = at
            entry.attempt = attempt = entry.attempt + 1
            if attempt == 1:
                started += 1
            if now > entry.ready:
                waited_s += now - entry.ready
            del before[rank]
            processing[rank] = held[token] = entry
            entry.status = PROCESSING
            tasks[rank] = None
            leased.append(entry)
            token += 1
        return leased, started, waited_s

    def _cannot_run(self, rank: int) -> Exception:
        entry = self.of_rank(rank)
        return LookupError(f"no task has the rank {rank}") if entry is None else _no_arrow(entry, PROCESSING)

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
        held = [(worker_id, list(held.values())) for worker_id, held in list(self._held.items())]
        return {worker_id: min(entry.leased for entry in entries) for worker_id, entries in held if entries}

    def complete(self, entries: Sequence[Entry], now: float) -> None:
        """These tasks, all held by one worker, are done; `now` is remembered, for retention."""
        processing, completed, finished, ends = self.processing, self._completed, self._finished, self._finished_at
        worker_id = entries[0].worker_id or ""
        held = self._held.get(worker_id, _NOTHING)
        for entry in entries:
            if entry.status is not PROCESSING:
                raise _no_arrow(entry, COMPLETED)
            rank = entry.row[RANK]
            held.pop(entry.token, None)
            entry.finished = now
            entry.kept = done = entry.done()
            del processing[rank]
            completed[rank] = done
            entry.status = COMPLETED
            finished.append(rank)
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
            self._finished.append(rank)
            self._finished_at.append(now)

    def forget_worker(self, entry: Entry, worker_id: str) -> None:
        """The worker never began the task."""
        tasks = self._by_worker.get(worker_id, {})
        tasks.pop(entry.rank, None)
        if not tasks:
            self._by_worker.pop(worker_id, None)

    def of_status(self, status: S) -> Iterable[Entry]:
        """Tasks of one status, oldest move first."""
        found = list(self._by_status[status].values())
        if status is PENDING:  # each is made when it is asked for: thousands at once would wake the garbage collector
            return (one if isinstance(one, Entry) else Entry(one) for one in found)
        return map(Entry.of_done, found) if status is COMPLETED else found

    def reconfigure(self, limits: dict[str, Any]) -> None:
        """Give every task that has not succeeded other limits: max_retries, retry_delay, task_timeout."""
        for status, tasks in self._by_status.items():
            for rank, task in tasks.items() if status is not COMPLETED else ():
                if isinstance(task, Entry):
                    task.row = with_limits(task.row, limits)
                else:
                    tasks[rank] = with_limits(task, limits)

    def of_worker(self, worker_id: str) -> Iterator[Entry]:
        """Tasks that this worker runs, ran, or failed an attempt of."""
        try:
            return self._of_ranks(list(self._by_worker.get(worker_id, _NOTHING)))
        except TypeError:  # likewise
            return iter(())

    def of_po(self, po_number: str | None) -> Entry | None:
        """The task of a PO number: a live one first, then the newest."""
        found = self._by_po.get(po_number) if po_number is not None else None
        if not isinstance(found, list):
            return self.of_rank(found) if found is not None else None
        completed, failed = self._completed, self._by_status[S.FAILED]
        best = next((rank for rank in found if rank not in completed and rank not in failed), found[-1])
        # a signal handler may drop that one before it is looked at
        return self.of_rank(best) or next(self._of_ranks(list(found)), None)

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
        first = max(0, start - self._expired)  # a signal handler may let more expire in between
        last = first + limit
        if len(self._finished) != len(self._finished_at):  # a signal handler reads in the middle of a step
            return [], start
        ranks, ends = list(islice(self._finished, first, last)), list(islice(self._finished_at, first, last))
        ended = [self._ended(rank, at) for rank, at in zip(ranks, ends, strict=False)]
        return list(filter(None, ended)), start + len(ranks)

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
        while self._finished_at and self._finished_at[0] < before and self._finished[0] not in but:
            at, rank = self._finished_at.popleft(), self._finished.popleft()
            self._expired += 1
            entry = self._ended(rank, at)
            if entry is not None:
                self._drop(entry)
                dropped += 1
        return dropped

    def forget(self, entry: Entry) -> None:
        """Drop the history of one task that has ended; counters keep it."""
        if entry.status not in TERMINAL:
            raise AssertionError(f"task {entry.task_id} has not ended")
        self._drop(entry)

    def _ended(self, rank: int, at: float) -> Entry | None:
        """The task, if this end is its last one, and it is still known."""
        entry = self.of_rank(rank)
        return entry if entry is not None and entry.status in TERMINAL and entry.finished == at else None

    def _let_go(self, entry: Entry) -> None:
        worker_id = entry.worker_id or ""
        held = self._held.get(worker_id)
        if held is not None:
            held.pop(entry.token, None)
            if not held:
                del self._held[worker_id]

    def _drop(self, entry: Entry, *, is_cleared: bool = False) -> None:
        del self._ranks[entry.task_id]
        by_rank = self._by_status[entry.status]
        if is_cleared:  # in both cases the two lines that a tally adds up stand beside each other
            del by_rank[entry.rank]
            self._totals[1] += 1
        else:
            del by_rank[entry.rank]
            self._forgotten[entry.status] += 1
        known = self._by_po[entry.po_number]
        if isinstance(known, list) and len(known) > 1:
            known.remove(entry.rank)
        else:
            del self._by_po[entry.po_number]
        workers = {error.get("worker_id") for error in entry.error_history}
        for worker_id in workers | {entry.worker_id}:
            if worker_id is not None:
                self.forget_worker(entry, worker_id)


def _no_arrow(entry: Entry, status: S) -> AssertionError:
    return AssertionError(f"task {entry.task_id}: {entry.status.name} may not become {status.name}")
