"""The supervisor and its processes as a whole: what is lost when anything at all is killed, and that nothing stays behind."""

import contextlib
import ctypes
import gc
import itertools
import logging
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import psutil
import pytest

from poqueue import ProcessingTask, TaskStatus
from poqueue.errors import JournalError, QueueError, QueueFullError, ServiceError
from poqueue.packing import FrozenTask
from poqueue.payload import freeze_plain, is_json
from poqueue.records import Kind
from poqueue.service import connect
from poqueue.simulation import ahead_of
from poqueue.task import Event, TaskRecord
from poqueue.wire import wait_readable
from tests.conftest import marked
from tests.integration.console import python, running
from tests.integration.stage import DEADLINE_S, Play, history, living, on_stage, perform, po, started_pids, wait_until
from workers import Supervisor, run_parts
from workers import feeder as feeder_module
from workers import supervisor as supervisor_module
from workers.feeder import Feeder
from workers.own_process import usable_cores
from workers.process_control import helper_pids, marked_processes
from workers.progress import Snapshot
from workers.reaper import Reaper
from workers.recovery import LeftBehind
from workers.run_control import CONTROL_NAME
from workers.supervisor import Halt
from workers.worker_files import Phase
from workers.worker_process import WorkerProcess

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def mark(nothing_left: str) -> str:
    """What every process of the test carries."""
    return nothing_left


def meanwhile(supervisor: Supervisor, act: Callable[[], object]) -> None:
    """Run the supervisor while another thread does something; what that raises is raised here."""
    faults: list[BaseException] = []

    def body() -> None:
        try:
            act()
        except BaseException as error:
            faults.append(error)
            supervisor.stop()
            supervisor.stop()

    thread = threading.Thread(target=body)
    thread.start()
    try:
        supervisor.run()
    finally:
        thread.join()
    if faults:
        raise faults[0]


def has_begun(folder: Path, count: int) -> Callable[[], bool]:
    return lambda: sum(line["event"] == "start" for line in history(folder)) >= count


# ── executions ───────────────────────────────────────────────────────────────────────────────────────────────────────


def check_executions(play: Play) -> None:
    """One PO never runs twice at once, and begins as often as it has attempts."""
    running: dict[str, tuple[int, int]] = {}
    ended: dict[str, int] = {}
    for line in sorted(play.history(), key=lambda line: line["at"]):
        number = line["po"]
        if line["event"] == "start":
            if number in running:
                assert running[number][0] not in living([running[number][0]]) or running[number][0] == line["pid"]
            assert line["attempt"] == running.get(number, (0, 0))[1] + 1, f"attempts of {number} are not in order"
            running[number] = (line["pid"], line["attempt"])
        else:
            assert running[number] == (line["pid"], line["attempt"])
            ended[number] = ended.get(number, 0) + 1
    for number, task in play.tasks.items():
        assert play.starts()[number] == task.attempt
        assert ended.get(number, 0) == (task.status is TaskStatus.COMPLETED)
        assert len(task.error_history) == task.attempt - (task.status is TaskStatus.COMPLETED)


@pytest.mark.slow
def test_every_po_that_succeeds_among_crashes_and_hangs_ran_exactly_once(tmp_path: Path) -> None:
    deeds = {number: "kill_itself" for number in range(7, 200, 20)} | {number: "hang" for number in range(13, 200, 20)}
    tasks = [po(f"P{n}", deeds.get(n, "quick"), tmp_path, max_retries=int(n in deeds)) for n in range(200)]

    play = perform(tmp_path, *tasks, task_timeout=0.5, grace=1.0)

    assert len(play.tasks) == 200
    check_executions(play)
    for number in range(200):
        task = play.tasks[f"P{number}"]
        error = {"kill_itself": "WorkerKilled", "hang": "TaskTimeout"}.get(deeds.get(number, ""))
        assert task.status is (TaskStatus.FAILED if error else TaskStatus.COMPLETED), task
        assert play.errors(task.task_id) == ([error] * 2 if error else [])
    assert play.status["completed_tasks"] == 180 and play.status["failed_tasks"] == 20


def test_what_a_worker_had_finished_and_not_told_is_not_run_again(tmp_path: Path) -> None:
    """By then the worker holds many leases at once, and tells how they ended in one message."""
    deaths = {100, 133, 177}
    tasks = [po(f"P{n}", "kill_itself" if n in deaths else "quick", tmp_path) for n in range(220)]

    play = perform(tmp_path, *tasks, jobs=1, task_timeout=20.0)

    check_executions(play)
    assert [number for number, task in play.tasks.items() if task.status is TaskStatus.FAILED] == [
        f"P{number}" for number in sorted(deaths)
    ]


