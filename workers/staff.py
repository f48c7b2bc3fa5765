"""The worker processes of a run: a slot each, replaced when they end, with some in reserve, and a brake on bad starts."""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext

from poqueue.errors import PoqueueError
from poqueue.hints import Any
from poqueue.parent import gone_folder
from workers.log import ShieldedLogger
from workers.own_process import usable_cores
from workers.worker import WorkerSettings
from workers.worker_files import Phase
from workers.worker_process import WorkerProcess, WorkerStart

logger = ShieldedLogger(__name__)

MAX_BOOT_FAILURES = 3
MAX_BOOT_DELAY_S = 5.0
SETTLED_S = 5.0  # who has waited for a first PO so long had started well
NO_PROCESS_LIMIT_S = 30.0


class WorkersCannotStartError(PoqueueError):
    """Workers end again and again before they take a PO; the text says why."""


def _delay_s(bad_starts: int) -> float:
    return min(MAX_BOOT_DELAY_S, 0.1 * 2.0 ** min(bad_starts - 1, 10))


_WORKER_ID = re.compile(r"w\d+\.\d+")


def is_worker_id(text: str) -> bool:
    """Whether it may be a worker's of a run, alive or dead: a program that leases by itself takes another name."""
    return _WORKER_ID.fullmatch(text) is not None


