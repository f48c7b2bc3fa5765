"""A system that is short of threads."""

import _thread
import math
import os
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

from workers.queue_keeper import OWN_CLIENTS


def scarce_start(given: int = 0, refusals: float = math.inf) -> Callable[[threading.Thread], None]:
    """Takes the place of Thread.start: a manager process gets so many threads for workers, then so many times none."""
    start, starts = threading.Thread.start, list[int]()

    def start_or_refuse(thread: threading.Thread) -> None:
        if getattr(thread._target, "__name__", "") == "_serve_connection":  # type: ignore[attr-defined]
            [accepted] = thread._args  # type: ignore[attr-defined]
            pid, _, _ = struct.unpack("3i", accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            starts.extend([pid] if pid != os.getppid() else [])  # the supervisor's own are not counted
            if pid != os.getppid() and given < len(starts) <= given + refusals:
                raise RuntimeError("can't start new thread")
        start(thread)

    return start_or_refuse


def scarce_lines(given: int) -> Callable[..., int]:
    """Takes the place of _thread.start_new_thread: of the connections made with a manager, so many are served for workers."""
    start, lines = _thread.start_new_thread, list[int]()

    def start_or_refuse(function: Callable[..., Any], *words: Any) -> int:
        if getattr(function, "__name__", "") == "_serve_line":
            lines.append(1)
            if len(lines) > OWN_CLIENTS + given:
                raise RuntimeError("can't start new thread")
        return start(function, *words)

    return start_or_refuse
