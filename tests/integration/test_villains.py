"""Villains beside six good POs: the good ones never notice, and every bad attempt ends in time, with a reason."""

import os
import subprocess
from pathlib import Path

import pytest

from poqueue import TaskStatus
from tests.integration import villains
from tests.integration.stage import DEADLINE_S, GRACE_S, SLACK_S, TIMEOUT_S, Play, living, perform, po, started_pids
from workers import process_control

pytestmark = pytest.mark.usefixtures("nothing_left")

GOOD = tuple(f"G{number}" for number in range(6))
ATTEMPT_S = TIMEOUT_S + GRACE_S + 1.0 + SLACK_S


def beside_six_good_ones(folder: Path, do: str, **settings: object) -> Play:
    goods = [po(number, "good", folder) for number in GOOD]
    play = perform(folder, po("BAD", do, folder), *goods, **settings)
    assert play.end is not None and play.end.reason == "done"
    assert play.is_completed(*GOOD)
    assert not any(play.tasks[number].error_history for number in GOOD), "a good PO was charged"
    assert all(play.starts()[number] == 1 for number in GOOD), "a good PO ran twice"
    assert living(started_pids(folder)) == []
    assert play.status["completed_tasks"] + play.status["failed_tasks"] == 1 + len(GOOD)
    return play


def check_failed(play: Play, error_type: str, attempts: int) -> None:
    bad = play.tasks["BAD"]
    assert bad.status is TaskStatus.FAILED
    assert play.errors("BAD") == [error_type] * attempts
    assert [error["attempt"] for error in bad.error_history] == list(range(1, attempts + 1))
    assert all(error["seconds"] <= ATTEMPT_S for error in bad.error_history)
    assert all(error["worker_id"] for error in bad.error_history)


# ── the peers' five rows ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_po_that_kills_its_worker(tmp_path: Path) -> None:
    play = beside_six_good_ones(tmp_path, "kill_itself", max_retries=2)

    check_failed(play, "WorkerKilled", attempts=3)
    assert all(error["signal"] == "SIGKILL" for error in play.tasks["BAD"].error_history)
    assert "SIGKILL" in play.tasks["BAD"].error_history[-1]["message"]


def test_a_po_that_ends_its_worker_with_exit_code_0(tmp_path: Path) -> None:
    play = beside_six_good_ones(tmp_path, "exit_zero", max_retries=1)

    check_failed(play, "WorkerExited", attempts=2)
    assert all(error["exit_code"] == 0 for error in play.tasks["BAD"].error_history)


@pytest.mark.once
@pytest.mark.parametrize("do", ["ignore_term", "swallow_everything"])
def test_a_po_that_does_not_hear_term_is_killed_after_the_grace(do: str, tmp_path: Path) -> None:
    play = beside_six_good_ones(tmp_path, do, max_retries=1)

    check_failed(play, "TaskTimeout", attempts=2)
    for error in play.tasks["BAD"].error_history:
        assert error["seconds"] >= TIMEOUT_S + GRACE_S
        assert do in error["stack"]


@pytest.mark.once
def test_a_child_of_a_hung_po_dies_with_it(tmp_path: Path) -> None:
    play = beside_six_good_ones(tmp_path, "child_sleeps", max_retries=1)

    check_failed(play, "TaskTimeout", attempts=2)
    assert len(started_pids(tmp_path)) == 2
    assert "child_sleeps" in play.tasks["BAD"].error_history[0]["stack"]


# ── more that hang ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("do", ["hang", "stop_itself", "hold_the_gil"])
def test_a_po_that_hangs_in_its_own_way(do: str, tmp_path: Path) -> None:
    play = beside_six_good_ones(tmp_path, do)

    check_failed(play, "TaskTimeout", attempts=1)
    stack = play.tasks["BAD"].error_history[0]["stack"]
    assert ("SIGSTOP" if do == "stop_itself" else do) in stack


def test_finally_runs_when_a_hung_po_is_ended(tmp_path: Path) -> None:
    play = beside_six_good_ones(tmp_path, "hang_in_finally")

    check_failed(play, "TaskTimeout", attempts=1)
    assert (tmp_path / "finally").read_text() == "BAD\n"


@pytest.mark.once
def test_a_fork_bomb_is_defused(tmp_path: Path) -> None:
    play = beside_six_good_ones(tmp_path, "fork_bomb")

    check_failed(play, "TaskTimeout", attempts=1)
    assert len(started_pids(tmp_path)) >= 10


