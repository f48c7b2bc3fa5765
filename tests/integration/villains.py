"""Processors that misbehave, each in its own way, and good ones beside them: what a PO does stands in its field `do`.

Every attempt leaves a line in the file `history` of the PO's `folder`, and every process that one starts leaves its pid in
the file `pids`. No villain lives longer than LONG_S, whatever a test forgets.
"""

import atexit
import contextlib
import faulthandler
import fcntl
import io
import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NoReturn

from poqueue import ProcessingTask
from workers import GiveUp, RetryLater, WorkerContext

GOOD_S = 0.15
LONG_S = 300.0
BOMB_SIZE = 20


def process(po: dict[str, Any], context: WorkerContext) -> Any:
    """As the PO says; `start` and `end` go into the history, a killed attempt leaves no `end`."""
    note(po, "start", context)
    result = DEEDS[po["do"]](po, context)
    note(po, "end", context)
    return result


def note(po: dict[str, Any], event: str, context: WorkerContext) -> None:
    """One line, one write: whole whatever happens to the process."""
    line = {
        "event": event, "po": po["po_number"], "attempt": context.attempt, "pid": os.getpid(),
        "worker": context.worker_id, "at": time.monotonic(),
    }  # fmt: skip
    append(Path(po["folder"], "history"), json.dumps(line))


def append(path: Path, line: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, line.encode() + b"\n")
    os.close(fd)


def _note_pid(po: dict[str, Any], pid: int) -> None:
    append(Path(po["folder"], "pids"), str(pid))


def _long() -> NoReturn:
    """Hangs, but not past the end of a forgetful test."""
    end = time.monotonic() + LONG_S
    while time.monotonic() < end:
        time.sleep(LONG_S)
    os._exit(99)


# ── good ones ────────────────────────────────────────────────────────────────────────────────────────────────────────


def good(po: dict[str, Any], context: WorkerContext) -> dict[str, Any]:
    time.sleep(GOOD_S)
    return {"pid": os.getpid()}


def quick(po: dict[str, Any], context: WorkerContext) -> dict[str, Any]:
    return {"pid": os.getpid()}


def look_for_another(po: dict[str, Any], context: WorkerContext) -> dict[str, Any]:
    """Which processes live that have begun a PO of this number before."""
    lines = [json.loads(line) for line in Path(po["folder"], "history").read_text().splitlines()]
    others = {line["pid"] for line in lines if line["po"] == po["po_number"]} - {os.getpid()}
    return {"others": [pid for pid in others if os.path.exists(f"/proc/{pid}")]}


def pause(po: dict[str, Any], context: WorkerContext) -> None:
    time.sleep(po["seconds"])


def close_pipes(po: dict[str, Any], context: WorkerContext) -> None:
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if int(name) > 2 and os.readlink(f"/proc/self/fd/{name}").startswith("pipe:"):
                os.close(int(name))
    time.sleep(1.0)


def map_in_a_pool(po: dict[str, Any], context: WorkerContext) -> dict[str, Any]:
    with get_context("fork").Pool(2) as pool:
        return {"sum": sum(pool.map(abs, [-1, -2]))}


def fork_and_look(po: dict[str, Any], context: WorkerContext) -> dict[str, Any]:
    """A TERM that reaches the child as early as can be ends it; what is held back meanwhile comes through again in both."""
    if not hasattr(fork_and_look, "hook"):
        fork_and_look.hook = lambda: po.get("now") and os.kill(os.getpid(), signal.SIGTERM)  # type: ignore[attr-defined]
        os.register_at_fork(after_in_child=fork_and_look.hook)  # type: ignore[attr-defined]
    po["now"] = True
    child = os.fork()
    if child == 0:
        time.sleep(LONG_S)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    is_held = signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    return {"child": os.waitstatus_to_exitcode(status), "is_held": is_held}


