"""Sockets between the queue's process and its clients: where they may be, how both ends prove the key, time limits.

A time limit is the kernel's (SO_RCVTIMEO, SO_SNDTIMEO): it costs nothing a call, and also covers a peer that stops half-way
through a message.
"""

import contextlib
import math
import os
import select
import socket
import stat
import struct
import sys
import time
from collections.abc import Callable, Iterable
from multiprocessing import connection
from multiprocessing.context import AuthenticationError

from poqueue.errors import CallTimeoutError, ManagerLostError, ManagerRefusesError
from poqueue.hints import Any, NoReturn, StrPath

MAX_ADDRESS_BYTES = 100
MAX_REQUEST_BYTES = 256 * 1024 * 1024
AT_ONCE_BYTES = 32_768  # so much an empty connection of this machine holds, whatever its peer does
_READ_BYTES = 65_536  # holds nearly every message
_LENGTH = struct.Struct("!i")
_LENGTH_BYTES = _LENGTH.size  # a struct's own attribute is looked for anew each time
_LONG_HEAD = struct.Struct("!iQ")  # -1, length: of what _LENGTH cannot hold
_MAX_SHORT = 0x7FFFFFFF
_ANNOUNCEMENT = _LENGTH.pack(0)  # an empty message, which is none: there is nothing to unpickle in it


def raise_mapped(name: str, error: BaseException) -> NoReturn:
    """What a call or a connection ran into, as an error of ours."""
    if isinstance(error, BlockingIOError | TimeoutError):
        raise CallTimeoutError(f"{name}: the manager process did not answer in time") from error
    if isinstance(error, EOFError | OSError):
        raise ManagerLostError(f"{name}: the manager process is gone ({type(error).__name__})") from error
    raise error


def check_address(address: Any) -> None:
    """Only a path: no network address, no abstract name, short enough for every kernel.

    Raises:
        ValueError: the address is none of ours.
    """
    if not isinstance(address, str) or not address.startswith("/"):
        raise ValueError(f"the address must be the absolute path of a socket, got {address!r}")
    if len(os.fsencode(address)) > MAX_ADDRESS_BYTES:
        raise ValueError(f"the socket's path is longer than {MAX_ADDRESS_BYTES} bytes: {address}")


def check_private(directory: StrPath) -> None:
    """The directory of a socket must be ours alone.

    Raises:
        ValueError: others may enter it.
    """
    found = os.stat(directory)
    if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise ValueError(f"{directory} must belong to this user with mode 0700")


def load_proof() -> None:
    """Load what multiprocessing needs to prove a key, while there is something else to wait for; it would at the first use."""
    with contextlib.suppress(ImportError, OSError):
        import hmac  # noqa: F401


def dial(address: str, key: bytes, time_limit_s: float) -> Any:
    """Connect and prove the key both ways. A kernel time limit covers each read and write, also half-way through."""
    plug = socket.socket(socket.AF_UNIX)
    try:
        _connect(plug, address, time_limit_s)
        set_time_limit(plug, time_limit_s)
    except OSError as error:
        plug.close()
        raise_mapped("connect", error)
    descriptor = plug.detach()
    os.set_blocking(descriptor, True)  # not so where gevent's stand in for sockets
    conn = connection.Connection(descriptor)
    try:
        connection.answer_challenge(conn, key)
        connection.deliver_challenge(conn, key)
    except AuthenticationError:
        conn.close()
        raise ManagerLostError("the manager process refused the key") from None
    except ValueError as error:  # Python 3.11 proves keys with MD5 and nothing else
        conn.close()
        raise ManagerLostError(
            f"this system forbids MD5 (FIPS), with which Python 3.11 proves the key: use Python 3.12 or newer ({error})"
        ) from None
    except (EOFError, ConnectionError) as error:
        conn.close()
        raise ManagerRefusesError(
            "connect: the manager process takes no more connections (threads, processes or memory are short), or is gone "
            f"({type(error).__name__})"
        ) from error
    except BaseException as error:
        conn.close()
        raise_mapped("connect", error)
    return conn


def _connect(plug: socket.socket, address: str, time_limit_s: float) -> None:
    """Connect within the limit; while more clients knock than are let in at once, the kernel says to try again."""
    deadline = time.monotonic() + time_limit_s
    while True:
        try:
            plug.settimeout(max(0.01, deadline - time.monotonic()))
            plug.connect(address)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.005)
            continue
        plug.settimeout(None)
        return


