"""Starting processes and ending them, with everything they have started: the only room that does either.

A worker leads a session of its own. What belongs to it is found in four ways, since a process can leave any one of them:
it descends from the worker, it is in the worker's session, its environment carries the worker's mark (new programs inherit
that), or it still maps the worker's mark file (forks do). The worker sets both marks itself: were they in the
environment of this process, even for the moment of a start, what other threads start meanwhile would carry them too.
Killing goes stop, list, repeat until nobody new appears, kill: a list taken of running processes is old before it is used.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import sys
import termios
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import active_children, forkserver, resource_tracker
from weakref import WeakSet

from poqueue.hints import TYPE_CHECKING, Any, NamedTuple, StrPath
from workers.own_process import HELD_SIGNALS, OOM_SCORE, read_bytes, rss_bytes, usable_cores

if TYPE_CHECKING:  # else where it is used: it would take a tenth of a program's time to its first result
    import psutil

RUN_MARK = "POQUEUE_RUN_ID"
PROCESS_MARK = "POQUEUE_RUN_ID_OF_PROCESS"
PRELOADED = ["workers.preload"]  # it starts no thread
_MAX_ROUNDS = 50
HELPERS = 2  # multiprocessing's: the fork server, and the resource tracker, which is started first
HELPERS_START_S = 0.1  # they take .02 s; a tracker that is stopped reads nothing


# ---------------------------------------------------------------------- starting


@contextlib.contextmanager
def quiet_start() -> Iterator[None]:
    """Start processes inside: a Ctrl-C waits until they have their handlers."""
    held = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_SIGNALS)  # the tracker is to hold QUIT and HUP for good
    try:
        resource_tracker.ensure_running()  # it unblocks INT and TERM here, so it has to be there first (see its source)
        signal.pthread_sigmask(signal.SIG_BLOCK, HELD_SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def start_forkserver() -> bool:
    """Have multiprocessing's fork server run, with what our processes import already imported; False if it has run before.

    What an embedding program has set to be preloaded stays; the script and the processor are left to the processes
    themselves.
    """
    server: Any = forkserver._forkserver
    before = server._forkserver_pid
    preloads = getattr(server, "_preload_modules", None)
    with quiet_start():
        if preloads == ["__main__"] and not _is_shadowed("."):
            forkserver.set_forkserver_preload(PRELOADED)
        try:
            forkserver.ensure_running()
        except ChildProcessError:  # what runs was started before this process was forked
            _forget_forkserver()
            forkserver.ensure_running()
    return bool(server._forkserver_pid != before)


def leave_cores_to_helpers() -> None:
    """Wait until the resource tracker reads what it is sent: until then it and the fork server have two cores to themselves.

    Whoever computes meanwhile, with so few, is put on the core of the fork server, for which everybody waits.
    """
    if usable_cores() > HELPERS:
        return
    deadline = time.monotonic() + HELPERS_START_S
    with contextlib.suppress(OSError):
        resource_tracker.ensure_running()  # of one that it has started it makes sure by sending something
        while _unread_bytes(resource_tracker.getfd()) and time.monotonic() < deadline:
            time.sleep(0.001)


def _unread_bytes(pipe: Any) -> int:
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


def _forget_forkserver() -> None:
    server: Any = forkserver._forkserver
    os.close(server._forkserver_alive_fd)
    server._forkserver_alive_fd = server._forkserver_address = server._forkserver_pid = None


def _is_shadowed(folder: StrPath) -> bool:
    """Whether something in the folder goes by the name of a module in use here, or of one of Python's, and is not that.

    The fork server looks for modules in the current folder first: there may be a secrets.py of the user's.
    """
    known = sys.modules.keys() | sys.stdlib_module_names
    try:
        names = [name for name in os.listdir(folder) if name.partition(".")[0] in known]
    except OSError:  # it is gone, or closed to us
        return True
    paths = [os.path.join(os.path.abspath(folder), name) for name in names]
    sources = [os.path.join(path, "__init__.py") if os.path.isdir(path) else path for path in paths]
    in_use = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    return any(os.path.exists(source) and source not in in_use for source in sources)


def open_descriptors() -> set[int]:
    """The descriptors that this process has open."""
    return {int(name) for name in os.listdir("/proc/self/fd")}


def close_descriptors(numbers: Iterable[int]) -> None:
    """Close what a failed start has left: multiprocessing forgets four of them when the system refuses a fork."""
    for number in numbers:
        with contextlib.suppress(OSError):
            os.close(number)


# ---------------------------------------------------------------------- finding


class _Seen(NamedTuple):
    """A process as the kernel describes it in one line; `born` is when it started, in clock ticks since the machine did."""

    pid: int
    has_ended: bool
    parent: int
    session: int
    born: int


def _look_at(pid: int) -> _Seen | None:
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            line = file.read(2048)
    except OSError:
        return None
    words = line[line.rindex(b")") + 2 :].split()  # its name, in front of that, may hold anything
    has_ended = words[0] in (b"Z", b"X") and int(words[17]) <= 1  # if only its first thread has, it lives
    return _Seen(pid, has_ended, int(words[1]), int(words[3]), int(words[19]))


def _look_around() -> list[_Seen]:
    found = (_look_at(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return [seen for seen in found if seen is not None]


def born(pid: int) -> int:
    """When a process started, in clock ticks since the machine did; 0 if it is gone."""
    seen = _look_at(pid)
    return seen.born if seen is not None else 0


def lives(pid: int, born: int) -> bool:
    """Whether the process that was `born` then has not ended; another one may have got its pid."""
    seen = _look_at(pid)
    return seen is not None and seen.born == born and not seen.has_ended


def belongings(pid: int, process_id: str, folder: StrPath | None = None, since: int = 0) -> "list[psutil.Process]":
    """Every living process that belongs to a worker, itself left out; the worker may be dead already.

    Args:
        since: when the worker was `born`, if known. What is older cannot be its own, and that is most of a machine.
    """
    around = [seen for seen in _look_around() if seen.born >= since]
    is_another = any(seen.pid == pid and since and seen.born != since for seen in around)  # its pid was used again
    family = set() if is_another else _family(pid, around)
    others = [seen for seen in around if seen.pid not in (pid, os.getpid()) and not seen.has_ended]
    return _processes(seen for seen in others if seen.pid in family or _has_mark(seen.pid, process_id, folder))


def _family(pid: int, around: Iterable[_Seen]) -> set[int]:
    """Those in its session, and its descendants."""
    children: dict[int, list[int]] = {}
    for seen in around:
        children.setdefault(seen.parent, []).append(seen.pid)
    found = {seen.pid for seen in around if seen.session == pid}
    generation = [pid, *found]
    while generation:
        generation = [child for parent in generation for child in children.get(parent, ()) if child not in found]
        found.update(generation)
    return found


def _has_mark(pid: int, process_id: str, folder: StrPath | None) -> bool:
    return _environ_has(pid, PROCESS_MARK, process_id) or _maps_mark_in(pid, folder)


def marked_processes(run_id: str, folder: StrPath | None = None, since: int = 0) -> "list[psutil.Process]":
    """Every living process of a run: its environment carries the run's mark, or it maps a worker's mark below the folder.

    Args:
        since: when the run's supervisor was `born`, if known; what is older is not looked at.
    """
    others = [seen for seen in _look_around() if seen.born >= since and not seen.has_ended and seen.pid != os.getpid()]
    return _processes(
        seen for seen in others if _environ_has(seen.pid, RUN_MARK, run_id) or _maps_mark_in(seen.pid, folder)
    )


def _processes(wanted: Iterable[_Seen]) -> "list[psutil.Process]":
    """As psutil knows them: it never mistakes another process for one whose pid it has got."""
    chosen = list(wanted)
    if not chosen:
        return []  # as nearly always, and psutil takes its time to load
    import psutil

    found = []
    for seen in chosen:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(seen.pid)
            if born(seen.pid) == seen.born:
                found.append(process)
    return found


def _maps_mark_in(pid: int, folder: StrPath | None) -> bool:
    """Whether a process has a worker's mark file mapped, below this folder.

    Only the worker itself maps that file, so only its forks have inherited it, even if they have closed everything.
    """
    if folder is None:
        return False
    try:
        maps = read_bytes(f"/proc/{pid}/maps")
    except OSError:
        return False
    start = os.fsencode(f" {folder}/").replace(b"\n", b"\\012")
    return start in maps and any(start in line and line.endswith(b"/mark") for line in maps.splitlines())


def _environ_has(pid: int, name: str, value: str) -> bool:
    try:
        environ = read_bytes(f"/proc/{pid}/environ")
    except OSError:
        return False
    return f"\0{name}={value}\0".encode() in b"\0" + environ


def _is_living(process: "psutil.Process") -> bool:
    seen = _look_at(process.pid)
    return seen is not None and not seen.has_ended and process.is_running()


# ---------------------------------------------------------------------- ending


def ask_for_stack(pid: int) -> bool:
    """Have faulthandler in the worker write where its Python code is; works while C code holds the interpreter.

    Returns:
        False, and nothing was asked, if it is not there yet, or a processor has removed it: the signal would end the worker.
    """
    is_there = _catches(pid, signal.SIGUSR1)
    if is_there:
        _signal(pid, signal.SIGUSR1)
    return is_there


def _catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    try:
        status = read_bytes(f"/proc/{pid}/status")
        caught = next(line.split()[1] for line in status.splitlines() if line.startswith(b"SigCgt:"))
    except (OSError, StopIteration, IndexError):
        return False
    return bool(int(caught, 16) >> (number - 1) & 1)


def is_stopped(pid: int) -> bool:
    """Whether somebody has stopped the process (SIGSTOP)."""
    import psutil

    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    except psutil.Error:
        return False


def is_same_after_stop(pid: int, check: Callable[[], bool]) -> bool:
    """Stop a process, and say whether `check` holds while it cannot move; if not, it goes on unharmed."""
    _signal(pid, signal.SIGSTOP)
    if check():
        return True
    _signal(pid, signal.SIGCONT)
    return False


def terminate_tree(pid: int, process_id: str, folder: StrPath | None = None, since: int = 0) -> None:
    """Ask a worker and all that belongs to it to end (SIGTERM); stopped ones are woken to hear it."""
    others = {process.pid for process in belongings(pid, process_id, folder, since)}
    _signal_main_thread(pid, signal.SIGTERM)
    for target in others:
        _signal(target, signal.SIGTERM)
    for target in [pid, *others]:
        _signal(target, signal.SIGCONT)


def _signal_main_thread(pid: int, number: int) -> None:
    """To the thread that runs Python's handlers: a stopped process may give it to another, and sleep on in the first."""
    import ctypes  # only here: few workers are asked to end

    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "tgkill") or libc.tgkill(pid, pid, number) != 0:
        _signal(pid, number)


