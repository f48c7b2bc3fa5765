"""Processes that are started while the orders are still read: taken by the run, or gone without it."""

import os
import shutil
import signal
import sys
import tempfile
import textwrap
from multiprocessing import active_children
from pathlib import Path

import pytest

from poqueue.errors import OrdersError
from tests.integration.console import Ended, running
from tests.integration.stage import living, on_stage, po, wait_until
from workers.batch import Batch
from workers.early_start import EarlyStart, early_workers
from workers.resolved import load_settings


@pytest.fixture(autouse=True)
def mark(nothing_left: str) -> str:
    """What every process of the test carries."""
    return nothing_left


def run_to_end(words: list[str], folder: Path) -> Ended:
    with running(words, cwd=folder) as run:
        return run.wait()


def pids_of(early: EarlyStart) -> list[int]:
    return [one.process.pid for one in (*early.managers, *early.workers)]


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_run_takes_them(method: str, tmp_path: Path) -> None:
    tasks = [po(f"P{number}", "good", tmp_path) for number in range(6)]
    with EarlyStart(method, 2) as early:
        manager, *workers = pids_of(early)
        with on_stage(tmp_path, *tasks, start_method=method, early=early) as (supervisor, play):
            assert supervisor._service.pid == manager
            assert {worker.pid for worker in supervisor._staff} >= set(workers)
            assert pids_of(early) == []
            os.rename(supervisor._service.address, tmp_path / "hidden")  # they are connected already
            supervisor.run()

    assert play.is_completed(*(task.task_id for task in tasks))
    assert {line["pid"] for line in play.history()} <= set(workers)


def test_those_that_have_ended_meanwhile_are_replaced(tmp_path: Path) -> None:
    with EarlyStart("spawn", 1) as early:
        for pid in pids_of(early):
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not living(pids_of(early)), "they have ended")
        with on_stage(tmp_path, po("A", "good", tmp_path), start_method="spawn", early=early) as (supervisor, play):
            supervisor.run()

    assert play.is_completed("A")


def test_those_that_were_stopped_with_the_terminal_go_on_when_they_are_needed(tmp_path: Path) -> None:
    with EarlyStart("spawn", 1) as early:
        for pid in pids_of(early):
            os.kill(pid, signal.SIGSTOP)
        with on_stage(tmp_path, po("A", "good", tmp_path), start_method="spawn", early=early) as (supervisor, play):
            supervisor.run()

    assert play.is_completed("A")


def test_the_terminal_does_not_reach_them() -> None:
    with EarlyStart("spawn", 1) as early:
        wait_until(lambda: all(os.getsid(pid) == pid for pid in pids_of(early)), "each has a session of its own")


def test_orders_that_are_refused_leave_none(tmp_path: Path) -> None:
    (tmp_path / "o.csv").write_text("no,number\n1,2\n")

    with pytest.raises(OrdersError):
        Batch(tmp_path / "o.csv", load_settings({}, None, {}), is_whole_program=True).run()

    assert active_children() == []


@pytest.mark.parametrize("processor", ["None", "'tests.integration.villains:process'"])
def test_no_process_imports_a_script_while_its_orders_are_read(processor: str, tmp_path: Path) -> None:
    """It may write them there."""
    (tmp_path / "program.py").write_text(
        textwrap.dedent(f"""
        import multiprocessing, pathlib
        import workers.batch
        from workers import run_batch

        read = workers.batch.read_orders

        def read_and_look(*args, **words):
            print(multiprocessing.active_children(), flush=True)
            return read(*args, **words)

        if __name__ == "__main__":
            workers.batch.read_orders = read_and_look
            pathlib.Path("o.csv").write_text("po_number,do\\nA,good\\n")
            run_batch("o.csv", {processor}, jobs=1, max_retries=0, run_dir="r")
        """)
    )
    ended = run_to_end([sys.executable, str(tmp_path / "program.py")], tmp_path)

    assert ended.out == "[]\n", ended.err


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_they_end_with_their_starter(method: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        textwrap.dedent(f"""
        import sys, time
        from workers.early_start import EarlyStart

        if __name__ == "__main__":
            with EarlyStart({method!r}, 1) as early:
                print("begun", file=sys.stderr, flush=True)
                time.sleep(300)
        """)
    )
    words = [sys.executable, str(tmp_path / "program.py")]
    temporary = tempfile.mkdtemp(prefix="t")  # a socket's path is to fit, however long the test's own
    with running(words, cwd=tmp_path, env={"TMPDIR": temporary}) as run:
        wait_until(lambda: run.said("begun"), "it has started them")
        assert len(run.left()) >= 3
        run.send(signal.SIGKILL)
        run.process.wait()
        wait_until(lambda: not run.left(), "all have ended")
    shutil.rmtree(temporary)  # of a fork server that was killed there is what multiprocessing leaves


def test_a_fork_has_nothing_to_import() -> None:
    with EarlyStart("fork", 2) as early:
        assert pids_of(early) == []


def test_one_core_is_left_to_the_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(4)))
    assert [early_workers(jobs) for jobs in (1, 2, 8)] == [1, 2, 2]
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    assert early_workers(8) == 0
