"""A batch: an order file in, every row accounted for.

settings ─► processor checked ─► orders read ─► run directory ─► supervisor runs them ─► results, report, accounts
            └──── beside each other ───┘            (results.csv and failed.csv are written as POs end)
"""

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from poqueue.errors import ConfigError, OrdersError, ServiceError
from poqueue.payload import thaw, thaw_result
from poqueue.report import as_csv, as_yaml
from poqueue.service import leave_if_imported_again
from poqueue.task import Event, ProcessingTask, TaskStatus
from workers.log import RunLogging
from workers.orders import OrderBook, OrderSource, read_orders
from workers.processing import ProcessorSpec
from workers.processor_check import ProcessorCheck
from workers.processors import command
from workers.progress import Progress, SilentProgress, Snapshot
from workers.resolved import Resolved, load_settings, render_config
from workers.results import Accounts, ResultsWriter
from workers.run_dir import make_run_dir
from workers.settings import RunSettings
from workers.signals import SignalInbox
from workers.staff import WorkersCannotStartError
from workers.supervisor import RunEnd, Supervisor

logger = logging.getLogger(__name__)

ADD_AT_ONCE = 1000
SHOWN_ROWS = 20
EXIT_OK, EXIT_FAILED, EXIT_HALTED, EXIT_NOTHING, EXIT_INTERNAL = 0, 1, 4, 5, 70
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
        report: the queue's report, as export_queue_report("json") gives it, with `run` and `accounts`.
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
    report: dict[str, Any] = field(default_factory=dict)


def run_batch(
    orders: str | Path, processor: Any = None, *, progress: Progress | None = None, **settings: Any
) -> BatchReport:
    """Run every PO of an order file and account for every row.

    Args:
        orders: CSV, XLSX, XLS or ODS file; it is only read.
        processor: "module:attribute", or a function or class that workers can import; the dossier if left out.
        progress: what shows where the run stands; nothing if left out.
        settings: as on the command line, by key: jobs (or workers), task_timeout, max_retries, map, run_dir, ...

    Raises:
        ConfigError, ProcessorError, OrdersError: nothing ran; the text says what to do.
    """
    leave_if_imported_again()
    if "workers" in settings and "jobs" in settings:
        raise ConfigError("jobs and workers are two names of one setting: give one of them")
    if "workers" in settings:
        settings["jobs"] = settings.pop("workers")
    named = {"processor": processor} if isinstance(processor, str) else {}
    resolved = load_settings({**settings, **named}, None, {}, caller="run_batch")
    target = processor if processor is not None and not isinstance(processor, str) else None
    return Batch(Path(orders), resolved, target=target, progress=progress).run()


