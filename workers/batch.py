"""A batch: an order file in, every row accounted for.

settings ─► orders read, ──────► run directory ─► supervisor runs them ─► results, report, accounts
            processor checked,                    (results.csv and failed.csv are written as POs end)
            manager started,
            beside each other

A batch that is resumed goes the same way, but finds its run directory, ends what an earlier supervisor has left, and
matches the orders with the tasks of the journal; what had ended is told again, and so stands in the results again.
"""

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from multiprocessing import current_process
from pathlib import Path
from typing import Any

from poqueue import failpoint
from poqueue.config import MAX_RETENTION_S
from poqueue.errors import ConfigError, JournalError, OrdersError
from poqueue.journal import JOURNAL_NAME, check_file
from poqueue.report import iso
from poqueue.script_guard import NO_GUARD, leave_if_imported_again
from workers.batch_run import EXIT_NOTHING, SHOWN_ROWS, BatchReport, BatchRun, counted
from workers.early_start import EarlyStart, early_workers
from workers.guards import MachineGuard
from workers.log import RunLogging, ShieldedLogger
from workers.orders import PROGRESS_ROWS, OrderBook, OrderSource, read_orders
from workers.processing import ProcessorSpec, is_importing
from workers.processor_check import ProcessorCheck
from workers.processor_name import lasting_name
from workers.processors import command
from workers.progress import Progress, SilentProgress, Snapshot
from workers.recovery import end_old_run, next_work_dir, read_left_behind, remove_scraps
from workers.resolved import Resolved, load_settings, render_config
from workers.results import RESULT_FILES, Accounts
from workers.resume import Resuming, check_processor_named
from workers.run_control import CONTROL_NAME, LOCK_NAME, RunLock, read_control_file
from workers.run_dir import copy_of_orders, going_on, new_run_dir
from workers.run_record import RECORD_NAME, REPORT_NAME, RunRecord, read_run_record
from workers.settings import RunSettings
from workers.signals import SignalInbox
from workers.supervisor import Halt, Supervisor
from workers.whole_file import check_output

logger = ShieldedLogger(__name__)