@pytest.mark.parametrize("start_method", ["spawn", "forkserver", "fork"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_every_start_method_keeps_the_promises(start_method: str, tmp_path: Path) -> None:
    bad = ("kill_itself", "exit_zero", "daemon_and_die", "daemon_and_hang", "shell_daemon_and_hang", "fork_and_return")
    folders = {do: tmp_path / do for do in bad}
    for folder in folders.values():
        folder.mkdir()
    goods = [po(f"G{n}", "good", tmp_path) for n in range(6)]

    play = perform(
        tmp_path, *(po(do, do, folders[do]) for do in bad), *goods, start_method=start_method, task_timeout=1.0
    )

    assert play.is_completed(*(good.task_id for good in goods), "fork_and_return")
    assert play.errors("kill_itself") == ["WorkerKilled"]
    assert play.errors("exit_zero") == ["WorkerExited"]
    assert play.errors("daemon_and_hang") == ["TaskTimeout"]
    assert living([pid for folder in folders.values() for pid in started_pids(folder)]) == []


@pytest.mark.parametrize("start_method", ["spawn", "forkserver"])
def test_the_end_of_one_run_leaves_another_one_alone(start_method: str, tmp_path: Path) -> None:
    """Two supervisors in one process, one after the other closed."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    with Supervisor("tests.integration.villains:process", jobs=1, start_method=start_method) as outer:
        outer.queue.add_task(po("A", "wait_for_go", first))
        wait_until(has_begun(first, 1), "the outer run works")
        play = perform(second, po("B", "quick", second), start_method=start_method)
        (first / "go").touch()
        outer.run()
        task = outer.queue.find_task(task_id="A")

    assert play.is_completed("B")
    assert task is not None and task.status is TaskStatus.COMPLETED and task.error_history == []


@pytest.mark.parametrize("start_method", ["spawn", "forkserver"])
def test_closing_one_run_does_not_kill_an_older_ones_workers(start_method: str, tmp_path: Path) -> None:
    """The first run has started the fork server, and its mark is in the environment of whatever comes from there."""
    older, newer = tmp_path / "older", tmp_path / "newer"
    older.mkdir()
    newer.mkdir()
    supervisor = Supervisor("tests.integration.villains:process", jobs=1, start_method=start_method)
    supervisor.start()
    try:
        supervisor.queue.add_task(po("A", "quick", older))
        wait_until(has_begun(older, 1), "the older run works")
        with on_stage(newer, po("B", "wait_for_go", newer), start_method=start_method, task_timeout=30) as (
            other,
            play,
        ):
            wait_until(has_begun(newer, 1), "the newer run works")
            supervisor.close()
            (newer / "go").touch()
            other.run()
    finally:
        supervisor.close()

    assert play.is_completed("B")
    assert play.tasks["B"].error_history == [] and play.starts() == {"B": 1}


# ── interference ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_clearing_the_queue_with_what_runs_stops_those_workers(tmp_path: Path) -> None:
    tasks = [po("A", "child_sleeps", tmp_path), po("B", "child_sleeps", tmp_path), po("C", "quick", tmp_path)]
    with on_stage(tmp_path, *tasks, task_timeout=120.0, grace=0.5) as (supervisor, play):

        def clear() -> None:
            wait_until(lambda: len(started_pids(tmp_path)) == 2, "both have begun")
            with_connection = connect(supervisor.queue._address, supervisor.queue._key)
            assert with_connection.clear_queue(preserve_processing=False) == 3
            with_connection.close()

        meanwhile(supervisor, clear)
        assert living(started_pids(tmp_path)) == []

    assert play.tasks == {}
    assert play.status["cleared_tasks"] == 3 and play.status["failed_tasks"] == 0


def adds_when_dropped(task: ProcessingTask) -> tuple[list[Supervisor], Callable[[Event], None]]:
    """A handler that adds a task as soon as others are dropped, before the run may take itself for done; and whose."""
    supervisors: list[Supervisor] = []

    def add(event: Event) -> None:
        if event.kind == "dropped" and supervisors:
            supervisors.pop().queue.add_task(task)

    return supervisors, add


def test_a_po_that_was_cleared_while_it_ran_runs_anew_only_when_its_worker_has_let_go(tmp_path: Path) -> None:
    again = ProcessingTask("again", {"po_number": "A", "do": "look_for_another", "folder": str(tmp_path)})
    whose, add_again = adds_when_dropped(again)
    settings: dict[str, Any] = {"task_timeout": 120.0, "grace": 1.0, "on_event": add_again}
    with on_stage(tmp_path, po("A", "ignore_term", tmp_path), **settings) as (supervisor, play):
        whose.append(supervisor)

        def clear() -> None:
            wait_until(has_begun(tmp_path, 1), "it has begun")
            wait_until(lambda: not supervisor._may_be_done, "the run knows that there is work")
            other = connect(supervisor.queue._address, supervisor.queue._key)
            assert other.clear_queue(preserve_processing=False) == 1
            other.close()

        meanwhile(supervisor, clear)

    assert play.is_completed("again")
    assert play.tasks["again"].result is not None and play.tasks["again"].result.data == {"others": []}


LONG_ID = "a long id, " + 100 * "x"  # longer than what a worker says of itself


@pytest.mark.parametrize("how", ["cancel", "clear"])
def test_a_po_that_is_cancelled_or_cleared_before_its_worker_has_begun_it_does_not_run_to_its_end(
    how: str, tmp_path: Path
) -> None:
    """It is held ahead, behind others that take a moment."""
    before = [po(f"before {number}", "pause", tmp_path, seconds=0.008) for number in range(60)]
    late = po("late", "wait_for_go", tmp_path)
    late.task_id = LONG_ID
    whose, add_next = adds_when_dropped(po("next", "quick", tmp_path))
    with on_stage(tmp_path, *before, late, jobs=1, task_timeout=120.0, on_event=add_next) as (supervisor, play):
        whose.append(supervisor)

        def end_it() -> None:
            other = connect(supervisor.queue._address, supervisor.queue._key)
            wait_until(lambda: LONG_ID in {record.task_id for record in other.get_leases().values()}, "it is leased")
            if how == "cancel":
                assert other.cancel_task(LONG_ID) == "stopping"
            else:
                assert other.clear_queue(preserve_processing=False)
            other.close()

        meanwhile(supervisor, end_it)

    assert not any(line["po"] == "late" and line["event"] == "end" for line in play.history())
    if how == "cancel":
        assert play.tasks[LONG_ID].status is TaskStatus.FAILED and play.errors(LONG_ID) == ["Cancelled"]
    else:
        assert LONG_ID not in play.tasks and play.is_completed("next"), "the only worker is free again"


@pytest.mark.parametrize("task_id", ["A", LONG_ID])
def test_a_po_that_was_cancelled_while_it_ran_has_had_an_attempt(task_id: str, tmp_path: Path) -> None:
    task = po("A", "hang", tmp_path)
    task.task_id = task_id
    with on_stage(tmp_path, task, task_timeout=120.0) as (supervisor, play):

        def cancel() -> None:
            wait_until(has_begun(tmp_path, 1), "it has begun")
            with contextlib.closing(connect(supervisor.queue._address, supervisor.queue._key)) as other:
                assert other.cancel_task(task_id) == "stopping"

        meanwhile(supervisor, cancel)

    error = play.tasks[task_id].error_history[-1]
    assert play.tasks[task_id].attempt == error["attempt"] == 1
    assert error["message"] == "cancelled while it ran" and error["worker_id"] and error["seconds"] > 0


def test_a_po_that_was_cancelled_while_it_ran_is_stopped_though_the_manager_is_lost_at_once(tmp_path: Path) -> None:
    journal = tmp_path / "journal.sqlite"
    settings = {"task_timeout": 120.0, "journal": journal}
    with on_stage(tmp_path, po("A", "hang", tmp_path, max_retries=3), **settings) as (supervisor, play):

        def cancel_and_kill() -> None:
            wait_until(has_begun(tmp_path, 1), "it has begun")
            other = connect(supervisor.queue._address, supervisor.queue._key)
            assert other.cancel_task("A") == "stopping"
            os.kill(supervisor._service.pid, signal.SIGKILL)
            other.close()

        meanwhile(supervisor, cancel_and_kill)

    assert play.tasks["A"].status is TaskStatus.FAILED and play.errors("A") == ["Cancelled"]


@pytest.mark.parametrize("when", ["before the manager is lost", "afterwards"])
def test_a_po_that_was_cleared_while_it_ran_never_runs_beside_its_successor_though_the_manager_is_lost(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    act = Supervisor._act_on
    if when == "before the manager is lost":  # and with it what it would have told
        monkeypatch.setattr(Supervisor, "_act_on", lambda self, event: event.kind == "dropped" or act(self, event))
    is_finished, is_added = Supervisor._is_finished, threading.Event()
    monkeypatch.setattr(Supervisor, "_is_finished", lambda self: is_added.is_set() and is_finished(self))
    first, second = po("A", "ignore_term", tmp_path), po("A", "wait_for_go", tmp_path)
    first.task_id, second.task_id = "first", "second"
    settings = {"task_timeout": 120.0, "journal": tmp_path / "journal.sqlite"}
    with on_stage(tmp_path, first, **settings) as (supervisor, play):

        def clear_and_add_again() -> None:
            wait_until(has_begun(tmp_path, 1), "the first has begun")
            manager = supervisor._service.pid
            if when == "afterwards":
                os.kill(manager, signal.SIGKILL)
                wait_until(lambda: not living([manager]), "it is lost")
                wait_until(lambda: not play_status(supervisor)["reason"], "another one is there, and its queue let go")
            other = connect(supervisor.queue._address, supervisor.queue._key)
            assert other.clear_queue(preserve_processing=False) == 1
            other.add_task(second)
            is_added.set()
            other.close()
            if when == "before the manager is lost":
                os.kill(manager, signal.SIGKILL)
            wait_until(has_begun(tmp_path, 2), "the second has begun")
            assert living([history(tmp_path)[0]["pid"]]) == []
            (tmp_path / "go").touch()

        meanwhile(supervisor, clear_and_add_again)

    assert play.is_completed("second") and "first" not in play.tasks


def play_status(supervisor: Supervisor) -> dict[str, Any]:
    """What the queue in use says, as soon as it answers."""
    try:
        with contextlib.closing(connect(supervisor.queue._address, supervisor.queue._key)) as other:
            return other.get_queue_status()
    except ServiceError:
        return {"reason": "it is not there yet"}


def test_a_worker_that_is_killed_while_idle_is_replaced_and_nobody_is_charged(tmp_path: Path) -> None:
    with on_stage(tmp_path, po("A", "wait_for_go", tmp_path), task_timeout=60.0) as (supervisor, play):

        def kill_the_idle_one() -> None:
            wait_until(has_begun(tmp_path, 1), "A has begun")
            busy = {line["pid"] for line in history(tmp_path)}
            idle = next(worker.pid for worker in list(supervisor._staff.workers) if worker.pid not in busy)
            os.kill(idle, signal.SIGKILL)
            wait_until(
                lambda: len([w for w in list(supervisor._staff.workers) if w.pid not in {*busy, idle}]) == 1, "replaced"
            )
            (tmp_path / "go").touch()

        meanwhile(supervisor, kill_the_idle_one)

    assert play.is_completed("A") and not play.tasks["A"].error_history


def test_a_worker_that_is_stopped_while_idle_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("workers.time_limits.IDLE_LOOK_S", 0.5)
    tasks = [po("A", "wait_for_go", tmp_path), po("Q", "quick", tmp_path)]
    with on_stage(tmp_path, *tasks, task_timeout=60.0) as (supervisor, play):

        def stop_the_idle_one() -> None:
            with contextlib.closing(connect(supervisor.queue._address, supervisor.queue._key)) as other:
                wait_until(has_begun(tmp_path, 2), "both have begun")
                wait_until(
                    lambda: other.get_queue_status()["completed_tasks"] == 1, "Q has ended, and more is asked for"
                )
                os.kill(next(line["pid"] for line in history(tmp_path) if line["po"] == "Q"), signal.SIGSTOP)
                other.add_task(po("B", "quick", tmp_path))
                wait_until(lambda: other.get_queue_status()["completed_tasks"] == 2, "B has ended")
            (tmp_path / "go").touch()

        meanwhile(supervisor, stop_the_idle_one)

    assert play.is_completed("A", "B") and not play.tasks["B"].error_history
    assert "begun none of its leases" in caplog.text


def test_a_worker_that_hangs_between_two_pos_is_replaced_and_what_it_had_done_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.time_limits.IDLE_LOOK_S", 0.5)

    play = perform(tmp_path, po("A", "hang_afterwards", tmp_path), po("B", "quick", tmp_path), jobs=1)

    assert play.is_completed("A", "B") and play.starts() == {"A": 1, "B": 1}
    assert not play.tasks["A"].error_history + play.tasks["B"].error_history


def test_a_po_that_a_program_has_taken_itself_is_named_once_when_the_run_waits_for_it_in_vain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("workers.time_limits.IDLE_LOOK_S", 0.1)
    supervisor = Supervisor("tests.integration.villains:process", jobs=1)
    supervisor.start_queue()
    look, looks = supervisor._limits._look_at_idle, list[float]()

    def counted(now: float) -> None:
        looks.append(now)
        look(now)

    monkeypatch.setattr(supervisor._limits, "_look_at_idle", counted)

    def bury_its_worker() -> None:
        wait_until(lambda: "'my own'" in caplog.text, "it is named")
        before = len(looks)
        wait_until(lambda: len(looks) > before + 2, "it is looked at again")
        assert [supervisor.queue.release_worker(name) for name in ("my own", "another")] == [["A"], ["B"]]

    try:
        supervisor.queue.add_tasks([po("A", "quick", tmp_path, task_timeout=0.3), po("B", "quick", tmp_path)])
        for name in ("my own", "another"):
            assert supervisor.queue.get_next_task(name) is not None
        supervisor.start_workers()
        meanwhile(supervisor, bury_its_worker)
        status = supervisor.queue.get_queue_status()
    finally:
        supervisor.close()

    assert status["completed_tasks"] == 2
    named = [line.getMessage() for line in caplog.records if "did not start" in line.getMessage()]
    assert len(named) == 1 and named[0].startswith("PO A is held by 'my own', which this run did not start")
    assert "0.3 s" in named[0] and "release_worker" in named[0]


def test_a_run_whose_events_were_closed_by_the_queue_hears_of_every_end_all_the_same(tmp_path: Path) -> None:
    """As the queue does when their connection has been gone for long."""
    ended: list[str] = []
    tasks = [po("A", "wait_for_go", tmp_path), *(po(f"P{number}", "good", tmp_path) for number in range(5))]
    settings = {"task_timeout": 60.0, "on_event": lambda event: event.task and ended.append(event.task.task_id)}
    with on_stage(tmp_path, *tasks, **settings) as (supervisor, play):

        def close_them() -> None:
            wait_until(has_begun(tmp_path, 6), "all have begun")
            with contextlib.closing(connect(supervisor.queue._address, supervisor.queue._key)) as other:
                other.call("close_events", supervisor._keeper._reader)
                (tmp_path / "go").touch()

        meanwhile(supervisor, close_them)

    assert play.is_completed(*(task.task_id for task in tasks))
    assert set(ended) == {task.task_id for task in tasks}


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_run_that_stood_still_while_more_events_came_than_are_kept_hears_of_every_end_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And of what is to be cancelled. The queue has kept the last 50 events for it."""
    monkeypatch.setattr("poqueue.events.MAX_FEED", 50)
    lots, on_its_way = 4, 250  # one answer may hold so many
    floods = [[po(f"P{lot}.{n}", "quick", tmp_path) for n in range(on_its_way)] for lot in range(lots)]
    ended: dict[str, str] = {}

    def stand_still(event: Event) -> None:
        if event.task:
            ended[event.task.task_id] = event.kind
        if event.kind == "completed" and event.task and event.task.task_id == "F" and len(ended) == 1:
            with contextlib.closing(connect(supervisor.queue._address, supervisor.queue._key)) as other:
                for lot, flood in enumerate(floods):
                    other.add_tasks(flood)
                    count = 1 + (lot + 1) * on_its_way
                    wait_until(lambda: other.get_queue_status()["completed_tasks"] == count, "they have ended")  # noqa: B023
                    if lot == lots // 2:
                        assert other.cancel_task("A") == "stopping"

    tasks = [po("A", "hang", tmp_path, task_timeout=120.0), po("F", "quick", tmp_path)]
    with on_stage(tmp_path, *tasks, start_method="fork", on_event=stand_still) as (supervisor, play):
        play.end = supervisor.run()

    assert play.is_completed("F", *(task.task_id for flood in floods for task in flood))
    assert play.errors("A") == ["Cancelled"]
    assert ended == {number: "failed" if number == "A" else "completed" for number in play.tasks}


@pytest.mark.slow
def test_a_flood_of_events_keeps_no_hung_po_alive(tmp_path: Path) -> None:
    """Whoever takes the events takes longer than the POs do: there are always more of them."""
    handed_on: list[float] = []

    def take(event: Event) -> None:
        if event.kind == "completed":
            time.sleep(0.004)
            handed_on.append(time.time())

    tasks = [po("H", "hang", tmp_path), *(po(f"P{n}", "quick", tmp_path) for n in range(1500))]
    play = perform(tmp_path, *tasks, task_timeout=0.3, on_event=take)

    assert len(handed_on) == 1500 and play.errors("H") == ["TaskTimeout"]
    assert play.tasks["H"].error_history[-1]["at"] < handed_on[1000]


@pytest.mark.parametrize("brings_data", [True, False])
def test_events_bring_the_data_of_the_po_or_leave_it_out(brings_data: bool, tmp_path: Path) -> None:
    told: list[TaskRecord] = []

    def take(event: Event) -> None:
        if event.kind == "completed" and event.task is not None:
            told.append(event.task)

    perform(tmp_path, po("P", "quick", tmp_path), on_event=take, events_bring_data=brings_data)

    [record] = told
    assert record.po_number == "P" and record.result is not None
    assert bool(record.payload) is brings_data


def test_what_a_receiver_of_events_adds_is_done_before_the_run_is_over(tmp_path: Path) -> None:
    numbers = iter([f"F{number}" for number in range(20)])

    def follow(event: Event) -> None:
        if event.kind == "completed" and (number := next(numbers, None)) is not None:
            supervisor.queue.add_task(po(number, "quick", tmp_path))

    with on_stage(tmp_path, po("P", "quick", tmp_path), on_event=follow) as (supervisor, play):
        supervisor.run()

    assert play.status["completed_tasks"] == play.status["total_tasks"] == 21


def test_a_receiver_of_events_hears_of_an_end_while_others_run_on(tmp_path: Path) -> None:
    """Ends are told together, but soon: a chain of them, each added by a receiver, passes while one PO waits for its end."""
    numbers = iter([f"F{number}" for number in range(12)])

    def follow(event: Event) -> None:
        if event.kind == "completed" and (number := next(numbers, None)) is not None:
            supervisor.queue.add_task(po(number, "quick", tmp_path))
        elif event.kind == "completed":
            (tmp_path / "go").touch()

    waiting = po("W", "wait_for_go", tmp_path, task_timeout=20.0)
    with on_stage(tmp_path, waiting, po("P", "quick", tmp_path), on_event=follow) as (supervisor, play):
        supervisor.run()

    assert play.status["completed_tasks"] == play.status["total_tasks"] == 14


def at_each_look(supervisor: Supervisor, tell: Callable[[str], None]) -> None:
    """Have it told each time what came of the look whether that is the end."""
    look = supervisor._keeper.drain_when_done

    def look_and_tell() -> str:
        state = look()
        tell(state)
        return state

    supervisor._keeper.drain_when_done = look_and_tell  # type: ignore[method-assign]


def test_what_a_handler_of_events_adds_is_done_before_the_run_is_over(tmp_path: Path) -> None:
    """Though it is still called when the run has nothing left to do, and looks whether that is the end."""
    has_looked = threading.Event()

    def follow(task: ProcessingTask) -> None:
        if task.task_id == "P":
            assert has_looked.wait(DEADLINE_S)
            supervisor.queue.add_task(po("F", "quick", tmp_path))

    with on_stage(tmp_path) as (supervisor, play):
        at_each_look(supervisor, lambda state: has_looked.set() if state not in ("busy", "unread") else None)
        supervisor.queue.set_event_handlers(on_task_complete=follow)
        supervisor.queue.add_task(po("P", "quick", tmp_path))
        end = supervisor.run()

    assert end.reason == "done" and play.is_completed("P", "F")


def test_what_a_handler_adds_is_done_though_the_manager_that_called_it_was_lost(tmp_path: Path) -> None:
    """The next manager has told it nothing, and is asked whether that is the end while it acts."""
    lost, has_looked = list[int](), threading.Event()

    def follow(task: ProcessingTask) -> None:
        if task.task_id == "P":
            lost.append(supervisor._service.pid)
            os.kill(lost[0], signal.SIGKILL)
            assert has_looked.wait(DEADLINE_S)
            supervisor.queue.hang_up()  # this thread's connection went with the manager
            supervisor.queue.add_task(po("F", "quick", tmp_path))

    with on_stage(tmp_path, journal=tmp_path / "journal") as (supervisor, play):

        def tell_of_look(state: str) -> None:
            if state not in ("busy", "unread") and lost and supervisor._service.pid != lost[0]:
                has_looked.set()

        at_each_look(supervisor, tell_of_look)
        supervisor.queue.set_event_handlers(on_task_complete=follow)
        supervisor.queue.add_task(po("P", "quick", tmp_path))
        end = supervisor.run()

    assert end.reason == "done" and play.is_completed("P", "F")


def test_a_run_that_is_interrupted_takes_what_another_one_is_to_go_on_with(tmp_path: Path) -> None:
    with on_stage(tmp_path, po("P", "quick", tmp_path), journal=tmp_path / "journal") as (supervisor, play):
        supervisor.stop()
        assert supervisor.run().reason == "interrupted"
        supervisor.queue.add_task(po("F", "quick", tmp_path))

    assert play.tasks["F"].status is TaskStatus.PENDING


def test_what_is_added_after_the_end_is_refused_by_another_manager_as_well(tmp_path: Path) -> None:
    with on_stage(tmp_path, po("P", "quick", tmp_path), journal=tmp_path / "journal") as (supervisor, play):
        at_each_look(supervisor, lambda state: kill_manager(supervisor) if state == "drained" else None)
        assert supervisor.run().reason == "done"
        with pytest.raises(QueueError, match="the run is over"):
            supervisor.queue.add_task(po("F", "quick", tmp_path))

    assert play.is_completed("P") and play.status["total_tasks"] == 1


@contextlib.contextmanager
def queue_to_fill(folder: Path) -> Iterator[Supervisor]:
    supervisor = Supervisor("tests.integration.villains:process", jobs=1, journal=folder / "journal")
    supervisor.start_queue()
    try:
        yield supervisor
    finally:
        supervisor.close()


def kill_manager(supervisor: Supervisor) -> None:
    os.kill(supervisor._service.pid, signal.SIGKILL)
    supervisor._service.process.join()


def filled(supervisor: Supervisor, folder: Path, names: str) -> Feeder:
    feeder = supervisor._feeder
    feeder.begin((po(name, "quick", folder) for name in names), len(names))
    feeder.finish()
    return feeder


def waiting(supervisor: Supervisor) -> list[str]:
    return [task.task_id for task in supervisor.queue.get_tasks_by_status(TaskStatus.PENDING)]


def test_a_manager_that_is_lost_before_the_first_lot_is_replaced(tmp_path: Path) -> None:
    with queue_to_fill(tmp_path) as supervisor:
        kill_manager(supervisor)
        filled(supervisor, tmp_path, "AB")

        assert waiting(supervisor) == ["A", "B"]


def lose_the_second_answer(moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small lots, and the manager dies over the second one: its journal's first write says "opened"."""
    monkeypatch.setattr(feeder_module, "FIRST_LOT", 1)
    monkeypatch.setattr(feeder_module, "ADD_AT_ONCE", 2)
    monkeypatch.setenv("POQUEUE_TESTING", "1")
    monkeypatch.setenv("POQUEUE_FAILPOINT", f"journal.{moment}:3:kill")
    monkeypatch.setenv("POQUEUE_FAILPOINT_ONCE", str(tmp_path / "once"))


@pytest.mark.parametrize("moment", ["before_commit", "after_commit"])
def test_a_lot_whose_answer_is_lost_is_in_the_queue_once_and_in_its_place(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_the_second_answer(moment, tmp_path, monkeypatch)

    with queue_to_fill(tmp_path) as supervisor:
        filled(supervisor, tmp_path, "ABCDEF")

        assert (tmp_path / "once").exists()
        assert waiting(supervisor) == list("ABCDEF")


@pytest.mark.parametrize("is_frozen", [True, False])
def test_a_lot_without_ids_whose_answer_is_lost_is_in_the_queue_once(
    is_frozen: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_the_second_answer("after_commit", tmp_path, monkeypatch)
    orders = [{"po_number": name} for name in "ABCDEF"]
    frozen = [FrozenTask("", order["po_number"], freeze_plain(order), 5, None, None, None, "") for order in orders]

    with queue_to_fill(tmp_path) as supervisor:
        feeder = supervisor._feeder
        feeder.begin(frozen if is_frozen else [ProcessingTask(po_data=dict(order)) for order in orders], len(orders))
        feeder.finish()

        assert (tmp_path / "once").exists()
        tasks = supervisor.queue.get_tasks_by_status(TaskStatus.PENDING)
        assert [task.po_number for task in tasks] == list("ABCDEF")
        assert supervisor.queue.get_queue_status()["total_tasks"] == 6


def test_a_lot_that_cannot_be_written_down_waits_and_nothing_overtakes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeder_module, "FIRST_LOT", 1)
    monkeypatch.setattr(feeder_module, "ADD_AT_ONCE", 1)
    monkeypatch.setenv("POQUEUE_TESTING", "1")
    monkeypatch.setenv("POQUEUE_FAILPOINT", "journal.write:3:raise=28")  # the second lot: the first write says "opened"
    with queue_to_fill(tmp_path) as supervisor:
        feeder = filled(supervisor, tmp_path, "ABCD")

        assert feeder.is_refused
        assert not feeder.is_done
        assert waiting(supervisor) == ["A"]

        while not feeder.is_done:
            feeder.turn(wait_s=0.1)

        assert not feeder.is_refused
        assert waiting(supervisor) == list("ABCD")


def test_a_lot_that_was_refused_and_is_on_its_way_again_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeder_module, "FIRST_LOT", 1)
    monkeypatch.setattr(feeder_module, "ADD_AGAIN_S", 0.0)
    monkeypatch.setenv("POQUEUE_TESTING", "1")
    monkeypatch.setenv("POQUEUE_FAILPOINT", "journal.write:2:raise=28")  # the first lot
    with queue_to_fill(tmp_path) as supervisor:
        feeder = filled(supervisor, tmp_path, "ABC")
        assert feeder.is_refused and feeder.fileno is not None

        feeder.finish()

        assert feeder.is_done and waiting(supervisor) == list("ABC")


def test_what_is_on_its_way_to_the_queue_counts_as_neither_here_nor_there(tmp_path: Path) -> None:
    with queue_to_fill(tmp_path) as supervisor:
        feeder = supervisor._feeder
        feeder.begin((po(name, "quick", tmp_path) for name in "ABC"), 3)
        assert feeder.unsent == 3

        feeder.turn()
        assert feeder.unsent == 0 and not feeder.is_done

        feeder.finish()
        assert feeder.unsent == 0 and feeder.is_done


def test_what_finds_no_room_in_the_queue_waits_for_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    numbers = [f"P{number}" for number in range(60)]

    with on_stage(tmp_path, jobs=1, queue_size_limit=7) as (supervisor, play):
        supervisor.feed((po(number, "quick", tmp_path) for number in numbers), len(numbers))
        assert supervisor.run().reason == "done"

    assert list(play.starts()) == numbers and play.is_completed(*numbers)
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


def test_what_has_found_no_room_in_the_queue_is_given_back_whole(tmp_path: Path) -> None:
    numbers = [f"P{number}" for number in range(60)]
    supervisor = Supervisor("tests.integration.villains:process", queue_size_limit=7)
    with contextlib.closing(supervisor):
        supervisor.start_queue()
        feeder = supervisor._feeder
        feeder.begin([po(number, "quick", tmp_path) for number in numbers], len(numbers))
        deadline = time.monotonic() + DEADLINE_S
        while len(waiting(supervisor)) < 7:
            assert time.monotonic() < deadline, "there is room for more"
            feeder.turn(wait_s=0.1)

        assert [data["po_number"] for data in feeder.give_up()] == numbers[7:]
        assert waiting(supervisor) == numbers[:7]
        assert feeder.is_done


def test_more_tasks_than_one_call_can_take_are_added_in_lots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = [po(f"P{number}", "quick", tmp_path, text="x" * 400) for number in range(1000)]
    with queue_to_fill(tmp_path) as supervisor:
        monkeypatch.setattr("poqueue.wire.MAX_REQUEST_BYTES", 250_000)
        supervisor.add_tasks(tasks)

        assert waiting(supervisor) == [task.task_id for task in tasks]


def test_a_lot_that_finds_no_room_is_refused_whole_and_those_before_it_stay(tmp_path: Path) -> None:
    tasks = [po(f"P{number}", "quick", tmp_path) for number in range(600)]
    with on_stage(tmp_path, queue_size_limit=400) as (supervisor, _):
        supervisor.queue.pause_queue()
        with pytest.raises(QueueFullError):
            supervisor.add_tasks(tasks)

        assert waiting(supervisor) == [task.task_id for task in tasks[:250]]


def test_what_was_not_added_is_given_back_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeder_module, "FIRST_LOT", 1)
    monkeypatch.setattr(feeder_module, "ADD_AT_ONCE", 1)
    monkeypatch.setenv("POQUEUE_TESTING", "1")
    monkeypatch.setenv("POQUEUE_FAILPOINT", ",".join(f"journal.write:{n}:raise=28" for n in range(3, 20)))
    names = "ABCDEFGHIJKLMN"  # more lots than are made ahead
    with queue_to_fill(tmp_path) as supervisor:
        feeder = filled(supervisor, tmp_path, names)

        left = [data["po_number"] for data in feeder.give_up()]

        assert waiting(supervisor) == ["A"]
        assert left == list(names[1:])
        assert feeder.is_done
        assert feeder.give_up() == []


def test_a_lot_that_is_too_large_for_one_message_goes_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeder_module, "ADD_BYTES_AT_ONCE", 300)
    with queue_to_fill(tmp_path) as supervisor:
        filled(supervisor, tmp_path, "ABCDEFGHIJ")

        assert waiting(supervisor) == list("ABCDEFGHIJ")


def test_a_po_that_no_message_can_carry_is_an_error_and_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with queue_to_fill(tmp_path) as supervisor:
        feeder = filled(supervisor, tmp_path, "A")
        monkeypatch.setattr("poqueue.wire.MAX_REQUEST_BYTES", 5000)
        feeder.begin([po("B", "quick", tmp_path, text="x" * 5000), po("C", "quick", tmp_path)], 2)

        with pytest.raises(ValueError, match="too large"):
            feeder.finish()

        assert [data["po_number"] for data in feeder.give_up()] == ["B", "C"]
        assert waiting(supervisor) == ["A"]


def test_a_hung_po_is_killed_while_others_are_still_added(tmp_path: Path) -> None:
    """A long file takes longer to add than a PO may take."""
    ends: list[str] = []

    def tasks() -> Iterator[ProcessingTask]:
        yield po("H", "hang", tmp_path)
        deadline = time.monotonic() + DEADLINE_S
        for number in itertools.count():
            if "H" in ends:
                return
            assert time.monotonic() < deadline, "the hung PO lives as long as POs are added"
            yield po(f"P{number}", "quick", tmp_path)

    def take(event: Event) -> None:
        if event.kind == "failed" and event.task is not None:
            ends.append(event.task.task_id)

    with on_stage(tmp_path, task_timeout=0.3, on_event=take) as (supervisor, play):
        supervisor.feed(tasks())
        assert supervisor.run().reason == "done"

    assert ends == ["H"] and play.errors("H") == ["TaskTimeout"]
    assert play.is_completed(*(name for name in play.tasks if name != "H"))


def test_pos_are_worked_on_while_an_iterator_takes_its_time_for_the_next(tmp_path: Path) -> None:
    ahead = feeder_module.LOTS_AHEAD + 4  # so many may be made before the first of them is heard of

    def tasks() -> Iterator[ProcessingTask]:
        for number in range(30):
            time.sleep(0.03)
            least = number - ahead
            wait_until(lambda: supervisor.queue.get_queue_status()["completed_tasks"] >= least, f"{least} are through")  # noqa: B023
            yield po(f"P{number}", "quick", tmp_path)

    with on_stage(tmp_path, jobs=1) as (supervisor, play):
        supervisor.feed(tasks(), 30)
        assert supervisor.run().reason == "done"

    assert play.is_completed(*(f"P{number}" for number in range(30)))
    assert list(play.starts()) == [f"P{number}" for number in range(30)]


def test_a_second_stop_ends_the_adding_of_what_never_ends(tmp_path: Path) -> None:
    most = 50_000  # for whoever goes on

    def tasks() -> Iterator[ProcessingTask]:
        for number in range(most):
            made.append(number)
            if number == 500:
                supervisor.stop()
                supervisor.stop()
            yield po(f"P{number}", "quick", tmp_path)

    made: list[int] = []
    with on_stage(tmp_path) as (supervisor, _):
        supervisor.feed(tasks())
        assert supervisor.run().reason == "interrupted"

    assert len(made) < most


def test_a_stop_is_heeded_while_pos_are_still_added_and_none_is_forgotten(tmp_path: Path) -> None:
    count = 20_000

    def tasks() -> Iterator[ProcessingTask]:
        for number in range(count):
            if number == 500:
                supervisor.stop()
            yield po(f"P{number}", "quick", tmp_path)

    with on_stage(tmp_path) as (supervisor, play):
        supervisor.feed(tasks(), count)
        end = supervisor.run()

    assert end.reason == "interrupted"
    assert play.status["completed_tasks"] < count / 8
    assert play.status["completed_tasks"] + play.status["pending_tasks"] == count


def test_an_id_of_a_dead_worker_that_had_no_lease_is_not_given_again(tmp_path: Path) -> None:
    """It died in its login, and the queue has never heard of it."""
    with contextlib.closing(Supervisor("tests.integration.villains:process", jobs=1)) as supervisor:
        supervisor.start_queue()
        supervisor.take_up(LeftBehind(worker_ids=["w1.7", ""]), "a crash")
        task_id = supervisor.queue.add_task(po("A", "quick", tmp_path))
        supervisor.start_workers()
        supervisor.run()

        ended = supervisor.queue.find_task(task_id=task_id)

    assert ended is not None and ended.worker_id == "w1.8"


def test_what_is_still_to_be_added_is_shown_as_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The total is that of the batch at every look, whatever is on its way at the moment."""
    monkeypatch.setattr(supervisor_module, "SHOW_S", 0.0)
    monkeypatch.setattr(supervisor_module, "QUEUE_TURN_S", 0.001)  # a look after each lot
    monkeypatch.setattr(feeder_module, "HEAR_S", 0.0)  # whose answer takes longer than one may wait for it
    seen: list[Snapshot] = []

    with on_stage(tmp_path, on_show=seen.append) as (supervisor, play):
        for numbers in (range(2500), range(2500, 3000)):
            supervisor.feed((po(f"P{number}", "quick", tmp_path) for number in numbers), len(numbers))
        supervisor.run()

    assert {snapshot.total for snapshot in seen} == {3000}
    assert any(snapshot.to_add for snapshot in seen)
    assert seen[-1].to_add == 0 and seen[-1].succeeded == len(play.tasks) == 3000
    assert all(s.succeeded + s.failed + s.running + s.retrying + s.pending == 3000 for s in seen)


@pytest.mark.parametrize("hear_s", [0.0, 10.0])
def test_what_was_held_back_for_a_look_is_added_after_it(
    hear_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "SHOW_S", 0.0)
    monkeypatch.setattr(supervisor_module, "QUEUE_TURN_S", 0.001)  # a look after each lot,
    monkeypatch.setattr(feeder_module, "HEAR_S", hear_s)  # which is still on its way then, or has just been taken
    monkeypatch.setattr(feeder_module, "LOTS_AHEAD", 0)  # and no other one is made yet,
    monkeypatch.setattr(run_parts, "TICK_S", 600.0)  # and nothing else wakes the loop

    with on_stage(tmp_path, on_show=lambda snapshot: None) as (supervisor, play):
        supervisor.queue.pause_queue()
        supervisor.feed((po(f"P{number}", "quick", tmp_path) for number in range(5000)), 5000)

        def look() -> None:
            wait_until(lambda: supervisor.queue.get_queue_status()["pending_tasks"] == 5000, "all are added")
            supervisor.stop()

        meanwhile(supervisor, look)

    assert play.status["pending_tasks"] == 5000


def test_the_last_view_is_shown_though_a_lot_is_still_on_its_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Feeder, "_hear", lambda self, wait_s: False)  # no answer is ever heard
    seen: list[Snapshot] = []

    with on_stage(tmp_path, on_show=seen.append) as (supervisor, _):
        supervisor.feed((po(f"P{number}", "quick", tmp_path) for number in range(300)), 300)

        def stop() -> None:
            wait_until(lambda: supervisor._feeder._sent is not None, "a lot is on its way")
            supervisor._feeder.is_refused = True  # as after a lot that the journal had no room for, sent again
            supervisor.stop()

        meanwhile(supervisor, stop)

    assert seen[-1].phase == "done" and seen[-1].to_add == 300


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_what_other_threads_start_meanwhile_is_left_alone(method: str, tmp_path: Path) -> None:
    """Workers are started all the time, and die with what they leave; the embedding program has processes of its own."""
    own: list[subprocess.Popen[bytes]] = []
    is_over = threading.Event()

    def start_some() -> None:
        while not is_over.wait(0.01) and len(own) < 100:
            own.append(subprocess.Popen(["sh", "-c", "sleep 300 & wait"], start_new_session=True))

    starter = threading.Thread(target=start_some)
    starter.start()
    try:
        tasks = [po(f"P{number}", "quick", tmp_path) for number in range(10)]
        perform(tmp_path, *tasks, po("D", "kill_itself", tmp_path), max_tasks_per_worker=2, start_method=method)
        is_over.set()
        starter.join()
        wait_until(lambda: all(psutil.Process(one.pid).children() for one in own), "each has its own child, still")

        assert own and [one.poll() for one in own] == [None] * len(own)
    finally:
        is_over.set()
        starter.join()
        for one in own:
            os.killpg(one.pid, signal.SIGKILL)
            one.wait()


def test_what_dead_workers_leave_dies_though_the_journal_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle, is_full = Reaper._settle, threading.Event()
    is_full.set()

    def settle_if_there_is_room(self: Reaper, worker: Any, now: float) -> None:
        if is_full.is_set():
            raise JournalError("the disk is full")
        settle(self, worker, now)

    monkeypatch.setattr(Reaper, "_settle", settle_if_there_is_room)
    tasks = [po(name, "shell_daemon_and_die", tmp_path) for name in ("A", "B")]
    with on_stage(tmp_path, *tasks, journal=tmp_path / "journal") as (supervisor, play):

        def look() -> None:
            try:
                wait_until(
                    lambda: len(started_pids(tmp_path)) == 2 and len(supervisor._reaper.dead) == 2, "both have died"
                )
                wait_until(lambda: not living(started_pids(tmp_path)), "what they left is dead as well")
            finally:
                is_full.clear()  # else the run never ends

        meanwhile(supervisor, look)

    assert play.errors("A") == play.errors("B") == ["WorkerKilled"]


def test_a_fork_is_known_though_the_work_folder_is_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    tasks = [po("D", "daemon_and_die", tmp_path), po("W", "wait_for_go", tmp_path)]
    work_dir = tmp_path / "link" / "work"
    with on_stage(tmp_path, *tasks, task_timeout=60.0, start_method="fork", work_dir=work_dir) as (supervisor, play):

        def look() -> None:
            wait_until(lambda: play_failed(supervisor), "D has failed")
            wait_until(lambda: started_pids(tmp_path) and not living(started_pids(tmp_path)), "its daemon is dead")
            (tmp_path / "go").touch()

        meanwhile(supervisor, look)

    assert play.is_completed("W")


def play_failed(supervisor: Supervisor) -> bool:
    return bool(supervisor.queue.get_queue_status()["failed_tasks"] == 1)


def test_a_program_with_the_workers_odd_score_keeps_its_children(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        textwrap.dedent("""
        import pathlib, subprocess
        from poqueue import ProcessingTask
        from workers import Supervisor

        def process(po):
            return {}

        if __name__ == "__main__":
            pathlib.Path("/proc/self/oom_score_adj").write_text("557")
            own = subprocess.Popen(["sleep", "300"])
            with Supervisor(process, jobs=1) as supervisor:
                supervisor.queue.add_task(ProcessingTask(po_data={"po_number": "1"}))
                supervisor.run()
            print(own.poll())
            own.kill()
            own.wait()
        """)
    )
    ended = python(tmp_path / "program.py", cwd=tmp_path)

    assert ended.check(0).out == "None\n"


def test_a_process_adopts_orphans_only_while_it_has_a_supervisor(tmp_path: Path) -> None:
    assert not adopts_orphans()
    with on_stage(tmp_path / "outer", po("A", "quick", tmp_path)) as (outer, _):
        with on_stage(tmp_path / "inner", po("B", "quick", tmp_path)) as (inner, _):
            assert adopts_orphans()
            inner.run()
        assert adopts_orphans()
        outer.run()
    assert not adopts_orphans()


def adopts_orphans() -> bool:
    flag = ctypes.c_int()
    ctypes.CDLL(None).prctl(37, ctypes.byref(flag), 0, 0, 0)  # PR_GET_CHILD_SUBREAPER
    return bool(flag.value)


@pytest.mark.parametrize(
    ("in_thread", "start_method"), [(False, "spawn"), (False, "fork"), (True, "spawn"), (True, "forkserver")]
)
def test_a_program_that_ignores_the_ends_of_children_has_runs_that_end(
    in_thread: bool, start_method: str, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
            import os, signal, subprocess, threading
            from poqueue import ProcessingTask
            from workers import Supervisor

            def process(po):
                return {{"code": subprocess.run(["false"]).returncode}}

            def run():
                with Supervisor(process, jobs=2, start_method={start_method!r}) as supervisor:
                    supervisor.queue.add_tasks([ProcessingTask(n, {{"po_number": n}}) for n in "ABC"])
                    print(supervisor.run().reason, [supervisor.queue.find_task(task_id=n).result.data for n in "ABC"])

            if __name__ == "__main__":
                signal.signal(signal.SIGCHLD, signal.SIG_IGN)
                if {in_thread}:
                    thread = threading.Thread(target=run)
                    thread.start()
                    thread.join()
                else:
                    run()
                ignored = next(line for line in open("/proc/self/status") if line.startswith("SigIgn"))
                print(bool(int(ignored.split()[1], 16) >> signal.SIGCHLD - 1 & 1))
        """)
    )

    with running([sys.executable, str(script)], cwd=tmp_path) as run:
        ended = run.wait(30.0).check(0)

    assert ended.out.splitlines() == [f"done {[{'code': 1}] * 3}", "True"]


