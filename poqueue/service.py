"""The queue in a process of its own, behind one AF_UNIX socket: poqueue's only use of multiprocessing.

    QueueService (owner) ──starts──► manager process: TaskQueue + QueueServer (a multiprocessing.managers.Server)
    QueueClient  (anyone with the address and the key) ──socket──► one thread a connection ──► public methods of TaskQueue

What the standard manager leaves open is closed here: calls have a time limit, a connection whose state is unknown is never
used again, another user is refused even with the key, silent clients are dropped, a method's error of any kind comes back
as an error, and payloads and results cross the manager as bytes that it does not open.
"""

import contextlib
import logging
import os
import pickle
import secrets
import signal
import socket
import stat
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from multiprocessing import connection, get_context
from multiprocessing.managers import BaseManager, Server
from multiprocessing.managers import State as ManagerState
from pathlib import Path
from typing import Any

from poqueue.errors import CallTimeoutError, ManagerLostError, PoqueueError, QueueError
from poqueue.events import HandlerSet
from poqueue.payload import freeze_po, freeze_result, thaw_task
from poqueue.task import Event, Grant, ProcessingTask, Report, TaskRecord, TaskResult, TaskStatus
from poqueue.task_queue import DEFAULT_PRIORITY, TaskQueue

logger = logging.getLogger(__name__)

QUEUE_ID = "queue"
CALL_TIMEOUT_S = 10.0  # above MAX_WAIT_S of the queue: a waiting call is no lost one
REPORT_TIMEOUT_S = 600.0
AUTH_TIMEOUT_S = 5.0
MAX_REQUEST_BYTES = 256 * 1024 * 1024
MAX_CONNECTIONS = 1100
MAX_ADDRESS_BYTES = 100
MIN_KEY_BYTES = 16
METHODS = tuple(name for name in vars(TaskQueue) if not name.startswith("_"))


# ---------------------------------------------------------------------- in the manager process


class QueueServer(Server):
    """Serves one queue: checks who connects, and answers every request, whatever happens inside."""

    public = ("accept_connection", "shutdown", "dummy")

    def __init__(self, registry: Any, address: Any, authkey: bytes, serializer: str) -> None:
        super().__init__(registry, address, authkey, serializer)
        self.id_to_obj[QUEUE_ID] = (_hosted_queue, frozenset(METHODS), {})
        self._places = threading.BoundedSemaphore(MAX_CONNECTIONS)

    def accepter(self) -> None:
        """Accept connections of this user, up to a limit; out of descriptors it waits instead of spinning."""
        listening = self.listener._listener._socket
        while True:
            try:
                accepted, _ = listening.accept()
            except OSError:
                time.sleep(0.05)
                continue
            if _peer_uid(accepted) != os.getuid() or not self._places.acquire(blocking=False):
                accepted.close()
                continue
            threading.Thread(target=self._serve_connection, args=(accepted,), daemon=True).start()

    def _serve_connection(self, accepted: socket.socket) -> None:
        _set_time_limit(accepted, AUTH_TIMEOUT_S)
        conn = connection.Connection(accepted.detach())
        try:
            connection.deliver_challenge(conn, self.authkey)
            connection.answer_challenge(conn, self.authkey)
            _, name, args, kwargs = conn.recv()
            if name not in self.public:
                raise PermissionError(name)
            if name == "accept_connection":
                conn.send(("#RETURN", None))
                _lift_time_limit(conn)
                self.serve_client(conn)
            else:
                getattr(self, name)(conn, *args, **kwargs)
        except Exception as error:  # a client that breaks off, lies or is silent harms only its own connection
            logger.debug("connection refused or lost: %r", error)
        finally:
            conn.close()
            self._places.release()

    def serve_client(self, conn: Any) -> None:
        """Answer one client's requests until it hangs up."""
        queue = self.id_to_obj[QUEUE_ID][0]
        while True:
            try:
                request = conn.recv_bytes(MAX_REQUEST_BYTES)
            except (EOFError, OSError):
                return
            conn.send_bytes(_answer(queue, request))