def supervise(po: dict[str, Any], context: WorkerContext) -> dict[str, Any]:
    """A run of its own in a worker."""
    from workers import Supervisor

    quick_one = {"po_number": "N", "do": "quick", "folder": po["folder"]}
    with Supervisor("tests.integration.villains:process", jobs=1, start_method=po["by"]) as supervisor:
        supervisor.queue.add_task(ProcessingTask("N", quick_one))
        supervisor.run()
        return {"completed": supervisor.queue.get_queue_status()["completed_tasks"]}


def count_threads(po: dict[str, Any], context: WorkerContext) -> dict[str, Any]:
    return {"threads": len(os.listdir("/proc/self/task"))}


def fail(po: dict[str, Any], context: WorkerContext) -> NoReturn:
    raise RuntimeError("it went wrong")


def give_up(po: dict[str, Any], context: WorkerContext) -> NoReturn:
    raise GiveUp("there is no such order")


def later(po: dict[str, Any], context: WorkerContext) -> dict[str, Any]:
    if context.attempt == 1:
        raise RetryLater(after=0.01)
    return {}


def leave_no_room(po: dict[str, Any], context: WorkerContext) -> None:
    """The disk is full: no report can be kept from now on."""
    from workers.kept_reports import ReportKeeper

    ReportKeeper.keep = lambda self, report: False  # type: ignore[method-assign]


def wait_for_go(po: dict[str, Any], context: WorkerContext) -> dict[str, Any]:
    """Until the test makes the file `go`."""
    end = time.monotonic() + LONG_S
    while not Path(po["folder"], "go").exists() and time.monotonic() < end:
        time.sleep(0.01)
    return {}


def where_output_goes(po: dict[str, Any], context: WorkerContext) -> dict[str, Any]:
    return {"folder": str(context.output_dir)}


def spoil_the_report(po: dict[str, Any], context: WorkerContext) -> None:
    """Its worker reports what the queue refuses: an attempt that took less than no time."""
    from workers import processing

    processing.monotonic_ns = lambda: 0  # type: ignore[attr-defined]


def hang_afterwards(po: dict[str, Any], context: WorkerContext) -> None:
    """Not in the PO, but between it and the next one, as what a PO leaves to the garbage collector may do."""
    from workers.worker_files import WorkerWriter

    idle = WorkerWriter.idle
    WorkerWriter.idle = lambda self: idle(self) or _long()  # type: ignore[method-assign,func-returns-value]


def look_round(po: dict[str, Any], context: WorkerContext) -> dict[str, Any]:
    """What a PO finds that comes after another one; printing must work."""
    print(f"printed by {po['po_number']}")
    subprocess.run(["/bin/echo", f"echoed by {po['po_number']}"], check=True)
    umask = os.umask(0o077)
    os.umask(umask)
    handler = signal.getsignal(signal.SIGTERM)
    return {
        "cwd": os.getcwd(),
        "umask": umask,
        "handler": getattr(handler, "__name__", str(handler)),
        "pid": os.getpid(),
    }


# ── those who die ────────────────────────────────────────────────────────────────────────────────────────────────────


def kill_itself(po: dict[str, Any], context: WorkerContext) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    _long()


def exit_zero(po: dict[str, Any], context: WorkerContext) -> NoReturn:
    os._exit(0)


def segfault(po: dict[str, Any], context: WorkerContext) -> NoReturn:
    faulthandler._sigsegv()  # type: ignore[attr-defined]
    _long()


def say_and_die(po: dict[str, Any], context: WorkerContext) -> NoReturn:
    print("last words")
    os.write(2, b"no newline at the end")
    kill_itself(po, context)


def shout_and_die(po: dict[str, Any], context: WorkerContext) -> NoReturn:
    """More than a reader takes at once, and then what matters."""
    os.write(1, (b"z" * 999 + b"\n") * 12_000)
    say_and_die(po, context)


def own_and_die(po: dict[str, Any], context: WorkerContext) -> NoReturn:
    """Owns a folder, and two files, of which one has a name that is no text."""
    folder = Path(po["folder"], "profile")
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "cookies").write_text("x")
    lock = Path(po["folder"], "lock")
    lock.write_text("x")
    context.own(path=folder)
    context.own(path=lock)
    odd = os.fsencode(po["folder"]) + b"/odd-\xff"
    with open(odd, "w"):
        context.own(path=odd)
    kill_itself(po, context)


