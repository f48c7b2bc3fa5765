"""A discrete-event simulation of this queue: when would a batch be done? Pure: no process, no wall clock, seeded.

    measured histories ──► drawn for every task of the batch ──► simulate ──► SimulatedRun
                    └────► drawn again and again (bootstrap) ──► predict  ──► Prediction with its range

A history is what happened to one task, attempt by attempt. Replayed are priorities and first in first out, retries with
their backoff, timeouts, the start of workers and of those that replace others (killed ones, and those that have made as many
attempts as they may), the time between two attempts, the delay between the starts of any two, and cores: when running attempts
ask for more of them than there are, computing is stretched and waiting is not.

Left out: no two tasks of one PO at once, replacing workers by memory, and what waits behind a locked resource.
"""

import heapq
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from random import Random

from poqueue.retry import backoff_s
from poqueue.task import DEFAULT_PRIORITY

COMPLETED, RETRY, FAILED = "completed", "retry", "failed"
MAX_SIMULATED_TASKS = 20_000  # a longer batch goes on at the pace of its second half
BOOTSTRAP_RUNS = 15
RANGE_DEVIATIONS = 2.5
MODEL_MARGIN = 0.10  # what two runs of one batch differ by, and what is left out
MAX_SHARES = 6
HEAVY_TAIL_RATIO = 8.0  # longest over median; exponential durations reach it in samples of about 250 ...
HEAVY_TAIL_SHARE = 0.37  # ... of which the longest tenth then still holds only a third of the time


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt as it was measured.

    Attributes:
        seconds: how long it takes with a core at hand whenever it wants one; infinity: it never ends by itself.
        cpu_share: of that time, the part in which it computes; above 1 if it keeps several cores busy.
        outcome: "completed", "retry" (it may run again) or "failed" (for good).
        retry_after_s: the delay it asks for instead of the backoff.
        ends_worker: it takes its worker process with it.
    """

    seconds: float
    cpu_share: float = 0.0
    outcome: str = COMPLETED
    retry_after_s: float | None = None
    ends_worker: bool = False


History = tuple[Attempt, ...]
"""The attempts of one task; when more are needed than were measured, the last one happens again."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What the batch runs under; times in seconds."""

    workers: int
    cores: float = math.inf
    task_timeout: float = math.inf
    max_retries: int = 3
    retry_delay: float = 5.0
    max_retry_delay: float = 3600.0
    jitter: float = 0.0
    by_priority: bool = True
    start_delay: float = 0.0
    max_tasks_per_worker: int | None = None


@dataclass(frozen=True, slots=True)
class Costs:
    """What the pool itself takes.

    Attributes:
        start_s: until the queue can be used; `ahead_of` says how many workers import meanwhile.
        spawn_s: from the start of one worker behind the queue's to that of the next.
        add_s: for adding one task, computing; that begins when all are started, and goes on beside what they import.
        boot_s, boot_cpu_share: a worker's imports with a core at hand, and how much of that is computing.
        setup_s, setup_cpu_share: the same of its processor's setup, which comes when it takes its place among the workers.
        dispatch_s: between two attempts of one worker.
        dispatch_cpu_s: computing for each attempt, of worker, manager and supervisor together.
        kill_s: from a timeout to the proof of death.
        end_s: from the last task's end to the end of the run, besides `report_s` for each task and `leave_s` for each worker.
        leaves_core: whether the workers that import meanwhile leave one core to the queue's process.
    """

    start_s: float = 0.0
    boot_s: float = 0.0
    boot_cpu_share: float = 1.0
    dispatch_s: float = 0.0
    dispatch_cpu_s: float = 0.0
    kill_s: float = 0.0
    end_s: float = 0.0
    report_s: float = 0.0
    spawn_s: float = 0.0
    add_s: float = 0.0
    leave_s: float = 0.0
    setup_s: float = 0.0
    setup_cpu_share: float = 0.0
    leaves_core: bool = True

    def with_start_of(self, other: "Costs") -> "Costs":
        """The same but for what the start and the end of processes take."""
        return replace(
            self, start_s=other.start_s, spawn_s=other.spawn_s, boot_s=other.boot_s, boot_cpu_share=other.boot_cpu_share,
            end_s=other.end_s, leave_s=other.leave_s, leaves_core=other.leaves_core,
        )  # fmt: skip


