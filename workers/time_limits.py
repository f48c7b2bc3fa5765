"""What workers are held to: the time limit of their PO, that of their start and end, their memory, and that they do begin
what they were given. Who breaks it is killed; what follows from that is the reaper's.
"""

import contextlib
import math
import time
from collections.abc import Iterator

from poqueue.errors import JournalError
from poqueue.task import TaskRecord
from workers import process_control as control
from workers.log import ShieldedLogger
from workers.queue_keeper import QueueKeeper
from workers.staff import Staff, is_worker_id
from workers.worker import RELIEF_S
from workers.worker_files import Phase, Status
from workers.worker_process import WorkerProcess

logger = ShieldedLogger(__name__)

TICK_S = 0.2  # how often the supervisor looks at least
GAP_S = 2.0  # a loop that stood still for longer was stopped, or the machine was; no PO is to blame
MEMORY_CHECK_S = 1.0
BOOT_TIMEOUT_S = 120.0
TEARDOWN_S = 10.0
IDLE_LOOK_S = 12.0  # longer than any call of the queue: who has asked it for something has an answer, or asks again
_WORDS = {Phase.SETTING_UP: "setup", Phase.RECYCLING: "teardown", Phase.ENDING: "teardown"}


class TimeLimits:
    """Looks at each worker in each turn of the supervisor's loop.

    Args:
        grace_s: seconds between the SIGTERM and the SIGKILL of a worker that is ended.
        max_memory: bytes that a worker and its children may hold together; None for no limit.

    Attributes:
        unwanted: token of a lease that is not to run, also if it has not begun yet: why.
    """

    def __init__(self, staff: Staff, keeper: QueueKeeper, grace_s: float, max_memory: int | None) -> None:
        self._staff = staff
        self._keeper = keeper
        self._ask = keeper.ask
        self._grace_s = grace_s
        self._max_memory = max_memory
        self.unwanted: dict[int, str] = {}
        self._gaps: list[tuple[float, float]] = []
        self._callers_gaps: list[tuple[float, float]] = []  # none that is followed by a longer one
        self._callers_s = 0.0  # in this turn
        self._last_loop = 0.0
        self._next_memory_check = self._next_idle_look = 0.0
        self._held_idle: dict[str, set[int]] = {}  # leases of the workers that had nothing in hand at the last look
        self._held_elsewhere: dict[int, float] = {}  # others' leases: since when, or inf once told of

    @contextlib.contextmanager
    def callers_code(self) -> Iterator[None]:
        """Around the code of whoever runs the supervisor: while it takes long, POs go on."""
        before, begun = self._callers_s, time.monotonic()
        try:
            yield
        finally:
            self._callers_s = before + time.monotonic() - begun  # one within another counts once

    def begin(self, now: float) -> None:
        """The loop begins."""
        self._last_loop, self._callers_s = now, 0.0

    def note_gap(self, now: float) -> None:
        """Once in each turn of the loop: time in which this process did not run counts against no PO.

        It may have been stopped in its caller's code as well; but that may take as long in every turn, while POs run on.
        Of what passed there only the longest stretch is given to a PO.
        """
        callers_s, self._callers_s = self._callers_s, 0.0
        gap_s = now - self._last_loop - callers_s
        self._last_loop = now
        if gap_s > GAP_S + TICK_S:
            logger.warning("the supervisor stood still for %.1f s; every deadline moves by that", gap_s)
            self._gaps = [*self._gaps[-20:], (now, gap_s)]
        if callers_s > GAP_S:
            self._callers_gaps = [gap for gap in self._callers_gaps if gap[1] > callers_s] + [(now, callers_s)]

    def forget_idle(self) -> None:
        """The queue is another one, which workers have to find first."""
        self._held_idle = {}

    def deadline(self, status: Status) -> float:
        """When the time limit of the PO in hand is over, monotonic seconds."""
        return status.started + status.task_timeout + self._lost_since(status.started)

    def enforce(self, now: float) -> None:
        """Kill who has broken one."""
        for worker in self._staff.workers:
            if worker.kill is not None:
                worker.advance_kill(now, self._grace_s)
                continue
            status = worker.status()
            if status.phase is not Phase.WORKING and now - worker.since > self._patience(status.phase, worker.since):
                self.end_overdue(worker, "phase", now)
            elif status.token in self.unwanted:
                worker.begin_kill(self.unwanted.pop(status.token), status.token, now, wants_evidence=False)
            elif status.token and now >= self.deadline(status):
                logger.warning(
                    "no end after %.3g s: killing the worker", now - status.started, extra=worker.ids(status)
                )
                worker.begin_kill("timeout", status.token, now, wants_evidence=True)
            elif status.token and now - status.started > _relief_s(worker, status):
                self._relieve(worker, status, now)
        for standby in self._staff.standbys:
            standby.advance_kill(now, self._grace_s)
        if self._max_memory is not None and now >= self._next_memory_check:
            self._next_memory_check = now + MEMORY_CHECK_S
            self._retire_large(self._max_memory)
        if now >= self._next_idle_look:
            self._look_at_idle(now)

    def end_overdue(self, worker: WorkerProcess, reason: str, now: float) -> None:
        """Kill a worker that is in its start or end."""
        status = worker.status()
        told = "stopped in its" if reason == "stop" else "no end of its"
        age_s = max(0.0, now - worker.since)  # it may have come there a moment ago
        worker.overdue = f"{told} {_WORDS.get(status.phase, 'start')} after {age_s:.3g} s"
        logger.warning("%s: killing the worker", worker.overdue, extra=worker.ids(status))
        worker.begin_kill(reason, 0, now, wants_evidence=False)

    def _look_at_idle(self, now: float) -> None:
        """Who has a lease at two looks in a row, and nothing in hand, hangs between two POs, or was stopped: it is ended."""
        has_stood_still = self._lost_since(self._next_idle_look - IDLE_LOOK_S)
        self._next_idle_look = now + IDLE_LOOK_S
        idle = [worker for worker in self._staff.workers if worker.kill is None and _is_idle(worker.status())]
        leases = self._ask("get_leases", brings_data=False)
        self._look_elsewhere(leases, now)
        held = tokens_by_worker(leases)
        before, self._held_idle = self._held_idle, {}
        for worker in idle:
            tokens = held.get(worker.worker_id, set())
            if has_stood_still or not tokens & before.get(worker.worker_id, set()):
                self._held_idle[worker.worker_id] = tokens
            else:
                self._end_idle(worker, now)

    def _look_elsewhere(self, leases: dict[int, TaskRecord], now: float) -> None:
        """What a program has leased by itself nobody here can kill, nor prove dead; but nobody is to wait without knowing why."""
        before = self._held_elsewhere
        others = {token: record for token, record in leases.items() if not is_worker_id(record.worker_id or "")}
        self._held_elsewhere = {token: before.get(token, now) for token in others}
        for token, record in others.items():
            if now - self._held_elsewhere[token] >= record.task_timeout:
                self._held_elsewhere[token] = math.inf
                logger.warning(
                    "PO %s is held by %r, which this run did not start, for more than the %g s of its time limit; the run "
                    "waits for complete_task, retry_task or, if its holder is dead, release_worker",
                    record.po_number, record.worker_id, record.task_timeout,
                )  # fmt: skip

    def _end_idle(self, worker: WorkerProcess, now: float) -> None:
        try:
            self._keeper.report_for(worker.worker_id, worker.files.untold_reports())
        except JournalError:
            return  # it cannot be told for now, and that is what the worker waits for
        if control.is_same_after_stop(worker.pid, lambda: _is_idle(worker.status())):
            worker.overdue = f"it has begun none of its leases for {IDLE_LOOK_S:g} s"
            logger.warning("%s: killing the worker", worker.overdue, extra=worker.ids(worker.status()))
            worker.begin_kill("idle", 0, now, wants_evidence=False)

    def _relieve(self, worker: WorkerProcess, status: Status, now: float) -> None:
        """A PO takes its time: what its worker finished before it is told, what it holds behind it goes to others.

        The worker begins none of those any more (Worker._process says why), and what it tells again changes nothing.
        """
        with contextlib.suppress(JournalError):  # then others have to wait with it
            self._keeper.report_for(worker.worker_id, worker.files.untold_reports())
            self._ask("take_back", worker.worker_id, but=status.token)
        worker.relieved = (status.token, now - status.started)

    def _patience(self, phase: Phase, since: float) -> float:
        """How long a worker may take to start, or to end."""
        return (TEARDOWN_S if phase > Phase.WORKING else BOOT_TIMEOUT_S) + self._lost_since(since)

    def _lost_since(self, moment: float) -> float:
        lost_s = sum(gap_s for at, gap_s in self._gaps if at > moment) if self._gaps else 0.0
        return lost_s + next((gap_s for at, gap_s in self._callers_gaps if at > moment), 0.0)

    def _retire_large(self, max_memory: int) -> None:
        """The worker looks at itself after each PO; its children are counted here."""
        for worker in self._staff.workers:
            if not worker.is_retiring and control.tree_rss_bytes(worker.pid) > max_memory:
                worker.is_retiring = True
                self._ask("retire_worker", worker.worker_id)
                logger.info("worker holds too much memory: it ends after its PO", extra=worker.ids(worker.status()))


def tokens_by_worker(leases: dict[int, TaskRecord]) -> dict[str, set[int]]:
    """The tokens of the leases that each worker holds."""
    held: dict[str, set[int]] = {}
    for token, record in leases.items():
        held.setdefault(record.worker_id or "", set()).add(token)
    return held


def _relief_s(worker: WorkerProcess, status: Status) -> float:
    """After which time in the PO: and again after twice that, since an answer that was on its way may bring leases late."""
    token, age_s = worker.relieved
    return 2.0 * age_s if token == status.token else RELIEF_S


def _is_idle(status: Status) -> bool:
    return status.phase is Phase.WORKING and not status.token