def own_and_end(po: dict[str, Any], context: WorkerContext) -> dict[str, Any]:
    """Owns a file while it is half written."""
    path = Path(po["folder"], f"file-{po['po_number']}")
    context.own(path=path)
    path.write_text("half")
    return {}


def own_and_fail(po: dict[str, Any], context: WorkerContext) -> NoReturn:
    own_and_end(po, context)
    fail(po, context)


def own_and_hang(po: dict[str, Any], context: WorkerContext) -> NoReturn:
    own_and_end(po, context)
    _long()


# ── those who hang ───────────────────────────────────────────────────────────────────────────────────────────────────


def hang(po: dict[str, Any], context: WorkerContext) -> NoReturn:
    _long()


def ignore_term(po: dict[str, Any], context: WorkerContext) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
    _long()


def swallow_everything(po: dict[str, Any], context: WorkerContext) -> NoReturn:
    end = time.monotonic() + LONG_S
    while time.monotonic() < end:
        with contextlib.suppress(BaseException):  # for what comes between two rounds of the inner one
            while time.monotonic() < end:
                with contextlib.suppress(BaseException):
                    time.sleep(0.01)
    os._exit(99)


def child_sleeps(po: dict[str, Any], context: WorkerContext) -> None:
    child = subprocess.Popen(["sleep", str(int(LONG_S))])
    _note_pid(po, child.pid)
    child.wait()


def fork_bomb(po: dict[str, Any], context: WorkerContext) -> NoReturn:
    """Each child has a child of its own; 20 at most, deaf to TERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for _ in range(BOMB_SIZE // 2):
        if os.fork() == 0:
            with contextlib.suppress(OSError):
                os.fork()
            _note_pid(po, os.getpid())
            _long()
    _long()


def stop_itself(po: dict[str, Any], context: WorkerContext) -> NoReturn:
    os.kill(os.getpid(), signal.SIGSTOP)
    _long()


def hold_the_gil(po: dict[str, Any], context: WorkerContext) -> int:
    return sum(range(10**11))


def hang_in_finally(po: dict[str, Any], context: WorkerContext) -> None:
    try:
        _long()
    finally:
        append(Path(po["folder"], "finally"), po["po_number"])


# ── those who leave daemons ──────────────────────────────────────────────────────────────────────────────────────────


def _daemonise(po: dict[str, Any]) -> None:
    """The textbook's way: fork, setsid, fork; the worker waits until the daemon has named itself."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        os.chdir("/")
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        _note_pid(po, os.getpid())
        os.closerange(0, 200)
        _long()
    os.close(write_end)
    os.read(read_end, 1)
    os.close(read_end)
    os.waitpid(child, 0)


def daemon_and_hang(po: dict[str, Any], context: WorkerContext) -> NoReturn:
    _daemonise(po)
    _long()


def daemon_and_die(po: dict[str, Any], context: WorkerContext) -> NoReturn:
    _daemonise(po)
    kill_itself(po, context)


def daemon_and_end(po: dict[str, Any], context: WorkerContext) -> dict[str, Any]:
    _daemonise(po)
    return {}


def _daemon_by_shell(po: dict[str, Any], *prefix: str) -> None:
    """Returns when the daemon has written its pid; a file of its own tells so, since others write theirs as well."""
    pids, has_written = f"{po['folder']}/pids", f"{po['folder']}/pid-of-{po['po_number']}"
    daemon = f"echo $$ >> '{pids}'; : > '{has_written}'; exec sleep {int(LONG_S)}"
    script = (
        f'setsid sh -c "{daemon.replace("$", chr(92) + "$")}" >/dev/null 2>&1 & '
        f"while [ ! -e '{has_written}' ]; do :; done"
    )
    subprocess.run([*prefix, "sh", "-c", script], check=True, stdin=subprocess.DEVNULL)


def shell_daemon_and_hang(po: dict[str, Any], context: WorkerContext) -> NoReturn:
    _daemon_by_shell(po)
    _long()


