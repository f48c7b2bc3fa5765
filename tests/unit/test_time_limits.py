"""What workers are held to, on a clock that the test moves: who is killed, and who has only been unlucky."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from poqueue import ProcessingTask, TaskResult
from poqueue.payload import freeze_plain_result
from poqueue.task import Report
from tests.unit.stand_in import Keeper, StandIn
from workers import process_control
from workers.time_limits import BOOT_TIMEOUT_S, IDLE_LOOK_S, MEMORY_CHECK_S, TimeLimits
from workers.worker import RELIEF_S
from workers.worker_files import Phase

LONG_S = 100 * BOOT_TIMEOUT_S


@pytest.fixture
def keeper() -> Keeper:
    return Keeper()


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[StandIn]:
    worker = StandIn(tmp_path / "process-1")
    yield worker
    worker.forget()


@pytest.fixture
def limits(keeper: Keeper, worker: StandIn) -> TimeLimits:
    return limits_of(keeper, worker)


def limits_of(keeper: Keeper, *workers: StandIn, max_memory: int | None = None) -> TimeLimits:
    staff: Any = SimpleNamespace(workers=list(workers), standbys=[])
    limits = TimeLimits(staff, keeper, 1.0, max_memory)
    limits.begin(0.0)
    return limits


def lease(keeper: Keeper, worker: StandIn, *numbers: str) -> list[int]:
    """The tokens of leases of these, which the worker gets."""
    keeper.held.add_tasks([ProcessingTask(number, {"po_number": number}) for number in numbers])
    return [granted.token for granted in keeper.held.exchange(worker.worker_id, [], len(numbers)).leases]


def kill_of(worker: StandIn) -> str:
    return worker.kill.reason if worker.kill is not None else ""


def test_a_po_may_take_longer_than_a_start(limits: TimeLimits, worker: StandIn) -> None:
    worker.does(Phase.WORKING, token=7, started=1.0, limit_s=LONG_S)

    limits.enforce(1.0 + 2 * BOOT_TIMEOUT_S)
    assert kill_of(worker) == ""

    limits.enforce(1.0 + LONG_S)
    assert kill_of(worker) == "timeout"


def test_time_in_which_the_supervisor_stood_still_counts_against_no_start(limits: TimeLimits, worker: StandIn) -> None:
    worker.does(Phase.SETTING_UP, started=1.0)

    limits.note_gap(LONG_S)
    limits.enforce(LONG_S + BOOT_TIMEOUT_S)
    assert kill_of(worker) == ""

    limits.enforce(LONG_S + BOOT_TIMEOUT_S + 2.0)
    assert kill_of(worker) == "phase"


# ── workers that begin nothing ───────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def idle(keeper: Keeper, worker: StandIn, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """It holds a lease, and does not begin it."""

    def is_same(pid: int, check: Callable[[], bool]) -> bool:
        return check()

    monkeypatch.setattr(process_control, "is_same_after_stop", is_same)
    lease(keeper, worker, "A")
    worker.does(Phase.WORKING)
    return worker


def look(limits: TimeLimits, first: int, last: int | None = None) -> None:
    """The looks of these numbers."""
    for number in range(first, (last or first) + 1):
        limits.enforce(number * IDLE_LOOK_S)


def test_who_does_not_begin_what_it_holds_is_ended_at_the_second_look(limits: TimeLimits, idle: StandIn) -> None:
    look(limits, 1)
    assert kill_of(idle) == ""

    look(limits, 2)
    assert kill_of(idle) == "idle"


def test_after_a_stand_still_who_has_not_begun_is_looked_at_twice_again(limits: TimeLimits, idle: StandIn) -> None:
    look(limits, 1)
    limits.note_gap(2 * IDLE_LOOK_S)

    look(limits, 2)
    assert kill_of(idle) == ""

    look(limits, 3)
    assert kill_of(idle) == "idle"


def test_after_a_change_of_the_queue_who_has_not_begun_is_looked_at_twice_again(
    limits: TimeLimits, idle: StandIn
) -> None:
    look(limits, 1)
    limits.forget_idle()

    look(limits, 2)
    assert kill_of(idle) == ""

    look(limits, 3)
    assert kill_of(idle) == "idle"


def finished(keeper: Keeper, token: int) -> Report:
    result = freeze_plain_result(TaskResult(True, [], 0.5))
    return Report(keeper.held.get_leases()[token].task_id, token, 0.5, result)


def test_who_waits_for_what_it_did_to_be_written_down_is_not_ended(
    keeper: Keeper, limits: TimeLimits, idle: StandIn
) -> None:
    [token] = lease(keeper, idle, "B")
    idle.leaves(finished(keeper, token))
    keeper.full = True

    look(limits, 1, 4)
    assert kill_of(idle) == ""

    keeper.full = False
    look(limits, 5, 6)
    assert kill_of(idle) == "idle" and keeper.held.get_queue_status()["completed_tasks"] == 1


# ── relief ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_relief_that_cannot_be_written_down_is_tried_again_when_twice_the_time_is_over(
    keeper: Keeper, limits: TimeLimits, worker: StandIn
) -> None:
    token, _ = lease(keeper, worker, "A", "B")
    worker.does(Phase.WORKING, token=token, started=1.0, limit_s=LONG_S)
    keeper.full = True

    limits.enforce(1.0 + 2 * RELIEF_S)
    limits.enforce(1.0 + 3 * RELIEF_S)
    assert keeper.asked.count("take_back") == 1

    keeper.full = False
    limits.enforce(1.0 + 5 * RELIEF_S)
    assert [*keeper.held.get_leases()] == [token]


# ── memory ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_worker_whose_child_holds_too_much_memory_is_retired_once(keeper: Keeper, worker: StandIn) -> None:
    child_bytes = 64_000_000
    worker.pid = os.getpid()
    worker.does(Phase.WORKING)
    limits = limits_of(keeper, worker, max_memory=process_control.tree_rss_bytes(worker.pid) + child_bytes // 2)
    limits.enforce(1.0)
    assert not worker.is_retiring

    hoard = f"held = b'x' * {child_bytes}; print('held', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", hoard], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdout.readline() == b"held\n"
        for look_number in range(1, 4):
            limits.enforce(1.0 + look_number * MEMORY_CHECK_S)
        child.communicate(b"\n")

    assert worker.is_retiring and keeper.asked.count("retire_worker") == 1
    assert keeper.held.exchange(worker.worker_id, [], 1).stop
