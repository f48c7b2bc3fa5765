"""The supervisor: owns the queue's service and N worker processes, and sees to it that every PO ends.

    while work is left:
        signals   what the operator asked for; a handler only notes it
        queue     tasks that are to be added, a lot at a time; outcomes, handed on
        reap      bury the dead, charge what they had in hand, give back what they had not begun
        enforce   kill what is overdue: evidence, TERM, grace, KILL, proof of death, and only then retry_task
        top up    start what is missing, unless the brake is on
        show      where the run stands
        wait      for a death, an answer, a signal or the next deadline; idle is free

It is single-threaded (so that fork is safe), shares no lock with a worker, and never waits for one.
"""

import contextlib
import faulthandler
import functools
import gc
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from multiprocessing import get_context, util

from poqueue.config import check_queue_settings, check_seconds, check_whole
from poqueue.errors import ServiceError
from poqueue.hints import TYPE_CHECKING, Any, NamedTuple, StrPath
from poqueue.script_guard import leave_if_imported_again
from poqueue.task import Event, ProcessingTask, TaskRecord, TaskStatus
from workers import own_process
from workers import process_control as control
from workers.signals import SignalInbox

if TYPE_CHECKING:
    from poqueue.client import QueueClient
    from poqueue.packing import FrozenTask, PackedEvents
    from workers import run_parts as parts
    from workers.early_start import EarlyStart
    from workers.guards import MachineGuard
    from workers.progress import Snapshot, WorkerView
    from workers.recovery import LeftBehind
    from workers.worker import WorkerSettings
    from workers.worker_files import Usage

QUEUE_TURN_S = 0.05
UNHEARD_S = 0.02  # nothing tells when others have acted on their events: looked for so often, at the end
SHOW_S = 0.25
SHOW_IDLE_S = 0.5  # while nobody works
WATCH_S = 1.0  # how often the machine and the journal are looked at
GIVE_UP_S = 5.0  # after everything was stopped, a journal that cannot be written is waited for no longer than this
JOURNAL_GONE_S = 5.0  # a journal that was moved away may come back within this time
FINISHED_AT_ONCE = 1000
ONE_RUN = "a Supervisor is for one run, and this one has been used: make another one"


class Halt(NamedTuple):
    """When to stop early: after so many failed, succeeded or ended POs; at once, or when those that run have ended."""

    failed: int | None = None
    succeeded: int | None = None
    done: int | None = None
    is_now: bool = False

    @property
    def is_set(self) -> bool:
        """Whether there is any such number."""
        return (self.failed, self.succeeded, self.done) != (None, None, None)


class RunEnd(NamedTuple):
    """How a run ended: `reason` is "done", "interrupted" or "halted"; `signal` the first that interrupted it."""

    reason: str
    signal: int = 0
    message: str = ""


