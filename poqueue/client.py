"""A TaskQueue that lives in another process, called as if it were here."""

import contextlib
import logging
import os
import pickle
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from multiprocessing import connection
from weakref import ref

from poqueue import wire
from poqueue.error_log import described
from poqueue.errors import CallTimeoutError, ManagerLostError, PoqueueError
from poqueue.events import SILENCE_S, UNSET, HandlerSet
from poqueue.hints import Any
from poqueue.packing import (
    FrozenTask,
    PackedEvents,
    PackedGrant,
    pack_reports,
    pack_task,
    unpack_events,
    unpack_grant,
    unpack_parts,
)
from poqueue.payload import freeze_result, thaw_task
from poqueue.task import (
    DEFAULT_PRIORITY,
    Event,
    Grant,
    PlainSuccess,
    ProcessingTask,
    Report,
    ReportParts,
    TaskRecord,
    TaskResult,
    TaskStatus,
)
from poqueue.wire import check_address, dial, raise_mapped, set_time_limit_of

logger = logging.getLogger(__name__)

CALL_TIMEOUT_S = 10.0  # above MAX_WAIT_S of the queue: a waiting call is no lost one
REPORT_TIMEOUT_S = 600.0
OVERDUE_S = 30.0  # so long after it was asked for, no answer will come
LOOK_S = 1.0  # at most so much of it passes between two looks: whoever looks may have been stopped, with all others
MIN_KEY_BYTES = 16
REOPEN_S = 0.1  # between two tries
EVENTS_AT_ONCE = 100  # to ask for more says that the handlers have been called: a run waits that long with its end
ASK_AGAIN_S = 5.0  # how often at least, while they are called: they may take long, and do not hang


class _Line:
    """One thread's line to the manager process; in one object, since each look into a `threading.local` takes its time."""

    __slots__ = ("held", "is_announced", "is_answer_due", "number", "pid", "stream")

    def __init__(self, pid: int) -> None:
        self.pid = pid  # of the process that it belongs to
        self.stream: wire.Stream | None = None
        self.held: ref[wire.Stream] | None = None
        self.number = 0  # of the last call
        self.is_announced = False  # the next one
        self.is_answer_due = False


