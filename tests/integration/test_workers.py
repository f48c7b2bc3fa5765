"""The life of workers: starting, being replaced, closing their sessions, what they own, and what they say."""

import logging
import os
import signal
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from poqueue import TaskStatus
from poqueue.task import Event
from tests.integration import villains
from tests.integration.stage import Play, history, lines_of, on_stage, perform, po, wait_until
from tests.integration.test_supervisor import meanwhile
from workers import Supervisor, WorkersCannotStartError, staff
from workers.kept_reports import REPORT_FILES
from workers.worker_files import Phase
from workers.worker_process import WorkerProcess

pytestmark = pytest.mark.usefixtures("nothing_left")


# ── those that cannot start ──────────────────────────────────────────────────────────────────────────────────────────


def check_brake(folder: Path, reason: str, **settings: Any) -> None:
    with (
        on_stage(folder, po("P", "quick", folder), **settings) as (supervisor, _),
        pytest.raises(WorkersCannotStartError, match=reason),
    ):
        supervisor.run()
    assert 3 <= len(lines_of(folder / "boots")) <= 6, "no storm of starts"


def test_workers_whose_session_cannot_be_opened_stop_the_run(tmp_path: Path) -> None:
    check_brake(tmp_path, "the browser does not start", target=villains.SetupRaises)


def test_workers_that_cannot_connect_to_the_queue_stop_the_run(tmp_path: Path) -> None:
    (tmp_path / "no_sockets.py").write_text(
        textwrap.dedent(f"""
            import socket
            with open({str(tmp_path / "boots")!r}, "a") as file:
                file.write("boot\\n")
            def refuse(*arguments, **words):
                raise RuntimeError("there are no sockets here")
            socket.socket = refuse
            def process(po):
                pass
        """)
    )

    check_brake(tmp_path, "there are no sockets here", target="no_sockets:process", app_dir=str(tmp_path))


def test_workers_that_die_while_they_start_stop_the_run(tmp_path: Path) -> None:
    check_brake(tmp_path, "SIGKILL", target=villains.SetupDies)


@pytest.mark.once
def test_workers_whose_session_is_not_opened_in_time_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.time_limits.BOOT_TIMEOUT_S", 2.0)

    check_brake(tmp_path, r"no end of its setup after 2(\.\d+)? s", target=villains.SetupHangs, jobs=1, grace=0.2)


def test_a_module_that_only_workers_cannot_import_stops_the_run(tmp_path: Path) -> None:
    (tmp_path / "only_here.py").write_text(
        textwrap.dedent(f"""
            import os
            with open({str(tmp_path / "boots")!r}, "a") as file:
                file.write("boot\\n")
            raise ImportError("there is no display")
        """)
    )

    check_brake(tmp_path, "there is no display", target="only_here:process", app_dir=str(tmp_path))


@pytest.mark.parametrize("jobs", [1, 2])
def test_workers_that_die_whenever_they_wait_for_their_first_po_stop_the_run(jobs: int, tmp_path: Path) -> None:
    killed: list[int] = []
    with on_stage(tmp_path, jobs=jobs) as (supervisor, play):
        supervisor.queue.pause_queue()  # so that nobody begins one
        supervisor.queue.add_task(po("P", "quick", tmp_path))
        is_over = threading.Event()

        def kill_each() -> None:
            while not is_over.wait(0.005):
                for worker in list(supervisor._staff.workers):
                    if worker.pid not in killed and worker.status().phase is Phase.WORKING:
                        killed.append(worker.pid)
                        os.kill(worker.pid, signal.SIGKILL)

        killer = threading.Thread(target=kill_each)
        killer.start()
        alarm = threading.Timer(30.0, supervisor.stop)
        alarm.start()
        try:
            with pytest.raises(WorkersCannotStartError, match="SIGKILL"):
                supervisor.run()
        finally:
            alarm.cancel()
            is_over.set()
            killer.join()

    assert 3 <= len(killed) <= 8, "no storm of starts"
    assert play.tasks["P"].status is TaskStatus.PENDING


