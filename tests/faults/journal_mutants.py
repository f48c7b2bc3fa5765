"""Bugs to plant into the queue and its journal, each a context manager: the tests have to notice every one of them.

As a pytest plugin (`-p tests.faults.journal_mutants`) this plants the bug that POQUEUE_MUTANT names for a whole session.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest.mock import patch

from poqueue import journal as journal_module
from poqueue import payload as payload_module
from poqueue import replay as replay_module
from poqueue import task_queue as queue_module
from poqueue.entry import PRIORITY, Entry, Row, with_limits
from poqueue.halt import HaltPolicy
from poqueue.journal import Journal
from poqueue.ledger import Ledger
from poqueue.moves import End, Moves
from poqueue.records import Kind, Record
from poqueue.schedule import Schedule
from poqueue.task import Report, TaskStatus
from poqueue.task_queue import TaskQueue
from poqueue.verdict import Decisions, Verdict, records

S = TaskStatus
Mutant = Callable[[], AbstractContextManager[None]]


def replaced(owner: Any, name: str, make: Callable[[Any], Any]) -> Mutant:
    """`make` is given the real one and makes the mutant."""

    @contextmanager
    def plant() -> Iterator[None]:
        with patch.object(owner, name, make(getattr(owner, name))):
            yield

    return plant


def _unwritten(*kinds: Kind) -> Mutant:
    def make(write: Any) -> Any:
        def mutant(self: Journal, records: Sequence[Record] = (), tasks: Any = ()) -> None:
            write(self, [record for record in records if record.kind not in kinds], tasks)

        return mutant

    return replaced(Journal, "write", make)


def _unread(*kinds: Kind) -> Mutant:
    def make(records: Any) -> Any:
        return lambda self: (record for record in records(self) if record.kind not in kinds)

    return replaced(Journal, "records", make)


def _last_in_first_out(add: Any) -> Any:
    def mutant(self: Schedule, rows: Sequence[Row]) -> None:
        for row in rows:
            self._lanes[row[PRIORITY] - 1].fresh.appendleft(row)

    return mutant


def _early(take: Any) -> Any:
    return lambda self, now, limit=1: take(self, now + 1.0, limit)


def _while_paused(may_not_lease: Any) -> Any:
    return lambda self, worker_id: self._is_draining or worker_id in self._retired


def _any_token(decide_reports: Any) -> Any:
    def mutant(self: TaskQueue, worker_id: str, reports: Sequence[Report], keeps: Collection[int] | None) -> Decisions:
        found = [self._ledger.get(report.task_id) for report in reports]
        renewed = [r._replace(token=e.token) if e else r for r, e in zip(reports, found, strict=True)]
        decisions: Decisions = decide_reports(self, worker_id, renewed, keeps)
        return decisions

    return mutant


def _any_worker(decide_reports: Any) -> Any:
    def mutant(self: TaskQueue, worker_id: str, reports: Sequence[Report], keeps: Collection[int] | None) -> Decisions:
        decisions: Decisions = decide_reports(self, worker_id, reports, None)
        return decisions

    return mutant


def _miscounted(move: Any) -> Any:
    def mutant(self: Ledger, entry: Entry, status: TaskStatus, now: float = 0.0) -> None:
        move(self, entry, status, now)
        self._forgotten[S.FAILED] -= status is S.FAILED and entry.retry_count > 0

    return mutant


def _one_attempt_more(failed_attempt: Any) -> Any:
    def mutant(entry: Entry, *args: Any) -> Verdict:
        row = entry.row
        entry.row = with_limits(row, {"max_retries": entry.max_retries + 1})
        try:
            verdict: Verdict = failed_attempt(entry, *args)
        finally:
            entry.row = row
        return verdict

    return mutant


def _leak(release_worker: Any) -> Any:
    def mutant(self: TaskQueue, worker_id: str) -> list[str]:
        self.retire_worker(worker_id)
        return [entry.task_id for entry in self._ledger.held_by(worker_id).values()]

    return mutant


def _unfenced(release_worker: Any) -> Any:
    return lambda self, worker_id: self.take_back(worker_id)


def _done_before_written(settle: Any) -> Any:
    def mutant(self: TaskQueue, ends: Sequence[End] = (), verdicts: Sequence[Verdict] = ()) -> None:
        now, at = self._clock(), self._wall_clock()
        lines = records(ends, verdicts, at, now)
        self._do_all(ends, verdicts, now, at)
        if lines:
            self._write(lines)

    return mutant


def _added_before_written(write: Any) -> Any:
    def mutant(self: TaskQueue, records: Sequence[Record], tasks: Sequence[tuple[Any, ...]] = ()) -> None:
        self._ledger.last_rank += len(tasks)
        write(self, records, tasks)

    return mutant


def _taken_for_good(untake: Any) -> Any:
    return lambda self, entries: None


def _in_full(due: Any) -> Any:
    return lambda self, record: self._now + (record.delay_s or 0.0)


def _at_once(due: Any) -> Any:
    return lambda self, record: self._now


def _by_the_old_clock(due: Any) -> Any:
    return lambda self, record: record.due if record.due is not None else due(self, record)


def _found_without(**forgotten: Any) -> Callable[[Any], Any]:
    def make(replay: Any) -> Any:
        def mutant(*args: Any) -> Any:
            found = replay(*args)
            for name, value in forgotten.items():
                setattr(found, name, value)
            return found

        return mutant

    return make


def _tokens_anew(replay: Any) -> Any:
    def mutant(journal: Journal, ledger: Ledger, *args: Any) -> Any:
        found = replay(journal, ledger, *args)
        ledger.last_token = 0
        return found

    return mutant


def _charged(broken_off: Any) -> Any:
    def mutant(entry: Entry, reason: str, is_crash: bool) -> Verdict:
        verdict: Verdict = broken_off(entry, reason, is_crash)
        return verdict._replace(kind=Kind.RETRY, delay_s=8.0) if verdict.kind is Kind.INTERRUPTED else verdict

    return mutant


def _never_poison(broken_off: Any) -> Any:
    return lambda entry, reason, is_crash: broken_off(entry, reason, False)


def _undone_and_counted(undo: Any) -> Any:
    def mutant(self: Moves, entry: Entry, now: float) -> int:
        entry.attempt += 1
        return int(undo(self, entry, now))

    return mutant


def _requeued_as_it_was(requeue: Any) -> Any:
    def mutant(self: Moves, entry: Entry, now: float) -> None:
        retries, crashes = entry.retry_count, entry.crashes
        requeue(self, entry, now)
        entry.retry_count, entry.crashes = retries, crashes

    return mutant


def _all_tasks_first(read_in_order: Any) -> Any:
    def mutant(reader: Any, tasks: Any, records: Any) -> None:
        read_in_order(reader, ((*row[:-1], 0) for row in tasks), records)

    return mutant


def _still_there(remove: Any) -> Any:
    return lambda self, rank, po_number: None


def _two_of_one_po(take: Any) -> Any:
    def mutant(self: Schedule, now: float, limit: int = 1) -> list[int]:
        self._running_pos.clear()
        ranks: list[int] = take(self, now, limit)
        return ranks

    return mutant


def _dropped_as_often_as_named(drop_tasks: Any) -> Any:
    def mutant(self: TaskQueue, task_ids: Any) -> int:
        return sum(drop_tasks(self, [task_id]) for task_id in task_ids) + len(task_ids) - len(set(task_ids))

    return mutant


def _turn_used_up(decide_reports: Any) -> Any:
    def mutant(self: TaskQueue, worker_id: str, reports: Sequence[Report], keeps: Collection[int] | None) -> Decisions:
        if keeps is not None:
            self._turns[worker_id] = self._turns.get(worker_id, 0) + 1
        decisions: Decisions = decide_reports(self, worker_id, reports, keeps)
        return decisions

    return mutant


def _nothing_kept(decide_reports: Any) -> Any:
    def mutant(self: TaskQueue, worker_id: str, reports: Sequence[Report], keeps: Collection[int] | None) -> Decisions:
        decisions: Decisions = decide_reports(self, worker_id, reports, None if keeps is None else ())
        return decisions

    return mutant


def _taken_back_late(take_back: Any) -> Any:
    def mutant(self: TaskQueue, worker_id: str, but: int = 0) -> list[str]:
        is_live = but in self._ledger.held_by(worker_id)
        ids: list[str] = take_back(self, worker_id, but if is_live else 0)
        return ids

    return mutant


def _undone_all_the_same(undone: Any) -> Any:
    return lambda entry: undone(entry)[:1]


def _gone_at_once(clear: Any) -> Any:
    return lambda self, entry, now, **more: clear(self, entry, now)


def _never_let_go(let_go: Any) -> Any:
    return lambda self, worker_id, keeps: 0


CAUGHT_BY_HISTORIES: dict[str, Mutant] = {
    "last in, first out": replaced(Schedule, "add", _last_in_first_out),
    "a retry runs before it is due": replaced(Schedule, "take", _early),
    "a paused queue leases": replaced(TaskQueue, "_may_not_lease", _while_paused),
    "no check of the token": replaced(TaskQueue, "_decide_reports", _any_token),
    "what a lost answer leased stays leased": replaced(TaskQueue, "_decide_reports", _any_worker),
    "what a worker keeps is undone": replaced(TaskQueue, "_decide_reports", _nothing_kept),
    "what was leased since is taken back too": replaced(TaskQueue, "take_back", _taken_back_late),
    "a refused exchange uses up its turn": replaced(TaskQueue, "_decide_reports", _turn_used_up),
    "a retry is not written": _unwritten(Kind.RETRY),
    "an undone lease is not written": _unwritten(Kind.UNDONE),
    "a pause is not written": _unwritten(Kind.PAUSED, Kind.RESUMED),
    "a cancelled task is not written": _unwritten(Kind.CANCELLED),
    "a dropped task is not written": _unwritten(Kind.CLEARED),
    "that a running task was cancelled is not written": _unwritten(Kind.CANCEL_ASKED),
    "a replay ignores that a running task was cancelled": _unread(Kind.CANCEL_ASKED),
    "a task that was cancelled before it began runs": replaced(queue_module, "undone", _undone_all_the_same),
    "another of a PO that may still run runs beside it": replaced(Moves, "clear", _gone_at_once),
    "what was cleared blocks its PO for ever": replaced(Moves, "let_go", _never_let_go),
    "failures are miscounted": replaced(Ledger, "move", _miscounted),
    "one attempt too many": replaced(queue_module, "failed_attempt", _one_attempt_more),
    "a lost worker keeps its leases": replaced(TaskQueue, "release_worker", _leak),
    "a lost worker goes on leasing": replaced(TaskQueue, "release_worker", _unfenced),
    "done before it is written": replaced(TaskQueue, "_settle", _done_before_written),
    "added before it is written": replaced(TaskQueue, "_write", _added_before_written),
    "what could not be leased is lost": replaced(Schedule, "untake", _taken_for_good),
    "a replay ignores undone leases": _unread(Kind.UNDONE),
    "a replay ignores interruptions": _unread(Kind.INTERRUPTED),
    "a replay forgets the pause": replaced(replay_module, "replay", _found_without(is_paused=False)),
    "a replay forgets changed settings": replaced(replay_module, "replay", _found_without(settings={})),
    "tokens begin anew": replaced(replay_module, "replay", _tokens_anew),
    "a replay adds all tasks first": replaced(replay_module, "_read_in_order", _all_tasks_first),
    "a delay begins anew": replaced(replay_module._Reader, "_due", _in_full),
    "a delay is lost": replaced(replay_module._Reader, "_due", _at_once),
    "a delay of another boot's clock": replaced(replay_module._Reader, "_due", _by_the_old_clock),
    "an interruption is charged": replaced(queue_module, "broken_off", _charged),
    "no task is ever poison": replaced(queue_module, "broken_off", _never_poison),
    "an undone lease counts as an attempt": replaced(Moves, "undo", _undone_and_counted),
    "a requeued task keeps its used retries": replaced(Moves, "requeue", _requeued_as_it_was),
    "a dropped task still runs": replaced(Schedule, "remove", _still_there),
    "two of one PO run at once": replaced(Schedule, "take", _two_of_one_po),
    "one dropped twice counts twice": replaced(TaskQueue, "drop_tasks", _dropped_as_often_as_named),
}


# ── beyond random histories: each of these has a test by name ────────────────────────────────────────────────────────


def _rolled_back_never(roll_back: Any) -> Any:
    return lambda self: None


def _written_on(leave: Any) -> Any:
    def mutant(self: Any, *exc_info: object) -> None:
        self._is_open = False

    return mutant


def _unlooked_at(check: Any) -> Any:
    return lambda self: None


def _never_full(connect: Any) -> Any:
    return lambda self, durability: connect(self, "normal")


def _open_to_all(make_private: Any) -> Any:
    return lambda path: os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644))


def _looked_into(check_file: Any) -> Any:
    def mutant(path: Any) -> None:
        with patch.object(journal_module, "_open_here", {}):
            check_file(path)

    return mutant


def _same_boot(boot_id: Any) -> Any:
    return lambda: ""


def _json_as_it_comes(freeze: Any) -> Any:
    def mutant(value: Any, what: str, as_json: bool = False) -> bytes:
        if as_json:
            return payload_module.json.dumps(value, default=str).encode()
        blob: bytes = freeze(value, what, as_json)
        return blob

    return mutant


def _one_too_late(count: Any) -> Any:
    def mutant(self: HaltPolicy, *, succeeded: bool) -> str:
        return str(count(self, succeeded=succeeded)) if sum(self._counts.values()) else ""

    return mutant


def _place_moves(finished: Any) -> Any:
    def mutant(self: Ledger, start: int, limit: int) -> Any:
        return finished(self, start + self._expired, limit)

    return mutant


def _unchecked(check_content: Any) -> Any:
    return lambda db, path: None


def _no_durations(records: Any) -> Any:
    return lambda self: (r._replace(delay_s=None) if r.kind == Kind.COMPLETED else r for r in records(self))


def _spinning(next_due: Any) -> Any:
    def mutant(self: Schedule) -> float | None:
        return 0.0 if next_due(self) is not None else None

    return mutant


CAUGHT_BY_NAME: dict[str, tuple[Mutant, str]] = {
    "a change that was broken off is written on": (
        replaced(queue_module.Change, "__exit__", _written_on),
        "test_bad_inputs.py::test_a_change_that_was_broken_off_is_the_last_one[journal]",
    ),
    "a failed write is not rolled back": (
        replaced(Journal, "_roll_back", _rolled_back_never),
        "test_journal.py::test_what_no_database_takes_is_refused_and_the_next_call_works",
    ),
    "nobody looks whether the file is still there": (
        replaced(Journal, "_check_still_there", _unlooked_at),
        "test_journal.py::test_a_file_that_was_deleted_or_replaced_is_noticed",
    ),
    "full durability is not asked for": (
        replaced(Journal, "_connect", _never_full),
        "test_journal.py::test_durability_is_what_was_asked_for",
    ),
    "others may read the journal": (
        replaced(journal_module, "_make_private", _open_to_all),
        "test_journal.py::test_the_files_are_for_this_user_alone",
    ),
    "looking at the file lets go of its lock": (
        replaced(journal_module, "check_file", _looked_into),
        "test_journal.py::test_looking_at_a_journal_that_is_open_here_does_not_let_go_of_it",
    ),
    "any SQLite file is a journal": (
        replaced(journal_module, "_check_content", _unchecked),
        "test_journal.py::test_no_other_file_is_taken_for_a_journal",
    ),
    "the boot is not known": (
        replaced(replay_module, "boot_id", _same_boot),
        "test_journal.py::test_the_boot_is_that_of_the_machine",
    ),
    "the wall clock says when a retry is due": (
        replaced(replay_module._Reader, "_due", lambda due: lambda self, r: self._then(r.at) + (r.delay_s or 0.0)),
        "test_journal.py::test_in_one_boot_a_retry_is_due_when_it_was_whatever_the_wall_clock_says",
    ),
    "whatever JSON makes of it is taken": (
        replaced(payload_module, "freeze", _json_as_it_comes),
        "test_journal.py::test_what_json_would_change_is_refused_and_nothing_changes",
    ),
    "a halt comes an end too late": (
        replaced(HaltPolicy, "count", _one_too_late),
        "test_journal.py::test_a_halt_strikes_at_the_number_and_no_sooner",
    ),
    "a place among the finished moves": (
        replaced(Ledger, "finished", _place_moves),
        "test_journal.py::test_a_place_among_the_finished_holds_when_earlier_ones_are_forgotten",
    ),
    "a replay knows no durations": (
        replaced(Journal, "records", _no_durations),
        "test_journal.py::test_what_was_told_is_in_the_file",
    ),
    "a waiting worker's deadline is long past": (
        replaced(Schedule, "next_due", _spinning),
        "test_journal.py::test_a_worker_waits_until_the_next_retry_is_due",
    ),
}


def pytest_configure(config: Any) -> None:
    """Plant the one that was asked for."""
    name = os.environ.get("POQUEUE_MUTANT")
    if name:
        plant = CAUGHT_BY_HISTORIES.get(name) or CAUGHT_BY_NAME[name][0]
        planted = plant()
        planted.__enter__()
        config.add_cleanup(lambda: planted.__exit__(None, None, None))