def kill_tree(pid: int, process_id: str, folder: StrPath | None = None, since: int = 0) -> None:
    """Kill a living worker and all that belongs to it."""
    kill_all(lambda: belongings(pid, process_id, folder, since), [pid])


def kill_belongings(dead_pid: int, process_id: str, folder: StrPath | None = None, since: int = 0) -> int:
    """Kill what a dead worker has left; returns how many there were."""
    return kill_all(lambda: belongings(dead_pid, process_id, folder, since), [])


def helper_pids() -> list[int]:
    """multiprocessing's own helpers (resource tracker, fork server): they serve this process beyond one run."""
    trackers = (resource_tracker._resource_tracker, forkserver._forkserver)
    pids = [getattr(tracker, name, None) for tracker in trackers for name in ("_pid", "_forkserver_pid")]
    return [pid for pid in pids if pid]


def kill_run(run_id: str, folder: StrPath | None = None, keep: Iterable[int] = (), since: int = 0) -> int:
    """Kill every process that carries a run's mark, this one and `keep` excepted; returns how many there were."""
    spared = set(keep)
    return kill_all(lambda: [one for one in marked_processes(run_id, folder, since) if one.pid not in spared], [])


def end_run(run_id: str, work_dir: StrPath, since: int, *, keeps_files: bool) -> None:
    """In the manager, when the supervisor has died: no process of the run may stay behind, nor, without a journal, a file.

    It stands here, and not with the supervisor, since the manager imports the file that it stands in.
    """
    kill_run(run_id, work_dir, since=since)
    if not keeps_files:
        shutil.rmtree(work_dir, ignore_errors=True)


