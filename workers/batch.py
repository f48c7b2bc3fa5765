"""A batch: an order file in, every row accounted for.

settings ─► orders read, ──────► run directory ─► supervisor runs them ─► results, report, accounts
            processor checked,                    (results.csv and failed.csv are written as POs end)
            manager started,
            beside each other

A batch that is resumed goes the same way, but finds its run directory, ends what an earlier supervisor has left, and
matches the orders with the tasks of the journal; what had ended is told again, and so stands in the results again.
"""

import contextlib
import errno
import logging
import os
import shlex
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing import current_process
from pathlib import Path
from typing import Any

from poqueue import failpoint, fast_json
from poqueue.client import REPORT_TIMEOUT_S
from poqueue.config import MAX_RETENTION_S
from poqueue.errors import ConfigError, JournalError, OrdersError, ServiceError
from poqueue.journal import JOURNAL_NAME, check_file
from poqueue.packing import FrozenTask, unpack_parts
from poqueue.payload import freeze_plain, thaw, thaw_result, thaw_task
from poqueue.report import as_csv, as_json, as_yaml, build_report
from poqueue.service import leave_if_imported_again
from poqueue.task import Event, ReportParts, TaskRecord, TaskStatus
from workers.early_start import EarlyStart, early_workers
from workers.guards import MachineGuard
from workers.log import RunLogging, ShieldedLogger
from workers.orders import OrderBook, OrderSource, read_orders
from workers.processing import ProcessorSpec
from workers.processor_check import ProcessorCheck
from workers.processors import command
from workers.progress import Progress, SilentProgress, Snapshot
from workers.recovery import LeftBehind, end_old_run, next_work_dir, read_left_behind, remove_scraps
from workers.resolved import Resolved, load_settings, render_config
from workers.results import RESULT_FILES, Accounts, ResultsWriter
from workers.resume import Match, match_orders
from workers.run_control import CONTROL_NAME, LOCK_NAME, RunLock, read_control_file
from workers.run_dir import copy_of_orders, new_run_dir, typed
from workers.run_record import RECORD_NAME, REPORT_NAME, RunRecord, last_begin, read_report, read_run_record
from workers.settings import RunSettings
from workers.signals import SignalInbox
from workers.staff import WorkersCannotStartError
from workers.supervisor import Halt, RunEnd, Supervisor
from workers.whole_file import check_output, write_whole
from workers.worker_files import Usage

logger = ShieldedLogger(__name__)

SHOWN_ROWS = 20
OWN_FILES = frozenset({*RESULT_FILES, RECORD_NAME, REPORT_NAME, CONTROL_NAME, LOCK_NAME, "run.log", "manager.log"})
EXIT_OK, EXIT_FAILED, EXIT_HALTED, EXIT_NOTHING, EXIT_INTERNAL = 0, 1, 4, 5, 70
SUCCEEDED, FAILED = 1, 2
INPUT_SETTINGS = ("map", "sheet", "delimiter", "encoding", "duplicates", "limit")
TASK_SETTINGS = ("max_retries", "retry_delay", "task_timeout")
UNFINISHED = (TaskStatus.PENDING, TaskStatus.RETRY_PENDING, TaskStatus.PROCESSING)


@dataclass(slots=True)
class BatchReport:
    """How a batch ended.

    Attributes:
        exit_code: as the command line would end (README, exit codes).
        accounts: what became of every input row.
        tasks: POs by status: succeeded, failed, not_run.
        files: what was written: by name in the run directory, by path elsewhere.
        seconds: from the first worker's start to the last PO's end.
        reason: "done", "interrupted", "halted" or "nothing to do"; `message` says more.
        resumed: of a resumed run: done_before, interrupted, changed, new, removed, left_out, requeued; empty otherwise.
        is_resumable: whether `--resume` can go on from here.
        head: `run` and `accounts`, the first fields of the report.
        parts: the queue's report before anything of it is opened; None if the queue was lost.
    """

    exit_code: int
    accounts: Accounts
    tasks: dict[str, int]
    run_dir: Path | None
    files: dict[str, Path] = field(default_factory=dict)
    seconds: float = 0.0
    reason: str = "done"
    signal: int = 0
    message: str = ""
    resumed: dict[str, int] = field(default_factory=dict)
    is_resumable: bool = False
    head: dict[str, Any] = field(default_factory=dict)
    parts: ReportParts | None = None

    @property
    def report(self) -> dict[str, Any]:
        """The queue's report, as export_queue_report("json") gives it, behind `head`; made anew at each look."""
        return {**self.head, **(build_report(self.parts) if self.parts is not None else {})}