def test_a_worker_that_dies_after_a_long_wait_for_its_first_po_had_started_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staff, "SETTLED_S", 0.2)
    with on_stage(tmp_path, jobs=1) as (supervisor, play):
        supervisor.queue.pause_queue()
        supervisor.queue.add_task(po("P", "quick", tmp_path))

        def kill_some() -> None:
            killed: set[int] = set()
            for _ in range(4):
                wait_until(lambda: settled(supervisor) - killed, "the next one has waited")
                [pid] = settled(supervisor) - killed
                killed.add(pid)
                os.kill(pid, signal.SIGKILL)
            supervisor.queue.resume_queue()

        meanwhile(supervisor, kill_some)

    assert play.is_completed("P")


def settled(supervisor: Supervisor) -> set[int]:
    found = [(worker.pid, worker.status()) for worker in list(supervisor._staff.workers)]
    return {pid for pid, now in found if now.phase is Phase.WORKING and time.monotonic() - now.started > 0.4}


def test_a_worker_that_cannot_start_beside_others_is_tried_less_and_less_and_that_is_told_no_more_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    delays: list[float] = []
    note_end = staff.Staff.note_end

    def note(self: staff.Staff, worker: Any, now: float) -> None:
        note_end(self, worker, now)
        if worker.slot in self._bad_starts:
            count, until = self._bad_starts[worker.slot]
            delays.append(round(until - now, 6))
            (tmp_path / "go").touch() if count == 5 else None

    monkeypatch.setattr(staff.Staff, "note_end", note)
    play = perform(tmp_path, po("P", "wait_for_go", tmp_path), target=villains.OnlyOneAtATime, task_timeout=60.0)

    assert play.is_completed("P")
    assert delays[:5] == [0.1, 0.2, 0.4, 0.8, 1.6]
    told = [line for line in caplog.messages if line.startswith("a worker could not start")]
    assert len(told) == 3 and "(4 times)" in told[2]


def test_a_run_does_not_end_while_one_that_was_started_before_may_get_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staff, "_delay_s", lambda bad_starts: 0.0)
    tasks = [po(f"P{number}", "quick", tmp_path) for number in range(5)]
    target = villains.OnlyOneAtATimeAndSlowly
    with on_stage(tmp_path, *tasks, target=target, jobs=4) as (supervisor, play):

        def look() -> None:
            wait_until(lambda: supervisor._staff._boot_failures >= 3, "the others have failed")
            (tmp_path / "go").touch()

        meanwhile(supervisor, look)

    assert all(play.is_completed(f"P{number}") for number in range(5))


def test_a_bad_start_now_and_then_ends_no_run(tmp_path: Path) -> None:
    tasks = [po(f"P{number}", "quick", tmp_path) for number in range(5)]

    play = perform(tmp_path, *tasks, target=villains.SetupRaisesAtTimes, jobs=1, max_tasks_per_worker=1)

    assert all(play.is_completed(f"P{number}") for number in range(5))
    assert len(lines_of(tmp_path / "boots")) >= 9


def test_a_worker_whose_report_was_told_unkept_has_nothing_in_hand(tmp_path: Path) -> None:
    tasks = [po("R", "fail", tmp_path, max_retries=1), po("A", "leave_no_room", tmp_path)]
    with on_stage(tmp_path, *tasks, jobs=1, retry_delay=600.0) as (supervisor, play):

        def look() -> None:
            wait_until(lambda: supervisor.queue.get_queue_status()["completed_tasks"] == 1, "A is through, R waits")
            [worker] = supervisor._staff.workers
            wait_until(lambda: not worker.status().token, "the worker says that it is idle", within_s=3.0)
            supervisor.stop()

        meanwhile(supervisor, look)

    assert play.is_completed("A")


