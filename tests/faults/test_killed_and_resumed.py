"""kill -9 at any moment, and `poqueue run --resume`: nothing is lost, nothing that was done is done again."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from poqueue import ProcessingTask, TaskQueue
from tests.faults.batches import NEW_ORLEANS, NEW_ORLEANS_WORDS, Batch
from tests.faults.test_failpoints import Fault
from tests.integration.console import BEHAVE, Running, outcomes, poqueue, read_csv, state, wait_until, write_orders

pytestmark = pytest.mark.usefixtures("nothing_left")


def numbered(count: int) -> list[str]:
    return [f"P{number}," for number in range(count)]


def mixed(count: int) -> list[str]:
    """POs of every kind that ends by itself: most succeed, some fail once, some for good."""
    kinds = {7: "fail_once", 13: "fail"}
    return [f"P{n},{next((kind for every, kind in kinds.items() if n % every == 0), '')}" for n in range(count)]


def undisturbed(folder: Path, batch: Batch, code: int) -> list[dict[str, str]]:
    """What the same orders come to when nobody is killed."""
    folder.mkdir()
    calm = Batch(folder, orders=batch.orders, column=batch.column, words=batch.words[12:])
    with calm.start() as run:
        run.wait().check(code)
    return calm.results()


def kill_at_random_moments(batch: Batch, kills: int, chance: random.Random, total: int) -> None:
    """Start it, and kill it so many times: in the middle of work mostly, sometimes while it starts. The next life begins at
    once, beside what is left of the last one."""
    with contextlib.ExitStack() as stack:
        for number in range(kills):
            run = stack.enter_context(batch.resume())
            if chance.random() < 0.3:
                wait_for_end(run, chance.uniform(0.05, 1.0))
            else:
                more = batch.line_count() + chance.randrange(1, max(2, 2 * total // kills))
                wait_until(lambda: batch.line_count() >= more or run.process.poll() is not None, "some lines", 60.0)  # noqa: B023
            if run.process.poll() is not None:
                print(f"it ended before kill {number + 1}")
                break
            (batch.kill_group if chance.random() < 0.7 else batch.kill_everything)(run)
        wait_until(lambda: not run.left(), "nothing is left of the last one", 5.0)


def wait_for_end(run: Running, within_s: float) -> None:
    """Until a random moment has come, or it has ended."""
    try:
        run.process.wait(within_s)
    except subprocess.TimeoutExpired:
        return


@pytest.mark.once
@pytest.mark.parametrize("start_method", ["spawn", "fork"])
def test_a_batch_that_is_killed_again_and_again_ends_as_if_it_had_not_been(start_method: str, tmp_path: Path) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    words = ("--start-method", start_method, "--retries", "1", "--retry-delay", "0.05")
    batch = Batch(tmp_path / "killed", *mixed(200), words=words)

    kill_at_random_moments(batch, 3, random.Random(seed), 200)
    has_report = (batch.run_dir / "report.json").exists()
    # it may be killed after its last word, and resumed in vain
    was_through = has_report and batch.report()["run"]["reason"] in ("done", "nothing to do")
    batch.finish(code=5 if was_through else 1)

    facts = batch.check()
    assert facts.interrupted <= batch.jobs * batch.kills
    if start_method == "spawn":
        assert batch.results() == undisturbed(tmp_path / "calm", batch, 1)


@pytest.mark.once
def test_a_run_that_is_through_starts_no_worker_when_it_is_resumed(tmp_path: Path) -> None:
    batch = Batch(tmp_path, "A,", "B,")
    with batch.start() as run:
        run.wait().check(0)
    log = batch.run_dir / "run.log"
    started = log.read_text().count("worker started")

    batch.finish(code=5)

    assert log.read_text().count("worker started") == started > 0


def test_the_results_of_pos_that_have_ended_are_there_while_others_run_and_when_all_is_killed(tmp_path: Path) -> None:
    batch = Batch(tmp_path, "A,", "B,fail", "C,wait", jobs=1, words=("--retries", "0"))
    known = [("A", "succeeded"), ("B", "failed")]
    failed = batch.run_dir / "failed.csv"

    def wait_for_results() -> None:
        wait_until(lambda: list(batch.statuses().items()) == known and read_csv(failed), "both are there")

    with batch.start() as run:
        batch.wait_begun(3)
        wait_for_results()
        batch.kill_everything(run)
    assert list(batch.statuses().items()) == known and len(read_csv(failed)) == 1

    with batch.resume() as run:
        batch.wait_begun(4)
        wait_for_results()
        batch.kill_everything(run)
    assert list(batch.statuses().items()) == known and len(read_csv(failed)) == 1
    (tmp_path / "go").touch()
    batch.finish(code=1)
    batch.check()


def test_the_results_of_before_are_there_again_once_a_run_is_taken_up(tmp_path: Path) -> None:
    """Whatever comes next: the workers may take long to start, or never do."""
    batch = Batch(tmp_path, "A,", "B,wait", jobs=1)
    with batch.start() as run:
        batch.wait_begun(2)
        wait_until(lambda: batch.statuses() == {"A": "succeeded"}, "it is there")
        batch.kill_everything(run)

    with batch.resume(env={"POQUEUE_TESTING": "1", "POQUEUE_FAILPOINT": "recovery.after_record:1:kill"}) as run:
        assert run.wait().code < 0

    assert batch.statuses() == {"A": "succeeded"}


def test_workers_of_a_resumed_run_are_others_than_those_before(tmp_path: Path) -> None:
    batch = Batch(tmp_path, "A,", "B,wait", "C,", jobs=1)
    with batch.start() as run:
        wait_until(lambda: "B" in batch.begun(), "the first one is done, and the second one runs")
        batch.kill_everything(run)
    (tmp_path / "go").touch()

    batch.finish()

    workers = {row["po_number"]: row["worker"] for row in read_csv(batch.run_dir / "results.csv")}
    assert workers == {"A": "w1.1", "B": "w1.2", "C": "w1.2"}
    report = json.loads((batch.run_dir / "report.json").read_text())
    assert set(report["performance"]["worker_utilization"]) == {"w1.1", "w1.2"}
    shown = batch.poqueue("report", "r").check(0).out
    assert re.search(r"^w1 +2 ", shown, re.MULTILINE), shown


def test_what_a_resumed_run_is_set_to_is_told_by_where_it_came_from(tmp_path: Path) -> None:
    batch = Batch(tmp_path, "A,", words=("--retries", "1", "--timeout", "40s"))
    with batch.start() as run:
        run.wait().check(0)

    batch.finish("--timeout", "50s", code=5)

    told = json.loads((batch.run_dir / "report.json").read_text())["run"]["settings"]
    assert told["max_retries"] == {"value": 1, "from": "run.json"}
    assert told["task_timeout"] == {"value": "50s", "from": "command line"}


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_ten_kills_of_a_real_order_file(tmp_path: Path) -> None:
    if not NEW_ORLEANS.exists():
        pytest.skip(f"{NEW_ORLEANS} is not here")
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    batch = Batch(tmp_path / "killed", orders=NEW_ORLEANS, column="PO", seconds=0.004, words=NEW_ORLEANS_WORDS)
    calm = undisturbed(tmp_path / "calm", batch, 0)
    pos = {row["PO"].strip() for row in calm if row["status"] == "succeeded"}

    kill_at_random_moments(batch, 10, random.Random(seed), len(pos))
    with batch.resume() as run:
        ended = run.wait(120.0)

    facts = batch.check(pos)
    begins = len(batch.begun())
    print(f"{ended.code}, {len(pos)} POs, {begins - len(pos)} extra executions, {batch.kills} kills")
    assert batch.kills == 10
    assert begins - len(pos) <= facts.interrupted <= batch.jobs * batch.kills
    assert batch.results() == calm


# ── one process after the other ──────────────────────────────────────────────────────────────────────────────────────


def test_a_run_without_a_journal_that_was_killed_when_pos_had_run_has_crashed(tmp_path: Path) -> None:
    batch = Batch(tmp_path, "A,", "B,wait", jobs=1, words=("--no-journal",))
    with batch.start() as run:
        batch.wait_begun(2)
        batch.kill_everything(run)

    [described] = json.loads(batch.poqueue("runs", "--dir", str(tmp_path), "--json").check(0).out)
    assert described["state"] == "crashed"


def test_a_supervisor_killed_alone_takes_everything_along_and_the_run_goes_on(tmp_path: Path) -> None:
    batch = Batch(tmp_path, *mixed(120), words=("--retries", "1", "--retry-delay", "0.05"))
    with batch.start() as run:
        batch.wait_begun(20, run)
        run.send(signal.SIGKILL)
        run.process.wait()
        wait_until(lambda: not run.left(), "nothing is left", 5.0)
    assert batch.poqueue("runs", "--dir", str(tmp_path)).check(0).out.split("\n")[2].split()[:2] == ["r", "crashed"]

    batch.finish(code=1)

    facts = batch.check()
    assert facts.interrupted <= batch.jobs


@pytest.mark.once
def test_a_resume_that_is_interrupted_does_not_say_that_pos_ran_again(tmp_path: Path) -> None:
    batch = Batch(tmp_path, "A,wait")
    with batch.start() as run:
        batch.wait_begun(1)
        batch.kill_group(run)

    with batch.resume() as run:
        batch.wait_begun(2)
        run.send(signal.SIGINT)
        wait_until(lambda: run.said("no new PO starts"), "the first is taken")
        run.send(signal.SIGINT)
        stopped = run.wait().check(130)
    with batch.resume() as run:
        batch.wait_begun(3)
        batch.kill_group(run)
    (tmp_path / "go").touch()
    ended = batch.finish()

    assert "resumed: 1 POs were running when the run was killed\n" in stopped.err
    assert "resumed: 1 POs were running when the run was killed and ran again\n" in ended.err
    batch.check()


@pytest.mark.slow
def test_supervisor_and_manager_killed_together(tmp_path: Path) -> None:
    batch = Batch(tmp_path, *numbered(120), seconds=0.005)
    with batch.start() as run:
        batch.wait_begun(20, run)
        manager = batch.manager_pid()
        run.send(signal.SIGKILL)
        os.kill(manager, signal.SIGKILL)
        run.process.wait()
        with batch.resume() as again:  # at once: what is left of the old run ends beside it
            again.wait().check(0)

    assert batch.check().interrupted <= batch.jobs


@pytest.mark.slow
def test_nothing_starts_while_a_process_of_the_killed_run_lives(tmp_path: Path) -> None:
    """A browser leads a session of its own, and outlives whoever might have ended it."""
    batch = Batch(tmp_path, "A,browser_once", "B,browser_once", *numbered(4), words=("--timeout", "60"))
    with batch.start() as run:
        wait_until(lambda: len(browsers(batch)) == 2, "the browsers are there")
        batch.kill_everything(run, but=browsers(batch))
        assert [state(pid) != "" for pid in browsers(batch)] == [True, True]

        with batch.resume() as again:
            wait_until(lambda: batch.line_count() > 2, "it has begun a PO")
            assert all(state(pid) in ("", "Z") for pid in browsers(batch))
            again.wait().check(0)

    batch.check()


def browsers(batch: Batch) -> list[int]:
    path = batch.folder / "browsers"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


@pytest.mark.once
def test_the_folder_of_a_killed_runs_socket_elsewhere_goes_when_the_run_goes_on(tmp_path: Path) -> None:
    batch = Batch(tmp_path / ("x" * 120), "A,wait", "B,")
    with batch.start() as run:
        batch.wait_begun(2)
        address = Path(batch.control()["address"])
        batch.kill_everything(run)
    assert address.exists() and not address.is_relative_to(tmp_path)
    (batch.folder / "go").touch()

    batch.finish()

    assert not address.parent.exists()
    batch.check()


@pytest.mark.once
def test_a_live_run_cannot_be_resumed_nor_started_again_in_its_directory(tmp_path: Path) -> None:
    batch = Batch(tmp_path, "A,wait", "B,")
    with batch.start() as run:
        batch.wait_begun(1)
        resumed = batch.poqueue("run", "--resume", "r").check(2)
        second = batch.poqueue(*batch.words).check(2)
        retried = batch.poqueue("retry", "r").check(2)
        (tmp_path / "go").touch()
        run.wait().check(0)

    assert f"is in use by pid {run.pid}" in resumed.err and f"is in use by pid {run.pid}" in retried.err
    assert "is not empty" in second.err
    batch.check()
    assert sorted(batch.begun()) == ["A", "B"]


@pytest.mark.once
def test_a_copy_of_a_live_runs_directory_does_it_no_harm_and_waits_for_its_end(tmp_path: Path) -> None:
    batch = Batch(tmp_path, "A,wait", "B,")
    with batch.start() as run:
        batch.wait_begun(2)
        manager = batch.manager_pid()
        shutil.copytree(batch.run_dir, tmp_path / "copy", ignore=shutil.ignore_patterns("*.sock"))
        resumed = batch.poqueue("run", "--resume", "copy").check(2)
        retried = batch.poqueue("retry", "copy").check(2)
        assert batch.manager_pid() == manager
        (tmp_path / "go").touch()
        ended = run.wait().check(0)

    assert all(f"is a copy of a run that pid {run.pid} is still at" in one.err for one in (resumed, retried))
    assert "lost" not in ended.err
    batch.check()
    assert sorted(batch.begun()) == ["A", "B"]
    batch.poqueue("run", "--resume", "copy").check(0)


@pytest.mark.once
def test_a_task_that_somebody_added_takes_no_pos_place_in_a_run_that_goes_on(tmp_path: Path) -> None:
    batch = Batch(tmp_path, *numbered(60))
    with batch.start(env=Fault(tmp_path, "supervisor.after_add", 1).env) as run:
        run.process.wait()
        wait_until(lambda: not run.left(), "nothing is left", 5.0)
    queue = TaskQueue(journal=batch.run_dir / "journal.sqlite", journal_must_exist=True)
    assert queue.get_queue_status()["total_tasks"] < 60
    queue.add_task(ProcessingTask("mine", {"po_number": "X", "do": ""}))
    queue.close_queue()

    batch.finish()

    assert outcomes(batch.run_dir) == {f"P{number}": "succeeded" for number in range(60)}
    assert set(batch.begun()) == {*outcomes(batch.run_dir), "X"}


@pytest.mark.slow
def test_a_process_that_has_got_the_managers_old_pid_is_not_killed(tmp_path: Path) -> None:
    batch = Batch(tmp_path, *numbered(40), seconds=0.01)
    with batch.start() as run:
        batch.wait_begun(6, run)
        batch.kill_everything(run)
    innocent = subprocess.Popen(["sleep", "600"])
    try:
        control = json.loads((batch.run_dir / "control.json").read_text())
        control |= {"manager_pid": innocent.pid, "pid": innocent.pid}
        (batch.run_dir / "control.json").write_text(json.dumps(control))
        batch.finish()
        assert innocent.poll() is None
    finally:
        innocent.kill()
        innocent.wait()
    batch.check()


@pytest.mark.slow
def test_a_supervisor_that_is_stopped_longer_than_the_time_limit_times_nothing_out(tmp_path: Path) -> None:
    batch = Batch(tmp_path, "A,wait", "B,wait", *numbered(10), words=("--timeout", "3"))
    with batch.start() as run:
        batch.wait_begun(2)
        run.send(signal.SIGSTOP)
        until = time.monotonic() + 4.0
        wait_until(lambda: time.monotonic() > until, "longer than the time limit")
        run.send(signal.SIGCONT)
        (tmp_path / "go").touch()
        ended = run.wait().check(0)

    batch.check()
    assert "killing" not in ended.err and len(batch.begun()) == 12


@contextlib.contextmanager
def journal_of_a_halted_run(folder: Path, pos: int, successes: int) -> Iterator[sqlite3.Connection]:
    """A run of so many POs that was halted after so many had succeeded; what is changed in its journal stays."""
    write_orders(folder / "orders.csv", *(f"P{number},ok" for number in range(pos)))
    words = ["run", "orders.csv", *BEHAVE, "-j", "1", "--run-dir", "r", "--halt", f"soon,success={successes}"]
    poqueue(*words, cwd=folder).check(4)
    with contextlib.closing(sqlite3.connect(folder / "r" / "journal.sqlite")) as journal, journal:
        yield journal


@pytest.mark.once
def test_a_damaged_payload_of_a_po_that_is_done_keeps_nobody_from_going_on(tmp_path: Path) -> None:
    with journal_of_a_halted_run(tmp_path, pos=20, successes=5) as journal:
        journal.execute("UPDATE tasks SET payload = CAST(CAST(payload AS TEXT) || '\"' AS BLOB) WHERE task_id = 't1'")

    poqueue("run", "--resume", "r", cwd=tmp_path).check(4)  # halted again after as many

    found = outcomes(tmp_path / "r")
    assert sorted(found.values()) == ["not run"] * 10 + ["succeeded"] * 10 and found["P0"] == "succeeded"
    tasks = json.loads((tmp_path / "r" / "report.json").read_text())["tasks"]
    assert ["cannot_be_opened" in task["po_data"] for task in tasks] == [True] + [False] * 19


def test_a_run_that_is_resumed_years_later_knows_all_that_was_done(tmp_path: Path) -> None:
    with journal_of_a_halted_run(tmp_path, pos=4, successes=3) as journal:
        journal.execute("UPDATE log SET at = at - 3 * 366 * 86400")

    poqueue("run", "--resume", "r", "--halt", "never", cwd=tmp_path).check(0)

    assert list(outcomes(tmp_path / "r").values()) == ["succeeded"] * 4


@pytest.mark.once
def test_a_result_that_cannot_be_opened_is_told_in_its_row_and_spoils_nothing_else(tmp_path: Path) -> None:
    with journal_of_a_halted_run(tmp_path, pos=4, successes=2) as journal:
        of_p0 = "rank = (SELECT rank FROM tasks WHERE task_id = 't1') AND result IS NOT NULL"
        assert journal.execute(f"UPDATE log SET result = CAST(result || '!' AS BLOB) WHERE {of_p0}").rowcount == 1
    write_orders(tmp_path / "orders.csv", *(f"P{number},ok" for number in range(5)))

    poqueue("run", "--resume", "r", "--accept-changes", "--halt", "never", cwd=tmp_path).check(0)

    rows = {row["po_number"]: row for row in read_csv(tmp_path / "r" / "results.csv")}
    assert {number: row["status"] for number, row in rows.items()} == {f"P{number}": "succeeded" for number in range(5)}
    assert "its result cannot be opened" in rows["P0"].pop("error")
    assert [row.get("error", "") for row in rows.values()] == [""] * 5
    tasks = json.loads((tmp_path / "r" / "report.json").read_text())["tasks"]
    assert [task["task_id"] for task in tasks if "cannot_be_opened" in task["po_data"]] == ["t1"]


def test_a_kill_while_the_processor_is_imported_leaves_no_file_behind(tmp_path: Path) -> None:
    (tmp_path / "slow_import.py").write_text("import pathlib, time\npathlib.Path('here').touch()\ntime.sleep(1000)\n")
    batch = Batch(tmp_path, *numbered(2), words=("-p", "slow_import:process", "--app-dir", str(tmp_path)))
    with batch.start() as run:
        wait_until((tmp_path / "here").exists, "it is being imported")
        batch.kill_group(run)
        wait_until(lambda: not run.left(), "nothing is left", 5.0)
