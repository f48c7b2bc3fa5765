"""A system that is short of threads."""

import math
import os
import socket
import struct
import threading
from collections.abc import Callable

from workers.queue_keeper import OWN_CLIENTS


def scarce_start(given: int = 0, refusals: float = math.inf) -> Callable[[threading.Thread], None]:
    """Takes the place of Thread.start: a manager process gets so many threads for workers, then so many times none."""
    start, starts, lines = threading.Thread.start, list[int](), list[int]()

    def is_for_worker(thread: threading.Thread) -> bool:
        """The supervisor's own are not counted."""
        serves = getattr(thread._target, "__name__", "")  # type: ignore[attr-defined]
        if serves == "_serve_line":
            lines.append(1)
            return len(lines) > OWN_CLIENTS
        if serves != "_serve_connection":
            return False
        [accepted] = thread._args  # type: ignore[attr-defined]
        pid, _, _ = struct.unpack("3i", accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return bool(pid != os.getppid())

    def start_or_refuse(thread: threading.Thread) -> None:
        if is_for_worker(thread):
            starts.append(1)
            if given < len(starts) <= given + refusals:
                raise RuntimeError("can't start new thread")
        start(thread)

    return start_or_refuse