class Supervisor:
    """Runs POs on worker processes: one run, after which another one takes another Supervisor.

        with Supervisor(process, jobs=4, task_timeout=60) as supervisor:
            supervisor.queue.add_task(ProcessingTask(po_data={"po_number": "4711"}))
            supervisor.run()

    Args:
        processor: "module:attribute", a function or class that workers can import, or a ProcessorSpec.
        jobs: number of worker processes.
        start_method: "spawn", "forkserver" or "fork"; "fork" only where no other thread of the program runs.
        grace: seconds between SIGTERM and SIGKILL.
        stop_grace: seconds that running POs may go on once a stop was asked for.
        max_tasks_per_worker: replace a worker after so many POs.
        max_memory_per_worker: replace a worker that holds more bytes after a PO, its children counted.
        journal: file of the queue's journal; with one, a lost manager is replaced. It may hold an earlier run's POs.
        durability: of the journal: "normal", or "full" to survive a loss of power.
        halt: when to stop early.
        guard: holds new POs back while the machine is short of something.
        control_dir: folder for the control file, through which other terminals reach this run; none when left out.
        work_dir: folder for the socket and the workers' files, made by start and removed by close; a temporary one when
            left out.
        output_dir: folder for what processors write, made by start if it is not there; one in work_dir when left out.
        log_path: file for the manager's own log lines.
        on_event: called with every event of the queue, in order; ends of attempts come together, up to 0.2 s late.
        events_bring_data: False leaves the PO's data out of the events of completed POs, for a receiver that knows its POs.
        on_show: called with a Snapshot about four times a second, twice while nobody works.
        signals: where signals are noted, if the caller wants them noted before and after the run as well.
        lease_ahead: let a worker hold some 60 ms of work ahead; False keeps strict priority at one lease a worker.
        spare_workers: have `jobs` workers also while there are fewer POs; False starts none for whom there is no PO, with a
            login or a browser of its own perhaps: for a batch, to which nothing is added later.
        queue_settings: keyword arguments of TaskQueue.

    Raises:
        ProcessorError, ValueError: at once, before anything is started.
    """

    def __init__(
        self,
        processor: Any,
        *,
        jobs: int = 2,
        start_method: str = "spawn",
        grace: float = 2.0,
        stop_grace: float = 30.0,
        max_tasks_per_worker: int | None = None,
        max_memory_per_worker: int | None = None,
        journal: StrPath | None = None,
        durability: str = "normal",
        halt: Halt | None = None,
        guard: "MachineGuard | None" = None,
        control_dir: StrPath | None = None,
        work_dir: StrPath | None = None,
        output_dir: StrPath | None = None,
        log_path: StrPath | None = None,
        on_event: Callable[[Event], None] | None = None,
        events_bring_data: bool = True,
        on_show: "Callable[[Snapshot], None] | None" = None,
        signals: SignalInbox | None = None,
        lease_ahead: bool = True,
        spare_workers: bool = True,
        early: "EarlyStart | None" = None,
        **queue_settings: Any,
    ) -> None:
        if not isinstance(processor, str):
            _check_processor(processor, start_method)
        self._processor = processor
        check_queue_settings(queue_settings)
        _check_numbers(jobs, grace, stop_grace, max_tasks_per_worker, max_memory_per_worker)
        paths = (journal, control_dir, work_dir, output_dir, log_path)
        journal, control_dir, work_dir, output_dir, log_path = map(_absolute_or_none, paths)
        self._grace_s, self._stop_grace_s = grace, stop_grace
        self._max_tasks, self._max_memory = max_tasks_per_worker, max_memory_per_worker
        self._halt = halt or Halt()
        self._lease_ahead = lease_ahead and not self._halt.is_set  # what is held ahead would still start after the halt
        self._guard, self._spare_workers = guard, spare_workers
        self._control_dir = control_dir
        self._journal = journal
        self._journal_gone_since: float | None = None
        self.run_id = f"{os.getpid()}-{os.urandom(4).hex()}"
        self._work_dir = os.path.realpath(work_dir or os.path.join(tempfile.gettempdir(), f"poqueue-run-{self.run_id}"))
        self._output_dir = output_dir or os.path.join(self._work_dir, "output")
        _check_files(durability, log_path, self._work_dir)
        self._start_method, self._context = start_method, get_context(start_method)
        self._since = control.born(os.getpid())
        self._jobs, self._early = jobs, early
        self._log_path = log_path or os.devnull
        self._queue_settings = {"journal": journal, "durability": durability, **queue_settings}
        self._brings_data = events_bring_data and on_event is not None
        self._adoption = own_process.Adoption()
        self._at_exit: Any = None  # ends what this program, when it ends, has not closed; no fork of it does
        self._signals = signals if signals is not None else SignalInbox()
        self._to_feed = list[tuple[Iterable[Any], int]]()  # before there is a feeder
        self._has_queue = self._has_parts = False
        self._on_event, self._on_show = on_event, on_show
        self._journal_inodes = list[int]()
        self._keeps_files = False  # what workers have left must be read by whoever resumes
        self._may_be_done, self._has_unread, self._has_unheard = True, False, False
        self._halted = ""
        self._ended_before: dict[str, int] | None = None  # in earlier runs, of each kind; None while nobody works
        self._holds_because = self._fault = self._note = ""
        self._next_watch = 0.0
        self._is_running = self._is_draining = self._has_run = False
        self._is_over = False  # it drains since all was done, and not to go on another time
        self._stop_level = self._stop_signal = 0
        self._stop_due = 0.0
        self._give_up_at = float("inf")
        self._next_show = 0.0
        self._begun = time.monotonic()

    def _make_queue(self) -> None:
        """What starts the queue's process, imported beside the start of the fork server if there is one.

        Harmless when repeated, as is _make_parts.
        """
        if self._has_queue:
            return
        from poqueue.service import QueueService, fits_address
        from workers.queue_keeper import OWN_CLIENTS, QueueKeeper

        self._service = QueueService(
            start_method=self._start_method,
            directory=self._work_dir if fits_address(self._work_dir) else None,
            log_path=self._log_path,
            on_orphan=functools.partial(
                control.end_run, self.run_id, self._work_dir, self._since, keeps_files=self._journal is not None
            ),
            early=self._early.managers if self._early is not None else None,
            lines=OWN_CLIENTS + min(self._jobs, own_process.usable_cores()),
            **self._queue_settings,
        )
        self._keeper = QueueKeeper(
            self._service, self._after_replacement, self._after_missing, brings_data=self._brings_data
        )
        self._ask = self._keeper.ask
        self._has_queue = True

    def _make_parts(self) -> None:
        """All else that the run is made of, imported beside the start of the queue's process."""
        if self._has_parts:
            return
        global parts
        from workers import run_parts as parts

        self._log = parts.ShieldedLogger(__name__)
        spec = self._processor
        self._spec = spec if isinstance(spec, parts.ProcessorSpec) else parts.ProcessorSpec(spec)
        self._feeder = parts.Feeder(self._keeper)
        while self._to_feed:
            self._feeder.begin(*self._to_feed.pop(0))
        self._staff = parts.Staff(
            self._jobs, self._context, self._work_dir, self.run_id, self._worker_settings,
            self._early.workers if self._early is not None else None, self._service.take_line,
        )  # fmt: skip
        self._reaper = parts.Reaper(self._staff, self._keeper)
        self._reaper.begin()
        self._limits = parts.TimeLimits(self._staff, self._keeper, self._grace_s, self._max_memory)
        self._has_parts = True

    # ------------------------------------------------------------------ life

    def __enter__(self) -> "Supervisor":
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the manager and the workers; they wait for POs at once.

        Raises:
            ManagerLostError: the manager process died while it started.
            JournalError: the journal cannot be opened.
            RuntimeError: it was started before.
        """
        self.start_queue(prepares_workers=True)
        self.start_workers()

    def feed(self, tasks: "Iterable[ProcessingTask | FrozenTask]", count: int = 0) -> None:
        """What run is to add, beside what the queue has; before start_queue, or after it. More of it may follow.

        It is added while the first of it is worked on, in this order, each task once whatever is lost on the way; a few
        thousand at most are made ahead. Of a FrozenTask the data are taken as they are, and the first ones are made while
        the manager starts. Each next() of an iterator holds up the supervisor: what takes long there delays retries and
        stops by as much, and time limits by up to twice that. While the queue is at its size limit the rest waits.

        Args:
            count: how many these are, as far as is known; they are shown as waiting.
        """
        if self._has_parts:
            self._feeder.begin(tasks, count)
        else:
            self._to_feed.append((tasks, count))

    def start_queue(self, *, prepares_workers: bool = False) -> None:
        """Start the manager: the queue can be filled, and looked at, before anybody works on it. Errors as in start.

        Args:
            prepares_workers: also start the processes of start_workers, which is sure to follow: they import while the
                manager does, and know no PO before.
        """
        leave_if_imported_again(self._start_method)
        if self._at_exit is not None:
            raise RuntimeError(ONE_RUN)
        if self._start_method == "forkserver" and control.start_forkserver():
            control.leave_cores_to_helpers()
        self._make_queue()
        if self._start_method == "forkserver":  # whoever asks it for the queue's process has to wait: not yet
            self._make_parts()
        os.mkdir(self._work_dir, 0o700)
        # before the manager's own, and before multiprocessing waits for the workers
        self._at_exit = util.Finalize(None, self.close, exitpriority=1)
        try:
            os.makedirs(self._output_dir, 0o700, exist_ok=True)
            self._adoption.hold()

            def meanwhile() -> None:
                self._make_parts()
                if prepares_workers:
                    self._staff.prepare(time.monotonic(), None if self._spare_workers else self._feeder.unsent)
                self._feeder.make_ahead()

            self._keeper.open(meanwhile=meanwhile)
            self._make_parts()  # if the first manager was lost before that
            self.queue: QueueClient = self._keeper.queue
            if self._journal is not None:
                self._journal_inodes = _inodes(self._journal)
            self._write_control_file()
        except BaseException:
            self.close()
            raise

    def _check_started(self) -> None:
        if self._at_exit is None or not self._has_parts:
            raise RuntimeError("a Supervisor must be started first: by `with`, or by start()")

    def start_workers(self) -> None:
        """Start the workers; start_queue comes first. From here on it counts what ends, for the halt."""
        self._check_started()
        try:
            if self._halt.is_set:
                self._ended_before = self._count_ended(self._ask("get_queue_status"))
                self._set_halt(self._ask)
            self._watch(time.monotonic())  # before the first PO begins
            self._top_up(time.monotonic())
        except BaseException:
            self.close()
            raise

    def take_up(self, left: "LeftBehind", reason: str) -> int:
        """Tell the queue what the workers of an earlier, dead supervisor have left; before start_workers.

        Returns:
            How many POs were interrupted in the middle.
        """
        self._check_started()
        self._staff.count_on([*self._ask("get_performance_metrics")["worker_utilization"], *left.worker_ids])
        leases = self._ask("get_leases", brings_data=False)
        for token, report in left.reports.items():
            if token in leases:
                self._keeper.report_for(leases[token].worker_id or "", [report])
        return int(self._ask("interrupt_leases", left.begun, reason, is_crash=True, all_others=True))

    def add_tasks(self, tasks: list[ProcessingTask]) -> None:
        """Add tasks that have ids of the caller's, as often as it takes: the manager may be replaced meanwhile.

        They go in lots of 250, each of them as a whole or not at all: after an error those before it are in the queue.

        Raises:
            ValueError, QueueFullError: the queue refuses one of a lot.
            JournalError: a lot cannot be written down for now.
            ServiceError: the manager is lost, and could not be replaced.
        """
        self._check_started()
        for start in range(0, len(tasks), parts.ADD_AT_ONCE):
            self._add_lot(tasks[start : start + parts.ADD_AT_ONCE])

    def _add_lot(self, tasks: list[ProcessingTask]) -> None:
        while True:
            try:
                self.queue.add_tasks(tasks)
                return
            except ServiceError as error:
                if self._were_added(tasks, error):
                    return

    def _were_added(self, tasks: list[ProcessingTask], error: ServiceError) -> bool:
        """All or none were, and it may have been only the answer that was lost with the manager."""
        self._keeper.replace(error)
        return self.queue.find_task(task_id=tasks[0].task_id) is not None

    @property
    def usage(self) -> "Usage":
        """Of the workers that have ended by themselves."""
        self._check_started()
        return self._reaper.usage

    def ask(self, name: str, *args: Any, **words: Any) -> Any:
        """Call a method of the queue that may be repeated; answers are as the queue's process gives them, unopened.

        Raises:
            ServiceError: the manager is lost, and could not be replaced.
        """
        self._check_started()
        return self._ask(name, *args, **words)

    def close(self) -> None:
        """End every process of the run, whatever state it is in; harmless when repeated, and done at the program's exit."""
        if self._at_exit is None:  # it was never started: what is there is somebody else's
            return
        if self._has_parts:
            self._close_workers()
        if self._has_queue:
            self._keeper.close()
        control.kill_run(self.run_id, self._work_dir, control.helper_pids(), self._since)
        if not control.has_parents_of_others():  # of another supervisor in this process, whose orphans these might be
            control.kill_orphans()
        control.reap_orphans()
        self._adoption.let_go()
        if not self._keeps_files:
            shutil.rmtree(self._work_dir, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):  # there is something in it that is to be read
                os.rmdir(self._work_dir)
        if self._control_dir is not None:
            from workers.run_control import CONTROL_NAME

            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(self._control_dir, CONTROL_NAME))
        self._at_exit.cancel()

    def _close_workers(self) -> None:
        for worker in self._staff:
            if not worker.is_dead():
                worker.kill_now(time.monotonic())
            worker.join()
            with contextlib.suppress(Exception):
                worker.bury()
            worker.forget(keep_files=self._keeps_files)
        self._reaper.forget(keep_files=self._keeps_files)
        self._staff.workers, self._staff.standbys = [], []

    def stop(self, signal_number: int = signal.SIGTERM) -> None:
        """Ask for a stop, as the signal would; each further call is one step harder."""
        self._signals.put(signal_number)

    # ------------------------------------------------------------------ the loop

    def run(self) -> RunEnd:
        """Work until nothing is left, or until it is interrupted; once.

        What event handlers add is worked on too, also if they are called late. Not waited for are one that takes 30 s for an
        event and, if a manager is lost while they act, those of other clients than `queue`. Whoever adds when all is done
        gets a QueueError.

        Raises:
            WorkersCannotStartError: workers die before they take a PO.
            ServiceError: the manager is lost, and could not be replaced.
            RuntimeError: it is not started, runs or has run, or is closed.
        """
        self._check_started()
        if self._has_run or not self._at_exit.still_active():
            raise RuntimeError(ONE_RUN)
        self._has_run = True
        self._keeps_files = self._journal is not None  # until the end is a good one
        self._is_running = True
        freezes = not gc.get_freeze_count()  # else somebody else does, and means his to stay so
        if freezes:
            gc.freeze()  # what is here already is not looked through for cycles again and again, while POs come and go
        try:
            with self._signals:
                self._loop()
        finally:
            if freezes:
                gc.unfreeze()
            self._is_running = False
        self._keeps_files = bool(self._reaper.dead)
        if self._stop_signal:
            return RunEnd("interrupted", self._stop_signal)
        return RunEnd("halted", message=self._halted) if self._halted else RunEnd("done")

    def _loop(self) -> None:
        self._limits.begin(time.monotonic())
        while not self._is_finished():
            now = time.monotonic()
            self._limits.note_gap(now)
            self._handle_signals(now)
            self._talk_to_queue()
            self._reaper.reap(now, is_draining=self._is_draining)
            self._limits.enforce(now)
            self._top_up(now)
            self._watch(now)
            self._show(now)
            self._wait()
        self.take_rest()
        self._show(time.monotonic(), is_last=True)

    def _is_finished(self) -> bool:
        if self._is_draining:
            return not self._staff and (not self._reaper.dead or self._gives_up())
        if not (self._may_be_done or self._has_unheard) or not self._feeder.is_done:
            return False
        self._may_be_done = False
        state = self._keeper.drain_when_done()
        self._has_unread, self._has_unheard = state == "unread", state == "unheard"
        if state == "drained":
            self._is_over = True
            self._drain(parts.TEARDOWN_S)
        return False

    def _gives_up(self) -> bool:
        """What dead workers have left cannot be told, since the journal cannot be written: the files stay for a resume."""
        return bool(self._fault) and time.monotonic() > min(self._stop_due, self._give_up_at)

    def _drain(self, within_s: float) -> None:
        """No PO starts any more; workers end when they have none, or within the time given."""
        self._is_draining = True
        now = time.monotonic()
        self._stop_due = now + within_s
        self._ask("drain_queue")
        new = [one for one in self._staff.workers if not self._is_over and one.status().phase < parts.Phase.SETTING_UP]
        # these have nothing in hand, and what they import may never come to an end
        for one in [*self._staff.standbys, *new]:
            if one.kill is None:
                one.begin_kill("stop", 0, now, wants_evidence=False)

    # ------------------------------------------------------------------ signals

    def _handle_signals(self, now: float) -> None:
        while (number := self._signals.take()) is not None:
            if number == signal.SIGQUIT:
                self._dump_stacks()
            elif number == signal.SIGHUP:
                self._escalate(number, now, up_to=1)
            else:
                self._escalate(number, now, up_to=3)
        if self._is_draining and now >= self._stop_due and self._stop_level < 2:
            self._stop_running(now)

    def _escalate(self, number: int, now: float, up_to: int) -> None:
        """One step of the ladder: let running POs end; stop them and give them back; kill everything."""
        if self._stop_level >= up_to:
            return
        self._stop_level += 1
        self._stop_signal = self._stop_signal or number
        name = parts.signal_name(number)
        if self._stop_level == 1:
            self._drain(self._stop_grace_s)
            self._note = (
                f"{name}: no new PO starts; running ones have {self._stop_grace_s:g} s; a second one stops them"
            )
            self._log.warning("%s", self._note)
        elif self._stop_level == 2:
            self._note = f"{name}: running POs are stopped and given back; a third one kills everything at once"
            self._log.warning("%s", self._note)
            self._stop_running(now)
        else:
            self._log.warning("%s: killing everything", name)
            for worker in self._staff:
                worker.kill_now(now)

    def _stop_running(self, now: float) -> None:
        self._stop_level = max(self._stop_level, 2) if self._stop_level else 0
        self._stop_due = float("inf")
        self._give_up_at = min(self._give_up_at, now + self._grace_s + GIVE_UP_S)
        for worker in self._staff:
            if worker.kill is None and worker.status().phase > parts.Phase.WORKING:
                self._limits.end_overdue(worker, "stop", now)
            elif worker.kill is None:
                worker.begin_kill("stop", 0, now, wants_evidence=False)

    def _dump_stacks(self) -> None:
        """SIGQUIT: where everybody is, and go on."""
        self._log.warning("SIGQUIT: the stacks of the supervisor and of %d workers follow", len(self._staff.workers))
        with tempfile.TemporaryFile("w+") as file:
            faulthandler.dump_traceback(file, all_threads=True)
            file.seek(0)
            self._log.warning("stack of the supervisor:\n%s", file.read())
        before = [len(worker.files.stack()) for worker in self._staff.workers]
        asked = [control.ask_for_stack(worker.pid) for worker in self._staff.workers]
        deadline = time.monotonic() + parts.EVIDENCE_S
        for worker, start, is_asked in zip(self._staff.workers, before, asked, strict=True):
            while is_asked and not parts.is_whole_stack(worker.files.stack()[start:]) and time.monotonic() < deadline:
                time.sleep(parts.EVIDENCE_STEP_S)
            text = worker.files.stack()[start:] or "(no answer)"
            self._log.warning("stack of the worker:\n%s", text, extra=worker.ids(worker.status()))

    # ------------------------------------------------------------------ events

    def _talk_to_queue(self) -> None:
        """Add what is to be added and hand on what the queue tells, a part of each in turn, without waiting for it.

        Of a flood only so much, since other duties cannot wait either.
        """
        until = time.monotonic() + QUEUE_TURN_S
        while time.monotonic() < until:
            with self._limits.callers_code():
                has_fed = self._feeder.turn()
            events = self._keeper.take_events()
            self._take_events(events)
            if not events and not has_fed:
                return

    def take_rest(self) -> None:
        """Add the rest, if it can be written down, and hand on the last events; harmless when repeated.

        A second stop ends the adding too: who feeds the run may take long, or never end.
        """
        self._check_started()
        self._feeder.finish(lambda: self._stop_level > 1 or self._signals.is_waiting)
        while events := self._keeper.take_last_events():
            self._take_events(events)

    def give_up_adding(self) -> list[dict[str, Any]]:
        """The data of what was to be added by run and is not, and now never will be."""
        self._check_started()
        return self._feeder.give_up()

    def _take_events(self, events: "PackedEvents") -> None:
        import logging  # it is there by now

        self._may_be_done |= self._has_unread and bool(events)  # whoever is told of these may add something first
        on_event = self._on_event
        for run in events:
            is_completed = run[1] == "completed"
            if is_completed and self._log.isEnabledFor(logging.DEBUG):
                ids = [_ids_of(event.task) for event in parts.unpack_run(run) if event.task]
                parts.log_each(self._log, logging.DEBUG, "completed", ids)
            if is_completed and on_event is None:
                continue
            with self._limits.callers_code():
                for event in parts.unpack_run(run):
                    if not is_completed:
                        self._act_on(event)
                    if on_event is not None:
                        on_event(event)

    def _act_on(self, event: Event) -> None:
        if event.kind == "empty":
            self._may_be_done = True
        elif event.kind in ("dropped", "cancel"):
            self._limits.unwanted[int(event.error)] = event.kind
        elif event.kind == "halted":
            self._halt_run(event.error)
        elif event.kind == "short":
            self._log.warning("%s", event.error)
        elif event.kind == "notice":
            from workers.run_control import read_order

            self._obey(*read_order(event.error))
        self._log_event(event)

    def _log_event(self, event: Event) -> None:
        task = event.task
        if task is None or event.kind not in ("failed", "retry"):
            return
        import logging

        latest = task.error_history[-1] if task.error_history else {}
        level = logging.ERROR if event.kind == "failed" else logging.WARNING
        word = "failed for good" if event.kind == "failed" else "failed and will be retried"
        which = f"attempt {task.attempt}" if task.attempt else "before any attempt"
        self._log.log(
            level, "%s %s: %s: %s", which, word, latest.get("error_type", ""), event.error,
            extra={**_ids_of(task), "traceback": latest.get("traceback"), "stack": latest.get("stack")},
        )  # fmt: skip

    def _halt_run(self, why: str) -> None:
        """The queue starts nothing any more; what runs may end, or is stopped and given back."""
        if self._halted:
            return
        self._halted = f"halted after {why} (--halt)"
        self._log.warning("%s: no new PO starts", self._halted)
        self._note = self._halted
        self._drain(0.0 if self._halt.is_now else float("inf"))
        if self._halt.is_now:
            self._stop_running(time.monotonic())

    def _obey(self, word: str, value: Any) -> None:
        """What another terminal asks for; a stop is as Ctrl-C, a drain ends the run as that does and is no step to a kill."""
        now = time.monotonic()
        if word == "drain" and not self._is_draining:
            self._log.warning("drain: no new PO starts; running ones may end")
            self._note = "drain: no new PO starts; running ones may end"
            self._stop_signal = signal.SIGINT
            self._drain(float("inf"))
        elif word == "stop":
            self._escalate(signal.SIGINT, now, up_to=3)
        elif word == "scale" and type(value) is int and not self._is_draining:
            self._log.warning("scale: %d workers from now on", value)
            for worker in self._staff.resize(value):
                worker.is_retiring = True
                self._ask("retire_worker", worker.worker_id)

    # ------------------------------------------------------------------ a replaced manager

    def _after_replacement(self) -> None:
        """Tell the new queue what its journal does not know, and hear what the old one could not tell any more."""
        self._write_control_file()
        self._feeder.find_sent()
        if self._ended_before is not None:
            self._set_halt(self.queue.call)
        if self._is_draining:
            self.queue.drain_queue(is_over=self._is_over)
        for worker in self._staff.workers:
            if worker.is_retiring:
                self.queue.retire_worker(worker.worker_id)
        self._limits.forget_idle()
        held = parts.tokens_by_worker(self._end_what_was_cleared())
        for worker in self._staff.workers:
            if tokens := held.get(worker.worker_id):  # one of a pool from here on, not from its next call
                self.queue.exchange(worker.worker_id, (), 0, 0.0, 1, tokens)
        self.queue.hold_queue(self._holds_because)  # from here on tasks start again
        self._may_be_done = True
        self._tell_finished(self.queue.get_finished)  # should this manager be lost as well, the keeper begins again

    def _after_missing(self) -> None:
        """The queue has told more than it could keep: hear of the ends, and of what is to be stopped, all the same."""
        self._end_what_was_cleared()
        if self._ended_before is not None:
            self._set_halt(self.queue.call)
        self._may_be_done = True
        self._tell_finished(self.queue.get_finished)

    def _end_what_was_cleared(self) -> dict[int, TaskRecord]:
        """What still runs though it was cleared the queue knows nothing of; it would start another task of the same PO.

        Returns:
            What runs now, as get_leases.
        """
        in_hand = {worker.worker_id: worker.status().token for worker in self._staff.workers}
        leases = self.queue.get_leases(brings_data=False)
        for worker in self._staff.workers:
            token = worker.status().token
            if token and token == in_hand[worker.worker_id] and token not in leases:  # it ran when they were looked at
                worker.kill_now(time.monotonic())
                worker.join(GIVE_UP_S)
        return leases

    def tell_finished(self) -> None:
        """Hand on every task that has ended so far, as if it ended now; the receiver may know some of them."""
        self._check_started()
        self._tell_finished(functools.partial(self._ask, "get_finished", timeout_s=parts.REPORT_TIMEOUT_S))

    def _tell_finished(self, get_finished: Callable[[int, int], tuple[list[TaskRecord], int]]) -> None:
        if self._on_event is None:
            return
        place = -1
        records, following = get_finished(0, FINISHED_AT_ONCE)
        while following != place:
            for record in records:
                kind = "completed" if record.status is TaskStatus.COMPLETED else "failed"
                message = str(record.error_history[-1].get("message", "")) if record.error_history else ""
                self._on_event(Event(0, kind, record, message))
            place = following
            records, following = get_finished(place, FINISHED_AT_ONCE)

    def _set_halt(self, call: Callable[..., Any]) -> None:
        """Have the queue in use count on from what has ended in this run."""
        before = self._ended_before or {}
        ended: dict[str, int] = {}
        while (found := self._count_ended(call("get_queue_status"))) != ended:  # something may end in between
            ended = found
            limits = {key: getattr(self._halt, key) for key in ended}
            left = {key: limit - ended[key] + before[key] for key, limit in limits.items() if limit is not None}
            if reached := [key for key, count in left.items() if count <= 0]:
                self._halt_run(f"{limits[reached[0]]} {reached[0]}")
                return
            call("halt_after", **left)

    def _count_ended(self, status: dict[str, Any]) -> dict[str, int]:
        failed, succeeded = status["failed_tasks"], status["completed_tasks"]
        return {"failed": failed, "succeeded": succeeded, "done": failed + succeeded}

    def _write_control_file(self) -> None:
        if self._control_dir is None:
            return
        pid = self._service.pid
        from workers.run_control import ControlFile

        ControlFile(
            self._service.address, self._service.key.hex(), self.run_id, os.getpid(), pid, control.started_at(pid),
            self._since,
        ).write(self._control_dir)  # fmt: skip

    # ------------------------------------------------------------------ the living

    def _top_up(self, now: float) -> None:
        if not self._is_draining:
            self._staff.top_up(now, None if self._spare_workers else self._count_unended)

    def _count_unended(self) -> int:
        """How many POs have not ended; those on their way to the queue do not count for that moment, or they might twice."""
        status = self._ask("get_queue_status")
        return int(status["queue_length"] + status["processing_tasks"] + self._feeder.unsent)

    def _worker_settings(self, folder: str, marks: dict[str, str], mark: str) -> "WorkerSettings":
        return parts.WorkerSettings(
            self._service.address, self._service.key, folder, self._output_dir, self._spec, marks, mark, os.getpid(),
            self._max_tasks, self._max_memory, self._lease_ahead, self._outlives_workers(),
        )  # fmt: skip

    def _outlives_workers(self) -> bool:
        """Whether who starts workers now lives as long as they do: what the kernel can tell them is its end.

        That is the fork server, whichever thread asks it, or else this thread.
        """
        if self._start_method == "forkserver":
            return True
        return self._is_running or threading.current_thread() is threading.main_thread()

    # ------------------------------------------------------------------ the machine and the journal

    def _watch(self, now: float) -> None:
        """Hold new POs back while the machine is short of something; tell what the queue stands still for."""
        if now < self._next_watch or (self._guard is None and self._journal is None):
            return
        self._next_watch = now + WATCH_S
        reason = self._guard.reason() if self._guard is not None else ""
        if reason != self._holds_because:
            self._holds_because = reason
            self._ask("hold_queue", reason)
            self._log.warning("%s", reason or "there is enough again: new POs start")
        if self._journal is not None:
            self._watch_journal(self._journal, now)

    def _watch_journal(self, journal: str, now: float) -> None:
        status = self._ask("get_queue_status")
        fault = status["reason"] if status["reason"] != self._holds_because else ""
        if fault != self._fault:
            self._fault = fault
            if fault:
                self._log.error("the queue stands still: %s", fault)
            else:
                self._log.warning("the queue goes on")
        if _inodes(journal) == self._journal_inodes:
            self._journal_gone_since = None
            return
        self._journal_gone_since = self._journal_gone_since or now
        if now - self._journal_gone_since > JOURNAL_GONE_S and not self._halted:
            self._halted = self._fault = (
                f"{journal}, or its -wal file, was deleted or replaced: nothing more can be recorded"
            )
            self._log.error("%s", self._halted)
            self._drain(0.0)
            self._stop_running(now)

    # ------------------------------------------------------------------ show and wait

    def _show(self, now: float, is_last: bool = False) -> None:
        if (self._on_show is None and self._control_dir is None) or (now < self._next_show and not is_last):
            return
        from workers.progress import Snapshot

        to_add = self._feeder.count_left(is_last=is_last)
        if to_add is None:
            return
        status = self._ask("get_queue_status")
        self._next_show = now + (SHOW_S if to_add or status["processing_tasks"] else SHOW_IDLE_S)
        self._tell(
            Snapshot(
                phase="done" if is_last else self._phase(status),
                total=status["total_tasks"] - status["cleared_tasks"] + to_add,
                succeeded=status["completed_tasks"],
                failed=status["failed_tasks"],
                retrying=status["retry_tasks"],
                running=status["processing_tasks"],
                pending=status["pending_tasks"] + to_add,
                to_add=to_add,
                rate_per_s=status["throughput"],
                eta_s=None if to_add else status["estimated_completion"],
                elapsed_s=now - self._begun,
                workers=self._views(now),
                note=self._note or self._fault or self._holds_because,
            )  # fmt: skip
        )

    def _phase(self, status: dict[str, Any]) -> str:
        if self._stop_level > 1:
            return "stopping"
        if self._stop_signal or self._halted:
            return "draining"
        return "paused" if status["status"] == "PAUSED" else "running"

    def _tell(self, snapshot: "Snapshot") -> None:
        if self._on_show is not None:
            with self._limits.callers_code():
                self._on_show(snapshot)
        if self._control_dir is not None:
            from dataclasses import asdict

            self._ask("set_view", {**asdict(snapshot), "jobs": self._staff.jobs, "pid": os.getpid()})

    def _views(self, now: float) -> "tuple[WorkerView, ...]":
        from workers.progress import WorkerView

        views = []
        for worker in sorted(self._staff.workers, key=lambda one: one.slot):
            status = worker.status()
            state = "idle" if status.phase is parts.Phase.WORKING else "starting"
            if status.token:
                state = "running"
            if worker.kill is not None or status.phase > parts.Phase.WORKING:
                state = "stopping"
            elapsed_s = now - status.started if status.token else 0.0
            views.append(
                WorkerView(
                    worker.worker_id,
                    state,
                    status.po_number,
                    status.attempt,
                    elapsed_s,
                    status.task_timeout,
                    own_process.rss_bytes(worker.pid),
                )  # fmt: skip
            )
        return tuple(views)

    def _wait(self) -> None:
        """Until something happens: a worker's end, an answer, a signal, or the next deadline."""
        is_over = (
            not self._staff and not self._reaper.dead
            if self._is_draining
            else self._may_be_done and self._feeder.is_done
        )
        if self._signals.is_waiting or is_over:
            return
        now = time.monotonic()
        waits_for: list[int] = [self._signals.fileno()]
        waits_for += [fd for fd in (self._keeper.fileno, self._feeder.fileno) if fd is not None]
        waits_for += [worker.sentinel for worker in self._staff]
        until = min([now + parts.TICK_S, *self._moments()])
        if self._signals.fileno() in parts.wait_readable(waits_for, max(0.0, until - now)):
            self._signals.quiet()

    def _moments(self) -> Iterable[float]:
        """When something will have to be done."""
        if (due := self._feeder.due) is not None:
            yield due
        if self._has_unheard:
            yield time.monotonic() + UNHEARD_S
        for worker in self._staff.workers:
            step = worker.next_step()
            if step is not None:
                yield step
            elif worker.kill is None and (status := worker.status()).token:
                yield self._limits.deadline(status)