def shell_daemon_and_die(po: dict[str, Any], context: WorkerContext) -> NoReturn:
    _daemon_by_shell(po)
    kill_itself(po, context)


def clean_daemon_and_hang(po: dict[str, Any], context: WorkerContext) -> NoReturn:
    """A daemon in an environment of its own: no mark of ours is in it."""
    _daemon_by_shell(po, "env", "-i", f"PATH={os.environ['PATH']}")
    _long()


def clean_daemon_and_die(po: dict[str, Any], context: WorkerContext) -> NoReturn:
    _daemon_by_shell(po, "env", "-i", f"PATH={os.environ['PATH']}")
    kill_itself(po, context)


def orphan_that_ends(po: dict[str, Any], context: WorkerContext) -> dict[str, Any]:
    """A grandchild that outlives its parent by a moment and ends by itself."""
    if (child := os.fork()) == 0:
        if os.fork() == 0:
            time.sleep(0.02)
        os._exit(0)
    os.waitpid(child, 0)
    return {}


# ── those who leave their worker in a mess ───────────────────────────────────────────────────────────────────────────


def fork_and_return(po: dict[str, Any], context: WorkerContext) -> dict[str, Any]:
    os.fork()
    return {"pid": os.getpid()}


def sys_exit(po: dict[str, Any], context: WorkerContext) -> NoReturn:
    sys.exit(0)


def keyboard_interrupt(po: dict[str, Any], context: WorkerContext) -> NoReturn:
    raise KeyboardInterrupt


def close_standard_fds(po: dict[str, Any], context: WorkerContext) -> None:
    for fd in range(3):
        os.close(fd)


def close_streams(po: dict[str, Any], context: WorkerContext) -> None:
    sys.stdout.close()
    sys.stderr.close()


def replace_streams(po: dict[str, Any], context: WorkerContext) -> None:
    sys.stdout = sys.stderr = io.StringIO()


def many_rows(po: dict[str, Any], context: WorkerContext) -> dict[str, Any]:
    """Found in no time, and long to write down."""
    return {"rows": _MANY_ROWS}


def large_result(po: dict[str, Any], context: WorkerContext) -> dict[str, Any]:
    return {"text": "x" * 200_000}


_MANY_ROWS = [{"a": number, "b": {"c": str(number)}} for number in range(400)]


class _Broken(io.StringIO):
    def flush(self) -> None:
        raise RuntimeError("broken")


def break_streams(po: dict[str, Any], context: WorkerContext) -> None:
    sys.stdout = sys.stderr = _Broken()


def remove_cwd(po: dict[str, Any], context: WorkerContext) -> None:
    folder = Path(po["folder"], "gone")
    folder.mkdir()
    os.chdir(folder)
    shutil.rmtree(folder)


def change_cwd(po: dict[str, Any], context: WorkerContext) -> None:
    os.chdir("/")


def change_umask(po: dict[str, Any], context: WorkerContext) -> None:
    os.umask(0o777)


def change_handler(po: dict[str, Any], context: WorkerContext) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def block_term(po: dict[str, Any], context: WorkerContext) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])


def huge_stdout(po: dict[str, Any], context: WorkerContext) -> None:
    os.write(1, b"x" * 20_000_000)
    os.write(1, b"\n" + b"y\n" * 100_000)


def chatter_for_ever(po: dict[str, Any], context: WorkerContext) -> NoReturn:
    """As many short lines as it can, until it is killed."""
    block = b"y\n" * 50_000
    end = time.monotonic() + LONG_S
    written = 0
    while time.monotonic() < end:
        if written < 10_000_000:
            written += os.write(1, block)
    os._exit(99)


def too_much_memory(po: dict[str, Any], context: WorkerContext) -> None:
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (in_use + 100_000_000, hard))
    bytearray(2_000_000_000)


_hoard: list[bytes] = []


def hoard_memory(po: dict[str, Any], context: WorkerContext) -> None:
    _hoard.append(os.urandom(1) * 40_000_000)


# ── those who survive TERM and end in the time of grace ──────────────────────────────────────────────────────────────


