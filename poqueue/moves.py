"""What each step in a task's life does to the ledger, the schedule, the metrics and the error log.

Live and when read back from a journal it is the same code: that is why a replay stands where the queue stood. Nothing here
decides, waits, tells anybody or looks at a clock; `now` is monotonic seconds, `at` UTC seconds.
"""

from collections.abc import Collection, Sequence

from poqueue.adaptive import AdaptiveTimeout
from poqueue.entry import PO_NUMBER, Entry, NewTask
from poqueue.error_log import ErrorLog
from poqueue.hints import Any
from poqueue.ledger import Ledger
from poqueue.metrics import Metrics
from poqueue.schedule import Schedule
from poqueue.task import PENDING, PROCESSING
from poqueue.task import TaskStatus as S

End = tuple[
    Entry, bytes, float, float | None
]  # of what is done: its result; seconds that it says it took, 0 if it says
# nothing; seconds that the attempt worked, if they are known


class Moves:
    """Moves tasks; single-threaded, as the collaborators that it moves them in."""

    def __init__(
        self,
        ledger: Ledger,
        schedule: Schedule,
        metrics: Metrics,
        errors: ErrorLog,
        timeouts: AdaptiveTimeout | None = None,
    ) -> None:
        self._ledger = ledger
        self._schedule = schedule
        self._metrics = metrics
        self._errors = errors
        self._timeouts = timeouts

    def add(self, tasks: Sequence[NewTask], first_rank: int, now: float, at: float) -> None:
        """New tasks wait, in this order, behind all others of their priorities."""
        self._schedule.add(self._ledger.add(tasks, first_rank, now, at))

    def lease(self, ranks: Sequence[int], first_token: int, worker_id: str, now: float, at: float) -> list[Entry]:
        """A worker has the next attempts of these."""
        entries, started, waited_s = self._ledger.lease(ranks, first_token, worker_id, now, at)
        self._metrics.dispatched(worker_id, len(entries), started, waited_s, now)
        return entries

    def complete(self, ends: Sequence[End], now: float, at: float) -> int:
        """These tasks of one worker are done. As from every end of an attempt: how many others, of the same POs, may run now."""
        entries, po_numbers, durations, worked_s, timeouts = [], [], [], 0.0, self._timeouts
        for entry, result, stated_s, busy_s in ends:
            held_s = now - entry.leased if now > entry.leased else 0.0  # as read from a journal if a clock was set back
            spent_s = held_s if busy_s is None or busy_s > held_s else busy_s
            worked_s += spent_s
            entry.result = result
            entry.completed_at = at
            if entry.retry_count:
                self._metrics.retry_ended(entry.retry_count, succeeded=True)
            if timeouts is not None:  # as measured: a limit is held against the clock, not what is stated
                timeouts.note(entry.group, spent_s)
            entries.append(entry)
            po_numbers.append(entry.row[PO_NUMBER])
            durations.append(stated_s or held_s)
        self._ledger.complete(entries, now)
        self._metrics.completed(entries[0].worker_id or "", worked_s, durations, now)
        return self._schedule.end(po_numbers)

    def fail(
        self, entry: Entry, details: dict[str, Any], result: bytes | None, busy_s: float | None, now: float, at: float
    ) -> int:
        """The attempt failed, and with it the task."""
        may_run = self._stop(entry, busy_s, now)
        self._metrics.failed(now)
        self._metrics.retried_in_vain += entry.retry_count > 0
        self._note_error(entry, details, at)
        entry.result = result
        entry.completed_at = at
        entry.is_unwanted = False  # that is how it was to end
        self._ledger.move(entry, S.FAILED, now)
        return may_run

    def cancel(self, entry: Entry, details: dict[str, Any], now: float, at: float) -> None:
        """A waiting task ends as failed, by somebody's wish."""
        self._schedule.remove(entry.rank, entry.po_number)
        entry.error_history = (*entry.error_history, _wish(entry, details, at))
        entry.completed_at = at
        entry.is_unwanted = False  # that is how it was to end
        self._ledger.move(entry, S.FAILED, now)

    def retry(
        self, entry: Entry, details: dict[str, Any], due: float, busy_s: float | None, now: float, at: float
    ) -> int:
        """The attempt failed; the task waits until `due`."""
        may_run = self._stop(entry, busy_s, now)
        self._note_error(entry, details, at)
        self.wait_again(entry, due)
        return may_run

    def retry_ended(self, entry: Entry, details: dict[str, Any], due: float, at: float) -> None:
        """Somebody asks for a retry of a task that has failed, and says why; that attempt is counted already."""
        entry.error_history = (*entry.error_history, _wish(entry, details, at))
        self.wait_again(entry, due)

    def wait_again(self, entry: Entry, due: float) -> None:
        """One more retry is used, and waits until `due`."""
        if entry.attempt and not entry.was_retried:  # one that has never started may be asked for again as well
            self._metrics.tasks_retried += 1
            entry.was_retried = True
        entry.retry_count += 1
        self._wait(entry, due)

    def requeue(self, entry: Entry, now: float) -> None:
        """A failed task starts again, with all its retries; its attempts go on counting."""
        entry.retry_count = entry.crashes = 0
        self._wait(entry, now)

    def undo(self, entry: Entry) -> int:
        """The worker never began: as if the lease had not been."""
        worker_id = entry.worker_id or ""
        self._metrics.undone(entry.attempt, entry.leased - entry.ready)
        if all(error.get("worker_id") != worker_id for error in entry.error_history):
            self._ledger.forget_worker(entry, worker_id)
        may_run = self._schedule.end([entry.po_number])
        entry.attempt -= 1
        entry.assigned_at = None
        self._put_back(entry)
        return may_run

    def interrupt(self, entry: Entry, details: dict[str, Any], is_crash: bool, now: float, at: float) -> int:
        """The attempt was broken off: it waits again at its place, no retry used, and the next attempt is told its number."""
        # nobody knows how long it worked before a crash, and since then it did not
        may_run = self._schedule.end([entry.po_number]) if is_crash else self._stop(entry, None, now)
        entry.ready = now
        entry.interruptions += 1
        entry.crashes += is_crash
        entry.error_history = (*entry.error_history, _occurrence(entry, details, at))
        self._put_back(entry)
        return may_run

    def clear(self, entry: Entry, now: float, *, may_still_run: bool = False) -> int:
        """The task is gone, whatever its status; as long as it may still run, no other of its PO does (let_go)."""
        may_run = 0
        if entry.status is PROCESSING:
            self._note_worked(entry, None, now)
            may_run = 0 if may_still_run else self._schedule.end([entry.po_number])
        elif entry.status in (PENDING, S.RETRY_PENDING):
            self._schedule.remove(entry.rank, entry.po_number)
        self._ledger.clear(entry, may_still_run=may_still_run)
        return may_run

    def let_go(self, worker_id: str, keeps: Collection[int]) -> int:
        """A worker runs nothing any more that was cleared, but for these leases; as from every end."""
        return self._schedule.end([entry.po_number for entry in self._ledger.take_cleared(worker_id, keeps)])

    def _put_back(self, entry: Entry) -> None:
        self._ledger.move(entry, PENDING)
        entry.worker_id, entry.token = None, 0
        self._schedule.put_back(entry.row)

    def _wait(self, entry: Entry, due: float) -> None:
        entry.completed_at = entry.result = None
        self._ledger.move(entry, S.RETRY_PENDING)
        entry.ready = due
        self._schedule.delay(entry.row, due)

    def _stop(self, entry: Entry, busy_s: float | None, now: float) -> int:
        self._note_worked(entry, busy_s, now)
        return self._schedule.end([entry.po_number])

    def _note_worked(self, entry: Entry, busy_s: float | None, now: float) -> None:
        held_s = max(0.0, now - entry.leased)
        self._metrics.worked(entry.worker_id or "", held_s if busy_s is None else min(busy_s, held_s), now)

    def _note_error(self, entry: Entry, details: dict[str, Any], at: float) -> None:
        entry.crashes = 0  # no more in a row
        if entry.retry_count:
            self._metrics.retry_ended(entry.retry_count, succeeded=False)
        occurrence = _occurrence(entry, details, at)
        self._errors.add(occurrence["error_type"], occurrence["message"], entry.po_number, at)
        entry.error_history = (*entry.error_history, occurrence)


def _occurrence(entry: Entry, details: dict[str, Any], at: float) -> dict[str, Any]:
    described = {"error_type": "unknown", "message": "", **details}
    return {**described, "attempt": entry.attempt, "worker_id": entry.worker_id, "at": at}


def _wish(entry: Entry, details: dict[str, Any], at: float) -> dict[str, Any]:
    """Somebody's, between two attempts: no worker has failed one."""
    return {**_occurrence(entry, details, at), "worker_id": None}


def was_told(entry: Entry, details: dict[str, Any]) -> bool:
    """Whether just this is known of the latest attempt already, as of the worker that had it."""
    return any(
        error == {**_occurrence(entry, details, error["at"]), "worker_id": details.get("worker_id")}
        for error in entry.error_history
    )
