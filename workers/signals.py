"""Signals: at first they end the command (__main__.py), then they are raised, and during a run they are messages.

An exception that a handler raises in a weak reference's callback is printed and forgotten, so what is raised is noted
too. A `SignalInbox` only notes a signal, and wakes whoever waits.
"""

import contextlib
import faulthandler
import os
import signal
from collections import deque
from types import FrameType

from poqueue.hints import Any

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_raised: list[int] = []


class Interrupt(KeyboardInterrupt):
    """Raised by INT, and by nobody else."""


class Termination(SystemExit):
    """Raised by TERM and HUP, and by nobody else."""

    code: int


def raise_interrupts() -> None:
    """INT raises KeyboardInterrupt, TERM and HUP SystemExit from now on; the next inbox takes what got lost on the way.
    QUIT shows where we are, and we go on."""
    for number in NUMBERS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _show_stacks if number == signal.SIGQUIT else _raise)


def let_interrupts_pass() -> None:
    """INT, TERM and HUP do nothing from now on: all is done, and to let go of it takes a while after many POs."""
    for number in NUMBERS:
        if signal.getsignal(number) is _raise:
            signal.signal(number, lambda number, frame: None)  # not SIG_IGN: what is started would inherit that


def _raise(number: int, frame: FrameType | None) -> None:
    _raised.append(number)
    raise Interrupt if number == signal.SIGINT else Termination(128 + number)


def _show_stacks(number: int, frame: FrameType | None) -> None:
    faulthandler.dump_traceback(2)  # there is no log yet


class SignalInbox:
    """While it is open, INT, TERM, HUP and QUIT are noted here and do nothing else; HUP is not if it is ignored (nohup), nor
    any that a library in C has taken: that keeps it.

    Only a process's main thread can have handlers; elsewhere the inbox takes what `put` gives it. It may be opened again
    while it is open: the outer one keeps the handlers.
    """

    def __init__(self) -> None:
        self._noted: deque[int] = deque()
        self._depth = 0
        self._before: dict[int, Any] = {}
        self._wakeup_before: int | None = None
        self._read_end = self._write_end = -1

    def __enter__(self) -> "SignalInbox":
        self._depth += 1
        if self._depth > 1:
            return self
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        os.set_blocking(self._write_end, False)
        with contextlib.suppress(ValueError):  # not the main thread
            self._wakeup_before = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
            handlers = {number: signal.getsignal(number) for number in NUMBERS}
            if handlers[signal.SIGHUP] is signal.SIG_IGN:  # nohup
                del handlers[signal.SIGHUP]
            # None: a library in C has set it, which Python could not undo
            self._before = {number: handler for number, handler in handlers.items() if handler is not None}
            for number in self._before:
                signal.signal(number, self._note)
            while _raised:  # and we are here all the same
                self.put(_raised.pop())
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._depth -= 1
        if self._depth:
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
        if self._wakeup_before is not None:
            signal.set_wakeup_fd(self._wakeup_before)
            self._wakeup_before = None
        os.close(self._read_end)
        os.close(self._write_end)
        self._read_end = self._write_end = -1

    @property
    def is_waiting(self) -> bool:
        """Whether a signal has come and was not taken."""
        return bool(self._noted)

    def fileno(self) -> int:
        """Ready to be read when a signal has come."""
        return self._read_end

    def put(self, number: int) -> None:
        """As if the signal had come."""
        self._noted.append(number)
        with contextlib.suppress(OSError):
            os.write(self._write_end, b"\0")

    def take(self) -> int | None:
        """The oldest signal not yet taken."""
        return self._noted.popleft() if self._noted else None

    def quiet(self) -> None:
        """Empty the pipe that wakes."""
        with contextlib.suppress(BlockingIOError):
            while len(os.read(self._read_end, 4096)) == 4096:
                pass

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted.append(number)
