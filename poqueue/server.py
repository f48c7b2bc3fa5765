"""The manager process: one TaskQueue, served by a multiprocessing.managers.Server that closes what the standard one leaves open.

Another user is refused even with the key, silent clients are dropped, a method's error of any kind comes back as an error,
and payloads and results cross as bytes that are not opened here.
"""

import _thread
import contextlib
import gc
import logging
import math
import os
import pickle
import signal
import socket
import threading
import time
from collections.abc import Sequence
from multiprocessing import connection
from multiprocessing.managers import Server

from poqueue import failpoint, wire
from poqueue.errors import PoqueueError, QueueError
from poqueue.hand_off import TOLD
from poqueue.hints import Any
from poqueue.hosting import CANNOT_HOST_EXIT, Hosting, reason_path
from poqueue.packing import PACK_ANSWER, UNPACK_REQUEST, PackedGrant
from poqueue.parent import die_with_parent, is_there
from poqueue.task import TaskRecord
from poqueue.task_queue import TaskQueue
from poqueue.wire import lift_time_limit_of, peer_uid, set_time_limit

logger = logging.getLogger(__name__)

AUTH_TIMEOUT_S = 5.0
MAX_CONNECTIONS = 1100
READ_ON_S = 10.0  # who has lost a connection, or read with another one, comes at once
SETTLED_S = 0.5  # after its start: the first clients are served by then
BROKEN_EXIT = 66
METHODS = tuple(name for name in vars(TaskQueue) if not name.startswith("_"))


class QueueServer(Server):
    """Serves one queue: checks who connects, and answers every request, whatever happens inside."""

    public = ["accept_connection", "shutdown", "dummy"]  # noqa: RUF012  (as in the base class)
    listener: Any
    authkey: bytes

    def __init__(self, queue: TaskQueue, address: str, key: bytes) -> None:
        super().__init__({}, address, key, "pickle")
        self._queue = queue
        self._places = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._has_told = False

    def accepter(self) -> None:
        """Accept connections of this user, up to a limit; out of descriptors or threads it waits instead of spinning."""
        wire.load_proof()
        listening = self.listener._listener._socket
        while True:
            try:
                accepted, _ = listening.accept()
            except OSError as error:
                self._tell_once(error)
                time.sleep(0.05)
                continue
            if peer_uid(accepted) != os.getuid() or not self._places.acquire(blocking=False):
                accepted.close()
                continue
            try:
                threading.Thread(target=self._serve_connection, args=(accepted,), daemon=True).start()
            except RuntimeError as error:  # no thread is given; this one's end would be the end of all connecting
                accepted.close()
                self._places.release()
                self._tell_once(error)
                time.sleep(0.05)

    def _tell_once(self, error: Exception) -> None:
        """Whoever knocks cannot be told why nobody is let in: the log is, and who reads the events."""
        if self._has_told:
            return
        self._has_told = True
        text = f"the manager process takes no more connections for now: {error}"
        logger.warning("%s", text)
        with self._queue._lock:
            self._queue._note("short", None, text)

    def _serve_connection(self, accepted: socket.socket) -> None:
        accepted.settimeout(None)  # the program's script, imported here, may have set one for all its sockets
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
            self._end_reading()
            self._places.release()

    def serve_line(self, line: "connection.Connection[Any, Any]") -> None:
        """Answer, on a thread of its own, a client that has been let in."""
        os.set_blocking(line.fileno(), True)  # not so where gevent's stand in for sockets
        try:
            _thread.start_new_thread(self._serve_line, (line,))  # a Thread's start waits until it runs: there are some
        except RuntimeError:  # no thread is given: the client finds this closed, knocks as others do, and that is told
            line.close()

    def _serve_line(self, line: "connection.Connection[Any, Any]") -> None:
        try:
            self.serve_client(line)
        except Exception as error:  # as above
            logger.debug("connection lost: %r", error)
        finally:
            line.close()
            self._end_reading()

    def serve_client(self, conn: Any) -> None:
        """Answer one client's requests until it hangs up."""
        stream = wire.Stream(conn, self._queue._announce)
        try:
            self._serve_stream(stream)
        finally:
            stream.let_go()

    def _serve_stream(self, stream: wire.Stream) -> None:
        queue = self._queue
        while True:
            try:
                request = stream.receive(wire.MAX_REQUEST_BYTES)
            except (EOFError, OSError):
                return
            try:
                answer = _answer(queue, request, stream)
                if answer is None:
                    continue
                if len(answer) > wire.AT_ONCE_BYTES:  # it may wait for room, and workers are not to wait with it
                    queue._call_back()
                failpoint.hit("service.before_answer")
                stream.send(answer)
            finally:
                queue._call_back()

    def _end_reading(self) -> None:
        """Nobody reads the events any more that this client has read, unless it goes on over another connection."""
        queue, thread = self._queue, threading.get_ident()
        with queue._lock:
            if not queue._feed.readers_of(thread):
                return
        time.sleep(READ_ON_S)
        with queue._lock:
            for reader in queue._feed.readers_of(thread):
                queue.close_events(reader)


