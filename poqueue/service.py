"""The queue in a process of its own, behind one AF_UNIX socket: poqueue's only use of multiprocessing.managers.

    QueueService (owner) ──starts──► manager process (poqueue.hosting, poqueue.server): TaskQueue + QueueServer
    QueueClient  (anyone with the address and the key) ──socket──► one thread a connection ──► public methods of TaskQueue

The first clients, and workers, of the owner come over connections that were made with the process: they need neither.

The owner does without what only that process needs (multiprocessing.managers, the queue itself), and starts the sooner.
"""

import contextlib
import errno
import logging
import os
import tempfile
from collections.abc import Callable, Iterable
from multiprocessing import get_context, util
from multiprocessing.connection import Connection

from poqueue import wire
from poqueue.client import QueueClient, connect
from poqueue.config import check_queue_settings
from poqueue.errors import ConfigError, JournalError, ManagerCannotStartError, ManagerLostError, PoqueueError
from poqueue.hints import Any, StrPath
from poqueue.hosting import CANNOT_HOST_EXIT, Hosting, host, reason_path
from poqueue.parent import UNKNOWN_EXIT, end_untold, gone_folder, join, kill, tell_first
from poqueue.script_guard import NO_GUARD, NO_GUARD_EXIT, leave_if_imported_again
from poqueue.wire import check_address, check_private, dial

__all__ = ["QueueClient", "QueueService", "connect"]

logger = logging.getLogger(__name__)

SOCKET_NAME = "queue.sock"
MADE_PREFIX = "poqueue-"  # of a folder for nothing but the socket
CLOSE_TIMEOUT_S = 5.0
MAX_LINES = 32  # a fork server takes some 250 descriptors at once, and a program may have few
NO_REASON = "the journal cannot be opened, and there is no room on the disk to say why"
START_LOOKS = (
    300  # of a second each: a large journal takes a minute, and looks in which we were stopped as well count once
)


def fits_address(directory: StrPath) -> bool:
    """Whether a socket in this folder has a path that every kernel takes."""
    try:
        check_address(os.path.join(directory, SOCKET_NAME))
    except ValueError:
        return False
    return True


class ManagerProcess:
    """A manager process; what it is to host may be told later, so that it imports meanwhile.

    Args:
        lines: how many connections to make with it, for clients that then need not find it and prove anything; none where
            descriptors are short, and none with a forked manager, which would hold both ends of each.

    Raises:
        ManagerLostError: it cannot be started; ManagerCannotStartError if it never can.
    """

    def __init__(self, start_method: str, hosting: Hosting | None = None, lines: int = 0) -> None:
        lines = min(lines, MAX_LINES) if start_method != "fork" else 0
        try:
            try:
                self._start(start_method, hosting, lines)
            except OSError as error:
                if not lines or error.errno not in (errno.EMFILE, errno.ENFILE):
                    raise
                self._start(start_method, hosting, 0)
        except (EOFError, OSError) as error:
            if gone := gone_folder():
                raise ManagerCannotStartError(
                    f"the manager process cannot be started: the current folder is gone: {gone}"
                ) from None
            raise ManagerLostError(f"the manager process cannot be started: {error}") from None

    def _start(self, start_method: str, hosting: Hosting | None, lines: int) -> None:
        context: Any = get_context(start_method)
        ours, theirs = list[Any](), list[Any]()
        try:
            for _ in range(1 + lines):
                one, other = context.Pipe()
                ours.append(one)
                theirs.append(other)
            self.owner, *self.lines = ours
            self.process = context.Process(target=host, args=(hosting, *theirs), name="poqueue-manager")
            self.process.start()
        except BaseException:
            _close_all(ours)
            raise
        finally:
            _close_all(theirs)

    def is_told(self, hosting: Hosting) -> bool:
        """Tell it what to host; False if it has ended."""
        if tell_first(self.process, self.owner, hosting):
            return True
        self.end()
        return False

    def end(self) -> None:
        """End one that has nothing to host; harmless when repeated."""
        end_untold(self.process, self.owner, *self.lines)


def _close_all(connections: "Iterable[Connection[Any, Any]]") -> None:
    for one in connections:
        one.close()


