"""The supervisor's hold on the queue: calls that outlive the manager process, and the events it tells.

A manager that is gone, or that does not answer for the time of several calls, is replaced from the journal, at the same
address and with the same key: workers and clients just connect again. Without a journal its end is the end of the run.
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable
from functools import partial

from poqueue import failpoint
from poqueue.client import PendingCall, QueueClient
from poqueue.errors import (
    CallTimeoutError,
    JournalError,
    ManagerCannotStartError,
    ManagerLostError,
    QueueError,
    ServiceError,
)
from poqueue.hints import Any
from poqueue.packing import PackedEvents, last_number, pack_reports
from poqueue.parent import has_ended
from poqueue.service import QueueService
from poqueue.task import Report
from workers import process_control as control
from workers.log import ShieldedLogger

logger = ShieldedLogger(__name__)

OWN_CLIENTS = 3  # one calls, one reads events, and the feeder has one
EVENTS_AT_ONCE = 250  # a message that fits the caches of the processors on its way
EVENTS_WAIT_S = 5.0
EVENTS_GATHER_S = 0.05  # ends of attempts are told so long after the last ones, after a longer silence at once;
EVENTS_DENSE_S = 0.2  # when they come densely, nobody waits for a single one:
EVENTS_DENSE = 50  # as many within EVENTS_GATHER_S
MAX_TIMEOUTS = 2  # calls in a row without an answer, each of CALL_TIMEOUT_S
MAX_REPLACEMENTS = 5
REPLACEMENT_SPAN_S = 60.0
NO_ROOM_S = 60.0
NO_ROOM_AGAIN_S = 0.5
REPLACED = "the manager process was replaced"


class QueueKeeper:
    """Starts the service, calls the queue, reads its events, and replaces a lost manager.

    Args:
        service: not started yet.
        on_replaced: called after each replacement, to tell the new queue what the journal does not know; until it calls
            hold_queue, no task starts.
        on_missed: called after events were missed, to hear what they told from the queue itself.
        brings_data: whether events of completed tasks bring the PO's data.
    """

    def __init__(
        self,
        service: QueueService,
        on_replaced: Callable[[], None],
        on_missed: Callable[[], None],
        *,
        brings_data: bool,
    ) -> None:
        self.service = service
        self._brings_data = brings_data
        self._on_replaced, self._on_missed = on_replaced, on_missed
        self._has_missed = False  # events, and nobody has heard yet what they told
        self._replaced_at: deque[float] = deque(maxlen=MAX_REPLACEMENTS)
        self._pending: PendingCall | None = None
        self._in_a_row = 0  # how many managers were lost since the last one that served
        self._no_room_since: float | None = None
        self._reader = 0
        self._last_event = 0
        self._gather_s = EVENTS_GATHER_S

    def open(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Start the manager, and another one if it is lost on the way. Arguments and errors as in QueueService.start."""
        start: Callable[[], None] = partial(self.service.start, meanwhile)
        while True:
            try:
                with control.quiet_start():
                    start()
                self.queue = self.service.client()
                self._open_events()
                self._in_a_row = 0
                return
            except ServiceError as error:
                self._guard_replacements(error)
                start = self.service.replace

    def close(self) -> None:
        """End the manager; harmless when repeated."""
        self.service.stop()

    def ask(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call the queue, as often as it takes. The call must be one that may be repeated.

        Raises:
            ServiceError: the manager is lost and cannot be replaced.
        """
        return self._persist(lambda: self.queue.call(name, *args, **kwargs))

    def report_for(self, worker_id: str, reports: list[Report]) -> None:
        """Tell what a worker has not told yet; what the queue has taken already changes nothing. Errors as in ask."""
        if not reports:
            return
        try:
            self._tell(worker_id, reports)
        except ValueError:  # for one of them, and so it has taken none
            for report in reports:
                self._tell_singly(worker_id, report)

    def _tell_singly(self, worker_id: str, report: Report) -> None:
        """What the queue refuses of a PO's report is a failed attempt at that PO, and nobody else's matter."""
        try:
            self._tell(worker_id, [report])
        except ValueError as error:
            details = {"error_type": "ReportRefused", "message": str(error), "worker_id": worker_id, "seconds": 0.0}
            self._tell(worker_id, [Report(report.task_id, report.token, 0.0, error=details)])

    def _tell(self, worker_id: str, reports: list[Report]) -> None:
        self.ask("exchange_packed", worker_id, pack_reports(reports), 0)

    def _persist(self, call: Callable[[], Any]) -> Any:
        timeouts = 0
        while True:
            try:
                return call()
            except ServiceError as error:
                timeouts += isinstance(error, CallTimeoutError)
                if not isinstance(error, CallTimeoutError) or timeouts >= MAX_TIMEOUTS:
                    self.replace(error)

    def drain_when_done(self) -> str:
        """Have the queue drain if there is nothing left to do and to tell; as TaskQueue.drain_when_done. Errors as in ask."""
        if self._has_missed:
            return "unread"
        return str(self._persist(self._drain_now))

    def _drain_now(self) -> Any:
        if self._replaced_at and self.queue.is_acting():  # on what a lost manager told it, perhaps
            return "unheard"
        return self.queue.call("drain_when_done", self._reader, self._last_event)

    # --- events

    @property
    def fileno(self) -> int | None:
        """Ready when events have come; None while nobody was asked for them."""
        return self._pending.fileno() if self._pending is not None else None

    def take_events(self) -> PackedEvents:
        """What the queue has told since the last call, without waiting for it; it gathers the next ones meanwhile."""
        try:
            if self._pending is None:
                self._pending = self._begin_reading()
            if not self._pending.is_ready():
                self._check_alive()
                self._tell_missed()
                return []
            pending, self._pending = self._pending, None
            before, events = self._last_event, self._noted(pending.result())
        except QueueError as error:
            self._listen_again(error)
            return []
        except ServiceError as error:
            self.replace(error)
            return []
        self._gather_s = EVENTS_DENSE_S if self._last_event - before >= EVENTS_DENSE else EVENTS_GATHER_S
        with contextlib.suppress(ServiceError):  # these are not lost with it: the next call sees to that
            self._pending = self._begin_reading()
        return events

    def _begin_reading(self) -> PendingCall:
        return self._events_client.begin(
            "read_events_packed", self._reader, self._last_event, EVENTS_AT_ONCE, EVENTS_WAIT_S, self._gather_s
        )

    def take_last_events(self) -> PackedEvents:
        """What is left to be told, at the end of a run; an empty list says that it is all."""
        if self._pending is not None:
            self._pending = None  # a call that still waits for news is given up
            self._events_client.close()
        while True:
            try:
                events = self._noted(self._persist(self._read_now))
            except QueueError as error:
                self._listen_again(error)
                continue
            if not events:
                self._persist(self._tell_missed)
            return events

    def _read_now(self) -> Any:
        """Of the manager in use: another one counts its events anew."""
        return self.queue.call("read_events_packed", self._reader, self._last_event, EVENTS_AT_ONCE)

    def _listen_again(self, error: QueueError) -> None:
        """The queue has closed this reader, whose connection was away for long: what it missed is told as by another queue."""
        logger.warning("events were missed (%s)", error)
        try:
            self._events_client.close()
            self._open_events()
            self._on_missed()
        except ServiceError as lost:
            self.replace(lost)

    def _tell_missed(self) -> None:
        """Once what was left of the events has been handed on: nobody is told by them of an end that he knows already."""
        if not self._has_missed:
            return
        reader, _ = self.queue.open_events(brings_data=False)  # it is told again what is to be cancelled, and so are we
        self.queue.close_events(reader)
        self._on_missed()
        self._has_missed = False

    def _check_alive(self) -> None:
        if has_ended(self.service.process):
            raise ManagerLostError("the manager process has ended")

    def _noted(self, events: PackedEvents) -> PackedEvents:
        if events:
            missed = events[0][0] - self._last_event - 1  # within one answer there are no gaps
            if missed > 0:
                logger.warning("%d events were missed: what they told is asked for", missed)
                self._has_missed = True
            self._last_event = last_number(events)
        return events

    def _open_events(self) -> None:
        self._events_client: QueueClient = self.service.client()
        self._pending, self._has_missed = None, False
        self._reader, self._last_event = self._events_client.open_events(brings_data=self._brings_data)

    # --- a lost manager

    def replace(self, error: ServiceError) -> None:
        """Start another manager from the journal.

        Raises:
            ServiceError: there is no journal, or managers end again and again.
        """
        while True:
            self._guard_replacements(error)
            failpoint.hit("supervisor.before_replace")
            try:
                self._events_client.close()
                with control.quiet_start():
                    self.service.replace(hold=REPLACED)
                self.queue.hang_up()  # else its first call would find the old manager's end, and take it for this one's
                failpoint.hit("supervisor.after_replace")
                self._open_events()
                self._on_replaced()
                self._in_a_row, self._no_room_since = 0, None
                return
            except (JournalError, OSError) as fault:
                self._wait_for_room(fault)
            except ServiceError as again:
                if not self.service.has_journal:
                    raise
                error = again

    def _wait_for_room(self, fault: Exception) -> None:
        """The journal cannot be opened again, or nothing be written beside it: the disk may be full for a while."""
        now = time.monotonic()
        if self._no_room_since is None:
            self._no_room_since = now
            logger.error("the manager process cannot be replaced for now: %s", fault)
        if now - self._no_room_since > NO_ROOM_S:
            raise fault
        self._replaced_at.pop()  # it was not lost again
        self._in_a_row -= 1
        time.sleep(NO_ROOM_AGAIN_S)

    def _guard_replacements(self, error: ServiceError) -> None:
        now = time.monotonic()
        if not self.service.has_journal or isinstance(error, ManagerCannotStartError):
            raise error
        is_full = len(self._replaced_at) == MAX_REPLACEMENTS
        if is_full and (now - self._replaced_at[0] < REPLACEMENT_SPAN_S or self._in_a_row == MAX_REPLACEMENTS):
            raise ManagerLostError(
                f"the manager process was lost {MAX_REPLACEMENTS} times within {now - self._replaced_at[0]:.0f} s, "
                f"last: {error}"
            )
        self._replaced_at.append(now)
        self._in_a_row += 1
        logger.warning("the manager process is lost (%s): starting another one from the journal", error)
