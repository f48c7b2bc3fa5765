"""When a run is to stop early, and when the machine is short of something: memory, disk, or time between two starts."""

import contextlib
import itertools
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from poqueue.journal import JOURNAL_NAME
from poqueue.records import Kind
from tests.faults.batches import Batch
from tests.faults.history import CLOCKS_S
from tests.faults.test_failpoints import Fault
from tests.faults.test_live_control import reach_status, view
from tests.integration.console import outcomes, poqueue, running, started, tree, wait_until, write_orders
from workers.guards import MachineGuard

pytestmark = pytest.mark.usefixtures("nothing_left")


def numbered(count: int) -> list[str]:
    return [f"P{number}," for number in range(count)]


# ── halt ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

FAILING = [row for n in range(30) for row in (f"P{n},", f"F{n},fail")]
QUICK = ("--retries", "0", "--start-method", "fork")


def leased_after(batch: Batch, kinds: tuple[Kind, ...], nth: int) -> int:
    """How many leases the journal has after the nth line of these kinds."""
    with contextlib.closing(sqlite3.connect(batch.run_dir / JOURNAL_NAME)) as db:
        log = [Kind(kind) for (kind,) in db.execute("SELECT kind FROM log ORDER BY seq")]
    places = [place for place, kind in enumerate(log) if kind in kinds]
    return log[places[nth - 1] :].count(Kind.LEASED)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "nth", "kinds"),
    [
        ("soon,fail=3", 3, (Kind.FAILED,)),
        pytest.param("now,fail=2", 2, (Kind.FAILED,), marks=pytest.mark.slow),
        pytest.param("soon,fail=5%", 3, (Kind.FAILED,), marks=pytest.mark.slow),
        pytest.param("soon,success=4", 4, (Kind.COMPLETED,), marks=pytest.mark.slow),
        ("soon,done=5", 5, (Kind.FAILED, Kind.COMPLETED)),
    ],
)
def test_after_the_last_end_that_is_wanted_no_po_begins(
    rule: str, nth: int, kinds: tuple[Kind, ...], tmp_path: Path
) -> None:
    batch = Batch(tmp_path, *FAILING, words=(*QUICK, "--halt", rule))
    with batch.start() as run:
        ended = run.wait().check(4)

    assert "halted after" in ended.err
    assert leased_after(batch, kinds, nth) == 0
    assert len(batch.begun()) <= 2 * nth + batch.jobs + 1
    batch.finish("--halt", "never", code=1)
    batch.check()


@pytest.mark.slow
def test_a_halt_at_once_stops_what_runs_and_gives_it_back(tmp_path: Path) -> None:
    batch = Batch(tmp_path, "A,wait", "F,fail", "B,", words=(*QUICK, "--halt", "now,fail=1"))
    with batch.start() as run:
        run.wait().check(4)
    assert batch.statuses() == {"A": "not run", "F": "failed", "B": "not run"}
    (tmp_path / "go").touch()
    batch.finish("--halt", "never", code=1)
    assert batch.check().interrupted == 1


def check_halt_with_a_lost_manager(folder: Path, nth: int) -> bool:
    batch = Batch(folder, *FAILING, words=(*QUICK, "--halt", "soon,fail=3"))
    fault = Fault(folder, "journal.after_commit", nth)
    with batch.start(env=fault.env) as run:
        run.wait().check(4)
    assert leased_after(batch, (Kind.FAILED,), 3) == 0, f"nth {nth}"
    return fault.has_struck


@pytest.mark.parametrize("nth", [pytest.param(8, marks=pytest.mark.slow), 10])
def test_a_halt_counts_on_when_the_manager_is_lost(nth: int, tmp_path: Path) -> None:
    assert check_halt_with_a_lost_manager(tmp_path, nth)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_halt_counts_on_whenever_the_manager_is_lost(tmp_path: Path) -> None:
    nth = 1
    while check_halt_with_a_lost_manager(tmp_path / str(nth), nth):
        nth += 1
    assert nth > 8


# ── the machine is short of something ────────────────────────────────────────────────────────────────────────────────

