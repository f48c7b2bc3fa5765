"""A worker process: lease, process, report; report and next lease travel in one message, the answer while it works.

It shares no lock with anybody, waits in the manager while there is nothing to do, and says what it does in its status
(worker_files), where the supervisor reads it without asking.
"""

import atexit
import contextlib
import faulthandler
import logging
import math
import os
import select
import signal
import sys
import time
import traceback

# those of the module signal make enums of what they take and give: up to ten times the time
from _signal import getsignal, pthread_sigmask  # type: ignore[import-not-found]
from _thread import get_ident
from collections import deque
from multiprocessing import active_children, get_start_method, util
from multiprocessing.connection import Connection

from poqueue import failpoint
from poqueue.client import PendingCall, QueueClient, connect
from poqueue.errors import JournalError, ManagerRefusesError, PoqueueError, ServiceError
from poqueue.hints import Any, NamedTuple, NoReturn
from poqueue.packing import PackedGrant
from poqueue.parent import await_first_word, die_when_closed, is_there
from poqueue.task import LEASE_AHEAD_S, MAX_LEASES, PlainLease, PlainSuccess, Report
from poqueue.wire import load_proof
from workers.clock import monotonic
from workers.own_process import (
    become_worker,
    cpu_seconds,
    most_rss_bytes,
    queued_seconds,
    rss_bytes,
)
from workers.processing import Processor, ProcessorSpec, Terminated, WorkerContext, in_a_line, load_target, run_attempt
from workers.worker_files import Phase, Usage, WorkerWriter, private

logger = logging.getLogger(__name__)

WAIT_S = 5.0
ANSWER_S = 0.004  # an answer takes less, with all cores at work
HOLD_S = 0.075  # a lease held ahead is begun within this time, or not at all
RELIEF_S = 0.250  # above HOLD_S; a PO that takes this long holds others up: the supervisor sees to them
STRAY_CHILD_EXIT = 70
BOOT_EXIT = 3
ASK_AGAIN_S = 0.1  # between tries to reach a queue that is away, or that cannot write its journal
CONNECT_WITHIN_S = 60.0  # the manager may be still to come, or be replaced
REFUSALS, REFUSED_S = 10, 10.0  # one that refuses is left after more in a row, and longer: each may take seconds
UNLIMITED_S = 1e9
LINGER_S = 1.0  # what a processor has left holds up the end of its worker no longer,
AFTER_KILL_S = 0.1  # but for what it takes then
_SIG_SETMASK = int(signal.SIG_SETMASK)
_TENDED = tuple(map(int, (
    signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE, signal.SIGALRM, signal.SIGUSR1,
    signal.SIGVTALRM, signal.SIGPROF,
)))  # fmt: skip
_CPU_TIMERS = {signal.SIGVTALRM: signal.ITIMER_VIRTUAL, signal.SIGPROF: signal.ITIMER_PROF}


class WorkerSettings(NamedTuple):
    """What a worker process is started with; crosses by the start method's own pipe, never by argv or environment."""

    address: str
    key: bytes
    folder: str
    output_dir: str
    spec: ProcessorSpec
    marks: dict[str, str]
    mark: str
    supervisor_pid: int
    max_tasks: int | None = None
    max_memory_bytes: int | None = None
    lease_ahead: bool = True
    dies_with_starter: bool = True


def main(
    settings: WorkerSettings | None,
    orders: "Connection[Any, Any]",
    life: "Connection[Any, Any]",
    line: "Connection[Any, Any] | None" = None,
) -> None:
    """The body of a worker process.

    Args:
        settings: None if they come first of all orders.
        orders: gives its worker id when it may begin.
        life: nothing ever comes; when it is closed the supervisor has ended.
        line: a connection with the queue's process that is open already.
    """
    if settings is None:
        settings = await_first_word(orders)
        assert settings is not None
    become_worker(settings.marks, dies_with_starter=settings.dies_with_starter)
    die_when_closed(life.fileno())
    _mind_forks()
    files = WorkerWriter(settings.folder, settings.mark)
    streams = _Streams(files)
    try:
        signal.signal(signal.SIGTERM, _on_term)
        for number in _CPU_TIMERS:
            signal.signal(number, _end_timer)
        worker = Worker(settings, files, streams, line)
        if line is None:
            load_proof()
        files.phase(Phase.STANDBY)
        try:
            worker_id = orders.recv()
        except EOFError:
            return
        worker.run(worker_id)
        _leave()
    except Terminated:
        os._exit(128 + signal.SIGTERM)
    finally:
        _flush()


