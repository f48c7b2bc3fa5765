"""The queue in a process of its own, behind one AF_UNIX socket: poqueue's only use of multiprocessing.

    QueueService (owner) ──starts──► manager process: TaskQueue + QueueServer (a multiprocessing.managers.Server)
    QueueClient  (anyone with the address and the key) ──socket──► one thread a connection ──► public methods of TaskQueue

What the standard manager leaves open is closed here: calls have a time limit, a connection whose state is unknown is never
used again, another user is refused even with the key, silent clients are dropped, a method's error of any kind comes back
as an error, and payloads and results cross the manager as bytes that it does not open.
"""

import contextlib
import gc
import logging
import os
import pickle
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing import connection, current_process, get_context
from multiprocessing.managers import BaseManager, Server
from pathlib import Path
from typing import Any

from poqueue import failpoint, wire
from poqueue.client import QueueClient, connect
from poqueue.errors import ConfigError, JournalError, ManagerLostError, PoqueueError, QueueError
from poqueue.packing import PACK_ANSWER, UNPACK_REQUEST
from poqueue.task import TaskRecord
from poqueue.task_queue import TaskQueue
from poqueue.wire import check_address, check_private, dial, lift_time_limit_of, peer_uid, set_time_limit

__all__ = ["METHODS", "QueueClient", "QueueServer", "QueueService", "connect"]

logger = logging.getLogger(__name__)

QUEUE_ID = "queue"
SOCKET_NAME = "queue.sock"
AUTH_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 5.0
MAX_CONNECTIONS = 1100
METHODS = tuple(name for name in vars(TaskQueue) if not name.startswith("_"))


# ---------------------------------------------------------------------- in the manager process


class QueueServer(Server):
    """Serves one queue: checks who connects, and answers every request, whatever happens inside."""

    public = ["accept_connection", "shutdown", "dummy"]  # noqa: RUF012  (as in the base class)
    listener: Any
    authkey: bytes

    def __init__(self, registry: Any, address: Any, authkey: bytes, serializer: str) -> None:
        super().__init__(registry, address, authkey, serializer)
        self.id_to_obj[QUEUE_ID] = (_hosted_queue, set(METHODS), {})
        self._places = threading.BoundedSemaphore(MAX_CONNECTIONS)

    def accepter(self) -> None:
        """Accept connections of this user, up to a limit; out of descriptors it waits instead of spinning."""
        wire.load_proof()
        listening = self.listener._listener._socket
        while True:
            try:
                accepted, _ = listening.accept()
            except OSError:
                time.sleep(0.05)
                continue
            if peer_uid(accepted) != os.getuid() or not self._places.acquire(blocking=False):
                accepted.close()
                continue
            threading.Thread(target=self._serve_connection, args=(accepted,), daemon=True).start()

    def _serve_connection(self, accepted: socket.socket) -> None:
        set_time_limit(accepted, AUTH_TIMEOUT_S)
        conn = connection.Connection(accepted.detach())
        try:
            connection.deliver_challenge(conn, self.authkey)
            connection.answer_challenge(conn, self.authkey)
            _, name, args, kwargs = conn.recv()
            if name not in self.public:
                raise PermissionError(name)
            if name == "accept_connection":
                conn.send(("#RETURN", None))
                lift_time_limit_of(conn)
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
        queue, stream = self.id_to_obj[QUEUE_ID][0], wire.Stream(conn)
        while True:
            try:
                request = stream.receive(wire.MAX_REQUEST_BYTES)
            except (EOFError, OSError):
                return
            answer = _answer(queue, request)
            failpoint.hit("service.before_answer")
            stream.send(answer)


def _answer(queue: TaskQueue, request: bytes | memoryview) -> bytes:
    try:
        number, name, args, kwargs = pickle.loads(request)
    except BaseException as error:  # arguments may raise anything while they are opened
        return pickle.dumps((None, False, QueueError(f"request cannot be read: {_text_of(error)}")), 5)
    try:
        if name not in METHODS:
            raise QueueError(f"the queue has no public method {name!r}")
        unpack, pack = UNPACK_REQUEST.get(name), PACK_ANSWER.get(name)
        if unpack is not None and args:
            args = unpack(*args)
        value = getattr(queue, name)(*args, **kwargs)
        return pickle.dumps((number, True, value if pack is None else pack(value)), 5)
    except (PoqueueError, ValueError, TypeError) as error:
        kinds = (type(error) if isinstance(error, PoqueueError) else PoqueueError, ValueError, TypeError)
        kind = next(kind for kind in kinds if isinstance(error, kind))  # one string makes each of them again
        return pickle.dumps((number, False, kind(_message_of(error))), 5)
    except BaseException as error:  # also SystemExit: it would end this thread and look like a lost manager
        text = _text_of(error)
        logger.error("%s failed inside the queue: %s", name, text)
        return pickle.dumps((number, False, QueueError(f"{name}: {text}")), 5)