def kill_all(find: "Callable[[], list[psutil.Process]]", known: list[int]) -> int:
    """Stop what `find` finds until it finds nobody new, then kill all of them."""
    doomed: dict[int, psutil.Process] = {}
    try:
        for pid in known:
            _signal(pid, signal.SIGSTOP)
        for _ in range(_MAX_ROUNDS):
            fresh = [process for process in find() if process.pid not in doomed]
            if not fresh:
                break
            for process in fresh:
                doomed[process.pid] = process
                _if_it_lives(process.suspend)
    finally:  # an interrupt may come: whoever was stopped would stay so
        for process in doomed.values():
            _if_it_lives(process.kill)
        for pid in known:
            _signal(pid, signal.SIGKILL)
    _reap_adopted(doomed)
    return len(doomed)


def _if_it_lives(do: Callable[[], None]) -> None:
    """Psutil compares start times: a reused pid is nobody of ours."""
    import psutil

    with contextlib.suppress(psutil.Error):
        do()


def _reap_adopted(doomed: "dict[int, psutil.Process]") -> None:
    """Bury those that became our children; each by its own pid, for a general wait would steal others' exit codes."""
    deadline = time.monotonic() + 1.0
    waiting = set(doomed)
    while waiting and time.monotonic() < deadline:
        for pid in list(waiting):
            try:
                buried, _ = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:  # somebody else's child, or not ours yet: init or its parent buries it
                buried = 0 if _is_living(doomed[pid]) or _is_ours(doomed[pid]) else pid
            if buried:
                waiting.discard(pid)
        if waiting:
            time.sleep(0.002)


