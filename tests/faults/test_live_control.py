"""Another terminal: looking at a live run, holding it, letting it go on, ending it, with more hands or fewer."""

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from poqueue import ProcessingTask
from poqueue.errors import PoqueueError
from tests.faults.batches import Batch
from tests.integration.console import MARK, ROOT, outcomes, pids_with, started, state, wait_until
from workers.run_control import reach

pytestmark = pytest.mark.usefixtures("nothing_left")


def numbered(count: int) -> list[str]:
    return [f"P{number}," for number in range(count)]


def status(batch: Batch) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(batch.poqueue("status", "r", "--json").check(0).out)
    return found


def view(batch: Batch) -> dict[str, Any]:
    """What `status` shows, asked for without another process; nothing while no manager answers."""
    nothing = {"workers": [], "phase": "", "jobs": 0, "running": 0}
    with contextlib.suppress(PoqueueError), contextlib.closing(reach(batch.run_dir)) as queue:
        return queue.get_view() or nothing
    return nothing


def begun_after(batch: Batch, moment: float) -> list[str]:
    return [line.po for line in batch.lines() if line.event == "begin" and line.at > moment]


def leased_at(batch: Batch, po_number: str) -> float:
    with contextlib.closing(reach(batch.run_dir)) as queue:
        task = queue.find_task(po_number)
    assert task is not None and task.assigned_at is not None
    return task.assigned_at


@pytest.mark.slow
def test_status_says_what_each_worker_does(tmp_path: Path) -> None:
    batch = Batch(tmp_path, "A,wait", "B,wait", "C,")
    with batch.start() as run:
        batch.wait_begun(2)
        wait_until(lambda: {"A", "B"} <= {w["po_number"] for w in view(batch)["workers"]}, "the view shows them")
        found = status(batch)
        shown = batch.poqueue("status", "r").check(0).out
        with started("status", "r", "--watch", cwd=tmp_path) as watch:
            wait_until(lambda: os.fstat(watch._out.fileno()).st_size > 0, "it shows something")
            (tmp_path / "go").touch()
            run.wait().check(0)
            watched = watch.wait().check(0)

    assert found["processing_tasks"] == 2 and found["pending_tasks"] == 1 and found["view"]["pid"] == run.pid
    assert {worker["state"] for worker in found["view"]["workers"]} == {"running"}
    assert "0 of 3 POs" in shown and " A " in shown
    assert "has ended" in watched.err
    batch.check()
    assert batch.poqueue("status", "r").check(2).err.endswith("is not running\n")


@pytest.mark.once
def test_a_killed_run_that_is_being_resumed_is_said_to_be_starting_while_it_has_no_queue_yet(tmp_path: Path) -> None:
    (tmp_path / "slow_import.py").write_text("import pathlib, time\npathlib.Path('here').touch()\ntime.sleep(60)\n")
    other = ("-p", "slow_import:process", "--app-dir", str(tmp_path), "--accept-changes")
    batch = Batch(tmp_path, "A,wait")
    with batch.start() as run:
        batch.wait_begun(1)
        batch.kill_group(run)

    with batch.resume(*other) as run:
        wait_until((tmp_path / "here").exists, "its processor is being imported")
        told = batch.poqueue("status", "r").check(2)
        run.send_group(signal.SIGINT)
        run.wait().check(130)
    (tmp_path / "go").touch()
    batch.finish()

    assert "is starting or ending: it reads its orders" in told.err
    batch.check()


@pytest.mark.once
def test_nothing_starts_from_the_moment_that_pause_returns(tmp_path: Path) -> None:
    batch = Batch(tmp_path, *numbered(300), seconds=0.03)
    with batch.start() as run:
        for part in (1, 2):
            batch.wait_begun(part * 50)
            batch.poqueue("pause", "r").check(0)
            paused, paused_at = time.monotonic(), time.time()
            wait_until(lambda: view(batch)["phase"] == "paused" and not view(batch)["running"], "nothing runs")
            count = batch.line_count()
            # on a busy machine a worker may begin a moment later what it was given before
            assert [po for po in begun_after(batch, paused) if leased_at(batch, po) > paused_at] == []
            wait_until(lambda: time.monotonic() > paused + 0.7, "a while")  # noqa: B023
            assert batch.line_count() == count < 600
            batch.poqueue("resume", "r").check(0)
        run.wait().check(0)

    batch.check()