def _leave() -> None:
    """Threads and children that the processor has left may end within LINGER_S, and hold the end up no longer.

    What it has registered with atexit takes its time, if Python calls it: not in forks before 3.13.
    """
    signal.signal(signal.SIGTERM, _end_at_once)
    signal.signal(signal.SIGALRM, _wait_no_longer)
    pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGALRM,))
    atexit.register(signal.setitimer, signal.ITIMER_REAL, 0.0)  # the last one registered, and so called first
    signal.setitimer(signal.ITIMER_REAL, LINGER_S)
    # waits for children; Python waits for threads when this process's main is left
    util._exit_function()  # type: ignore[attr-defined]  # it is there


def _wait_no_longer(number: int, frame: Any) -> None:
    """Children are killed, and if that was not all, so that this process ends, it does so by itself: threads have no end."""
    if children := active_children():
        for child in children:
            child.kill()
        signal.signal(number, _end_with_threads)
        signal.setitimer(signal.ITIMER_REAL, AFTER_KILL_S)
    else:
        _end_with_threads(number, frame)


def _end_with_threads(number: int, frame: Any) -> NoReturn:
    if get_start_method() == "spawn" or sys.version_info >= (3, 13):  # else Python calls none of them either
        atexit._run_exitfuncs()
    _flush()
    os._exit(0)


def _end_at_once(number: int, frame: Any) -> NoReturn:
    os._exit(128 + number)


class _Ahead(NamedTuple):
    """An exchange whose answer has not been fetched yet: what it tells, and until when its leases are good."""

    call: PendingCall
    reports: list[Report | PlainSuccess]
    until: float


