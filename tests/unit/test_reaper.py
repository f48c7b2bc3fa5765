"""What becomes of dead workers: what they had in hand is charged to it, and what of that is nobody's fault."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from poqueue import ProcessingTask, TaskStatus
from tests.unit.stand_in import Keeper, StandIn
from workers import process_control
from workers.reaper import Reaper
from workers.worker_files import Phase, Usage
from workers.worker_process import Kill

SIGKILLED = -9


class Graveyard:
    """Workers that have died while they had the queue's first task in hand, one after the other."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self._folder = folder
        self._dead: list[StandIn] = []
        self._count = 0
        self.keeper = Keeper(retry_delay=0.0, **settings)
        self.keeper.held.add_task(ProcessingTask("A", {"po_number": "A"}))
        staff: Any = SimpleNamespace(workers=[], remove_dead=self._remove, note_end=lambda worker, now: None)
        self.reaper = Reaper(staff, self.keeper)

    def _remove(self) -> list[StandIn]:
        dead, self._dead = self._dead, []
        return dead

    def worker(self) -> StandIn:
        """The next one."""
        self._count += 1
        return StandIn(self._folder / f"process-{self._count}", f"w1.{self._count}")

    def takes(self, worker: StandIn) -> None:
        [lease] = self.keeper.held.exchange(worker.worker_id, [], 1).leases
        worker.does(Phase.WORKING, lease.token, limit_s=60.0)

    def ends(self, worker: StandIn, code: int) -> None:
        worker.code = code
        self._dead.append(worker)
        self.reaper.reap(1.0, is_draining=False)

    def dies(self, code: int = SIGKILLED) -> ProcessingTask:
        """The task, after another death over it."""
        worker = self.worker()
        self.takes(worker)
        self.ends(worker, code)
        return self.task()

    def task(self) -> ProcessingTask:
        found = self.keeper.held.find_task("A")
        assert found is not None
        return found


def test_a_death_is_for_want_of_memory_only_if_the_kernel_has_told_of_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kills = 3  # before the run
    monkeypatch.setattr(process_control, "oom_kills", lambda: kills)
    graveyard = Graveyard(tmp_path, max_retries=9)
    graveyard.reaper.begin()

    graveyard.dies()
    kills = 4
    graveyard.dies()
    task = graveyard.dies()

    assert [error["error_type"] for error in task.error_history] == ["WorkerKilled", "OutOfMemory", "WorkerKilled"]


def test_who_stops_a_run_again_and_again_makes_no_po_the_cause_of_a_crash(tmp_path: Path) -> None:
    graveyard = Graveyard(tmp_path)
    for _ in range(6):
        worker = graveyard.worker()
        graveyard.takes(worker)
        worker.kill = Kill("stop", 0, 0.0, 0.0)
        worker.kill.stage = "kill"
        graveyard.ends(worker, SIGKILLED)

    task = graveyard.task()
    assert (task.status, task.interruptions, task.retry_count) == (TaskStatus.PENDING, 6, 0)


def test_what_workers_have_used_is_that_of_all_who_ended_by_themselves(tmp_path: Path) -> None:
    graveyard = Graveyard(tmp_path)
    for usage in (Usage(1.0, 2.0, 0.5, 70), Usage(3.0, 4.0, 0.25, 50), None):
        worker = graveyard.worker()
        worker.leaves(usage=usage)
        graveyard.ends(worker, 0 if usage else SIGKILLED)

    assert graveyard.reaper.usage == Usage(4.0, 6.0, 0.75, 70)