TYPICAL_COSTS = Costs(
    start_s=0.13, boot_s=0.1, boot_cpu_share=1.0, dispatch_s=0.0006, dispatch_cpu_s=0.0011, kill_s=0.02, end_s=0.04,
    report_s=0.00005, spawn_s=0.006, add_s=0.00005, leave_s=0.011,
)  # fmt: skip
"""Of the pool on one machine of two cores, by spawn, where nothing better is known."""

TYPICAL_BY_START = {
    "spawn": TYPICAL_COSTS,
    "forkserver": replace(TYPICAL_COSTS, start_s=0.09, boot_s=0.02, end_s=0.02, leave_s=0.004, leaves_core=False),
    "fork": replace(TYPICAL_COSTS, start_s=0.02, boot_s=0.015, end_s=0.02, leave_s=0.006),
}
"""The same by start method; start and end as `python -m tests.benchmarks.starts` measures them."""


@dataclass(frozen=True, slots=True)
class SimulatedRun:
    """What came of a batch.

    Attributes:
        makespan_s: from the start to the last task's end, and the end of the run behind it.
        busy_share: of the workers' time until the last task's end, the part in which they had an attempt.
        cpu_share: the same of the cores, 0 where they are not limited.
        waited_s: between ready and started, on average over all attempts.
        attempts, completed, failed: counts; `killed` are the attempts that ran into the timeout.
        stretch: how much longer the attempts took than alone, on average.
        ended_s: priority -> when the last task of that priority ended.
    """

    makespan_s: float
    busy_share: float
    cpu_share: float
    waited_s: float
    attempts: int
    completed: int
    failed: int
    killed: int
    stretch: float
    ended_s: dict[int, float]


@dataclass(frozen=True, slots=True)
class Prediction:
    """When a batch will be done: the expected time, the range around it, and one run in detail.

    Attributes:
        is_heavy_tailed: few tasks take much of the time, so that a small sample may have missed the longest ones.
    """

    seconds: float
    low_s: float
    high_s: float
    run: SimulatedRun
    is_heavy_tailed: bool


def predict(
    histories: Sequence[History],
    priorities: Sequence[int],
    rules: Rules,
    costs: Costs,
    random: Random,
    *,
    runs: int = BOOTSTRAP_RUNS,
) -> Prediction:
    """Predict a batch from a sample of it.

    The expected time is that of the sample repeated evenly. For the range the sample itself is drawn anew, with
    replacement, once a run (Efron 1979): a sample of 20 says less than one of 2,000, and the range shows it.

    Args:
        histories: of the sampled tasks, each standing for as many tasks of the batch as every other.
        priorities: of the batch's tasks, in their order of arrival.
        runs: bootstrapped runs for the range; 0: only the expected time.

    Raises:
        ValueError: no histories.
    """
    if not histories:
        raise ValueError("a prediction needs at least one measured task")
    even = _dealt(histories, len(priorities), random)
    expected = _run_batch(even, priorities, rules, costs, random)
    is_heavy = _is_heavy_tailed(histories)
    drawn: list[float] = []
    for _ in range(runs):
        resampled = random.choices(histories, k=len(histories))
        dealt = _dealt(resampled, len(priorities), random)
        if is_heavy:
            dealt = _with_tail(dealt, resampled, random)
        drawn.append(_run_batch(dealt, priorities, rules, costs, random).makespan_s)
    low, high = _range_of(expected.makespan_s, drawn)
    return Prediction(expected.makespan_s, low, high, expected, is_heavy)


def simulate(
    histories: Sequence[History],
    rules: Rules,
    costs: Costs,
    random: Random,
    *,
    priorities: Sequence[int] | None = None,
    arrivals: Sequence[float] | None = None,
) -> SimulatedRun:
    """Run every task to its end.

    Args:
        histories: one a task, in the order in which they are added.
        priorities: of each task, 1 first to 10 last; all alike if left out.
        arrivals: when each task is added, seconds; all at the start if left out.
    """
    given = priorities if priorities is not None else list(repeat(DEFAULT_PRIORITY, len(histories)))
    return _Simulation(histories, given, arrivals, rules, costs, random).run()