class QueueClient:
    """The public methods of a TaskQueue that lives in another process; safe for threads, a connection each.

    Copies, errors and records are as in TaskQueue. Every call may also raise CallTimeoutError or ManagerLostError; the
    next call then begins with a new connection. Event handlers run here, in the client's process, on a thread of its own;
    what happens while a lost manager is replaced they are not told.

    Args:
        line: a connection that is open already, and is used first.
        as_json: whether the queue has a journal; it is asked if that is not known.
    """

    def __init__(
        self,
        address: str,
        key: bytes,
        line: "connection.Connection[Any, Any] | None" = None,
        as_json: bool | None = None,
    ) -> None:
        check_address(address)
        if not isinstance(key, bytes) or len(key) < MIN_KEY_BYTES:
            raise ValueError(f"the key must be at least {MIN_KEY_BYTES} bytes")
        self._address = address
        self._key = key
        self._local = threading.local()
        self._connections: set[ref[wire.Stream] | None] = set()  # a thread's goes with it
        self._handlers = HandlerSet()
        self._listener: threading.Thread | None = None
        self._acts_since: float | None = None  # handlers are called for what was read then
        self._is_closed = False
        self._lines = [line] if line is not None else []  # whichever thread takes it out has it
        self._as_json = as_json
        self._pid = os.getpid()

    def __repr__(self) -> str:
        return f"QueueClient({self._address!r})"

    def call(self, name: str, *args: Any, timeout_s: float = CALL_TIMEOUT_S, **kwargs: Any) -> Any:
        """Call a public method of the queue.

        Raises:
            CallTimeoutError: no answer within `timeout_s` seconds.
            ManagerLostError: the process is gone, or the connection broke.
        """
        pending = self.begin(name, *args, timeout_s=timeout_s, **kwargs)
        return pending.result()

    def begin(self, name: str, *args: Any, timeout_s: float = CALL_TIMEOUT_S, **kwargs: Any) -> "PendingCall":
        """Send a request and do not wait; one at a time for each thread. Errors as in call."""
        if self._is_closed:
            raise ManagerLostError("this client is closed")
        line = self._own_line()
        if line.is_answer_due:
            self._drop_connection()  # a call was broken off: its answer must not be taken for this one's
        stream = line.stream or self._connect(line)
        line.number = number = line.number + 1
        try:
            request = pickle.dumps((number, name, args, kwargs), 5)
        except Exception as error:  # whatever an argument's own __reduce__ raises; nothing was sent
            raise ValueError(f"invalid argument for {name}: it cannot be pickled ({error})") from None
        if len(request) > wire.MAX_REQUEST_BYTES:
            raise ValueError(
                f"invalid argument for {name}: it takes {len(request):,} bytes and is too large; "
                f"a call may carry {wire.MAX_REQUEST_BYTES:,}"
            )
        try:
            if timeout_s != CALL_TIMEOUT_S:
                set_time_limit_of(stream, timeout_s)
            line.is_answer_due = True
            line.is_announced = False
            stream.send(request)
        except BaseException as error:
            self._drop_connection()
            raise_mapped(name, error)
        return PendingCall(self, line, stream, number, name, timeout_s)

    def close(self) -> None:
        """Hang up; later calls raise ManagerLostError."""
        self._is_closed = True
        if self._pid != os.getpid():
            return  # a forked copy: the streams belong to the original
        for held in list(self._connections):
            self._connections.discard(held)
            conn = held() if held is not None else None
            if conn is None:
                continue
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(conn.fileno())) as plug:
                plug.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits for an answer
        while self._lines:
            self._lines.pop().close()
        self._drop_connection()

    def hang_up(self) -> None:
        """Let go of this thread's connection: its next call begins with a new one."""
        self._drop_connection()

    def is_acting(self) -> bool:
        """Whether handlers are at work, on what they were told of; one that hangs is not."""
        since = self._acts_since
        return since is not None and time.monotonic() - since < SILENCE_S

    def _own_line(self) -> "_Line":
        """This thread's; one that a fork has copied is left alone, for two would read one stream."""
        line: _Line | None = getattr(self._local, "line", None)
        if line is None or line.pid != os.getpid():
            line = self._local.line = _Line(os.getpid())
        return line

    def _connect(self, line: "_Line") -> wire.Stream:
        line.stream = stream = wire.Stream(self._take_line() or self._dial())
        line.held = held = ref(stream, self._connections.discard)
        self._connections.add(held)
        return stream

    def _take_line(self) -> "connection.Connection[Any, Any] | None":
        """The one that is open already; a forked copy leaves it to the original."""
        if self._pid != os.getpid():
            return None
        try:
            opened = self._lines.pop()
        except IndexError:
            return None
        try:
            set_time_limit_of(opened, CALL_TIMEOUT_S)
            is_over = bool(wire.wait_readable([opened.fileno()], 0.0))  # there is nothing yet to be told but this
        except BaseException as error:
            opened.close()
            raise_mapped("connect", error)
        if is_over:
            opened.close()
            return None
        return opened

    def _dial(self) -> "connection.Connection[Any, Any]":
        opened: connection.Connection[Any, Any] = dial(self._address, self._key, CALL_TIMEOUT_S)
        try:
            opened.send((None, "accept_connection", (threading.current_thread().name,), {}))
            opened.recv()
        except BaseException as error:  # also a Ctrl-C: only a connection that is fully open is kept
            opened.close()
            raise_mapped("connect", error)
        return opened

    def _drop_connection(self) -> None:
        line = self._own_line()
        stream, line.stream = line.stream, None
        self._connections.discard(line.held)
        line.is_announced = line.is_answer_due = False
        if stream is not None:
            stream.close()

    # --- the queue's public methods, in its order; what they do and raise stands there

    def add_task(self, task: ProcessingTask, priority: int = DEFAULT_PRIORITY) -> str:
        return self.add_tasks([task], priority)[0]

    def add_tasks(self, tasks: Iterable[ProcessingTask], priority: int = DEFAULT_PRIORITY) -> list[str]:
        self._announce()
        ids: list[str] = self.call("add_tasks", self.pack_tasks(tasks), priority)
        return ids

    def _announce(self) -> None:
        """The manager process, and a worker that waits, wake up while tasks are packed (poqueue.hand_off); it may be in vain."""
        line = self._own_line()
        stream = line.stream  # which a signal handler may take away
        if stream is not None and not line.is_announced and not line.is_answer_due:
            line.is_announced = True
            stream.announce_request()

    def pack_tasks(self, tasks: Iterable[ProcessingTask | FrozenTask]) -> list[tuple[Any, ...]]:
        """Tasks in the form in which `begin("add_tasks", ...)` sends them, their data as JSON if the queue needs that."""
        as_json = self._wants_json()
        return [pack_task(task, as_json) for task in tasks]

    def get_next_task(self, worker_id: str) -> ProcessingTask | None:
        return _thaw_or_none(self.call("get_next_task", worker_id))

    def complete_task(self, task_id: str, worker_id: str, result: TaskResult) -> None:
        self.call("complete_task", task_id, worker_id, freeze_result(result, self._wants_json()))

    def retry_task(self, task_id: str, error_details: dict[str, Any]) -> bool:
        return bool(self.call("retry_task", task_id, described(error_details)))

    def exchange(
        self,
        worker_id: str,
        reports: Sequence[Report | PlainSuccess] = (),
        limit: int = 1,
        wait_s: float = 0.0,
        turn: int = 0,
        keeps: Collection[int] = (),
    ) -> Grant:
        return unpack_grant(self.exchange_packed(worker_id, reports, limit, wait_s, turn, keeps))

    def exchange_packed(
        self,
        worker_id: str,
        reports: Sequence[Report | PlainSuccess] = (),
        limit: int = 1,
        wait_s: float = 0.0,
        turn: int = 0,
        keeps: Collection[int] = (),
    ) -> PackedGrant:
        grant: PackedGrant = self.call("exchange_packed", worker_id, pack_reports(reports), limit, wait_s, turn, keeps)
        return grant

    def begin_exchange(
        self, worker_id: str, reports: Sequence[Report | PlainSuccess], limit: int, turn: int, keeps: Collection[int]
    ) -> "PendingCall":
        """An exchange that does not wait: its answer, a PackedGrant, can be fetched while there is other work."""
        return self.begin("exchange_packed", worker_id, pack_reports(reports), limit, 0.0, turn, keeps)

    def retire_worker(self, worker_id: str) -> None:
        self.call("retire_worker", worker_id)

    def release_worker(self, worker_id: str) -> list[str]:
        ids: list[str] = self.call("release_worker", worker_id)
        return ids

    def take_back(self, worker_id: str, but: int = 0) -> list[str]:
        ids: list[str] = self.call("take_back", worker_id, but)
        return ids

    def interrupt_leases(self, begun: Collection[int], reason: str, *, is_crash: bool, all_others: bool = False) -> int:
        return int(self.call("interrupt_leases", begun, reason, is_crash=is_crash, all_others=all_others))

    def requeue_failed(self, task_ids: Iterable[str] | None = None) -> int:
        return int(self.call("requeue_failed", None if task_ids is None else list(task_ids)))

    def drop_tasks(self, task_ids: Iterable[str]) -> int:
        return int(self.call("drop_tasks", list(task_ids)))

    def cancel_task(self, task_id: str) -> str:
        return str(self.call("cancel_task", task_id))

    def halt_after(self, failed: int | None = None, succeeded: int | None = None, done: int | None = None) -> None:
        self.call("halt_after", failed, succeeded, done)

    def drain_queue(self, *, is_over: bool = False) -> None:
        self.call("drain_queue", is_over=is_over)

    def drain_when_done(self, reader: int, seen: int) -> str:
        return str(self.call("drain_when_done", reader, seen))

    def get_leases(self, *, brings_data: bool = True) -> dict[int, TaskRecord]:
        leases: dict[int, TaskRecord] = self.call("get_leases", brings_data=brings_data)
        return leases

    def get_finished(self, start: int = 0, limit: int = 1000) -> tuple[list[TaskRecord], int]:
        found: tuple[list[TaskRecord], int] = self.call("get_finished", start, limit, timeout_s=REPORT_TIMEOUT_S)
        return found

    def get_queue_status(self) -> dict[str, Any]:
        return dict(self.call("get_queue_status"))

    def pause_queue(self) -> None:
        self.call("pause_queue")

    def resume_queue(self) -> None:
        self.call("resume_queue")

    def hold_queue(self, reason: str) -> None:
        self.call("hold_queue", reason)

    def clear_queue(self, preserve_processing: bool = True) -> int:
        return int(self.call("clear_queue", preserve_processing))

    def get_tasks_by_status(self, status: TaskStatus) -> list[ProcessingTask]:
        return [thaw_task(record) for record in self.call("get_tasks_by_status", status, timeout_s=REPORT_TIMEOUT_S)]

    def get_tasks_by_worker(self, worker_id: str) -> list[ProcessingTask]:
        return [thaw_task(record) for record in self.call("get_tasks_by_worker", worker_id, timeout_s=REPORT_TIMEOUT_S)]

    def find_task(self, po_number: str | int | None = None, task_id: str | None = None) -> ProcessingTask | None:
        return _thaw_or_none(self.call("find_task", po_number, task_id))

    def get_performance_metrics(self) -> dict[str, Any]:
        return dict(self.call("get_performance_metrics"))

    def get_error_summary(self) -> dict[str, Any]:
        return dict(self.call("get_error_summary"))

    def export_queue_report(self, format: str = "json", include_completed: bool = True) -> dict[str, Any] | str:
        from poqueue import report as reports_of  # only here: every worker process imports this file

        reports_of.check_format(format)
        return reports_of.build(self.get_report_parts(include_completed), format)

    def get_report_parts(self, include_completed: bool = True) -> ReportParts:
        return unpack_parts(self.call("get_report_parts", include_completed, timeout_s=REPORT_TIMEOUT_S))

    def update_configuration(
        self,
        max_retries: int | None = None,
        retry_delay: float | None = None,
        task_timeout: float | None = None,
        queue_size_limit: int | None = None,
    ) -> None:
        self.call("update_configuration", max_retries, retry_delay, task_timeout, queue_size_limit)

    def reconfigure_tasks(
        self, max_retries: int | None = None, retry_delay: float | None = None, task_timeout: float | None = None
    ) -> None:
        self.call("reconfigure_tasks", max_retries, retry_delay, task_timeout)

    def optimize_for_workload(
        self, expected_task_count: int, average_task_duration: float, worker_count: int
    ) -> dict[str, Any]:
        return dict(self.call("optimize_for_workload", expected_task_count, average_task_duration, worker_count))

    def set_event_handlers(
        self,
        on_task_complete: Callable[[ProcessingTask], None] | None = UNSET,
        on_task_failed: Callable[[ProcessingTask, str], None] | None = UNSET,
        on_queue_empty: Callable[[], None] | None = UNSET,
        on_queue_full: Callable[[], None] | None = UNSET,
    ) -> None:
        self._handlers.update(on_task_complete, on_task_failed, on_queue_empty, on_queue_full)
        if not self._handlers:
            self._listener = None  # it ends
        elif self._listener is None:
            opened = self.open_events()  # from here on nothing is missed
            self._listener = threading.Thread(target=self._listen, args=opened, daemon=True, name="poqueue-events")
            self._listener.start()

    def open_events(self, *, brings_data: bool = True) -> tuple[int, int]:
        opened: tuple[int, int] = self.call("open_events", brings_data=brings_data)
        return opened

    def read_events(
        self, reader: int, after: int, limit: int = 1000, wait_s: float = 0.0, gather_s: float = 0.0
    ) -> list[Event]:
        return unpack_events(self.read_events_packed(reader, after, limit, wait_s, gather_s))

    def read_events_packed(
        self, reader: int, after: int, limit: int = 1000, wait_s: float = 0.0, gather_s: float = 0.0
    ) -> PackedEvents:
        events: PackedEvents = self.call("read_events_packed", reader, after, limit, wait_s, gather_s)
        return events

    def close_events(self, reader: int) -> None:
        self.call("close_events", reader)

    def post_notice(self, text: str) -> None:
        self.call("post_notice", text)

    def set_view(self, view: Any) -> None:
        self.call("set_view", view)

    def get_view(self) -> Any:
        return self.call("get_view")

    def has_journal(self) -> bool:
        return bool(self.call("has_journal"))

    def copy_journal(self, path: str) -> None:
        self.call("copy_journal", path, timeout_s=REPORT_TIMEOUT_S)

    def close_queue(self) -> None:
        self.call("close_queue")

    def _wants_json(self) -> bool:
        if self._as_json is None:
            self._as_json = self.has_journal()
        return self._as_json

    def _is_listener(self) -> bool:
        return self._listener is threading.current_thread() and not self._is_closed

    def _listen(self, reader: int, after: int) -> None:
        while self._is_listener():
            try:
                events = self.read_events(reader, after, EVENTS_AT_ONCE, wait_s=2.0)
            except PoqueueError as error:
                reader, after = self._open_events_again(error)
                continue
            self._acts_since = begun = time.monotonic()
            for event in events:
                if not self._is_listener():
                    break
                if event.sequence > after + 1:
                    logger.warning("%d events were dropped before they were read", event.sequence - after - 1)
                after = event.sequence
                self._handlers.call(event.kind, event.task, event.error)
                if time.monotonic() - begun >= ASK_AGAIN_S:
                    break  # the rest comes again
            self._acts_since = None
        with contextlib.suppress(PoqueueError):  # once a connection is gone, the manager does so itself
            self.close_events(reader)

    def _open_events_again(self, error: PoqueueError) -> tuple[int, int]:
        """A lost manager may be replaced, however long that takes; what happens in between is not told."""
        if self._is_listener():
            logger.warning("no events are heard until the queue answers again: %s", error)
        while self._is_listener():
            with contextlib.suppress(PoqueueError):
                return self.open_events()
            time.sleep(REOPEN_S)
        return 0, 0