def run_batch(
    orders: str | Path | None = None,
    processor: Any = None,
    *,
    progress: Progress | None = None,
    resume: str | Path | None = None,
    accept_changes: bool = False,
    **settings: Any,
) -> BatchReport:
    """Run every PO of an order file and account for every row.

    Args:
        orders: CSV, XLSX, XLS or ODS file; it is only read. A resumed run finds its own if it is left out.
        processor: "module:attribute", or a function or class that workers can import; the dossier if left out.
        progress: what shows where the run stands; nothing if left out.
        resume: run directory of an earlier run that is to go on; what succeeded or failed there is not run again.
        accept_changes: go on though the order file or the processor is another than before.
        settings: as on the command line, by key: jobs (or workers), task_timeout, max_retries, map, run_dir, ...

    Raises:
        ConfigError, ProcessorError, OrdersError: nothing ran; the text says what to do.
    """
    leave_if_imported_again()
    if current_process().daemon:
        raise ConfigError(
            "run_batch starts processes, which a daemonic process may not, such as one of a multiprocessing.Pool; "
            "call it from another one, of a concurrent.futures.ProcessPoolExecutor for instance"
        )
    if "workers" in settings and "jobs" in settings:
        raise ConfigError("jobs and workers are two names of one setting: give one of them")
    if "workers" in settings:
        settings["jobs"] = settings.pop("workers")
    if orders is None and resume is None:
        raise ConfigError("name the order file, or the run to resume")
    named = {"processor": processor} if isinstance(processor, str) else {}
    target = processor if processor is not None and not isinstance(processor, str) else None
    path = Path(orders) if orders is not None else None
    if resume is None:
        resolved = load_settings({**settings, **named}, None, {}, caller="run_batch")
        return Batch(path, resolved, target=target, progress=progress).run()
    resumed = resume_settings(Path(resume), {**settings, **named}, caller="run_batch")
    resuming = Resuming(Path(resume), accept_changes=accept_changes)
    return Batch(path, resumed, target=target, progress=progress, resuming=resuming).run()


def resume_settings(
    run_dir: Path, given: Mapping[str, Any], config_path: Path | None = None, *, caller: str = "command line"
) -> Resolved:
    """The settings that a run was started with, under those that are given now, by themselves or in a file.

    Raises:
        ConfigError: it is no run directory, or a setting is wrong.
    """
    recorded = {
        key: value
        for key, value in read_run_record(run_dir).settings.items()
        if value is not None and key not in ("run_dir", "check", "journal")
    }
    if "command" in recorded:
        recorded.pop("processor", None)  # the default one
    return load_settings(given, config_path, {}, caller=caller, recorded=recorded)


@dataclass(frozen=True, slots=True)
class Resuming:
    """Which run is to go on, and how: `retry_failed` runs what failed, and only a run that is through."""

    run_dir: Path
    accept_changes: bool = False
    retry_failed: bool = False


