"""Why a worker ended: by its exit code, by what was done to it, and by what the kernel says about memory."""

import signal

from poqueue.adaptive import TIMEOUT_ERROR
from poqueue.hints import Any
from poqueue.parent import UNKNOWN_EXIT

STACK_CHARS = 64_000
MAX_FRAMES = 100  # of a thread, as faulthandler writes them


def is_whole_stack(text: str) -> bool:
    """Whether faulthandler is through with what it writes of all threads: the main one comes last, with 100 frames at most."""
    if text.endswith((" in <module>\n", " in _run_module_as_main\n", "  ...\n")):
        return True
    return text.endswith("\n") and text[text.rfind("(most recent call first)") :].count("\n  File ") >= MAX_FRAMES


def describe_timeout(limit_s: float, ran_s: float, ended_by: str, stack: str) -> dict[str, Any]:
    """An attempt that was killed because it took too long; `stack` is where the Python code was before."""
    return {
        "error_type": TIMEOUT_ERROR,
        "message": f"took longer than {limit_s:g} s (killed after {ran_s:.1f} s; the worker ended by {ended_by})",
        "stack": stack[-STACK_CHARS:],
    }


def describe_death(exit_code: int | None, is_out_of_memory: bool, stack: str = "") -> dict[str, Any]:
    """An attempt whose worker ended in the middle of it, unasked; `stack` is what Python wrote about it, if it could."""
    evidence = {"stack": stack[-STACK_CHARS:]} if stack else {}
    if exit_code is not None and exit_code < 0:
        number = -exit_code
        name = signal_name(number)
        if number == signal.SIGKILL and is_out_of_memory:
            message = "the kernel killed the worker because memory ran out"
            return {"error_type": "OutOfMemory", "message": message, "signal": name, **evidence}
        hint = " (from outside, or by the kernel for want of memory)" if number == signal.SIGKILL else ""
        return {
            "error_type": "WorkerKilled",
            "message": f"the worker was killed by {name}{hint}",
            "signal": name,
            **evidence,
        }
    if exit_code == UNKNOWN_EXIT:
        message = (
            "the worker ended in the middle of the PO; nobody knows how, since this program waits for all its children"
        )
        return {"error_type": "WorkerExited", "message": message, "exit_code": None, **evidence}
    return {
        "error_type": "WorkerExited",
        "message": f"the worker ended with exit code {exit_code} in the middle of the PO",
        "exit_code": exit_code,
        **evidence,
    }


def ended_by(exit_code: int | None) -> str:
    """How a process ended, for people."""
    if exit_code is not None and exit_code < 0:
        return signal_name(-exit_code)
    if exit_code == UNKNOWN_EXIT:
        return "an unknown exit code"
    return "SIGTERM" if exit_code == 128 + signal.SIGTERM else f"exit code {exit_code}"


def signal_name(number: int) -> str:
    """SIGKILL and the like."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
