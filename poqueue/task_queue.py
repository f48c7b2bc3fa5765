"""The TaskQueue: one authority over every task of a batch, safe for any number of threads.

A task's life, and the method that moves it:

    add_task ──► PENDING ──► PROCESSING ──► COMPLETED          complete_task
                    ▲  get_next_task │ ├──► FAILED             complete_task(success=False), retry_task (none left)
                    │                │ └──► RETRY_PENDING ──► PROCESSING ...     retry_task, then its delay
                    └── release_worker ┘

The class holds the one lock; policy lives in single-threaded collaborators that know neither lock nor wall clock: Ledger
(what is where), Schedule (what is next), Metrics, ErrorLog, EventDelivery and EventFeed.
Contract: TaskQueue API Contract, with R1 to R28 as settled beside it.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any
from uuid import uuid4

from poqueue import report as reports_of
from poqueue import tuning
from poqueue.config import (
    DEFAULT_MAX_RETRY_DELAY_S,
    DEFAULT_RETENTION_S,
    QueueConfig,
    check_max_retries,
    check_seconds,
    check_timeout,
    check_whole,
)
from poqueue.error_log import ErrorLog, described, error_message_of, error_type_of
from poqueue.errors import QueueFullError, TaskNotFoundError, WorkerMismatchError
from poqueue.events import UNSET, EventDelivery, EventFeed
from poqueue.ledger import Entry, Ledger
from poqueue.metrics import HOUR_S, Metrics, percentage
from poqueue.payload import FrozenResult, freeze_po, freeze_result, thaw_for_report, thaw_task
from poqueue.retry import backoff_s
from poqueue.schedule import Schedule
from poqueue.task import DEFAULT_PRIORITY, Event, Grant, Lease, ProcessingTask, Report, TaskRecord, TaskResult
from poqueue.task import TaskStatus as S

logger = logging.getLogger(__name__)

MAX_WAIT_S = 5.0


class TaskQueue:
    """Priority queue with leases, retries, metrics and events for processing purchase orders.

    Args:
        max_retries: retries after the first attempt; 0 means that a failed attempt is final.
        retry_delay: seconds before the first retry; each further one waits twice as long.
        task_timeout: seconds that one attempt may take; enforced by the supervisor.
        enable_priority: serve by priority, or strictly first in first out.
        queue_size_limit: how many tasks may wait (pending and retrying); None for no limit.
        max_retry_delay: upper bound of the delay between retries, seconds.
        retry_jitter: lengthens each delay by up to this share (0..1), at random.
        retention_s: seconds that finished tasks stay findable.
        clock: monotonic seconds, for every deadline and duration.
        wall_clock: UTC seconds since the epoch, for people.
        open_task: how a record is handed out; the service hands it on unopened.

    Raises:
        ValueError: a timeout or retry value, or another setting, is invalid.
    """

    def __init__(
        self,
        max_retries: int = 3,
        retry_delay: float = 5.0,
        task_timeout: float = 300.0,
        enable_priority: bool = True,
        *,
        queue_size_limit: int | None = None,
        max_retry_delay: float = DEFAULT_MAX_RETRY_DELAY_S,
        retry_jitter: float = 0.0,
        retention_s: float = DEFAULT_RETENTION_S,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        open_task: Callable[[TaskRecord], ProcessingTask] = thaw_task,
    ) -> None:
        self._config = QueueConfig(
            max_retries, retry_delay, task_timeout, enable_priority,
            queue_size_limit, max_retry_delay, retry_jitter, retention_s,
        )  # fmt: skip
        self._clock = clock
        self._wall_clock = wall_clock
        self._open = open_task
        self._ledger = Ledger()
        self._schedule = Schedule(by_priority=enable_priority)
        self._metrics = Metrics()
        self._errors = ErrorLog()
        self._delivery = EventDelivery()
        self._feed = EventFeed()
        self._rank = 0
        self._token = 0
        self._is_paused = False
        self._is_draining = False
        self._empty_is_news = False  # on_queue_empty is due at the next drain
        self._full_was_told = False  # on_queue_full has fired for this filling
        self._retired: set[str] = set()
        self._waiters = 0
        self._ensure_thread_safety()

    # ------------------------------------------------------------------ a task's life

    def add_task(self, task: ProcessingTask, priority: int = DEFAULT_PRIORITY) -> str:
        """Add a task.

        Args:
            task: with `po_data` holding a non-blank `po_number`; an empty `task_id` gets a UUID.
            priority: 1 (first) to 10 (last); at 5, the default, the task's own priority counts.

        Returns:
            The task's id.

        Raises:
            ValueError: the task or the priority is invalid, or the id is known already.
            QueueFullError: the queue is at its size limit; nothing was added.
        """
        return self.add_tasks([task], priority)[0]

    def add_tasks(self, tasks: Sequence[ProcessingTask], priority: int = DEFAULT_PRIORITY) -> list[str]:
        """Add many tasks in one step, all or none; arguments and errors as in add_task."""
        admitted = [self._admit(task, priority) for task in tasks]
        try:
            with self._lock:
                self._guard_new_ids(admitted)
                self._guard_size(len(admitted))
                now, wall = self._clock(), self._wall_clock()
                for entry in admitted:
                    self._rank += 1
                    entry.rank, entry.ready, entry.created_at = self._rank, now, wall
                    self._ledger.add(entry)
                    self._schedule.add(entry)
                if admitted:
                    self._empty_is_news = True
                    self._wake(len(admitted))
        finally:
            self._delivery.deliver()
        return [entry.task_id for entry in admitted]

    def get_next_task(self, worker_id: str) -> ProcessingTask | None:
        """Lease the best task that may run now to a worker; None if there is none, or while paused.

        Raises:
            ValueError: worker_id is not a non-blank text.
        """
        _check_worker_id(worker_id)
        with self._lock:
            if self._may_not_lease(worker_id):
                return None
            entry = self._lease(worker_id, self._clock())
            return self._open(entry.record()) if entry is not None else None

    def complete_task(self, task_id: str, worker_id: str, result: TaskResult) -> None:
        """End a task with its result: COMPLETED, or FAILED if `result.success` is False (no retry).

        Raises:
            TaskNotFoundError: no such id.
            WorkerMismatchError: the task is not being processed by this worker; nothing was changed.
            ValueError: the result is no TaskResult, or cannot be pickled.
        """
        frozen = freeze_result(result)
        with self._lock:
            entry = self._require(task_id)
            if entry.status is not S.PROCESSING or entry.worker_id != worker_id:
                holder = f"held by {entry.worker_id}" if entry.status is S.PROCESSING else entry.status.value
                raise WorkerMismatchError(f"task {task_id} is {holder}; the report of {worker_id} changes nothing")
            self._end(entry, frozen, None)
        self._delivery.deliver()

    def retry_task(self, task_id: str, error_details: dict[str, Any]) -> bool:
        """Give a failed attempt back: wait for the backoff, or end as FAILED.

        Called by a worker that failed, and by the supervisor once it has killed and buried one.

        Args:
            error_details: `error_type` and `error` (or `error_message`, `message`) describe the failure; `worker_id`
                names whose attempt it was; `retry_after_s` asks for a given delay; all of it is kept, as plain data.

        Returns:
            True if the task will run again; False if it has no retries left or is already done.

        Raises:
            TaskNotFoundError: no such id.
            WorkerMismatchError: `worker_id` is given and does not hold the task; nothing was changed.
            ValueError: error_details is no dict.
        """
        details = described(error_details)
        after_s = error_details.get("retry_after_s")
        if after_s is not None:
            check_seconds(after_s, "retry delay asked for (retry_after_s)", minimum=0.0)
        with self._lock:
            is_retrying = self._retry(self._require(task_id), details, after_s)
        self._delivery.deliver()
        return is_retrying

    # ------------------------------------------------------------------ workers of a pool

    def exchange(self, worker_id: str, reports: Sequence[Report] = (), limit: int = 1, wait_s: float = 0.0) -> Grant:
        """Take a worker's reports and lease it up to `limit` tasks, in one step.

        With nothing to lease it waits up to `wait_s` seconds (at most 5). A report whose token is not that of the live
        lease changes nothing, so a report may be sent again when its answer was lost. Leases that a worker holds ahead
        are in order of priority.
        """
        _check_worker_id(worker_id)
        if reports:
            with self._lock:
                for report in reports:
                    self._take_report(worker_id, report)
            self._delivery.deliver()
        deadline = time.monotonic() + min(wait_s, MAX_WAIT_S)
        with self._lock:
            while True:
                if self._is_draining or worker_id in self._retired:
                    return Grant([], stop=True)
                leases = self._lease_many(worker_id, limit)
                remaining_s = deadline - time.monotonic()
                if leases or not limit or remaining_s <= 0:
                    return Grant(leases, stop=False)
                self._wait_for_work(remaining_s)

    def retire_worker(self, worker_id: str) -> None:
        """Lease nothing to this worker any more; its next exchange says stop. Its reports still count."""
        with self._lock:
            self._retired.add(worker_id)
            self._work.notify_all()

    def release_worker(self, worker_id: str) -> list[str]:
        """Fence a dead worker's id for ever and undo the leases it held but never began, uncharged.

        Returns:
            The ids of the tasks that wait again.
        """
        with self._lock:
            self._retired.add(worker_id)
            return self.take_back(worker_id)

    def take_back(self, worker_id: str, but: int = 0) -> list[str]:
        """Undo, uncharged, the leases that a worker holds and has not begun; `but` is the token of the one it works on.

        Only for a caller who knows that the worker will not begin them any more.

        Returns:
            The ids of the tasks that wait again.
        """
        with self._lock:
            of_worker = self._ledger.of_worker(worker_id)
            held = [e for e in of_worker if e.status is S.PROCESSING and e.worker_id == worker_id and e.token != but]
            for entry in held:
                self._undo(entry)
            self._work.notify_all()
            return [entry.task_id for entry in held]

    def drain_queue(self) -> None:
        """Lease nothing to anybody any more; every exchange says stop. Reports still count."""
        with self._lock:
            self._is_draining = True
            self._work.notify_all()

    def get_leases(self) -> dict[int, TaskRecord]:
        """What runs now: lease token to the task's record (payload unopened)."""
        with self._lock:
            return {entry.token: entry.record() for entry in self._ledger.of_status(S.PROCESSING)}

    # ------------------------------------------------------------------ managing the queue

    def get_queue_status(self) -> dict[str, Any]:
        """One consistent snapshot: the contract's keys, and `status` ("ACTIVE", "PAUSED", "DRAINING") and `cleared_tasks`.

        total_tasks = pending + processing + completed + failed + retry + cleared. Times in seconds.
        """
        with self._lock:
            counts = self._ledger.counts
            return {
                "total_tasks": self._ledger.added,
                "pending_tasks": counts[S.PENDING],
                "processing_tasks": counts[S.PROCESSING],
                "completed_tasks": counts[S.COMPLETED],
                "failed_tasks": counts[S.FAILED],
                "retry_tasks": counts[S.RETRY_PENDING],
                "queue_length": self._waiting(),
                "estimated_completion": self._estimate_s(),
                "throughput": self._metrics.throughput(self._clock()),
                "status": "DRAINING" if self._is_draining else "PAUSED" if self._is_paused else "ACTIVE",
                "cleared_tasks": self._ledger.cleared,
            }

    def pause_queue(self) -> None:
        """Start no task from now on; running ones go on, reports and new tasks are taken."""
        with self._lock:
            self._is_paused = True
        logger.info("queue paused")

    def resume_queue(self) -> None:
        """Start tasks again."""
        with self._lock:
            self._is_paused = False
            self._work.notify_all()
            waiting, running = self._waiting(), self._ledger.counts[S.PROCESSING]
        logger.info("queue resumed: %d waiting, %d running", waiting, running)

    def clear_queue(self, preserve_processing: bool = True) -> int:
        """Remove the tasks that wait, and the running ones too unless they are preserved.

        Returns:
            How many were removed. They are gone for good: a later report of one raises TaskNotFoundError.
        """
        with self._lock:
            dropped = self._ledger.clear((S.PENDING, S.RETRY_PENDING))
            self._schedule.clear()
            if not preserve_processing:
                running = self._ledger.clear((S.PROCESSING,))
                for entry in running:
                    self._stop_running(entry, None)
                    self._note("dropped", entry)
                dropped += running
            self._full_was_told = False
            self._note_if_empty()
        logger.info(
            "queue cleared: %d tasks removed, processing %s", len(dropped), "kept" if preserve_processing else "removed"
        )
        self._delivery.deliver()
        return len(dropped)

    # ------------------------------------------------------------------ finding tasks

    def get_tasks_by_status(self, status: S) -> list[ProcessingTask]:
        """Copies of all tasks with a status.

        Raises:
            ValueError: not a TaskStatus.
        """
        if not isinstance(status, S):
            raise ValueError(f"status must be a TaskStatus, got {status!r}")
        with self._lock:
            records = [entry.record() for entry in self._ledger.of_status(status)]
        return [self._open(record) for record in records]

    def get_tasks_by_worker(self, worker_id: str) -> list[ProcessingTask]:
        """Copies of the tasks a worker runs, has finished, or has failed an attempt of."""
        with self._lock:
            records = [entry.record() for entry in self._ledger.of_worker(worker_id)]
        return [self._open(record) for record in records]

    def find_task(self, po_number: str | int | None = None, task_id: str | None = None) -> ProcessingTask | None:
        """A copy of the task with this PO number, id, or both; None if there is none.

        Of several tasks with one PO number the live one is found first, then the newest.

        Raises:
            ValueError: neither was given.
        """
        if po_number is None and task_id is None:
            raise ValueError("find_task needs a po_number or a task_id")
        with self._lock:
            if task_id is not None:
                entry = self._ledger.get(task_id)
                if entry is not None and po_number is not None and entry.po_number != str(po_number).strip():
                    entry = None
            else:
                entry = self._ledger.of_po(str(po_number).strip())
            record = entry.record() if entry is not None else None
        return self._open(record) if record is not None else None

    # ------------------------------------------------------------------ figures and reports

    def get_performance_metrics(self) -> dict[str, Any]:
        """Durations and waits in seconds, rates in tasks per second, shares of tasks in percent, utilisation 0..1.

        Beside the contract's keys: `events_dropped`, events that no handler was quick enough to hear of.
        """
        with self._lock:
            metrics, counts, now = self._metrics, self._ledger.counts, self._clock()
            return {
                "average_task_duration": metrics.average_duration_s(),
                "throughput_last_minute": metrics.throughput(now),
                "throughput_last_hour": metrics.throughput(now, HOUR_S),
                "retry_rate": percentage(metrics.tasks_retried, metrics.tasks_started),
                "failure_rate": percentage(counts[S.FAILED], counts[S.FAILED] + counts[S.COMPLETED]),
                "queue_wait_time": metrics.average_wait_s(),
                "worker_utilization": metrics.utilization(now),
                "events_dropped": self._delivery.dropped,
            }

    def get_error_summary(self) -> dict[str, Any]:
        """Failed attempts by type and by UTC hour, and the percentage of retries that succeeded."""
        with self._lock:
            rate = percentage(self._metrics.retries_succeeded, self._metrics.retries_ended)
            return {**self._errors.summary(), "retry_success_rate": rate}

    def export_queue_report(self, format: str = "json", include_completed: bool = True) -> dict[str, Any] | str:
        """Every task with its history, the figures, errors and workers.

        Returns:
            "json": a dict of plain JSON types; "csv": text, a row per task; "yaml": text for safe_load.

        Raises:
            ValueError: another format.
        """
        if format not in reports_of.FORMATS:
            raise ValueError(f"report format must be one of {', '.join(reports_of.FORMATS)}, got {format!r}")
        with self._lock:
            records = [e.record() for e in self._ledger if include_completed or e.status is not S.COMPLETED]
            status, metrics, errors = self.get_queue_status(), self.get_performance_metrics(), self.get_error_summary()
            configuration = asdict(self._config)
        tasks = [thaw_for_report(record) for record in records]
        built = reports_of.build_report(
            tasks,
            status=status,
            metrics=metrics,
            errors=errors,
            configuration=configuration,
            wall_time=self._wall_clock(),
        )
        if format == "csv":
            return reports_of.as_csv(built)
        return reports_of.as_yaml(built) if format == "yaml" else built

    # ------------------------------------------------------------------ settings, events, upkeep

    def update_configuration(
        self,
        max_retries: int | None = None,
        retry_delay: float | None = None,
        task_timeout: float | None = None,
        queue_size_limit: int | None = None,
    ) -> None:
        """Change settings; None leaves one as it is. Tasks added before keep theirs; the size limit acts at once.

        Raises:
            ValueError: a value is invalid; nothing was changed.
        """
        given = {
            "max_retries": max_retries,
            "retry_delay": retry_delay,
            "task_timeout": task_timeout,
            "queue_size_limit": queue_size_limit,
        }
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        with self._lock:
            self._config = replace(self._config, **changes)
            self._rearm_full()

    def optimize_for_workload(
        self, expected_task_count: int, average_task_duration: float, worker_count: int
    ) -> dict[str, Any]:
        """Recommend settings for a workload, each with its reason; applies nothing. Details: poqueue.tuning.advise.

        Args:
            expected_task_count: tasks, 0 or more.
            average_task_duration: seconds a task, above 0.
            worker_count: workers, 1 or more.

        Raises:
            ValueError: an argument is invalid.
        """
        with self._lock:
            metrics, counts = self._metrics, self._ledger.counts
            measured = tuning.Measured(
                counts[S.COMPLETED], counts[S.FAILED], metrics.tasks_retried,
                metrics.average_duration_s(), metrics.duration_max_s,
                percentage(metrics.retries_succeeded, metrics.retries_ended),
            )  # fmt: skip
            config = self._config
        return tuning.advise(
            expected_task_count, average_task_duration, worker_count, machine=tuning.look_at_machine(),
            measured=measured, max_retries=config.max_retries, retry_delay=config.retry_delay,
        )  # fmt: skip

    def set_event_handlers(
        self,
        on_task_complete: Callable[[ProcessingTask], None] | None = UNSET,
        on_task_failed: Callable[[ProcessingTask, str], None] | None = UNSET,
        on_queue_empty: Callable[[], None] | None = UNSET,
        on_queue_full: Callable[[], None] | None = UNSET,
    ) -> None:
        """Set handlers; one left out stays as it is, None unsets it.

        They are called after the change, outside the lock, in order; what they raise is logged and swallowed.

        Raises:
            ValueError: a handler is not callable.
        """
        with self._lock:
            self._delivery.handlers.update(on_task_complete, on_task_failed, on_queue_empty, on_queue_full)

    def open_events(self) -> tuple[int, int]:
        """Begin to read events, from now on: the reader's number, and that of the last event before."""
        with self._lock:
            return self._feed.open()

    def read_events(self, reader: int, after: int, limit: int = 1000, wait_s: float = 0.0) -> list[Event]:
        """Events numbered above `after`, oldest first; the reader needs the earlier ones no more.

        With no event at hand the call waits up to `wait_s` seconds (at most 5). A gap in the numbers means that the reader
        was too slow and some were dropped.
        """
        deadline = time.monotonic() + min(wait_s, MAX_WAIT_S)
        with self._lock:
            self._feed.release(reader, after)
            while not (events := self._feed.read(after, limit)):
                remaining_s = deadline - time.monotonic()
                if remaining_s <= 0:
                    break
                self._news.wait(remaining_s)
            return events

    def close_events(self, reader: int) -> None:
        """End reading."""
        with self._lock:
            self._feed.close(reader)

    def _cleanup_resources(self) -> None:
        """Drop finished tasks beyond the retention period and errors beyond the threshold; runs as tasks complete."""
        with self._lock:
            self._ledger.expire(self._clock() - self._config.retention_s)
            self._errors.trim()

    def _ensure_thread_safety(self) -> None:
        """Put the lock and what belongs to it in place; harmless when it is there already."""
        if hasattr(self, "_lock"):
            return
        self._lock = threading.RLock()
        self._work = threading.Condition(self._lock)  # workers wait here for something to lease
        self._news = threading.Condition(self._lock)  # readers of the feed wait here
        self._context = threading.local()  # whose call this is, for log lines only

    # ------------------------------------------------------------------ guards (no change yet)

    def _admit(self, task: ProcessingTask, priority: int) -> Entry:
        if not isinstance(task, ProcessingTask):
            raise ValueError(f"invalid task: a ProcessingTask is needed, got {type(task).__name__}")
        if not isinstance(task.task_id, str):
            raise ValueError(f"invalid task: task_id must be text, got {task.task_id!r}")
        check_whole(priority, "priority", minimum=1, maximum=10)
        if priority == DEFAULT_PRIORITY:
            priority = task.priority
            check_whole(priority, "priority", minimum=1, maximum=10)
        po_number, payload = freeze_po(task.po_data)
        config = self._config
        retries, delay, timeout = task.max_retries, task.retry_delay, task.task_timeout
        if retries is None:
            retries = config.max_retries
        else:
            check_max_retries(retries)
        if delay is None:
            delay = config.retry_delay
        else:
            check_seconds(delay, "retry delay (retry_delay)", minimum=0.0)
        if timeout is None:
            timeout = config.task_timeout
        else:
            check_timeout(timeout)
        return Entry(task.task_id or str(uuid4()), po_number, payload, priority, 0, retries, delay, timeout, 0.0, 0.0)

    def _guard_new_ids(self, admitted: list[Entry]) -> None:
        fresh = set()
        for entry in admitted:
            if entry.task_id in self._ledger or entry.task_id in fresh:
                raise ValueError(f"invalid task: task_id {entry.task_id!r} is already in the queue")
            fresh.add(entry.task_id)

    def _guard_size(self, count: int) -> None:
        limit = self._config.queue_size_limit
        if limit is None or self._waiting() + count <= limit:
            return
        if not self._full_was_told:
            self._full_was_told = True
            self._note("full", None)
        raise QueueFullError(f"the queue is full: {self._waiting()} tasks wait, the limit is {limit}")

    def _require(self, task_id: str) -> Entry:
        entry = self._ledger.get(task_id)
        if entry is None:
            raise TaskNotFoundError(f"no task has the id {task_id!r}")
        return entry

    def _may_not_lease(self, worker_id: str) -> bool:
        return self._is_paused or self._is_draining or worker_id in self._retired

    # ------------------------------------------------------------------ moves (under the lock)

    def _lease(self, worker_id: str, now: float) -> Entry | None:
        entry = self._schedule.take(now)
        if entry is None:
            return None
        self._token += 1
        entry.token = self._token
        entry.attempt += 1
        entry.worker_id = worker_id
        entry.leased = now
        entry.assigned_at = self._wall_clock()
        self._ledger.move(entry, S.PROCESSING)
        self._ledger.note_worker(entry, worker_id)
        self._metrics.dispatched(worker_id, entry.token, entry.attempt, entry.ready, now)
        if self._full_was_told:
            self._rearm_full()
        return entry

    def _lease_many(self, worker_id: str, limit: int) -> list[Lease]:
        leases: list[Lease] = []
        if self._is_paused:
            return leases
        now = self._clock()
        while len(leases) < limit and (entry := self._lease(worker_id, now)) is not None:
            leases.append(
                Lease(
                    entry.task_id,
                    entry.token,
                    entry.attempt,
                    entry.attempt + entry.max_retries - entry.retry_count,
                    entry.task_timeout,
                    entry.po_number,
                    entry.payload,
                )  # fmt: skip
            )
        return leases

    def _take_report(self, worker_id: str, report: Report) -> None:
        entry = self._ledger.get(report.task_id)
        is_live = entry is not None and entry.status is S.PROCESSING
        if entry is None or not is_live or entry.token != report.token or entry.worker_id != worker_id:
            logger.info("report of %s on task %s came too late; ignored", worker_id, report.task_id)
            return
        if report.result is not None:
            self._end(entry, report.result, None)
        elif report.error is None:
            self._undo(entry)
            self._wake(1)
        elif report.give_up:
            self._fail(entry, report.error, report.processing_time)
        else:
            self._retry(entry, report.error, report.retry_after_s, report.processing_time)

    def _end(self, entry: Entry, result: FrozenResult, busy_s: float | None) -> None:
        """A final report: COMPLETED, or FAILED."""
        now = self._clock()
        entry.result = result.payload
        if not result.success:
            self._fail(entry, described({"error_message": result.error_message or "failed"}), busy_s)
            return
        self._stop_running(entry, busy_s)
        entry.completed_at = self._wall_clock()
        self._ledger.finish(entry, S.COMPLETED, now)
        self._metrics.attempt_ended(entry.retry_count, succeeded=True)
        self._metrics.completed(result.processing_time or now - entry.leased, now)
        self._note("completed", entry)
        self._note_if_empty()
        self._ledger.expire(now - self._config.retention_s)

    def _fail(self, entry: Entry, details: dict[str, Any], busy_s: float | None = None) -> None:
        """The attempt failed, and with it the task."""
        message = self._log_failed_attempt(entry, details, busy_s)
        entry.completed_at = self._wall_clock()
        self._ledger.finish(entry, S.FAILED, self._clock())
        logger.error("PO %s failed for good after attempt %d: %s", entry.po_number, entry.attempt, message)
        self._note("failed", entry, message)
        self._note_if_empty()

    def _retry(self, entry: Entry, details: dict[str, Any], after_s: float | None, busy_s: float | None = None) -> bool:
        """Decide on a failed attempt, by the state the task is in."""
        if entry.status in (S.PENDING, S.RETRY_PENDING):
            return True
        if entry.status is S.COMPLETED:
            return False
        has_retries = entry.retry_count < entry.max_retries
        if entry.status is S.FAILED:
            if has_retries:
                self._delay_retry(entry, after_s)
            return has_retries
        claimed = details.get("worker_id")
        if claimed is not None and claimed != entry.worker_id:
            raise WorkerMismatchError(
                f"task {entry.task_id} is held by {entry.worker_id}; {claimed} cannot give it back"
            )
        if not has_retries:
            self._fail(entry, details, busy_s)
            return False
        message = self._log_failed_attempt(entry, details, busy_s)
        delay_s = self._delay_retry(entry, after_s)
        logger.warning(
            "PO %s attempt %d failed; retry %d of %d in %.3g s: %s",
            entry.po_number, entry.attempt, entry.retry_count, entry.max_retries, delay_s, message,
        )  # fmt: skip
        self._note("retry", entry, message)
        return True

    def _delay_retry(self, entry: Entry, after_s: float | None) -> float:
        config = self._config
        self._metrics.tasks_retried += entry.retry_count == 0
        entry.retry_count += 1
        if after_s is None:
            after_s = backoff_s(
                entry.retry_count, entry.retry_delay, config.max_retry_delay, config.retry_jitter, random.random
            )
        delay_s = min(max(0.0, after_s), config.max_retry_delay * (1.0 + config.retry_jitter))
        entry.completed_at = None
        entry.result = None
        self._ledger.move(entry, S.RETRY_PENDING)
        self._schedule.delay(entry, self._clock() + delay_s)
        self._empty_is_news = True
        self._wake(1)
        return delay_s

    def _log_failed_attempt(self, entry: Entry, details: dict[str, Any], busy_s: float | None) -> str:
        self._stop_running(entry, busy_s)
        self._metrics.attempt_ended(entry.retry_count, succeeded=False)
        error_type, message = error_type_of(details), error_message_of(details)
        wall = self._wall_clock()
        self._errors.add(error_type, message, entry.po_number, wall)
        if entry.error_history is None:
            entry.error_history = []
        occurrence = {
            "attempt": entry.attempt,
            "worker_id": entry.worker_id,
            "error_type": error_type,
            "message": message,
        }
        entry.error_history.append({**details, **occurrence, "at": wall})
        return message or error_type

    def _undo(self, entry: Entry) -> None:
        """The worker never began: as if the lease had not been."""
        worker_id = entry.worker_id or ""
        self._metrics.undone(worker_id, entry.token, entry.attempt, self._clock())
        self._ledger.forget_worker(entry, worker_id)
        self._schedule.end(entry)
        entry.attempt -= 1
        entry.token = 0
        entry.worker_id = entry.assigned_at = None
        self._ledger.move(entry, S.PENDING)
        self._schedule.put_back(entry)

    def _stop_running(self, entry: Entry, busy_s: float | None) -> None:
        self._metrics.attempt_over(entry.worker_id or "", entry.token, busy_s, self._clock())
        if self._schedule.end(entry):
            self._wake(1)

    # ------------------------------------------------------------------ waiting, notes, sums (under the lock)

    def _wake(self, count: int) -> None:
        if self._waiters:
            self._work.notify(count)

    def _wait_for_work(self, at_most_s: float) -> None:
        due = None if self._is_paused else self._schedule.next_due()
        if due is not None:
            at_most_s = min(at_most_s, max(0.0, due - self._clock()))
        self._waiters += 1
        try:
            self._work.wait(at_most_s)
        finally:
            self._waiters -= 1

    def _note(self, kind: str, entry: Entry | None, error: str = "") -> None:
        self._delivery.note(kind, entry, error)
        self._feed.note(kind, entry, error)
        if self._feed.is_open:
            self._news.notify_all()

    def _note_if_empty(self) -> None:
        if self._empty_is_news and not self._waiting() and not self._ledger.counts[S.PROCESSING]:
            self._empty_is_news = False
            self._note("empty", None)

    def _rearm_full(self) -> None:
        limit = self._config.queue_size_limit
        if limit is None or self._waiting() < limit:
            self._full_was_told = False

    def _waiting(self) -> int:
        counts = self._ledger.counts
        return counts[S.PENDING] + counts[S.RETRY_PENDING]

    def _estimate_s(self) -> float | None:
        """Seconds until everything is done, by the recent rate; the last retry's delay and one run are a lower bound."""
        running = self._ledger.counts[S.PROCESSING]
        left = self._waiting() + running
        if not left:
            return 0.0
        if self._is_paused or not self._metrics.durations:
            return None
        now, average_s = self._clock(), self._metrics.average_duration_s()
        rate = self._metrics.throughput(now) or max(1, running) / max(average_s, 1e-6)
        latest_due = self._schedule.latest_due()
        waits_s = max(0.0, latest_due - now) + average_s if latest_due is not None else 0.0
        return max(left / rate, waits_s)


def _check_worker_id(worker_id: Any) -> None:
    if not isinstance(worker_id, str) or not worker_id.strip():
        raise ValueError(f"worker_id must be a non-blank text, got {worker_id!r}")
