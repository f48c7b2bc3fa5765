"""The calls that wait for something to lease, and how new work gets to them.

A worker's call waits in the manager, on a thread of its own. Were that thread woken to lease and to answer, a PO would wait
for two threads in turn. So whoever adds tasks leases them to the first in the line (TaskQueue._hand_out) and answers in
their place; their own threads wake up after that, and find that there is nothing left to say: once who adds has its answer
too (Line.call_back), so that they do not take the worker's core for a moment. To wake a worker that has slept for a while
takes about as long as to add a PO: it is announced before, so that both is done at the same time. Likewise a client announces
what it is about to add, so that all three wake up while it still packs.
Everything here is done with the queue's lock held.
"""

import contextlib
import logging
import threading
from collections import deque

from poqueue.hints import Any, Protocol
from poqueue.packing import PackedGrant

logger = logging.getLogger(__name__)

TOLD: PackedGrant = ([], False, 0)  # itself, not its equals: the worker knows its grant already


class Offer(Protocol):
    """How another thread reaches the other end of a call that waits. Nothing here waits."""

    def tell(self, grant: PackedGrant) -> bool:
        """Give the answer at once, or not at all: whether it did."""

    def announce(self) -> None:
        """Say that there will be one."""


class Taker:
    """A call that waits; with an `offer` another thread may not only lease to it but also answer."""

    __slots__ = ("bell", "grant", "is_announced", "is_in_line", "is_told", "limit", "offer", "turn", "worker_id")
    bell: threading.Condition

    def __init__(self, worker_id: str, limit: int, turn: int, offer: Offer | None) -> None:
        self.worker_id = worker_id
        self.limit = limit
        self.turn = turn
        self.offer = offer
        self.is_in_line = self.is_announced = False
        self.grant: PackedGrant | None = None  # what it has got,
        self.is_told = False  # and whether its worker knows; else its own thread is to say so

    def tell(self, grant: PackedGrant) -> None:
        """Give it this, which is leased to its worker already; its own thread is still to be called."""
        self.grant = grant
        try:
            self.is_told = self.offer is not None and self.offer.tell(grant)
        except Exception as error:  # whatever is wrong with its connection, its own thread will meet it
            logger.debug("a worker cannot be told by another thread: %r", error)

    def announce(self) -> None:
        """Have its worker wake up; once, since it may be in vain."""
        if self.offer is not None and not self.is_announced:
            self.is_announced = True
            self.offer.announce()


class Line:
    """Those who wait, the longest first; who is called leaves it, looks for itself, and stands behind all others again."""

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self.takers: deque[Taker] = deque()
        self.told: list[Taker] = []  # out of the line, their threads not called yet

    def __len__(self) -> int:
        return len(self.takers)

    def wait(self, taker: Taker, at_most_s: float) -> None:
        """Stand in line until called, or told, or for so long."""
        taker.bell = threading.Condition(self._lock)
        self.takers.append(taker)
        taker.is_in_line = True
        try:
            taker.bell.wait(at_most_s)
        finally:
            if taker.is_in_line:
                self.takers.remove(taker)
                taker.is_in_line = False

    def tell(self, taker: Taker, grant: PackedGrant) -> None:
        """Give one that was taken out what is leased to its worker; its thread is called if it has to say so."""
        taker.tell(grant)
        if taker.is_told:
            self.told.append(taker)
        else:
            taker.bell.notify()

    def call_back(self) -> None:
        """Call the threads of those who were told: each reads its worker's next request."""
        with contextlib.suppress(IndexError):  # a signal handler, which adds as well, has called the rest
            while self.told:
                self.told.pop().bell.notify()

    def announce(self) -> None:
        """Something will come for the first one."""
        try:
            first = self.takers[0]
        except IndexError:  # a look before might be out of date: a signal handler adds as well
            return
        first.announce()

    def pop(self) -> Taker | None:
        """Take the first one out, if there is one: a signal handler may have called all since a look before."""
        try:
            taker = self.takers.popleft()
        except IndexError:
            return None
        taker.is_in_line = False
        return taker

    def put_back(self, taker: Taker) -> None:
        """It waits on, as the first."""
        self.takers.appendleft(taker)
        taker.is_in_line = True

    def notify(self, count: int = 1) -> None:
        """Call so many, if there are."""
        for _ in range(min(count, len(self.takers))):
            if (taker := self.pop()) is None:
                return
            taker.bell.notify()

    def notify_all(self) -> None:
        """Call everybody."""
        self.notify(len(self.takers))