class Batch:
    """One batch with its settings resolved.

    Args:
        target: replaces the settings' processor by an object.
        is_whole_program: processes may be started while the orders are read. They import the program's script again, and
            one that embeds a batch may write its orders there.
    """

    def __init__(
        self,
        orders: Path | None,
        resolved: Resolved,
        *,
        target: Any = None,
        progress: Progress | None = None,
        resuming: Resuming | None = None,
        is_whole_program: bool = False,
    ) -> None:
        self._is_whole_program = is_whole_program
        self._resuming = resuming
        self._record = read_run_record(resuming.run_dir) if resuming is not None else None
        self._orders = orders if orders is not None else _orders_of(resuming, self._record)
        self.orders_path = str(self._orders.resolve())  # now: a processor may remove the folder that we are in
        self._resolved = resolved
        self._settings: RunSettings = resolved.settings
        self._spec = processor_spec(self._settings, target)
        self._progress = progress or SilentProgress(None)
        self._begun_at = time.time()

    def check(self) -> OrderBook:
        """Read and report, run nothing. Errors as in run_batch."""
        checking = ProcessorCheck(self._spec, self._settings.start_method)
        with contextlib.closing(checking):
            if not self._is_whole_program:
                checking.finish()
            book = self._read()
            self._check_command(book)
            checking.finish()
        return book

    def run(self) -> BatchReport:
        """Run the batch. Errors as in run_batch."""
        if not self._is_whole_program:
            return self._run(None)
        with EarlyStart(self._settings.start_method, early_workers(self._settings.jobs)) as early:
            return self._run(early)

    def _run(self, early: EarlyStart | None) -> BatchReport:
        if self._resuming is not None:
            return self._resume(self._resuming, early)
        book = self.check()
        if not book.orders:
            return self._nothing_to_do(book)
        self._check_outputs(self._settings.run_dir)
        failpoint.hit("batch.before_run_dir")
        with SignalInbox() as signals, contextlib.ExitStack() as until_the_end, contextlib.ExitStack() as until_begun:
            run_dir = until_begun.enter_context(new_run_dir(self._settings.run_dir, self._orders))
            lock = RunLock(run_dir)
            until_the_end.callback(lock.release)
            lock.acquire()
            record = self._new_record(run_dir, book)
            record.write(run_dir)
            failpoint.hit("batch.after_record")
            until_the_end.enter_context(self._logging(run_dir))
            run = _Run(self, book, run_dir, signals, record, early)
            run.open_results()
            return run.go(until_begun.close)

    def _check_outputs(self, run_dir: Path | None) -> None:
        for path in (*self._settings.report, *([self._settings.results] if self._settings.results else [])):
            _check_writable(path, self._orders, run_dir)

    def _resume(self, resuming: Resuming, early: EarlyStart | None) -> BatchReport:
        run_dir = resuming.run_dir.resolve()
        self._check_outputs(run_dir)
        record = self._record
        assert record is not None
        if not os.access(run_dir, os.W_OK):
            raise ConfigError(f"{run_dir} cannot be written to, and a run goes on in its own directory")
        lock = RunLock(run_dir)
        try:
            lock.acquire()
            self._check_resumable(run_dir, record, resuming)
            book = self.check()
            with SignalInbox() as signals, self._logging(run_dir):
                left = read_left_behind(run_dir)
                return _Run(self, book, run_dir, signals, record, early, resuming, left).go()
        except JournalError as error:
            raise ConfigError(str(error)) from None
        finally:
            lock.release()

    def _check_resumable(self, run_dir: Path, record: RunRecord, resuming: Resuming) -> None:
        try:
            check_file(run_dir / JOURNAL_NAME)
        except JournalError as error:
            raise ConfigError(f"{error}; run the order file anew") from None
        if not self._settings.journal:
            raise ConfigError("journal cannot be off: a run goes on in the journal that it has; leave out --no-journal")
        is_other = (record.processor, _bound_options(record)) != (self._spec.name, dict(self._spec.options))
        if is_other and not resuming.accept_changes:
            was = f"{record.processor} {record.options or ''}".strip()
            now = f"{self._spec.name} {dict(self._spec.options) or ''}".strip()
            raise ConfigError(
                f"this run's POs were processed by {was}, not by {now}; to go on all the same, add --accept-changes"
            )
        control_file = read_control_file(run_dir)
        end_old_run(run_dir, control_file)
        remove_scraps(run_dir, control_file)

    def _new_record(self, run_dir: Path, book: OrderBook) -> RunRecord:
        copy = copy_of_orders(run_dir, self._orders, book.sha256).name
        return RunRecord(
            self.orders_path, book.sha256, copy, self._spec.name, dict(self._spec.options),
            self._shown_settings(), _iso(self._begun_at), counted=_count(book),
        )  # fmt: skip

    def _shown_settings(self) -> dict[str, Any]:
        """By key, as a configuration file would give them, and so that they hold wherever the run goes on."""
        settings, shown = self._settings, {key: value for key, value, _ in render_config(self._resolved)}
        shown["report"] = [os.path.abspath(path) for path in settings.report]
        shown["results"] = settings.results and os.path.abspath(settings.results)
        return shown | {"command": bound_command(settings)}

    def supervisor(
        self,
        run_dir: Path,
        total: int,
        on_event: Any,
        signals: SignalInbox,
        early: EarlyStart | None,
        *,
        must_exist: bool,
    ) -> Supervisor:
        """The supervisor that these settings ask for."""
        settings = self._settings
        halt = settings.halt
        limits = {halt.why: halt.limit(total)} if halt.why else {}
        return Supervisor(
            self._spec, jobs=settings.jobs, start_method=settings.start_method, grace=settings.grace,
            stop_grace=settings.stop_grace, max_tasks_per_worker=settings.max_tasks_per_worker,
            max_memory_per_worker=settings.max_memory_per_worker, work_dir=next_work_dir(run_dir),
            output_dir=run_dir / "output", log_path=run_dir / "manager.log", on_event=on_event,
            on_show=self._progress.update, signals=signals, spare_workers=False, early=early, control_dir=run_dir,
            journal=run_dir / JOURNAL_NAME if settings.journal else None, durability=settings.durability,
            journal_must_exist=must_exist, journal_any_version=self._resuming is not None and self._resuming.accept_changes,
            halt=Halt(**limits, is_now=halt.is_now),
            guard=MachineGuard(run_dir, settings.memfree, settings.diskfree),
            max_retries=settings.max_retries, retry_delay=settings.retry_delay, task_timeout=settings.task_timeout.seconds,
            enable_priority=settings.priority, max_retry_delay=settings.max_retry_delay, retry_jitter=settings.jitter,
            start_delay=settings.start_delay, timeout_share=settings.task_timeout.share or None,
            timeout_floor=settings.timeout_floor, retention_s=RETENTION_S,
        )  # fmt: skip

    def describe(self, run_dir: Path, book: OrderBook) -> dict[str, Any]:
        """What ran, for the report."""
        return {
            "run_dir": str(run_dir),
            "orders": self.orders_path,
            "orders_sha256": book.sha256,
            "processor": self._spec.name,
            "begun_at": self._record.begun_at if self._record is not None else _iso(self._begun_at),
            "began_run": _iso(self._begun_at),
            "settings": {key: {"value": value, "from": origin} for key, value, origin in render_config(self._resolved)},
        }

    @contextlib.contextmanager
    def _logging(self, run_dir: Path) -> Iterator[None]:
        settings = self._settings
        verbosity = settings.verbose if not settings.quiet else 0
        with RunLogging(
            run_dir / "run.log",
            run_dir.name,
            self._progress.log,
            verbosity=verbosity,
            as_json=settings.log_format == "json",
        ):
            yield

    def _read(self) -> OrderBook:
        settings = self._settings
        source = OrderSource(
            self._orders, settings.map, settings.sheet, settings.delimiter, settings.encoding,
            settings.duplicates, settings.limit,  # type: ignore[arg-type]  # the settings allow these four only
        )  # fmt: skip
        return read_orders(source, on_progress=lambda rows: self._progress.update(Snapshot("reading", total=rows)))

    def _check_command(self, book: OrderBook) -> None:
        if self._settings.command is not None:
            command.check_command(self._settings.command, book.names, is_shell=self._settings.shell)

    def _nothing_to_do(self, book: OrderBook) -> BatchReport:
        if book.invalid:
            shown = "\n".join(f"  {row}" for row in book.invalid[:SHOWN_ROWS])
            more = f"\n  … and {len(book.invalid) - SHOWN_ROWS} more" if len(book.invalid) > SHOWN_ROWS else ""
            raise OrdersError(f"{self._orders}: none of the {book.row_count} rows can be run:\n{shown}{more}")
        accounts = Accounts(book.row_count, 0, 0, 0, 0, book.row_count)
        return BatchReport(
            EXIT_NOTHING, accounts, {}, None, reason="nothing to do", message=f"{self._orders} holds no POs"
        )