@pytest.mark.parametrize("start_method", ["spawn", "fork", "forkserver"])
def test_a_program_that_waits_for_all_its_children_has_runs_and_batches_that_end(
    start_method: str, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
            import os, signal
            from poqueue import ProcessingTask
            from workers import Supervisor, run_batch

            def process(po):
                if po["po_number"] == "B":
                    os._exit(3)
                return {{}}

            def reap(*_):
                try:
                    while os.waitpid(-1, os.WNOHANG)[0]:
                        pass
                except ChildProcessError:
                    pass

            if __name__ == "__main__":
                signal.signal(signal.SIGCHLD, reap)
                with Supervisor(process, jobs=2, start_method={start_method!r}, max_retries=0) as supervisor:
                    supervisor.queue.add_tasks([ProcessingTask(n, {{"po_number": n}}) for n in "ABC"])
                    print(supervisor.run().reason, [supervisor.queue.find_task(task_id=n).status.name for n in "ABC"])
                    print(supervisor.queue.find_task(task_id="B").error_history[-1]["error_type"])
                with open("orders.csv", "w") as file:
                    file.write("po_number\\nA\\nC\\n")
                report = run_batch("orders.csv", "script:process", start_method={start_method!r}, run_dir="r")
                print(report.exit_code, report.tasks)
        """)
    )

    with running([sys.executable, str(script)], cwd=tmp_path) as run:
        ended = run.wait(60.0).check(0)

    assert ended.out.splitlines() == [
        "done ['COMPLETED', 'FAILED', 'COMPLETED']", "WorkerExited", "0 {'succeeded': 2, 'failed': 0, 'not_run': 0}",
    ]  # fmt: skip


@pytest.mark.parametrize("reason", ["timeout", "cancel"])
def test_a_po_that_dies_in_the_moment_of_a_kill_that_was_about_another_one_has_an_end_of_its_own(
    reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_kill = WorkerProcess.begin_kill

    def begin_and_look_away(worker: WorkerProcess, why: str, *args: Any, **words: Any) -> None:
        begin_kill(worker, why, *args, **words)
        if why == reason:
            (tmp_path / "go").touch()
            wait_until(lambda: not living([worker.pid]), "A has ended, and B has begun and taken the worker along")

    monkeypatch.setattr(WorkerProcess, "begin_kill", begin_and_look_away)
    limit_s = 0.5 if reason == "timeout" else 60.0
    tasks = [
        po("A", "wait_for_go", tmp_path, task_timeout=limit_s),
        po("B", "kill_itself", tmp_path, task_timeout=60.0),
    ]
    with on_stage(tmp_path, *tasks, jobs=1) as (supervisor, play):

        def cancel() -> None:
            wait_until(has_begun(tmp_path, 1), "it has begun")
            if reason == "cancel":
                with contextlib.closing(connect(supervisor.queue._address, supervisor.queue._key)) as other:
                    assert other.cancel_task("A") == "stopping"

        meanwhile(supervisor, cancel)

    assert play.is_completed("A") and play.errors("B") == ["WorkerKilled"]


def test_what_is_leased_late_behind_a_po_that_takes_its_time_is_given_to_others(tmp_path: Path) -> None:
    with on_stage(tmp_path, po("A", "wait_for_go", tmp_path), jobs=1, task_timeout=60.0) as (supervisor, play):

        def lease_late() -> None:
            wait_until(has_begun(tmp_path, 1), "it has begun")
            worker = supervisor._staff.workers[0]
            wait_until(lambda: worker.relieved[0], "all that it held was given to others")
            with contextlib.closing(connect(supervisor.queue._address, supervisor.queue._key)) as other:
                other.add_task(po("B", "quick", tmp_path))
                assert other.get_next_task(worker.worker_id) is not None
                wait_until(lambda: other.get_queue_status()["pending_tasks"] == 1, "it waits again")
            (tmp_path / "go").touch()

        meanwhile(supervisor, lease_late)

    assert play.is_completed("A", "B") and not play.tasks["B"].error_history


@pytest.mark.parametrize("fault", ["factory", "handler", "filter"])
def test_what_a_program_has_done_to_logging_ends_no_run(fault: str, tmp_path: Path) -> None:
    def breaks(*args: Any) -> bool:
        raise RuntimeError("it is broken")

    make = logging.getLogRecordFactory()
    handler = logging.StreamHandler()
    if fault == "factory":

        def make_ours(*args: Any, **words: Any) -> logging.LogRecord:
            record = make(*args, **words)
            record.task_id = record.worker_id = record.traceback = "the program's"
            return record

        logging.setLogRecordFactory(make_ours)
    elif fault == "handler":
        handler.emit = breaks  # type: ignore[method-assign]
    else:
        handler.addFilter(breaks)
    logging.getLogger("workers").addHandler(handler)
    try:
        play = perform(
            tmp_path, po("A", "fail", tmp_path), po("B", "kill_itself", tmp_path), po("C", "look_round", tmp_path)
        )
    finally:
        logging.getLogger("workers").removeHandler(handler)
        logging.setLogRecordFactory(make)

    assert play.errors("A") == ["RuntimeError"] and play.errors("B") == ["WorkerKilled"] and play.is_completed("C")


def test_a_worker_in_reserve_whose_import_hangs_keeps_no_run_from_its_end(tmp_path: Path) -> None:
    """It is started when the only worker has used half of its time."""
    (tmp_path / "server_down.py").write_text(
        textwrap.dedent("""
            import time
            from pathlib import Path

            folder = Path(__file__).parent
            if (folder / "down").exists():
                (folder / "importing").touch()
                time.sleep(300.0)

            def process(po):
                (folder / "down").touch()
                while not (folder / "importing").exists():
                    time.sleep(0.01)
                raise RuntimeError("it is down")
        """)
    )
    settings = {"target": "server_down:process", "app_dir": str(tmp_path), "jobs": 1, "halt": Halt(failed=1)}

    play = perform(tmp_path, po("A", "", tmp_path), task_timeout=6.0, **settings)

    assert play.end is not None and play.end.reason == "halted"


def test_a_worker_that_still_imports_keeps_no_run_from_its_end(tmp_path: Path) -> None:
    (tmp_path / "slow_import.py").write_text(
        textwrap.dedent("""
            import time
            from pathlib import Path

            (Path(__file__).parent / "importing").touch()
            time.sleep(300.0)
        """)
    )
    settings = {"target": "slow_import:process", "app_dir": str(tmp_path), "jobs": 1, "stop_grace": 3600.0}
    with on_stage(tmp_path, po("A", "", tmp_path), **settings) as (supervisor, _):

        def stop() -> None:
            wait_until((tmp_path / "importing").exists, "it imports")
            supervisor.stop(signal.SIGINT)

        meanwhile(supervisor, stop)
        assert supervisor.queue.get_queue_status()["pending_tasks"] == 1


def test_a_supervisor_that_is_stopped_twice_gives_back_what_runs_uncharged(tmp_path: Path) -> None:
    tasks = [po("A", "hang", tmp_path), po("B", "ignore_term", tmp_path), po("C", "quick", tmp_path)]
    with on_stage(tmp_path, *tasks, task_timeout=120.0, grace=0.5, stop_grace=60.0) as (supervisor, play):

        def stop_twice() -> None:
            wait_until(has_begun(tmp_path, 2), "both have begun")
            supervisor.stop(signal.SIGINT)
            supervisor.stop(signal.SIGINT)

        meanwhile(supervisor, stop_twice)

    assert {task.status for task in play.tasks.values()} == {TaskStatus.PENDING}
    assert {(n, task.attempt, task.retry_count, task.interruptions) for n, task in play.tasks.items()} == {
        ("A", 1, 0, 1), ("B", 1, 0, 1), ("C", 0, 0, 0),
    }  # fmt: skip
    assert play.errors("A") == ["Interrupted"]


def test_time_in_which_the_supervisor_did_not_run_counts_against_no_po(tmp_path: Path, mark: str) -> None:
    script = f"""
        from tests.integration.stage import perform, po
        from pathlib import Path
        folder = Path({str(tmp_path)!r})
        if __name__ == "__main__":
            play = perform(folder, po("A", "wait_for_go", folder), task_timeout=4.0, jobs=1)
            print(play.tasks["A"].status.value, len(play.tasks["A"].error_history))
    """
    run = start_script(tmp_path, script)
    try:
        wait_until(has_begun(tmp_path, 1), "A has begun")
        run.send_signal(signal.SIGSTOP)
        begun = history(tmp_path)[0]["at"]
        wait_until(lambda: time.monotonic() > begun + 5.0, "its time is over")
        run.send_signal(signal.SIGCONT)
        (tmp_path / "go").touch()
        assert run.communicate(timeout=20)[0].split() == ["completed", "0"]
    finally:
        end_script(run)


def test_time_in_which_the_callers_code_did_not_run_counts_against_no_po(tmp_path: Path, mark: str) -> None:
    script = f"""
        import os, signal
        from tests.integration.stage import history, on_stage, po, wait_until
        from pathlib import Path
        folder = Path({str(tmp_path)!r})
        def stop_once(snapshot):
            if history(folder) and not (folder / "go").exists():
                os.kill(os.getpid(), signal.SIGSTOP)
                (folder / "go").touch()
        if __name__ == "__main__":
            settings = {{"task_timeout": 4.0, "jobs": 1, "on_show": stop_once}}
            with on_stage(folder, po("A", "wait_for_go", folder), **settings) as (supervisor, play):
                supervisor.run()
            print(play.tasks["A"].status.value, len(play.tasks["A"].error_history))
    """
    run = start_script(tmp_path, script)
    try:
        wait_until(lambda: psutil.Process(run.pid).status() == psutil.STATUS_STOPPED, "it has stopped itself")
        begun = history(tmp_path)[0]["at"]
        wait_until(lambda: time.monotonic() > begun + 5.0, "the time of A is over")
        run.send_signal(signal.SIGCONT)
        assert run.communicate(timeout=20)[0].split() == ["completed", "0"]
    finally:
        end_script(run)


@pytest.mark.parametrize("where", ["feed", "on_show", "on_event"])
def test_a_caller_whose_code_takes_long_in_every_turn_keeps_no_po_alive(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("workers.time_limits.GAP_S", 0.1)
    taken: list[float] = []
    ended: list[str] = []

    def take_long() -> None:
        if not ended:
            taken.append(0.4)
            time.sleep(taken[-1])

    def slow_tasks() -> Iterator[ProcessingTask]:
        while not ended:
            take_long()
            yield po(f"P{len(taken)}", "quick", tmp_path)

    def follow(event: Event) -> None:
        ended.extend(["H"] if event.kind == "failed" else [])
        if where == "on_event" and event.kind == "completed" and not ended:
            take_long()
            supervisor.queue.add_task(po(f"P{len(taken)}", "quick", tmp_path))  # whose end is the next turn's event

    settings = {"on_event": follow, "on_show": (lambda _: take_long()) if where == "on_show" else None}
    with on_stage(tmp_path, po("H", "hang", tmp_path), **settings) as (supervisor, play):
        wait_until(has_begun(tmp_path, 1), "H has begun")
        supervisor.feed({"feed": slow_tasks(), "on_event": [po("P0", "quick", tmp_path)]}.get(where, ()))
        supervisor.run()

    assert play.errors("H") == ["TaskTimeout"]
    assert 1 < len(taken) < 20
    assert "stood still" not in caplog.text


def test_a_supervisor_in_a_thread(tmp_path: Path) -> None:
    plays: list[Play] = []
    tasks = [po("BAD", "kill_itself", tmp_path), *(po(f"G{n}", "good", tmp_path) for n in range(4))]
    thread = threading.Thread(target=lambda: plays.append(perform(tmp_path, *tasks)))

    thread.start()
    thread.join()

    assert plays[0].is_completed("G0", "G1", "G2", "G3")
    assert plays[0].errors("BAD") == ["WorkerKilled"]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("start_method", ["spawn", "forkserver", "fork"])
def test_a_supervisor_started_in_a_thread_that_has_ended(start_method: str, tmp_path: Path) -> None:
    """The kernel's death signal follows the thread that started a process, not its process."""
    supervisor = Supervisor("tests.integration.villains:process", jobs=2, start_method=start_method, task_timeout=20.0)
    both_work = threading.Event()

    def start_and_stay() -> None:
        supervisor.start()
        both_work.wait(DEADLINE_S)

    thread = threading.Thread(target=start_and_stay)
    thread.start()
    try:
        wait_until(lambda: hasattr(supervisor, "queue") or not thread.is_alive(), "the queue is there")
        supervisor.queue.add_tasks([po(f"G{n}", "wait_for_go", tmp_path) for n in range(6)])
        wait_until(has_begun(tmp_path, 2), "both workers are in the middle of a PO")
        starter = thread.native_id
        both_work.set()
        wait_until(lambda: not Path(f"/proc/self/task/{starter}").exists(), "the thread is gone, for the kernel too")
        (tmp_path / "go").touch()
        supervisor.run()
        tasks = [supervisor.queue.find_task(task_id=f"G{n}") for n in range(6)]
    finally:
        both_work.set()
        supervisor.close()

    assert all(task is not None and task.status is TaskStatus.COMPLETED for task in tasks)
    assert all(task is not None and not task.error_history for task in tasks)


# ── the great deaths ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_manager_that_is_killed_ends_the_run_with_a_clear_error(tmp_path: Path, mark: str) -> None:
    tasks = [po("A", "child_sleeps", tmp_path), po("B", "ignore_term", tmp_path)]
    with pytest.raises(ServiceError), on_stage(tmp_path, *tasks, task_timeout=120.0) as (supervisor, _):

        def kill_the_manager() -> None:
            wait_until(has_begun(tmp_path, 2), "both have begun")
            os.kill(supervisor._service.pid, signal.SIGKILL)

        meanwhile(supervisor, kill_the_manager)

    assert living(started_pids(tmp_path)) == []
    assert marked(mark) == []


def test_a_manager_that_hangs_while_the_last_pos_are_added_is_replaced_and_has_them_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("poqueue.client.OVERDUE_S", 1.0)
    tasks = [po(f"P{n}", "quick", tmp_path) for n in range(600)]
    with contextlib.closing(Supervisor("tests.integration.villains:process", journal=tmp_path / "j")) as supervisor:
        supervisor.feed(tasks, len(tasks))
        supervisor.start_queue()
        os.kill(supervisor._service.pid, signal.SIGSTOP)
        supervisor.take_rest()

        assert supervisor.queue.get_queue_status()["pending_tasks"] == len(tasks)


@pytest.mark.parametrize("start_method", ["spawn", "forkserver", "fork"])
def test_nothing_survives_a_supervisor_that_is_killed(start_method: str, tmp_path: Path, mark: str) -> None:
    bad = ("daemon_and_hang", "shell_daemon_and_hang", "ignore_term", "hold_the_gil")
    for do in bad:
        (tmp_path / do).mkdir()
    script = f"""
        from tests.integration.stage import on_stage, po
        from pathlib import Path
        folder = Path({str(tmp_path)!r})
        if __name__ == "__main__":
            tasks = [po(do, do, folder / do) for do in {bad!r}]
            with on_stage(folder, *tasks, jobs=4, task_timeout=60.0, start_method={start_method!r}) as (supervisor, _):
                supervisor.run()
    """
    run = start_script(tmp_path, script)
    try:
        wait_until(lambda: all(history(tmp_path / do) for do in bad), "all have begun")
        wait_until(lambda: all(started_pids(tmp_path / do) for do in bad[:2]), "the daemons are there")
        daemons = [pid for do in bad for pid in started_pids(tmp_path / do)]
        assert len(living(daemons)) == 2

        run.kill()
        run.communicate()

        wait_until(lambda: not marked(mark) and not living(daemons), "nothing is left", within_s=5.0)
    finally:
        end_script(run)
        for pid in living([pid for do in bad for pid in started_pids(tmp_path / do)]):
            os.kill(pid, signal.SIGKILL)
        clear_temporary_folder("pymp-*")  # multiprocessing's own, for the fork server


@pytest.mark.parametrize("start_method", ["spawn", "forkserver", "fork"])
def test_a_manager_that_dies_with_its_supervisor_takes_the_workers_along(
    start_method: str, tmp_path: Path, mark: str
) -> None:
    """Both at once: nobody is left who could end a worker that sits in C code, but the kernel."""
    script = f"""
        import os, threading
        from tests.integration.stage import on_stage, po, wait_until, history
        from pathlib import Path
        folder = Path({str(tmp_path)!r})
        if __name__ == "__main__":
            tasks = [po("A", "hold_the_gil", folder)]
            with on_stage(folder, *tasks, jobs=2, task_timeout=60.0, start_method={start_method!r}) as (supervisor, _):
                def kill_both():
                    wait_until(lambda: history(folder), "it has begun")
                    os.kill(supervisor._service.pid, 9)
                    os.kill(os.getpid(), 9)
                threading.Thread(target=kill_both).start()
                supervisor.run()
    """
    with script_that_leaves_things(tmp_path, script, mark) as run:
        run.communicate(timeout=20)
        assert run.returncode == -signal.SIGKILL
        wait_until(lambda: not marked(mark), "nothing is left", within_s=5.0)


@pytest.mark.parametrize("start_method", ["spawn", "forkserver", "fork"])
@pytest.mark.parametrize("do", ["hold_the_gil", "close_pipes"])
def test_no_worker_outlives_its_run_because_of_others(do: str, start_method: str, tmp_path: Path, mark: str) -> None:
    """The thread that started them has ended, and a child that the program has forked lives on and holds its descriptors."""
    script = f"""
        import os, threading, time
        from tests.integration.stage import po, wait_until, history
        from workers import Supervisor
        from pathlib import Path
        folder = Path({str(tmp_path)!r})
        if __name__ == "__main__":
            supervisor = Supervisor("tests.integration.villains:process", jobs=2, start_method={start_method!r})
            starter = threading.Thread(target=supervisor.start)
            starter.start()
            starter.join()
            supervisor.queue.add_tasks([po(name, {do!r}, folder) for name in "AB"])
            wait_until(lambda: len(history(folder)) >= 2, "they have begun")
            if os.fork() == 0:
                time.sleep(60)
                os._exit(0)
            os.kill(supervisor._service.pid, 9)
            os.kill(os.getpid(), 9)
    """
    with script_that_leaves_things(tmp_path, script, mark) as run:
        run.wait(timeout=20)
        assert run.returncode == -signal.SIGKILL
        workers = {line["pid"] for line in history(tmp_path)}
        assert len(workers) == 2
        wait_until(lambda: not living(workers), "the workers are gone", within_s=10.0)


@pytest.mark.parametrize("is_recorded", [True, False])
def test_a_fork_server_that_is_killed_takes_its_processes_along_and_a_run_with_a_journal_goes_on(
    is_recorded: bool, tmp_path: Path, mark: str
) -> None:
    script = f"""
        import os, threading
        from multiprocessing import forkserver
        from tests.faults import mischief
        from tests.integration.stage import on_stage, po, wait_until, history
        from poqueue.errors import ServiceError
        from pathlib import Path
        folder = Path({str(tmp_path)!r})
        journal = folder / "journal" if {is_recorded!r} else None
        if __name__ == "__main__":
            tasks = [po(name, "end_after", folder, seconds=0.7) for name in "ABC"]
            with on_stage(
                folder, *tasks, target=mischief.process, task_timeout=20.0, max_retries=2, start_method="forkserver",
                journal=journal,
            ) as (supervisor, _):
                def kill():
                    wait_until(lambda: len(history(folder)) >= 2, "two have begun")
                    os.kill(forkserver._forkserver._forkserver_pid, 9)
                threading.Thread(target=kill).start()
                try:
                    print(supervisor.run().reason, supervisor.queue.get_queue_status()["completed_tasks"])
                except ServiceError:
                    print("lost")
                    os._exit(0)  # there is nothing more to look at
    """
    with script_that_leaves_things(tmp_path, script, mark) as run:
        said, _ = run.communicate(timeout=40)
        assert said.split() == (["done", "3"] if is_recorded else ["lost"])
        wait_until(lambda: not marked(mark), "nothing is left", within_s=5.0)
        starts = [(line["po"], line["attempt"]) for line in history(tmp_path) if line["event"] == "start"]
        assert len(starts) == len(set(starts)), "no attempt was made twice"


@pytest.mark.parametrize("is_late", [False, True])
def test_the_queues_process_ends_with_its_fork_server_also_while_it_is_stopped(
    is_late: bool, tmp_path: Path, mark: str
) -> None:
    """At first it looks itself; once its clients are served it has asked the kernel to, and watches its owner only."""
    script = f"""
        import os, signal
        from multiprocessing import forkserver
        from poqueue.service import QueueService
        from tests.integration.stage import wait_until

        def has_asked(pid):
            folder = f"/proc/{{pid}}/fd"
            watches = [os.readlink(os.path.join(folder, name)) for name in os.listdir(folder)].count("anon_inode:[pidfd]")
            with open(f"/proc/{{pid}}/maps") as maps:
                return watches == 1 and "_ctypes" in maps.read()

        if __name__ == "__main__":
            service = QueueService(start_method="forkserver")
            service.start()
            if {is_late!r}:
                wait_until(lambda: has_asked(service.pid), "it watches its owner only")
                os.kill(service.pid, signal.SIGSTOP)
            os.kill(forkserver._forkserver._forkserver_pid, 9)
            print(service.pid, flush=True)
            signal.pause()
    """
    with script_that_leaves_things(tmp_path, script, mark) as run:
        assert run.stdout is not None
        manager = int(run.stdout.readline())
        wait_until(lambda: not living([manager]), "the manager is gone", within_s=5.0)
        assert run.poll() is None


def test_a_manager_that_is_stopped_when_its_fork_server_dies_is_ended_all_the_same(tmp_path: Path, mark: str) -> None:
    script = """
        import os, signal
        from multiprocessing import forkserver
        from workers import Supervisor

        if __name__ == "__main__":
            supervisor = Supervisor("tests.integration.villains:process", start_method="forkserver")
            supervisor.start_queue()
            manager = supervisor._service.pid
            os.kill(manager, signal.SIGSTOP)
            os.kill(forkserver._forkserver._forkserver_pid, 9)
            supervisor.close()
            print(manager, flush=True)
            signal.pause()
    """
    with script_that_leaves_things(tmp_path, script, mark) as run:
        assert run.stdout is not None
        assert not living([int(run.stdout.readline())])


def test_while_nobody_works_the_screen_is_told_less_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "SHOW_S", 0.01)
    monkeypatch.setattr(supervisor_module, "SHOW_IDLE_S", 3600.0)
    shown: list[str] = []
    waits = po("A", "wait_for_go", tmp_path)
    show: dict[str, Any] = {"on_show": lambda snapshot: shown.append(snapshot.phase)}
    with on_stage(tmp_path, waits, task_timeout=30.0, **show) as (run, _):
        wait_until(lambda: history(tmp_path), "it has begun")

        def act() -> None:
            wait_until(lambda: len(shown) > 5, "who works is shown again and again")
            (tmp_path / "go").touch()

        meanwhile(run, act)

    shown.clear()
    idle = po("B", "quick", tmp_path)
    with on_stage(tmp_path, **show) as (run, _):
        run.queue.pause_queue()
        run.queue.add_task(idle)

        def go_on() -> None:
            wait_until(lambda: shown, "the pause is shown")
            run.queue.resume_queue()

        meanwhile(run, go_on)

    assert shown == ["paused", "done"]