def _answer(queue: TaskQueue, request: bytes | memoryview, stream: wire.Stream) -> bytes | None:
    """What to send; None if it has been sent."""
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
        if name == "add_tasks":
            value: Any = queue._add_tasks(*args, **kwargs, calls_back=False)
            gc.freeze()  # tasks come and stay by the thousand, and hold no cycles: nobody is to look for any
        elif name == "exchange_packed":
            value = queue.exchange_packed(*args, **kwargs, offer=_Offer(stream, number))
        else:
            value = getattr(queue, name)(*args, **kwargs)
        if value is TOLD:
            return None
        return pickle.dumps((number, True, value if pack is None else pack(value)), 5)
    except (PoqueueError, ValueError, TypeError) as error:
        _leave_if_broken(queue)
        kinds = (type(error) if isinstance(error, PoqueueError) else PoqueueError, ValueError, TypeError)
        kind = next(kind for kind in kinds if isinstance(error, kind))  # one string makes each of them again
        return pickle.dumps((number, False, kind(_message_of(error))), 5)
    except BaseException as error:  # also SystemExit: it would end this thread and look like a lost manager
        text = _text_of(error)
        logger.error("%s failed inside the queue: %s", name, text)
        _leave_if_broken(queue)
        return pickle.dumps((number, False, QueueError(f"{name}: {text}")), 5)


class _Offer:
    """Answers an exchange that waits, for its own thread; that waits with the queue's lock, and so does not hang up meanwhile."""

    __slots__ = ("_number", "_stream", "announce")

    def __init__(self, stream: wire.Stream, number: Any) -> None:
        self._stream = stream
        self._number = number
        self.announce = stream.announce

    def tell(self, grant: PackedGrant) -> bool:
        failpoint.hit("service.before_answer")
        return self._stream.send_at_once(pickle.dumps((self._number, True, grant), 5))


def _leave_if_broken(queue: TaskQueue) -> None:
    """What is written down holds, and another manager begins with that."""
    if queue._change.is_broken:
        logger.exception("a change was broken off in the middle")
        os._exit(BROKEN_EXIT)


def _message_of(error: BaseException) -> str:
    return str(error.args[0]) if len(error.args) == 1 and type(error.args[0]) is str else _text_of(error)


