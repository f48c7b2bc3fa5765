"""Rows of the table of faults that no other file covers: workers that die oddly, results that are none, scarce processes."""

import contextlib
import errno
import gc
import math
import os
import resource
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import forkserver, get_context, util
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import psutil
import pytest

import poqueue.client as client_module
import poqueue.server as server_module
import poqueue.service as service_module
from poqueue import ProcessingTask, TaskQueue, TaskResult, TaskStatus
from poqueue.service import QueueService, connect
from tests.faults import mischief
from tests.faults.batches import Batch
from tests.faults.scarce import scarce_start
from tests.integration.console import ROOT, command_line, poqueue, running, write_orders
from tests.integration.stage import DEADLINE_S, Play, living, on_stage, perform, po, started_pids, wait_until
from workers import Supervisor, staff, worker
from workers.staff import WorkersCannotStartError

pytestmark = [
    pytest.mark.usefixtures("nothing_left"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]
GOOD = ("G1", "G2", "G3", "G4")


def act(folder: Path, *tasks: ProcessingTask, **settings: Any) -> Play:
    return perform(folder, *tasks, target=mischief.process, **settings)


def good_ones(folder: Path) -> list[ProcessingTask]:
    return [po(number, "quick", folder) for number in GOOD]


def check_untouched(play: Play, *numbers: str) -> None:
    """They ran once, and nothing was held against them."""
    for number in numbers:
        task = play.tasks[number]
        assert task.status is TaskStatus.COMPLETED and not task.error_history, (number, task.error_history)
        assert play.starts()[number] == 1


# ── C9, C11: the end of a worker ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("start_method", ["spawn", "fork"])
def test_a_death_is_seen_though_a_child_holds_what_would_tell_of_it(start_method: str, tmp_path: Path) -> None:
    play = act(
        tmp_path,
        po("BAD", "fork_and_die", tmp_path),
        *good_ones(tmp_path),
        start_method=start_method,
        task_timeout=60.0,
    )

    assert play.errors("BAD") == ["WorkerKilled"], "not the time limit: the death itself"
    check_untouched(play, *GOOD)
    assert len(started_pids(tmp_path)) == 1 and not living(started_pids(tmp_path))


def test_a_worker_killed_in_the_middle_of_its_report_has_done_its_work(tmp_path: Path) -> None:
    """The report is kept beside, so what was finished counts; the manager drops half a message and serves the others."""
    play = act(tmp_path, po("BAD", "half_a_report", tmp_path), *good_ones(tmp_path), task_timeout=60.0)

    check_untouched(play, "BAD", *GOOD)
    result = play.tasks["BAD"].result
    assert result is not None and len(result.data["x"]) == 5_000_000


def test_what_is_leased_while_a_report_could_not_be_kept_is_not_given_to_another_worker_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps the PO in hand until that is told, and so looks as if a PO took long: nothing waits behind that one."""
    monkeypatch.setenv("POQUEUE_TESTING", "1")
    monkeypatch.setenv("POQUEUE_FAILPOINT", "worker.after_exchange:2:sleep=1.5")  # with the next lease in hand
    monkeypatch.setenv("POQUEUE_FAILPOINT_ONCE", str(tmp_path / "slept"))
    play = act(
        tmp_path,
        po("BUSY", "end_after", tmp_path, seconds=0.6),
        po("FULL", "fill_up", tmp_path),
        po("NEXT", "quick", tmp_path),
        jobs=2,
        task_timeout=60.0,
        start_method="spawn",  # a fork server may be older than these variables
    )

    assert (tmp_path / "slept").exists()
    check_untouched(play, "BUSY", "FULL", "NEXT")


# ── C13: the end of a PO and of its time at once ─────────────────────────────────────────────────────────────────────


def race(folder: Path, runs: int) -> Play:
    limit_s = 0.25
    racers = [
        po(f"R{number}", "end_after", folder, seconds=limit_s + (number % 9 - 4) * 0.005, task_timeout=limit_s)
        for number in range(runs)
    ]
    between = [po(f"N{number}", "quick", folder) for number in range(runs)]
    tasks = [task for pair in zip(racers, between, strict=True) for task in pair]
    return act(folder, *tasks, task_timeout=60.0, max_retries=1, jobs=3, grace=0.5)


def check_race(play: Play, runs: int) -> None:
    check_untouched(play, *(f"N{number}" for number in range(runs)))
    for number in range(runs):
        task = play.tasks[f"R{number}"]
        kinds = [error["error_type"] for error in task.error_history]
        assert task.status is TaskStatus.COMPLETED and task.result is not None
        assert kinds in ([], ["TaskTimeout"]), kinds
        assert task.attempt == 1 + len(kinds) and task.result.data == {"attempt": task.attempt}, "done xor retried"
    assert play.status["completed_tasks"] == 2 * runs == play.status["total_tasks"]


def test_an_end_in_the_moment_of_the_time_limit_is_done_or_retried(tmp_path: Path) -> None:
    check_race(race(tmp_path, 18), 18)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_200_ends_in_the_moment_of_the_time_limit_are_done_or_retried(tmp_path: Path) -> None:
    check_race(race(tmp_path, 200), 200)


# ── C14, C16: results that are none ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.once
def test_results_that_cannot_be_told_cost_one_attempt_each_and_nobody_dies_of_them(tmp_path: Path) -> None:
    names = list(mischief.RESULTS)
    bad = [po(f"B{number}", "give_result", tmp_path, result=name) for number, name in enumerate(names)]
    bad.append(po("HUGE", "give_result", tmp_path, result=mischief.TOO_LARGE, task_timeout=60.0))

    with on_stage(tmp_path, *bad, target=mischief.process, jobs=1, task_timeout=60.0) as (supervisor, play):
        manager = psutil.Process(supervisor._service.pid)
        before = manager.memory_info().rss
        supervisor.run()
        grown = manager.memory_info().rss - before

    for number, name in enumerate(names):
        assert play.errors(f"B{number}") == ["ResultNotSerializable"], (name, play.tasks[f"B{number}"].error_history)
    assert play.errors("HUGE") == ["ResultTooLarge"]
    assert len({line["pid"] for line in play.history()}) == 1, "one worker has survived them all"
    assert grown < 20_000_000


# ── C17: a poison ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_po_that_kills_every_worker_ends_after_its_retries(tmp_path: Path) -> None:
    play = act(tmp_path, po("BAD", "kill_itself", tmp_path, max_retries=2), *good_ones(tmp_path))

    assert play.tasks["BAD"].status is TaskStatus.FAILED
    assert play.errors("BAD") == ["WorkerKilled"] * 3 and play.starts()["BAD"] == 3
    check_untouched(play, *GOOD)


# ── C18: what a PO leaves in its worker ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "do",
    [
        "set_an_alarm", "set_cpu_timers", "limit_cpu_time", "dump_a_traceback_later", "switch_logging_off",
        "take_logging_away",
    ],
)  # fmt: skip
def test_the_next_po_can_work_and_be_heard(do: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "workers.output")

    play = act(tmp_path, po("MESS", do, tmp_path), po("NEXT", "log_a_line", tmp_path), jobs=1, task_timeout=20.0)

    check_untouched(play, "MESS", "NEXT")
    assert any("logged by NEXT" in record.getMessage() for record in caplog.records)


def test_what_a_session_logs_in_its_own_way_is_logged_there_and_here(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "workers.output")
    numbers = ("FIRST", "SECOND", "THIRD")

    play = perform(
        tmp_path, *(po(number, "log_a_line", tmp_path) for number in numbers), target=mischief.LogsToAFile, jobs=1,
        task_timeout=20.0,
    )  # fmt: skip

    check_untouched(play, *numbers)
    assert (tmp_path / "own.log").read_text().splitlines() == [f"logged by {number}" for number in numbers]
    assert [record.getMessage() for record in caplog.records if record.name == "workers.output"] == [
        f"my.site: logged by {number}" for number in numbers
    ]


def test_a_worker_that_cannot_be_asked_for_its_stack_is_killed_in_time_all_the_same(tmp_path: Path) -> None:
    play = act(tmp_path, po("HANG", "take_sigusr1_and_hang", tmp_path), jobs=1, task_timeout=0.5)

    assert play.errors("HANG") == ["TaskTimeout"]


def test_the_next_po_finds_the_signals_as_the_session_has_set_them(tmp_path: Path) -> None:
    tasks = [po(number, "take_signals", tmp_path) for number in ("FIRST", "SECOND")]
    after = [po("CHILD", "run_false", tmp_path), po("HANG", "hang", tmp_path, task_timeout=0.5)]

    play = perform(tmp_path, *tasks, *after, target=mischief.TakesSignals, jobs=1, task_timeout=20.0)

    check_untouched(play, "FIRST", "SECOND", "CHILD")
    assert len({line["pid"] for line in play.history()}) == 1
    first, second, child = (play.tasks[number].result for number in ("FIRST", "SECOND", "CHILD"))
    assert first is not None and second is not None and child is not None
    assert first.data == second.data and "ring" in second.data["SIGALRM"]
    assert child.data == {"code": 1}
    assert "in hang" in play.tasks["HANG"].error_history[0]["stack"], "it was asked for its stack"


def test_what_a_po_leaks_ends_with_its_worker(tmp_path: Path) -> None:
    play = act(
        tmp_path, *(po(f"L{n}", "leak", tmp_path, priority=1) for n in range(3)), po("LOOK", "count_leaks", tmp_path),
        jobs=1, max_tasks_per_worker=1, task_timeout=20.0,
    )  # fmt: skip

    result = play.tasks["LOOK"].result
    assert result is not None and result.data["fds"] < 50 and result.data["threads"] < 5
    assert len({line["pid"] for line in play.history()}) == 4


# ── C20: the system gives no process ─────────────────────────────────────────────────────────────────────────────────


def refuse_processes(monkeypatch: pytest.MonkeyPatch, start_method: str, refusals: float) -> list[int]:
    """The next starts fail as they do at RLIMIT_NPROC; the list counts them."""
    where, name = (os, "fork") if start_method == "fork" else (util, "spawnv_passfds")
    start = getattr(where, name)
    tries: list[int] = []

    def refuse(*args: Any) -> Any:
        tries.append(1)
        if len(tries) <= refusals:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return start(*args)

    monkeypatch.setattr(where, name, refuse)
    return tries


@pytest.mark.parametrize("start_method", ["spawn", "fork"])
def test_a_refused_process_is_asked_for_again_and_leaks_nothing(
    start_method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        staff.logger.logger, "disabled", True
    )  # pytest keeps records, and they the error, and that the pipes
    supervisor = Supervisor(mischief.process, jobs=2, start_method=start_method)
    with contextlib.closing(supervisor):
        supervisor.start_queue()
        tries = refuse_processes(monkeypatch, start_method, 3)
        fds = len(os.listdir("/proc/self/fd"))
        supervisor.start_workers()
        gc.collect()  # what a refused start has left is closed with it
        after_refusal = len(os.listdir("/proc/self/fd"))
        supervisor.queue.add_tasks(good_ones(tmp_path))
        end = supervisor.run()
        status = supervisor.queue.get_queue_status()

    assert (end.reason, status["completed_tasks"]) == ("done", len(GOOD))
    assert len(tries) >= 4
    assert after_refusal <= fds


@pytest.mark.parametrize("pipes", [0, 1])
def test_a_start_without_descriptors_leaves_neither_folder_nor_pipe(
    pipes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        staff.logger.logger, "disabled", True
    )  # pytest keeps records, and they the error, and that the pipes
    make, tries = os.pipe, list[int]()

    def refuse() -> tuple[int, int]:
        tries.append(1)
        if len(tries) > pipes:
            raise OSError(errno.EMFILE, "Too many open files")
        return make()

    some = staff.Staff(1, get_context("spawn"), tmp_path, "run", lambda *words: None)
    monkeypatch.setattr(os, "pipe", refuse)
    some.prepare(0.0)

    assert not some and len(tries) == pipes + 1
    assert list(tmp_path.iterdir()) == []


def test_a_fork_server_that_ends_in_the_middle_of_a_start_is_a_start_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staff.logger.logger, "disabled", True)  # as above
    forkserver.ensure_running()
    server: int = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    read = forkserver.read_signed  # type: ignore[attr-defined]

    def read_in_vain(fd: int) -> int:
        os.kill(server, signal.SIGKILL)
        return int(read(fd))

    some = staff.Staff(1, get_context("forkserver"), tmp_path, "run", lambda *words: None)
    monkeypatch.setattr(forkserver, "read_signed", read_in_vain)
    os.kill(server, signal.SIGSTOP)  # else it might still give a process
    some.prepare(0.0)

    assert not some
    assert list(tmp_path.iterdir()) == []


def test_no_process_for_too_long_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staff, "NO_PROCESS_LIMIT_S", 0.3)
    monkeypatch.setattr(
        staff.logger.logger, "disabled", True
    )  # pytest keeps records, and they the error, and that the pipes
    supervisor = Supervisor(mischief.process, jobs=2)
    with contextlib.closing(supervisor):
        supervisor.start_queue()
        refuse_processes(monkeypatch, "spawn", float("inf"))
        supervisor.start_workers()
        supervisor.queue.add_tasks(good_ones(tmp_path))

        with pytest.raises(WorkersCannotStartError, match="temporarily unavailable"):
            supervisor.run()


def test_a_current_folder_that_was_removed_ends_the_run_at_once_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staff.logger.logger, "disabled", True)  # as above
    monkeypatch.setattr(staff, "NO_PROCESS_LIMIT_S", math.inf)  # for that it does not wait
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    tasks = [po(f"P{number}", "quick", tmp_path) for number in range(3)]

    with on_stage(tmp_path, *tasks, jobs=1, max_tasks_per_worker=1, start_method="spawn") as (supervisor, play):
        wait_until(
            lambda: supervisor.queue.get_queue_status()["completed_tasks"] == 1, "the first worker has been there"
        )
        here.rmdir()
        with pytest.raises(WorkersCannotStartError, match=f"folder is gone: {here}"):
            supervisor.run()

    assert play.status["completed_tasks"] == 1 and play.status["queue_length"] == 2


REMOVE_IT = "import os, sys; os.rmdir(os.getcwd()); os.execv(sys.argv[1], sys.argv[1:])"
RUN_BATCH = """
import sys
from poqueue.errors import PoqueueError
from workers import run_batch
if __name__ == "__main__":
    try:
        sys.exit(run_batch(sys.argv[1], sys.argv[2], run_dir=sys.argv[3]).message)
    except PoqueueError as error:
        sys.exit(str(error))
"""


@pytest.mark.parametrize(
    "words",
    [
        ["run", "{}/orders.csv", "--run-dir", "{}/r"],
        ["run", "{}/orders.csv", "-p", "json:dumps", "--app-dir", "/", "--run-dir", "{}/r"],
        ["run", "orders.csv"],
        ["tune", "orders.csv"],
        ["report", "{}/done", "--output", "report.txt"],
    ],
)
def test_a_command_in_a_folder_that_was_removed_says_so_and_makes_nothing(words: list[str], tmp_path: Path) -> None:
    write_orders(tmp_path / "orders.csv", "A", header="po_number")
    poqueue("run", "orders.csv", "--run-dir", "done", cwd=tmp_path).check(0)
    here = tmp_path / "here"
    here.mkdir()
    command = command_line(*(word.format(tmp_path) for word in words))

    with running([sys.executable, "-c", REMOVE_IT, *command], cwd=here) as run:
        ended = run.wait().check(2)

    assert ended.err == f"poqueue: the current folder is gone: {here} (deleted)\n"
    assert sorted(os.listdir(tmp_path)) == ["done", "orders.csv"]


@pytest.mark.parametrize("processor", ["workers.processors.dossier:process", "json:dumps"])
def test_a_batch_in_a_folder_that_was_removed_says_so_and_ends_at_once(processor: str, tmp_path: Path) -> None:
    orders = write_orders(tmp_path / "orders.csv", "A", header="po_number")
    (tmp_path / "batch.py").write_text(RUN_BATCH)
    here = tmp_path / "here"
    here.mkdir()
    words = [sys.executable, str(tmp_path / "batch.py"), str(orders), processor, str(tmp_path / "r")]

    with running([sys.executable, "-c", REMOVE_IT, *words], cwd=here) as run:
        ended = run.wait()

    assert f"the current folder is gone: {here}" in ended.err
    assert "starting another one" not in ended.err and "Errno" not in ended.err


# ── C24: connections that say nothing, and no descriptors for more ───────────────────────────────────────────────────


@pytest.fixture
def silent() -> Iterator[Callable[[str, int], None]]:
    plugs: list[socket.socket] = []

    def knock(address: str, count: int) -> None:
        for _ in range(count):
            plug = socket.socket(socket.AF_UNIX)
            plug.setblocking(False)
            try:
                plug.connect(address)
                plugs.append(plug)
            except BlockingIOError:  # no room to wait
                plug.close()

    yield knock
    for plug in plugs:
        plug.close()


def test_a_manager_without_descriptors_serves_those_it_knows_and_lets_others_in_later(
    silent: Callable[[str, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "AUTH_TIMEOUT_S", 1.0)
    with QueueService(start_method="fork") as service:
        queue = service.client()
        queue.add_task(ProcessingTask("A", {"po_number": "A"}))
        reader, before = queue.open_events()
        manager = psutil.Process(service.pid)
        resource.prlimit(service.pid, resource.RLIMIT_NOFILE, (40, 40))
        cpu = sum(manager.cpu_times()[:2])
        begun = time.monotonic()

        def knock() -> bool:
            silent(service.address, 10)  # again and again: only some find room to wait before they are let in
            return manager.num_fds() >= 39

        wait_until(knock, "its descriptors are used up")
        leased = queue.get_next_task("w")
        queue.complete_task("A", "w", TaskResult(True))
        fresh = connect(service.address, service.key)
        spent, took = sum(manager.cpu_times()[:2]) - cpu, time.monotonic() - begun

        assert leased is not None and fresh.get_queue_status()["completed_tasks"] == 1
        assert spent < 0.3 * took + 0.2, "it has spun"
        [told] = [event.error for event in queue.read_events(reader, before) if event.kind == "short"]
        assert told == "the manager process takes no more connections for now: [Errno 24] Too many open files"


def test_the_last_descriptor_is_enough_for_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would be broken off after its greeting, which looks like a lost manager."""

    def refuse(fd: int) -> NoReturn:
        raise OSError(errno.EMFILE, "Too many open files")

    service = QueueService(start_method="fork")
    with contextlib.closing(_Stopping(service)):
        with monkeypatch.context() as patch:
            patch.setattr(os, "dup", refuse)  # the fork takes it along
            service.start()
        assert connect(service.address, service.key).get_queue_status()["status"] == "ACTIVE"


class _Stopping:
    def __init__(self, service: QueueService) -> None:
        self.close = service.stop


def test_no_more_connections_than_the_limit_are_held(
    silent: Callable[[str, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "MAX_CONNECTIONS", 10)
    monkeypatch.setattr(server_module, "AUTH_TIMEOUT_S", 1.0)
    with QueueService(start_method="fork") as service:
        queue = service.client()
        queue.get_queue_status()
        manager = psutil.Process(service.pid)
        before = manager.num_fds()

        silent(service.address, 30)
        wait_until(lambda: manager.num_threads() >= 11, "its places are taken")

        assert queue.get_queue_status()["status"] == "ACTIVE"
        assert manager.num_fds() <= before + 10
        wait_until(lambda: manager.num_fds() <= before + 1, "the silent ones are dropped")
        assert connect(service.address, service.key).get_queue_status()["status"] == "ACTIVE"


SCARCE_THREADS = """
import _thread, threading
from tests.faults.scarce import scarce_lines, scarce_start
_thread.start_new_thread = scarce_lines(given=1)
threading.Thread.start = scarce_start()
"""


def test_a_manager_without_threads_is_told_of_at_once_and_the_run_goes_on_with_those_it_knows(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SCARCE_THREADS)
    batch = Batch(tmp_path, "A,wait", "B,", "C,")
    told = "the manager process takes no more connections for now: can't start new thread"

    with batch.start(env={"PYTHONPATH": f"{tmp_path}/site:{ROOT}"}) as run:
        batch.wait_begun(1)
        wait_until(lambda: run.said(told), "the operator knows it")
        (tmp_path / "go").touch()
        ended = run.wait().check(0)

    assert "3 succeeded" in ended.err and ended.err.count(told) == 1
    assert told in ended.err.partition("could not start")[0], "while the other worker still tries"
    assert (batch.run_dir / "manager.log").read_text().count(told) == 1


def test_workers_whom_the_manager_does_not_take_end_the_run_long_before_they_would_give_up_a_missing_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "CONNECT_WITHIN_S", math.inf)
    monkeypatch.setattr(worker, "REFUSED_S", 0.0)
    monkeypatch.setattr(staff.logger.logger, "disabled", True)  # as above
    monkeypatch.setattr(threading.Thread, "start", scarce_start())  # forks take it along

    with on_stage(tmp_path, *good_ones(tmp_path), jobs=1, start_method="fork") as (supervisor, _):
        with pytest.raises(WorkersCannotStartError, match=r"takes no more connections \(threads"):
            supervisor.run()
        assert supervisor.queue.get_queue_status()["pending_tasks"] == len(GOOD), "nothing is lost"


def test_workers_whom_the_manager_does_not_take_for_a_moment_start_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker, "REFUSED_S", 0.0)
    monkeypatch.setattr(threading.Thread, "start", scarce_start(refusals=worker.REFUSALS))

    play = act(tmp_path, *good_ones(tmp_path), jobs=1, start_method="fork")

    check_untouched(play, *GOOD)
    assert caplog.text.count("takes no more connections for now: can't start new thread") == 1
    assert "could not start" not in caplog.text


def test_workers_who_find_no_manager_yet_are_as_patient_as_ever(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(worker, "REFUSED_S", 0.0)
    monkeypatch.setattr(worker, "ASK_AGAIN_S", 0.0)
    tries, client = list[int](), object()

    def connect_late(*words: Any) -> Any:
        tries.append(1)
        return client if len(tries) > 10 * worker.REFUSALS else connect(*words)

    monkeypatch.setattr(worker, "connect", connect_late)
    settings: Any = SimpleNamespace(address=str(tmp_path / "queue.sock"), key=b"k" * 32)

    assert worker._connect_patiently(settings, None) is client


def test_a_worker_whose_first_connection_has_ended_looks_for_a_manager_until_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dial, tries = client_module.dial, list[int]()
    monkeypatch.setattr(client_module, "dial", lambda *words: tries.append(1) or dial(*words))
    with QueueService(journal=tmp_path / "journal", lines=1) as service:
        settings: Any = SimpleNamespace(address=service.address, key=service.key)
        line = service.take_line()
        assert line is not None
        os.kill(service.pid, signal.SIGKILL)
        assert line.poll(DEADLINE_S), "it has ended"

        with ThreadPoolExecutor(1) as pool:
            connected = pool.submit(worker._connect_patiently, settings, line)
            wait_until(lambda: len(tries) > 1, "it has tried in vain, and tries again")
            service.replace()
            assert connected.result(DEADLINE_S).has_journal()


# ── C26: event handlers ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(params=["memory", "journal"])
def queue(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[TaskQueue]:
    queue = TaskQueue(retry_delay=0, **({"journal": tmp_path / "journal"} if request.param == "journal" else {}))
    yield queue
    queue.close_queue()


def complete(queue: TaskQueue, number: str) -> None:
    queue.add_task(ProcessingTask(number, {"po_number": number}))
    task = queue.get_next_task("w")
    assert task is not None
    queue.complete_task(task.task_id, "w", TaskResult(True))


def test_a_handler_that_blocks_holds_up_nobody(queue: TaskQueue) -> None:
    go, is_in = threading.Event(), threading.Event()

    def block(task: ProcessingTask) -> None:
        is_in.set()
        go.wait(20.0)

    queue.set_event_handlers(on_task_complete=block)
    blocked = threading.Thread(target=complete, args=(queue, "A"))
    blocked.start()
    assert is_in.wait(20.0)
    for number in range(50):
        complete(queue, f"P{number}")
    assert queue.get_queue_status()["completed_tasks"] == 51 and blocked.is_alive()
    go.set()
    blocked.join()


def test_a_handler_may_add_and_remove_itself(queue: TaskQueue) -> None:
    heard: list[str] = []

    def add_and_go(task: ProcessingTask) -> None:
        heard.append(task.task_id)
        if len(heard) < 20:
            complete(queue, f"P{len(heard)}")
        else:
            queue.set_event_handlers(on_task_complete=None)
            complete(queue, "LAST")

    queue.set_event_handlers(on_task_complete=add_and_go)
    complete(queue, "P0")

    assert heard == [f"P{number}" for number in range(20)]
    assert queue.get_queue_status()["completed_tasks"] == 21


def test_a_handler_that_always_raises_is_logged_and_counts_nowhere(
    queue: TaskQueue, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(task: ProcessingTask) -> NoReturn:
        raise SystemExit("as if the program should end")

    queue.set_event_handlers(on_task_complete=fail)
    for number in range(5):
        complete(queue, f"P{number}")

    assert queue.get_queue_status()["completed_tasks"] == 5 and queue.get_error_summary()["total_errors"] == 0
    assert any("on_task_complete" in record.getMessage() for record in caplog.records)


# ── C38, C39: nobody listens, nothing can be written ─────────────────────────────────────────────────────────────────


@pytest.mark.once
@pytest.mark.parametrize("redirected", [">&- 2>&-", ">/dev/full 2>/dev/full", "2>&1 | head -c 1 >/dev/null"])
def test_a_run_that_nobody_listens_to_ends_by_its_own_code(redirected: str, tmp_path: Path) -> None:
    write_orders(tmp_path / "o.csv", "A,ok", "B,ok")
    script = f"{sys.executable} -m workers run o.csv -j 1 --run-dir r -v {redirected}; exit ${{PIPESTATUS[0]}}"

    with running(["bash", "-c", script], cwd=tmp_path) as run:
        run.wait().check(0)

    assert (tmp_path / "r" / "report.json").exists()


@pytest.mark.once
def test_a_log_that_is_removed_meanwhile_ends_no_run(tmp_path: Path) -> None:
    batch = Batch(tmp_path, "A,wait", "B,", "C,", jobs=1)
    with batch.start() as run:
        batch.wait_begun(1)
        for name in ("run.log", "manager.log"):
            (batch.run_dir / name).unlink(missing_ok=True)
        (tmp_path / "go").touch()
        run.wait().check(0)

    batch.check()


@pytest.mark.once
@pytest.mark.parametrize("what", ["journal.sqlite", "."])
def test_a_run_whose_journal_is_deleted_says_so_and_ends(what: str, tmp_path: Path) -> None:
    batch = Batch(tmp_path, "A,wait", "B,", jobs=1)
    with batch.start() as run:
        batch.wait_begun(1)
        subprocess.run(["rm", "-rf", str(batch.run_dir / what if what != "." else batch.run_dir)], check=True)
        ended = run.wait()

    ended.check_quiet()
    assert ended.code == 4
    assert "journal.sqlite was deleted or replaced" in ended.err and "2 input rows = 0 succeeded" in ended.err
    assert ("run the order file anew" if what == "." else "run the rest: poqueue run r/not_run.csv") in ended.err
    assert "--resume" not in ended.err


@pytest.mark.once
def test_a_run_whose_wal_file_is_deleted_says_so_and_can_go_on(tmp_path: Path) -> None:
    batch = Batch(tmp_path, "A,", "B,wait", "C,", jobs=1)
    with batch.start() as run:
        batch.wait_begun(2)
        (batch.run_dir / "journal.sqlite-wal").unlink()
        ended = run.wait().check(4)
    assert "-wal file, was deleted or replaced" in ended.err and "--resume" in ended.err
    (tmp_path / "go").touch()

    batch.finish()

    batch.check()
    assert batch.begun().count("A") == 1


@pytest.mark.once
def test_a_report_that_cannot_be_written_at_the_end_is_told_and_the_runs_own_is_there(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    batch = Batch(tmp_path, "A,wait", jobs=1, words=("--report", "elsewhere/x.json"))
    with batch.start() as run:
        batch.wait_begun(1)
        (tmp_path / "elsewhere").rmdir()
        (tmp_path / "go").touch()
        ended = run.wait()

    assert ended.code not in (0, 1), "the answer of the run is not all there"
    ended.check_quiet()
    assert "elsewhere" in ended.err
    assert batch.report()["accounts"]["succeeded"] == 1
    assert '"A"' in poqueue("report", "r", "--format", "json", cwd=tmp_path).check(0).out


@pytest.mark.once
@pytest.mark.parametrize("kind", ["a file", "a link"])
def test_an_old_report_is_replaced_whole(kind: str, tmp_path: Path) -> None:
    write_orders(tmp_path / "o.csv", "A,ok")
    old = tmp_path / "old"
    old.write_text("old")
    report = tmp_path / "x.json"
    if kind == "a link":
        report.symlink_to(old)
    else:
        report.write_text("old")

    poqueue("run", "o.csv", "-j", "1", "--report", "x.json", cwd=tmp_path).check(0)

    assert report.read_text().startswith("{") and not report.is_symlink()
    assert old.read_text() == "old", "the link is replaced, not followed"


# ── C42: the socket's file is removed ────────────────────────────────────────────────────────────────────────────────


def test_who_is_connected_goes_on_without_the_sockets_file(tmp_path: Path) -> None:
    waiting = [po(f"W{number}", "wait_for_go", tmp_path) for number in range(2)]
    with on_stage(tmp_path, *waiting, *good_ones(tmp_path), task_timeout=60.0) as (supervisor, play):
        wait_until(lambda: len(play.history()) == 2, "both have begun")
        os.unlink(supervisor._service.address)
        (tmp_path / "go").touch()
        supervisor.run()

    check_untouched(play, "W0", "W1", *GOOD)


def test_workers_that_find_no_socket_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "CONNECT_WITHIN_S", 0.2)  # forks take it along
    tasks = [po("BAD", "kill_itself", tmp_path, max_retries=0), *good_ones(tmp_path)]
    with on_stage(tmp_path, target=mischief.process, jobs=1, start_method="fork") as (supervisor, _):
        wait_until(lambda: supervisor._staff.workers[0].status().phase.name == "WORKING", "it has connected")
        os.unlink(supervisor._service.address)
        supervisor.queue.add_tasks(tasks)

        with pytest.raises(WorkersCannotStartError, match="could not start"):
            supervisor.run()
        assert supervisor.queue.get_queue_status()["pending_tasks"] == len(GOOD), "nothing is lost"


# ── C43: no semaphores, nothing in /dev/shm ──────────────────────────────────────────────────────────────────────────


def test_a_system_without_semaphores_runs_a_batch(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        textwrap.dedent("""
            import _multiprocessing
            class SemLock:
                def __new__(cls, *args):
                    raise OSError(28, "No space left on device")
                SEM_VALUE_MAX = 1
            _multiprocessing.SemLock = SemLock
        """)
    )
    write_orders(tmp_path / "o.csv", "A,ok", "B,ok")

    ended = poqueue(
        "run", "o.csv", "-j", "2", "--run-dir", "r", cwd=tmp_path, env={"PYTHONPATH": f"{tmp_path}/site:{ROOT}"}
    ).check(0)

    assert "2 succeeded" in ended.err  # where every semaphore is refused


# ── C46: a manager that does not close ───────────────────────────────────────────────────────────────────────────────


def test_a_manager_that_does_not_come_to_an_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "CLOSE_TIMEOUT_S", 0.3)
    monkeypatch.setattr(TaskQueue, "close_queue", lambda self: threading.Event().wait())
    service = QueueService(start_method="fork", journal=tmp_path / "journal")
    service.start()
    service.client().add_task(ProcessingTask("A", {"po_number": "A"}))
    pid = service.pid

    service.stop()

    assert not psutil.pid_exists(pid) and not os.path.exists(service.address)
    monkeypatch.undo()
    queue = TaskQueue(journal=tmp_path / "journal")
    assert queue.find_task(task_id="A") is not None, "what was told is there"
    queue.close_queue()


# ── C47: an embedding program with threads ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("start_method", ["spawn", "forkserver"])
def test_a_lock_that_a_thread_of_ours_holds_is_free_in_workers(start_method: str, tmp_path: Path) -> None:
    with mischief.LOCK:
        play = act(tmp_path, po("A", "take_the_lock", tmp_path), start_method=start_method, task_timeout=20.0)

    check_untouched(play, "A")