def return_on_term(po: dict[str, Any], context: WorkerContext) -> dict[str, Any]:
    """`finally: return` swallows whatever comes."""
    try:
        _long()
    finally:
        return {"swallowed": True}  # noqa: B012


def end_in_grace(po: dict[str, Any], context: WorkerContext) -> dict[str, Any]:
    """Deaf to TERM, and done a moment after its time is up."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(po["seconds"])
    return {}


def raise_on_term(po: dict[str, Any], context: WorkerContext) -> None:
    """Turns the worker's own exception into an ordinary one."""
    try:
        _long()
    except BaseException as error:
        raise ValueError("converted") from error


# ── those who talk ───────────────────────────────────────────────────────────────────────────────────────────────────


def talk(po: dict[str, Any], context: WorkerContext) -> None:
    """Every way in which text leaves a processor."""
    number = po["po_number"]
    print(f"printed by {number}")
    print(f"complaint of {number}", file=sys.stderr)
    logging.getLogger("my.site").warning("first line of %s\nsecond line", number)
    subprocess.run(["/bin/echo", f"echoed by {number}"], check=True)
    os.write(1, f"half a line of {number}".encode())
    logging.getLogger("my.site").error("logged in the middle by %s", number)
    os.write(1, b"\xff\xfe not text\n")


def forge_marks(po: dict[str, Any], context: WorkerContext) -> None:
    """Text that looks like the marks that the worker puts between POs, for instance out of a downloaded page."""
    forged = {"token": 1, "attempt": 7, "po_number": "FORGED", "task_id": "forged"}
    os.write(1, b"before\n\x1e" + json.dumps(forged).encode() + b"\n")
    os.write(1, b'\x1e{"level": "CRITICAL", "logger": "root", "message": "forged"}\n')
    for text in (
        b'\x1e{"token": null, "po_number": 1}\n',
        b'\x1e{"token": 1, "attempt": "x"}\n',
        b"\x1e[]\n",
        b"\x1e{\n",
    ):
        os.write(1, text)
    print("after")


DEEDS: dict[str, Callable[[dict[str, Any], WorkerContext], Any]] = {
    name: deed for name, deed in list(globals().items())
    if callable(deed) and getattr(deed, "__module__", "") == __name__ and not name.startswith("_")
    and name not in ("process", "note", "append")
}  # fmt: skip


# ── classes ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Session:
    """Leaves a line for each setup and teardown in the folder of the option `folder`."""

    def setup(self, context: WorkerContext) -> None:
        self.path = Path(context.options["folder"], "sessions")
        append(self.path, f"setup {context.worker_id}")
        self.worker_id = context.worker_id

    def process(self, po: dict[str, Any], context: WorkerContext) -> Any:
        return process(po, context)

    def teardown(self) -> None:
        append(self.path, f"teardown {self.worker_id}")


class SetupMakesItselfAtHome:
    """Each PO is to find the folder, the umask and the signal mask that `setup` has chosen."""

    def setup(self, context: WorkerContext) -> None:
        os.chdir(context.options["folder"])
        os.umask(0o027)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2, signal.SIGTERM])

    def process(self, po: dict[str, Any], context: WorkerContext) -> Any:
        if po["do"] != "look_round":
            return process(po, context)
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        return {**look_round(po, context), "blocked": sorted(number.name for number in blocked)}


class StopsTheClocks:
    """As tools for tests do, also where another module has one of them; a PO that says `start_clocks` has them go again."""

    def setup(self, context: WorkerContext) -> None:
        self.real = time.monotonic, time.monotonic_ns
        self.stopped = (lambda: 2e9), (lambda: 2 * 10**18)
        _replace(self.real, self.stopped)

    def process(self, po: dict[str, Any], context: WorkerContext) -> Any:
        if po["do"] != "start_clocks":
            return process(po, context)
        _replace(self.stopped, self.real)
        return {}


def _replace(old: tuple[Any, ...], new: tuple[Any, ...]) -> None:
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in ("time", "poqueue", "workers"):
            for key, value in list(vars(module).items()):
                for one, other in zip(old, new, strict=True):
                    if value is one:
                        setattr(module, key, other)