RETENTION_S = MAX_RETENTION_S  # a batch's report needs every PO, however late it is resumed


class _Run:
    """The part of a batch that has a run directory."""

    def __init__(
        self,
        batch: Batch,
        book: OrderBook,
        run_dir: Path,
        signals: SignalInbox,
        record: RunRecord,
        early: EarlyStart | None,
        resuming: Resuming | None = None,
        left: LeftBehind | None = None,
    ) -> None:
        self._record = record
        self._early = early
        self._resuming = resuming
        self._left = left or LeftBehind()
        self._match: Match | None = None
        self._place_of: dict[str, int] | None = None  # task id -> index of its order; None: tN is order N
        self._resumed: dict[str, int] = {}
        self._had_work = True
        self._has_gaps = False  # whether there was no room for some of the results
        self._unwritten: OSError | None = None  # why what this run leaves is not whole
        self._batch = batch
        self._book = book
        self._run_dir = run_dir
        self._results: ResultsWriter
        self._signals = signals
        self._orders: list[dict[str, Any]] | None = None  # of a resumed run: rows may have moved
        self._ended = bytearray(len(book.orders))
        self._counts = {"succeeded": 0, "failed": 0, "not_run": 0}
        self._parts: ReportParts | None = None
        before = read_report(run_dir) if resuming is not None else None
        self._usage = (Usage.of_run(before["run"]) if before is not None else None) or Usage()
        self._not_run: list[dict[str, Any]] | None = None
        self._begun = time.monotonic()

    def go(self, on_begun: Callable[[], None] = lambda: None) -> BatchReport:
        """Run the batch, or what is left of it; the results of a new run have been begun.

        Args:
            on_begun: called when there is a queue, with a journal if it has one.
        """
        try:
            return self._go(on_begun)
        finally:
            if hasattr(self, "_results"):
                close = self._results.close if self._unwritten is None else self._results.close_anyhow
                close()

    def open_results(self) -> None:
        """Begin the result files; of a resumed run anew, since all that has ended is told again."""
        for name in RESULT_FILES:
            (self._run_dir / name).unlink(missing_ok=True)
        self._results = ResultsWriter(self._run_dir, self._book, self._batch._settings.results)

    def _go(self, on_begun: Callable[[], None]) -> BatchReport:
        self._announce()
        was_through = _is_through(self._run_dir, self._record)
        end = self._run_workers(on_begun)
        if was_through and not self._had_work:
            end = RunEnd("nothing to do", message=f"nothing to do: every PO of {self._run_dir.name} had ended")
        seconds = time.monotonic() - self._begun
        not_run = self._not_run if self._not_run is not None else self._left_over()
        self._counts["not_run"] = len(not_run)
        if end.reason in ("interrupted", "halted") and not not_run:
            end = RunEnd("done", end.signal)  # it came with the last PO, and cut nothing short
        failpoint.hit("batch.before_finish")
        accounts = self._finish(not_run)
        with contextlib.suppress(FileNotFoundError):  # it may have died before it made the file
            if (self._run_dir / "manager.log").stat().st_size == 0:
                (self._run_dir / "manager.log").unlink()
        files = {name: self._run_dir / name for name in (*RESULT_FILES, "run.log", "manager.log")}
        files = {
            name: path for name, path in files.items() if name not in RESULT_FILES or path in self._results.written
        }
        run = self._batch.describe(self._run_dir, self._book)
        run |= {"seconds": round(seconds, 3), "reason": end.reason, "message": end.message}
        if self._resumed:
            run["resumed"] = self._resumed
        if self._usage.busy_s:
            run["workers_used"] = self._usage._asdict()
        head = {"run": run, "accounts": _as_dict(accounts)}
        failpoint.hit("batch.before_report")
        for path in (self._run_dir / "report.json", *self._batch._settings.report):
            name = path.name if path.parent == self._run_dir else str(path)
            with self._noting_unwritten(path):
                files[name] = write_report(head, self._parts, path, knows_data=self._froze_all())
        if (results := self._batch._settings.results) in self._results.written:
            files[str(results)] = results
        code = self._exit_code(end, accounts)
        files = {name: path for name, path in files.items() if path.exists()}
        return BatchReport(
            code,
            accounts,
            dict(self._counts),
            self._run_dir,
            files,
            seconds,
            end.reason,
            end.signal,
            end.message,
            self._resumed,
            _has_journal(self._run_dir),
            head,
            self._parts,
        )

    def _finish(self, not_run: list[dict[str, Any]]) -> Accounts:
        """Put the results in their final shape; if they cannot be, what became of each row is known all the same."""
        with self._noting_unwritten(self._run_dir):
            if self._unwritten is None:
                return self._results.finish(not_run)
        return self._results.accounts(not_run)

    @contextlib.contextmanager
    def _noting_unwritten(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            logger.error("%s cannot be written: %s", error.filename or path, error.strerror)
            self._unwritten = error

    def _announce(self) -> None:
        """What was noticed while reading: all of it into the log, the first rows onto the screen."""
        for note in self._book.notes:
            logger.warning("%s", note)
        for number, row in enumerate(self._book.invalid):
            logger.log(logging.WARNING if number < SHOWN_ROWS else logging.INFO, "invalid: %s", row)
        if len(self._book.invalid) > SHOWN_ROWS:
            logger.warning("… and %d more invalid rows; all are in results.csv", len(self._book.invalid) - SHOWN_ROWS)

    def _run_workers(self, on_begun: Callable[[], None]) -> RunEnd:
        supervisor = self._batch.supervisor(
            self._run_dir,
            len(self._book.orders),
            self._take,
            self._signals,
            self._early,
            must_exist=self._resuming is not None,
        )
        try:
            with contextlib.closing(supervisor):
                if self._resuming is None:
                    self._feed(supervisor, *self._places_to_add(0))
                supervisor.start_queue(prepares_workers=self._resuming is None)
                on_begun()
                failpoint.hit("batch.after_start_queue")
                if self._resuming is not None:
                    self._feed(supervisor, *self._take_up(supervisor, self._resuming))
                if self._had_work:
                    supervisor.start_workers()
                try:
                    end = supervisor.run()
                except WorkersCannotStartError as error:
                    logger.error("%s", error)
                    end = RunEnd("halted", message=str(error))
                supervisor.take_rest()
                with self._noting_unwritten(self._run_dir):
                    if self._has_gaps:
                        self._tell_again(supervisor)
                    self._results.flush()
                self._usage = self._usage.with_other(supervisor.usage)
                if end.reason != "done":
                    self._not_run = self._unfinished(supervisor)
                self._parts = unpack_parts(supervisor.ask("get_report_parts", timeout_s=REPORT_TIMEOUT_S))
                return end
        except ServiceError as error:
            if not hasattr(self, "_results"):
                raise  # nothing was begun, and the results of before are as they were
            logger.error("the queue is lost: %s", error)
            return RunEnd("lost", message=f"the manager process is lost: {error}")

    def _tell_again(self, supervisor: Supervisor) -> None:
        """There was no room for some results: begin them anew, from what the queue knows."""
        self._results.close_anyhow()
        self.open_results()
        self._has_gaps = False
        self._ended = bytearray(len(self._ended))
        self._counts |= {"succeeded": 0, "failed": 0}
        supervisor.tell_finished()
        if self._has_gaps:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._run_dir / RESULT_FILES[0]))

    # --- resuming

    def _take_up(self, supervisor: Supervisor, resuming: Resuming) -> tuple[Sequence[int], Sequence[str]]:
        """Before anybody works: what the dead have left, which order is which task, and what has ended already.

        Returns:
            As _places_to_add.
        """
        failpoint.hit("recovery.before_take_up")
        interrupted = supervisor.take_up(self._left, "the run was killed while this PO ran")
        failpoint.hit("recovery.before_remove")
        self._left.remove()
        match = self._find_match(supervisor)
        if match is not None:
            self._apply(match, supervisor, resuming)
        status = supervisor.ask("get_queue_status")
        places, ids = self._places_to_add(self._count_added(supervisor) if match is None else status["total_tasks"])
        waiting = status["queue_length"] + len(ids)
        if resuming.retry_failed and waiting:
            raise unended(waiting)
        requeued = _requeue_failed(supervisor, status["failed_tasks"]) if resuming.retry_failed else 0
        self._reconfigure(supervisor)
        if status["status"] == "PAUSED":
            logger.warning("still paused; to go on: poqueue resume %s", shlex.quote(typed(self._run_dir)))
        self._had_work = bool(waiting or requeued)
        self.open_results()
        supervisor.tell_finished()
        self._resumed = {
            "done_before": sum(self._counts.values()) if not resuming.retry_failed else self._counts["succeeded"],
            "interrupted": interrupted,
            "changed": match.changed if match else 0,
            "new": len(match.to_add) - match.changed if match else 0,
            "removed": match.removed if match else 0,
            "left_out": match.left_out if match else 0,
            "requeued": requeued,
        }
        self._record.resumed_at.append(_iso(self._batch._begun_at))
        self._record.settings, self._record.counted = self._batch._shown_settings(), _count(self._book)
        self._record.processor, self._record.options = self._batch._spec.name, dict(self._batch._spec.options)
        self._record.write(self._run_dir)
        failpoint.hit("recovery.after_record")
        logger.info("resumed: %s", self._resumed)
        return places, ids

    def _count_added(self, supervisor: Supervisor) -> int:
        """How many orders are tasks: the first ones, of a run that was killed early. Others may have added tasks as well."""
        places = range(len(self._book.orders))
        return bisect_left(places, True, key=lambda place: supervisor.ask("find_task", None, f"t{place + 1}") is None)

    def _find_match(self, supervisor: Supervisor) -> Match | None:
        """None: the file is the one that the run had, in which order N is task tN."""
        book, record = self._book, self._record
        is_same_file = book.sha256 == record.orders_sha256 and not record.is_edited
        before = {key: record.settings.get(key) for key in INPUT_SETTINGS}
        now = self._batch._shown_settings()
        if is_same_file and all(now[key] == value for key, value in before.items()):
            return None
        tasks = [
            thaw_task(one._replace(result=None))  # what came of them is not compared
            for status in TaskStatus
            for one in supervisor.ask("get_tasks_by_status", status, timeout_s=REPORT_TIMEOUT_S)
        ]
        return match_orders(book.orders, tasks, book.left_out)

    def _apply(self, match: Match, supervisor: Supervisor, resuming: Resuming) -> None:
        """Drop the tasks of orders that are no more; those of new and changed ones are added with the rest."""
        if not match.is_same and not resuming.accept_changes:
            raise ConfigError(
                f"{self._batch._orders} is not what this run was started with: {match}; "
                f"to go on with it as it is now, add --accept-changes; {self._way_back(resuming)}"
            )
        self._place_of = {task_id: place for place, task_id in match.task_of.items()}
        self._match = match
        self._book.take_in(match.kept)
        self._ended = bytearray(len(self._book.orders))
        if not match.is_same or match.kept or self._book.sha256 != self._record.orders_sha256:
            copy = copy_of_orders(self._run_dir, self._batch._orders, self._book.sha256)
            self._record.orders_copy = copy.name
            self._record.orders, self._record.orders_sha256 = self._batch.orders_path, self._book.sha256
            self._record.is_edited = True
            self._record.write(self._run_dir)  # before a task goes: from then on, order N is not task tN any more
        supervisor.ask("drop_tasks", match.to_drop)
        failpoint.hit("recovery.after_drop")

    def _way_back(self, resuming: Resuming) -> str:
        """How to go on with the orders as the run had them."""
        if resuming.retry_failed:
            failed = shlex.quote(typed(self._run_dir / "failed.csv"))
            return f"to run the failures as they were, run them by themselves: poqueue run {failed}"
        words = [typed(self._run_dir), typed(self._run_dir / self._record.orders_copy)]
        return f"to go on with what it was: poqueue run --resume {shlex.join(words)}"

    def _reconfigure(self, supervisor: Supervisor) -> None:
        """Limits that were given anew hold for the tasks of before as well."""
        settings, before = self._batch._settings, self._record.settings
        now = self._batch._shown_settings()
        changes = {key: getattr(settings, key) for key in TASK_SETTINGS if now[key] != before.get(key)}
        if "task_timeout" in changes:
            changes["task_timeout"] = settings.task_timeout.seconds
        if changes:
            supervisor.ask("reconfigure_tasks", **changes)

    def _unfinished(self, supervisor: Supervisor) -> list[dict[str, Any]]:
        """The orders that have not ended, as the file has them now."""
        found = supervisor.give_up_adding()
        for status in UNFINISHED:
            for record in supervisor.ask("get_tasks_by_status", status, timeout_s=REPORT_TIMEOUT_S):
                if self._place(record.task_id) is not None:
                    found.append(self._order_of(record.task_id) or thaw(record.payload))
        return found

    # --- running

    def _feed(self, supervisor: Supervisor, places: Sequence[int], ids: Sequence[str]) -> None:
        """Have the supervisor add these orders as tasks."""
        supervisor.feed(self._make_tasks(places, ids), len(ids))

    def _places_to_add(self, known: int) -> tuple[Sequence[int], Sequence[str]]:
        """Which orders the queue does not know yet, and their task ids, of which it has had the first `known`."""
        if self._match is None:
            places = range(known, len(self._book.orders))
            return places, [f"t{place + 1}" for place in places]
        assert self._place_of is not None
        to_add = self._match.to_add
        ids = [f"t{number}" for number in range(known + 1, known + 1 + len(to_add))]
        self._place_of |= dict(zip(ids, to_add, strict=True))
        return to_add, ids

    def _make_tasks(self, places: Sequence[int], ids: Sequence[str]) -> Iterator[FrozenTask]:
        orders, priorities = self._book.orders, self._book.priorities
        for task_id, place in zip(ids, places, strict=True):
            order = orders[place]
            payload = freeze_plain(order)  # text, row numbers and lists of them: the order file holds nothing else
            yield FrozenTask(
                task_id, order["po_number"], payload, priorities[place], None, None, None, _supplier_of(order)
            )
        if self._resuming is not None and self._place_of is not None:
            self._orders = orders
        self._book.orders, self._book.priorities = [], []  # from here on the queue has them

    def _place(self, task_id: str) -> int | None:
        """None: it is of no order of the file; whoever holds the key may add a task of his own."""
        if self._place_of is not None:
            return self._place_of.get(task_id)
        number = task_id.removeprefix("t")
        place = int(number) - 1 if number.isdecimal() else -1
        return place if 0 <= place < len(self._ended) else None

    def _froze_all(self) -> bool:
        """Whether the data of all tasks were frozen by this process."""
        tasks = self._parts.records if self._parts is not None else ()
        return self._resuming is None and all(self._place(task.task_id) is not None for task in tasks)

    def _order_of(self, task_id: str) -> dict[str, Any] | None:
        """The order of a task, as long as it is at hand; None: as the task has it."""
        place = self._place(task_id)
        orders = self._orders or self._book.orders
        return orders[place] if place is not None and place < len(orders) else None

    def _take(self, event: Event) -> None:
        """Write down how a PO ended, as it ends."""
        record = event.task
        if record is None or event.kind not in ("completed", "failed"):
            if event.kind == "empty" and hasattr(self, "_results"):
                with contextlib.suppress(OSError):  # it is written again at the end
                    self._results.flush()
            return
        if not hasattr(self, "_results"):
            return  # while a run is taken up: it will all be told again
        place = self._place(record.task_id)
        if place is None:
            return  # of an order that is in the file no longer
        is_success = event.kind == "completed"
        code = SUCCEEDED if is_success else FAILED
        if self._ended[place] == code and event.sequence == 0:
            return  # told again, after the manager was replaced
        if self._ended[place]:
            self._counts["succeeded" if self._ended[place] == SUCCEEDED else "failed"] -= 1
        self._ended[place] = code
        self._counts["succeeded" if is_success else "failed"] += 1
        try:
            self._write_outcome(record, event, is_success)
        except OSError as error:
            if not self._has_gaps:
                logger.error("results.csv is left as it is until the end: %s", error)
            self._has_gaps = True

    def _write_outcome(self, record: TaskRecord, event: Event, is_success: bool) -> None:
        latest = record.error_history[-1] if record.error_history else {}
        result, error = None, "" if is_success else _error_text(latest, event.error)
        try:
            result = thaw_result(record.result) if record.result is not None else None
        except Exception as fault:  # the journal's file was damaged, or a processor got past what reduces results
            error = error or f"its result cannot be opened: {type(fault).__name__}: {fault}"
        seconds = result.processing_time if result else float(latest.get("seconds", 0.0) or 0.0)
        self._results.outcome(
            self._order_of(record.task_id) or thaw(record.payload),
            status="succeeded" if is_success else "failed", attempts=record.attempt, seconds=seconds,
            worker=record.worker_id or "", error=error, data=_columns(result) if result else None,
        )  # fmt: skip

    def _left_over(self) -> list[dict[str, Any]]:
        """What has not ended, if the queue cannot say: from the order file again."""
        if all(self._ended):
            return []
        book = self._batch._read()
        if book.sha256 != self._book.sha256:
            logger.error("%s has changed meanwhile: what is left of it cannot be written", self._batch._orders)
            return []
        orders = [*book.orders, *(self._match.kept if self._match is not None else ())]
        return [po for number, po in enumerate(orders) if not self._ended[number]]

    def _exit_code(self, end: RunEnd, accounts: Accounts) -> int:
        if not accounts.balances or sum(self._counts.values()) != len(self._ended) or end.reason == "lost":
            return EXIT_INTERNAL
        if end.reason == "done" and (self._counts["not_run"] or self._unwritten is not None):
            return EXIT_INTERNAL
        if end.reason == "interrupted":
            return 128 + end.signal
        if end.reason == "halted":
            return EXIT_HALTED
        if end.reason == "nothing to do":
            return EXIT_NOTHING
        return EXIT_FAILED if accounts.failed or accounts.invalid else EXIT_OK