POOR = """
import functools, pathlib, sys
import workers.batch, workers.guards
enough = pathlib.Path("enough")
found = lambda *_: 10**15 if enough.exists() else 10**9
workers.batch.MachineGuard = functools.partial(workers.guards.MachineGuard, memory_available=found, disk_free=found)
if __name__ == "__main__":
    from workers.__main__ import main
    sys.exit(main())
"""


@pytest.mark.once
@pytest.mark.parametrize(
    ("option", "what"),
    [("--memfree", "memory available"), pytest.param("--diskfree", "disk free", marks=pytest.mark.slow)],
)
def test_new_pos_wait_while_the_machine_is_short_of(option: str, what: str, tmp_path: Path) -> None:
    batch = Batch(tmp_path, *numbered(100), seconds=0.02, words=(option, "100G"))
    (tmp_path / "poor.py").write_text(POOR)
    with running([sys.executable, "poor.py", *batch.words], cwd=tmp_path) as run:
        wait_until(lambda: run.said(f"new POs wait: {what} is below"), "it says why it waits")
        wait_until(lambda: not reach_status(batch)["processing_tasks"], "what ran has ended")
        wait_until(lambda: option in str(view(batch).get("note")), "others see why")
        count = batch.line_count()
        assert reach_status(batch)["reason"]
        (tmp_path / "enough").touch()
        ended = run.wait().check(0)

    assert count < 200 and "there is enough again" in ended.err
    batch.check()


def test_a_guard_lets_go_only_when_there_is_clearly_enough(tmp_path: Path) -> None:
    free = [100]
    guard = MachineGuard(tmp_path, memory_bytes=100, disk_bytes=0, memory_available=lambda: free[0])
    said = []
    for amount in (100, 99, 100, 109, 111, 100, 99):
        free[0] = amount
        said.append(bool(guard.reason()))
    assert said == [False, True, True, True, False, False, True]


@pytest.mark.slow
def test_the_starts_of_two_pos_are_a_delay_apart(tmp_path: Path) -> None:
    batch = Batch(tmp_path, *numbered(16), jobs=2, words=("--delay", "0.1"))
    with batch.start() as run:
        run.wait().check(0)
    batch.check()
    with contextlib.closing(sqlite3.connect(batch.run_dir / JOURNAL_NAME)) as db:
        leases = [at for (at,) in db.execute("SELECT at FROM log WHERE kind=? ORDER BY seq", (Kind.LEASED,))]
    begins = sorted(line.at for line in batch.lines() if line.event == "begin")
    assert all(later - earlier >= 0.1 - 0.002 for earlier, later in itertools.pairwise(leases))
    assert begins[-1] - begins[0] >= 15 * 0.1 - CLOCKS_S


# ── no room left on the disk ─────────────────────────────────────────────────────────────────────────────────────────


UNGUARDED = ("--diskfree", "0")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder with 3 MB of room."""
    folder = tmp_path / "small" / "r"
    folder.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m,mode=0700", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Take all the room that there is."""
    ballast = folder / "ballast"
    with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
        for size in (65536, 4096, 512, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))
    return ballast


@pytest.mark.once
@pytest.mark.parametrize("room", [0, 40], ids=["for nothing", "for all but the journal"])
def test_a_run_that_finds_no_room_to_begin_leaves_nothing_behind_and_may_begin_again(
    room: int, small_disk: Path
) -> None:
    folder = small_disk / "new" / "run"
    batch = Batch(small_disk.parent, *numbered(3), words=("--run-dir", str(folder), *UNGUARDED))
    ballast = fill(small_disk)
    os.truncate(ballast, ballast.stat().st_size - room * 1024)

    with batch.start() as run:
        refused = run.wait().check(2)

    assert f"the run directory '{folder}' cannot be made: " in refused.err
    assert ("the journal cannot be opened" if room else "No space left on device") in refused.err
    assert tree(small_disk) == {"ballast"}
    ballast.unlink()
    with batch.start() as run:
        run.wait().check(0)