@pytest.mark.once
def test_a_paused_run_that_is_killed_stays_paused_and_says_so(tmp_path: Path) -> None:
    batch = Batch(tmp_path, *numbered(100), seconds=0.1)
    with batch.start() as run:
        batch.wait_begun(5)
        batch.poqueue("pause", "r").check(0)
        batch.kill_everything(run)
    count = batch.line_count()
    with batch.resume() as run:
        wait_until(lambda: run.said("paused"), "it says that it is paused")
        wait_until(lambda: view(batch).get("phase") == "paused" and len(view(batch)["workers"]) == 2, "workers wait")
        assert batch.line_count() == count
        batch.poqueue("resume", "r").check(0)
        ended = run.wait().check(0)

    assert "poqueue resume" in ended.err
    batch.check()


@pytest.mark.slow
def test_drain_lets_running_pos_end_and_ends_the_run(tmp_path: Path) -> None:
    batch = Batch(tmp_path, "A,wait", "B,wait", "C,", "D,")
    with batch.start() as run:
        batch.wait_begun(2)
        batch.poqueue("drain", "r").check(0)
        wait_until(lambda: view(batch)["phase"] == "draining", "it drains")
        (tmp_path / "go").touch()
        run.wait().check(130)
    assert batch.statuses() == {"A": "succeeded", "B": "succeeded", "C": "not run", "D": "not run"}
    batch.finish()
    batch.check()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stop", "Ctrl-C"])
def test_the_first_stop_after_a_drain_lets_running_pos_end_and_the_second_gives_them_back(
    how: str, tmp_path: Path
) -> None:
    batch = Batch(tmp_path, "A,wait", "B,wait", "C,")

    def stop() -> None:
        if how == "stop":
            batch.poqueue("stop", "r").check(0)
        else:
            run.process.send_signal(signal.SIGINT)

    with batch.start() as run:
        batch.wait_begun(2)
        batch.poqueue("drain", "r").check(0)
        wait_until(lambda: view(batch)["phase"] == "draining", "it drains")
        stop()
        wait_until(lambda: run.said("running ones have 30 s"), "they may end within the grace time")
        assert view(batch)["phase"] == "draining"
        stop()
        ended = run.wait().check(130)

    assert "running POs are stopped and given back" in ended.err
    assert set(batch.statuses().values()) == {"not run"}
    (tmp_path / "go").touch()
    batch.finish()
    assert batch.check().interrupted == 2


@pytest.mark.slow
def test_stop_twice_gives_running_pos_back(tmp_path: Path) -> None:
    batch = Batch(tmp_path, "A,wait", "B,wait", "C,")
    with batch.start() as run:
        batch.wait_begun(2)
        batch.poqueue("stop", "r").check(0)
        wait_until(lambda: view(batch)["phase"] == "draining", "it drains")
        batch.poqueue("stop", "r").check(0)
        run.wait().check(130)
    assert set(batch.statuses().values()) == {"not run"}
    (tmp_path / "go").touch()
    batch.finish()
    assert batch.check().interrupted == 2


@pytest.mark.slow
def test_scale_up_and_down(tmp_path: Path) -> None:
    batch = Batch(tmp_path, *numbered(400), jobs=1, seconds=0.02)

    def at_work() -> int:
        return sum(worker["state"] in ("running", "idle") for worker in view(batch)["workers"])

    with batch.start() as run:
        batch.wait_begun(3)
        batch.poqueue("scale", "3", "r").check(0)
        wait_until(lambda: at_work() == 3, "three work")
        batch.poqueue("scale", "1", "r").check(0)
        wait_until(lambda: len(view(batch)["workers"]) == 1, "one is left")
        assert status(batch)["view"]["jobs"] == 1
        run.wait().check(0)

    batch.check()
    assert len(batch.begun()) == 400 and len({line.pid for line in batch.lines()}) == 3
    assert batch.poqueue("scale", "0", "r").code == 2


