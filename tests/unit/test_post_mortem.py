"""When the stack that a hung worker is asked for has been written to its end."""

import subprocess
import sys
from pathlib import Path

import pytest

from poqueue.parent import UNKNOWN_EXIT
from workers.post_mortem import describe_death, ended_by, is_whole_stack

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
