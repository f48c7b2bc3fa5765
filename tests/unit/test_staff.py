"""The staff on a clock that the test moves: who is started when, after bad starts, refusals, and under which id."""

import errno
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from tests.unit.stand_in import StandIn
from workers import staff as staff_module
from workers.staff import MAX_BOOT_FAILURES, NO_PROCESS_LIMIT_S, Staff, WorkersCannotStartError
from workers.worker_files import Phase
from workers.worker_process import Kill


class Place:
    """A staff whose processes are stand-ins; while it is `full`, the system gives none."""

    def __init__(self, jobs: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = False
        monkeypatch.setattr(staff_module, "WorkerProcess", self._start)
        monkeypatch.setattr(staff_module.logger.logger, "disabled", True)
        self.staff = Staff(jobs, get_context("spawn"), str(folder), "run", lambda *words: None)  # type: ignore[arg-type]

    def _start(self, context: Any, folder: str, *more: Any) -> StandIn:
        if self.full:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return StandIn(Path(folder), "", 0)

    def ids(self) -> list[str]:
        return [worker.worker_id for worker in self.staff.workers]

    def worker(self, slot: int) -> StandIn:
        [found] = [worker for worker in self.staff.workers if worker.slot == slot]
        assert isinstance(found, StandIn)
        return found

    def fails(self, slot: int, now: float) -> None:
        """Its worker dies before it is ready."""
        self.worker(slot).code = 1
        self._bury(now)

    def ends(self, slot: int, now: float) -> None:
        """Its worker dies while it works."""
        self.worker(slot).does(Phase.WORKING, token=7)
        self.worker(slot).code = -9
        self._bury(now)

    def _bury(self, now: float) -> None:
        for worker in self.staff.remove_dead():
            self.staff.note_end(worker, now)
            worker.forget()


def test_an_id_comes_after_the_last_one_of_an_earlier_life_in_whatever_order_these_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(2, tmp_path, monkeypatch)
    place.staff.count_on(["w1.2", "w2.1", "w1.5", "w1.3", "w2.x"])

    place.staff.top_up(0.0)

    assert place.ids() == ["w1.6", "w2.2"]


def test_after_bad_starts_nobody_is_started_for_a_while_wherever_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(2, tmp_path, monkeypatch)
    place.staff.top_up(0.0)
    place.fails(1, 0.0)
    place.fails(2, 0.0)

    place.staff.top_up(0.15)
    assert place.ids() == []

    place.staff.top_up(0.25)
    assert place.ids() == ["w1.2", "w2.2"]


def test_a_bad_start_after_good_work_counts_as_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(1, tmp_path, monkeypatch)
    for now in (0.0, 1.0):
        place.staff.top_up(now)
        place.fails(1, now)
    place.staff.top_up(2.0)
    place.ends(1, 2.0)
    place.staff.top_up(3.0)
    place.fails(1, 3.0)

    place.staff.top_up(3.15)

    assert place.ids() == ["w1.5"]


def test_so_many_bad_starts_in_a_row_end_the_run_and_no_more_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(1, tmp_path, monkeypatch)
    for now in range(MAX_BOOT_FAILURES):
        place.staff.top_up(10.0 * now)
        place.fails(1, 10.0 * now)

    with pytest.raises(WorkersCannotStartError, match=f"{MAX_BOOT_FAILURES} workers in a row"):
        place.staff.top_up(100.0)


def test_one_in_reserve_that_is_being_ended_is_not_employed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(1, tmp_path, monkeypatch)
    place.staff.prepare(0.0)
    [standby] = place.staff.standbys
    standby.kill = Kill("stop", 0, 0.0, 0.0)

    place.staff.top_up(0.0)

    assert place.ids() == ["w1.1"] and place.staff.workers != [standby]


def test_refused_processes_end_no_run_while_anybody_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(2, tmp_path, monkeypatch)
    place.staff.top_up(0.0)
    place.ends(1, 0.0)
    place.full = True
    place.staff.top_up(1.0)
    place.staff.top_up(2.0 + NO_PROCESS_LIMIT_S)
    assert place.ids() == ["w2.1"]

    place.ends(2, 60.0)
    with pytest.raises(WorkersCannotStartError, match="no worker process could be started"):
        place.staff.top_up(3.0 + 2 * NO_PROCESS_LIMIT_S)


def test_refusals_count_from_the_last_process_that_there_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(1, tmp_path, monkeypatch)
    place.full = True
    place.staff.top_up(0.0)
    place.full = False
    place.staff.top_up(10.0)
    place.ends(1, 20.0)
    place.full = True

    place.staff.top_up(1.0 + NO_PROCESS_LIMIT_S)
    place.full = False
    place.staff.top_up(100.0)

    assert place.ids() == ["w1.2"]