def test_what_the_queue_knows_is_not_kept_beside_what_it_does_not(tmp_path: Path) -> None:
    with on_stage(tmp_path, jobs=1) as (supervisor, play):
        for number in range(4):  # one at a time: nothing is told but by the question for the next one
            supervisor.queue.add_task(po(f"P{number}", "quick", tmp_path))
            wait_until(
                lambda count=number + 1: supervisor.queue.get_queue_status()["completed_tasks"] == count, "it is done"
            )
        [worker] = supervisor._staff.workers
        kept = [report.task_id for report in worker.files.untold_reports()]

    assert kept in ([], ["P3"])
    assert all(play.is_completed(f"P{number}") for number in range(4))


def test_a_large_result_takes_no_room_any_more_once_the_queue_has_it(tmp_path: Path) -> None:
    """The queue may wait for that room, and nobody gets another PO meanwhile."""
    short = [
        po(f"P{number}", "quick", tmp_path) for number in range(20)
    ]  # a worker that is slow forgets at once anyway
    with on_stage(tmp_path, *short, po("L", "large_result", tmp_path), jobs=1) as (supervisor, play):
        wait_until(lambda: supervisor.queue.get_queue_status()["completed_tasks"] == 21, "they are done")
        supervisor.queue.add_task(po("H", "hang", tmp_path))
        [worker] = supervisor._staff.workers
        wait_until(lambda: worker.status().po_number == "H", "the next one has begun")
        room = [os.stat(os.path.join(worker.files.folder, name)).st_size for name in REPORT_FILES]

    assert room == [0, 0]
    assert play.is_completed("L")


def test_the_queue_is_untouched_when_workers_cannot_start(tmp_path: Path) -> None:
    with on_stage(tmp_path, po("P", "quick", tmp_path), target=villains.SetupRaises) as (supervisor, play):  # noqa: SIM117
        with pytest.raises(WorkersCannotStartError):
            supervisor.run()

    assert play.tasks["P"].status is TaskStatus.PENDING
    assert play.tasks["P"].attempt == 0 and not play.tasks["P"].error_history


# ── being replaced ───────────────────────────────────────────────────────────────────────────────────────────────────


def check_nobody_was_charged(play: Play) -> None:
    assert all(task.status is TaskStatus.COMPLETED for task in play.tasks.values())
    assert all(task.attempt == 1 and not task.error_history for task in play.tasks.values())
    assert set(play.starts().values()) == {1}


def by_worker(play: Play) -> dict[str, int]:
    counts: dict[str, int] = {}
    for line in play.history():
        counts[line["worker"]] = counts.get(line["worker"], 0) + (line["event"] == "start")
    return counts


def test_a_processor_has_its_process_to_itself_and_may_fork(tmp_path: Path) -> None:
    """With a thread of ours in it Python warns of each fork since 3.12, and the child might wait for that thread's locks."""
    play = perform(tmp_path, po("A", "count_threads", tmp_path))

    result = play.tasks["A"].result
    assert result is not None and result.data == {"threads": 1}


@pytest.mark.parametrize("start_method", ["spawn", "fork"])
def test_a_child_that_a_processor_forks_ends_at_a_term_from_its_first_moment(start_method: str, tmp_path: Path) -> None:
    play = perform(tmp_path, po("A", "fork_and_look", tmp_path), task_timeout=10.0, start_method=start_method)

    result = play.tasks["A"].result
    assert result is not None and result.data == {"child": -signal.SIGTERM, "is_held": False}


def test_processors_may_use_pools_of_their_own(tmp_path: Path) -> None:
    """Whose end is TERM for processes that have only just been forked."""
    play = perform(tmp_path, *(po(f"P{n}", "map_in_a_pool", tmp_path) for n in range(40)), task_timeout=5.0)

    assert {task.result.data["sum"] for task in play.tasks.values() if task.result is not None} == {3}
    check_nobody_was_charged(play)