@pytest.mark.once
def test_workers_that_are_one_too_many_end_though_the_manager_is_replaced(tmp_path: Path) -> None:
    """The new manager's journal does not know who was told to end."""
    batch = Batch(tmp_path, "A,wait", "B,wait", *numbered(20), seconds=0.05)
    with batch.start() as run:
        batch.wait_begun(2)
        batch.poqueue("scale", "1", "r").check(0)
        wait_until(lambda: view(batch)["jobs"] == 1, "it is told")
        old = batch.manager_pid()
        os.kill(old, 9)
        wait_until(lambda: batch.manager_pid() != old, "the manager is replaced")
        (tmp_path / "go").touch()
        run.wait().check(0)
    batch.check()
    assert len({line.pid for line in batch.lines() if line.po.startswith("P")}) == 1


@pytest.mark.once
def test_cancelling_a_po_that_waits_and_one_that_runs(tmp_path: Path) -> None:
    batch = Batch(tmp_path, "A,wait", "B,wait", "C,", "D,", words=("--retries", "3"))
    with batch.start() as run:
        batch.wait_begun(2)
        assert "cancelled" in batch.poqueue("cancel", "C", "r").check(0).out
        assert "killed" in batch.poqueue("cancel", "B", "r").check(0).out
        assert batch.poqueue("cancel", "NONE", "r").code == 2
        wait_until(lambda: reach_status(batch)["failed_tasks"] == 2, "both have ended")
        (tmp_path / "go").touch()
        run.wait().check(1)
    assert batch.statuses() == {"A": "succeeded", "B": "failed", "C": "failed", "D": "succeeded"}
    assert batch.begun().count("B") == 1 and "C" not in batch.begun()
    assert all("Cancelled" in row["error"] for row in batch.results() if row["status"] == "failed")
    batch.check()
    batch.poqueue("retry", "r").check(0)
    batch.check()


@pytest.mark.slow
def test_who_watches_a_run_goes_on_when_its_manager_is_replaced(tmp_path: Path) -> None:
    batch = Batch(tmp_path, "A,wait", "B,")
    with batch.start() as run:
        batch.wait_begun(2)
        with started("status", "r", "--watch", "--json", cwd=tmp_path) as watch:
            wait_until(lambda: os.fstat(watch._out.fileno()).st_size > 0, "it shows something")
            old = batch.manager_pid()
            os.kill(old, signal.SIGKILL)
            wait_until(lambda: batch.manager_pid() != old, "it is replaced")
            before = os.fstat(watch._out.fileno()).st_size
            wait_until(lambda: os.fstat(watch._out.fileno()).st_size > before, "it shows something again")
            (tmp_path / "go").touch()
            run.wait().check(0)
            watched = watch.wait().check(0)

    assert watched.err == f"{batch.run_dir} has ended\n"


@pytest.mark.slow
def test_an_order_that_comes_while_a_lost_manager_is_replaced_is_carried_out(tmp_path: Path) -> None:
    batch = Batch(tmp_path, "A,wait", "B,wait", "C,")
    slowly = "supervisor.before_replace:1:sleep=4,supervisor.after_replace:1:sleep=2"
    with batch.start(env={"POQUEUE_TESTING": "1", "POQUEUE_FAILPOINT": slowly}) as run:
        batch.wait_begun(2)
        os.kill(batch.manager_pid(), signal.SIGKILL)

        batch.poqueue("drain", "r").check(0)
        (tmp_path / "go").touch()
        run.wait().check(130)

    assert batch.begun() == ["A", "B"]
    batch.finish()
    batch.check()


def reach_status(batch: Batch) -> dict[str, Any]:
    queue = reach(batch.run_dir)
    try:
        return queue.get_queue_status()
    finally:
        queue.close()


@pytest.mark.once
@pytest.mark.parametrize("task_id", ["", "t3", "t-1", "x1"])
def test_a_task_that_a_holder_of_the_key_adds_is_in_the_report_and_disturbs_no_accounts(
    task_id: str, tmp_path: Path
) -> None:
    batch = Batch(tmp_path, "A,wait", "B,")
    with batch.start() as run:
        batch.wait_begun(2)
        with contextlib.closing(reach(batch.run_dir)) as queue:
            queue.add_task(ProcessingTask(task_id, {"po_number": "C", "do": "", "rows": [1, 2]}))
        (tmp_path / "go").touch()
        ended = run.wait().check(0)

    assert "2 input rows = 2 succeeded" in ended.err
    report = json.loads((batch.run_dir / "report.json").read_text())
    assert {task["po_number"]: task["status"] for task in report["tasks"]} == dict.fromkeys("ABC", "completed")
    assert "C" not in {line.split(",")[1] for line in (batch.run_dir / "results.csv").read_text().splitlines()}
    told = json.loads(batch.poqueue("report", "r", "--format", "json").check(0).out)
    assert {order["po_number"]: order["rows"] for order in told["orders"]} == dict.fromkeys("ABC", 1)


