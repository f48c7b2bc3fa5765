"""Named places where a test makes a process fail: nothing happens unless the environment asks for it.

POQUEUE_TESTING=1 and POQUEUE_FAILPOINT="name:nth:action", where action is kill, exit, stop (SIGSTOP), sleep=SECONDS or
raise=ERRNO; each process counts its own hits. With POQUEUE_FAILPOINT_ONCE=FILE only the first process that gets there acts:
the file is made by whoever does, so that the fault does not meet the replacement as well. Several points are joined by commas.
"""

import os
import signal
import time
from collections.abc import Callable

_TESTING = "POQUEUE_TESTING"
_POINTS = "POQUEUE_FAILPOINT"
_ONCE = "POQUEUE_FAILPOINT_ONCE"


def _nothing(name: str) -> None:
    """No test asks for anything."""


class _Points:
    def __init__(self, text: str, once: str | None) -> None:
        self._once = once
        self._hits: dict[str, int] = {}
        self._wanted = [part.split(":", 2) for part in text.split(",") if part]

    def hit(self, name: str) -> None:
        self._hits[name] = count = self._hits.get(name, 0) + 1
        for wanted, nth, action in self._wanted:
            if wanted == name and count == int(nth) and self._is_first():
                _act(action)

    def _is_first(self) -> bool:
        if self._once is None:
            return True
        try:
            os.close(os.open(self._once, os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            return False
        return True


def _act(action: str) -> None:
    word, _, value = action.partition("=")
    if word == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif word == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif word == "exit":
        os._exit(int(value or 1))
    elif word == "sleep":
        time.sleep(float(value))
    elif word == "raise":
        raise OSError(int(value), os.strerror(int(value)))
    else:
        raise ValueError(f"unknown action of a failpoint: {action}")


def _chosen() -> Callable[[str], None]:
    if os.environ.get(_TESTING) != "1" or not os.environ.get(_POINTS):
        return _nothing
    return _Points(os.environ[_POINTS], os.environ.get(_ONCE)).hit


hit = _chosen()
is_armed = hit is not _nothing  # for whoever would rather ask than call it for nothing, for each PO