def _requeue_failed(supervisor: Supervisor, failed: int) -> int:
    """How many are asked for again: counted, since the answer of the first of two calls may have been lost."""
    supervisor.ask("requeue_failed")
    return failed - int(supervisor.ask("get_queue_status")["failed_tasks"])


def _is_through(run_dir: Path, record: RunRecord) -> bool:
    """Whether the run's last report says that it ended by itself, and is of the last time that it went on."""
    report = read_report(run_dir)
    run = report["run"] if report is not None else {}
    return run.get("began_run") == last_begin(record) and run.get("reason") in ("done", "nothing to do")


def _has_journal(run_dir: Path) -> bool:
    """Whether the run can go on: its journal may have been deleted, or something else put in its place."""
    try:
        check_file(run_dir / JOURNAL_NAME)
    except JournalError:
        return False
    return True


def _supplier_of(order: Mapping[str, Any]) -> str:
    """POs of one supplier are expected to take alike."""
    return str(order.get("supplier") or "").strip()


def _count(book: OrderBook) -> dict[str, int]:
    """What there is to run, before anybody knows how it ends."""
    return {
        "pos": len(book.orders),
        "rows": book.row_count,
        "duplicate": len(book.duplicate_rows),
        "invalid": len(book.invalid),
    }


def _orders_of(resuming: Resuming | None, record: RunRecord | None) -> Path:
    """The order file of a run: where it was, or else the copy that the run keeps."""
    if resuming is None or record is None:
        raise ConfigError("name the order file")
    path = Path(record.orders)
    return path if path.exists() else resuming.run_dir / record.orders_copy