class Batch:
    """One batch with its settings resolved; `target` replaces the settings' processor by an object."""

    def __init__(
        self, orders: Path, resolved: Resolved, *, target: Any = None, progress: Progress | None = None
    ) -> None:
        self._orders = orders
        self._resolved = resolved
        self._settings: RunSettings = resolved.settings
        self._spec = processor_spec(self._settings, target)
        self._progress = progress or SilentProgress(None)
        self._begun_at = time.time()

    def check(self) -> OrderBook:
        """Read and report, run nothing. Errors as in run_batch."""
        checking = ProcessorCheck(self._spec)
        with contextlib.closing(checking):
            book = self._read()
            checking.finish()
        return book

    def run(self) -> BatchReport:
        """Run the batch. Errors as in run_batch."""
        book = self.check()
        if not book.orders:
            return self._nothing_to_do(book)
        for path in (*self._settings.report, *([self._settings.results] if self._settings.results else [])):
            _check_writable(path, self._orders)
        with SignalInbox() as signals:  # from here on there is something to be written, whatever comes
            run_dir = make_run_dir(self._settings.run_dir, self._orders)
            results = ResultsWriter(run_dir, book, self._settings.results)
            with contextlib.closing(results), self._logging(run_dir):
                return _Run(self, book, run_dir, results, signals).go()

    def supervisor(self, run_dir: Path, on_event: Any, signals: SignalInbox) -> Supervisor:
        """The supervisor that these settings ask for."""
        settings = self._settings
        return Supervisor(
            self._spec, jobs=settings.jobs, start_method=settings.start_method, grace=settings.grace,
            stop_grace=settings.stop_grace, max_tasks_per_worker=settings.max_tasks_per_worker,
            max_memory_per_worker=settings.max_memory_per_worker, work_dir=run_dir / "work", output_dir=run_dir / "output",
            log_path=run_dir / "manager.log", on_event=on_event, on_show=self._progress.update, signals=signals,
            max_retries=settings.max_retries, retry_delay=settings.retry_delay, task_timeout=settings.task_timeout,
            enable_priority=settings.priority, max_retry_delay=settings.max_retry_delay, retry_jitter=settings.jitter,
            retention_s=RETENTION_S,
        )  # fmt: skip

    def describe(self, run_dir: Path, book: OrderBook) -> dict[str, Any]:
        """What ran, for the report."""
        return {
            "run_dir": str(run_dir),
            "orders": str(self._orders.resolve()),
            "orders_sha256": book.sha256,
            "processor": self._spec.name,
            "begun_at": _iso(self._begun_at),
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
        book = read_orders(source, on_progress=lambda rows: self._progress.update(Snapshot("reading", total=rows)))
        if settings.command is not None:
            command.check_command(settings.command, book.names)
        return book

    def _nothing_to_do(self, book: OrderBook) -> BatchReport:
        if book.invalid:
            shown = "\n".join(f"  {row}" for row in book.invalid[:SHOWN_ROWS])
            more = f"\n  … and {len(book.invalid) - SHOWN_ROWS} more" if len(book.invalid) > SHOWN_ROWS else ""
            raise OrdersError(f"{self._orders}: none of the {book.row_count} rows can be run:\n{shown}{more}")
        accounts = Accounts(book.row_count, 0, 0, 0, 0, book.row_count)
        return BatchReport(
            EXIT_NOTHING, accounts, {}, None, reason="nothing to do", message=f"{self._orders} holds no POs"
        )


RETENTION_S = 366 * 86400.0  # a batch's report needs every PO


class _Run:
    """The part of a batch that has a run directory."""

    def __init__(
        self, batch: Batch, book: OrderBook, run_dir: Path, results: ResultsWriter, signals: SignalInbox
    ) -> None:
        self._batch = batch
        self._book = book
        self._run_dir = run_dir
        self._results = results
        self._signals = signals
        self._ended = bytearray(len(book.orders))
        self._counts = {"succeeded": 0, "failed": 0, "not_run": 0}
        self._report: dict[str, Any] = {}
        self._not_run: list[dict[str, Any]] | None = None
        self._begun = time.monotonic()

    def go(self) -> BatchReport:
        total = len(self._book.orders)
        self._announce()
        end = self._run_workers()
        seconds = time.monotonic() - self._begun
        not_run = self._not_run if self._not_run is not None else self._left_over()
        self._counts["not_run"] = len(not_run)
        accounts = self._results.finish(not_run)
        with contextlib.suppress(FileNotFoundError):  # it may have died before it made the file
            if (self._run_dir / "manager.log").stat().st_size == 0:
                (self._run_dir / "manager.log").unlink()
        files = {
            name: self._run_dir / name
            for name in ("results.csv", "failed.csv", "not_run.csv", "run.log", "manager.log")
        }
        report = {
            "run": self._batch.describe(self._run_dir, self._book),
            "accounts": _as_dict(accounts),
            **self._report,
        }
        report["run"] |= {"seconds": round(seconds, 3), "reason": end.reason, "message": end.message}
        for path in (self._run_dir / "report.json", *self._batch._settings.report):
            name = path.name if path.parent == self._run_dir else str(path)
            files[name] = write_report(report, path)
        if self._batch._settings.results is not None:
            files[str(self._batch._settings.results)] = self._batch._settings.results
        code = self._exit_code(end, accounts, total)
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
            report,
        )

    def _announce(self) -> None:
        """What was noticed while reading: all of it into the log, the first rows onto the screen."""
        for note in self._book.notes:
            logger.warning("%s", note)
        for number, row in enumerate(self._book.invalid):
            logger.log(logging.WARNING if number < SHOWN_ROWS else logging.INFO, "invalid: %s", row)
        if len(self._book.invalid) > SHOWN_ROWS:
            logger.warning("… and %d more invalid rows; all are in results.csv", len(self._book.invalid) - SHOWN_ROWS)

    def _run_workers(self) -> RunEnd:
        supervisor = self._batch.supervisor(self._run_dir, self._take, self._signals)
        try:
            with supervisor:
                self._add_all(supervisor)
                try:
                    end = supervisor.run()
                except WorkersCannotStartError as error:
                    logger.error("%s", error)
                    end = RunEnd("halted", message=str(error))
                supervisor.take_rest()
                self._results.flush()
                if end.reason != "done":
                    self._not_run = [
                        task.po_data for status in UNFINISHED for task in supervisor.queue.get_tasks_by_status(status)
                    ]
                report = supervisor.queue.export_queue_report("json")
                assert isinstance(report, dict)
                self._report = report
                return end
        except ServiceError as error:
            logger.error("the queue is lost: %s", error)
            return RunEnd("lost", message=f"the manager process is lost: {error}")

    def _add_all(self, supervisor: Supervisor) -> None:
        orders, priorities = self._book.orders, self._book.priorities
        for start in range(0, len(orders), ADD_AT_ONCE):
            supervisor.queue.add_tasks(
                [
                    ProcessingTask(task_id=f"t{number + 1}", po_data=orders[number], priority=priorities[number])
                    for number in range(start, min(start + ADD_AT_ONCE, len(orders)))
                ]
            )
        self._book.orders, self._book.priorities = [], []  # from here on the queue has them

    def _take(self, event: Event) -> None:
        """Write down how a PO ended, as it ends."""
        record = event.task
        if record is None or event.kind not in ("completed", "failed"):
            if event.kind == "empty":
                self._results.flush()
            return
        self._ended[int(record.task_id[1:]) - 1] = 1
        is_success = event.kind == "completed"
        self._counts["succeeded" if is_success else "failed"] += 1
        result = thaw_result(record.result) if record.result is not None else None
        latest = record.error_history[-1] if record.error_history else {}
        seconds = result.processing_time if result else float(latest.get("seconds", 0.0) or 0.0)
        self._results.outcome(
            thaw(record.payload), status="succeeded" if is_success else "failed", attempts=record.attempt, seconds=seconds,
            worker=record.worker_id or "", error="" if is_success else _error_text(latest, event.error),
            data=_columns(result) if result else None,
        )  # fmt: skip

    def _left_over(self) -> list[dict[str, Any]]:
        """What has not ended, if the queue cannot say: from the order file again."""
        if all(self._ended):
            return []
        book = self._batch._read()
        if book.sha256 != self._book.sha256:
            logger.error("%s has changed meanwhile: what is left of it cannot be written", self._batch._orders)
            return []
        orders = book.orders
        return [po for number, po in enumerate(orders) if not self._ended[number]]

    def _exit_code(self, end: RunEnd, accounts: Accounts, total: int) -> int:
        if not accounts.balances or sum(self._counts.values()) != total or end.reason == "lost":
            return EXIT_INTERNAL
        if end.reason == "interrupted" and self._counts["not_run"]:
            return 128 + end.signal
        if end.reason == "halted":
            return EXIT_HALTED
        return EXIT_FAILED if accounts.failed or accounts.invalid else EXIT_OK


