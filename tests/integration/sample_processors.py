"""Processors for tests of the command line: what each PO does stands in its column `do`.

The option `folder` names a folder in which every attempt leaves a line in `trail`, and which the tests answer through.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from workers import GiveUp, RetryLater, WorkerContext

PATIENCE_S = 60.0


def empty(po: dict[str, Any]) -> None:
    """Nothing at all."""


def count_rows(po: dict[str, Any]) -> dict[str, Any]:
    """How many rows the PO has, and which."""
    return {"count": len(po["rows"]), "numbers": " ".join(map(str, po["row_numbers"]))}


def some_fail(po: dict[str, Any]) -> dict[str, Any]:
    """A third of all POs cannot succeed, always the same ones."""
    if zlib.crc32(po["po_number"].encode()) % 3 == 0:
        raise GiveUp("there is no such order")
    return {"page": f"page of {po['po_number']}"}


def behave(po: dict[str, Any], context: WorkerContext) -> Any:
    """As the row says."""
    name, _, argument = (po.get("do") or "ok").partition(" ")
    begun = time.monotonic()
    _leave_trail(context, {"event": "begin", "at": begun})
    try:
        return ACTS[name](argument, context)
    finally:
        _leave_trail(context, {"event": "end", "at": time.monotonic()})


def _leave_trail(context: WorkerContext, more: dict[str, Any]) -> None:
    if "folder" not in context.options:
        return
    line = {
        "po": context.po_number,
        "attempt": context.attempt,
        "worker": context.worker_id,
        "pid": os.getpid(),
        **more,
    }
    with open(Path(context.options["folder"]) / "trail", "ab", buffering=0) as file:
        file.write(json.dumps(line).encode() + b"\n")


def _ok(argument: str, context: WorkerContext) -> dict[str, Any]:
    return {"attempt": context.attempt}


def _fail(argument: str, context: WorkerContext) -> NoReturn:
    raise RuntimeError(f"it went wrong {argument}".strip())


def _fail_until(argument: str, context: WorkerContext) -> dict[str, Any]:
    if context.attempt < int(argument):
        raise RuntimeError("not yet")
    return _ok(argument, context)


def _give_up(argument: str, context: WorkerContext) -> NoReturn:
    raise GiveUp("there is no such order")


def _later(argument: str, context: WorkerContext) -> dict[str, Any]:
    if context.attempt == 1:
        raise RetryLater("the server asked for a pause", after=float(argument))
    return _ok(argument, context)


def _long_number(argument: str, context: WorkerContext) -> dict[str, Any]:
    """Of more digits than Python makes text of, unless it is told otherwise."""
    sys.set_int_max_str_digits(0)
    return {"n": 10**5000}


def _hang(argument: str, context: WorkerContext) -> NoReturn:
    while True:
        signal.pause()


def _hang_once(argument: str, context: WorkerContext) -> dict[str, Any]:
    return _ok(argument, context) if context.attempt > 1 else _hang(argument, context)


def _stubborn(argument: str, context: WorkerContext) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _leave_trail(context, {"event": "deaf"})
    _hang(argument, context)


def _wait(argument: str, context: WorkerContext) -> dict[str, Any]:
    """Until the test says go."""
    go = Path(context.options["folder"]) / "go"
    deadline = time.monotonic() + PATIENCE_S
    while not go.exists():
        if time.monotonic() > deadline:
            raise RuntimeError("the test has not said go")
        time.sleep(0.01)
    return _ok(argument, context)


def _say(argument: str, context: WorkerContext) -> dict[str, Any]:
    print(f"printed {context.po_number}")
    print(f"complained {context.po_number}", file=sys.stderr)
    logging.getLogger("my.site").warning("logged %s", context.po_number)
    subprocess.run(["/bin/echo", f"child {context.po_number}"], check=True)
    if argument and context.attempt == 1:
        raise RuntimeError("said enough")
    return _ok(argument, context)


ACTS: dict[str, Callable[[str, WorkerContext], Any]] = {
    "ok": _ok,
    "fail": _fail,
    "fail-until": _fail_until,
    "give-up": _give_up,
    "later": _later,
    "long-number": _long_number,
    "hang": _hang,
    "hang-once": _hang_once,
    "stubborn": _stubborn,
    "wait": _wait,
    "say": _say,
}


class Session:
    """A class: leaves a line in the trail for setup and teardown, and counts the POs of the instance."""

    def setup(self, context: WorkerContext) -> None:
        self.context = context
        self.served = 0
        _leave_trail(context, {"event": "setup"})

    def process(self, po: dict[str, Any], context: WorkerContext) -> dict[str, Any]:
        self.served += 1
        return {"served": self.served}

    def teardown(self) -> None:
        _leave_trail(self.context, {"event": "teardown", "served": self.served})


class SetupFails:
    """A class that no worker can use."""

    def setup(self, context: WorkerContext) -> None:
        raise OSError("the browser does not start\nCall log:\n  for more see the manual")

    def process(self, po: dict[str, Any]) -> None:
        """Never reached."""


class NeedsArguments:
    """Cannot be constructed by a worker."""

    def __init__(self, url: str) -> None:
        self.url = url

    def process(self, po: dict[str, Any]) -> None:
        """Never reached."""


class NoProcess:
    """Lacks what makes it a processor."""


def takes_nothing() -> None:
    """Does not fit."""


def takes_three(po: object, context: object, more: object) -> None:
    """Does not fit."""


async def asynchronous(po: object) -> None:
    """Would never be awaited."""


number = 42