_childless: "WeakSet[Any]" = WeakSet()  # processes that have started no other


def note_childless(process: Any, is_so: bool = True) -> None:
    """Of a multiprocessing.Process: whether it surely has started no other one."""
    (_childless.add if is_so else _childless.discard)(process)


def has_parents_of_others() -> bool:
    """Whether a process of ours lives that may have started others, whose orphans would become ours."""
    return any(process not in _childless for process in active_children())


def orphans() -> "list[psutil.Process]":
    """Children of this process that it did not start: a worker's descendants that lost their parents and became ours.

    They are known by the workers' odd out-of-memory score, which every descendant inherits and a zombie still shows; what
    the embedding program has started does not have it.
    """
    if _oom_score(os.getpid()) == OOM_SCORE:
        return []  # what this process has started has it as well
    started = {process.pid for process in active_children()}
    children = [seen for seen in _look_around() if seen.parent == os.getpid() and seen.pid not in started]
    return _processes(seen for seen in children if _oom_score(seen.pid) == OOM_SCORE)


def reap_orphans() -> None:
    """Bury the orphans that have ended."""
    for orphan in orphans():
        if not _is_living(orphan):
            with contextlib.suppress(OSError):
                os.waitpid(orphan.pid, os.WNOHANG)


def kill_orphans() -> int:
    """Kill the orphans that live, and bury them; only when no worker of this process lives that they may belong to."""
    return kill_all(lambda: [orphan for orphan in orphans() if _is_living(orphan)], [])


def _oom_score(pid: int) -> str:
    try:
        return read_bytes(f"/proc/{pid}/oom_score_adj").decode().strip()
    except OSError:
        return ""


def _is_ours(process: "psutil.Process") -> bool:
    import psutil

    try:
        return bool(process.ppid() == os.getpid())
    except psutil.Error:
        return False


def remove_owned(owned: Iterable[dict[str, Any]], started_at: float) -> None:
    """Remove what a killed worker had named: processes younger than the worker, files and folders.

    Args:
        started_at: UTC seconds when the worker was started; an older process cannot be its own, but its pid may be reused.
    """
    import psutil

    for item in owned:
        with contextlib.suppress(
            psutil.Error, OSError, ValueError, TypeError, OverflowError
        ):  # one odd entry spoils no other
            if item.get("pid"):
                _kill_if_its_own(int(item["pid"]), item.get("born"), started_at - 1.0)
            path = item.get("path")
            if path and os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path, ignore_errors=True)
            elif path:
                os.unlink(path)


def _kill_if_its_own(pid: int, since: int | None, started_at: float) -> None:
    """Who was `born` at another moment has got the pid later; files of older versions tell none."""
    import psutil

    process = psutil.Process(pid)
    is_same = since is None or since == born(pid)
    if is_same and process.create_time() >= started_at and pid != os.getpid():
        process.kill()


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


# ---------------------------------------------------------------------- looking


def tree_rss_bytes(pid: int) -> int:
    """Resident memory of a process and its descendants, in bytes."""
    import psutil

    total = 0
    with contextlib.suppress(psutil.Error):
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            total += rss_bytes(process.pid)
    return total


def started_at(pid: int) -> float:
    """When a process was started, UTC seconds; 0 if it is gone."""
    ticks = born(pid)
    if not ticks:
        return 0.0
    lines = read_bytes("/proc/stat").splitlines()
    machine_s = next(int(line.split()[1]) for line in lines if line.startswith(b"btime "))
    return machine_s + ticks / os.sysconf("SC_CLK_TCK")


def oom_kills() -> int:
    """How many processes the kernel has killed for want of memory: in this control group, or else on the machine."""
    for path, key in _OOM_COUNTERS:
        try:
            lines = read_bytes(path).decode().splitlines()
        except OSError:
            continue
        for line in lines:
            name, _, count = line.partition(" ")
            if name == key:
                return int(count)
    return 0


def own_cgroup() -> str:
    """The path of this process's control group below the root of them all (cgroup v2)."""
    try:
        lines = read_bytes("/proc/self/cgroup").decode(errors="surrogateescape").splitlines()
    except OSError:
        return "/"
    return next((line.split("::", 1)[1] for line in lines if "::" in line), "/")


_OOM_COUNTERS = ((f"/sys/fs/cgroup{own_cgroup()}/memory.events", "oom_kill"), ("/proc/vmstat", "oom_kill"))