def _text_of(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except BaseException:  # a __str__ of its own may raise anything
        return type(error).__name__


def _as_record(record: TaskRecord) -> Any:
    return record


def serve(
    hosting: Hosting,
    listening: "connection.Connection[Any, Any]",
    lines: Sequence["connection.Connection[Any, Any]"] = (),
) -> None:
    """The body of the manager process: tells `listening` once clients may come, and serves them until it is told to end.

    Args:
        lines: connections that the owner has made with this process; who comes over them need not prove anything.
    """
    parent_pid = os.getppid()
    if parent_pid != hosting.owner_pid and hosting.settings.get("journal") is not None:
        die_with_parent(parent_pid)  # at once: its owner takes it for dead, and starts another one on the same journal
    _become_manager(hosting.log_path)
    queue = _open_queue(hosting)
    server = QueueServer(queue, hosting.address, hosting.key)
    for line in lines:
        server.serve_line(line)
    with contextlib.suppress(OSError):  # the owner is gone: the thread below ends this process, once it has cleaned up
        listening.send(None)
    listening.close()
    threading.Thread(target=_end_with_owner, args=(hosting, queue, parent_pid), daemon=True).start()
    server.serve_forever()


def _become_manager(log_path: str | None) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP):
        signal.signal(number, signal.SIG_IGN)  # it serves until its owner says or dies
    with contextlib.suppress(OSError):
        os.setsid()  # a kill of the terminal's whole group must not take the queue along
    # whoever sends a request works on, and is not pushed off its core by the thread that it wakes
    with contextlib.suppress(AttributeError, OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    os.umask(0o077)
    if log_path is not None:
        logging.raiseExceptions = False  # no traceback on the operator's screen when there is no room for a line
        logging.basicConfig(filename=log_path, level=logging.WARNING, force=True)
        logging.root.handlers[0].setFormatter(_LineFormatter("%(asctime)s %(levelname)s %(message)s"))


class _LineFormatter(logging.Formatter):
    """What comes from a processor can neither begin a line of its own nor steer the terminal that shows it."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return _visible(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        return "\n".join(f"  {_visible(line)}" for line in super().formatException(ei).split("\n"))


def _visible(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _open_queue(hosting: Hosting) -> TaskQueue:
    try:
        queue = TaskQueue(**hosting.settings, open_task=_as_record)
        queue.hold_queue(hosting.hold)  # before anybody can reach it
        gc.freeze()  # what a journal has brought stays as well
        return queue
    except PoqueueError as error:
        path = reason_path(hosting.address)
        with contextlib.suppress(OSError), open(path, "wb") as file:  # the disk may be full
            file.write(str(error).encode(errors="backslashreplace"))
        os._exit(CANNOT_HOST_EXIT)


def _end_with_owner(hosting: Hosting, queue: TaskQueue, parent_pid: int) -> None:
    """Leave once the owner is gone, after the clean-up it asked for.

    The parent may be a fork server: with that gone, multiprocessing takes this process for dead, and it leaves at once.
    This thread looks for it first, until clients are served: to ask the kernel takes 2 ms, for which they would wait.
    """
    ended = _await_end({hosting.owner_pid, parent_pid}, SETTLED_S)
    if not ended:
        if parent_pid != hosting.owner_pid:
            die_with_parent(parent_pid)  # also while it is stopped, from now on
        ended = _await_end({hosting.owner_pid}, None)
    if hosting.owner_pid not in ended:
        os._exit(0)
    try:
        if hosting.on_orphan is not None:
            hosting.on_orphan()
    finally:
        queue.close_queue()
        with contextlib.suppress(OSError):
            os.unlink(hosting.address)
            os.rmdir(os.path.dirname(hosting.address))  # only if it is ours alone, and so empty
        os._exit(0)


def _await_end(pids: set[int], at_most_s: float | None) -> set[int]:
    """Those of them that have ended, once one has; none when the time is over."""
    watches: dict[Any, int] = {}
    try:
        for pid in pids:
            watches[os.pidfd_open(pid)] = pid
        return {watches[watch] for watch in connection.wait(list(watches), at_most_s)}
    except (AttributeError, OSError):  # no such call in this Python, kernel or sandbox; or it has just gone
        deadline = math.inf if at_most_s is None else time.monotonic() + at_most_s
        while not (ended := {pid for pid in pids if not is_there(pid)}) and time.monotonic() < deadline:
            time.sleep(0.2)
        return ended
    finally:
        for watch in watches:
            os.close(watch)