def clear_temporary_folder(pattern: str) -> None:
    for path in Path(tempfile.gettempdir()).glob(pattern):
        shutil.rmtree(path, ignore_errors=True)


def start_script(folder: Path, text: str) -> "subprocess.Popen[str]":
    path = folder / "script.py"
    path.write_text(textwrap.dedent(text))
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, str(path)], stdout=subprocess.PIPE, text=True, env=environ, cwd=ROOT)


def end_script(run: "subprocess.Popen[Any]") -> None:
    run.kill()
    run.wait()
    if run.stdout is not None:
        run.stdout.close()


@contextlib.contextmanager
def script_that_leaves_things(folder: Path, text: str, mark: str) -> Iterator["subprocess.Popen[str]"]:
    """One that is killed, or does not get to its end: what nobody is left to remove is removed here."""
    run = start_script(folder, text)
    try:
        yield run
    finally:
        end_script(run)
        for pid in marked(mark):
            os.kill(pid, signal.SIGKILL)
        clear_temporary_folder("poqueue-*")
        clear_temporary_folder("pymp-*")  # multiprocessing's own, for the fork server


# ── starting ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "wrong",
    [
        {"jobs": 0}, {"jobs": 257}, {"jobs": 1.5}, {"jobs": True},
        {"grace": -1.0}, {"grace": float("nan")}, {"grace": "2"}, {"stop_grace": -1.0}, {"stop_grace": float("inf")},
        {"max_tasks_per_worker": 0}, {"max_tasks_per_worker": -1}, {"max_tasks_per_worker": 1.5},
        {"max_memory_per_worker": 0}, {"durability": "x"}, {"start_method": "x"}, {"task_timeout": 0},
        {"log_path": Path("/nowhere/log")},
    ],
    ids=str,
)  # fmt: skip
def test_wrong_settings_are_refused_at_once(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong)) if wrong != {"start_method": "x"} else "'x'"):
        Supervisor("tests.integration.villains:process", **wrong)