@pytest.mark.once
def test_a_po_that_a_holder_of_the_key_clears_is_not_run_and_no_success(tmp_path: Path) -> None:
    batch = Batch(tmp_path, "A,wait", "B,", jobs=1)
    with batch.start() as run:
        batch.wait_begun(1)
        with contextlib.closing(reach(batch.run_dir)) as queue:
            wait_until(lambda: queue.get_queue_status()["total_tasks"] == 2, "both are added")
            queue.clear_queue()
        (tmp_path / "go").touch()
        ended = run.wait().check(70)

    assert outcomes(batch.run_dir) == {"A": "succeeded", "B": "not run"}
    assert "go on with the rest: poqueue run --resume r" in ended.err
    batch.finish()
    assert outcomes(batch.run_dir) == {"A": "succeeded", "B": "succeeded"}
    assert batch.begun().count("A") == 1


# ── the key ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.once
def test_the_key_stands_in_the_control_file_and_nowhere_else(tmp_path: Path) -> None:
    batch = Batch(tmp_path, "A,wait", "B,wait")
    with batch.start("-vv") as run:
        batch.wait_begun(2)
        control = batch.run_dir / "control.json"
        key = batch.control()["key"]
        assert stat.S_IMODE(control.stat().st_mode) == 0o600
        assert len(bytes.fromhex(key)) == 32
        secrets = (key.encode(), bytes.fromhex(key))
        for pid in pids_with(MARK, run.mark):
            for name in ("environ", "cmdline"):
                assert not any(secret in Path(f"/proc/{pid}/{name}").read_bytes() for secret in secrets)
        batch.poqueue("status", "r").check(0)
        shown = batch.poqueue("status", "r", "--json").check(0).out
        assert key not in shown
        holders = {path for path in batch.run_dir.rglob("*") if path.is_file() and holds(path, secrets)}
        assert holders == {control}
        (tmp_path / "go").touch()
        ended = run.wait().check(0)

    assert key not in ended.err + ended.out
    assert not any(holds(path, secrets) for path in batch.run_dir.rglob("*") if path.is_file())


def holds(path: Path, secrets: tuple[bytes, ...]) -> bool:
    data = path.read_bytes()
    return any(secret in data for secret in secrets)


@pytest.mark.slow
def test_a_control_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    batch = Batch(tmp_path, "A,wait")
    with batch.start() as run:
        batch.wait_begun(1)
        (batch.run_dir / "control.json").chmod(0o644)
        assert "mode 0600" in batch.poqueue("status", "r").check(2).err
        (tmp_path / "go").touch()
        run.wait().check(0)


STRANGER = """
import json, os, sys
from poqueue.client import connect
from poqueue.errors import ManagerLostError
control = json.load(open(sys.argv[1]))
os.setuid(65534)
try:
    connect(control["address"], bytes.fromhex(control["key"])).get_queue_status()
except ManagerLostError as error:
    print("refused:", error)
else:
    print("let in")
"""


@pytest.mark.once
def test_another_user_is_refused_even_with_the_key(tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    batch = Batch(tmp_path, "A,wait")
    with batch.start() as run:
        batch.wait_begun(1)
        address = Path(batch.control()["address"])
        opened = [folder for folder in address.parents if folder.stat().st_mode & 0o001 == 0]
        for folder in opened:
            folder.chmod(folder.stat().st_mode | 0o001)
        address.chmod(0o666)
        try:
            said = subprocess.run(
                [sys.executable, "-c", STRANGER, str(batch.run_dir / "control.json")],
                cwd=ROOT, capture_output=True, text=True, timeout=30, check=True,
            )  # fmt: skip
        finally:
            for folder in opened:
                folder.chmod(folder.stat().st_mode & ~0o001)
        (tmp_path / "go").touch()
        run.wait().check(0)
    assert said.stdout.startswith("refused: ")
    assert state(run.pid) == ""