class QueueService:
    """Starts the manager process, and ends it.

    Args:
        start_method: "spawn", "forkserver" or "fork".
        directory: where the socket goes: a private directory of ours, made when left out.
        log_path: file for the manager's own log lines; None leaves its logging alone.
        on_orphan: importable function that the manager calls when its owner has died, before it ends.
        early: holds a process that was started before, by the same method; whoever has started it ends it, until it is taken
            out of here and told what to host.
        lines: how many connections to make with the process, one each for the first clients and for whoever calls take_line.
        settings: keyword arguments of TaskQueue.
    """

    def __init__(
        self,
        *,
        start_method: str = "spawn",
        directory: StrPath | None = None,
        log_path: StrPath | None = None,
        on_orphan: Callable[[], None] | None = None,
        early: list[ManagerProcess] | None = None,
        lines: int = 1,
        **settings: Any,
    ) -> None:
        check_queue_settings(settings)  # a wrong one is told here, not by a process that fails to start
        self._settings = settings
        self._start_method = start_method
        self._log_path = str(log_path) if log_path is not None else None
        self._on_orphan = on_orphan
        self._early = early if early is not None else []
        self._first_lines = lines
        self._directory = directory
        self._made_directory: str | None = None
        self.key = os.urandom(32)
        self.address = ""
        self._process: Any = None
        self._at_exit: Any = None  # ends the manager when this program ends without having done so
        self._has_started = False
        self._made_files: list[str] | None = None  # of the journal; None before the first start
        self._clients: list[QueueClient] = []
        self._lines: list[Connection[Any, Any]] = []  # to this manager, for the next clients
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
        if self._process is None:
            raise ServiceNotStarted("the queue service is not started")
        return self._process

    def start(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Start the manager process and wait until it listens.

        Args:
            meanwhile: called once it has been started, while it imports.

        Raises:
            JournalError: the journal cannot be opened.
            ManagerLostError: it died on the way.
        """
        leave_if_imported_again(self._start_method)
        self.choose_address()
        try:
            self._start_manager(meanwhile=meanwhile)
        except BaseException:
            self._remove_made()
            raise

    def choose_address(self) -> None:
        """Settle where the socket will be, for clients that are told before the manager is started; harmless when repeated."""
        directory = self._directory
        if directory is None:
            directory = self._made_directory = self._made_directory or tempfile.mkdtemp(prefix=MADE_PREFIX)
        self.address = os.path.join(directory, SOCKET_NAME)
        check_address(self.address)
        check_private(directory)

    def _start_manager(self, hold: str = "", meanwhile: Callable[[], None] = lambda: None) -> None:
        hosting = Hosting(self.address, self.key, self._settings, hold, os.getpid(), self._log_path, self._on_orphan)
        if self._made_files is None and self.has_journal:
            files = [f"{self._settings['journal']}{suffix}" for suffix in ("", "-wal", "-shm")]
            self._made_files = [file for file in files if not os.path.lexists(file)]
        manager = self._early[-1] if self._early else None
        if manager is None or not manager.is_told(hosting):
            lines = self._first_lines if not self._has_started else 0  # of a lost one clients have to find the next
            manager = ManagerProcess(self._start_method, hosting, lines)
        self._early.clear()
        process = manager.process
        self._lines = manager.lines
        with manager.owner as listening:
            self._process = process
            self._at_exit = util.Finalize(
                self, _end_forgotten, (self.address, self.key, process, self._made_directory), exitpriority=0
            )
            try:
                meanwhile()
                if not self._lines:
                    wire.load_proof()
                self._await(listening, process)
            except BaseException:
                self._kill_manager()
                raise
        self._has_started = True

    def _await(self, listening: "Connection[Any, Any]", process: Any) -> None:
        """Wait until clients may come."""
        try:
            for _ in range(START_LOOKS):
                if listening.poll(1.0):
                    listening.recv()
                    return
            raise ManagerLostError(f"the manager process has not come to listen for {START_LOOKS} s")
        except (EOFError, OSError) as error:
            join(process, 1.0)
            if process.exitcode == NO_GUARD_EXIT:
                raise ConfigError(NO_GUARD) from None
            has_reason = os.path.exists(reason_path(self.address))
            if process.exitcode == CANNOT_HOST_EXIT or (process.exitcode == UNKNOWN_EXIT and has_reason):
                raise JournalError(self._take_reason()) from None
            raise ManagerLostError(f"the manager process died while it started: {error!r}") from None

    def _kill_manager(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            self._at_exit.cancel()
            kill(process)
            process.close()
        self._hang_up()

    def _hang_up(self) -> None:
        """Close the lines that no client has got."""
        while self._lines:
            self._lines.pop().close()

    def replace(self, hold: str = "") -> None:
        """Kill the manager process, whatever state it is in, and start another one from the journal: same address, same key.

        Args:
            hold: why the new queue starts no task before its owner has called hold_queue; empty to start at once.

        Raises:
            ServiceNotStarted, JournalError, ManagerLostError: as start; or there is no journal to start from.
        """
        if not self.has_journal:
            raise ManagerLostError("the manager process is lost, and there is no journal to start another one from")
        self._kill_manager()
        with contextlib.suppress(OSError):
            os.unlink(self.address)
        self.choose_address()  # the same, unless the first manager was lost before it had one
        if self._has_started:
            self._settings["journal_must_exist"] = True
        elif self._settings.get("journal_must_exist") is False:
            for path in self._made_files or ():  # ours, and perhaps half made: nothing was in it
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
        self._start_manager(hold)

    def _take_reason(self) -> str:
        path = reason_path(self.address)
        no_reason = f"{self._settings.get('journal')}: {NO_REASON}"
        try:
            with open(path, encoding="utf-8") as file:
                return file.read() or no_reason
        except OSError:
            return no_reason
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    @property
    def has_journal(self) -> bool:
        """Whether a lost manager can be replaced."""
        return self._settings.get("journal") is not None

    def client(self) -> "QueueClient":
        """A client of this service; it ends with it."""
        client = QueueClient(self.address, self.key, self.take_line(), as_json=self.has_journal)
        self._clients.append(client)
        return client

    def take_line(self) -> "Connection[Any, Any] | None":
        """One of the connections that were made with the manager, for one client; None when there is none left."""
        return self._lines.pop() if self._lines and self._owner_pid == os.getpid() else None

    def stop(self) -> None:
        """End the manager process, whatever state it is in; a forked copy of this object ends nothing."""
        if self._owner_pid != os.getpid():
            return
        process = self._process
        if process is not None and self.has_journal:
            with contextlib.suppress(PoqueueError), contextlib.closing(QueueClient(self.address, self.key)) as client:
                client.call("close_queue", timeout_s=CLOSE_TIMEOUT_S)
        for client in self._clients:
            client.close()
        if process is not None:
            _stop_manager(self.address, self.key, process)
            self._at_exit.cancel()
            self._process = None
        self._hang_up()
        if self._has_started:
            with contextlib.suppress(OSError):
                os.unlink(self.address)
        self._remove_made()

    def _remove_made(self) -> None:
        if self._made_directory is not None:
            remove_made(self._made_directory)
            self._made_directory = None


class ServiceNotStarted(PoqueueError):
    """The service has no process (yet)."""


def remove_made(directory: StrPath) -> None:
    """A folder of our own; any other, and the socket in it, may be somebody else's."""
    for name in (SOCKET_NAME, f"{SOCKET_NAME}.reason"):
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(directory, name))
    with contextlib.suppress(OSError):
        os.rmdir(directory)


def _end_forgotten(address: str, key: bytes, process: Any, made_directory: str | None) -> None:
    _stop_manager(address, key, process)
    if made_directory is not None:
        remove_made(made_directory)


def _stop_manager(address: str, key: bytes, process: Any) -> None:
    """Ask, then kill: it ignores TERM, and may be stopped or hung."""
    try:
        conn = dial(address, key, time_limit_s=1.0)
        with contextlib.closing(conn):
            conn.send((None, "shutdown", (), {}))
            conn.recv()
        join(process, 2.0)
    except (PoqueueError, EOFError, OSError):
        logger.debug("the manager does not answer; it is killed")
    finally:  # also after a Ctrl-C: whoever waits for it at the exit would do so for ever
        kill(process)
    process.close()
