"""A batch while it has a run directory: from the first task to the report, new or resumed."""

import contextlib
import errno
import logging
import os
import shlex
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poqueue import failpoint, fast_json
from poqueue.client import REPORT_TIMEOUT_S
from poqueue.errors import ConfigError, JournalError, ServiceError
from poqueue.journal import JOURNAL_NAME, check_file
from poqueue.packing import FrozenTask, unpack_parts
from poqueue.payload import freeze_plain, thaw, thaw_result, thaw_task
from poqueue.report import as_csv, as_json, as_yaml, build_report, iso
from poqueue.task import Event, ReportParts, TaskRecord, TaskStatus
from workers.early_start import EarlyStart
from workers.log import ShieldedLogger
from workers.orders import OrderBook
from workers.recovery import LeftBehind
from workers.results import RESULT_FILES, Accounts, ResultsWriter
from workers.resume import Match, Resuming, match_orders, unended
from workers.run_again import command_again
from workers.run_dir import copy_of_orders, typed
from workers.run_record import RunRecord, last_begin, read_report
from workers.signals import SignalInbox
from workers.staff import WorkersCannotStartError
from workers.supervisor import RunEnd, Supervisor
from workers.whole_file import write_whole
from workers.worker_files import Usage

if TYPE_CHECKING:
    from workers.batch import Batch
    from workers.progress import Snapshot

logger = ShieldedLogger(__name__)

SHOWN_ROWS = 20
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


class BatchRun:
    """The part of a batch that has a run directory."""

    def __init__(
        self,
        batch: "Batch",
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
            on_begun: called when there is a queue, with a journal if it has one, and before anybody works.
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
        self._results = ResultsWriter(self._run_dir, self._book, self._batch.settings.results)

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
        head = {"run": run, "accounts": asdict(accounts)}
        failpoint.hit("batch.before_report")
        for path in (self._run_dir / "report.json", *self._batch.settings.report):
            name = path.name if path.parent == self._run_dir else str(path)
            with self._noting_unwritten(path):
                files[name] = write_report(head, self._parts, path, knows_data=self._froze_all())
        self._batch.show_written()
        if (results := self._batch.settings.results) in self._results.written:
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
            self._show,
            self._signals,
            self._early,
            must_exist=self._resuming is not None,
        )
        try:
            with contextlib.closing(supervisor):
                if self._resuming is None:
                    self._feed(supervisor, *self._places_to_add(0))
                supervisor.start_queue(prepares_workers=self._resuming is None)
                if self._resuming is not None:
                    self._feed(supervisor, *self._take_up(supervisor, self._resuming))
                on_begun()
                failpoint.hit("batch.after_start_queue")
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
        self._flush()
        self._resumed = {
            "done_before": sum(self._counts.values()) if not resuming.retry_failed else self._counts["succeeded"],
            "interrupted": interrupted,
            "changed": match.changed if match else 0,
            "new": len(match.to_add) - match.changed if match else 0,
            "removed": match.removed if match else 0,
            "left_out": match.left_out if match else 0,
            "requeued": requeued,
        }
        self._record.resumed_at.append(iso(self._batch.begun_at))
        self._record.settings, self._record.counted = self._batch.shown_settings(), counted(self._book)
        self._record.processor, self._record.options = self._batch.processor, dict(self._batch.spec.options)
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
        if is_same_file and not self._changed_input_settings():
            return None
        tasks = [
            thaw_task(one._replace(result=None))  # what came of them is not compared
            for status in TaskStatus
            for one in supervisor.ask("get_tasks_by_status", status, timeout_s=REPORT_TIMEOUT_S)
        ]
        return match_orders(book.orders, tasks, book.left_out)

    def _changed_input_settings(self) -> list[str]:
        before, now = self._record.settings, self._batch.shown_settings()
        return [key for key in INPUT_SETTINGS if now[key] != before.get(key)]

    def _apply(self, match: Match, supervisor: Supervisor, resuming: Resuming) -> None:
        """Drop the tasks of orders that are no more; those of new and changed ones are added with the rest."""
        if not match.is_same and not resuming.accept_changes:
            what = f"{self._batch.orders} is not what this run was started with"
            if self._book.sha256 == self._record.orders_sha256 and (others := self._changed_input_settings()):
                what = f"this run was started with another {' and '.join(others)}"
            raise ConfigError(
                f"{what}: {match}; to go on with it as it is now, add --accept-changes; {self._way_back(resuming)}"
            )
        self._place_of = {task_id: place for place, task_id in match.task_of.items()}
        self._match = match
        self._book.take_in(match.kept)
        self._ended = bytearray(len(self._book.orders))
        if not match.is_same or match.kept or self._book.sha256 != self._record.orders_sha256:
            copy = copy_of_orders(self._run_dir, self._batch.orders, self._book.sha256)
            self._record.orders_copy = copy.name
            self._record.orders, self._record.orders_sha256 = self._batch.orders_path, self._book.sha256
            self._record.is_edited = True
            self._record.write(self._run_dir)  # before a task goes: from then on, order N is not task tN any more
        supervisor.ask("drop_tasks", match.to_drop)
        failpoint.hit("recovery.after_drop")

    def _way_back(self, resuming: Resuming) -> str:
        """How to go on with the orders as the run had them."""
        if resuming.retry_failed:
            again = command_again(self._run_dir / "failed.csv", self._batch.shown_settings())
            return f"to run the failures as they were, run them by themselves: {again}"
        words = [typed(self._run_dir), typed(self._run_dir / self._record.orders_copy)]
        return f"to go on with what it was: poqueue run --resume {shlex.join(words)}"

    def _reconfigure(self, supervisor: Supervisor) -> None:
        """Limits that were given anew hold for the tasks of before as well."""
        settings, before = self._batch.settings, self._record.settings
        now = self._batch.shown_settings()
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

    def _show(self, snapshot: "Snapshot") -> None:
        """What is shown has been written as well: not each PO by itself, which would take its time."""
        self._flush()
        self._batch.show(snapshot)

    def _flush(self) -> None:
        with contextlib.suppress(OSError):  # it is written again at the end
            self._results.flush()

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
        book = self._batch.read()
        if book.sha256 != self._book.sha256:
            logger.error("%s has changed meanwhile: what is left of it cannot be written", self._batch.orders)
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


def counted(book: OrderBook) -> dict[str, int]:
    """What there is to run, before anybody knows how it ends."""
    return {
        "pos": len(book.orders),
        "rows": book.row_count,
        "duplicate": len(book.duplicate_rows),
        "invalid": len(book.invalid),
    }


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


def _error_text(latest: Mapping[str, Any], message: str) -> str:
    kind = str(latest.get("error_type", ""))
    return message if not kind or message.startswith(kind) else f"{kind}: {message}"


def _columns(result: Any) -> dict[str, Any]:
    return {**result.data, **({"downloads": result.downloads} if result.downloads else {})}