def ahead_of(workers: int, cores: float, *, leaves_core: bool) -> int:
    """How many of the first workers are started beside the queue's process, to which one core may be left."""
    return int(min(workers, max(1.0, cores - leaves_core)))


def stretch_of(running: int, cpu_share: float, cores: float) -> float:
    """How much longer computing takes when `running` attempts share the cores, each wanting one `cpu_share` of its time.

    The closed network of a delay (waiting) and one station of `cores` servers, shared evenly; its stationary state does
    not depend on the distributions (Baskett, Chandy, Muntz, Palacios 1975).
    """
    if running * min(cpu_share, 1.0) == 0.0 or (running <= cores and cpu_share <= 1.0):
        return 1.0
    if cpu_share > 1.0 - 1e-6:
        return max(1.0, running * cpu_share / cores)
    odds = cpu_share / (1.0 - cpu_share)
    term = total = 1.0
    computing = 0.0
    for k in range(1, running + 1):
        term *= (running - k + 1) / min(float(k), cores) * odds
        total += term
        computing += k * term
        if total > 1e200:
            term, total, computing = term / 1e200, total / 1e200, computing / 1e200
    waiting = running - computing / total
    per_progress = running * (1.0 - cpu_share) / waiting
    return max(1.0, (per_progress - (1.0 - cpu_share)) / cpu_share)


# ---------------------------------------------------------------------- the events

# a task may run; an attempt's timeout; a killed worker is dead; one is started; the batch is being added; the next may start
_DUE, _DEADLINE, _DEAD, _SPAWN, _ADD, _NEXT = range(6)
# what runs besides tasks: a worker's start, the adding of the batch, the start of one in reserve, a worker's setup
_WORKER, _ADDING, _RESERVE, _SETUP = (-1, -2, -3, -4)


class _Pace:
    """The running attempts of one CPU share: a clock of their own progress, which runs slower when cores are short."""

    __slots__ = ("clock", "ends", "rate", "running", "share")

    def __init__(self, share: float) -> None:
        self.share = share
        self.clock = 0.0
        self.rate = 1.0
        self.running = 0
        self.ends: list[tuple[float, int]] = []  # (clock at its end, serial), of those that may end by themselves


class _Step:
    """An attempt made ready for the loop. `length` None: it surely runs into its timeout."""

    __slots__ = ("attempt", "length", "may_be_late", "pace", "share")

    def __init__(self, attempt: Attempt, length: float | None, share: float, pace: int, may_be_late: bool) -> None:
        self.attempt = attempt
        self.length = length
        self.share = share
        self.pace = pace
        self.may_be_late = may_be_late


