"""Filling the queue beside the supervisor's loop: while the queue takes one lot of tasks, the next one is made and packed.

What is in a lot is in the queue once or not at all, whatever is lost on the way; the order of the tasks is kept.
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice

from poqueue import failpoint
from poqueue.client import CALL_TIMEOUT_S, PendingCall, QueueClient
from poqueue.errors import JournalError, PoqueueError, QueueFullError, ServiceError
from poqueue.hints import Any
from poqueue.ids import ids
from poqueue.packing import FrozenTask
from poqueue.payload import thaw
from poqueue.task import ProcessingTask
from workers.log import ShieldedLogger
from workers.queue_keeper import QueueKeeper

logger = ShieldedLogger(__name__)

FIRST_LOT = 20  # small: nobody works before it is there
ADD_AT_ONCE = 250  # a message that fits the caches of the processors on its way
ADD_BYTES_AT_ONCE = 16 * 1024 * 1024  # far below what one call may carry
LOTS_AHEAD = 8
GATHER_S = 0.02  # a lot takes a twentieth of this to make, unless what gives the tasks takes its time
ADD_AGAIN_S = 0.5
FULL_AGAIN_S = 0.005, 0.25  # there is room again as soon as workers take something, or it takes long
HEAR_S = 0.05  # an answer takes some milliseconds
Lot = list[tuple[Any, ...]]  # packed tasks
_ID, _PAYLOAD = map(FrozenTask._fields.index, ("task_id", "payload"))


class Feeder:
    """Adds tasks to the queue in lots, a step at a time; a FrozenTask as it is."""

    def __init__(self, keeper: QueueKeeper) -> None:
        self._keeper = keeper
        self._client: QueueClient | None = None  # of its own: its answer may be due while others call
        self._tasks: Iterator[ProcessingTask | FrozenTask] = iter(())
        self._has_all = True  # no task is to come
        self._count = 0  # of tasks that are not in the queue
        self._size = FIRST_LOT
        self._lots: deque[Lot] = deque()  # to be sent
        self._sent: Lot | None = None
        self._answer: PendingCall | None = None
        self._not_before = 0.0
        self._waits_for_count = False
        self._full_again_s = FULL_AGAIN_S[0]
        self.is_refused = False  # the journal cannot be written for now, or the queue is full

    def begin(self, tasks: Iterable[ProcessingTask | FrozenTask], count: int) -> None:
        """What is to be added as well, `count` tasks as far as is known, made a lot at a time; done already if there is none."""
        tasks = iter(tasks)
        if first := list(islice(tasks, 1)):
            self._tasks, self._has_all = chain(self._tasks, first, tasks), False
            self._count += count

    def make_ahead(self) -> None:
        """Make the first lots, as far as that needs no queue."""
        is_slow = False
        while not self._has_all and len(self._lots) < LOTS_AHEAD and not is_slow:
            tasks, is_last = self._next_tasks()
            if not all(isinstance(task, FrozenTask) for task in tasks):
                self._tasks = chain(tasks, self._tasks)
                return
            is_slow = len(tasks) < self._size
            self._note_made(self._packed(tasks), is_last)

    @property
    def is_done(self) -> bool:
        """Whether the queue has them all."""
        return self._has_all and not self._lots and self._sent is None

    def count_left(self, *, is_last: bool = False) -> int | None:
        """How many tasks are known that the queue does not have; it waits a moment for what is on its way. Errors as in turn.

        None while a lot is still on its way: the queue may count it already. No other lot is sent then before the next try,
        which waits for none.

        Args:
            is_last: there will be no other try: such a lot counts as what the queue does not have.
        """
        self._hear(0.0 if self._waits_for_count else HEAR_S)
        self._waits_for_count = self._sent is not None and not is_last
        if self._waits_for_count:
            return None
        return 0 if self.is_done else max(0, self._count)

    @property
    def unsent(self) -> int:
        """How many tasks are known that are neither in the queue nor on their way to it."""
        return max(0, self._count - len(self._sent or ()))

    @property
    def fileno(self) -> int | None:
        """Ready when there is something to do; None while nothing is under way."""
        return self._answer.fileno() if self._answer is not None else None

    @property
    def due(self) -> float | None:
        """When a lot is to be made, or sent that was refused, or held back to be counted."""
        return self._not_before if self._sent is None and not self.is_done else None

    def turn(self, wait_s: float = 0.0) -> bool:
        """One step: hear that a lot was taken, send the next one, make the one after it. False if there was nothing to do.

        Raises:
            ServiceError: the manager is lost, and could not be replaced.
            PoqueueError, ValueError: the queue refuses a task for good.
        """
        if self.is_done:
            return False
        has_heard = self._hear(wait_s)
        if self._sent is None and not self._waits_for_count and time.monotonic() >= self._not_before:
            if not self._lots:
                self._make()
                self._send()
                return True
            self._send()
        if len(self._lots) >= LOTS_AHEAD or self._has_all:
            return has_heard
        self._make()
        return True

    def finish(self, is_over: Callable[[], bool] = lambda: False) -> None:
        """Add the rest now, or as much of it as can be written down and finds room. Errors as in turn.

        Args:
            is_over: whether to leave it at that: who gives the tasks may take long, or never end.
        """
        self._waits_for_count = False
        if self.is_refused:  # it may be on its way again
            self._hear(CALL_TIMEOUT_S)
        while not self.is_done and not self.is_refused and not is_over():
            self.turn(wait_s=1.0)

    def give_up(self) -> list[dict[str, Any]]:
        """Add no more: the data of all that is not in the queue."""
        with contextlib.suppress(PoqueueError, ValueError):
            self.finish()
        lots = [self._sent] if self._sent is not None else []
        left = [thaw(task[_PAYLOAD]) for lot in [*lots, *self._lots] for task in lot]
        left += [thaw(task.payload) if isinstance(task, FrozenTask) else task.po_data for task in self._tasks]
        self._lots.clear()
        self._sent, self._answer, self._has_all = None, None, True
        return left

    def find_sent(self) -> None:
        """The manager was replaced: what was on its way to the old one is in the journal as a whole, or not at all."""
        if self._client is not None:
            self._client.close()
        self._client = self._answer = None
        if self._sent is None:
            return
        if self._keeper.queue.find_task(task_id=self._sent[0][_ID]) is None:
            self._take_back()
        else:
            self._note_added()

    # --- the steps

    def _hear(self, wait_s: float) -> bool:
        """Whether an answer was there."""
        answer = self._answer
        try:
            if answer is None or not answer.is_ready(wait_s):
                return False
            self._answer = None
            answer.result()
            failpoint.hit("supervisor.after_add")
            self._note_added()
            self.is_refused, self._full_again_s = False, FULL_AGAIN_S[0]
        except ServiceError as error:
            self._keeper.replace(error)  # which asks for find_sent
        except QueueFullError:
            self._take_back()
            self._halve_first()  # there may be room for a part of it, and never be room for more
            self.is_refused, self._not_before = True, time.monotonic() + self._full_again_s
            self._full_again_s = min(2.0 * self._full_again_s, FULL_AGAIN_S[1])
        except JournalError as error:
            self._take_back()
            if not self.is_refused:
                logger.error("the POs wait to be added: %s", error)
            self.is_refused, self._not_before = True, time.monotonic() + ADD_AGAIN_S
        except Exception:
            self._take_back()
            raise
        return True

    def _send(self) -> None:
        if not self._lots:
            return
        self._sent = self._lots.popleft()
        try:
            self._answer = self._own_client().begin("add_tasks", self._sent)
        except ServiceError as error:
            self._keeper.replace(error)
        except Exception:
            self._take_back()
            raise

    def _own_client(self) -> QueueClient:
        if self._client is None:
            self._client = self._keeper.service.client()
        return self._client

    def _note_added(self) -> None:
        if self._sent is not None:
            self._count -= len(self._sent)
            self._sent = None

    def _take_back(self) -> None:
        """What was sent is not in the queue: it goes again before all others."""
        if self._sent is not None:
            self._lots.appendleft(self._sent)
            self._sent = None

    def _halve_first(self) -> None:
        lot = self._lots.popleft()
        half = len(lot) // 2
        self._lots.extendleft(part for part in (lot[half:], lot[:half]) if part)

    def _make(self) -> None:
        tasks, is_last = self._next_tasks()
        while True:
            try:
                self._note_made(self._packed(tasks), is_last)
                return
            except ServiceError as error:
                self._keeper.replace(error)

    def _next_tasks(self) -> tuple[list[ProcessingTask | FrozenTask], bool]:
        """Those of the next lot, and whether no more are to come; fewer where they take long, for others wait meanwhile."""
        tasks, until = [], time.monotonic() + GATHER_S
        for task in islice(self._tasks, self._size):
            tasks.append(task)
            if time.monotonic() > until:
                return tasks, False
        return tasks, len(tasks) < self._size

    def _note_made(self, lot: Lot, is_last: bool) -> None:
        self._has_all = is_last
        self._size = ADD_AT_ONCE
        if lot:
            self._lots.extend(_parts(lot))

    def _packed(self, tasks: list[ProcessingTask | FrozenTask]) -> Lot:
        """Each with an id, by which find_sent knows whether the queue has it."""
        frozen: Lot = [tuple(task) for task in tasks if isinstance(task, FrozenTask)]
        lot = frozen if len(frozen) == len(tasks) else self._own_client().pack_tasks(tasks)
        return [(ids.new(), *task[1:]) if task[_ID] == "" else task for task in lot]


def _parts(lot: Lot) -> Iterator[Lot]:
    """As many as it takes for each to be small enough."""
    if len(lot) == 1 or sum(len(task[_PAYLOAD]) for task in lot) <= ADD_BYTES_AT_ONCE:
        yield lot
        return
    half = len(lot) // 2
    yield from _parts(lot[:half])
    yield from _parts(lot[half:])
