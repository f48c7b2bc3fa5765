"""What a process does to itself: becoming a worker, dying with its parent, adopting orphans, looking at its memory."""

import contextlib
import os
import resource
import signal

from poqueue.parent import die_with_parent, prctl

HELD_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT}  # until a new process has its handlers
_PR_SET_CHILD_SUBREAPER = 36
_PR_GET_CHILD_SUBREAPER = 37
OOM_SCORE = "557"  # an odd number: inherited by all that a worker starts, it marks them as well
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_MAXRSS_UNIT = 1024  # ru_maxrss counts in this


def become_worker(marks: dict[str, str], *, dies_with_starter: bool) -> None:
    """In a new worker: a session of its own, and an end when the thread that started it ends, even in the middle of a C loop.

    Args:
        dies_with_starter: False where that thread may end before the run does.
    """
    os.environ.update(marks)  # whatever program is started here is known by them
    with contextlib.suppress(OSError):
        os.setsid()
    if dies_with_starter:
        die_with_parent()
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)  # only the supervisor decides
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # else a processor would not learn how its children end
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_SIGNALS)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write(OOM_SCORE)  # if memory runs out, rather a worker than the queue


class Adoption:
    """While one is held, orphans among this process's descendants become its children, so that none escapes by losing its
    parent, and the end of a child waits until it is looked at, though SIGCHLD was ignored. When the last is let go, the
    process is as it was before the first."""

    _held = 0
    _before = 0
    _ignored_children = False

    def __init__(self) -> None:
        self._is_held = False

    def hold(self) -> None:
        """Begin to adopt; harmless when repeated."""
        if self._is_held:
            return
        self._is_held = True
        if not Adoption._held:
            import ctypes

            flag = ctypes.c_int()
            prctl(_PR_GET_CHILD_SUBREAPER, ctypes.addressof(flag))
            Adoption._before = flag.value
            prctl(_PR_SET_CHILD_SUBREAPER, 1)
            Adoption._ignored_children = signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN
            if Adoption._ignored_children:
                _set_sigchld(signal.SIG_DFL)
        Adoption._held += 1

    def let_go(self) -> None:
        """Adopt no more, unless somebody else still does; harmless when repeated."""
        if not self._is_held:
            return
        self._is_held = False
        Adoption._held -= 1
        if not Adoption._held:
            prctl(_PR_SET_CHILD_SUBREAPER, Adoption._before)
            if Adoption._ignored_children and signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
                _set_sigchld(signal.SIG_IGN)


def _set_sigchld(action: signal.Handlers) -> None:
    """From any thread; Python, which knows only what its first thread sets, goes on to tell what it was."""
    import ctypes

    set_action = ctypes.CDLL(None).signal
    set_action.argtypes, set_action.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    set_action(signal.SIGCHLD, action)


def read_bytes(path: str) -> bytes:
    """The whole of a file, such as the kernel's.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        return file.read()


def rss_bytes(pid: int | None = None) -> int:
    """Resident memory of one process (this one by default), in bytes; 0 if it is gone."""
    try:
        resident = read_bytes(f"/proc/{pid or 'self'}/statm").split()[1]
    except (OSError, IndexError):
        return 0
    return int(resident) * _PAGE_BYTES


def usable_cores() -> int:
    """The cores that this process may run on: its affinity where the system has one, else all of them."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_seconds() -> float:
    """Computing so far, of this process and the children that it has waited for."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def queued_seconds() -> float:
    """How long this process's first thread was ready without a core; 0 where the kernel does not say."""
    try:
        return int(read_bytes("/proc/self/schedstat").split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def most_rss_bytes() -> int:
    """The most held so far: by this process and the largest child that it has waited for, which are there at the same time.

    Not ru_maxrss of this process: that begins with what its parent held when it was started.
    """
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * _MAXRSS_UNIT
    return _peak_rss_bytes() + children


def _peak_rss_bytes() -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in read_bytes("/proc/self/status").splitlines():
            if line.startswith(b"VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_UNIT