@pytest.mark.once
@pytest.mark.parametrize("room", [0, 12], ids=["for nothing", "for the journal"])
def test_a_run_that_finds_no_room_to_go_on_says_where_and_may_go_on_later(room: int, small_disk: Path) -> None:
    batch = Batch(small_disk.parent, *numbered(20), words=(*UNGUARDED, "--halt", "now,success=3"))
    batch.keeps_dir = True
    with batch.start() as run:
        run.wait().check(4)
    ballast = fill(small_disk)
    os.truncate(ballast, ballast.stat().st_size // 4096 * 4096 - room * 1024)

    with batch.resume() as run:
        refused = run.wait().check(2)

    assert str(small_disk) in refused.err
    ballast.unlink()
    batch.finish("--halt", "never")
    batch.check()


@pytest.mark.once
@pytest.mark.parametrize("name", ["recovery.before_take_up", "recovery.after_record"])
def test_what_a_run_cannot_write_before_it_goes_on_is_told_with_its_place(name: str, tmp_path: Path) -> None:
    batch = Batch(tmp_path, *numbered(20), words=("--halt", "now,success=3"))
    with batch.start() as run:
        run.wait().check(4)

    with batch.resume(env={"POQUEUE_TESTING": "1", "POQUEUE_FAILPOINT": f"{name}:1:raise=28"}) as run:
        refused = run.wait().check(2)

    assert f"the run '{batch.run_dir}' cannot go on: No space left on device" in refused.err
    batch.finish("--halt", "never")
    batch.check()


@pytest.mark.once
@pytest.mark.parametrize("is_there", [False, True])
def test_what_was_made_goes_when_a_run_cannot_begin(is_there: bool, tmp_path: Path) -> None:
    batch = Batch(tmp_path / "home", *numbered(3))
    if is_there:
        batch.run_dir.mkdir()
    before = tree(batch.folder)

    with batch.start(env={"POQUEUE_TESTING": "1", "POQUEUE_FAILPOINT": "batch.after_record:1:raise=28"}) as run:
        run.wait().check(2)

    assert tree(batch.folder) == before


@pytest.mark.once
def test_a_run_stands_still_while_its_disk_is_full_and_goes_on_afterwards(small_disk: Path) -> None:
    batch = Batch(
        small_disk.parent, *numbered(300), "F,fail_once", seconds=0.01, words=(*UNGUARDED, "--retry-delay", "0.1")
    )
    with batch.start() as run:
        batch.wait_begun(20, run)
        ballast = fill(small_disk)
        wait_until(lambda: run.said("the queue stands still"), "it says so")
        wait_until(lambda: is_still(batch), "nothing moves")
        assert run.process.poll() is None
        ballast.unlink()
        ended = run.wait().check(0)

    line = next(line for line in ended.err.splitlines() if "the queue stands still" in line)
    assert str(small_disk / JOURNAL_NAME) in line and "bytes free" in line
    assert "the queue goes on" in ended.err
    batch.check()


@pytest.mark.once
def test_workers_that_die_while_the_disk_is_full_are_replaced_when_there_is_room(small_disk: Path) -> None:
    """There is room for the first of a worker's files, and for no other: that is no fault of the worker's."""
    batch = Batch(small_disk.parent, *numbered(300), seconds=0.01, words=UNGUARDED)
    with batch.start() as run:
        batch.wait_begun(20, run)
        ballast = fill(small_disk)
        wait_until(lambda: run.said("the queue stands still"), "it says so")
        for pid in {line.pid for line in batch.lines()}:
            os.truncate(ballast, ballast.stat().st_size - 4096)
            os.kill(pid, signal.SIGKILL)
        wait_until(
            lambda: run.said("no worker process can be started", 4) or run.process.poll() is not None,
            "it has tried often",
        )
        ballast.unlink()
        run.wait().check(0)
    batch.check()


@pytest.mark.slow
def test_a_manager_that_is_lost_while_the_disk_is_full(small_disk: Path) -> None:
    """It cannot be replaced before there is room; whatever becomes of the run, nothing is lost."""
    batch = Batch(small_disk.parent, *numbered(300), seconds=0.01, words=UNGUARDED)
    with batch.start() as run:
        batch.wait_begun(20, run)
        ballast = fill(small_disk)
        wait_until(lambda: run.said("the queue stands still"), "it says so")
        os.kill(batch.manager_pid(), 9)
        wait_until(lambda: run.said("is lost"), "the manager's end is noticed")
        ballast.unlink()
        ended = run.wait()
        ended.check_quiet()
    if ended.code:
        batch.finish()
    batch.check()


@pytest.mark.slow
def test_a_run_that_is_killed_while_its_disk_is_full_is_resumed(small_disk: Path) -> None:
    batch = Batch(small_disk.parent, *numbered(200), seconds=0.01, words=UNGUARDED)
    with batch.start() as run:
        batch.wait_begun(20, run)
        ballast = fill(small_disk)
        wait_until(lambda: run.said("the queue stands still"), "it says so")
        batch.kill_everything(run)
    with batch.resume() as run:
        run.wait().check_quiet()
    ballast.unlink()
    batch.finish()
    batch.check()


def is_still(batch: Batch) -> bool:
    """Two looks, half a second apart by the queue's own clock, find the same."""
    before, until = batch.line_count(), time.monotonic() + 0.6
    wait_until(lambda: time.monotonic() > until, "a while")
    return batch.line_count() == before


@pytest.mark.slow
def test_the_report_is_whole_or_not_there(small_disk: Path) -> None:
    """The disk is full when the results are to be written: the run says so, and a resume writes them."""
    batch = Batch(small_disk.parent, *numbered(40), words=UNGUARDED)
    fault = Fault(small_disk.parent, "batch.before_finish", 1, "raise=28")
    with batch.start(env=fault.env) as run:
        ended = run.wait().check(70)
    assert "No space left on device" in ended.err
    batch.finish()
    batch.check()
    assert json.loads((batch.run_dir / "report.json").read_text())["accounts"]["succeeded"] == 40


@pytest.mark.once
def test_an_interrupted_run_that_cannot_write_its_results_tells_its_accounts_and_how_to_go_on(tmp_path: Path) -> None:
    batch = Batch(tmp_path, "A,wait", "B,", "C,", jobs=1)
    fault = Fault(tmp_path, "results.before_replace", 1, "raise=28")
    with batch.start(env=fault.env) as run:
        batch.wait_begun(1)
        run.send(signal.SIGINT)
        wait_until(lambda: run.said("a second one stops them"), "the first Ctrl-C was heard")
        run.send(signal.SIGINT)
        ended = run.wait().check(130)

    assert fault.has_struck
    assert "cannot be written: No space left on device" in ended.err
    assert "3 input rows = 0 succeeded + 0 failed + 0 duplicate + 0 invalid + 3 not run" in ended.err
    assert "go on with the rest: poqueue run --resume r" in ended.err
    assert not (batch.run_dir / "not_run.csv").exists()  # whole, or not there
    (tmp_path / "go").touch()
    batch.finish()
    batch.check()


@pytest.mark.once
def test_orders_that_could_not_be_added_are_listed_and_a_resume_runs_them(tmp_path: Path) -> None:
    """The disk is full from the second lot on, and somebody gives up."""
    orders = write_orders(tmp_path / "orders.csv", *numbered(300))
    full = ",".join(f"journal.write:{nth}:raise=28" for nth in range(3, 2000))  # the first write says "opened"
    words = (
        "run",
        str(orders),
        "-p",
        "tests.faults.witness:process",
        "--option",
        f"history={tmp_path / 'history'}",
        "-q",
    )
    with started(
        *words, "--run-dir", "r", cwd=tmp_path, env={"POQUEUE_TESTING": "1", "POQUEUE_FAILPOINT": full}
    ) as run:
        wait_until(lambda: run.said("wait to be added"), "a lot is refused")
        run.send(signal.SIGINT)
        ended = run.wait()

    assert ended.code == 130
    assert sorted(outcomes(tmp_path / "r").items()) == sorted((f"P{number}", "not run") for number in range(300))

    poqueue("run", "--resume", "r", "-q", cwd=tmp_path).check(0)
    assert set(outcomes(tmp_path / "r").values()) == {"succeeded"} and len(outcomes(tmp_path / "r")) == 300