def _check_processor(processor: Any, start_method: str) -> None:
    """One that is given as it is, or by a ProcessorSpec; a name is looked up by those that run it."""
    from workers.processing import ProcessorSpec, check_importable, load_target

    spec = processor if isinstance(processor, ProcessorSpec) else ProcessorSpec(processor)
    if not isinstance(spec.target, str):
        check_importable(spec.target, start_method)
        load_target(spec)


def _check_numbers(jobs: Any, grace: Any, stop_grace: Any, max_tasks: Any, max_memory: Any) -> None:
    check_whole(jobs, "jobs", minimum=1, maximum=256)
    check_seconds(grace, "grace", minimum=0.0)
    check_seconds(stop_grace, "stop_grace", minimum=0.0)
    for number, name in ((max_tasks, "max_tasks_per_worker"), (max_memory, "max_memory_per_worker")):
        if number is not None:
            check_whole(number, name, minimum=1)


def _absolute_or_none(path: StrPath | None) -> str | None:
    """It is meant from here, wherever the program goes later; ".." stays, as it may lead out of a link."""
    if path is None:
        return None
    text = os.fsdecode(path)
    return text if os.path.isabs(text) else os.path.join(os.getcwd(), text)


def _check_files(durability: Any, log_path: str | None, work_dir: str) -> None:
    if durability not in ("normal", "full"):
        raise ValueError(f"durability must be normal or full, got {durability!r}")
    folder = os.path.realpath(os.path.dirname(log_path)) if log_path is not None else work_dir
    if folder != work_dir and not os.path.isdir(folder):
        raise ValueError(f"log_path must be in a folder that is there, got {log_path!r}")


def _ids_of(task: TaskRecord) -> dict[str, Any]:
    return {
        "worker_id": task.worker_id, "po_number": task.po_number, "task_id": task.task_id, "attempt": task.attempt,
    }  # fmt: skip


def _inodes(journal: str) -> list[int]:
    """Of its file and of the -wal file beside it; 0 of one that is not there."""
    return [_inode(journal), _inode(f"{journal}-wal")]


def _inode(path: str) -> int:
    try:
        return os.stat(path).st_ino
    except OSError:
        return 0
