"""A sample of a batch, run for real: which POs, what each attempt took, and what the pool itself costs."""

import contextlib
import signal
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from poqueue.adaptive import TIMEOUT_ERROR
from poqueue.errors import ConfigError
from poqueue.journal import JOURNAL_NAME
from poqueue.simulation import TYPICAL_BY_START, TYPICAL_COSTS, Costs, ahead_of
from poqueue.task import Event, ProcessingTask
from workers.amounts import read_amount
from workers.log import RunLogging
from workers.measuring import Measure, alone_seconds, measured_spec, read_measures
from workers.own_process import usable_cores
from workers.processing import ProcessorSpec
from workers.progress import Progress
from workers.settings import RunSettings
from workers.signals import SignalInbox
from workers.staff import WorkersCannotStartError
from workers.supervisor import RunEnd, Supervisor

CRASHES = ("WorkerKilled", "WorkerExited", "OutOfMemory")
MAX_GAP_S = 0.02
MIN_SETUP_S = 0.001  # one that does nothing takes less
MIN_GAPS = 10  # fewer say too little about what lies between two attempts


class SampleInterruptedError(Exception):
    """Somebody stopped the sample; `args[0]` is the signal's number."""


@dataclass(frozen=True, slots=True)
class MeasuredAttempt:
    """One attempt of the sample, or of an earlier run.

    Attributes:
        seconds: how long it took with a core at hand; of one that was killed, until then; None: nobody knows.
        outcome: "completed", "failed" (the PO's last attempt), "retry" or "interrupted".
        is_final: it failed in a way that no further attempt could help.
        cpu_s, max_rss_bytes: None where they were not measured.
        taken_s: how long it took as it was, where that differs; a timeout goes by this.
    """

    po_number: str
    seconds: float | None
    outcome: str
    error_type: str = ""
    is_final: bool = False
    retry_after_s: float | None = None
    cpu_s: float | None = None
    max_rss_bytes: int | None = None
    taken_s: float | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """What a sample has shown: its attempts by PO, in order, and what the pool took beside them.

    Attributes:
        jobs: workers that were asked for; `booted` of them came so far as to work.
        seconds: from the start to the end of all processes.
    """

    attempts: list[MeasuredAttempt]
    costs: Costs
    jobs: int
    booted: int
    seconds: float


# ---------------------------------------------------------------------- which POs


def choose(orders: Sequence[dict[str, Any]], count: int, random: Random) -> list[int]:
    """Places of a stratified sample: each large supplier by its share, the small ones together, and in each by amount.

    A systematic sample of the sorted orders, from a random start: every PO is as likely as every other.
    """
    count = min(count, len(orders))
    if not count:
        return []
    step = len(orders) / count
    frequencies = Counter(_supplier_of(order) for order in orders)

    def stratum(place: int) -> tuple[str, float, int]:
        supplier = _supplier_of(orders[place])
        return (supplier if frequencies[supplier] >= step else "", _amount_of(orders[place]), place)

    ordered = sorted(range(len(orders)), key=stratum)
    start = random.random() * step
    return sorted(ordered[min(len(ordered) - 1, int(start + n * step))] for n in range(count))


def _supplier_of(order: dict[str, Any]) -> str:
    return str(order.get("supplier") or "").strip().casefold()


def _amount_of(order: dict[str, Any]) -> float:
    """What the rows of a PO come to; what is no amount counts as nothing."""
    readings = [read_amount(str(row.get("amount") or "")) for row in order.get("rows") or [order]]
    return float(sum(reading.value for reading in readings if reading is not None))


# ---------------------------------------------------------------------- running them


def run_sample(
    orders: Sequence[dict[str, Any]],
    priorities: Sequence[int],
    settings: RunSettings,
    spec: ProcessorSpec,
    progress: Progress,
    *,
    jobs: int,
) -> Sample:
    """Run these orders under the settings, on `jobs` workers, in a folder that is removed afterwards.

    Raises:
        ConfigError: no worker can start.
        SampleInterruptedError: a signal stopped it.
    """
    with tempfile.TemporaryDirectory(prefix="poqueue-tune-") as name:
        folder = Path(name)
        (folder / "measures").mkdir()
        watch = _Watch(len(orders))
        with SignalInbox() as signals, RunLogging(folder / "run.log", "tune", progress.log, verbosity=0, as_json=False):
            spec = measured_spec(spec, folder / "measures", warms_up=bool(orders))
            supervisor = _supervisor(spec, settings, jobs, folder, watch, progress, signals)
            end = _run(supervisor, orders, priorities, watch)
            late = [number for number in iter(signals.take, None) if number != signal.SIGQUIT]
        if end.reason == "interrupted" or late:
            raise SampleInterruptedError(end.signal or late[0])
        measures = list(read_measures(folder / "measures"))
        attempts = list(_attempts(watch, measures))
        costs = _costs(watch, measures, jobs, settings)
        return Sample(attempts, costs, jobs, sum(not m.attempt for m in measures), watch.closed - watch.begun)