class _Simulation:
    def __init__(
        self,
        histories: Sequence[History],
        priorities: Sequence[int],
        arrivals: Sequence[float] | None,
        rules: Rules,
        costs: Costs,
        random: Random,
    ) -> None:
        self._rules, self._costs, self._random = rules, costs, random
        self._priorities = priorities
        self._make_steps(histories)
        count = len(histories)
        self._tried = [0] * count
        self._ready_at = list(arrivals) if arrivals is not None else [0.0] * count
        # A key is one number, priority before rank: the heap compares nothing else.
        self._keys = [p << 40 | rank for rank, p in enumerate(priorities)] if rules.by_priority else list(range(count))
        self._ready: list[int] = [] if arrivals is not None else sorted(self._keys)
        self._timed: list[tuple[float, int, int]] = []  # (when, what, rank or serial)
        if arrivals is not None:
            self._timed = [(moment, _DUE, rank) for rank, moment in enumerate(arrivals)]
            heapq.heapify(self._timed)
        self._now = 0.0
        self._serial = 0
        self._running: dict[int, tuple[int, _Step, float]] = {}  # serial -> rank, step, since
        self._idle = 0
        self._next_start = 0.0
        self._made: deque[int] = deque()  # if workers are replaced: the attempts of each idle one,
        self._made_by: dict[int, int] = {}  # and of each that works, by serial
        self._reserve = self._missing = 0  # workers that wait to replace one; places that wait for a worker
        self._has_lost = False
        self._waited_s = self._busy_s = self._cpu_s = self._alone_s = 0.0
        self._attempts = self._completed = self._failed = self._killed = 0
        self._last_end = 0.0
        self._ended_s: dict[int, float] = {}
        self._rates: dict[tuple[int, ...], list[float]] = {}

    # ------------------------------------------------------------------ before the loop

    def _make_steps(self, histories: Sequence[History]) -> None:
        """Each different history once: lengths and paces are looked up in the loop, not computed."""
        rules, costs = self._rules, self._costs
        different = {id(history): history for history in histories}
        shares = {id(a): self._share_of(a) for history in different.values() for a in history}
        boot_share = costs.boot_cpu_share
        boots = 1 + len(shares) // (rules.max_tasks_per_worker or math.inf)
        everything = [*shares.values(), *[boot_share] * int(boots), costs.setup_cpu_share]
        everything += [1.0] if costs.add_s else []
        beside = 1 if costs.add_s else 0
        self._is_roomy = rules.workers + beside <= rules.cores and max(everything) <= 1.0
        centres = [0.0] if self._is_roomy else _grouped(everything)
        self._paces = [_Pace(centre) for centre in centres]
        most = 1.0 if self._is_roomy else max(stretch_of(rules.workers, share, rules.cores) for share in centres)

        def nearest(share: float) -> int:
            return min(range(len(centres)), key=lambda n: abs(centres[n] - share))

        def step(attempt: Attempt) -> _Step:
            is_hung = attempt.seconds > rules.task_timeout or math.isinf(attempt.seconds)
            length = None if is_hung else costs.dispatch_s + attempt.seconds
            is_exposed = attempt.seconds * most > rules.task_timeout
            share = shares[id(attempt)]
            return _Step(attempt, length, share, nearest(share), is_exposed)

        made = {key: tuple(step(attempt) for attempt in history) for key, history in different.items()}
        self._steps = [made[id(history)] for history in histories]

        def beside_tasks(seconds: float, share: float) -> _Step:
            return _Step(Attempt(seconds, share), seconds, share, nearest(share), False)

        self._adding = beside_tasks(costs.add_s * len(histories), 1.0)
        self._boot = beside_tasks(costs.boot_s, boot_share)
        self._boot_again = beside_tasks(costs.leave_s + costs.boot_s, boot_share)
        self._boot_ahead = beside_tasks(max(0.0, costs.boot_s - costs.start_s), boot_share)
        self._setup = beside_tasks(costs.setup_s, costs.setup_cpu_share)

    def _share_of(self, attempt: Attempt) -> float:
        """Cores wanted, with what the pool computes for the attempt, over the time that it holds its worker."""
        costs = self._costs
        seconds = min(attempt.seconds, self._rules.task_timeout)
        cpu_s = attempt.cpu_share * seconds + costs.dispatch_cpu_s
        whole_s = seconds + costs.dispatch_s
        if math.isinf(whole_s):
            return attempt.cpu_share
        return cpu_s / whole_s if whole_s else 0.0

    # ------------------------------------------------------------------ the loop

    def run(self) -> SimulatedRun:
        """Until nothing is left that could happen."""
        self._now = self._costs.start_s
        self._boot_workers()
        left = len(self._steps)
        while self._completed + self._failed < left:
            while self._idle and self._ready and self._now >= self._next_start:
                self._start(heapq.heappop(self._ready) & ((1 << 40) - 1))
            if not self._step_on():
                raise ValueError("the batch never ends: an attempt hangs, and there is no timeout")
        return self._outcome()

    def _boot_workers(self) -> None:
        """The queue's process is there, and with it the workers that were started ahead of it."""
        costs = self._costs
        ahead = ahead_of(self._rules.workers, self._rules.cores, leaves_core=costs.leaves_core)
        later = self._rules.workers - ahead
        if costs.add_s:
            heapq.heappush(self._timed, (self._now + later * costs.spawn_s, _ADD, 0))
        if not costs.boot_s and not costs.spawn_s:
            for _ in range(self._rules.workers):
                self._employ()
            return
        for _ in range(ahead):
            self._launch(_WORKER, self._boot_ahead)
        for number in range(later):
            heapq.heappush(self._timed, (self._now + number * costs.spawn_s, _SPAWN, 0))

    def _start(self, rank: int) -> None:
        steps = self._steps[rank]
        tried = self._tried[rank]
        self._tried[rank] = tried + 1
        self._idle -= 1
        self._attempts += 1
        self._waited_s += self._now - self._ready_at[rank]
        self._launch(rank, steps[tried] if tried < len(steps) else steps[-1])
        if self._rules.start_delay:
            self._next_start = self._now + self._rules.start_delay
            heapq.heappush(self._timed, (self._next_start, _NEXT, 0))
        if self._made:
            self._made_by[self._serial] = self._made.popleft() + 1

    def _launch(self, rank: int, step: _Step) -> None:
        self._serial = serial = self._serial + 1
        self._running[serial] = (rank, step, self._now)
        pace = self._paces[step.pace]
        pace.running += 1
        if step.length is not None:
            heapq.heappush(pace.ends, (pace.clock + step.length, serial))
        if step.may_be_late:
            deadline = self._now + self._costs.dispatch_s + self._rules.task_timeout
            heapq.heappush(self._timed, (deadline, _DEADLINE, serial))

    def _step_on(self) -> bool:
        """Go to the next moment at which something happens, and let it happen."""
        if not self._is_roomy:
            self._set_rates()
        moment, of_pace = math.inf, None
        for pace in self._paces:
            ends = pace.ends
            while ends and ends[0][1] not in self._running:  # it was killed
                heapq.heappop(ends)
            if ends and (at := self._now + max(0.0, ends[0][0] - pace.clock) / pace.rate) < moment:
                moment, of_pace = at, pace
        if self._timed and self._timed[0][0] <= moment:
            at, what, which = heapq.heappop(self._timed)
            self._advance(max(at, self._now))
            self._happen(what, which)
            return True
        if of_pace is None:
            return False
        self._advance(moment)
        self._end(heapq.heappop(of_pace.ends)[1])
        return True

    def _advance(self, moment: float) -> None:
        passed_s = moment - self._now
        self._now = moment
        if passed_s:
            for pace in self._paces:
                pace.clock += pace.rate * passed_s

    def _set_rates(self) -> None:
        """How fast each pace goes now, by how many run of each."""
        counts = tuple([pace.running for pace in self._paces])
        rates = self._rates.get(counts)
        if rates is None:
            rates = self._rates[counts] = self._new_rates(counts)
        for pace, rate in zip(self._paces, rates, strict=True):
            pace.rate = rate

    def _new_rates(self, counts: tuple[int, ...]) -> list[float]:
        computing = sum(n for n, pace in zip(counts, self._paces, strict=True) if pace.share > 0.0)
        wanted = sum(n * pace.share for n, pace in zip(counts, self._paces, strict=True))
        stretch = stretch_of(computing, wanted / computing, self._rules.cores) if computing else 1.0
        return [1.0 / (1.0 + min(1.0, pace.share) * (stretch - 1.0)) for pace in self._paces]

    # ------------------------------------------------------------------ what happens

    def _happen(self, what: int, which: int) -> None:
        if what == _DUE:
            self._ready_at[which] = self._now
            heapq.heappush(self._ready, self._keys[which])
        elif what == _DEAD:
            self._replace(is_foreseen=self._costs.boot_s <= self._rules.task_timeout / 2)
        elif what == _SPAWN:
            self._launch(_WORKER, self._boot)
        elif what == _ADD:
            self._launch(_ADDING, self._adding)
        elif what == _DEADLINE and which in self._running:
            self._kill(which)

    def _end(self, serial: int) -> None:
        """An attempt ended by itself, or a worker's start did."""
        rank, step, since = self._running.pop(serial)
        self._paces[step.pace].running -= 1
        self._cpu_s += step.share * (step.length or 0.0)
        if rank < 0:
            self._come_up(rank)
            return
        attempt = step.attempt
        self._busy_s += self._now - since
        self._alone_s += step.length or 0.0
        made = self._made_by.pop(serial, 0)
        if attempt.ends_worker:
            self._replace(is_foreseen=False)
        elif made and made == self._rules.max_tasks_per_worker:
            self._launch(_WORKER, self._boot_again)
        else:
            self._idle_now(made)
        if attempt.outcome == COMPLETED:
            self._completed += 1
            self._note_end(rank)
        elif attempt.outcome == FAILED:
            self._fail(rank)
        else:
            self._retry(rank, attempt.retry_after_s)

    def _come_up(self, what: int) -> None:
        """What was started beside the tasks is done."""
        if what == _RESERVE and not self._missing:
            self._reserve += 1
            return
        self._missing -= what == _RESERVE
        if what == _SETUP:
            self._idle_now(0)
        elif what != _ADDING:
            self._employ()

    def _employ(self) -> None:
        """A worker takes its place, and sets its processor up."""
        if self._costs.setup_s:
            self._launch(_SETUP, self._setup)
        else:
            self._idle_now(0)

    def _idle_now(self, made: int) -> None:
        """A worker has nothing to do, and so many attempts behind it."""
        self._idle += 1
        if self._rules.max_tasks_per_worker:
            self._made.append(made)

    def _replace(self, *, is_foreseen: bool) -> None:
        """A worker is dead: one in reserve takes its place, and another one is started, computing beside the tasks.

        Half of a timeout before the kill one is started for that worker alone; from the first loss on there is one in any
        case (Staff._foreseen_deaths).
        """
        starts = 1 if self._has_lost or is_foreseen else 2
        self._has_lost = True
        if is_foreseen or self._reserve:
            self._reserve -= not is_foreseen
            self._employ()
        else:
            self._missing += 1
        for _ in range(starts):
            self._launch(_RESERVE, self._boot)

    def _kill(self, serial: int) -> None:
        """The timeout: when the worker is dead, the task goes back."""
        rank, step, since = self._running.pop(serial)
        self._made_by.pop(serial, None)
        costs = self._costs
        pace = self._paces[step.pace]
        pace.running -= 1
        self._cpu_s += step.share * (self._now - since) * pace.rate
        self._killed += 1
        self._busy_s += self._now - since + costs.kill_s
        self._alone_s += self._now - since + costs.kill_s
        heapq.heappush(self._timed, (self._now + costs.kill_s, _DEAD, 0))
        self._retry(rank, None, costs.kill_s)

    def _retry(self, rank: int, after_s: float | None, later_s: float = 0.0) -> None:
        rules = self._rules
        retry = self._tried[rank]
        if retry > rules.max_retries:
            self._fail(rank, later_s)
            return
        if after_s is None:
            after_s = backoff_s(retry, rules.retry_delay, rules.max_retry_delay, rules.jitter, self._random.random)
        delay_s = min(after_s, rules.max_retry_delay * (1.0 + rules.jitter))
        heapq.heappush(self._timed, (self._now + later_s + delay_s, _DUE, rank))

    def _fail(self, rank: int, later_s: float = 0.0) -> None:
        self._failed += 1
        self._note_end(rank, later_s)

    def _note_end(self, rank: int, later_s: float = 0.0) -> None:
        ended = self._now + later_s
        self._last_end = max(self._last_end, ended)
        priority = self._priorities[rank]
        self._ended_s[priority] = max(ended, self._ended_s.get(priority, 0.0))

    def _outcome(self) -> SimulatedRun:
        rules, costs = self._rules, self._costs
        worked_s = self._last_end - costs.start_s
        leaving_s = costs.end_s + costs.report_s * len(self._steps) + costs.leave_s * rules.workers
        return SimulatedRun(
            makespan_s=(self._last_end or costs.start_s) + leaving_s,
            busy_share=min(1.0, self._busy_s / (worked_s * rules.workers)) if worked_s > 0.0 else 0.0,
            cpu_share=self._cpu_used(worked_s),
            waited_s=self._waited_s / self._attempts if self._attempts else 0.0,
            attempts=self._attempts,
            completed=self._completed,
            failed=self._failed,
            killed=self._killed,
            stretch=self._busy_s / self._alone_s if self._alone_s else 1.0,
            ended_s=dict(sorted(self._ended_s.items())),
        )

    def _cpu_used(self, worked_s: float) -> float:
        if math.isinf(self._rules.cores) or worked_s <= 0.0:
            return 0.0
        return min(1.0, self._cpu_s / (worked_s * self._rules.cores))


