"""What runs next: priority, then first in first out, never two of one PO at once, and no retry before its time.

Plain and single-threaded: the queue holds the lock. A task stands in one place only: a lane (ready), the delayed heap
(waits for its retry), or aside (another task of its PO runs).
"""

import heapq
from collections import deque

from poqueue.ledger import Entry

PRIORITIES = range(1, 11)


class _Lane:
    """The ready tasks of one priority: new ones in order of arrival, and returned ones at their original rank."""

    __slots__ = ("fresh", "returned")

    def __init__(self) -> None:
        self.fresh: deque[Entry] = deque()
        self.returned: list[tuple[int, Entry]] = []

    def pop(self) -> Entry | None:
        """Take the task of the lowest rank."""
        if self.returned and (not self.fresh or self.returned[0][0] < self.fresh[0].rank):
            return heapq.heappop(self.returned)[1]
        return self.fresh.popleft() if self.fresh else None


class Schedule:
    """Holds every task that waits; hands out the best one that may run now."""

    def __init__(self, *, by_priority: bool) -> None:
        self._by_priority = by_priority
        self._lanes = [_Lane() for _ in PRIORITIES] if by_priority else [_Lane()]
        self._delayed: list[tuple[float, int, Entry]] = []
        self._running_pos: set[str] = set()
        self._aside: dict[str, list[tuple[int, Entry]]] = {}

    def add(self, entry: Entry) -> None:
        """A new task: ready, behind all others of its priority."""
        self._lane(entry).fresh.append(entry)

    def put_back(self, entry: Entry) -> None:
        """A task that may run at once, at its original rank."""
        heapq.heappush(self._lane(entry).returned, (entry.rank, entry))

    def delay(self, entry: Entry, due: float) -> None:
        """A task that must not run before `due`."""
        entry.ready = due
        heapq.heappush(self._delayed, (due, entry.rank, entry))

    def next_due(self) -> float | None:
        """When the next delayed task becomes ready."""
        return self._delayed[0][0] if self._delayed else None

    def latest_due(self) -> float | None:
        """When the last delayed task becomes ready; costs what is delayed."""
        return max((due for due, _, _ in self._delayed), default=None)

    def take(self, now: float) -> Entry | None:
        """The best task that may run now; its PO counts as running until `end`."""
        delayed = self._delayed
        while delayed and delayed[0][0] <= now:
            self.put_back(heapq.heappop(delayed)[2])
        running = self._running_pos
        for lane in self._lanes:
            while (entry := lane.pop()) is not None:
                if entry.po_number not in running:
                    running.add(entry.po_number)
                    return entry
                heapq.heappush(self._aside.setdefault(entry.po_number, []), (entry.rank, entry))
        return None

    def end(self, entry: Entry) -> bool:
        """The task runs no more; True if another one of its PO may now."""
        self._running_pos.discard(entry.po_number)
        if not self._aside:
            return False
        waiting = self._aside.pop(entry.po_number, ())
        for _, other in waiting:
            self.put_back(other)
        return bool(waiting)

    def clear(self) -> None:
        """Forget every task that waits; what runs is still remembered."""
        for lane in self._lanes:
            lane.fresh.clear()
            lane.returned.clear()
        self._delayed.clear()
        self._aside.clear()

    def _lane(self, entry: Entry) -> _Lane:
        return self._lanes[entry.priority - 1] if self._by_priority else self._lanes[0]