def measure_start(
    settings: RunSettings, spec: ProcessorSpec, progress: Progress, *, jobs: int, start_method: str
) -> Costs | None:
    """What another start method takes: workers are started by it, set up, and end without a PO; None: they did not come up.

    Only its start and end say something (Costs.with_start_of). Errors as in run_sample, but for the ConfigError.
    """
    try:
        found = run_sample([], [], replace(settings, start_method=start_method), spec, progress, jobs=jobs)
    except ConfigError:
        return None
    return found.costs if found.booted >= jobs else None


def _supervisor(
    spec: ProcessorSpec,
    settings: RunSettings,
    jobs: int,
    folder: Path,
    watch: "_Watch",
    progress: Progress,
    signals: SignalInbox,
) -> Supervisor:
    return Supervisor(
        spec, jobs=jobs, start_method=settings.start_method, grace=settings.grace,
        stop_grace=settings.stop_grace, max_tasks_per_worker=settings.max_tasks_per_worker,
        max_memory_per_worker=settings.max_memory_per_worker, work_dir=folder / "work", output_dir=folder / "output",
        on_event=watch.take, on_show=progress.update, signals=signals, max_retries=settings.max_retries,
        retry_delay=settings.retry_delay, task_timeout=settings.task_timeout.seconds, enable_priority=settings.priority,
        max_retry_delay=settings.max_retry_delay, retry_jitter=settings.jitter, start_delay=settings.start_delay,
        timeout_share=settings.task_timeout.share or None, timeout_floor=settings.timeout_floor,
        journal=folder / JOURNAL_NAME if settings.journal else None, durability=settings.durability,
    )  # fmt: skip


def _run(
    supervisor: Supervisor, orders: Sequence[dict[str, Any]], priorities: Sequence[int], watch: "_Watch"
) -> RunEnd:
    watch.begun = time.monotonic()
    try:
        with contextlib.closing(supervisor):
            supervisor.start_queue(prepares_workers=True)
            watch.has_queue = time.monotonic()
            supervisor.start_workers()
            watch.started = time.monotonic()
            supervisor.queue.add_tasks(
                [
                    ProcessingTask(f"t{number}", po_data=order, priority=priority)
                    for number, (order, priority) in enumerate(zip(orders, priorities, strict=True))
                ]
            )
            watch.added_s = time.monotonic() - watch.started
            end = supervisor.run()
            supervisor.take_rest()
            told = time.monotonic()
            supervisor.queue.export_queue_report("json")
            watch.report_s = time.monotonic() - told
    except WorkersCannotStartError as error:
        raise ConfigError(f"no sample can be run: {error}") from None
    watch.closed = time.monotonic()
    return end


class _Watch:
    """Notes what the supervisor tells, and what the helpers of the pool have computed meanwhile."""

    def __init__(self, count: int) -> None:
        self.begun = self.has_queue = self.started = self.closed = 0.0
        self.added_s = self.report_s = 0.0
        self.ends: dict[int, Event] = {}
        self.counted = 0  # attempts between the two looks
        self.first_look: dict[int, float] = {}
        self.last_look: dict[int, float] = {}
        self._count = count

    def take(self, event: Event) -> None:
        """An event of the queue."""
        if event.task is None or event.kind not in ("completed", "failed", "retry"):
            return
        self.counted += bool(self.first_look)
        if event.kind != "retry":
            self.ends[int(event.task.task_id[1:])] = event
        if not self.first_look:
            self.first_look = _computed()
        elif len(self.ends) == self._count:
            self.last_look = _computed()


def _computed() -> dict[int, float]:
    """Computing so far of this process (as pid 0) and its children, seconds."""
    import psutil

    found = {0: time.process_time()}
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error, OSError):
            found[child.pid] = _scheduled_s(child.pid) or sum(child.cpu_times()[:2])
    return found


def _scheduled_s(pid: int) -> float:
    """Of all threads, to the nanosecond; 0 where the kernel does not say."""
    try:
        files = list(Path(f"/proc/{pid}/task").glob("*/schedstat"))
        return sum(int(file.read_bytes().split()[0]) for file in files) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


# ---------------------------------------------------------------------- what came of it


def _attempts(watch: _Watch, measures: Iterable[Measure]) -> Iterator[MeasuredAttempt]:
    measured = {(measure.task_id, measure.attempt): measure for measure in measures}
    for _, event in sorted(watch.ends.items()):
        record = event.task
        assert record is not None
        errors = {error["attempt"]: error for error in record.error_history}
        for attempt in range(1, record.attempt + 1):
            is_last = attempt == record.attempt
            yield _attempt(
                record.po_number, event.kind if is_last else "retry",
                errors.get(attempt, {}), measured.get((record.task_id, attempt)),
            )  # fmt: skip


def _attempt(po_number: str, outcome: str, error: dict[str, Any], measure: Measure | None) -> MeasuredAttempt:
    error_type = str(error.get("error_type", ""))
    if measure is None:
        seconds = error.get("seconds")
        return MeasuredAttempt(po_number, seconds, outcome, error_type)
    return MeasuredAttempt(
        po_number, _alone_s(measure), outcome, error_type, measure.is_final, measure.retry_after_s, measure.cpu_s,
        measure.max_rss_bytes, measure.ended - measure.begun,
    )  # fmt: skip