# ── daemons ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.once
@pytest.mark.parametrize("how", ["daemon", "shell_daemon"])
def test_a_daemon_of_a_hung_po_dies_with_it(how: str, tmp_path: Path) -> None:
    play = beside_six_good_ones(tmp_path, f"{how}_and_hang")

    check_failed(play, "TaskTimeout", attempts=1)
    assert len(started_pids(tmp_path)) == 1


@pytest.mark.once
@pytest.mark.parametrize("how", ["daemon", "shell_daemon"])
def test_a_daemon_of_a_dead_worker_is_found(how: str, tmp_path: Path) -> None:
    play = beside_six_good_ones(tmp_path, f"{how}_and_die")

    check_failed(play, "WorkerKilled", attempts=1)
    assert len(started_pids(tmp_path)) == 1


def test_a_daemon_of_a_po_that_succeeds_ends_with_the_worker(tmp_path: Path) -> None:
    play = beside_six_good_ones(tmp_path, "daemon_and_end")

    assert play.is_completed("BAD")


def test_orphans_that_end_by_themselves_leave_no_zombies(tmp_path: Path) -> None:
    play = perform(tmp_path, *(po(f"P{number}", "orphan_that_ends", tmp_path) for number in range(20)))

    assert play.status["completed_tasks"] == 20  # the rest is the leak check's


# ── those that do not die ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("do", "error_type"), [("sys_exit", "SystemExit"), ("keyboard_interrupt", "KeyboardInterrupt")]
)
def test_leaving_by_an_exception_is_a_failed_attempt_and_the_worker_lives(
    do: str, error_type: str, tmp_path: Path
) -> None:
    play = perform(tmp_path, po("BAD", do, tmp_path), po("NEXT", "quick", tmp_path), jobs=1)

    assert play.errors("BAD") == [error_type]
    assert play.is_completed("NEXT")
    assert len({line["pid"] for line in play.history()}) == 1


def test_a_forked_child_that_comes_back_into_our_loop_reports_nothing(tmp_path: Path) -> None:
    play = beside_six_good_ones(tmp_path, "fork_and_return")

    assert play.is_completed("BAD") and not play.tasks["BAD"].error_history
    result = play.tasks["BAD"].result
    assert result is not None
    ends = [line for line in play.history() if line["po"] == "BAD" and line["event"] == "end"]
    assert len({line["pid"] for line in ends}) == 2, "the child has come back"
    others = [line["pid"] for line in play.history() if line["po"] != "BAD"]
    stray = {line["pid"] for line in ends} - {result.data["pid"]}
    assert not stray & set(others)


def test_huge_output_harms_nobody(tmp_path: Path) -> None:
    play = beside_six_good_ones(tmp_path, "huge_stdout", task_timeout=20.0)

    assert play.is_completed("BAD")


@pytest.mark.slow
def test_endless_output_does_not_put_off_the_end(tmp_path: Path) -> None:
    play = beside_six_good_ones(tmp_path, "chatter_for_ever")

    check_failed(play, "TaskTimeout", attempts=1)


# ── crashes and memory ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_segmentation_fault_is_named_and_where_it_was(tmp_path: Path) -> None:
    play = beside_six_good_ones(tmp_path, "segfault", max_retries=1)

    check_failed(play, "WorkerKilled", attempts=2)
    for error in play.tasks["BAD"].error_history:
        assert error["signal"] == "SIGSEGV" and "in segfault\n" in error["stack"]


def test_a_memory_error_is_a_failed_attempt_and_the_worker_lives(tmp_path: Path) -> None:
    play = perform(tmp_path, po("BAD", "too_much_memory", tmp_path), po("NEXT", "quick", tmp_path), jobs=1)

    assert play.errors("BAD") == ["MemoryError"]
    assert play.is_completed("NEXT")
    assert len({line["pid"] for line in play.history()}) == 1


def test_a_kill_by_the_kernel_for_want_of_memory_is_told_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kills = iter(range(1000))
    monkeypatch.setattr(process_control, "oom_kills", lambda: next(kills))

    play = beside_six_good_ones(tmp_path, "kill_itself")

    check_failed(play, "OutOfMemory", attempts=1)


# ── a PO whose end comes in the time of grace ────────────────────────────────────────────────────────────────────────


@pytest.mark.once
@pytest.mark.parametrize("do", ["return_on_term", "raise_on_term", "end_in_grace"])
def test_a_po_that_ends_in_the_time_of_grace_costs_the_next_ones_nothing(do: str, tmp_path: Path) -> None:
    seconds = {"seconds": 0.9}
    goods = [po(number, "good", tmp_path) for number in (*GOOD, "G6", "G7", "G8", "G9")]

    play = perform(
        tmp_path, po("BAD", do, tmp_path, **seconds), *goods, jobs=1, task_timeout=0.6, grace=0.5,
    )  # fmt: skip

    assert len(play.tasks["BAD"].error_history) <= 1
    for task in play.tasks.values():
        if task.task_id != "BAD":
            assert task.status is TaskStatus.COMPLETED and not task.error_history, (task.task_id, task.error_history)
            assert play.starts()[task.task_id] == 1, f"{task.task_id} ran twice"


