"""Faults to plant into the queue's source, each with the test of the contract that has to notice it.

A mutant is one replaced piece of text. Where the source no longer holds that text the mutant's test fails and says so:
renew the text, or, if the fault has become impossible, drop the mutant.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Mutant(NamedTuple):
    """`old` text of a file of poqueue and the `new` text in its place; `caught_by` is a test, as file::name."""

    file: str
    old: str
    new: str
    caught_by: str

    def plant(self, root: Path) -> None:
        """Change the source below `root`."""
        path = root / "poqueue" / self.file
        source = path.read_text()
        assert source.count(self.old) == 1, (
            f"renew the mutant: {self.file} holds {source.count(self.old)} x {self.old!r}"
        )
        path.write_text(source.replace(self.old, self.new))


MUTANTS = {
    "last in, first out": Mutant(
        "schedule.py",
        "row = fresh.popleft()",
        "row = fresh.pop()",
        "test_leasing.py::test_without_priorities_the_first_added_comes_first",
    ),
    "a retry runs before it is due": Mutant(
        "schedule.py",
        "delayed[0][0] <= now:",
        "delayed[0][0] <= now + 1.0:",
        "test_retrying.py::test_the_kth_retry_waits_the_delay_doubled_k_minus_1_times",
    ),
    "a due retry goes to the end": Mutant(
        "schedule.py",
        "self.put_back(heapq.heappop(delayed)[2])",
        "self.add([heapq.heappop(delayed)[2]])",
        "test_retrying.py::test_a_due_retry_has_its_original_rank_in_its_own_priority",
    ),
    "the delay does not double": Mutant(
        "retry.py",
        "base_s * 2.0**doublings",
        "base_s",
        "test_retrying.py::test_the_kth_retry_waits_the_delay_doubled_k_minus_1_times",
    ),
    "two of one PO run at once": Mutant(
        "schedule.py",
        "elif po_number in running:",
        "elif running is None:",
        "test_leasing.py::test_tasks_of_one_po_stay_separate_and_never_run_at_once",
    ),
    "a blocked task loses its place": Mutant(
        "schedule.py",
        "self.put_back(other)",
        "self.add([other])",
        "test_leasing.py::test_a_blocked_task_keeps_its_place_while_the_next_is_served",
    ),
    "a paused queue leases": Mutant(
        "task_queue.py",
        "return self._is_paused or self._is_draining",
        "return self._is_draining",
        "test_pausing.py::test_a_paused_queue_gives_nothing_and_keeps_everything",
    ),
    "anybody may report": Mutant(
        "task_queue.py",
        "entry.status is not PROCESSING or entry.worker_id != worker_id",
        "entry.status is not PROCESSING",
        "test_reporting.py::test_a_report_by_another_worker_changes_nothing",
    ),
    "a late report is counted": Mutant(
        "task_queue.py",
        'raise WorkerMismatchError(f"task {task_id} is',
        'self._ledger._forgotten[S.COMPLETED] += 1\n                    raise WorkerMismatchError(f"task {task_id} is',
        "test_reporting.py::test_a_report_on_a_task_that_does_not_run_is_never_counted",
    ),
    "completions are not counted": Mutant(
        "ledger.py",
        "            del processing[rank]\n            completed[rank] = done\n",
        "            del processing[rank]\n",
        "test_status_and_metrics.py::test_the_total_is_the_sum_of_all_that_was_ever_added",
    ),
    "one attempt too many": Mutant(
        "verdict.py",
        "entry.retry_count >= entry.max_retries",
        "entry.retry_count > entry.max_retries",
        "test_retrying.py::test_n_retries_are_n_plus_1_attempts",
    ),
    "a refused add counts": Mutant(
        "task_queue.py",
        "raise QueueFullError(",
        "self._ledger._totals[0] += count\n        raise QueueFullError(",
        "test_size_limit.py::test_a_full_queue_refuses_and_nothing_changes",
    ),
    "on_queue_full fires at every refusal": Mutant(
        "task_queue.py",
        "self._full_was_told = FULL if is_full else TOO_MANY",
        "pass",
        "test_size_limit.py::test_on_queue_full_fires_once_per_filling",
    ),
    "clearing lowers the total": Mutant(
        "ledger.py",
        "self._totals[1] += 1",
        "self._totals[0] -= 1",
        "test_clearing.py::test_clearing_removes_what_waits_and_says_how_many",
    ),
    "clearing spares the running ones": Mutant(
        "task_queue.py",
        "[PENDING, S.RETRY_PENDING] if preserve_processing else",
        "[PENDING, S.RETRY_PENDING] if preserve_processing is not None else",
        "test_clearing.py::test_a_report_on_a_dropped_running_task_finds_no_task_and_counts_nothing",
    ),
    "a pending task is queued twice": Mutant(
        "task_queue.py",
        "if entry.status in (PENDING, S.RETRY_PENDING):\n",
        "if entry.status in (PENDING, S.RETRY_PENDING):\n            self._schedule.put_back(entry.row)\n",
        "test_retrying.py::test_the_retry_of_a_pending_task_is_granted_and_changes_nothing",
    ),
    "new settings reach old tasks": Mutant(
        "verdict.py",
        "entry.retry_count + 1, entry.retry_delay, config.max_retry_delay",
        "entry.retry_count + 1, config.retry_delay, config.max_retry_delay",
        "test_configuration.py::test_old_tasks_keep_their_retry_delay_even_while_they_wait",
    ),
    "handlers are called under the lock": Mutant(
        "task_queue.py",
        "                self._settle(ends, verdicts)\n            finally:",
        "                self._settle(ends, verdicts)\n                self._delivery.deliver()\n            finally:",
        "test_events.py::test_no_handler_is_called_under_the_lock",
    ),
    "on_queue_empty fires for ever": Mutant(
        "task_queue.py",
        "if self._empty_is_news and self._ledger.is_idle:",
        "if self._ledger.is_idle:",
        "test_events.py::test_on_queue_empty_never_fires_on_a_fresh_queue",
    ),
    "a looked-up task is the queue's own": Mutant(
        "payload.py",
        "    return decode(blob) if blob and blob[0] in _JSON_BEGINS else pickle.loads(blob)",
        '    return globals().setdefault("_opened", {}).setdefault(blob, pickle.loads(blob))',
        "test_copies_and_pickles.py::test_what_is_done_to_a_leased_task_never_changes_the_queue",
    ),
    "the oldest of a number is found": Mutant(
        "ledger.py",
        "found[-1]",
        "found[0]",
        "test_finding.py::test_of_finished_tasks_of_a_number_the_newest_is_found",
    ),
    "forgetting lowers the counters": Mutant(
        "ledger.py",
        "            self._forgotten[entry.status] += 1",
        "            pass",
        "test_retention.py::test_cleaning_up_drops_what_is_old_and_no_counter",
    ),
    "formulas go out unguarded": Mutant(
        "formula.py",
        'return f"\'{guarded}" if _FORMULA.match(text) else guarded',
        "return guarded",
        "test_exporting.py::test_csv_guards_what_a_spreadsheet_would_run",
    ),
}

HISTORY_TEST = "test_machine.py"
CAUGHT_BY_HISTORIES = (
    "last in, first out",
    "a retry runs before it is due",
    "a due retry goes to the end",
    "two of one PO run at once",
    "a blocked task loses its place",
    "a paused queue leases",
    "anybody may report",
    "a late report is counted",
    "completions are not counted",
    "one attempt too many",
    "a refused add counts",
    "clearing lowers the total",
    "a pending task is queued twice",
)