def _message_of(error: BaseException) -> str:
    return str(error.args[0]) if len(error.args) == 1 and type(error.args[0]) is str else _text_of(error)


def _text_of(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except BaseException:  # a __str__ of its own may raise anything
        return type(error).__name__


_hosted_queue: TaskQueue | None = None


def _as_record(record: TaskRecord) -> Any:
    return record


def _host_queue(
    settings: dict[str, Any],
    owner_pid: int,
    address: str,
    log_path: str | None,
    on_orphan: Callable[[], None] | None,
    hold: str,
) -> None:
    """Runs first in the manager process: its signals, its queue, and its end should the owner die."""
    global _hosted_queue
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP):
        signal.signal(number, signal.SIG_IGN)  # it serves until its owner says or dies
    with contextlib.suppress(OSError):
        os.setsid()  # a kill of the terminal's whole group must not take the queue along
    # whoever sends a request works on, and is not pushed off its core by the thread that it wakes
    with contextlib.suppress(AttributeError, OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    os.umask(0o077)
    gc.set_threshold(50_000, 20, 20)  # tasks come and stay by the thousand, and hold no cycles worth the looking for
    if log_path is not None:
        logging.raiseExceptions = False  # no traceback on the operator's screen when there is no room for a line
        logging.basicConfig(
            filename=log_path, level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", force=True
        )
    try:
        _hosted_queue = TaskQueue(**settings, open_task=_as_record)
        _hosted_queue.hold_queue(hold)  # before anybody can reach it
    except PoqueueError as error:
        with contextlib.suppress(OSError):  # the disk may be full
            Path(_reason_path(address)).write_text(str(error), encoding="utf-8", errors="backslashreplace")
        os._exit(CANNOT_HOST_EXIT)
    threading.Thread(target=_end_with_owner, args=(owner_pid, address, on_orphan), daemon=True).start()


def _reason_path(address: str) -> str:
    return f"{address}.reason"


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
        if _hosted_queue is not None:
            _hosted_queue.close_queue()
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
    _process: Any
    _state: Any


# ---------------------------------------------------------------------- the owner


def fits_address(directory: Path) -> bool:
    """Whether a socket in this folder has a path that every kernel takes."""
    try:
        check_address(str(directory / SOCKET_NAME))
    except ValueError:
        return False
    return True


NO_GUARD_EXIT = 64
CANNOT_HOST_EXIT = 65
NO_REASON = "the journal cannot be opened, and there is no room on the disk to say why"
NO_GUARD = (
    "each process that is started imports the script again, and so would start a batch of its own; "
    'put what starts the batch below a line: if __name__ == "__main__":'
)


def leave_if_imported_again(start_method: str = "spawn") -> None:
    """End this process if it is one of ours that still imports the script: without a guard, the script ends up here.

    Raises:
        ConfigError: the script cannot be imported at all, since it came through standard input or its file is gone.
    """
    if getattr(current_process(), "_inheriting", False):
        os._exit(NO_GUARD_EXIT)  # the parent, which sees the exit code, tells it once
    main = sys.modules["__main__"]
    path = getattr(main, "__file__", None)
    if start_method != "fork" and path and not getattr(main, "__spec__", None) and not os.path.exists(path):
        raise ConfigError(
            f"each process that is started imports the script again, and {path} cannot be imported: save it as a file"
        )


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
        TaskQueue(
            **{key: value for key, value in settings.items() if key not in _OF_JOURNAL}
        )  # a wrong setting is told here, not by a process that fails to start
        self._settings = settings
        self._start_method = start_method
        self._log_path = str(log_path) if log_path is not None else None
        self._on_orphan = on_orphan
        self._directory = directory
        self._made_directory: str | None = None
        self.key = os.urandom(32)
        self.address = ""
        self._manager: _Manager | None = None
        self._has_started = False
        self._clients: list[QueueClient] = []
        self._owner_pid = os.getpid()

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
            JournalError: the journal cannot be opened.
            ManagerLostError: it died on the way.
        """
        leave_if_imported_again(self._start_method)
        self.choose_address()
        try:
            self._start_manager()
        except BaseException:
            self._remove_directory()
            raise

    def choose_address(self) -> None:
        """Settle where the socket will be, for clients that are told before the manager is started; harmless when repeated."""
        directory = self._directory
        if directory is None:
            directory = Path(self._made_directory or tempfile.mkdtemp(prefix="poqueue-"))
            self._made_directory = str(directory)
        self.address = str(directory / SOCKET_NAME)
        check_address(self.address)
        check_private(directory)

    def _start_manager(self, hold: str = "") -> None:
        manager = _Manager(self.address, self.key, ctx=get_context(self._start_method))
        try:
            manager.start(
                _host_queue, (self._settings, os.getpid(), self.address, self._log_path, self._on_orphan, hold)
            )
        except (EOFError, OSError) as error:
            manager._process.join(1.0)
            if manager._process.exitcode == NO_GUARD_EXIT:
                raise ConfigError(NO_GUARD) from None
            if manager._process.exitcode == CANNOT_HOST_EXIT:
                raise JournalError(self._take_reason()) from None
            raise ManagerLostError(f"the manager process died while it started: {error!r}") from None
        self._manager = manager
        self._has_started = True
        wire.load_proof()

    def replace(self, hold: str = "") -> None:
        """Kill the manager process, whatever state it is in, and start another one from the journal: same address, same key.

        Args:
            hold: why the new queue starts no task before its owner has called hold_queue; empty to start at once.

        Raises:
            ServiceNotStarted, JournalError, ManagerLostError: as start; or there is no journal to start from.
        """
        if not self.has_journal:
            raise ManagerLostError("the manager process is lost, and there is no journal to start another one from")
        if self._manager is not None:
            getattr(self._manager, "shutdown").cancel()  # noqa: B009  (its own way of ending would wait for TERM to work)
            process, self._manager = self.process, None
            process.kill()
            process.join()
            process.close()
        with contextlib.suppress(OSError):
            os.unlink(self.address)
        self.choose_address()  # the same, unless the first manager was lost before it had one
        if self._has_started:
            self._settings["journal_must_exist"] = True
        elif self._settings.get("journal_must_exist") is False:
            _remove_journal(Path(self._settings["journal"]))  # ours, and perhaps half made: nothing was in it
        self._start_manager(hold)

    def _take_reason(self) -> str:
        path = Path(_reason_path(self.address))
        try:
            return path.read_text(encoding="utf-8") or NO_REASON
        except OSError:
            return NO_REASON
        finally:
            path.unlink(missing_ok=True)

    @property
    def has_journal(self) -> bool:
        """Whether a lost manager can be replaced."""
        return self._settings.get("journal") is not None

    def client(self) -> "QueueClient":
        """A client of this service; it ends with it."""
        client = QueueClient(self.address, self.key)
        self._clients.append(client)
        return client

    def stop(self) -> None:
        """End the manager process, whatever state it is in; a forked copy of this object ends nothing."""
        if self._owner_pid != os.getpid():
            return
        manager, self._manager = self._manager, None
        if manager is not None and self.has_journal:
            with contextlib.suppress(PoqueueError), contextlib.closing(QueueClient(self.address, self.key)) as client:
                client.call("close_queue", timeout_s=CLOSE_TIMEOUT_S)
        for client in self._clients:
            client.close()
        if manager is not None:
            getattr(manager, "shutdown").cancel()  # noqa: B009  (its own way of ending would wait for TERM to work)
            _stop_manager(self.address, self.key, manager._process)
        with contextlib.suppress(OSError):
            os.unlink(self.address)
        self._remove_directory()

    def _remove_directory(self) -> None:
        if self._made_directory is not None:
            with contextlib.suppress(OSError):
                os.rmdir(self._made_directory)
            self._made_directory = None


def _remove_journal(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


_OF_JOURNAL = ("journal", "durability", "journal_must_exist", "journal_any_version")


class ServiceNotStarted(PoqueueError):
    """The service has no process (yet)."""


def _stop_manager(address: str, key: bytes, process: Any) -> None:
    """Ask, then kill: it ignores TERM, and may be stopped or hung."""
    try:
        conn = dial(address, key, time_limit_s=1.0)
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
