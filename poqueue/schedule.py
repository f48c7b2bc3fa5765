"""What runs next: priority, then first in first out, never two of one PO at once, and no retry before its time.

Plain and single-threaded: the queue holds the lock. A task stands in one place only: a lane (ready), the delayed heap
(waits for its retry), or aside (another task of its PO runs).
"""

import heapq
from collections import deque
from collections.abc import Iterable, Sequence
from operator import itemgetter

from poqueue.entry import PO_NUMBER, PRIORITY, RANK, Row
from poqueue.hints import Any

PRIORITIES = range(1, 11)
FORGET_AT = 1000  # removed tasks, if they are more than the others


class _Lane:
    """The ready tasks of one priority: new ones in order of arrival, and returned ones at their original rank."""

    __slots__ = ("fresh", "returned")

    def __init__(self) -> None:
        self.fresh: deque[Row] = deque()
        self.returned: list[tuple[int, Row]] = []


class Schedule:
    """Holds every task that waits, by its row; hands out the best one that may run now."""

    def __init__(self, *, by_priority: bool) -> None:
        self._by_priority = by_priority
        self._lanes = [_Lane() for _ in PRIORITIES] if by_priority else [_Lane()]
        self._delayed: list[tuple[float, int, Row]] = []
        self._running_pos: set[str] = set()
        self._aside: dict[str, list[tuple[int, int, Row]]] = {}  # by PO, the best of each first
        self._removed: set[int] = set()

    @property
    def has_aside(self) -> bool:
        """Whether a task waits for another one of its PO to run, and to end."""
        return bool(self._aside)

    def add(self, rows: Iterable[Row]) -> None:
        """New tasks: ready, each behind all others of its priority."""
        lanes, by_priority = self._lanes, self._by_priority
        for row in rows:
            lanes[row[PRIORITY] - 1 if by_priority else 0].fresh.append(row)

    def put_back(self, row: Row) -> None:
        """A task that may run at once, at its original rank."""
        heapq.heappush(self._lanes[row[PRIORITY] - 1 if self._by_priority else 0].returned, (row[RANK], row))

    def delay(self, row: Row, due: float) -> None:
        """A task that must not run before `due`."""
        rank = row[RANK]
        if rank in self._removed:  # it still stands somewhere; and so may thousands that are wanted again with it
            self._forget_removed()
        heapq.heappush(self._delayed, (due, rank, row))

    def next_due(self) -> float | None:
        """When the next delayed task becomes ready."""
        while self._delayed and self._removed and self._delayed[0][1] in self._removed:
            self._removed.discard(heapq.heappop(self._delayed)[1])
        return self._delayed[0][0] if self._delayed else None

    def latest_due(self) -> float | None:
        """When the last delayed task becomes ready; costs what is delayed."""
        return max((due for due, rank, _ in self._delayed if rank not in self._removed), default=None)

    def take(self, now: float, limit: int = 1) -> list[int]:
        """The ranks of the best tasks that may run now, the very best first; their POs count as running until `end`."""
        delayed = self._delayed
        while delayed and delayed[0][0] <= now:
            self.put_back(heapq.heappop(delayed)[2])
        running, removed = self._running_pos, self._removed
        taken: list[int] = []
        for lane in self._lanes if limit > 0 else ():
            fresh, returned = lane.fresh, lane.returned
            while fresh or returned:
                # nothing is called between a look and what it is for: a signal handler may come in between, and take as well
                if returned and (not fresh or returned[0][0] < fresh[0][RANK]):
                    row = heapq.heappop(returned)[1]
                else:
                    row = fresh.popleft()
                rank, po_number = row[RANK], row[PO_NUMBER]
                if removed and rank in removed:
                    removed.discard(rank)
                elif po_number in running:
                    place = row[PRIORITY] if self._by_priority else 0, rank, row
                    heapq.heappush(self._aside.setdefault(po_number, []), place)
                else:
                    running.add(po_number)
                    taken.append(rank)
                    if len(taken) == limit:
                        return taken
        return taken

    def end(self, po_numbers: Iterable[str]) -> int:
        """Of these POs none runs any more; how many others may now: of each PO one."""
        running, count = self._running_pos, 0
        for po_number in po_numbers:
            running.discard(po_number)
            if self._aside:
                count += self._put_next_back(po_number)
        return count

    def untake(self, rows: Sequence[Row]) -> None:
        """As if `take` had not been: the tasks stand in their places again."""
        self.end([row[PO_NUMBER] for row in rows])
        for row in rows:
            self.put_back(row)

    def remove(self, rank: int, po_number: str) -> None:
        """The task does not wait any more; it is passed over when its turn comes, or forgotten with many others."""
        self._removed.add(rank)
        if self._aside and po_number not in self._running_pos:  # it may be the one for which the others wait
            self._put_next_back(po_number)
        if len(self._removed) >= FORGET_AT and 2 * len(self._removed) > self._standing():
            self._forget_removed()

    def rebuild(self, pending: Iterable[Row], delayed: Iterable[tuple[float, Row]], running: Iterable[str]) -> None:
        """Hold exactly these tasks, while these POs run."""
        self._lanes = [_Lane() for _ in self._lanes]
        self._delayed = [(due, row[RANK], row) for due, row in delayed]
        heapq.heapify(self._delayed)
        self._aside = {}
        self._removed = set()
        self._running_pos = set(running)
        self.add(sorted(pending, key=itemgetter(RANK)))

    def _put_next_back(self, po_number: str) -> bool:
        """The best one that stands aside may run; the others of its PO stay there, as they may not run before it has ended.
        While none of a PO runs, one that is as good as all of these stands in a lane; else they would wait for ever.
        """
        waiting, removed, other = self._aside.get(po_number, []), self._removed, None
        while waiting and other is None:
            _, rank, other = heapq.heappop(waiting)
            if rank in removed:
                removed.discard(rank)
                other = None
        if not waiting:
            self._aside.pop(po_number, None)
        if other is None:
            return False
        self.put_back(other)
        return True

    def _standing(self) -> int:
        """How many stand somewhere, the removed ones included."""
        waiting = sum(len(lane.fresh) + len(lane.returned) for lane in self._lanes)
        return waiting + len(self._delayed) + sum(map(len, self._aside.values()))

    def _forget_removed(self) -> None:
        """Else what was removed would be held until its turn, with all its data."""
        removed = self._removed
        for lane in self._lanes:
            lane.fresh = deque(row for row in lane.fresh if row[RANK] not in removed)
        heaps: list[list[Any]] = [lane.returned for lane in self._lanes]
        for heap in (*heaps, self._delayed, *self._aside.values()):
            heap[:] = [item for item in heap if item[-1][RANK] not in removed]
            heapq.heapify(heap)
        self._aside = {po_number: waiting for po_number, waiting in self._aside.items() if waiting}
        removed.clear()


class NoSchedule(Schedule):
    """Holds nothing: while a journal is read back, its log says what runs next, and who waits in the end is known then."""

    def add(self, rows: Iterable[Row]) -> None:
        """Nowhere."""

    def put_back(self, row: Row) -> None:
        """Nowhere."""

    def delay(self, row: Row, due: float) -> None:
        """Nowhere."""

    def end(self, po_numbers: Iterable[str]) -> int:
        """Nobody waits for that."""
        return 0

    def remove(self, rank: int, po_number: str) -> None:
        """From nowhere."""