def unended(count: int) -> ConfigError:
    """A retry is for a run that is through."""
    return ConfigError(
        f"{count} POs of this run have not ended yet: finish it with --resume, and then retry what failed; "
        "or run failed.csv of the run directory by itself"
    )


def bound_command(settings: RunSettings) -> str | None:
    """The command, so that it holds wherever the run goes on; what a shell reads is the shell's."""
    if settings.command is None or settings.shell:
        return settings.command
    return command.bind_program(settings.command)


def _bound_options(record: RunRecord) -> dict[str, str]:
    """The processor's, as bound_command has them; an earlier version recorded the command as it was given."""
    options = dict(record.options)
    if record.processor == command.TARGET and options.get(command.SHELL_OPTION) != "true":
        options[command.OPTION] = command.bind_program(options.get(command.OPTION, ""))
    return options


def processor_spec(settings: RunSettings, target: Any = None) -> ProcessorSpec:
    """What the settings ask to be run."""
    app_dir = str(settings.app_dir) if settings.app_dir is not None else None
    if target is not None:
        return ProcessorSpec(target, dict(settings.options), app_dir)
    if (line := bound_command(settings)) is not None:
        ours = {command.OPTION: line, command.SHELL_OPTION: "true" if settings.shell else "false"}
        return ProcessorSpec(command.TARGET, {**settings.options, **ours}, app_dir)
    return ProcessorSpec(settings.processor, dict(settings.options), app_dir)