def test_a_supervisor_is_for_one_run_and_says_so(tmp_path: Path) -> None:
    one_run = pytest.raises(RuntimeError, match=r"one run.*make another")
    supervisor = Supervisor("tests.integration.villains:process", jobs=1)

    with pytest.raises(RuntimeError, match="must be started"):
        supervisor.run()
    with supervisor:
        with one_run:
            supervisor.start()
        supervisor.queue.add_task(po("A", "quick", tmp_path))
        assert supervisor.run().reason == "done"
        with pytest.raises(QueueError, match="the run is over"):
            supervisor.queue.add_task(po("B", "quick", tmp_path))
        with one_run:
            supervisor.run()
        assert supervisor.queue.get_queue_status()["completed_tasks"] == 1
    with one_run:
        supervisor.run()
    with one_run, supervisor:
        pass


def test_a_run_that_goes_on_is_not_begun_again(tmp_path: Path) -> None:
    refused: list[str] = []

    def run_again(event: Event) -> None:
        if event.kind == "completed":
            with pytest.raises(RuntimeError, match="one run") as caught:
                supervisor.run()
            refused.append(str(caught.value))

    with on_stage(tmp_path, po("A", "quick", tmp_path), on_event=run_again) as (supervisor, play):
        supervisor.run()

    assert play.is_completed("A") and len(refused) == 1


