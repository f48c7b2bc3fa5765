"""Ending with whoever started this process, and looking whether a process is there, or has ended."""

import contextlib
import fcntl
import os
import pickle
import select
import signal

from poqueue.hints import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

UNKNOWN_EXIT = 256  # of a process that somebody else has waited for; no process has this exit code
_LOST_EXIT = 255  # what multiprocessing says of one whose fork server is gone
_PR_SET_PDEATHSIG = 1


def prctl(option: int, value: int) -> None:
    """Ask the kernel something about this process.

    Raises:
        OSError: it refuses.
    """
    import ctypes  # only here: few processes ask

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:  # pragma: no cover - Linux since 3.4 has what we ask
        raise OSError(ctypes.get_errno(), "prctl failed")


def die_with_parent(parent_pid: int | None = None) -> None:
    """Ask the kernel for SIGKILL when the thread that started this process ends; if it has already, leave now.

    Args:
        parent_pid: the parent, if it may have ended before this is called.
    """
    parent_pid = parent_pid if parent_pid is not None else os.getppid()
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(0)


def die_when_closed(fd: int) -> None:
    """Ask the kernel for SIGKILL when nobody holds the other end of this pipe any more; if that is so, leave now.

    Nothing must ever be written to it. Whoever started this process holds it, also where its parent is a fork server, or
    the thread that did so has ended.
    """
    fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)
    watched = select.poll()
    watched.register(fd, 0)
    if watched.poll(0):
        os._exit(0)


def await_first_word(starter: "Connection[Any, Any]") -> Any:
    """In a process that was started before it is known what for: wait to be told, out of reach of the terminal; leave if
    its starter ends.
    """
    with contextlib.suppress(OSError):
        os.setsid()
    try:
        word = starter.recv_bytes()
    except (EOFError, OSError):
        os._exit(0)
    return pickle.loads(word)


def tell_first(process: Any, starter: "Connection[Any, Any]", word: Any) -> bool:
    """Tell such a process; False if it has ended."""
    if has_ended(process):
        return False
    try:
        os.kill(process.pid, signal.SIGCONT)  # it may have been stopped with its starter, and not continued
        starter.send(word)
    except OSError:
        return False
    return True


def end_untold(process: Any, *pipes: "Connection[Any, Any]") -> None:
    """End such a process that is not needed, and close what leads to it; harmless when repeated."""
    for pipe in pipes:
        pipe.close()
    with contextlib.suppress(ValueError):  # closed
        kill(process)
        process.close()


def has_ended(process: Any) -> bool:
    """Whether a multiprocessing.Process of this one has ended and is reaped, also by somebody else.

    A handler of SIGCHLD may wait for every child there is. multiprocessing takes such a process to live for ever; it is told
    the exit code UNKNOWN_EXIT.
    """
    if not process.is_alive():
        return True
    child = process._popen
    if child.method == "forkserver":
        return False  # no child of ours: who reaps it is the fork server, which tells us
    try:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        child.returncode = UNKNOWN_EXIT
    return not process.is_alive()


def join(process: Any, at_most_s: float | None = None) -> None:
    """Wait for its end, so that `exitcode` tells it; what has_ended says of others' waiting holds here too."""
    process.join(at_most_s)
    has_ended(process)


def kill(process: Any) -> None:
    """End it at once, whatever state it is in, and wait for that.

    Also one that has lost its fork server, and so has ended for multiprocessing, if it has become a child of this process.
    """
    if not has_ended(process):
        process.kill()
    elif process._popen.method == "forkserver" and process.exitcode == _LOST_EXIT:
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(process.pid, os.WNOHANG) == (0, 0):
                os.kill(process.pid, signal.SIGKILL)
                os.waitpid(process.pid, 0)
    join(process)


def is_there(pid: int) -> bool:
    """Whether a process with this number has not ended and been reaped."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def gone_folder() -> str:
    """The current folder if it was removed: it never comes back, and multiprocessing starts nothing in it."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return os.readlink("/proc/self/cwd")
    return ""