OWN_FILES = frozenset({*RESULT_FILES, RECORD_NAME, REPORT_NAME, CONTROL_NAME, LOCK_NAME, "run.log", "manager.log"})


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
        progress: an object that shows where the run stands, such as workers.progress.make_progress(sys.stderr); nothing if
            left out.
        resume: run directory of an earlier run that is to go on; what succeeded or failed there is not run again.
        accept_changes: go on though the order file or the processor is another than before.
        settings: as on the command line, by key: jobs (or workers), task_timeout, max_retries, map, run_dir, ...; not `check`.

    Raises:
        ConfigError, ProcessorError, OrdersError: nothing ran; the text says what to do.
    """
    leave_if_imported_again()
    if is_importing():
        raise ConfigError(NO_GUARD)
    if current_process().daemon:
        raise ConfigError(
            "run_batch starts processes, which a daemonic process may not, such as one of a multiprocessing.Pool; "
            "call it from another one, of a concurrent.futures.ProcessPoolExecutor for instance"
        )
    if "workers" in settings and "jobs" in settings:
        raise ConfigError("jobs and workers are two names of one setting: give one of them")
    if "workers" in settings:
        settings["jobs"] = settings.pop("workers")
    if settings.get("check"):
        raise ConfigError("check can only be given on the command line, as --check: run_batch runs what it is given")
    if progress and not isinstance(progress, Progress):
        raise ConfigError(
            "progress must be an object, such as make_progress(sys.stderr) of workers.progress; None: nothing"
        )
    if orders is None and resume is None:
        raise ConfigError("name the order file, or the run to resume")
    target = processor if processor is not None and not isinstance(processor, str) else None
    named = {"processor": processor} if target is None else lasting_name(target)
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
        self.orders = orders if orders is not None else _orders_of(resuming, self._record)
        # Now: a processor may remove the folder that we are in. Path.resolve fails where a link points to itself.
        self.orders_path = os.path.realpath(self.orders)
        self._resolved = resolved
        self.settings: RunSettings = resolved.settings
        self.spec = processor_spec(self.settings, target)
        self.processor = self.spec.name if target is None else lasting_name(target).get("processor", self.spec.name)
        if self._record is not None and target is None:
            check_processor_named(self._record, resolved)
        self._progress = progress or SilentProgress(None)
        self.report: BatchReport | None = None  # once the run is complete, whatever interrupts what follows
        self._done: Snapshot | None = None  # to be shown once all is written
        self.begun_at = time.time()

    def check(self) -> OrderBook:
        """Read and report, run nothing. Errors as in run_batch."""
        checking = ProcessorCheck(self.spec, self.settings.start_method)
        with contextlib.closing(checking):
            if not self._is_whole_program:
                checking.finish()
            book = self.read()
            self._check_command(book)
            checking.finish()
        return book

    def run(self) -> BatchReport:
        """Run the batch. Errors as in run_batch."""
        if not self._is_whole_program:
            return self._run(None)
        with EarlyStart(self.settings.start_method, early_workers(self.settings.jobs)) as early:
            return self._run(early)

    def _run(self, early: EarlyStart | None) -> BatchReport:
        if self._resuming is not None:
            return self._resume(self._resuming, early)
        book = self.check()
        if not book.orders:
            return self._nothing_to_do(book)
        self._check_outputs(self.settings.run_dir)
        failpoint.hit("batch.before_run_dir")
        with SignalInbox() as signals, contextlib.ExitStack() as until_the_end, contextlib.ExitStack() as until_begun:
            run_dir = until_begun.enter_context(new_run_dir(self.settings.run_dir, self.orders))
            lock = RunLock(run_dir)
            until_the_end.callback(lock.release)
            lock.acquire()
            record = self._new_record(run_dir, book)
            record.write(run_dir)
            failpoint.hit("batch.after_record")
            until_the_end.enter_context(self._logging(run_dir))
            run = BatchRun(self, book, run_dir, signals, record, early)
            run.open_results()
            self.report = run.go(until_begun.close)
            return self.report

    def _check_outputs(self, run_dir: Path | None) -> None:
        for path in (*self.settings.report, *([self.settings.results] if self.settings.results else [])):
            check_writable(path, self.orders, run_dir)

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
            with SignalInbox() as signals, self._logging(run_dir), contextlib.ExitStack() as until_begun:
                until_begun.enter_context(going_on(run_dir))
                left = read_left_behind(run_dir)
                run = BatchRun(self, book, run_dir, signals, record, early, resuming, left)
                self.report = run.go(until_begun.close)
                return self.report
        except JournalError as error:
            raise ConfigError(str(error)) from None
        finally:
            lock.release()

    def _check_resumable(self, run_dir: Path, record: RunRecord, resuming: Resuming) -> None:
        try:
            check_file(run_dir / JOURNAL_NAME)
        except JournalError as error:
            raise ConfigError(f"{error}; run the order file anew") from None
        if not self.settings.journal:
            raise ConfigError("journal cannot be off: a run goes on in the journal that it has; leave out --no-journal")
        is_other = (record.processor, _bound_options(record)) != (self.processor, dict(self.spec.options))
        if is_other and not resuming.accept_changes:
            was = f"{record.processor} {record.options or ''}".strip()
            now = f"{self.processor} {dict(self.spec.options) or ''}".strip()
            raise ConfigError(
                f"this run's POs were processed by {was}, not by {now}; to go on all the same, add --accept-changes"
            )
        control_file = read_control_file(run_dir)
        end_old_run(run_dir, control_file)
        remove_scraps(run_dir, control_file)

    def _new_record(self, run_dir: Path, book: OrderBook) -> RunRecord:
        copy = copy_of_orders(run_dir, self.orders, book.sha256).name
        return RunRecord(
            self.orders_path, book.sha256, copy, self.processor, dict(self.spec.options),
            self.shown_settings(), iso(self.begun_at), counted=counted(book),
        )  # fmt: skip

    def shown_settings(self) -> dict[str, Any]:
        """By key, as a configuration file would give them, and so that they hold wherever the run goes on."""
        settings, shown = self.settings, {key: value for key, value, _ in render_config(self._resolved)}
        shown["report"] = [os.path.abspath(path) for path in settings.report]
        shown["results"] = settings.results and os.path.abspath(settings.results)
        return shown | {"command": bound_command(settings)}

    def supervisor(
        self,
        run_dir: Path,
        total: int,
        on_event: Any,
        on_show: Any,
        signals: SignalInbox,
        early: EarlyStart | None,
        *,
        must_exist: bool,
    ) -> Supervisor:
        """The supervisor that these settings ask for."""
        settings = self.settings
        halt = settings.halt
        limits = {halt.why: halt.limit(total)} if halt.why else {}
        return Supervisor(
            self.spec, jobs=settings.jobs, start_method=settings.start_method, grace=settings.grace,
            stop_grace=settings.stop_grace, max_tasks_per_worker=settings.max_tasks_per_worker,
            max_memory_per_worker=settings.max_memory_per_worker, work_dir=next_work_dir(run_dir),
            output_dir=run_dir / "output", log_path=run_dir / "manager.log", on_event=on_event,
            on_show=on_show, signals=signals, spare_workers=False, early=early, control_dir=run_dir,
            journal=run_dir / JOURNAL_NAME if settings.journal else None, durability=settings.durability,
            journal_must_exist=must_exist, journal_any_version=self._resuming is not None and self._resuming.accept_changes,
            halt=Halt(**limits, is_now=halt.is_now),
            guard=MachineGuard(run_dir, settings.memfree, settings.diskfree),
            max_retries=settings.max_retries, retry_delay=settings.retry_delay, task_timeout=settings.task_timeout.seconds,
            enable_priority=settings.priority, max_retry_delay=settings.max_retry_delay, retry_jitter=settings.jitter,
            start_delay=settings.start_delay, timeout_share=settings.task_timeout.share or None,
            timeout_floor=settings.timeout_floor, retention_s=MAX_RETENTION_S,  # the report needs all, however late
        )  # fmt: skip

    def show(self, snapshot: Snapshot) -> None:
        """Of many POs "done" is not said before all of it is written, which takes its time."""
        if snapshot.phase == "done" and snapshot.total >= PROGRESS_ROWS:
            self._done = snapshot
            snapshot = replace(snapshot, phase="writing", note="the results and the report are being written")
        self._progress.update(snapshot)

    def show_written(self) -> None:
        """What there is to write is written."""
        if self._done is not None:
            self._progress.update(self._done)

    def describe(self, run_dir: Path, book: OrderBook) -> dict[str, Any]:
        """What ran, for the report."""
        return {
            "run_dir": str(run_dir),
            "orders": self.orders_path,
            "orders_sha256": book.sha256,
            "processor": self.processor,
            "begun_at": self._record.begun_at if self._record is not None else iso(self.begun_at),
            "began_run": iso(self.begun_at),
            "settings": {key: {"value": value, "from": origin} for key, value, origin in render_config(self._resolved)},
        }

    @contextlib.contextmanager
    def _logging(self, run_dir: Path) -> Iterator[None]:
        settings = self.settings
        verbosity = settings.verbose if not settings.quiet else 0
        with RunLogging(
            run_dir / "run.log",
            run_dir.name,
            self._progress.log,
            verbosity=verbosity,
            as_json=settings.log_format == "json",
        ):
            yield

    def read(self) -> OrderBook:
        """The order file, read with the settings for it."""
        settings = self.settings
        source = OrderSource(
            self.orders, settings.map, settings.sheet, settings.delimiter, settings.encoding,
            settings.duplicates,  # type: ignore[arg-type]  # the settings allow these four only
            settings.limit, settings.priority,
        )  # fmt: skip
        return read_orders(source, on_progress=lambda rows: self._progress.update(Snapshot("reading", total=rows)))

    def _check_command(self, book: OrderBook) -> None:
        if self.settings.command is not None:
            command.check_command(self.settings.command, book.names, is_shell=self.settings.shell)

    def _nothing_to_do(self, book: OrderBook) -> BatchReport:
        if book.invalid:
            shown = "\n".join(f"  {row}" for row in book.invalid[:SHOWN_ROWS])
            more = f"\n  … and {len(book.invalid) - SHOWN_ROWS} more" if len(book.invalid) > SHOWN_ROWS else ""
            raise OrdersError(f"{self.orders}: none of the {book.row_count} rows can be run:\n{shown}{more}")
        accounts = Accounts(book.row_count, 0, 0, 0, 0, book.row_count)
        return BatchReport(
            EXIT_NOTHING, accounts, {}, None, reason="nothing to do", message=f"{self.orders} holds no POs"
        )


def _orders_of(resuming: Resuming | None, record: RunRecord | None) -> Path:
    """The order file of a run: where it was, or else the copy that the run keeps."""
    if resuming is None or record is None:
        raise ConfigError("name the order file")
    path = Path(record.orders)
    return path if path.exists() else resuming.run_dir / record.orders_copy


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


def check_writable(path: Path, orders: Path, run_dir: Path | None = None) -> None:
    """Before anything runs: an output that cannot be written is told now."""
    folder = os.path.realpath(path.parent)
    is_ours = run_dir is not None and folder == os.path.realpath(run_dir)
    is_others = not is_ours and all(os.path.exists(os.path.join(folder, name)) for name in (RECORD_NAME, LOCK_NAME))
    if (is_ours or is_others) and (
        path.name in OWN_FILES or path.stem == "orders" or path.name.startswith(JOURNAL_NAME)
    ):
        whose = "the run itself" if is_ours else "another run"
        raise ConfigError(f"{str(path)!r} is a file that {whose} writes; name another one")
    check_output(path)
    if path.exists() and orders.exists() and path.samefile(orders):
        raise ConfigError(f"{str(path)!r} is the order file; it is never written to")