class PendingCall:
    """A request on its way; `fileno` lets a loop wait for its answer beside other things.

    Of an exchange that waits for work it may be ready when the answer is only announced, which `result` then waits for.
    """

    _waited_s = 0.0
    _looked: float | None = None  # when somebody last looked in vain

    def __init__(
        self, client: QueueClient, line: _Line, stream: wire.Stream, number: int, name: str, timeout_s: float
    ) -> None:
        self._client = client
        self._line = line
        self._stream = stream
        self._number = number
        self._name = name
        self._timeout_s = timeout_s

    def fileno(self) -> int:
        return int(self._stream.fileno())

    def is_ready(self, at_most_s: float = 0.0) -> bool:
        """Whether the answer is there, within the time; for whoever looks again and again.

        Raises:
            CallTimeoutError: it is long overdue.
        """
        if wire.wait_readable([self.fileno()], at_most_s):
            return True
        now = time.monotonic()
        self._waited_s += min(now - self._looked, LOOK_S) if self._looked is not None else 0.0
        self._looked = now
        if self._waited_s >= OVERDUE_S:
            raise CallTimeoutError(f"{self._name}: the manager process did not answer in time")
        return False

    def result(self) -> Any:
        """Wait for the answer; errors as in QueueClient.call."""
        try:
            number, is_value, value = pickle.loads(self._stream.receive())
            if number is not None and number != self._number:
                raise ManagerLostError(f"{self._name}: the answer belongs to another call")
            if self._timeout_s != CALL_TIMEOUT_S:
                set_time_limit_of(self._stream, CALL_TIMEOUT_S)
            self._line.is_answer_due = False
        except BaseException as error:  # also a Ctrl-C: the answer would be taken for the next call's
            self._client._drop_connection()
            raise_mapped(self._name, error)
        if is_value:
            return value
        raise value


def connect(address: str, key: bytes, line: "connection.Connection[Any, Any] | None" = None) -> QueueClient:
    """A client of the service at an address, for whoever has the key.

    Args:
        line: a connection to it that is open already.

    Raises:
        ManagerLostError: nothing listens there.
    """
    client = QueueClient(address, key, line)
    client._connect(client._own_line())
    return client


def _thaw_or_none(record: TaskRecord | None) -> ProcessingTask | None:
    return thaw_task(record) if record is not None else None
