"""The manager process killed, stopped and replaced while a run goes on: the workers work on, and results count once."""

import contextlib
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

import psutil
import pytest

from poqueue import ProcessingTask, TaskResult, server
from poqueue.errors import JournalError, ManagerLostError
from poqueue.moves import Moves
from poqueue.service import QueueService
from tests.faults.batches import Batch
from tests.integration.console import MARK, pids_with, running, state, wait_until
from tests.integration.stage import living

pytestmark = [
    pytest.mark.usefixtures("nothing_left"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]

QUICK_CALLS = """
import sys
import poqueue.client, poqueue.wire
poqueue.client.CALL_TIMEOUT_S = 1.0
import poqueue.task_queue
from workers import queue_keeper, worker
queue_keeper.EVENTS_WAIT_S = 0.3
worker.WAIT_S = 0.3
from workers.__main__ import main
if __name__ == "__main__":
    sys.exit(main())
"""


@pytest.mark.parametrize("kind", [MemoryError, TypeError])
def test_a_manager_that_fails_in_the_middle_of_a_change_leaves_the_rest_to_another(
    kind: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of memory, for instance: what it holds may contradict what is written down."""
    tmp_path.chmod(0o700)

    def fail(*args: object) -> NoReturn:
        raise kind

    with QueueService(start_method="fork", journal=tmp_path / "journal") as service, monkeypatch.context() as patch:
        service.client().add_task(ProcessingTask("A", {"po_number": "1"}))
        patch.setattr(Moves, "complete", fail)
        service.replace()
        client = service.client()
        assert client.get_next_task("w") is not None
        with pytest.raises(ManagerLostError):
            client.complete_task("A", "w", TaskResult(True))
        service.process.join()
        patch.undo()

        service.replace()
        assert service.client().get_queue_status()["completed_tasks"] == 1


@pytest.mark.parametrize("is_foreign", [True, False])
def test_a_new_run_whose_first_manager_dies_removes_only_a_journal_that_is_its_own(
    is_foreign: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal"
    if is_foreign:
        with QueueService(start_method="fork", journal=path) as earlier:
            earlier.client().add_task(ProcessingTask("A", {"po_number": "1"}))
    service = QueueService(start_method="fork", journal=path, journal_must_exist=False)

    def die(*args: object) -> NoReturn:
        if not is_foreign:
            path.write_bytes(b"half made")
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr(server, "_open_queue", die)
        with pytest.raises(ManagerLostError):
            service.start()

    if is_foreign:
        with pytest.raises(JournalError, match="there is a journal already"):
            service.replace()
        with QueueService(start_method="fork", journal=path, journal_must_exist=True) as again:
            assert again.client().find_task(task_id="A") is not None
    else:
        service.replace()
        assert service.client().get_queue_status()["total_tasks"] == 0
    service.stop()


def await_new_manager(batch: Batch, old: int) -> int:
    wait_until(lambda: batch.manager_pid() != old, f"manager {old} is replaced", 40.0)
    return batch.manager_pid()


def holds(pid: int, name: str) -> bool:
    """Whether a process has a file of this name open."""
    with contextlib.suppress(psutil.Error):
        return name in {os.path.basename(file.path) for file in psutil.Process(pid).open_files()}
    return False


def kill_manager(batch: Batch) -> int:
    pid = batch.manager_pid()
    os.kill(pid, signal.SIGKILL)
    return pid


def numbered(count: int) -> list[str]:
    return [f"P{number}," for number in range(count)]


def test_a_manager_killed_several_times_is_replaced_and_results_count_once(tmp_path: Path) -> None:
    chance = random.Random(seed := random.randrange(10**6))
    print(f"seed {seed}")
    batch = Batch(tmp_path, *numbered(400), "F,fail_once", words=("--retries", "1", "--retry-delay", "0.2"))
    with batch.start() as run:
        for _ in range(3):
            batch.wait_begun(len(batch.begun()) + chance.randrange(1, 60), run)
            await_new_manager(batch, kill_manager(batch))
        ended = run.wait().check(0)

    facts = batch.check()
    assert ended.err.count("the manager process is lost") == 3
    assert len(batch.begun()) == 402 and facts.interrupted == 0  # nothing had to be begun again
    assert batch.report()["queue"]["completed_tasks"] == 401


def test_workers_in_the_middle_of_a_po_go_on_when_the_manager_is_killed(tmp_path: Path) -> None:
    batch = Batch(tmp_path, "A,wait", "B,wait", *numbered(20))
    with batch.start() as run:
        batch.wait_begun(2)
        before = {line.pid for line in batch.lines()}
        await_new_manager(batch, kill_manager(batch))
        (tmp_path / "go").touch()
        run.wait().check(0)

    batch.check()
    assert {line.pid for line in batch.lines()} == before
    assert len(batch.begun()) == 22


@pytest.mark.once
def test_a_manager_that_begins_when_its_supervisor_is_gone_ends_quietly_and_takes_its_socket_along(
    tmp_path: Path,
) -> None:
    batch = Batch(tmp_path, *numbered(3))
    with batch.start(env={"POQUEUE_TESTING": "1", "POQUEUE_FAILPOINT": "journal.write:1:stop"}) as run:

        def stopped() -> list[int]:
            return [pid for pid in pids_with(MARK, run.mark) if state(pid) == "T" and holds(pid, "journal.sqlite")]

        wait_until(stopped, "the manager stops while it opens the journal")
        (manager,) = stopped()
        run.process.kill()
        run.process.wait()
        os.kill(manager, signal.SIGCONT)
        wait_until(lambda: not run.left(), "nothing is left of the run")

        assert not run.said("Traceback")
    assert not list(batch.run_dir.rglob("*.sock"))


@pytest.mark.slow
def test_a_manager_that_is_stopped_for_a_while_loses_nothing_and_times_nothing_out(tmp_path: Path) -> None:
    batch = Batch(tmp_path, *numbered(60), seconds=0.1, words=("--timeout", "2"))
    with batch.start() as run:
        batch.wait_begun(4)
        pid = batch.manager_pid()
        os.kill(pid, signal.SIGSTOP)
        until = time.monotonic() + 3.0
        wait_until(lambda: time.monotonic() > until, "three seconds are over")
        os.kill(pid, signal.SIGCONT)
        ended = run.wait().check(0)
        assert batch.begun().count("P0") == 1

    batch.check()
    assert len(batch.begun()) == 60
    assert "killing" not in ended.err and "lost" not in ended.err


@pytest.mark.slow
def test_a_manager_that_is_stopped_for_ever_is_replaced(tmp_path: Path) -> None:
    batch = Batch(tmp_path, *numbered(60), "A,wait", seconds=0.02)
    script = tmp_path / "quick_calls.py"
    script.write_text(QUICK_CALLS)
    with running([sys.executable, str(script), *batch.words], cwd=tmp_path) as run:
        batch.wait_begun(4)
        old = batch.manager_pid()
        os.kill(old, signal.SIGSTOP)
        await_new_manager(batch, old)
        assert not living([old])
        (tmp_path / "go").touch()
        run.wait().check(0)

    batch.check()
    assert len(batch.begun()) == 61
