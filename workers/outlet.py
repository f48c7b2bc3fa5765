"""Writing to a stream that others share and may stop reading: never an error, never a wait."""

import os
import select
import stat
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TextIO

from workers.safe_text import safe_text

MAX_HELD_LINES = 1000
MAX_LINE_CHARS = 4000  # the log file has the whole line

_FALLBACK_SIZE = (80, 24)  # columns, rows of a terminal that does not tell
_CLOSING_TIME_S = 1.0


class Outlet:
    """A text stream that neither raises nor waits: what its reader does not take yet is kept, and sent on later.

    Who has much to say asks `is_ready` first, so that no more than one piece is ever kept.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._fd = _file_descriptor(stream)
        self._own_fd = None if self._fd is None else _reopened_without_waiting(self._fd)
        self._unsent = b""
        self.encoding = getattr(stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Write, or drop what can no longer be written."""
        content = text.encode(self.encoding, "backslashreplace")
        if self._own_fd is not None:
            self._unsent += content
        elif self._stream is not None:
            self._attempt(self._stream.write, content.decode(self.encoding))
        return len(text)

    def write_lines(self, lines: list[str]) -> None:
        """Write whole lines and send them off."""
        self.write("".join(f"{line}\n" for line in lines))
        self.flush()

    def flush(self) -> None:
        """Send off what was written, as far as the reader takes it."""
        if self._own_fd is not None:
            self._attempt(self._send)
        elif self._stream is not None:
            self._attempt(self._stream.flush)

    def is_ready(self) -> bool:
        """False while the terminal is stopped (Ctrl-S), or the pipe's reader does not read."""
        self.flush()
        return not self._unsent

    def wait_until_ready(self, timeout_s: float) -> bool:
        """`is_ready`, as soon as it is, or when the time is over."""
        deadline = time.monotonic() + timeout_s
        while not self.is_ready() and self._own_fd is not None and time.monotonic() < deadline:
            select.select([], [self._own_fd], [], 0.05)
        return self.is_ready()

    def isatty(self) -> bool:
        """Whether a person sits at the other end."""
        return self._fd is not None and os.isatty(self._fd)

    def size(self) -> tuple[int, int]:
        """Columns and rows of the terminal as it is now."""
        try:
            columns, rows = os.get_terminal_size(-1 if self._fd is None else self._fd)
        except OSError:
            return _FALLBACK_SIZE
        return columns or _FALLBACK_SIZE[0], rows or _FALLBACK_SIZE[1]

    def close(self) -> None:
        """Wait a moment for a reader that is behind, then go back to plain writing; the stream itself stays open."""
        self.wait_until_ready(_CLOSING_TIME_S)
        self._close_own()

    def _send(self) -> None:
        while self._own_fd is not None and self._unsent:
            try:
                sent = os.write(self._own_fd, self._unsent)
            except BlockingIOError:
                return
            self._unsent = self._unsent[sent:]

    def _attempt(self, action: Callable[..., object], *args: object) -> None:
        try:
            action(*args)
        except (OSError, ValueError):  # nobody reads any more, the disk is full, or somebody closed the stream
            self._abandon()

    def _abandon(self) -> None:
        """Lead the stream to nowhere: what it still holds would fail again at exit and turn the exit code into 120."""
        self._close_own()
        # Of a stream that was closed, the number may by now be another file's.
        if self._fd is not None and self._fd == _file_descriptor(self._stream):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._fd)
            os.close(nowhere)
        self._stream = self._fd = None

    def _close_own(self) -> None:
        if self._own_fd is not None:
            os.close(self._own_fd)
        self._own_fd = None
        self._unsent = b""


class HeldLines:
    """Lines on their way to an outlet, kept while it would block, the oldest dropped when too many wait.

    Any thread may put; the lock keeps whole what two of them print.
    """

    def __init__(self, outlet: Outlet, emit: Callable[[list[str]], None], *, batch: int = 1) -> None:
        self._outlet = outlet
        self._emit = emit
        self._batch = batch
        self._held: deque[str] = deque(maxlen=MAX_HELD_LINES)
        self._lock = threading.RLock()

    def put(self, line: str) -> None:
        """Emit a line now, or once the reader takes it."""
        with self._lock:
            self._held.append(safe_text(line, MAX_LINE_CHARS))
            self.catch_up()

    def catch_up(self) -> None:
        """Emit what waits, as far as the reader takes it."""
        with self._lock:
            while self._held and self._outlet.is_ready():
                self._emit([self._held.popleft() for _ in range(min(self._batch, len(self._held)))])

    def close(self) -> None:
        """Give a reader that is behind a moment, then drop what still waits."""
        with self._lock:
            while self._held and self._outlet.wait_until_ready(_CLOSING_TIME_S):
                self.catch_up()
            self._held.clear()
            self._outlet.close()


def _file_descriptor(stream: TextIO | None) -> int | None:
    try:
        return stream.fileno() if stream is not None else None
    except (OSError, ValueError, AttributeError):  # a StringIO has none, a closed stream no longer
        return None


def _reopened_without_waiting(fd: int) -> int | None:
    """The same terminal or pipe, opened anew so that O_NONBLOCK holds for us only, not for the shell that shares it."""
    try:
        if os.isatty(fd) or stat.S_ISFIFO(os.fstat(fd).st_mode):
            return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:  # the terminal may belong to another user (su), or there is no /proc: written to as it is
        pass
    return None  # nobody waits for a file; a second opening of it would overwrite what others write
