"""The TaskQueue: one authority over every task of a batch, safe for any number of threads.

A task's life, and the method that moves it:

    add_task ──► PENDING ──► PROCESSING ──► COMPLETED          complete_task
                    ▲  get_next_task │ ├──► FAILED             complete_task(success=False), retry_task (none left)
                    │                │ └──► RETRY_PENDING ──► PROCESSING ...     retry_task, then its delay
                    └── release_worker ┘

The class holds the one lock; policy lives in single-threaded collaborators that know neither lock nor wall clock: Ledger
(what is where), Schedule (what is next), Verdict (what is decided), Moves (what a step does), Metrics, ErrorLog,
EventDelivery, EventFeed, HaltPolicy. Each step is guard, decide, write down, move, note: with a journal nothing has
happened before it is written, and what cannot be written does not happen.
Contract: TaskQueue API Contract, with R1 to R28 as settled beside it.
"""

import json
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence

from poqueue.adaptive import TIMEOUT_ERROR, AdaptiveTimeout
from poqueue.change import Change
from poqueue.checks import (
    admit,
    check_attempt_seconds,
    check_exchange,
    check_report,
    check_result,
    check_worker_id,
    tokens_of,
)
from poqueue.config import (
    DEFAULT_MAX_RETRY_DELAY_S,
    DEFAULT_RETENTION_S,
    DEFAULT_TIMEOUT_FLOOR_S,
    QueueConfig,
    check_delay_asked_for,
)
from poqueue.entry import TASK_ID, Entry, NewTask
from poqueue.error_log import ErrorLog, described
from poqueue.errors import JournalError, QueueError, QueueFullError, TaskNotFoundError, WorkerMismatchError
from poqueue.events import UNSET, EventDelivery, EventFeed, log_now
from poqueue.halt import HaltPolicy
from poqueue.hand_off import TOLD, Line, Offer, Taker
from poqueue.hints import TYPE_CHECKING, Any, StrPath
from poqueue.ledger import Ledger
from poqueue.metrics import HOUR_S, Metrics, percentage
from poqueue.moves import End, Moves, was_told
from poqueue.packing import PackedEvents, PackedGrant, unpack_events, unpack_grant
from poqueue.payload import MAX_DURATION_S, freeze_result, po_text, thaw_task
from poqueue.records import LEASED, Kind, Record
from poqueue.schedule import NoSchedule, Schedule
from poqueue.task import (
    COMPLETED,
    DEFAULT_PRIORITY,
    PENDING,
    PROCESSING,
    Event,
    Grant,
    ProcessingTask,
    Report,
    ReportParts,
    Success,
    TaskRecord,
    TaskResult,
    instance,
)
from poqueue.task import TaskStatus as S
from poqueue.verdict import (
    Decisions,
    Verdict,
    broken_off,
    cancelled,
    failed_attempt,
    records,
    reported,
    retry_delay_s,
    undone,
)

if TYPE_CHECKING:
    from poqueue.journal import Journal

logger = logging.getLogger(__name__)

MAX_WAIT_S = 5.0
_SHORT = frozenset({tuple, Success})
HAND_OUT_AT_ONCE = 8  # waiting workers; who adds has other things to do as well
FULL, TOO_MANY = "full", "too many"
FAULT_RETRY_S = 0.5  # how often a journal that could not be written is tried again


