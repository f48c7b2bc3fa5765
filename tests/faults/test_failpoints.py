"""kill -9 of each process at each named point: at the first time it gets there, the second, the third, until it gets there no
more (the loop of SQLite's own tests). Whatever is killed where, every PO ends once, and nothing is left behind.

    worker      the run itself goes on, with another worker
    manager     the run itself goes on, with a replacement
    supervisor  the run is resumed
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.batches import Batch
from tests.integration.console import Ended, Running

pytestmark = pytest.mark.usefixtures("nothing_left")

WORKER = ("worker.before_exchange", "worker.after_exchange", "worker.begun", "worker.processed", "worker.report_kept")
MANAGER = ("service.before_answer", "journal.write", "journal.before_commit", "journal.after_commit")
SUPERVISOR = (
    "batch.after_record", "batch.after_start_queue", "supervisor.after_add", "batch.before_finish", "batch.before_report",
    "results.before_replace", "reaper.before_settle", "reaper.before_release",
)  # fmt: skip
RESUMING = (
    "recovery.before_take_up", "recovery.before_remove", "recovery.after_record", "batch.after_start_queue",
    "batch.before_finish", "results.before_replace",
)  # fmt: skip
ROWS = ("A,fail_once", "B,hang_once", "C,die_once", "D,", "E,", "F,fail", "G,", "H,")
WORDS = ("--retries", "2", "--retry-delay", "0.05", "--timeout", "0.6", "--grace", "0.2", "--start-method", "fork")
FAILED = 1
MAX_HITS = 1000


def nths() -> Iterator[int]:
    """1, 2, 4, 7, 11 ...: ever fewer, for the gate's sake; with POQUEUE_TEST_EVERY_HIT in the environment each one."""
    nth = 1
    while nth < MAX_HITS:
        yield nth
        nth += 1 if os.environ.get("POQUEUE_TEST_EVERY_HIT") else 1 + nth // 2


class Fault:
    """A failpoint that strikes once, in the process that gets there first for the nth time."""

    def __init__(self, folder: Path, name: str, nth: int, action: str = "kill") -> None:
        self._once = folder / "once"
        self.env = {
            "POQUEUE_TESTING": "1",
            "POQUEUE_FAILPOINT": f"{name}:{nth}:{action}",
            "POQUEUE_FAILPOINT_ONCE": str(self._once),
        }

    @property
    def has_struck(self) -> bool:
        return self._once.exists()


def batch_in(folder: Path, name: str, nth: int) -> tuple[Batch, Fault]:
    folder = folder / f"{name}.{nth}"
    return Batch(folder, *ROWS, words=WORDS), Fault(folder, name, nth)


def goes_on(folder: Path, name: str, nth: int) -> bool:
    """One round of a fault that the run itself survives; False if it was not reached."""
    batch, fault = batch_in(folder, name, nth)
    with batch.start(env=fault.env) as run:
        ended = run.wait()
    expect(ended, f"{name}:{nth}")
    verify(batch, name, nth)
    return fault.has_struck


def is_resumed(folder: Path, name: str, nth: int) -> bool:
    """One round of a fault that ends the supervisor."""
    batch, fault = batch_in(folder, name, nth)
    with batch.start(env=fault.env) as run:
        run.process.wait(60)
        batch.kills += 1
        if fault.has_struck:
            finish(batch, name, nth)
        wait_for_the_rest(run)
    verify(batch, name, nth)
    return fault.has_struck


def is_resumed_again(folder: Path, name: str, nth: int, *, survives: bool) -> bool:
    """One round of a fault in a run that is being resumed after a kill."""
    batch, fault = batch_in(folder, f"resumed.{name}", nth)
    fault = Fault(batch.folder, name, nth)
    with batch.start() as run:
        batch.wait_begun(5, run)
        batch.kill_group(run)
        with batch.resume(env=fault.env) as again:
            ended = again.wait()
            if survives:
                expect(ended, f"{name}:{nth}")
            elif fault.has_struck:
                finish(batch, name, nth)
        wait_for_the_rest(run)
    verify(batch, name, nth)
    return fault.has_struck


def finish(batch: Batch, name: str, nth: int) -> None:
    with batch.resume() as again:
        ended = again.wait()
    expect(ended, f"{name}:{nth}, resumed")


def expect(ended: Ended, what: str) -> None:
    assert ended.code == FAILED and "Traceback" not in ended.err, f"{what}: exit code {ended.code}\n{ended.err}"


def wait_for_the_rest(run: Running) -> None:
    """Of a run whose supervisor has ended."""
    run.wait()


def verify(batch: Batch, name: str, nth: int) -> None:
    try:
        batch.check()
    except AssertionError as error:
        raise AssertionError(f"{name}:{nth}: {error}") from None
    assert batch.statuses() == {row[0]: "failed" if row == "F,fail" else "succeeded" for row in ROWS}


def until_not_reached(once: object, *, at_least: int = 1) -> None:
    count = 0
    for nth in nths():
        if not once(nth):  # type: ignore[operator]
            break
        count += 1
    assert count >= at_least, "the point was never reached"
    print(f"{count} rounds, to hit {nth}")


# ── a few, always ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "nth"), [("worker.report_kept", 2), pytest.param("worker.after_exchange", 2, marks=pytest.mark.slow)]
)
def test_a_worker_killed_there_is_replaced(name: str, nth: int, tmp_path: Path) -> None:
    assert goes_on(tmp_path, name, nth)


@pytest.mark.parametrize(
    ("name", "nth"), [("service.before_answer", 9), pytest.param("journal.after_commit", 4, marks=pytest.mark.slow)]
)
def test_a_manager_killed_there_is_replaced(name: str, nth: int, tmp_path: Path) -> None:
    assert goes_on(tmp_path, name, nth)


@pytest.mark.parametrize(
    ("name", "nth"), [pytest.param("supervisor.after_add", 1, marks=pytest.mark.slow), ("results.before_replace", 2)]
)
def test_a_run_killed_there_is_resumed(name: str, nth: int, tmp_path: Path) -> None:
    assert is_resumed(tmp_path, name, nth)


def test_a_manager_killed_while_a_run_is_being_resumed_is_replaced(tmp_path: Path) -> None:
    """What has ended was told before there were results to be written."""
    assert is_resumed_again(tmp_path, "service.before_answer", 3, survives=True)


def test_a_run_killed_while_it_is_being_resumed_is_resumed(tmp_path: Path) -> None:
    assert is_resumed_again(tmp_path, "recovery.before_remove", 1, survives=False)


# ── all of them ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", WORKER)
def test_a_worker_killed_at_every_hit_of(name: str, tmp_path: Path) -> None:
    until_not_reached(lambda nth: goes_on(tmp_path, name, nth))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", MANAGER)
def test_a_manager_killed_at_every_hit_of(name: str, tmp_path: Path) -> None:
    until_not_reached(lambda nth: goes_on(tmp_path, name, nth), at_least=3)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", SUPERVISOR)
def test_a_supervisor_killed_at_every_hit_of(name: str, tmp_path: Path) -> None:
    until_not_reached(lambda nth: is_resumed(tmp_path, name, nth))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", RESUMING)
def test_a_resumed_run_killed_at_every_hit_of(name: str, tmp_path: Path) -> None:
    until_not_reached(lambda nth: is_resumed_again(tmp_path, name, nth, survives=False))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", MANAGER)
def test_a_manager_killed_at_every_hit_of_a_resumed_run(name: str, tmp_path: Path) -> None:
    until_not_reached(lambda nth: is_resumed_again(tmp_path, name, nth, survives=True), at_least=2)