def _alone_s(measure: Measure) -> float:
    return alone_seconds(measure.ended - measure.begun, measure.cpu_s, measure.queued_s)


def _costs(watch: _Watch, measures: Sequence[Measure], jobs: int, settings: RunSettings) -> Costs:
    """What lay around the attempts; what a small sample cannot say is taken as typical."""
    typical = TYPICAL_BY_START[settings.start_method]
    setups = sorted((m for m in measures if not m.attempt), key=lambda m: m.begun)[:jobs]  # later ones replace others
    attempts = [measure for measure in measures if measure.attempt]
    boot_s, boot_cpu_share = _boot(setups) if setups else (typical.boot_s, typical.boot_cpu_share)
    setup_s, setup_cpu_share = _setup(setups) if setups else (0.0, 0.0)
    leave_s = typical.leave_s  # what two workers take longer than one is too little to measure it
    last_s = max((measure.ended for measure in measures), default=watch.closed)
    dispatch_s, dispatch_cpu_s = _dispatch(
        watch, attempts, {measure.pid for measure in measures}, is_spaced=bool(settings.start_delay)
    )
    tasks = max(1, len(watch.ends))
    later = jobs - ahead_of(jobs, usable_cores(), leaves_core=typical.leaves_core)
    return Costs(
        start_s=watch.has_queue - watch.begun,
        boot_s=boot_s,
        boot_cpu_share=boot_cpu_share,
        dispatch_s=dispatch_s,
        dispatch_cpu_s=dispatch_cpu_s,
        kill_s=_kill_s(watch, settings.task_timeout.seconds),
        end_s=max(0.0, watch.closed - last_s - watch.report_s - jobs * leave_s),
        report_s=watch.report_s / tasks,
        spawn_s=(watch.started - watch.has_queue) / later if later else typical.spawn_s,
        add_s=watch.added_s / tasks,
        leave_s=leave_s,
        setup_s=setup_s,
        setup_cpu_share=setup_cpu_share,
        leaves_core=typical.leaves_core,
    )


def _boot(setups: Sequence[Measure]) -> tuple[float, float]:
    """How long a worker's imports take with a core at hand, and what share of it is computing.

    All start at once, so that they wait for each other's cores; the simulation lets those of the batch wait in their turn.
    """
    cpu_s = statistics.median(setup.gap_cpu_s for setup in setups)
    boot_s = max(cpu_s, statistics.median(setup.gap_s for setup in setups))
    return boot_s, cpu_s / boot_s if boot_s else 0.0


def _setup(setups: Sequence[Measure]) -> tuple[float, float]:
    """The same of the processor's setup."""
    setup_s = statistics.median(max(setup.cpu_s, _alone_s(setup)) for setup in setups)
    if setup_s < MIN_SETUP_S:
        return 0.0, 0.0
    return setup_s, min(1.0, statistics.median(setup.cpu_s for setup in setups) / setup_s)


def _kill_s(watch: _Watch, task_timeout: float) -> float:
    """From a timeout to the proof of death, as the supervisor has noted it."""
    kills = [
        error["seconds"] - task_timeout
        for event in watch.ends.values()
        for error in (event.task.error_history if event.task is not None else ())
        if error.get("error_type") == TIMEOUT_ERROR and "seconds" in error
    ]
    return max(0.0, statistics.median(kills)) if kills else TYPICAL_COSTS.kill_s


def _dispatch(
    watch: _Watch, attempts: Sequence[Measure], worker_pids: set[int], *, is_spaced: bool
) -> tuple[float, float]:
    """Time between two attempts of a worker, and computing for each attempt, of worker, manager and supervisor.

    Args:
        is_spaced: starts are a delay apart (--delay), which is all that lies between two attempts then.
    """
    later = [measure for measure in attempts if measure.gap_s]
    if len(later) < MIN_GAPS or watch.counted < MIN_GAPS:
        return TYPICAL_COSTS.dispatch_s, TYPICAL_COSTS.dispatch_cpu_s
    gap_s = mean_of_usual([measure.gap_s for measure in later]) if not is_spaced else TYPICAL_COSTS.dispatch_s
    own_s = mean_of_usual([measure.gap_cpu_s for measure in later])
    helpers = watch.first_look.keys() & watch.last_look.keys() - worker_pids
    helpers_s = sum(watch.last_look[pid] - watch.first_look[pid] for pid in helpers)
    return gap_s, own_s + helpers_s / watch.counted


def mean_of_usual(values: Sequence[float], usual_s: float = MAX_GAP_S) -> float:
    """Without the waits for a retry, or for a process that was stopped: those are no cost of the pool."""
    limit = max(usual_s, 10.0 * statistics.median(values))
    return max(0.0, statistics.fmean(value for value in values if value <= limit))