# ── the mess that is left for the next PO ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "do",
    [
        "close_standard_fds", "close_streams", "replace_streams", "break_streams", "remove_cwd", "change_cwd", "change_umask",
        "change_handler",
    ],
)  # fmt: skip
def test_the_next_po_finds_its_worker_as_it_was(do: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "workers.output")
    umask = os.umask(0o077)
    os.umask(umask)

    play = perform(tmp_path, po("MESS", do, tmp_path), po("NEXT", "look_round", tmp_path), jobs=1, task_timeout=20.0)

    assert play.is_completed("MESS", "NEXT")
    assert play.tasks["NEXT"].worker_id == "w1.1", "the worker was replaced"
    result = play.tasks["NEXT"].result
    assert result is not None
    data = result.data
    assert (data["cwd"], data["umask"]) == (os.getcwd(), umask)
    assert data["handler"] not in ("SIG_IGN", "Handlers.SIG_IGN", "1")
    said = [(record.po_number, record.getMessage()) for record in caplog.records if record.name == "workers.output"]  # type: ignore[attr-defined]
    assert ("NEXT", "printed by NEXT") in said
    assert ("NEXT", "echoed by NEXT") in said


def test_a_signal_mask_that_a_po_leaves_does_not_deafen_the_worker(tmp_path: Path) -> None:
    play = perform(
        tmp_path, po("MESS", "block_term", tmp_path), po("HANG", "hang_in_finally", tmp_path), jobs=1, task_timeout=0.5
    )

    assert play.errors("HANG") == ["TaskTimeout"]
    assert (tmp_path / "finally").exists(), "TERM was not heard"


def test_each_po_finds_the_folder_umask_and_signal_mask_that_setup_chose(tmp_path: Path) -> None:
    kinds = {"FIRST": "look_round", "CWD": "change_cwd", "UMASK": "change_umask", "NEXT": "look_round"}
    tasks = [po(number, do, tmp_path) for number, do in kinds.items()]
    tasks.append(po("HANG", "hang_in_finally", tmp_path, task_timeout=0.5))

    play = perform(tmp_path, *tasks, target=villains.SetupMakesItselfAtHome, jobs=1, task_timeout=30.0)

    assert play.is_completed(*kinds)
    first, later = (play.tasks[number].result.data for number in ("FIRST", "NEXT"))  # type: ignore[union-attr]
    assert (first["cwd"], first["umask"], "SIGUSR2" in first["blocked"]) == (str(tmp_path), 0o027, True)
    assert later == {**first, "blocked": [name for name in first["blocked"] if name != "SIGTERM"]}
    assert (tmp_path / "finally").exists(), "TERM was not heard"


def test_limits_and_accounts_go_by_a_clock_that_a_processor_cannot_stop(tmp_path: Path) -> None:
    kinds = {"SLOW": "good", "HANG": "pause", "START": "start_clocks", "NEXT": "good"}
    tasks = [po(number, do, tmp_path, seconds=villains.LONG_S) for number, do in kinds.items()]

    play = perform(tmp_path, *tasks, target=villains.StopsTheClocks, jobs=1)

    assert play.errors("HANG") == ["TaskTimeout"]
    assert play.is_completed("SLOW", "START", "NEXT")
    took = {number: play.tasks[number].result.processing_time for number in ("SLOW", "START", "NEXT")}  # type: ignore[union-attr]
    assert took["SLOW"] >= villains.GOOD_S and took["NEXT"] >= villains.GOOD_S
    assert all(0.0 <= seconds < DEADLINE_S for seconds in took.values())


def test_a_report_that_the_queue_refuses_is_a_failed_attempt(tmp_path: Path) -> None:
    play = beside_six_good_ones(tmp_path, "spoil_the_report")

    check_failed(play, "ReportRefused", attempts=1)
    assert "its seconds must be a finite number from 0" in play.tasks["BAD"].error_history[0]["message"]


def test_no_process_named_by_a_villain_is_in_the_process_table(tmp_path: Path) -> None:
    """The other way round: by its argv, not by the pids that the villains wrote down."""
    beside_six_good_ones(tmp_path, "shell_daemon_and_die")

    shown = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(tmp_path) not in shown