@pytest.mark.parametrize("start_method", ["spawn", "forkserver", "fork"])
def test_a_supervisor_that_is_never_closed_ends_with_its_program(start_method: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
            import os, time
            from poqueue import ProcessingTask
            from workers import Supervisor

            if __name__ == "__main__":
                supervisor = Supervisor("tests.integration.villains:process", start_method={start_method!r})
                supervisor.start()
                po = {{"po_number": "A", "do": "hang", "folder": {str(tmp_path)!r}}}
                supervisor.queue.add_task(ProcessingTask("A", po))
                while not os.path.exists({str(tmp_path / "history")!r}):
                    time.sleep(0.01)
                if os.fork() == 0:
                    raise SystemExit(0)  # a copy that ends nothing
                os.wait()
                print(supervisor.queue.get_queue_status()["processing_tasks"])
                raise SystemExit(7)
        """)
    )

    temporary = Path(tempfile.mkdtemp(prefix="t"))  # a socket's path is to fit, however long the test's own
    with running([sys.executable, str(script)], cwd=tmp_path, env={"TMPDIR": str(temporary)}) as run:
        ended = run.wait(20.0)

    assert (ended.code, ended.out) == (7, "1\n"), ended.err
    temporary.rmdir()  # nothing is left in it: poqueue-run-..., pymp-...


def test_a_program_that_has_run_a_supervisor_may_fork_and_run_one_in_both(tmp_path: Path) -> None:
    """The fork server of the first run is no child of the fork's, which has to have its own."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
            import os
            from pathlib import Path
            from tests.integration.stage import perform, po

            def play(number):
                folder = Path({str(tmp_path)!r})
                return perform(folder, po(number, "quick", folder), start_method="forkserver").is_completed(number)

            if __name__ == "__main__":
                print(play("BEFORE"), flush=True)
                if os.fork() == 0:
                    print(play("IN THE FORK"), flush=True)
                    os._exit(0)
                os.wait()
                print(play("AFTER"))
        """)
    )

    with running([sys.executable, str(script)], cwd=tmp_path) as run:
        ended = run.wait(30.0)

    assert ended.out == "True\nTrue\nTrue\n", ended.err


def test_files_and_folders_may_be_named_by_text(tmp_path: Path) -> None:
    names = {"journal": "j", "control_dir": ".", "work_dir": "work", "output_dir": "deep/output", "log_path": "log"}
    paths = {key: str(tmp_path / name) for key, name in names.items()}

    play = perform(tmp_path, po("A", "where_output_goes", tmp_path), **paths)

    assert play.tasks["A"].result is not None and play.tasks["A"].result.data == {"folder": paths["output_dir"]}
    assert {path.name for path in tmp_path.iterdir()} >= {"j", "log", "deep"}


def test_paths_stay_what_they_are_when_the_program_or_its_session_goes_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    names = {"journal": "j", "control_dir": "", "output_dir": "output", "log_path": "log"}

    with on_stage(tmp_path, po("A", "where_output_goes", tmp_path), **names) as (supervisor, play):
        monkeypatch.chdir(tmp_path / "elsewhere")
        os.kill(supervisor._service.pid, signal.SIGKILL)  # the next one opens the journal again
        supervisor.run()

    assert play.tasks["A"].result is not None
    assert play.tasks["A"].result.data == {"folder": str(tmp_path / "here" / "output")}
    assert {path.name for path in (tmp_path / "here").iterdir()} == {"j", "log", "output"}
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_one_that_was_never_started_ends_nothing(tmp_path: Path) -> None:
    """Another run may be in the folder that it was to use."""
    (tmp_path / CONTROL_NAME).touch()
    supervisor = Supervisor("tests.integration.villains:process", control_dir=tmp_path)

    supervisor.close()

    assert (tmp_path / CONTROL_NAME).exists()


def test_what_comes_after_the_start_is_refused_before_it(tmp_path: Path) -> None:
    supervisor = Supervisor("tests.integration.villains:process")
    supervisor.feed([po("A", "quick", tmp_path)], 1)

    for call in (
        supervisor.start_workers, supervisor.run, supervisor.take_rest, supervisor.give_up_adding, supervisor.tell_finished,
        lambda: supervisor.usage, lambda: supervisor.ask("get_queue_status"), lambda: supervisor.add_tasks([]),
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match="must be started first"):
            call()


def test_a_work_folder_that_is_there_is_somebody_elses(tmp_path: Path) -> None:
    (tmp_path / "work" / "file").mkdir(parents=True)
    supervisor = Supervisor("tests.integration.villains:process", work_dir=tmp_path / "work")
    supervisor.feed([po("A", "quick", tmp_path)], 1)

    with pytest.raises(FileExistsError):
        supervisor.start()
    supervisor.close()
    assert (tmp_path / "work" / "file").exists() and not adopts_orphans()

    shutil.rmtree(tmp_path / "work")
    with supervisor:
        supervisor.run()
    assert [line["po"] for line in history(tmp_path)] == ["A", "A"]


def test_what_it_is_fed_before_its_start_comes_first(tmp_path: Path) -> None:
    supervisor = Supervisor("tests.integration.villains:process", jobs=1)
    supervisor.feed([po("A", "quick", tmp_path)], 1)
    supervisor.feed((po(number, "quick", tmp_path) for number in "BC"), 2)
    with supervisor:
        supervisor.feed([po("D", "quick", tmp_path)], 1)
        supervisor.run()

    assert [line["po"] for line in history(tmp_path) if line["event"] == "start"] == ["A", "B", "C", "D"]


def test_a_start_without_a_folder_for_the_output_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    supervisor = Supervisor("tests.integration.villains:process", output_dir=tmp_path / "file" / "output")

    with pytest.raises(NotADirectoryError):
        supervisor.start()

    assert not adopts_orphans()  # the rest is the leak check's


@pytest.mark.parametrize("start_method", ["spawn", "forkserver", "fork"])
def test_workers_that_are_started_ahead_wait_until_they_are_asked_for(start_method: str, tmp_path: Path) -> None:
    supervisor = Supervisor("tests.integration.villains:process", jobs=2, start_method=start_method)
    with contextlib.closing(supervisor):
        supervisor.start_queue(prepares_workers=True)
        supervisor.queue.add_task(po("A", "quick", tmp_path))
        ahead = list(supervisor._staff.standbys)
        wait_until(lambda: all(one.status().phase is Phase.STANDBY for one in ahead), "they have imported")

        assert len(ahead) == ahead_of(2, usable_cores(), leaves_core=start_method != "forkserver") and not history(
            tmp_path
        )
        assert supervisor.queue.get_queue_status()["pending_tasks"] == 1

        supervisor.start_workers()
        assert {one.pid for one in ahead} <= {one.pid for one in supervisor._staff.workers}
        assert supervisor.run().reason == "done"

    assert [line["event"] for line in history(tmp_path)] == ["start", "end"]


@pytest.mark.parametrize("start_method", ["spawn", "forkserver"])
def test_the_first_workers_need_not_find_the_queue(
    start_method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their connections are there before its process can be found at all."""
    monkeypatch.setattr("workers.own_process.usable_cores", lambda: 2)
    supervisor = Supervisor("tests.integration.villains:process", jobs=2, start_method=start_method)
    with contextlib.closing(supervisor):
        supervisor.start_queue(prepares_workers=True)
        hidden = f"{supervisor._service.address}.hidden"
        os.rename(supervisor._service.address, hidden)
        supervisor.start_workers()
        supervisor.queue.add_tasks([po(number, "wait_for_go", tmp_path) for number in "AB"])

        def let_go_when_both_run() -> None:
            wait_until(has_begun(tmp_path, 2), "both work at the same time")
            (tmp_path / "go").touch()

        meanwhile(supervisor, let_go_when_both_run)
        os.rename(hidden, supervisor._service.address)
        assert supervisor.queue.get_queue_status()["completed_tasks"] == 2

    assert len({line["pid"] for line in history(tmp_path)}) == 2


@pytest.mark.parametrize("start_method", ["spawn", "forkserver", "fork"])
def test_a_queue_that_cannot_start_leaves_no_worker_behind(start_method: str, tmp_path: Path, mark: str) -> None:
    journal = tmp_path / "journal.sqlite"
    journal.write_text("no journal")
    supervisor = Supervisor("tests.integration.villains:process", jobs=2, start_method=start_method, journal=journal)

    with pytest.raises(JournalError):
        supervisor.start()

    left = {process.pid for process in marked_processes(supervisor.run_id, supervisor._work_dir)}
    assert left <= set(helper_pids()), "nothing but multiprocessing's own helpers"
    assert not active_children() and not os.path.exists(supervisor._work_dir)


def test_the_death_of_a_worker_started_before_everything_else_harms_no_other(tmp_path: Path) -> None:
    """A fresh program: its first worker is also the first that the fork server is needed for."""
    program = f"""
        from pathlib import Path
        from tests.integration.stage import po
        from workers import Supervisor
        if __name__ == "__main__":
            folder = Path({str(tmp_path)!r})
            with Supervisor("tests.integration.villains:process", jobs=2, start_method="forkserver", max_retries=0) as one:
                one.queue.add_tasks([po("A", "kill_itself", folder), po("B", "quick", folder), po("C", "exit_zero", folder)])
                one.run()
                status = one.queue.get_queue_status()
            print(status["completed_tasks"], status["failed_tasks"])
    """
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(program))

    done = subprocess.run(
        [sys.executable, script],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.stdout.split() == ["1", "2"], done.stderr


@pytest.mark.slow
def test_results_that_take_long_to_write_down_let_no_lease_grow_old(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    journal, count = tmp_path / "journal.sqlite", 1000

    play = perform(
        tmp_path,
        *(po(f"P{number}", "many_rows", tmp_path) for number in range(count)),
        journal=journal,
        task_timeout=20.0,
    )

    assert play.status["completed_tasks"] == count
    with contextlib.closing(sqlite3.connect(journal)) as db:
        lines = dict(db.execute("SELECT kind, count(*) FROM log GROUP BY kind"))
    assert lines[int(Kind.COMPLETED)] == count
    assert lines[int(Kind.LEASED)] < 1.5 * count  # what is given back unbegun is leased again


def test_a_signal_wakes_the_loop_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wakes = list[bool]()

    def wait(descriptors: list[int], at_most_s: float) -> list[int]:
        ready = wait_readable(descriptors, at_most_s)
        wakes.append(supervisor._signals.fileno() in ready)
        return ready

    def show(snapshot: Any) -> None:
        if not told:
            told.append(True)
            supervisor._signals.put(signal.SIGQUIT)
        elif any(wakes):
            supervisor.queue.resume_queue()

    told = list[bool]()
    monkeypatch.setattr(run_parts, "wait_readable", wait)
    with on_stage(tmp_path, on_show=show) as (supervisor, play):
        supervisor.queue.pause_queue()
        supervisor.queue.add_task(po("A", "good", tmp_path))
        play.end = supervisor.run()

    assert play.is_completed("A")
    assert told and sum(wakes) == 1


def test_what_the_program_has_frozen_stays_frozen(tmp_path: Path) -> None:
    mine: list[object] = []  # its count says little: what is frozen may die of old age meanwhile
    gc.freeze()  # as the whole suite has done before (tests/conftest.py)
    assert not any(one is mine for one in gc.get_objects())

    play = perform(tmp_path, po("A", "good", tmp_path))

    assert play.is_completed("A")
    assert not any(one is mine for one in gc.get_objects())


@pytest.mark.parametrize("is_frozen", [True, False])
def test_data_that_are_frozen_as_json_are_carried_as_they_are(is_frozen: bool, tmp_path: Path) -> None:
    records: list[TaskRecord] = []

    def take(event: Event) -> None:
        if event.kind == "completed" and event.task is not None:
            records.append(event.task)

    task = po("A", "quick", tmp_path)
    payload = freeze_plain(task.po_data)
    frozen = FrozenTask(task.task_id, "A", payload, 5, task.max_retries, task.retry_delay, task.task_timeout, "")
    with on_stage(tmp_path, on_event=take) as (supervisor, play):
        supervisor.feed([frozen if is_frozen else task])
        supervisor.run()

    assert play.is_completed("A")
    assert [is_json(record.payload) for record in records] == [is_frozen]
    assert not is_frozen or records[0].payload == payload