# ---------------------------------------------------------------------- samples


def _run_batch(
    histories: Sequence[History], priorities: Sequence[int], rules: Rules, costs: Costs, random: Random
) -> SimulatedRun:
    """Simulate a batch; of a very long one the beginning, and its pace for the rest."""
    count = len(histories)
    if count <= MAX_SIMULATED_TASKS:
        return simulate(histories, rules, costs, random, priorities=priorities)
    picked = sorted(random.sample(range(count), MAX_SIMULATED_TASKS))
    part = [histories[n] for n in picked]
    urgency = [priorities[n] for n in picked]
    half = MAX_SIMULATED_TASKS // 2
    shorter = simulate(part[:half], rules, costs, random, priorities=urgency[:half])
    run = simulate(part, rules, costs, random, priorities=urgency)
    pace_s = max(0.0, run.makespan_s - shorter.makespan_s) / (MAX_SIMULATED_TASKS - half)
    factor = count / MAX_SIMULATED_TASKS
    return replace(
        run,
        makespan_s=run.makespan_s + pace_s * (count - MAX_SIMULATED_TASKS),
        attempts=round(run.attempts * factor),
        completed=round(run.completed * factor),
        failed=round(run.failed * factor),
        killed=round(run.killed * factor),
        ended_s={priority: ended * factor for priority, ended in run.ended_s.items()},
    )