class Staff:
    """Holds `jobs` workers and starts what is missing. Worker ids are w<slot>.<incarnation> and never used twice.

    Args:
        folder: each process gets a folder of its own in it.
        settings: what a worker is started with, but for its folder and marks.
        early: processes that were started before, by the same context; whoever has started them ends those that stay here.
        take_line: gives a connection with the queue's process that is open already, while there are any.
    """

    def __init__(
        self,
        jobs: int,
        context: BaseContext,
        folder: str,
        run_id: str,
        settings: Callable[..., WorkerSettings],
        early: list[WorkerStart] | None = None,
        take_line: "Callable[[], Connection[Any, Any] | None]" = lambda: None,
    ) -> None:
        self.workers: list[WorkerProcess] = []
        self.standbys: list[WorkerProcess] = []
        self.jobs = jobs
        self._context = context
        self._folder = folder
        self._run_id = run_id
        self._settings = settings
        self._early = early if early is not None else []
        self._take_line = take_line
        self._serial = 0
        self._incarnations: dict[int, int] = {}
        self._has_lost_workers = False
        self._boot_failures = 0  # in a row, while nobody works
        self._boot_reason = ""
        self._reason_count = 0  # how often in a row it was this one
        self._not_before = 0.0
        self._bad_starts: dict[int, tuple[int, float]] = {}  # of a slot: how many in a row, and when it may start again
        self._no_process_since: float | None = None

    def __iter__(self) -> Iterator[WorkerProcess]:
        """Workers and those in reserve."""
        return iter([*self.workers, *self.standbys])

    def __bool__(self) -> bool:
        return bool(self.workers or self.standbys)

    def prepare(self, now: float, at_most: int | None = None) -> None:
        """Start the first processes beside the queue's: they import while it does, and wait to be employed.

        One core is left to the queue's process, which everybody waits for, unless a fork server has imported for them.
        """
        cores = usable_cores()
        if self._context.get_start_method() != "forkserver":
            cores = max(1, cores - 1)
        wanted = min(self.jobs, cores, self.jobs if at_most is None else at_most)
        while len(self.standbys) < wanted and (standby := self._start(now)) is not None:
            self.standbys.append(standby)

    def top_up(self, now: float, needed: Callable[[], int] | None = None) -> None:
        """Start what is missing, unless the brake is on.

        Args:
            needed: how many workers there is something to do for, asked only if some are missing; None for all.

        Raises:
            WorkersCannotStartError: the last ones all ended before they could work, and nobody else works.
        """
        if now < self._not_before:
            return
        taken = {worker.slot for worker in self.workers}
        missing = [slot for slot in range(1, self.jobs + 1) if slot not in taken and not self._is_held_back(slot, now)]
        if missing and needed is not None:
            missing = missing[: max(0, needed() - sum(worker.takes_more for worker in self.workers))]
        for slot in missing:
            if not self._may_start():
                return
            worker = self._take_standby() or self._start(now)
            if worker is None:
                return
            self._employ(worker, slot)
        while len(self.standbys) < self._foreseen_deaths(now):
            standby = self._start(now)
            if standby is None:
                return
            self.standbys.append(standby)

    def resize(self, jobs: int) -> list[WorkerProcess]:
        """Hold another number of workers from now on; returns those of the places that are given up."""
        self.jobs = jobs
        return [worker for worker in self.workers if worker.slot > jobs]

    def count_on(self, worker_ids: Iterable[str]) -> None:
        """No worker is to be taken for one of these, which were of the run's earlier life."""
        for worker_id in worker_ids:
            slot, _, incarnation = worker_id.removeprefix("w").partition(".")
            if slot.isdecimal() and incarnation.isdecimal():
                self._incarnations[int(slot)] = max(int(incarnation), self._incarnations.get(int(slot), 0))

    def remove_dead(self) -> list[WorkerProcess]:
        """The dead, no longer of the staff; a standby has no worker id."""
        dead = [worker for worker in self if worker.is_dead()]
        for worker in dead:
            (self.workers if worker in self.workers else self.standbys).remove(worker)
        return dead

    def note_end(self, worker: WorkerProcess, now: float) -> None:
        """Learn from how a worker ended: without a PO, before it was ready or soon after, it counts as a bad start."""
        status = worker.status()
        has_worked = status.phase is Phase.WORKING and (status.has_begun or now - status.started > SETTLED_S)
        if has_worked or status.phase >= Phase.RECYCLING:
            self._has_lost_workers |= has_worked
            self._boot_failures = 0
            self._bad_starts.pop(worker.slot, None)
            return
        self._look_at_boots()
        told, _, trace = worker.files.boot_failure().strip().partition("\n")
        self._boot_failures += 1
        self._not_before = now + _delay_s(self._boot_failures)
        # others may work all the while, with the only licence for instance
        count = self._bad_starts.get(worker.slot, (0, 0.0))[0] + 1
        self._bad_starts[worker.slot] = count, now + _delay_s(count)
        self._tell_bad_start(told or worker.overdue or f"it ended by {worker.how_it_ended()}", trace)

    def _tell_bad_start(self, told: str, trace: str) -> None:
        """Of one and the same reason the 1st, 2nd, 4th, 8th, ... time."""
        self._reason_count = self._reason_count + 1 if told == self._boot_reason else 1
        self._boot_reason = told
        if self._reason_count & (self._reason_count - 1) == 0:
            times = f" ({self._reason_count} times)" if self._reason_count > 1 else ""
            logger.warning("a worker could not start%s: %s", times, told, extra={"traceback": trace})

    def _is_held_back(self, slot: int, now: float) -> bool:
        return now < self._bad_starts.get(slot, (0, 0.0))[1]

    def _employ(self, worker: WorkerProcess, slot: int) -> None:
        incarnation = self._incarnations[slot] = self._incarnations.get(slot, 0) + 1
        worker.employ(f"w{slot}.{incarnation}", slot)
        self.workers.append(worker)
        logger.info("worker started, pid %d", worker.pid, extra={"worker_id": worker.worker_id})

    def _foreseen_deaths(self, now: float) -> int:
        """How many to hold in reserve, imported and waiting, so that the next deaths cost little.

        One for each worker that has used half of its time, and one in any case once a worker has died unasked.
        """
        if self._boot_failures:
            return 0
        late = 0
        for worker in self.workers:
            status = worker.status()
            late += bool(status.token and now - status.started > status.task_timeout / 2)
        return max(late, int(self._has_lost_workers))

    def _take_standby(self) -> WorkerProcess | None:
        for standby in self.standbys:
            if not standby.is_dead() and standby.kill is None:
                self.standbys.remove(standby)
                return standby
        return None

    def _look_at_boots(self) -> bool:
        """Whether anybody is through its start; who is at work shows that it can be done."""
        states = [worker.status() for worker in self.workers]
        if any(state.phase is Phase.WORKING and state.has_begun for state in states):
            self._boot_failures = 0
        return any(state.phase >= Phase.WORKING for state in states)

    def _may_start(self) -> bool:
        """Not after many bad starts, while one that was started before may still get through: it shows that it can be done."""
        if self._look_at_boots() or self._boot_failures < MAX_BOOT_FAILURES:
            return True
        if any(worker.kill is None for worker in self.workers):
            return False
        raise WorkersCannotStartError(f"{self._boot_failures} workers in a row could not start: {self._boot_reason}")

    def _start(self, now: float) -> WorkerProcess | None:
        self._serial += 1
        process_id = f"{self._run_id}.{self._serial}"
        folder = os.path.join(self._folder, f"process-{self._serial}")
        try:
            early = self._early[-1] if self._early else None
            worker = WorkerProcess(
                self._context, folder, process_id, self._run_id, self._settings, early, self._take_line
            )
        except OSError as error:
            self._note_no_process(error, now)
            return None
        if early is not None:
            self._early.remove(early)
        self._no_process_since = None
        return worker

    def _note_no_process(self, error: OSError, now: float) -> None:
        """The system gives no process: wait a little, go on with fewer, and give up only when there is nobody."""
        if self._no_process_since is None:
            self._no_process_since = now
        waited_s = now - self._no_process_since
        self._not_before = now + min(MAX_BOOT_DELAY_S, 0.1 + waited_s)
        logger.warning("no worker process can be started (%s); going on with %d", error, len(self.workers))
        if not self.workers and (gone := gone_folder()):
            raise WorkersCannotStartError(
                f"no worker process can be started: the current folder is gone: {gone}"
            ) from error
        if not self.workers and waited_s >= NO_PROCESS_LIMIT_S:
            raise WorkersCannotStartError(
                f"no worker process could be started for {waited_s:.0f} s: {error}"
            ) from error