class TaskQueue:
    """Priority queue with leases, retries, metrics and events for processing purchase orders.

    Args:
        max_retries: retries after the first attempt; 0 means that a failed attempt is final.
        retry_delay: seconds before the first retry; each further one waits twice as long.
        task_timeout: seconds that one attempt may take; enforced by the supervisor, for the workers that it starts.
        enable_priority: serve by priority, or strictly first in first out.
        queue_size_limit: how many tasks may wait (pending and retrying); None for no limit.
        max_retry_delay: upper bound of the delay between retries, seconds.
        retry_jitter: lengthens each delay by up to this share (0..1), at random.
        retention_s: seconds that finished tasks stay findable.
        start_delay: seconds that at least pass between two leases.
        timeout_share: limit attempts to this multiple (above 1) of the running median duration, of the task's group if that
            has completed enough; task_timeout is then the most. None: task_timeout alone. Details: poqueue.adaptive.
        timeout_floor: seconds below which such a limit does not fall.
        journal: file in which every change is written before it is told; what it holds already is taken up from there.
            Task data, results and error details must then be what JSON can hold.
            A program that forks makes such a queue after the fork: in a child it takes no change.
        durability: "normal" survives the end of any process, "full" also a loss of power.
        journal_must_exist: True: the journal is only opened; False: only made; None: whichever.
        journal_any_version: take a journal of another schema version, if its tables have the same columns.
        clock: monotonic seconds, for every deadline and duration.
        wall_clock: UTC seconds since the epoch, for people.
        open_task: how a record is handed out; the service hands it on unopened.

    Raises:
        ValueError: a timeout or retry value, or another setting, is invalid.
        JournalError: the journal cannot be opened; the text says why.
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
        start_delay: float = 0.0,
        timeout_share: float | None = None,
        timeout_floor: float = DEFAULT_TIMEOUT_FLOOR_S,
        journal: StrPath | None = None,
        durability: str = "normal",
        journal_must_exist: bool | None = None,
        journal_any_version: bool = False,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        open_task: Callable[[TaskRecord], ProcessingTask] = thaw_task,
    ) -> None:
        self._config = QueueConfig.checked(
            max_retries, retry_delay, task_timeout, enable_priority,
            queue_size_limit, max_retry_delay, retry_jitter, retention_s, start_delay,
            timeout_share, timeout_floor,
        )  # fmt: skip
        # called by a local name where each PO passes: like a method, Python 3.11 would look for them the long way
        self._clock = clock
        self._wall_clock = wall_clock
        self._open = open_task
        self._ledger = Ledger()
        self._schedule = Schedule(by_priority=enable_priority)
        self._metrics = Metrics()
        self._errors = ErrorLog()
        self._timeouts = AdaptiveTimeout(timeout_share, timeout_floor) if timeout_share is not None else None
        self._moves = Moves(self._ledger, self._schedule, self._metrics, self._errors, self._timeouts)
        self._delivery = EventDelivery()
        self._feed = EventFeed()
        self._is_paused = False
        self._is_draining = False
        self._is_over = False  # drained since all was done: what came now would wait for ever
        self._held_because = ""  # why no task may start for now, beside a pause
        self._fault: JournalError | None = None  # why nothing can be written down
        self._fault_over = 0.0  # when it is worth another try
        self._halt = HaltPolicy()
        self._next_start = 0.0
        self._empty_is_news = False  # on_queue_empty is due at the next drain
        self._full_was_told = ""  # what on_queue_full has fired for since there was room: TOO_MANY, FULL, or nothing
        self._retired: set[str] = set()
        self._turns: dict[str, int] = {}  # the latest exchange of each worker
        self._ensure_thread_safety()
        self._change = Change()
        self._journal: Journal | None = None
        if journal is not None:
            self._open_journal(
                journal, durability=durability, must_exist=journal_must_exist, any_version=journal_any_version
            )

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
            QueueError: the run is over, as drain_when_done says; nothing was added.
            JournalError: it could not be written down; nothing was added. Likewise for every method that changes the queue.
        """
        if self._work.takers:
            self._announce()
        admitted = admit(task, priority, self._config, self._journal is not None)
        task_id = admitted[0]
        self._add((admitted,), (task_id,))
        return task_id

    def add_tasks(self, tasks: Sequence[ProcessingTask], priority: int = DEFAULT_PRIORITY) -> list[str]:
        """Add many tasks in one step, all or none; arguments and errors as in add_task."""
        return self._add_tasks(tasks, priority)

    def _add_tasks(
        self, tasks: Sequence[ProcessingTask], priority: int = DEFAULT_PRIORITY, *, calls_back: bool = True
    ) -> list[str]:
        """The same; without `calls_back` the caller is to do that, once it has answered."""
        if self._work.takers:
            self._announce()
        config, needs_json = self._config, self._journal is not None
        admitted = [admit(task, priority, config, needs_json) for task in tasks]
        ids = [one[0] for one in admitted]
        if ids:
            self._add(admitted, ids, calls_back=calls_back)
        return ids

    def _add(self, admitted: Sequence[NewTask], ids: Sequence[str], *, calls_back: bool = True) -> None:
        try:
            with self._lock:
                change = self._change
                change.open()
                try:
                    if self._is_over:
                        self._guard_not_over()
                    self._guard_new_ids(ids)
                    if self._config.queue_size_limit is not None:
                        self._guard_size(len(ids))
                    first = self._ledger.last_rank + 1
                    clock, wall_clock = self._clock, self._wall_clock
                    now, at = clock(), wall_clock()
                    if self._journal is not None:
                        self._write((), [_journal_row(one, rank, at) for rank, one in enumerate(admitted, first)])
                    change.has_begun = True
                    self._moves.add(admitted, first, now, at)
                    change.has_begun = False
                finally:
                    change.is_open = change.is_broken = change.has_begun
                self._empty_is_news = True
                if self._work.takers:
                    self._hand_out(len(ids))
        finally:
            if calls_back:
                self._call_back()
            if self._delivery.lines or self._delivery.waiting:
                self._delivery.deliver()

    def get_next_task(self, worker_id: str) -> ProcessingTask | None:
        """Lease the best task that may run now to a worker; None if there is none, or while paused.

        The lease has no time limit, for the supervisor ends only the workers that it has started: it ends by complete_task
        or retry_task or, if its holder is dead, by release_worker.

        Raises:
            ValueError: worker_id is not a non-blank text.
        """
        check_worker_id(worker_id)
        with self._lock:
            change = self._change
            change.open()
            try:
                leased = self._lease(worker_id, 1) if not self._may_not_lease(worker_id) else None
                if not leased:
                    return None
                packed = leased[0].packed()
            finally:
                change.is_open = change.is_broken = change.has_begun
        return thaw_task(packed) if self._open is thaw_task else self._open(instance(TaskRecord, packed))

    def complete_task(self, task_id: str, worker_id: str, result: TaskResult) -> None:
        """End a task with its result: COMPLETED, or FAILED if `result.success` is False (no retry).

        Raises:
            TaskNotFoundError: no such id.
            WorkerMismatchError: the task is not being processed by this worker; nothing was changed.
            ValueError: the result is no TaskResult, or cannot be pickled.
        """
        frozen = freeze_result(result, as_json=self._journal is not None)
        with self._lock:
            change = self._change
            change.open()
            try:
                entry = self._require(task_id)
                if entry.status is not PROCESSING or entry.worker_id != worker_id:
                    holder = f"held by {entry.worker_id}" if entry.status is PROCESSING else entry.status.value
                    raise WorkerMismatchError(f"task {task_id} is {holder}; the report of {worker_id} changes nothing")
                ends, verdicts = reported(entry, frozen, frozen.processing_time or None)
                self._settle(ends, verdicts)
            finally:
                change.is_open = change.is_broken = change.has_begun
        if self._delivery.lines or self._delivery.waiting:
            self._delivery.deliver()

    def retry_task(self, task_id: str, error_details: dict[str, Any]) -> bool:
        """Give a failed attempt back: wait for the backoff, or end as FAILED.

        Called by a worker that failed, and by the supervisor once it has killed and buried one.

        Args:
            error_details: `error_type` and `error` (or `error_message`, `message`) describe the failure; `worker_id`
                names whose attempt it was; `retry_after_s` asks for a given delay; all of it is kept, as plain data.

        Returns:
            True if the task will run again; False if it has no retries left, is already done, or has failed and this was
            told of its latest attempt before (a report is repeated when its answer was lost).

        Raises:
            TaskNotFoundError: no such id.
            WorkerMismatchError: `worker_id` is given, and another one holds the task, or was the last to hold it before it
                failed; nothing was changed.
            QueueError: it would run again, and the run is over, as in add_task; nothing was changed.
            ValueError: error_details is no dict.
        """
        details = described(error_details)
        after_s = error_details.get("retry_after_s")
        if after_s is not None:
            check_delay_asked_for(after_s)
        with self._lock, self._change:
            is_retrying = self._retry(self._require(task_id), details, after_s)
        self._delivery.deliver()
        return is_retrying

    # ------------------------------------------------------------------ workers of a pool

    def exchange(
        self,
        worker_id: str,
        reports: Sequence[Report | Success] = (),
        limit: int = 1,
        wait_s: float = 0.0,
        turn: int = 0,
        keeps: Collection[int] = (),
    ) -> Grant:
        """Take a worker's reports and lease it up to `limit` tasks, in one step.

        With nothing to lease it waits up to `wait_s` seconds (at most 5). A report whose token is not that of the live
        lease changes nothing, so a report may be sent again when its answer was lost. Leases that a worker holds ahead
        are in order of priority.

        Args:
            turn: numbers a worker's exchanges, upward from 1; then a worker that lost an answer may just go on. With a
                new turn it has nothing in hand beside what it reports and keeps, so what else it holds never reached it
                and is undone; a call of an older turn leases nothing.
            keeps: tokens of leases that it has in hand while it asks for more.

        Raises:
            ValueError: an argument or a report is invalid; nothing was changed.
        """
        return unpack_grant(self.exchange_packed(worker_id, reports, limit, wait_s, turn, keeps))

    def exchange_packed(
        self,
        worker_id: str,
        reports: Sequence[Report | Success] = (),
        limit: int = 1,
        wait_s: float = 0.0,
        turn: int = 0,
        keeps: Collection[int] = (),
        *,
        offer: Offer | None = None,
    ) -> PackedGrant:
        """The same, the Grant as a plain tuple of a list of plain tuples: what crosses to other processes.

        Args:
            offer: what another thread may tell the worker by while this call waits; the answer is then TOLD itself.
        """
        check_worker_id(worker_id)
        check_exchange(reports, limit, wait_s, turn)
        kept = tokens_of(keeps)
        if reports or turn:
            with self._lock, self._change:
                if turn and turn <= self._turns.get(worker_id, 0):  # it has begun a later one
                    return [], False, 0
                decisions = self._decide_reports(worker_id, reports, kept if turn else None)
                if turn:
                    self._let_go(worker_id, kept)
                leases: list[tuple[Any, ...]] = []
                if turn and limit and self._may_lease_first(worker_id, decisions):
                    leases = self._lease_many(worker_id, limit, decisions)
                elif decisions is not None:
                    self._settle(*decisions)
                if turn:
                    self._turns[worker_id] = turn
                left = self._left_for_each()
            self._delivery.deliver()
            if leases:
                return leases, False, left
        deadline = time.monotonic() + min(wait_s, MAX_WAIT_S)
        with self._lock:
            while True:
                if self._is_draining or worker_id in self._retired:
                    return [], True, 0
                with self._change:  # not for as long as this waits
                    leases = self._lease_many(worker_id, limit) if limit and not self._is_paused else []
                remaining_s = deadline - time.monotonic()
                if leases or not limit or remaining_s <= 0:
                    return leases, False, self._left_for_each()
                taker = Taker(worker_id, limit, turn, offer)
                self._work.wait(taker, self._waiting_time_s(remaining_s))
                if taker.grant is not None:
                    return TOLD if taker.is_told else taker.grant
                if turn and self._turns.get(worker_id) != turn:  # its client has hung up and asked again
                    self._work.notify()  # this may have taken the call that was for another
                    return [], False, 0

    def retire_worker(self, worker_id: str) -> None:
        """Lease nothing to this worker any more; its next exchange says stop. Its reports still count."""
        with self._lock:
            self._retired.add(worker_id)
            self._metrics.left(worker_id, self._clock())
            self._work.notify_all()

    def release_worker(self, worker_id: str) -> list[str]:
        """Fence a dead worker's id for ever and undo the leases it held but never began, uncharged.

        Returns:
            The ids of the tasks that wait again.
        """
        with self._lock:
            self._retired.add(worker_id)
            self._metrics.left(worker_id, self._clock())
        return self.take_back(worker_id)

    def take_back(self, worker_id: str, but: int = 0) -> list[str]:
        """Undo, uncharged, the leases that a worker holds and has not begun; `but` is the token of the one it works on.

        Only for a caller who knows that the worker will not begin them any more. If `but` has ended meanwhile, nothing is
        undone: of what was leased since, the caller knows nothing.

        Returns:
            The ids of the tasks that wait again.
        """
        with self._lock, self._change:
            held = list(self._ledger.held_by(worker_id).values())
            others = [entry for entry in held if entry.token != but]
            if but and len(others) == len(held):
                return []
            self._let_go(worker_id, (but,))
            self._settle(verdicts=[verdict for entry in others for verdict in undone(entry)])
            self._work.notify_all()
            waiting = [entry.task_id for entry in others if entry.status is PENDING]
        self._delivery.deliver()
        return waiting

    def interrupt_leases(self, begun: Collection[int], reason: str, *, is_crash: bool, all_others: bool = False) -> int:
        """Break off attempts that were begun and will not end, uncharged: the tasks wait at their places again.

        Only for a caller who knows that nobody works on them any more. One that was running at a crash of the whole run
        for the fourth time in a row is taken for its cause and fails.

        Args:
            begun: lease tokens; one that is not live changes nothing.
            all_others: undo every other live lease as never begun.

        Returns:
            How many were broken off.
        """
        with self._lock, self._change:
            live = {entry.token: entry for entry in self._ledger.of_status(PROCESSING)}
            broken = [broken_off(live.pop(token), reason, is_crash) for token in begun if token in live]
            others = [verdict for entry in live.values() for verdict in undone(entry)] if all_others else []
            self._settle(verdicts=[*broken, *others])
            self._work.notify_all()
        self._delivery.deliver()
        return len(broken)

    def requeue_failed(self, task_ids: Iterable[str] | None = None) -> int:
        """Let failed tasks (all by default) start again at once with all their retries.

        Returns:
            How many.

        Raises:
            QueueError: the run is over, as in add_task; nothing was changed.
        """
        wanted = set(task_ids) if task_ids is not None else None
        with self._lock, self._change:
            self._guard_not_over()
            failed = [e for e in self._ledger.of_status(S.FAILED) if wanted is None or e.task_id in wanted]
            self._settle(verdicts=[Verdict(Kind.REQUEUED, entry) for entry in failed])
            self._work.notify_all()
            return len(failed)

    def drop_tasks(self, task_ids: Iterable[str]) -> int:
        """Remove tasks that do not run, ended ones too, as clear_queue does; ids that are unknown or running change nothing.

        Returns:
            How many were removed.
        """
        wanted = dict.fromkeys(task_ids)
        with self._lock, self._change:
            found = [self._ledger.get(task_id) for task_id in wanted]
            dropped = [entry for entry in found if entry is not None and entry.status is not PROCESSING]
            self._settle(verdicts=[Verdict(Kind.CLEARED, entry) for entry in dropped])
        self._delivery.deliver()
        return len(dropped)

    def cancel_task(self, task_id: str) -> str:
        """End a task as failed ("Cancelled"), unless it has ended.

        Returns:
            "cancelled", "stopping" (it runs: whoever watches the workers is told to stop it, and its end is recorded then;
            if it succeeds before that it has, and no other attempt follows in any case), or "finished".

        Raises:
            TaskNotFoundError: no such id.
        """
        with self._lock, self._change:
            entry = self._require(task_id)
            if entry.status in (COMPLETED, S.FAILED):
                return "finished"
            if entry.status is PROCESSING:
                self._settle(verdicts=[Verdict(Kind.CANCEL_ASKED, entry)])
                return "stopping"
            self._settle(verdicts=[Verdict(Kind.CANCELLED, entry, cancelled())])
        self._delivery.deliver()
        return "cancelled"

    def halt_after(self, failed: int | None = None, succeeded: int | None = None, done: int | None = None) -> None:
        """Start no task any more once so many have ended so from now on; told as the event "halted"."""
        with self._lock:
            self._halt = HaltPolicy(failed, succeeded, done)

    def drain_queue(self, *, is_over: bool = False) -> None:
        """Lease nothing to anybody any more; every exchange says stop. Reports still count.

        Args:
            is_over: all is done, as drain_when_done has said: nothing is added, or runs again, from here on.
        """
        with self._lock:
            self._is_draining = True
            self._is_over = self._is_over or is_over
            self._work.notify_all()

    def drain_when_done(self, reader: int, seen: int) -> str:
        """Drain if nothing waits or runs, and nobody may still add something because of an event that he has not read.

        A reader has acted on an event when it asks for what follows; one that does not for 30 s is not waited for. What is
        added later is refused.

        Args:
            reader: the caller's own.
            seen: the number of the last event that it has read, and acted on.

        Returns:
            "drained", "unread" (there are later events), "unheard" (another reader has not acted on all), or "busy".
        """
        with self._lock:
            if not self._ledger.is_idle:
                return "busy"
            if self._feed.last > seen:
                return "unread"
            if self._feed.is_unheard(reader, self._clock()):
                return "unheard"
            self.drain_queue(is_over=True)
            return "drained"

    def get_leases(self, *, brings_data: bool = True) -> dict[int, TaskRecord]:
        """What runs now: lease token to the task's record (payload unopened).

        Args:
            brings_data: False leaves the POs' data out: their payload is empty.
        """
        with self._lock:
            running = self._ledger.of_status(PROCESSING)
            return {entry.token: instance(TaskRecord, entry.packed(brings_data=brings_data)) for entry in running}

    def get_finished(self, start: int = 0, limit: int = 1000) -> tuple[list[TaskRecord], int]:
        """Tasks that have ended, in the order of their ends, from a place in that order; and the place to go on from.

        At the end of the order the place does not move any more.
        """
        with self._lock:
            entries, place = self._ledger.finished(start, limit)
            return [entry.record() for entry in entries], place

    # ------------------------------------------------------------------ managing the queue

    def get_queue_status(self) -> dict[str, Any]:
        """One consistent snapshot: the contract's keys, and `status`, `cleared_tasks` and `reason`.

        `status` is "ACTIVE", "PAUSED" or "DRAINING"; `reason` says why nothing starts though nobody paused the queue.
        total_tasks = pending + processing + completed + failed + retry + cleared. Times in seconds.
        """
        with self._lock:
            reason = str(self._fault or "") or self._held_because
            added, cleared, counts = self._ledger.tally()
            return {
                "total_tasks": added,
                "pending_tasks": counts[PENDING],
                "processing_tasks": counts[PROCESSING],
                "completed_tasks": counts[COMPLETED],
                "failed_tasks": counts[S.FAILED],
                "retry_tasks": counts[S.RETRY_PENDING],
                "queue_length": counts[PENDING] + counts[S.RETRY_PENDING],
                "estimated_completion": self._estimate_s(),
                "throughput": self._metrics.throughput(self._clock()),
                "status": "DRAINING" if self._is_draining else "PAUSED" if self._is_paused or reason else "ACTIVE",
                "cleared_tasks": cleared,
                "reason": reason,
            }

    def pause_queue(self) -> None:
        """Start no task from now on; running ones go on, reports and new tasks are taken."""
        with self._lock, self._change:
            if not self._is_paused:
                self._write([Record(Kind.PAUSED, None, None, self._wall_clock())])
                self._is_paused = True
        logger.info("queue paused")

    def resume_queue(self) -> None:
        """Start tasks again."""
        with self._lock, self._change:
            if self._is_paused:
                self._write([Record(Kind.RESUMED, None, None, self._wall_clock())])
                self._is_paused = False
                self._metrics.stood_still()
            self._work.notify_all()
            waiting, running = self._ledger.waiting, len(self._ledger.processing)
        logger.info("queue resumed: %d waiting, %d running", waiting, running)

    def hold_queue(self, reason: str) -> None:
        """Start no task as long as there is a reason, beside any pause; an empty text lets go. Not kept in the journal."""
        with self._lock:
            if reason == self._held_because:
                return
            self._held_because = reason
            self._metrics.stood_still()
            self._work.notify_all()

    def clear_queue(self, preserve_processing: bool = True) -> int:
        """Remove the tasks that wait, and the running ones too unless they are preserved.

        Returns:
            How many were removed. They are gone for good: a later report of one raises TaskNotFoundError.
        """
        statuses = [PENDING, S.RETRY_PENDING] if preserve_processing else [PENDING, S.RETRY_PENDING, PROCESSING]
        with self._lock, self._change:
            dropped = [entry for status in statuses for entry in self._ledger.of_status(status)]
            self._settle(verdicts=[Verdict(Kind.CLEARED, entry) for entry in dropped])
            self._rearm_full()
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
        number = po_text(po_number)
        with self._lock:
            if task_id is not None:
                entry = self._ledger.get(task_id)
                if entry is not None and po_number is not None and entry.po_number != number:
                    entry = None
            else:
                entry = self._ledger.of_po(number)
            record = entry.record() if entry is not None else None
        return self._open(record) if record is not None else None

    # ------------------------------------------------------------------ figures and reports

    def get_performance_metrics(self) -> dict[str, Any]:
        """Durations and waits in seconds, rates in tasks per second, shares of tasks in percent, utilisation 0..1.

        Beside the contract's keys: `events_dropped`, events that no handler was quick enough to hear of, and
        `adaptive_timeouts`, by group, "" being all: completions that count, median and limit, seconds.
        """
        with self._lock:
            metrics, counts, now = self._metrics, self._ledger.tally().counts, self._clock()
            return {
                "average_task_duration": metrics.average_duration_s(),
                "throughput_last_minute": metrics.throughput(now),
                "throughput_last_hour": metrics.throughput(now, HOUR_S),
                "retry_rate": percentage(metrics.tasks_retried, metrics.tasks_started),
                "failure_rate": percentage(counts[S.FAILED], counts[S.FAILED] + counts[COMPLETED]),
                "queue_wait_time": metrics.average_wait_s(),
                "worker_utilization": metrics.utilization(now, self._ledger.held_since()),
                "events_dropped": self._delivery.dropped,
                "adaptive_timeouts": self._timeouts.view(self._config.task_timeout)
                if self._timeouts is not None
                else {},
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
        from poqueue import (
            report as reports_of,
        )  # only here, as what a journal needs below: every run starts the sooner

        reports_of.check_format(format)
        return reports_of.build(self.get_report_parts(include_completed), format)

    def get_report_parts(self, include_completed: bool = True) -> ReportParts:
        """What a report is built from, payloads and results unopened; whoever wants one can build it without the queue."""
        with self._lock:
            return ReportParts(
                [entry.record() for entry in self._ledger.tasks(but_completed=not include_completed)],
                self.get_queue_status(),
                self.get_performance_metrics(),
                self.get_error_summary(),
                self._config.as_dict(),
                self._wall_clock(),
            )

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
        with self._lock, self._change:
            config = self._config.changed(changes)
            self._write([Record(Kind.CONFIGURED, None, None, self._wall_clock(), error=json.dumps(changes))])
            self._config = config
            self._rearm_full()

    def reconfigure_tasks(
        self, max_retries: int | None = None, retry_delay: float | None = None, task_timeout: float | None = None
    ) -> None:
        """Give other limits to the tasks that are there and have not succeeded; None leaves one as it is.

        Raises:
            ValueError: a value is invalid; nothing was changed.
        """
        given = {"max_retries": max_retries, "retry_delay": retry_delay, "task_timeout": task_timeout}
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        with self._lock, self._change:
            self._config.changed(changes)  # only to check them
            line = json.dumps({"waiting": changes})
            self._write([Record(Kind.CONFIGURED, None, None, self._wall_clock(), error=line)])
            self._change.has_begun = True
            self._ledger.reconfigure(changes)

    def optimize_for_workload(
        self, expected_task_count: int, average_task_duration: float, worker_count: int
    ) -> dict[str, Any]:
        """Recommend settings for a workload, each with its reason; applies nothing. Details: poqueue.tuning.advise.

        Args:
            expected_task_count: tasks, 0 to 10**15.
            average_task_duration: seconds a task, above 0.
            worker_count: workers, 1 or more.

        Raises:
            ValueError: an argument is invalid.
        """
        from poqueue import tuning  # only here: it simulates, and a queue starts the sooner without it

        with self._lock:
            metrics, counts = self._metrics, self._ledger.tally().counts
            measured = tuning.Measured(
                counts[COMPLETED], counts[S.FAILED], metrics.tasks_retried, metrics.retries_succeeded,
                metrics.retried_in_vain, metrics.retries_needed, metrics.average_duration_s(), metrics.duration_max_s,
                metrics.duration_buckets(),
            )  # fmt: skip
            config = self._config
        return tuning.advise(
            expected_task_count, average_task_duration, worker_count, machine=tuning.look_at_machine(),
            measured=measured, max_retries=config.max_retries, retry_delay=config.retry_delay,
            max_retry_delay=config.max_retry_delay,
        )  # fmt: skip

    def set_event_handlers(
        self,
        on_task_complete: Callable[[ProcessingTask], None] | None = UNSET,
        on_task_failed: Callable[[ProcessingTask, str], None] | None = UNSET,
        on_queue_empty: Callable[[], None] | None = UNSET,
        on_queue_full: Callable[[], None] | None = UNSET,
    ) -> None:
        """Set handlers; one left out stays as it is, None unsets it.

        on_queue_full fires when tasks are refused, once until there is room again; and once more if these were too many
        at once and the limit itself is reached then.
        They are called after the change, outside the lock, in order; what they raise is logged and swallowed.

        Raises:
            ValueError: a handler is not callable.
        """
        with self._lock:
            self._delivery.update(on_task_complete, on_task_failed, on_queue_empty, on_queue_full)

    def open_events(self, *, brings_data: bool = True) -> tuple[int, int]:
        """Begin to read events, from now on: the reader's number, and that of the last event before.

        Args:
            brings_data: False leaves the PO's data out of the events of completed tasks: their payload is empty.
        """
        with self._lock:
            opened = self._feed.open(self._clock(), brings_data=brings_data)
            for entry in self._ledger.of_status(PROCESSING):
                if entry.is_unwanted:  # whoever was told may be gone, as a replaced manager is
                    self._note("cancel", entry, str(entry.token))
            return opened

    def read_events(
        self, reader: int, after: int, limit: int = 1000, wait_s: float = 0.0, gather_s: float = 0.0
    ) -> list[Event]:
        """Events numbered above `after`, oldest first; the reader needs the earlier ones no more.

        With no event at hand the call waits up to `wait_s` seconds (at most 5). A gap in the numbers means that the reader
        was too slow and some were dropped.

        Args:
            gather_s: ends of attempts are told together so many seconds after the call (at most 5), and at once from then
                on: a reader that is woken for each of thousands keeps everybody from working. Any other event is told at
                once, with those before it.

        Raises:
            QueueError: the reader is closed, as a client's is some seconds after its connection has gone: events may have
                been missed.
        """
        return unpack_events(self.read_events_packed(reader, after, limit, wait_s, gather_s))

    def read_events_packed(
        self, reader: int, after: int, limit: int = 1000, wait_s: float = 0.0, gather_s: float = 0.0
    ) -> PackedEvents:
        """The same as plain tuples: what crosses to other processes."""
        feed, begun = self._feed, time.monotonic()
        until, together_until = begun + min(wait_s, MAX_WAIT_S), begun + min(gather_s, MAX_WAIT_S)
        with self._lock:
            feed.release(reader, after, self._clock())
            while (count := feed.count(after)) <= 0 or (count < limit and feed.last_urgent <= after):
                now, ends = time.monotonic(), until if count <= 0 else together_until
                if not now < ends:  # one of them may be no number
                    break
                if now < together_until:
                    feed.full_at = min(feed.full_at, after + limit)
                    self._news.wait(min(ends, together_until) - now)
                else:
                    self._wait_for_any_news(ends - now)
                feed.guard_open(reader)
            return feed.read(reader, after, limit)

    def _wait_for_any_news(self, at_most_s: float) -> None:
        self._feed.waiting += 1
        try:
            self._news.wait(at_most_s)
        finally:
            self._feed.waiting -= 1

    def close_events(self, reader: int) -> None:
        """End reading; who reads just now is told so."""
        with self._lock:
            self._feed.close(reader)
            self._news.notify_all()

    def post_notice(self, text: str) -> None:
        """Tell every reader of the events something; it means nothing to the queue."""
        with self._lock:
            self._note("notice", None, text)

    def set_view(self, view: Any) -> None:
        """Leave something for others to see: plain data, such as what the workers do."""
        with self._lock:
            self._feed.view = view

    def get_view(self) -> Any:
        """What was left to be seen last, or None."""
        with self._lock:
            return self._feed.view

    def has_journal(self) -> bool:
        """Whether changes are written down, and data so has to be what JSON can hold."""
        return self._journal is not None

    def copy_journal(self, path: str) -> None:
        """A consistent copy of the journal, which has room for no reader beside its queue.

        Raises:
            QueueError: there is no journal.
            JournalError: the copy cannot be written.
        """
        with self._lock:
            if self._journal is None:
                raise QueueError("this queue has no journal")
            self._journal.copy_to(path)

    def close_queue(self) -> None:
        """Let go of the journal, everything in its one file; the queue takes no change any more. Harmless when repeated."""
        with self._lock:
            self._is_draining = True
            if self._journal is not None:
                self._journal.close()
            self._work.notify_all()

    def _cleanup_resources(self) -> None:
        """Drop finished tasks beyond the retention period and errors beyond the threshold; runs as tasks complete."""
        with self._lock, self._change:
            self._change.has_begun = True
            self._ledger.expire(self._clock() - self._config.retention_s)
            self._errors.trim()

    def _ensure_thread_safety(self) -> None:
        """Put the lock and what belongs to it in place; harmless when it is there already."""
        if hasattr(self, "_lock"):
            return
        self._lock = threading.RLock()
        self._work = Line(self._lock)  # workers wait here for something to lease
        self._news = threading.Condition(self._lock)  # readers of the feed wait here

    # ------------------------------------------------------------------ guards (no change yet)

    def _guard_not_over(self) -> None:
        if self._is_over:
            raise QueueError("the run is over: what is added now, or is to run again, would never start")

    def _guard_new_ids(self, ids: Sequence[str]) -> None:
        if not self._ledger.knows_any(ids) and (len(ids) == 1 or len(set(ids)) == len(ids)):
            return
        seen: set[str] = set()
        for task_id in ids:
            if task_id in seen or self._ledger.get(task_id) is not None:
                raise ValueError(f"invalid task: task_id {task_id!r} is already in the queue")
            seen.add(task_id)

    def _guard_size(self, count: int) -> None:
        limit = self._config.queue_size_limit
        if limit is None or self._ledger.waiting + count <= limit:
            return
        is_full = self._ledger.waiting >= limit
        if not self._full_was_told or (is_full and self._full_was_told == TOO_MANY):
            self._full_was_told = FULL if is_full else TOO_MANY
            self._note("full", None)
        why = "the queue is full" if is_full else f"{count} more do not fit"
        raise QueueFullError(f"{why}: {self._ledger.waiting} tasks wait, the limit is {limit}")

    def _require(self, task_id: str) -> Entry:
        entry = self._ledger.get(task_id)
        if entry is None:
            raise TaskNotFoundError(f"no task has the id {task_id!r}")
        return entry

    def _may_not_lease(self, worker_id: str) -> bool:
        return self._is_paused or self._is_draining or worker_id in self._retired

    # ------------------------------------------------------------------ moves (under the lock)

    def _lease(self, worker_id: str, limit: int, decisions: Decisions | None = None) -> list[Entry]:
        """Lease up to `limit` tasks that may run now; none while something holds them back.

        What is decided is settled first, both in one transaction of the journal; what it raises, this raises.
        """
        clock, wall_clock = self._clock, self._wall_clock
        now, at = clock(), wall_clock()
        taken: list[int] = []
        self._change.has_begun = True  # what is taken stands nowhere until it is leased, or untaken
        if not (self._held_because or now < self._next_start or (self._fault is not None and now < self._fault_over)):
            taken = self._schedule.take(now, 1 if self._config.start_delay else limit)
        if decisions is not None and self._schedule.has_aside:
            self._untake(taken)  # a task was passed over that will run once these are settled
            self._settle(*decisions)
            return self._lease(worker_id, limit)
        if not taken:
            self._change.has_begun = False
            if decisions is not None:
                self._settle(*decisions)
            return []
        if self._journal is not None and not self._can_write_leases(taken, worker_id, decisions, now, at):
            return []
        self._change.has_begun = True
        if decisions is not None:
            self._do_all(*decisions, now, at)
        if self._config.start_delay:
            self._next_start = now + self._config.start_delay
        leased = self._moves.lease(taken, self._ledger.last_token + 1, worker_id, now, at)
        self._change.has_begun = False
        if self._full_was_told:
            self._rearm_full()
        return leased

    def _can_write_leases(
        self, taken: list[int], worker_id: str, decisions: Decisions | None, now: float, at: float
    ) -> bool:
        """Write leases, and what is decided before them. If it fails the tasks stand in their places again."""
        is_written = False
        try:
            self._change.has_begun = False
            decided = records(*decisions, at, now) if decisions is not None else []
            self._write(decided + self._records_of(taken, worker_id, at))
            is_written = True
        except JournalError:
            if decisions is not None:
                raise
        finally:  # the status says why nothing starts
            if not is_written:
                self._untake(taken, is_written=self._change.has_begun)
        return is_written

    def _records_of(self, taken: Sequence[int], worker_id: str, at: float) -> list[Record]:
        """Apart: since Python 3.12 an interrupt within a comprehension may leave its function without its `finally`."""
        return [
            Record(LEASED, rank, token, at, worker_id) for token, rank in enumerate(taken, self._ledger.last_token + 1)
        ]

    def _untake(self, taken: Sequence[int], *, is_written: bool = False) -> None:
        """The tasks stand in their places again; what interrupts this breaks the change off."""
        self._change.has_begun = True
        self._schedule.untake([self._ledger.row(rank) for rank in taken])
        self._change.has_begun = is_written

    def _lease_many(self, worker_id: str, limit: int, decisions: Decisions | None = None) -> list[tuple[Any, ...]]:
        """Leases, packed."""
        timeouts = self._timeouts
        leases = []
        for entry in self._lease(worker_id, limit, decisions):
            task_id, po_number, payload, _, retries, _, timeout_s, _, _, _, _ = entry.row
            most = entry.attempt + retries - entry.retry_count
            if timeouts is not None:
                timeout_s = _limit_s(entry, timeouts)
            leases.append((task_id, entry.token, entry.attempt, most, timeout_s, po_number, payload))
        return leases

    def _let_go(self, worker_id: str, keeps: Collection[int]) -> None:
        """Of what was cleared while it ran, a worker has nothing any more but these leases."""
        if self._ledger.has_cleared_leases:  # seldom
            self._change.has_begun = True
            self._work.notify(self._moves.let_go(worker_id, keeps))
            self._change.has_begun = False

    def _left_for_each(self) -> int:
        return -(-len(self._ledger.pending) // max(1, self._ledger.holders))

    def _may_lease_first(self, worker_id: str, decisions: Decisions | None) -> bool:
        """Whether the next leases are the same before and after these are settled: then one transaction does for both."""
        if self._may_not_lease(worker_id) or self._halt.is_set or self._schedule.has_aside:
            return False
        return decisions is None or all(verdict.kind is Kind.FAILED for verdict in decisions[1])

    def _decide_reports(
        self, worker_id: str, reports: Sequence[Report | Success], keeps: Collection[int] | None
    ) -> Decisions | None:
        """None if they change nothing. With `keeps` the worker has these in hand and nothing else."""
        held, needs_json = self._ledger.held_by(worker_id), self._journal is not None
        told: dict[int, None] = {}
        ends: list[End] = []
        verdicts: list[Verdict] = []
        report: Any  # as it comes from another process
        for report in reports:
            if type(report) in _SHORT and len(report) == 4:  # as nearly all are that come from workers
                task_id, token, seconds, payload = report
            else:
                check_report(report)
                task_id, token, seconds, payload = report[:4]
            if type(task_id) is not str or type(token) is not int:
                check_report(report)
            entry = held.get(token)
            if entry is None or entry.row[TASK_ID] != task_id:
                text = "report of %s on task %s came too late; ignored"
                self._delivery.log(logging.INFO, text, worker_id, task_id)
                continue
            if token in told:
                continue
            told[token] = None
            if len(report) == 4:
                if type(seconds) is not float or not 0.0 <= seconds <= MAX_DURATION_S:
                    check_attempt_seconds(token, seconds)
                if needs_json or type(payload) is not bytes:
                    check_result(token, payload, needs_json)
                ends.append((entry, payload, seconds, seconds or None))
            elif report.result is not None:
                check_attempt_seconds(token, report.processing_time)
                frozen = freeze_result(report.result, needs_json)
                done, others = reported(entry, frozen, report.processing_time or None)
                ends += done
                verdicts += others
            else:
                verdicts += self._decide_failure(entry, report)
        if keeps is not None and len(held) > len(told):
            in_hand = told.keys() | keeps
            lost = [entry for token, entry in list(held.items()) if token not in in_hand]
            verdicts += [verdict for entry in lost for verdict in undone(entry)]
        return (ends, verdicts) if ends or verdicts else None

    def _decide_failure(self, entry: Entry, report: Report) -> list[Verdict]:
        if report.error is None:
            return undone(entry)
        check_attempt_seconds(report.token, report.processing_time)
        if report.retry_after_s is not None:
            check_delay_asked_for(report.retry_after_s)
        details = described(report.error)
        if report.give_up:
            return [Verdict(Kind.FAILED, entry, details, seconds=report.processing_time)]
        after_s, seconds = report.retry_after_s, report.processing_time
        return [failed_attempt(entry, details, after_s, seconds, self._config, random.random)]

    def _retry(self, entry: Entry, details: dict[str, Any], after_s: float | None) -> bool:
        """Decide on a failed attempt, by the state the task is in."""
        if entry.status in (PENDING, S.RETRY_PENDING):
            return True
        if entry.status is COMPLETED:
            return False
        claimed = details.get("worker_id")
        if entry.status is S.FAILED:
            if entry.retry_count >= entry.max_retries or (claimed is not None and was_told(entry, details)):
                return False
            _guard_holder(entry, claimed)
            self._guard_not_over()
            delay_s = retry_delay_s(entry, after_s, self._config, random.random)
            self._settle(verdicts=[Verdict(Kind.RETRIED, entry, details, delay_s=delay_s)])
            return True
        _guard_holder(entry, claimed)
        verdict = failed_attempt(entry, details, after_s, None, self._config, random.random)
        self._settle(verdicts=[verdict])
        return verdict.kind is Kind.RETRY

    def _settle(self, ends: Sequence[End] = (), verdicts: Sequence[Verdict] = ()) -> None:
        """Write down what was decided, and then do it. If it cannot be written, nothing has happened."""
        if not (ends or verdicts):
            return
        clock, wall_clock = self._clock, self._wall_clock
        now, at = clock(), wall_clock()
        if self._journal is not None:
            self._write(records(ends, verdicts, at, now))
        self._change.has_begun = True
        self._do_all(ends, verdicts, now, at)
        self._change.has_begun = False

    def _do_all(self, ends: Sequence[End], verdicts: Sequence[Verdict], now: float, at: float) -> None:
        if ends:  # successes come by the hundred: each step is done for all of them
            may_run = self._moves.complete(ends, now, at)
            if self._delivery.is_heard or self._feed.is_read:
                self._note_done(ends)
            if self._halt.is_set:
                for _ in ends:
                    self._count_end(succeeded=True)
            if may_run:
                self._work.notify(may_run)
        for verdict in verdicts:
            self._do(verdict, now, at)
        self._ledger.expire(now - self._config.retention_s)
        if self._full_was_told:
            self._rearm_full()
        if not (self._ledger.pending or self._ledger.processing):
            self._note_if_empty()

    def _do(self, verdict: Verdict, now: float, at: float) -> None:
        kind, entry, details, result, delay_s, seconds = verdict
        moves = self._moves
        may_run = 0  # others of its PO, now
        if kind is Kind.FAILED:
            may_run = moves.fail(entry, details or {}, result, seconds, now, at)
            self._tell_failure(entry, "failed", f"failed for good after attempt {entry.attempt}")
            self._count_end(succeeded=False)
        elif kind is Kind.RETRY:
            may_run = moves.retry(entry, details or {}, now + delay_s, seconds, now, at)
            self._tell_failure(entry, "retry", f"attempt {entry.attempt} failed; retried in {delay_s:.3g} s")
            self._work_comes(1)
        elif kind is Kind.CANCEL_ASKED:
            entry.is_unwanted = True
            self._note("cancel", entry, str(entry.token))
        elif kind is Kind.CANCELLED:
            moves.cancel(entry, details or {}, now, at)
            self._tell_failure(entry, "failed", "cancelled")
            self._count_end(succeeded=False)
        elif kind in (Kind.RETRIED, Kind.REQUEUED):
            if kind is Kind.RETRIED:
                moves.retry_ended(entry, details or {}, now + delay_s, at)
            else:
                moves.requeue(entry, now)
            self._work_comes(1)
        elif kind is Kind.UNDONE:
            moves.undo(entry)
            self._work_comes(1)
        elif kind is Kind.INTERRUPTED:
            moves.interrupt(entry, details or {}, bool((details or {}).get("is_crash")), now, at)
            self._work_comes(1)
        elif kind is Kind.CLEARED:
            if entry.status is PROCESSING:
                self._note("dropped", entry, str(entry.token))
            may_run = moves.clear(entry, now, may_still_run=entry.worker_id in self._turns)  # of a pool: it is told
        self._work.notify(may_run)

    def _tell_failure(self, entry: Entry, kind: str, what: str) -> None:
        latest = entry.error_history[-1] if entry.error_history else {}
        message = str(latest.get("message") or latest.get("error_type") or "")
        level = logging.ERROR if kind == "failed" else logging.WARNING
        self._delivery.log(level, "PO %s %s: %s", entry.po_number, what, message)
        self._note(kind, entry, message)

    def _count_end(self, *, succeeded: bool) -> None:
        if not self._halt.is_set:
            return
        if reason := self._halt.count(succeeded=succeeded):
            self._is_draining = True
            self._note("halted", None, reason)
            self._work.notify_all()

    # ------------------------------------------------------------------ the journal (under the lock)

    def _open_journal(self, path: StrPath, **how: Any) -> None:
        """Take up what the journal holds."""
        from poqueue.journal import Journal
        from poqueue.replay import boot_id

        journal = Journal(path, **how)
        try:
            now = self._clock()
            if not journal.is_new:
                self._take_up(journal, now)
            opened = {"pid": os.getpid(), "boot_id": boot_id()}
            journal.write([Record(Kind.OPENED, None, None, self._wall_clock(), error=json.dumps(opened))])
        except BaseException:
            journal.close()
            raise
        self._journal = journal

    def _take_up(self, journal: "Journal", now: float) -> None:
        from poqueue.replay import replay

        nowhere = NoSchedule(by_priority=self._config.enable_priority)
        moves = Moves(self._ledger, nowhere, self._metrics, self._errors, self._timeouts)
        found = replay(journal, self._ledger, moves, now, self._wall_clock(), self._config.retention_s)
        self._is_paused = found.is_paused
        self._metrics.taken_up()
        try:
            self._config = self._config.changed(found.settings)
        except ValueError as error:  # another version knows others
            raise JournalError(f"{journal.path}: the journal's settings cannot be taken up: {error}") from None
        ledger = self._ledger
        self._schedule.rebuild(
            map(ledger.row, ledger.pending), [(entry.ready, entry.row) for entry in ledger.retrying.values()],
            [entry.po_number for entry in ledger.processing.values()],
        )  # fmt: skip
        self._empty_is_news = not self._ledger.is_idle
        self._ledger.expire(now - self._config.retention_s)

    def _write(self, records: Sequence[Record], tasks: Sequence[tuple[Any, ...]] = ()) -> None:
        """Nothing may have been changed before; if this raises, nothing must be."""
        if self._journal is None:
            return
        self._change.has_begun = True  # what interrupts the next line may come after its last step
        try:
            self._journal.write(records, tasks)
        except BaseException as error:
            self._change.has_begun = self._journal.has_written
            if isinstance(error, JournalError):
                if self._fault is None:
                    log_now(logging.ERROR, "the queue stands still: %s", error)
                self._fault, self._fault_over = error, self._clock() + FAULT_RETRY_S
            raise
        if self._fault is not None:
            self._fault = None
            self._metrics.stood_still()
            log_now(logging.WARNING, "the queue goes on: %s can be written again", self._journal.path)
            self._work.notify_all()

    # ------------------------------------------------------------------ waiting, notes, sums (under the lock)

    def _work_comes(self, count: int) -> None:
        self._empty_is_news = True
        self._work.notify(count)

    def _announce(self) -> None:
        """Something is to be added, if nothing is wrong with it."""
        with self._lock:
            if not (self._is_paused or self._held_because):
                self._work.announce()

    def _hand_out(self, count: int) -> None:
        """Lease to those who wait, and tell them, on the thread that has added so many (poqueue.hand_off).

        Who is to get nothing any more, at a drain for instance, was called then, and stands in no line.
        """
        line = self._work
        for _ in range(0 if self._is_paused else min(HAND_OUT_AT_ONCE, len(line))):
            if (taker := line.pop()) is None:
                break
            leases = self._leases_for(taker)
            if leases is None:
                taker.bell.notify()
            elif leases:
                line.tell(taker, (leases, False, self._left_for_each()))
            else:
                line.put_back(taker)
                break
        if self._ledger.pending:
            line.notify(count)

    def _call_back(self) -> None:
        """Have the calls return whose workers were told; after whatever may have told one."""
        if self._work.told:
            with self._lock:
                self._work.call_back()

    def _leases_for(self, taker: Taker) -> list[tuple[Any, ...]] | None:
        """What a waiting call gets now; None if it is to look for itself."""
        if taker.turn and self._turns.get(taker.worker_id) != taker.turn:  # its client has hung up and asked again
            return None
        try:
            with self._change:
                return self._lease_many(taker.worker_id, taker.limit)
        except Exception:  # what is wrong is not to be told to who adds, whose tasks are there
            return None

    def _waiting_time_s(self, at_most_s: float) -> float:
        """How long to wait for work: until there may be some that nobody will call for."""
        now = self._clock()
        earliest = max(self._next_start, self._fault_over if self._fault is not None else 0.0)
        due = None if self._is_paused or self._held_because else self._schedule.next_due()
        if due is not None:  # not before `earliest`: a task that is due but held back must not make this wait spin
            at_most_s = min(at_most_s, max(due, earliest) - now)
        if earliest > now:
            at_most_s = min(at_most_s, earliest - now)
        return max(0.0, at_most_s)

    def _note_done(self, ends: Sequence[End]) -> None:
        if self._delivery.is_heard:
            for entry, *_ in ends:
                self._delivery.note("completed", entry, "")
        if self._feed.is_read and self._feed.note_done([end[0].kept for end in ends]):
            self._news.notify_all()

    def _note(self, kind: str, entry: Entry | None, error: str = "") -> None:
        if self._delivery.is_heard:
            self._delivery.note(kind, entry, error)
        if self._feed.is_read and self._feed.note(kind, entry, error):
            self._news.notify_all()

    def _note_if_empty(self) -> None:
        if self._empty_is_news and self._ledger.is_idle:
            self._empty_is_news = False
            self._note("empty", None)

    def _rearm_full(self) -> None:
        limit = self._config.queue_size_limit
        if limit is None or self._ledger.waiting < limit:
            self._full_was_told = ""

    def _estimate_s(self) -> float | None:
        """Seconds until everything is done, by the recent pace; the last retry's delay and one run are a lower bound."""
        running = len(self._ledger.processing)
        left = self._ledger.waiting + running
        if not left:
            return 0.0
        if self._is_paused or self._held_because or self._fault is not None or not self._metrics.durations:
            return None
        now, average_s = self._clock(), self._metrics.average_duration_s()
        rate = self._metrics.pace(now) or max(1, running) / max(average_s, 1e-6)
        latest_due = self._schedule.latest_due()
        waits_s = max(0.0, latest_due - now) + average_s if latest_due is not None else 0.0
        return max(left / rate, waits_s)


def _guard_holder(entry: Entry, claimed: Any) -> None:
    if claimed is not None and claimed != entry.worker_id:
        holder = f"{entry.status.value}, last held by {entry.worker_id}"
        raise WorkerMismatchError(f"task {entry.task_id} is {holder}; {claimed} cannot give it back")


def _limit_s(entry: Entry, timeouts: AdaptiveTimeout) -> float:
    latest: dict[str, Any] = next(
        (error for error in reversed(entry.error_history) if error["worker_id"] is not None), {}
    )
    was_cut_off = latest.get("error_type") == TIMEOUT_ERROR
    return timeouts.limit_s(entry.group, entry.task_timeout, was_cut_off=was_cut_off)


def _journal_row(task: NewTask, rank: int, at: float) -> tuple[Any, ...]:
    task_id, po_number, payload, priority, retries, delay, timeout, group = task
    return rank, task_id, po_number, priority, retries, delay, timeout, at, payload, group