def processor_spec(settings: RunSettings, target: Any = None) -> ProcessorSpec:
    """What the settings ask to be run."""
    app_dir = str(settings.app_dir) if settings.app_dir is not None else None
    if target is not None:
        return ProcessorSpec(target, dict(settings.options), app_dir)
    if settings.command is not None:
        ours = {command.OPTION: settings.command, command.SHELL_OPTION: "true" if settings.shell else "false"}
        return ProcessorSpec(command.TARGET, {**settings.options, **ours}, app_dir)
    return ProcessorSpec(settings.processor, dict(settings.options), app_dir)


def write_report(report: Mapping[str, Any], path: Path) -> Path:
    """Write a report in the format of the file's extension; the file is replaced whole or not at all."""
    plain = dict(report)
    if path.suffix == ".csv":
        text = as_csv(plain)
    elif path.suffix == ".yaml":
        text = as_yaml(plain)
    else:
        text = json.dumps(plain, ensure_ascii=False, allow_nan=False)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8", newline="", opener=_private) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    return path


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _check_writable(path: Path, orders: Path) -> None:
    """Before anything runs: an output that cannot be written is told now."""
    if path.is_dir():
        raise ConfigError(f"{str(path)!r} is a directory; name a file")
    if not path.parent.is_dir():
        raise ConfigError(f"{str(path)!r}: there is no directory {str(path.parent)!r}")
    if not os.access(path.parent, os.W_OK):
        raise ConfigError(f"{str(path)!r}: the directory cannot be written to")
    if path.exists() and path.samefile(orders):
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
    return datetime.fromtimestamp(wall_time, UTC).isoformat(timespec="seconds")