class SetupRaises:
    """No worker can open its session."""

    def setup(self, context: WorkerContext) -> None:
        append(Path(context.options["folder"], "boots"), str(os.getpid()))
        raise OSError("the browser does not start")

    def process(self, po: dict[str, Any]) -> None:
        """Never reached."""


class SetupRaisesAtTimes(SetupRaises):
    """Every other session cannot be opened."""

    def setup(self, context: WorkerContext) -> None:
        boots = Path(context.options["folder"], "boots")
        append(boots, str(os.getpid()))
        if len(boots.read_text().splitlines()) % 2:
            raise OSError("the browser does not start this time")

    def process(self, po: dict[str, Any]) -> None:
        """Quick."""


class OnlyOneAtATime(SetupRaises):
    """There is one licence, which the first worker holds."""

    def setup(self, context: WorkerContext) -> None:
        append(Path(context.options["folder"], "boots"), str(os.getpid()))
        self.licence = open(Path(context.options["folder"], "licence"), "w")  # noqa: SIM115  (held to the end)
        fcntl.flock(self.licence, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def process(self, po: dict[str, Any], context: WorkerContext) -> Any:
        return process(po, context)


class OnlyOneAtATimeAndSlowly(OnlyOneAtATime):
    """Whoever has the licence is not through before there is a file "go"."""

    def setup(self, context: WorkerContext) -> None:
        super().setup(context)
        while not Path(context.options["folder"], "go").exists():
            time.sleep(0.01)


class SetupHangs(SetupRaises):
    """A login that never comes back."""

    def setup(self, context: WorkerContext) -> None:
        append(Path(context.options["folder"], "boots"), str(os.getpid()))
        _long()


class SetupDies(SetupRaises):
    """The session's setup takes the process along."""

    def setup(self, context: WorkerContext) -> None:
        append(Path(context.options["folder"], "boots"), str(os.getpid()))
        os.kill(os.getpid(), signal.SIGKILL)


class TeardownRaises(Session):
    """Does not close well."""

    def teardown(self) -> None:
        raise RuntimeError("the browser does not close")


class LeavesSomething:
    """As the PO says, a `thread` or a `child` that does not end, a `watchdog` that starts its child again, or a `short` one of
    each; and something to do at the exit.
    """

    def setup(self, context: WorkerContext) -> None:
        self.folder = Path(context.options["folder"])

    def process(self, po: dict[str, Any], context: WorkerContext) -> None:
        what = po["do"]
        if what in ("thread", "short"):
            threading.Thread(target=_leave_behind, args=(self.folder, what)).start()
        if what in ("child", "short"):
            get_context("spawn").Process(target=_leave_behind, args=(self.folder, what)).start()
        if what == "watchdog":
            threading.Thread(target=_keep_alive, args=(self.folder,)).start()
        atexit.register(_take_time_at_the_exit, self.folder)


def _keep_alive(folder: Path) -> None:
    while True:
        child = get_context("fork").Process(target=_leave_behind, args=(folder, "child"))
        child.start()
        child.join()


def _leave_behind(folder: Path, what: str) -> None:
    if what != "short":
        _long()
    time.sleep(0.2)
    append(folder / "ends", "end")


def _take_time_at_the_exit(folder: Path) -> None:
    time.sleep(2.5)  # a browser is closed
    append(folder / "exits", "exit")


class TeardownHangs(Session):
    """Does not close at all, and owns a profile."""

    def setup(self, context: WorkerContext) -> None:
        super().setup(context)
        profile = Path(context.options["folder"], f"profile-{context.worker_id}")
        context.own(path=profile)
        profile.mkdir()

    def teardown(self) -> None:
        _long()


class TeardownWaits(Session):
    """Closes once the test has made the file `close`."""

    def teardown(self) -> None:
        append(self.path, f"closing {self.worker_id}")
        deadline = time.monotonic() + LONG_S
        while not self.path.with_name("close").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        append(self.path, f"teardown {self.worker_id}")


class TeardownDies(TeardownHangs):
    """Ends its worker while it closes."""

    def teardown(self) -> None:
        os._exit(3)