@pytest.mark.parametrize("by", ["spawn", "fork"])
def test_a_processor_may_run_a_supervisor_of_its_own(by: str, tmp_path: Path) -> None:
    play = perform(tmp_path, po("A", "supervise", tmp_path, by=by), task_timeout=20.0)

    result = play.tasks["A"].result
    assert result is not None and result.data == {"completed": 1}


def test_a_worker_is_replaced_after_so_many_pos(tmp_path: Path) -> None:
    play = perform(tmp_path, *(po(f"P{n}", "quick", tmp_path) for n in range(43)), max_tasks_per_worker=10)

    check_nobody_was_charged(play)
    assert len(play.tasks) == 43
    assert max(by_worker(play).values()) <= 10
    assert len(by_worker(play)) >= 5


def test_a_worker_that_holds_too_much_memory_is_replaced(tmp_path: Path) -> None:
    play = perform(
        tmp_path, *(po(f"P{n}", "hoard_memory", tmp_path) for n in range(9)), max_memory_per_worker=100_000_000
    )

    check_nobody_was_charged(play)
    assert max(by_worker(play).values()) <= 3
    assert len(by_worker(play)) >= 3


# ── sessions ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def sessions(folder: Path) -> tuple[list[str], list[str]]:
    words = [line.split() for line in lines_of(folder / "sessions")]
    return sorted(w for event, w in words if event == "setup"), sorted(w for event, w in words if event == "teardown")


def test_each_session_is_closed_at_the_end(tmp_path: Path) -> None:
    perform(tmp_path, *(po(f"P{n}", "good", tmp_path) for n in range(4)), target=villains.Session)

    opened, closed = sessions(tmp_path)
    assert opened and opened == closed


def test_a_session_is_closed_when_its_worker_is_replaced(tmp_path: Path) -> None:
    perform(
        tmp_path, *(po(f"P{n}", "quick", tmp_path) for n in range(6)), target=villains.Session, jobs=1,
        max_tasks_per_worker=2,
    )  # fmt: skip

    opened, closed = sessions(tmp_path)
    assert len(opened) >= 3 and opened == closed


def test_a_po_waits_for_no_session_that_is_closed_beside_a_free_place(tmp_path: Path) -> None:
    def close(event: Event) -> None:
        if event.kind == "completed":
            (tmp_path / "close").touch()

    tasks = [po("P", "later", tmp_path, max_retries=1)]
    settings = {"max_tasks_per_worker": 1, "spare_workers": False, "on_event": close}
    play = perform(tmp_path, *tasks, target=villains.TeardownWaits, **settings)

    assert play.is_completed("P") and lines_of(tmp_path / "sessions").count("teardown w1.1") == 1


def stop_while_it_closes(supervisor: Supervisor, tmp_path: Path) -> None:
    """Have the run stopped, and its one worker, of TeardownWaits, in its teardown."""
    wait_until(lambda: history(tmp_path), "it has begun")
    supervisor.stop()
    wait_until(lambda: supervisor._is_draining, "nothing starts any more")
    (tmp_path / "go").touch()
    wait_until(lambda: any("closing" in line for line in lines_of(tmp_path / "sessions")), "it is being closed")


def test_a_run_that_waits_for_a_session_to_be_closed_does_nothing_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[float] = []
    monkeypatch.setattr(Supervisor, "_watch", lambda self, now: turns.append(now))
    target = villains.TeardownWaits
    with on_stage(tmp_path, po("P", "wait_for_go", tmp_path), target=target, task_timeout=60.0) as (supervisor, _):

        def stop() -> None:
            stop_while_it_closes(supervisor, tmp_path)
            until, before = time.monotonic() + 1.0, len(turns)
            wait_until(lambda: time.monotonic() > until, "a second has gone by")
            turned.append(len(turns) - before)
            (tmp_path / "close").touch()

        turned: list[int] = []
        meanwhile(supervisor, stop)

    assert turned[0] < 100