def write_report(head: Mapping[str, Any], parts: ReportParts | None, path: Path, *, knows_data: bool = False) -> Path:
    """Write a report in the format of the file's extension; the file is replaced whole or not at all.

    Args:
        head: fields in front of the queue's own, of plain JSON types.
        parts: the queue's report; None if the queue was lost, and nothing but the head is known.
        knows_data: as in as_json.
    """
    format = path.suffix.lower()
    if format in (".csv", ".yaml"):
        report = {**head, **(build_report(parts) if parts is not None else {})}
        write_whole(as_csv(report) if format == ".csv" else as_yaml(report), path)
    else:
        text = as_json(parts, head, knows_data=knows_data) if parts is not None else fast_json.encode_finite(head)
        write_whole(text, path)
    return path


def _check_writable(path: Path, orders: Path, run_dir: Path | None = None) -> None:
    """Before anything runs: an output that cannot be written is told now."""
    if (
        run_dir is not None
        and path.resolve().parent == run_dir.resolve()
        and (path.name in OWN_FILES or path.stem == "orders" or path.name.startswith(JOURNAL_NAME))
    ):
        raise ConfigError(f"{str(path)!r} is a file that the run itself writes; name another one")
    check_output(path)
    if path.exists() and orders.exists() and path.samefile(orders):
        raise ConfigError(f"{str(path)!r} is the order file; it is never written to")


def _error_text(latest: Mapping[str, Any], message: str) -> str:
    kind = str(latest.get("error_type", ""))
    return message if not kind or message.startswith(kind) else f"{kind}: {message}"


def _columns(result: Any) -> dict[str, Any]:
    return {**result.data, **({"downloads": result.downloads} if result.downloads else {})}


def _as_dict(accounts: Accounts) -> dict[str, int]:
    return {
        name: getattr(accounts, name) for name in ("rows", "succeeded", "failed", "duplicate", "invalid", "not_run")
    }


def _iso(wall_time: float) -> str:
    return datetime.fromtimestamp(wall_time, UTC).isoformat(timespec="milliseconds")
