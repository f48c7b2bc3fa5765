"""Why a worker ended, and when the stack that a hung one is asked for has been written to its end."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from poqueue.parent import UNKNOWN_EXIT
from workers.post_mortem import (
    MAX_FRAMES,
    STACK_CHARS,
    describe_death,
    describe_timeout,
    ended_by,
    is_whole_stack,
)

DUMPS = """
import faulthandler, signal, sys, threading
faulthandler.register(signal.SIGUSR1, file=sys.stdout, all_threads=True)

def deep(levels):
    deep(levels - 1) if levels else signal.raise_signal(signal.SIGUSR1)

def main():
    started, ended = threading.Event(), threading.Event()
    threading.Thread(target=lambda: (started.set(), ended.wait())).start()
    started.wait()
    deep(LEVELS)
    ended.set()

main()
"""


@pytest.mark.parametrize("levels", [1, 150])
@pytest.mark.parametrize("way", ["script", "module", "command"])
def test_only_a_whole_stack_counts_as_whole(way: str, levels: int, tmp_path: Path) -> None:
    text = DUMPS.replace("LEVELS", str(levels))
    (tmp_path / "dumps.py").write_text(text)
    words = {"script": ["dumps.py"], "module": ["-m", "dumps"], "command": ["-c", text]}[way]
    stack = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    assert "in deep" in stack and "in wait" in stack
    assert is_whole_stack(stack)
    main_thread = stack.rindex("in deep")
    assert not any(is_whole_stack(stack[:end]) for end in range(main_thread))


def test_how_a_process_has_ended_that_somebody_else_has_waited_for_nobody_says() -> None:
    told = describe_death(UNKNOWN_EXIT, is_out_of_memory=True)

    assert told["error_type"] == "WorkerExited" and "nobody knows how" in told["message"] and told["exit_code"] is None
    assert ended_by(UNKNOWN_EXIT) == "an unknown exit code"


def test_a_stack_with_as_many_frames_as_are_written_is_whole_wherever_it_began() -> None:
    begun = "Current thread 0x1 (most recent call first):\n"
    other = "Thread 0x2 (most recent call first):\n" + '  File "b.py", line 2 in run\n' * MAX_FRAMES
    frame = '  File "a.py", line 1 in deep\n'

    assert is_whole_stack(begun + frame * MAX_FRAMES)
    assert not is_whole_stack(other + begun + frame * (MAX_FRAMES - 1))


def test_a_kill_is_told_by_what_the_kernel_says_of_memory() -> None:
    by_kernel = describe_death(-signal.SIGKILL, is_out_of_memory=True)
    by_somebody = describe_death(-signal.SIGKILL, is_out_of_memory=False)
    by_itself = describe_death(-signal.SIGSEGV, is_out_of_memory=True)

    assert (by_kernel["error_type"], by_kernel["signal"]) == ("OutOfMemory", "SIGKILL")
    assert (by_somebody["error_type"], by_somebody["signal"]) == ("WorkerKilled", "SIGKILL")
    assert by_somebody["message"].endswith("by SIGKILL (from outside, or by the kernel for want of memory)")
    assert (by_itself["error_type"], by_itself["message"]) == ("WorkerKilled", "the worker was killed by SIGSEGV")


def test_of_a_stack_beyond_measure_the_end_is_kept_where_the_main_thread_stands() -> None:
    stack = "x" * STACK_CHARS + "the main thread"

    assert describe_timeout(1.0, 1.1, "SIGKILL", stack)["stack"] == stack[-STACK_CHARS:]
    assert describe_death(1, is_out_of_memory=False, stack=stack)["stack"] == stack[-STACK_CHARS:]


@pytest.mark.parametrize(
    ("exit_code", "told"),
    [(-9, "SIGKILL"), (-15, "SIGTERM"), (128 + 15, "SIGTERM"), (3, "exit code 3"), (-77, "signal 77")],
)
def test_how_a_process_has_ended_reads_as_people_know_it(exit_code: int, told: str) -> None:
    assert ended_by(exit_code) == told