def test_a_session_is_closed_when_its_worker_is_told_to_end(tmp_path: Path) -> None:
    play = perform(tmp_path, po("BAD", "hang", tmp_path), target=villains.Session, jobs=1, task_timeout=0.5)

    assert play.errors("BAD") == ["TaskTimeout"]
    opened, closed = sessions(tmp_path)
    assert "w1.1" in closed and opened == closed


def test_a_session_that_does_not_close_well_changes_no_result(tmp_path: Path) -> None:
    play = perform(tmp_path, *(po(f"P{n}", "quick", tmp_path) for n in range(3)), target=villains.TeardownRaises)

    check_nobody_was_charged(play)


def test_a_session_that_does_not_close_at_all_is_killed_and_that_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("workers.time_limits.TEARDOWN_S", 0.3)

    play = perform(
        tmp_path, *(po(f"P{n}", "quick", tmp_path) for n in range(3)), target=villains.TeardownHangs, grace=0.2
    )

    check_nobody_was_charged(play)
    told = [record for record in caplog.records if "no end of its teardown after 0." in record.getMessage()]
    assert told and all(record.levelname == "WARNING" for record in told)


def test_a_stop_in_a_teardown_is_what_is_told_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with on_stage(tmp_path, po("P", "wait_for_go", tmp_path), target=villains.TeardownWaits, jobs=1) as (supervisor, _):

        def stop() -> None:
            stop_while_it_closes(supervisor, tmp_path)
            came = property(lambda self: time.monotonic() + 9.0)  # since the loop has looked at the clock
            monkeypatch.setattr(WorkerProcess, "since", came)
            supervisor.stop()

        meanwhile(supervisor, stop)

    assert "stopped in its teardown after 0 s: killing the worker" in caplog.text
    assert "no end of its" not in caplog.text