def _answer(queue: TaskQueue, request: bytes) -> bytes:
    try:
        number, name, args, kwargs = pickle.loads(request)
    except BaseException as error:  # arguments may raise anything while they are opened
        return pickle.dumps((None, False, QueueError(f"request cannot be read: {error!r}")), 5)
    try:
        if name not in METHODS:
            raise QueueError(f"the queue has no public method {name!r}")
        return pickle.dumps((number, True, getattr(queue, name)(*args, **kwargs)), 5)
    except (PoqueueError, ValueError, TypeError) as error:
        return pickle.dumps((number, False, type(error)(str(error))), 5)
    except BaseException as error:  # also SystemExit: it would end this thread and look like a lost manager
        logger.exception("%s failed inside the queue", name)
        return pickle.dumps((number, False, QueueError(f"{name}: {type(error).__name__}: {error}")), 5)


_hosted_queue: TaskQueue | None = None


def _as_record(record: TaskRecord) -> Any:
    return record


def _host_queue(
    settings: dict[str, Any], owner_pid: int, address: str, log_path: str | None, on_orphan: Callable[[], None] | None
) -> None:
    """Runs first in the manager process: its signals, its queue, and its end should the owner die."""
    global _hosted_queue
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP):
        signal.signal(number, signal.SIG_IGN)  # it serves until its owner says or dies
    with contextlib.suppress(OSError):
        os.setsid()  # a kill of the terminal's whole group must not take the queue along
    os.umask(0o077)
    if log_path is not None:
        logging.basicConfig(filename=log_path, level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", force=True)
    _hosted_queue = TaskQueue(**settings, open_task=_as_record)
    threading.Thread(target=_end_with_owner, args=(owner_pid, address, on_orphan), daemon=True).start()


def _end_with_owner(owner_pid: int, address: str, on_orphan: Callable[[], None] | None) -> None:
    """Leave once the owner is gone, after the clean-up it asked for."""
    watch = os.pidfd_open(owner_pid) if hasattr(os, "pidfd_open") and _is_alive(owner_pid) else None
    if watch is not None:
        connection.wait([watch])
    else:
        while _is_alive(owner_pid):
            time.sleep(0.2)
    try:
        if on_orphan is not None:
            on_orphan()
    finally:
        with contextlib.suppress(OSError):
            os.unlink(address)
            os.rmdir(os.path.dirname(address))  # only if it is ours alone, and so empty
        os._exit(0)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


class _Manager(BaseManager):
    """The standard manager with our server; private names are pinned by tests/unit/test_service.py."""

    _Server = QueueServer


# ---------------------------------------------------------------------- the owner


class QueueService:
    """Starts the manager process, and ends it.

    Args:
        start_method: "spawn", "forkserver" or "fork".
        directory: where the socket goes: a private directory of ours, made when left out.
        log_path: file for the manager's own log lines; None leaves its logging alone.
        on_orphan: importable function that the manager calls when its owner has died, before it ends.
        settings: keyword arguments of TaskQueue.
    """

    def __init__(
        self,
        *,
        start_method: str = "spawn",
        directory: Path | None = None,
        log_path: Path | None = None,
        on_orphan: Callable[[], None] | None = None,
        **settings: Any,
    ) -> None:
        TaskQueue(**settings)  # a wrong setting is told here, not by a process that fails to start
        self._settings = settings
        self._start_method = start_method
        self._log_path = str(log_path) if log_path is not None else None
        self._on_orphan = on_orphan
        self._directory = directory
        self._made_directory: str | None = None
        self.key = secrets.token_bytes(32)
        self.address = ""
        self._manager: _Manager | None = None
        self._clients: list[QueueClient] = []

    def __enter__(self) -> "QueueService":
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The manager's process id."""
        return int(self.process.pid)

    @property
    def process(self) -> Any:
        """The manager's multiprocessing.Process."""
        if self._manager is None:
            raise ServiceNotStarted("the queue service is not started")
        return self._manager._process

    def start(self) -> None:
        """Start the manager process and wait until it listens.

        Raises:
            ManagerLostError: it died on the way.
        """
        directory = self._directory
        if directory is None:
            directory = Path(self._made_directory or tempfile.mkdtemp(prefix="poqueue-"))
            self._made_directory = str(directory)
        self.address = str(directory / "queue.sock")
        check_address(self.address)
        check_private(directory)
        manager = _Manager(self.address, self.key, ctx=get_context(self._start_method))
        try:
            manager.start(_host_queue, (self._settings, os.getpid(), self.address, self._log_path, self._on_orphan))
        except (EOFError, OSError) as error:
            self._remove_directory()
            raise ManagerLostError(f"the manager process died while it started: {error!r}") from None
        self._manager = manager

    def client(self) -> "QueueClient":
        """A client of this service; it ends with it."""
        client = QueueClient(self.address, self.key)
        self._clients.append(client)
        return client

    def stop(self) -> None:
        """End the manager process, whatever state it is in."""
        for client in self._clients:
            client.close()
        if self._manager is not None and self._manager._state.value == ManagerState.STARTED:
            process = self._manager._process
            _stop_manager(self.address, self.key, process)
            self._manager._state.value = ManagerState.SHUTDOWN
            self._manager.shutdown.cancel()
        with contextlib.suppress(OSError):
            os.unlink(self.address)
        self._remove_directory()

    def _remove_directory(self) -> None:
        if self._made_directory is not None:
            with contextlib.suppress(OSError):
                os.rmdir(self._made_directory)
            self._made_directory = None


class ServiceNotStarted(PoqueueError):
    """The service has no process (yet)."""


def _stop_manager(address: str, key: bytes, process: Any) -> None:
    """Ask, then kill: it ignores TERM, and may be stopped or hung."""
    try:
        conn = _connect(address, key, time_limit_s=1.0)
        with contextlib.closing(conn):
            conn.send((None, "shutdown", (), {}))
            conn.recv()
        process.join(2.0)
    except (PoqueueError, EOFError, OSError):
        logger.debug("the manager does not answer; it is killed")
    if process.is_alive():
        process.kill()
    process.join()
    process.close()


# ---------------------------------------------------------------------- clients


class QueueClient:
    """The public methods of a TaskQueue that lives in another process; safe for threads, a connection each.

    Copies, errors and records are as in TaskQueue. Every call may also raise CallTimeoutError or ManagerLostError; the
    next call then begins with a new connection. Event handlers run here, in the client's process, on a thread of its own.
    """

    def __init__(self, address: str, key: bytes) -> None:
        check_address(address)
        if not isinstance(key, bytes) or len(key) < MIN_KEY_BYTES:
            raise ValueError(f"the key must be at least {MIN_KEY_BYTES} bytes")
        self._address = address
        self._key = key
        self._local = threading.local()
        self._connections: set[Any] = set()
        self._handlers = HandlerSet()
        self._listener: threading.Thread | None = None
        self._is_closed = False

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
        conn = self._own_connection()
        self._local.number = number = getattr(self._local, "number", 0) + 1
        try:
            request = pickle.dumps((number, name, args, kwargs), 5)
        except Exception as error:  # whatever an argument's own __reduce__ raises; nothing was sent
            raise ValueError(f"invalid argument for {name}: it cannot be pickled ({error})") from None
        try:
            if timeout_s != CALL_TIMEOUT_S:
                _set_time_limit_of(conn, timeout_s)
            conn.send_bytes(request)
        except BaseException as error:
            self._drop_connection()
            _raise_mapped(name, error)
        return PendingCall(self, conn, number, name, timeout_s)

    def close(self) -> None:
        """Hang up; later calls raise ManagerLostError."""
        self._is_closed = True
        for conn in list(self._connections):
            self._connections.discard(conn)
            with contextlib.suppress(OSError):  # wakes a thread that waits for an answer
                socket.socket(fileno=os.dup(conn.fileno())).shutdown(socket.SHUT_RDWR)
        self._drop_connection()

    def _own_connection(self) -> Any:
        """This thread's connection; one that a fork has copied is left alone, for two would read one stream."""
        if getattr(self._local, "pid", None) != os.getpid():
            self._local.__dict__.clear()
            self._local.pid = os.getpid()
        conn = getattr(self._local, "connection", None)
        if conn is None:
            conn = self._local.connection = _connect(self._address, self._key, CALL_TIMEOUT_S)
            conn.send((None, "accept_connection", (threading.current_thread().name,), {}))
            conn.recv()
            self._connections.add(conn)
        return conn

    def _drop_connection(self) -> None:
        conn = self._local.__dict__.pop("connection", None)
        if conn is not None:
            self._connections.discard(conn)
            conn.close()

    # --- the queue's methods that do more than hand on

    def add_task(self, task: ProcessingTask, priority: int = DEFAULT_PRIORITY) -> str:
        return str(self.call("add_task", _freeze_task(task), priority))

    def add_tasks(self, tasks: Iterable[ProcessingTask], priority: int = DEFAULT_PRIORITY) -> list[str]:
        ids: list[str] = self.call("add_tasks", [_freeze_task(task) for task in tasks], priority)
        return ids

    def get_next_task(self, worker_id: str) -> ProcessingTask | None:
        record = self.call("get_next_task", worker_id)
        return thaw_task(record) if record is not None else None

    def complete_task(self, task_id: str, worker_id: str, result: TaskResult) -> None:
        self.call("complete_task", task_id, worker_id, freeze_result(result))

    def retry_task(self, task_id: str, error_details: dict[str, Any]) -> bool:
        return bool(self.call("retry_task", task_id, error_details))

    def exchange(self, worker_id: str, reports: list[Report] | tuple[()] = (), limit: int = 1, wait_s: float = 0.0) -> Grant:
        grant: Grant = self.call("exchange", worker_id, reports, limit, wait_s)
        return grant

    def get_tasks_by_status(self, status: TaskStatus) -> list[ProcessingTask]:
        return [thaw_task(r) for r in self.call("get_tasks_by_status", status, timeout_s=REPORT_TIMEOUT_S)]

    def get_tasks_by_worker(self, worker_id: str) -> list[ProcessingTask]:
        return [thaw_task(r) for r in self.call("get_tasks_by_worker", worker_id, timeout_s=REPORT_TIMEOUT_S)]

    def find_task(self, po_number: str | int | None = None, task_id: str | None = None) -> ProcessingTask | None:
        record = self.call("find_task", po_number, task_id)
        return thaw_task(record) if record is not None else None

    def export_queue_report(self, format: str = "json", include_completed: bool = True) -> dict[str, Any] | str:
        report: dict[str, Any] | str = self.call(
            "export_queue_report", format, include_completed, timeout_s=REPORT_TIMEOUT_S
        )
        return report

    def set_event_handlers(self, *args: Callable[..., None] | None, **kwargs: Callable[..., None] | None) -> None:
        names = ("on_task_complete", "on_task_failed", "on_queue_empty", "on_queue_full")
        if len(args) > len(names) or not set(kwargs) <= set(names[len(args) :]):
            raise TypeError(f"set_event_handlers takes {', '.join(names)}")
        for name, handler in {**dict(zip(names, args, strict=False)), **kwargs}.items():
            self._handlers.set(_KIND_OF_HANDLER[name], handler)
        if self._handlers and self._listener is None:
            after = self.call("read_events")[0].sequence  # from here on nothing is missed
            self._listener = threading.Thread(target=self._listen, args=(after,), daemon=True, name="poqueue-events")
            self._listener.start()

    def _listen(self, after: int) -> None:
        while not self._is_closed:
            try:
                events: list[Event] = self.call("read_events", after, wait_s=2.0)
            except PoqueueError:
                return  # the service ended, and with it the events
            for event in events:
                if event.sequence > after + 1:
                    logger.warning("%d events were dropped before they were read", event.sequence - after - 1)
                after = event.sequence
                task = thaw_task(event.task) if event.task is not None and self._handlers.listens(event.kind) else None
                self._handlers.call(event.kind, task, event.error)


class PendingCall:
    """A request on its way; `fileno` lets a loop wait for its answer beside other things."""

    def __init__(self, client: QueueClient, conn: Any, number: int, name: str, timeout_s: float) -> None:
        self._client = client
        self._connection = conn
        self._number = number
        self._name = name
        self._timeout_s = timeout_s

    def fileno(self) -> int:
        return int(self._connection.fileno())

    def result(self) -> Any:
        """Wait for the answer; errors as in QueueClient.call."""
        try:
            number, is_value, value = pickle.loads(self._connection.recv_bytes())
            if number is not None and number != self._number:
                raise ManagerLostError(f"{self._name}: the answer belongs to another call")
            if self._timeout_s != CALL_TIMEOUT_S:
                _set_time_limit_of(self._connection, CALL_TIMEOUT_S)
        except BaseException as error:  # also a Ctrl-C: the answer would be taken for the next call's
            self._client._drop_connection()
            _raise_mapped(self._name, error)
        if is_value:
            return value
        raise value


_KIND_OF_HANDLER = {
    "on_task_complete": "completed",
    "on_task_failed": "failed",
    "on_queue_empty": "empty",
    "on_queue_full": "full",
}


def _hand_on(name: str) -> Callable[..., Any]:
    def method(self: QueueClient, *args: Any, **kwargs: Any) -> Any:
        return self.call(name, *args, **kwargs)

    method.__name__ = name
    method.__doc__ = getattr(TaskQueue, name).__doc__
    return method


for _name in METHODS:
    if _name not in vars(QueueClient):
        setattr(QueueClient, _name, _hand_on(_name))


def connect(address: str, key: bytes) -> QueueClient:
    """A client of the service at an address, for whoever has the key.

    Raises:
        ManagerLostError: nothing listens there.
    """
    client = QueueClient(address, key)
    client._own_connection()
    return client


def _freeze_task(task: Any) -> Any:
    if not isinstance(task, ProcessingTask):
        raise ValueError(f"invalid task: a ProcessingTask is needed, got {type(task).__name__}")
    return ProcessingTask(
        task.task_id, freeze_po(task.po_data), task.priority,  # type: ignore[arg-type]  # opened again at the far end
        max_retries=task.max_retries, retry_delay=task.retry_delay, task_timeout=task.task_timeout,
    )  # fmt: skip


def _raise_mapped(name: str, error: BaseException) -> None:
    if isinstance(error, BlockingIOError | TimeoutError):
        raise CallTimeoutError(f"{name}: the manager process did not answer in time") from error
    if isinstance(error, EOFError | OSError):
        raise ManagerLostError(f"{name}: the manager process is gone ({type(error).__name__})") from error
    raise error


# ---------------------------------------------------------------------- sockets


def check_address(address: Any) -> None:
    """Only a path: no network address, no abstract name, short enough for every kernel.

    Raises:
        ValueError: the address is none of ours.
    """
    if not isinstance(address, str) or not address.startswith("/"):
        raise ValueError(f"the address must be the absolute path of a socket, got {address!r}")
    if len(os.fsencode(address)) > MAX_ADDRESS_BYTES:
        raise ValueError(f"the socket's path is longer than {MAX_ADDRESS_BYTES} bytes: {address}")


def check_private(directory: Path) -> None:
    """The directory of a socket must be ours alone.

    Raises:
        ValueError: others may enter it.
    """
    found = os.stat(directory)
    if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise ValueError(f"{directory} must belong to this user with mode 0700")


def _connect(address: str, key: bytes, time_limit_s: float) -> Any:
    """Connect and prove the key both ways. A kernel time limit covers each read and write, also half-way through."""
    plug = socket.socket(socket.AF_UNIX)
    try:
        plug.settimeout(time_limit_s)
        plug.connect(address)
        plug.settimeout(None)
        _set_time_limit(plug, time_limit_s)
    except OSError as error:
        plug.close()
        _raise_mapped("connect", error)
    conn = connection.Connection(plug.detach())
    try:
        connection.answer_challenge(conn, key)
        connection.deliver_challenge(conn, key)
    except connection.AuthenticationError:
        conn.close()
        raise ManagerLostError("the manager process refused the key") from None
    except BaseException as error:
        conn.close()
        _raise_mapped("connect", error)
    return conn


def _set_time_limit(plug: socket.socket, seconds: float) -> None:
    limit = struct.pack("ll", int(seconds), int(seconds % 1 * 1_000_000))
    plug.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    plug.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)


def _set_time_limit_of(conn: Any, seconds: float) -> None:
    with socket.socket(fileno=os.dup(conn.fileno())) as plug:
        plug.setblocking(True)
        _set_time_limit(plug, seconds)


def _lift_time_limit(conn: Any) -> None:
    _set_time_limit_of(conn, 0)


def _peer_uid(plug: socket.socket) -> int:
    raw = plug.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", raw)[1])