class Worker:
    """One worker's loop and what it keeps between tasks."""

    def __init__(
        self,
        settings: WorkerSettings,
        files: WorkerWriter,
        streams: "_Streams",
        line: "Connection[Any, Any] | None" = None,
    ) -> None:
        self._settings = settings
        self._line = line
        self._files = files
        self._reports: list[Report | PlainSuccess] = []
        self._is_kept = True  # whether they would outlive this process
        self._has_told = False  # those before them, which are still kept: they are forgotten when nobody waits for it
        self._hand: deque[PlainLease] = deque()  # what is to be begun,
        self._until = 0.0  # and until when,
        self._begins_at_once = False  # but for the first of it, if nothing comes before that
        self._ask_at = 0  # with so many left, the one in work included, more is asked for; 0: there is no more
        self._left = 2 * MAX_LEASES  # its share of what waits in the queue, as far as it knows
        self._ahead: _Ahead | None = None
        self._tasks_done = 0
        self._busy_s = 0.0
        self._pace_s = 1.0  # from the begin of one PO to that of the next; the first ones come singly
        with _boot_failure_to(files):
            self._processor = Processor(load_target(settings.spec))
        self._turn = 0
        self._supervisor_pid = settings.supervisor_pid
        self._streams = streams
        self._home = -1  # what each PO finds, as the session has it: the current folder,
        self._umask = 0o077
        self._mask: set[Any] = set()  # the signals that are blocked,
        self._handlers: list[Any] = []  # and the handlers of those in _TENDED

    def run(self, worker_id: str) -> None:
        """Work until the queue says stop or it is time to be replaced."""
        settings, files = self._settings, self._files
        context = WorkerContext(worker_id, settings.output_dir, dict(settings.spec.options), owner=files.own)
        files.phase(Phase.SETTING_UP)
        with _boot_failure_to(files):
            # only now: it may have been started before the queue's process
            client = _connect_patiently(settings, self._line)
            self._processor.setup(context)
        self._streams.restore()
        self._look_round()
        files.phase(Phase.WORKING)
        cpu_s, queued_s = cpu_seconds(), queued_seconds()
        try:
            self._serve(worker_id, client, context)
            files.used(Usage(cpu_seconds() - cpu_s, self._busy_s, queued_seconds() - queued_s, most_rss_bytes()))
            self._teardown()
        except Terminated:
            self._teardown()
            raise
        finally:
            client.close()

    def _serve(self, worker_id: str, client: QueueClient, context: WorkerContext) -> None:
        hand = self._hand
        while self._fill_hand(worker_id, client):
            until = math.inf if self._begins_at_once else self._until
            had_any = bool(hand)
            while hand:
                lease = hand.popleft()
                if len(hand) < self._ask_at and self._ahead is None:
                    self._ask_ahead(worker_id, client, lease)
                self._process(lease, context, until)
                until = self._until
            if had_any and self._is_kept:
                self._files.idle()
            self._take_answer()

    def _fill_hand(self, worker_id: str, client: QueueClient) -> bool:
        """Report, and wait for something to do, unless it has come already; False if there is to be nothing more."""
        self._begins_at_once = not self._hand
        if self._hand:
            return True
        if not self._is_kept:
            self._tell_unkept(worker_id, client)
        is_last = _term_came or self._is_worn_out()
        limit = 0 if is_last else self._appetite()
        leases, stop, left = self._exchange(worker_id, client, limit)
        if self._reports:
            self._reports = []
            self._has_told = True
            # the supervisor reads what is kept while a slow PO runs, and what is in files takes room on the disk
            if self._pace_s > LEASE_AHEAD_S or self._files.reports.has_lines:
                self._forget_told()
        if is_last or stop:
            self._forget_told()
            self._files.phase(Phase.RECYCLING if is_last else Phase.ENDING)
            return False
        self._take(leases, left, monotonic() + HOLD_S)
        return True

    def _tell_unkept(self, worker_id: str, client: QueueClient) -> None:
        """What only this process knows is told before anything else; until then the PO stays in hand."""
        self._exchange(worker_id, client, 0)
        self._reports = []
        self._forget_told()
        self._is_kept = True
        self._files.idle()

    def _forget_told(self) -> None:
        self._files.reports.told()
        self._has_told = False

    def _ask_ahead(self, worker_id: str, client: QueueClient, lease: PlainLease) -> None:
        """Before the hand is empty: tell what is done and ask for more, so that nobody waits for the answer.

        Only while POs are short. What it brings was leased now, and is begun before a lease grows old (HOLD_S), or not at all.
        """
        if not self._is_kept or _term_came:
            return
        limit = self._appetite(held=len(self._hand) + 1)
        if limit < 1 or self._pace_s > LEASE_AHEAD_S or self._settings.max_memory_bytes is not None:
            return
        keeps = [lease[1], *(other[1] for other in self._hand)]
        until = monotonic() + HOLD_S
        self._files.idle()  # nobody's time runs while this is sent
        self._turn += 1
        try:
            if failpoint.is_armed:
                failpoint.hit("worker.before_exchange")
            call = client.begin_exchange(worker_id, self._reports, limit, self._turn, keeps)
        except ServiceError as error:
            logger.debug("the queue is away: %s", error)
            self._ask_at = 0  # who knows
            return
        self._ahead = _Ahead(call, self._reports, until)
        self._reports = []
        self._files.reports.telling()

    def _take_answer(self) -> None:
        """What was asked for ahead. If the answer is lost its reports are told again, and its leases undone, by the next turn."""
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            return
        try:
            leases, _, left = ahead.call.result()
            if failpoint.is_armed:
                failpoint.hit("worker.after_exchange")
        except (ServiceError, JournalError) as error:
            logger.debug("the queue is away: %s", error)
            self._reports = ahead.reports + self._reports
            return
        self._files.reports.told(all_of_them=False)
        self._take(leases, left, ahead.until)

    def _take(self, leases: list[PlainLease], left: int, until: float) -> None:
        """The next question is sent half-way through it, or ANSWER_S before its end."""
        self._left = left
        self._ask_at = max(1, min(len(leases) // 2, int(ANSWER_S / max(self._pace_s, 1e-6)) + 1)) if left else 0
        self._hand.extend(leases)
        self._until = until

    def _exchange(self, worker_id: str, client: QueueClient, limit: int) -> PackedGrant:
        """Report and lease, as often as it takes: the queue may be replaced meanwhile, or wait for room on the disk.

        An exchange whose answer was lost may have been carried out. The same reports again change nothing then, and
        leases that it granted are undone by the next turn.
        """
        while True:
            self._turn += 1
            try:
                failpoint.hit("worker.before_exchange")
                grant = client.exchange_packed(worker_id, self._reports, limit, WAIT_S, self._turn)
                failpoint.hit("worker.after_exchange")
                return grant
            except (ServiceError, JournalError) as error:
                logger.debug("the queue is away: %s", error)
            if not is_there(self._supervisor_pid):
                os._exit(1)  # and a processor has closed what would have told the kernel
            time.sleep(ASK_AGAIN_S)

    def _process(self, lease: PlainLease, context: WorkerContext, latest_start: float) -> None:
        """Run one attempt, or give a lease back that was held for too long.

        First the mark, then the look at the clock: whoever reads another PO's mark after `latest_start` then knows that
        this one will not begin here, and may give it to somebody else (the supervisor does, at RELIEF_S).
        """
        files = self._files
        if not self._is_kept:
            self._reports.append(Report(lease[0], lease[1], 0.0))
            return
        begun = monotonic()
        files.begin(lease, begun)
        if _term_came or monotonic() > latest_start:
            self._reports.append(Report(lease[0], lease[1], 0.0))
            return
        if failpoint.is_armed:
            failpoint.hit("worker.begun")
        report = run_attempt(self._processor, lease, context)
        if failpoint.is_armed:
            failpoint.hit("worker.processed")
        if _is_stray:
            os._exit(STRAY_CHILD_EXIT)  # the processor forked, and this is the child coming back into our loop
        if _term_came and len(report) == 7 and report.error is not None:
            raise Terminated  # that was no end of its own; the supervisor knows why it was told to end
        if self._has_told:
            self._forget_told()
        self._is_kept = files.reports.keep(report)
        if failpoint.is_armed:
            failpoint.hit("worker.report_kept")
        self._reports.append(report)
        self._tidy_up()
        files.end(lease)
        if not self._is_kept:
            # The disk is full: the PO stays in hand, and nothing else is begun, until the queue knows of its end.
            files.begin((*lease[:4], UNLIMITED_S, *lease[5:]), monotonic())
        self._tasks_done += 1
        self._busy_s += report[2]
        self._pace_s = 0.7 * self._pace_s + 0.3 * (monotonic() - begun)  # all that it took: a large result takes long

    def _appetite(self, held: int = 0) -> int:
        """How many leases to ask for now; none ahead where none are to be held."""
        if not self._settings.lease_ahead:
            return 1 if not held else 0
        limit = self._settings.max_tasks
        rest = MAX_LEASES if limit is None else limit - self._tasks_done - held
        return min(rest, leases_ahead(self._pace_s, self._left))

    def _is_worn_out(self) -> bool:
        """Time to be replaced; only ever true between tasks."""
        limit, memory = self._settings.max_tasks, self._settings.max_memory_bytes
        if limit is not None and self._tasks_done >= limit:
            return True
        return memory is not None and self._tasks_done > 0 and rss_bytes() > memory

    def _look_round(self) -> None:
        """Take note of what each PO is to find, which `setup` may have made; a TERM is heard in any case."""
        self._home = os.open(".", getattr(os, "O_PATH", os.O_RDONLY))  # good also where it may not be read
        self._umask = os.umask(0o077)
        os.umask(self._umask)
        self._mask = pthread_sigmask(signal.SIG_BLOCK, ()) - {signal.SIGTERM}
        self._handlers = [_on_term, *map(getsignal, _TENDED[1:])]

    def _tidy_up(self) -> None:
        """Undo what a PO may leave behind for the next one: folder, umask, signal mask and handlers, unwritten text."""
        self._streams.restore()
        os.fchdir(self._home)
        os.umask(self._umask)
        signal.alarm(0)  # an alarm of this PO, set by whatever call, must not ring in the next one
        faulthandler.cancel_dump_traceback_later()  # nor this one; nobody can say whether the session had set it
        pthread_sigmask(_SIG_SETMASK, self._mask)
        if [*map(getsignal, _TENDED)] != self._handlers:
            self._restore_handlers()

    def _restore_handlers(self) -> None:
        for number, handler in zip(_TENDED, self._handlers, strict=True):
            if handler is None or getsignal(number) is handler:  # None: a library in C has set it
                continue
            signal.signal(number, handler)
            if handler is _stack_is_asked_for:
                self._streams.answer_with_stack()

    def _teardown(self) -> None:
        try:
            self._processor.teardown()
        except Terminated:
            raise
        except BaseException:  # the results are reported; a session that does not close well changes none of them
            logger.exception("teardown failed")


def leases_ahead(pace_s: float, left: int) -> int:
    """How many leases are LEASE_AHEAD_S of work; one of anything longer, and of very short ones MAX_LEASES.

    Near the end no more than half of a worker's share, so that nobody has nothing while others hold much.

    Args:
        pace_s: how long an attempt takes, seconds.
        left: the worker's share of what waits in the queue (Grant.left).
    """
    return max(1, min(MAX_LEASES, int(LEASE_AHEAD_S / max(pace_s, 1e-6)), left // 2))


def _connect_patiently(settings: WorkerSettings, line: "Connection[Any, Any] | None") -> QueueClient:
    begun = monotonic()
    refused: list[float] = []  # in a row: when
    while True:
        try:
            return connect(settings.address, settings.key, line)
        except ServiceError as error:
            line = None  # that one has ended with its manager, and is closed
            now = monotonic()
            refused = [*refused, now] if isinstance(error, ManagerRefusesError) else []
            is_refused = len(refused) > REFUSALS and now - refused[0] > REFUSED_S
            if is_refused or now - begun > CONNECT_WITHIN_S:
                raise
        time.sleep(ASK_AGAIN_S)


class _boot_failure_to:
    """What goes wrong inside is written down for the supervisor, and ends the process."""

    def __init__(self, files: WorkerWriter) -> None:
        self._files = files

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, Terminated):
            return
        is_ours = isinstance(error, PoqueueError)
        self._files.boot_failed(
            str(error) if is_ours else f"{in_a_line(error)}\n{''.join(traceback.format_exception(error))}"
        )
        _flush()
        os._exit(BOOT_EXIT)


_term_came = False
_is_stray = False
_minds_forks = False
_masks_of_forks: dict[int, Any] = {}  # by thread


def _mind_forks() -> None:
    """From here on every child that Python forks is no worker, whatever it returns to, and ends at a TERM as others do."""
    global _is_stray, _minds_forks
    _is_stray = False  # a supervisor in a worker may have forked this one
    if not _minds_forks:
        _minds_forks = True
        os.register_at_fork(before=_hold_term, after_in_parent=_let_term_through, after_in_child=_become_stray)


def _hold_term() -> None:
    """A TERM that a child gets in the middle of the fork would be taken by our handler, and be lost there."""
    _masks_of_forks[get_ident()] = pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))


def _let_term_through() -> None:
    pthread_sigmask(_SIG_SETMASK, _masks_of_forks.pop(get_ident()))


def _become_stray() -> None:
    global _is_stray
    _is_stray = True
    if getsignal(signal.SIGTERM) is _on_term:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _let_term_through()


def _on_term(number: int, frame: Any) -> NoReturn:
    global _term_came
    _term_came = True  # a processor may swallow what is raised; no further PO is begun all the same
    raise Terminated


def _end_timer(number: int, frame: Any) -> None:
    """A timer of computing time that a PO has left must not kill the next one; to end it after each would take two calls."""
    signal.setitimer(_CPU_TIMERS[signal.Signals(number)], 0.0)


def _stack_is_asked_for(number: int, frame: Any) -> None:
    """Never called: faulthandler stands in its place. That it is set no more tells that a processor has set another."""


class _Streams:
    """stdout, stderr and logging go into the worker's files, stdin is empty; and they do so again for each PO."""

    def __init__(self, files: WorkerWriter) -> None:
        self._output_fd = files.output_fd
        self._poll = select.poll()
        for number in (0, 1, 2):
            self._poll.register(number, 0)  # asks for nothing, and so is told only of what is no open file
        _flush()
        self._connect_descriptors()
        self._open()
        self._stack = open(os.path.join(files.folder, "stack"), "w", opener=private)  # noqa: SIM115  (for the life of the process)
        signal.signal(signal.SIGUSR1, _stack_is_asked_for)
        self.answer_with_stack()
        faulthandler.enable(file=self._stack)
        self._handler = _FilesHandler(files)
        logging.basicConfig(handlers=[self._handler], level=logging.INFO, format="%(message)s", force=True)
        self._hear()

    def answer_with_stack(self) -> None:
        """Have faulthandler answer SIGUSR1, in the place of the handler that Python knows of."""
        faulthandler.unregister(signal.SIGUSR1)  # else it takes itself to be there already
        faulthandler.register(signal.SIGUSR1, file=self._stack, all_threads=True, chain=False)

    def restore(self) -> None:
        """What a processor has closed, or replaced in Python, is there again; what it has written is handed to the system."""
        are_ours = sys.stdout is self._stdout and sys.stderr is self._stderr
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except OSError:  # no room: it is tried again later
            pass
        except Exception:  # closed, or another's, which may raise anything
            are_ours = False
        root = logging.root
        if root.manager._disable or self._handler not in root.handlers:  # type: ignore[attr-defined]  # it is there
            self._hear()
        if self._poll.poll(0):  # one of them is closed
            self._connect_descriptors()
        if not are_ours:
            self._open()

    def _hear(self) -> None:
        """Log records from INFO on go into the worker's files, beside where a processor has them go."""
        logging.disable(logging.NOTSET)
        logging.root.addHandler(self._handler)
        if logging.root.level > logging.INFO:
            logging.root.setLevel(logging.INFO)
        logging.captureWarnings(True)

    def _connect_descriptors(self) -> None:
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        if nothing > 2:
            os.close(nothing)
        os.dup2(self._output_fd, 1)
        os.dup2(self._output_fd, 2)

    def _open(self) -> None:
        text: dict[str, Any] = {"encoding": "utf-8", "errors": "backslashreplace", "closefd": False}
        sys.stdin = open(0, **text)  # noqa: SIM115  (for the life of the process)
        sys.stdout = self._stdout = open(1, "w", buffering=1, **text)  # noqa: SIM115
        sys.stderr = self._stderr = open(2, "w", buffering=1, **text)  # noqa: SIM115


class _FilesHandler(logging.Handler):
    """Log records into the worker's output, one line each."""

    def __init__(self, files: WorkerWriter) -> None:
        super().__init__()
        self._files = files

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._files.log(record, self.format(record))
        except Exception:
            self.handleError(record)


def _flush() -> None:
    """Hand on what was printed, as far as it goes."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(ValueError, AttributeError, OSError):
            stream.flush()