def _dealt(histories: Sequence[History], count: int, random: Random) -> list[History]:
    """`count` histories, each as often as every other, in random order."""
    whole, rest = divmod(count, len(histories))
    dealt = [history for history in histories for _ in range(whole)] + random.sample(list(histories), rest)
    random.shuffle(dealt)
    return dealt


def _range_of(expected_s: float, drawn: Sequence[float]) -> tuple[float, float]:
    """Around the expected time: what the samples differ by, and what two runs of one batch do; in shares of it."""
    import statistics  # here, as every worker process imports this package

    factor = 1.0 + MODEL_MARGIN
    if len(drawn) < 2 or expected_s <= 0.0:
        return expected_s / factor, expected_s * factor
    spread = math.exp(RANGE_DEVIATIONS * statistics.stdev(map(math.log, drawn)))
    return min(expected_s / spread, *drawn) / factor, max(expected_s * spread, *drawn) * factor


def _ended_by_themselves(histories: Sequence[History]) -> list[float]:
    return sorted(a.seconds for history in histories for a in history if math.isfinite(a.seconds))


def _is_heavy_tailed(histories: Sequence[History]) -> bool:
    seconds = _ended_by_themselves(histories)
    if len(seconds) < 10 or seconds[-1] <= HEAVY_TAIL_RATIO * seconds[len(seconds) // 2]:
        return False
    return sum(seconds[-(len(seconds) // 10) :]) > HEAVY_TAIL_SHARE * sum(seconds)


def _with_tail(dealt: Sequence[History], sample: Sequence[History], random: Random) -> list[History]:
    """Let the longest tenth take any time that a Pareto tail of the sample's slope has (Hill 1975).

    What a sample has not seen it cannot repeat; in the range it must be there all the same.
    """
    seconds = _ended_by_themselves(sample)
    top = max(3, len(seconds) // 10)
    threshold = seconds[-top - 1] if len(seconds) > top else seconds[0]
    excess = sum(math.log(one / threshold) for one in seconds[-top:] if one > threshold > 0.0)
    slope = max(1.05, top / excess) if excess else math.inf
    return [_lengthened(history, threshold, slope, random) for history in dealt]


def _lengthened(history: History, threshold: float, slope: float, random: Random) -> History:
    if all(math.isinf(attempt.seconds) or attempt.seconds <= threshold for attempt in history):
        return history
    length = threshold * (1.0 - random.random()) ** (-1.0 / slope)  # of a task: it takes as long when it is retried
    return tuple(replace(a, seconds=length) if threshold < a.seconds < math.inf else a for a in history)


def _grouped(shares: Sequence[float]) -> list[float]:
    """At most MAX_SHARES values that stand for all: the middles of groups of about the same size, 0 kept apart."""
    ordered = sorted(share for share in shares if share > 0.0)
    different = sorted({round(share, 3) for share in ordered})
    zero = [0.0] if len(ordered) < len(shares) else []
    if len(different) <= MAX_SHARES:
        return zero + different
    size = math.ceil(len(ordered) / MAX_SHARES)
    groups = [ordered[n : n + size] for n in range(0, len(ordered), size)]
    return zero + [sum(group) / len(group) for group in groups]
