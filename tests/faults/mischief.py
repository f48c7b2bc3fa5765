"""More processors that misbehave, beside tests/integration/villains.py: what a PO does stands in its field `do`."""

import faulthandler
import json
import logging
import logging.config
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any, NoReturn

from poqueue.wire import Stream
from tests.integration import villains
from workers import WorkerContext

LOCK = threading.Lock()


def process(po: dict[str, Any], context: WorkerContext) -> Any:
    """As the PO says, with the villains' notes."""
    villains.note(po, "start", context)
    deed = DEEDS.get(po["do"]) or villains.DEEDS[po["do"]]
    result = deed(po, context)
    villains.note(po, "end", context)
    return result


# ── those who die ────────────────────────────────────────────────────────────────────────────────────────────────────


def fork_and_die(po: dict[str, Any], context: WorkerContext) -> NoReturn:
    """A child lives on that holds every descriptor of its parent, the one that tells of its end included."""
    if (child := os.fork()) == 0:
        villains._long()
    villains._note_pid(po, child)
    os.kill(os.getpid(), signal.SIGKILL)
    villains._long()


def half_a_report(po: dict[str, Any], context: WorkerContext) -> dict[str, Any]:
    """Dies after half of the message that tells of its 5 MB result."""

    def send_half(self: Any, data: bytes) -> NoReturn:
        message = struct.pack("!i", len(data)) + bytes(data)
        assert len(data) > 5_000_000
        rest = memoryview(message)[: len(message) // 2]
        while rest:
            rest = rest[os.write(self.fileno(), rest) :]
        os.kill(os.getpid(), signal.SIGKILL)
        villains._long()

    Stream.send = send_half  # type: ignore[method-assign]
    return {"x": "x" * 5_000_000}


# ── those whose result is none ───────────────────────────────────────────────────────────────────────────────────────


class Reduces:
    """Whoever pickles it, or opens the pickle, is lost."""

    def __init__(self, how: str, at: str) -> None:
        self.how, self.at = how, at

    def __reduce__(self) -> Any:
        if self.at == "pickle":
            harm(self.how)
        return harm, (self.how,)


def harm(how: str) -> None:
    """End, crash or break off."""
    if how == "exit":
        os._exit(1)
    elif how == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif how == "sys.exit":
        sys.exit(0)
    raise RuntimeError(how)


def fill_up(po: dict[str, Any], context: WorkerContext) -> dict[str, Any]:
    """From now on this process can write no file of more than 50 kB: its own report of this result does not fit."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    return {"x": "x" * 100_000}


def _deep() -> list[Any]:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    return deep


def _cycle() -> list[Any]:
    cycle: list[Any] = []
    cycle.append(cycle)
    return cycle


RESULTS: dict[str, Callable[[], Any]] = {
    **{
        f"{how} at {at}": lambda how=how, at=at: {"x": Reduces(how, at)}
        for how in ("error", "exit", "segfault", "sys.exit")
        for at in ("pickle", "unpickle")
    },
    **{
        f"{how} at {at}, as the result": lambda how=how, at=at: Reduces(how, at)
        for how in ("error", "exit", "segfault")
        for at in ("pickle", "unpickle")
    },
    "lambda": lambda: {"x": lambda: None},
    "generator": lambda: {"x": (n for n in ())},
    "open file": lambda: {"x": sys.__stdin__ or sys.stdin},
    "lock": lambda: {"x": threading.Lock()},
    "deep": lambda: {"x": _deep()},
    "cycle": lambda: {"x": _cycle()},
    "nan": lambda: {"x": float("nan")},
    "surrogate": lambda: {"x": "\ud800"},
}
TOO_LARGE = "200 MB"


def give_result(po: dict[str, Any], context: WorkerContext) -> Any:
    """What stands in the field `result`, if a processor had made it."""
    if po["result"] == TOO_LARGE:
        return {"x": "x" * 200_000_000}
    return RESULTS[po["result"]]()


def give_decimal(po: dict[str, Any], context: WorkerContext) -> dict[str, Any]:
    return {"total": Decimal("12.50")}


# ── those who leave something for the next PO ────────────────────────────────────────────────────────────────────────


def set_an_alarm(po: dict[str, Any], context: WorkerContext) -> None:
    """It rings, and kills who does not listen, when the next PO runs."""
    signal.setitimer(signal.ITIMER_REAL, 0.05)


def dump_a_traceback_later(po: dict[str, Any], context: WorkerContext) -> None:
    """And end, when the next PO runs."""
    faulthandler.dump_traceback_later(0.05, exit=True)


def set_cpu_timers(po: dict[str, Any], context: WorkerContext) -> None:
    """They ring while the next PO computes, and kill who does not listen."""
    signal.setitimer(signal.ITIMER_VIRTUAL, 0.05)
    signal.setitimer(signal.ITIMER_PROF, 0.05, 0.05)


def limit_cpu_time(po: dict[str, Any], context: WorkerContext) -> None:
    """And forget to lift the limit."""
    signal.signal(signal.SIGPROF, _raise_timeout)
    signal.setitimer(signal.ITIMER_PROF, 0.05, 0.05)


def _raise_timeout(number: int, frame: Any) -> None:
    raise TimeoutError("too much computing")


def switch_logging_off(po: dict[str, Any], context: WorkerContext) -> None:
    logging.disable(logging.CRITICAL)


def take_logging_away(po: dict[str, Any], context: WorkerContext) -> None:
    logging.basicConfig(filename=os.devnull, force=True, level=logging.CRITICAL)


def take_sigusr1_and_hang(po: dict[str, Any], context: WorkerContext) -> NoReturn:
    """The signal by which a worker is asked for its stack."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    villains._long()


SIGNALS = (
    signal.SIGCHLD, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGALRM, signal.SIGUSR1, signal.SIGTERM,
)  # fmt: skip


def take_signals(po: dict[str, Any], context: WorkerContext) -> dict[str, Any]:
    """Tells what they did, and has them do something else."""
    found = {number.name: str(signal.getsignal(number)) for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN if number in (signal.SIGCHLD, signal.SIGUSR1) else signal.SIG_DFL)
    return found


def run_false(po: dict[str, Any], context: WorkerContext) -> dict[str, Any]:
    """A program that fails."""
    return {"code": subprocess.run(["false"], check=False).returncode}


class TakesSignals:
    """A session with a handler of its own."""

    def setup(self, context: WorkerContext) -> None:
        signal.signal(signal.SIGALRM, self.ring)

    def ring(self, number: int, frame: Any) -> None:
        """Is never called."""

    def process(self, po: dict[str, Any], context: WorkerContext) -> Any:
        return process(po, context)


def leak(po: dict[str, Any], context: WorkerContext) -> None:
    """Descriptors and threads that nobody takes back."""
    for _ in range(50):
        os.open(os.devnull, os.O_RDONLY)
    for _ in range(5):
        threading.Thread(target=threading.Event().wait, daemon=True).start()


def count_leaks(po: dict[str, Any], context: WorkerContext) -> dict[str, Any]:
    return {"fds": len(os.listdir("/proc/self/fd")), "threads": threading.active_count(), "pid": os.getpid()}


def log_a_line(po: dict[str, Any], context: WorkerContext) -> None:
    """Long enough for an alarm that somebody has left, and for one after some computing."""
    end = time.monotonic() + 0.15
    while time.monotonic() < end:
        time.sleep(0.01)
    end = time.process_time() + 0.15
    while time.process_time() < end:
        pass
    logging.getLogger("my.site").warning("logged by %s", po["po_number"])


class LogsToAFile:
    """A session that sets up logging in its own way, and removes what was there."""

    def setup(self, context: WorkerContext) -> None:
        path = Path(context.options["folder"], "own.log")
        own = {"class": "logging.FileHandler", "filename": str(path)}
        logging.config.dictConfig(
            {"version": 1, "handlers": {"own": own}, "root": {"handlers": ["own"], "level": "WARNING"}}
        )

    def process(self, po: dict[str, Any], context: WorkerContext) -> Any:
        return process(po, context)


# ── others ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def end_after(po: dict[str, Any], context: WorkerContext) -> dict[str, Any]:
    """The first attempt takes `seconds`, any other none."""
    if context.attempt == 1:
        time.sleep(po["seconds"])
    return {"attempt": context.attempt}


def take_the_lock(po: dict[str, Any], context: WorkerContext) -> None:
    """A lock of this module, which a thread of the embedding program may hold."""
    with LOCK:
        pass


def write_files(po: dict[str, Any], context: WorkerContext) -> dict[str, Any]:
    """A file of each kind of name, and a wait for the test to look at the run directory."""
    (context.output_dir / "of the processor").write_text("x")
    folder = Path(context.options["folder"])
    with open(folder / "begun", "a") as file:
        file.write(json.dumps(po["po_number"]) + "\n")
    end = time.monotonic() + villains.LONG_S
    while not (folder / "go").exists() and time.monotonic() < end:
        time.sleep(0.01)
    print("said", po["po_number"])
    return {}


DEEDS: dict[str, Callable[[dict[str, Any], WorkerContext], Any]] = {
    deed.__name__: deed
    for deed in (
        fork_and_die, half_a_report, fill_up, give_result, give_decimal, set_an_alarm, set_cpu_timers, limit_cpu_time,
        dump_a_traceback_later, switch_logging_off, take_logging_away,
        take_sigusr1_and_hang, take_signals, run_false, leak, count_leaks, log_a_line, end_after, take_the_lock, write_files,
    )
}  # fmt: skip