@pytest.mark.parametrize(
    ("what", "start_method"),
    [
        ("thread", "spawn"),
        ("thread", "forkserver"),
        ("thread", "fork"),
        ("child", "spawn"),
        ("watchdog", "spawn"),
        ("short", "spawn"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_what_a_processor_has_left_holds_up_no_end_and_what_is_to_be_done_at_the_exit_is_done(
    what: str, start_method: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    play = perform(
        tmp_path, po("A", what, tmp_path), target=villains.LeavesSomething, jobs=1, start_method=start_method
    )

    assert play.is_completed("A")
    ends = [record.getMessage() for record in caplog.records if record.getMessage().startswith("worker ended")]
    assert ends == ["worker ended (exit code 0)"] and "teardown" not in caplog.text
    assert len(lines_of(tmp_path / "ends")) == (2 if what == "short" else 0)
    if start_method == "spawn":
        assert lines_of(tmp_path / "exits") == ["exit"]


def test_what_a_killed_worker_owned_is_removed(tmp_path: Path) -> None:
    play = perform(tmp_path, po("BAD", "own_and_die", tmp_path))

    assert play.errors("BAD") == ["WorkerKilled"]
    assert not (tmp_path / "profile").exists()
    assert not (tmp_path / "lock").exists()
    assert not [name for name in os.listdir(os.fsencode(tmp_path)) if name.startswith(b"odd")]


def test_what_an_attempt_owned_stays_once_it_has_ended_by_itself(tmp_path: Path) -> None:
    play = perform(
        tmp_path, po("GOOD", "own_and_end", tmp_path), po("FAILED", "own_and_fail", tmp_path),
        po("HANG", "own_and_hang", tmp_path), jobs=1, grace=0.2,
    )  # fmt: skip

    assert play.is_completed("GOOD") and play.errors("HANG") == ["TaskTimeout"]
    assert {path.name for path in tmp_path.glob("file-*")} == {"file-GOOD", "file-FAILED"}


@pytest.mark.parametrize("target", [villains.TeardownHangs, villains.TeardownDies])
def test_a_worker_that_does_not_end_well_loses_what_its_session_owned_and_nothing_of_its_pos(
    target: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.time_limits.TEARDOWN_S", 0.3)

    play = perform(tmp_path, po("GOOD", "own_and_end", tmp_path), target=target, jobs=1, grace=0.2)

    assert play.is_completed("GOOD")
    assert (tmp_path / "file-GOOD").exists()
    assert len(sessions(tmp_path)[0]) == 1 and not list(tmp_path.glob("profile-*"))


# ── what they say ────────────────────────────────────────────────────────────────────────────────────────────────────


def said(caplog: pytest.LogCaptureFixture) -> list[tuple[str, int, str]]:
    """PO, attempt and text of every line that a processor said."""
    return [
        (record.po_number, record.attempt, record.getMessage())  # type: ignore[attr-defined]
        for record in caplog.records
        if record.name == "workers.output"
    ]


@pytest.fixture
def output(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "workers.output")
    return caplog


def test_whatever_a_processor_says_is_told_with_its_po(tmp_path: Path, output: pytest.LogCaptureFixture) -> None:
    numbers = {"PO-1", "PO-2"}
    perform(tmp_path, *(po(number, "talk", tmp_path) for number in sorted(numbers)), jobs=1)

    lines = said(output)
    for number in numbers:
        texts = [text for whose, attempt, text in lines if (whose, attempt) == (number, 1)]
        assert f"printed by {number}" in texts
        assert f"complaint of {number}" in texts
        assert f"echoed by {number}" in texts
        assert f"my.site: first line of {number}\nsecond line" in texts
        assert not any(other in text for text in texts for other in numbers - {number})
    assert all(record.worker_id == "w1.1" for record in output.records if record.name == "workers.output")  # type: ignore[attr-defined]
    assert {record.levelname for record in output.records if "first line" in record.getMessage()} == {"WARNING"}


def test_a_log_record_in_the_middle_of_a_line_stays_a_log_record(
    tmp_path: Path, output: pytest.LogCaptureFixture
) -> None:
    perform(tmp_path, po("A", "talk", tmp_path))

    record = next(record for record in output.records if "logged in the middle" in record.getMessage())
    assert record.levelname == "ERROR"
    assert "{" not in record.getMessage()


def test_the_last_words_of_a_worker_that_is_killed_are_told(tmp_path: Path, output: pytest.LogCaptureFixture) -> None:
    perform(tmp_path, po("BAD", "say_and_die", tmp_path, max_retries=1))

    for attempt in (1, 2):
        assert ("BAD", attempt, "last words") in said(output)
        assert ("BAD", attempt, "no newline at the end") in said(output)


def test_last_words_are_told_however_much_was_said_before(tmp_path: Path, output: pytest.LogCaptureFixture) -> None:
    perform(tmp_path, po("BAD", "shout_and_die", tmp_path), task_timeout=20.0)

    assert ("BAD", 1, "last words") in said(output)


def test_text_that_looks_like_our_marks_is_text(tmp_path: Path, output: pytest.LogCaptureFixture) -> None:
    play = perform(tmp_path, po("A", "forge_marks", tmp_path), po("B", "talk", tmp_path), jobs=1)

    assert play.is_completed("A", "B")
    assert {whose for whose, _, _ in said(output)} == {"A", "B"}
    assert {attempt for _, attempt, _ in said(output)} == {1}
    assert ("A", 1, "before") in said(output) and ("A", 1, "after") in said(output)
    assert not any(record.levelname == "CRITICAL" for record in output.records)


def test_a_line_is_told_while_the_po_still_runs(tmp_path: Path, output: pytest.LogCaptureFixture) -> None:
    with on_stage(tmp_path, po("A", "talk", tmp_path), po("B", "wait_for_go", tmp_path), jobs=1, task_timeout=60) as (
        supervisor, _,
    ):  # fmt: skip

        def say_go() -> None:
            wait_until(lambda: ("A", 1, "printed by A") in said(output), "the line is told")
            (tmp_path / "go").touch()

        watch = threading.Thread(target=say_go)
        watch.start()
        supervisor.run()
        watch.join()
    assert (tmp_path / "go").exists()
