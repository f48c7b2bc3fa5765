"""What a worker's end was about, when a kill had begun: the PO in hand, the one before it, or the worker as such; and when
its times begin.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.stand_in import StandIn
from workers import process_control
from workers.worker_files import Phase
from workers.worker_process import EVIDENCE_S, Kill, WorkerProcess


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    monkeypatch.setattr(process_control, "kill_tree", lambda *family: None)
    worker = StandIn(tmp_path / "process-1")
    yield worker
    worker.forget()


@pytest.mark.parametrize(
    ("token", "stage", "why"),
    [
        (7, "evidence", "timeout"),
        (7, "kill", "timeout"),
        (0, "term", "timeout"),
        (6, "evidence", ""),  # nothing had been sent: the end of the one in hand is its own
        (6, "term", "another"),
        (6, "kill", "another"),
    ],
)
def test_a_kill_is_the_cause_of_the_end_of_what_it_was_about_or_broke_off(token: int, stage: str, why: str) -> None:
    worker = object.__new__(WorkerProcess)
    worker.kill = Kill("timeout", token, 0.0, 0.0)
    worker.kill.stage = stage

    assert worker.why_killed(7) == why


def test_without_a_kill_an_end_is_its_own() -> None:
    worker = object.__new__(WorkerProcess)
    worker.kill = None

    assert worker.why_killed(7) == ""


@pytest.mark.parametrize(("reason", "token"), [("timeout", 7), ("cancel", 7), ("stop", 0)])
def test_a_run_that_ends_at_once_is_not_the_cause_of_a_kill_that_had_begun(
    reason: str, token: int, worker: StandIn
) -> None:
    worker.kill = Kill(reason, token, 1.0, 2.0)

    worker.kill_now(1.5)

    assert worker.why_killed(7) == reason and worker.kill.stage == "kill"


def test_whom_a_run_that_ends_at_once_takes_along_was_stopped(worker: StandIn) -> None:
    worker.kill_now(1.5)

    assert worker.why_killed(7) == "stop" and worker.next_step() is None


@pytest.mark.parametrize(("answers", "due"), [(True, 10.0 + EVIDENCE_S), (False, 10.0)])
def test_a_stack_is_waited_for_only_where_it_can_be_asked_for(
    answers: bool, due: float, worker: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_control, "ask_for_stack", lambda pid: answers)

    worker.begin_kill("timeout", 7, 10.0, wants_evidence=True)

    assert worker.kill is not None and worker.kill.due == due


def test_the_time_of_one_in_reserve_runs_from_when_it_was_employed(worker: StandIn) -> None:
    worker.does(Phase.STANDBY, started=time.monotonic() - 1000.0)
    before = time.monotonic()

    worker.employ("w1.1", 1)

    assert worker.since >= before