class Stream:
    """Whole messages over a connection that is open already, in the frames of multiprocessing's own, with fewer calls and copies.

    One call reads a message that came in one piece, and one writes it. Requests and answers alternate, so that never more
    than one message is on its way, which announcements may precede.

    Args:
        heed: called when a message is announced, before it is read.
    """

    def __init__(self, conn: connection.Connection, heed: Callable[[], None] | None = None) -> None:
        self._conn = conn
        self._heed = heed
        self._plug: socket.socket | None = None
        self.fileno = conn.fileno
        self.close = conn.close

    def send(self, message: bytes) -> None:
        """Send one message.

        Raises:
            OSError: BlockingIOError if the time is up; the connection is of no use then.
        """
        head, fd = _head_of(message), self.fileno()
        sent = os.writev(fd, [head, message])
        if sent < len(head) + len(message):  # a signal came in between
            rest = memoryview(head + message)[sent:]
            while rest:
                rest = rest[os.write(fd, rest) :]

    def send_at_once(self, message: bytes) -> bool:
        """Send a message if it is small and the other end has room for it; never waits.

        Returns:
            Whether that is done with: it is sent, or the connection is of no use any more.
        """
        if len(message) > AT_ONCE_BYTES:
            return False
        data = _head_of(message) + message
        sent = self._send_now(data)
        if 0 < sent < len(data) and self._plug is not None:  # the rest may never find room
            self._plug.shutdown(socket.SHUT_RDWR)
        return sent > 0

    def announce(self) -> None:
        """Wake up who waits at the other end, because a message will be ready as soon as they are up; never waits."""
        self._send_now(_ANNOUNCEMENT)

    def announce_request(self) -> None:
        """The same at the end that asks: while no answer is due there is room for one before the request; never fails."""
        with contextlib.suppress(OSError):  # nobody is there: that is told to who sends the request
            os.write(self.fileno(), _ANNOUNCEMENT)

    def _send_now(self, data: bytes) -> int:
        """How much of it found room."""
        try:
            plug = self._plug = self._plug or _plug_of(self._conn)
            return plug.send(data, socket.MSG_DONTWAIT)
        except OSError:  # no room, or nobody there
            return 0

    def let_go(self) -> None:
        """Before the connection is closed."""
        if self._plug is not None:
            self._plug.detach()

    def receive(self, limit: int = sys.maxsize) -> memoryview:
        """Wait for one message.

        Raises:
            EOFError: the other end has hung up.
            OSError: BlockingIOError if the time is up; or this is no message, or one above `limit` bytes.
        """
        data, start = os.read(self.fileno(), _READ_BYTES), 0
        if len(data) > _LENGTH_BYTES and _LENGTH.unpack_from(data)[0] == len(data) - _LENGTH_BYTES <= limit:
            return memoryview(data)[_LENGTH_BYTES:]  # nearly always
        while data.startswith(_ANNOUNCEMENT, start):
            if self._heed is not None and start == 0:
                self._heed()
            start += _LENGTH_BYTES
            if start == len(data):
                data, start = os.read(self.fileno(), _READ_BYTES), 0
        if start:
            data = data[start:]
        if len(data) < _LONG_HEAD.size:
            data = self._completed(data, _LENGTH_BYTES)
        size, start = *_LENGTH.unpack_from(data), _LENGTH_BYTES
        if size == -1:
            data = self._completed(data, _LONG_HEAD.size)
            size, start = _LONG_HEAD.unpack_from(data)[1], _LONG_HEAD.size
        if not 0 <= size <= limit:
            raise OSError(f"a message of {size:,} bytes was announced; {limit:,} are allowed")
        data = self._completed(data, start + size)
        if len(data) > start + size:
            raise OSError("more came than was announced")
        return memoryview(data)[start:]

    def _completed(self, data: bytes, size: int) -> bytes:
        """With as much more as is missing from so many bytes."""
        if len(data) >= size:
            return data
        parts, missing = [data], size - len(data)
        while missing > 0:
            if not parts[-1]:
                raise EOFError
            parts.append(os.read(self.fileno(), missing))
            missing -= len(parts[-1])
        return b"".join(parts)


def _head_of(message: bytes) -> bytes:
    return _LENGTH.pack(len(message)) if len(message) <= _MAX_SHORT else _LONG_HEAD.pack(-1, len(message))


def wait_readable(descriptors: Iterable[int], at_most_s: float) -> list[int]:
    """Those that have something to read, or an end, within the time; a sixth of what multiprocessing's `wait` takes."""
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return [descriptor for descriptor, _ in poll.poll(math.ceil(at_most_s * 1000.0))]


def set_time_limit(plug: socket.socket, seconds: float) -> None:
    """Bound every read and write of a socket; 0 lifts the limit."""
    limit = struct.pack("ll", int(seconds), int(seconds % 1 * 1_000_000))  # a timeval
    plug.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    plug.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)


def set_time_limit_of(conn: Any, seconds: float) -> None:
    """The same for a Connection."""
    with socket.socket(fileno=os.dup(conn.fileno())) as plug:
        os.set_blocking(plug.fileno(), True)
        set_time_limit(plug, seconds)


def lift_time_limit_of(conn: Any) -> None:
    """No limit from now on; for threads that no signal interrupts, since it does without a descriptor more."""
    plug = _plug_of(conn)
    try:
        set_time_limit(plug, 0)
    finally:
        plug.detach()


def _plug_of(conn: Any) -> socket.socket:
    """The socket of a Connection, to be detached again."""
    plug = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=conn.fileno())
    plug.settimeout(None)  # which the program may have set for all its sockets, and so for this connection
    return plug


def peer_uid(plug: socket.socket) -> int:
    """The user at the other end, as the kernel knows it."""
    raw = plug.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", raw)[1])
