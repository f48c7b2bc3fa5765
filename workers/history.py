"""What happened in a run: every PO, every attempt, every pause. Everything a report says is made from this.

    journal (SQLite) ──► RunHistory ──► table, json, csv, yaml, html, trace

The journal's log is read once, in order. It says when a lease was given and when its end was told, not when the work
began: a worker holds leases ahead and tells several ends at once. Since it works on one PO at a time, the beginnings
follow from the ends and the seconds each attempt took.
"""

import json
import re
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Literal, NamedTuple

from poqueue.adaptive import TIMEOUT_ERROR
from poqueue.records import Kind
from poqueue.report import iso_time
from poqueue.task import TaskStatus
from workers.processors.dossier import Line, add_up, examine

Outcome = Literal["completed", "failed", "retry", "interrupted", "running"]

LOST_WORKER = frozenset({TIMEOUT_ERROR, "OutOfMemory", "WorkerKilled", "WorkerExited"})  # as post_mortem.py names them
NOT_RUNNING = "not running"  # the reason of a pause between the end of one manager and the beginning of the next
WORD = re.compile(r"[^\W_]+")
NOTHING_KNOWN = {"rows": 0, "succeeded": 0, "failed": 0, "duplicate": 0, "invalid": 0, "not_run": 0}


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt at a PO. Times are UTC seconds; `ended_at` is None while it runs.

    Attributes:
        attempt: from 1.
        stack: where its code was when it was killed, or the traceback of what it raised.
    """

    task_id: str
    po_number: str
    attempt: int
    worker_id: str
    started_at: float
    ended_at: float | None
    seconds: float
    outcome: Outcome
    error_type: str = ""
    message: str = ""
    stack: str = ""

    @property
    def is_kill(self) -> bool:
        """Whether it cost its worker: killed for taking too long, or dead by itself."""
        return self.error_type in LOST_WORKER and self.outcome in ("retry", "failed")

    @property
    def slot(self) -> str:
        """The place its worker took among the others: w2 of w2.1 and of w2.5, which replaced it."""
        name, dot, generation = self.worker_id.rpartition(".")
        return name if dot and generation.isdigit() else self.worker_id


class Charge(NamedTuple):
    """What the rows of a PO come to that name one supplier, in one currency."""

    supplier: str
    currency: str
    amount: Decimal


@dataclass(frozen=True, slots=True)
class Order:
    """One PO. `status` is one of the five of TaskStatus, as text.

    Attributes:
        supplier: of its first row; `charges` knows the others.
        amount: the sum of its rows; None if none can be read, or if they are in several currencies.
        attempts: how many were begun.
        seconds: of all its attempts.
        error_type, message: of the latest attempt that failed.
        unread_rows: how many of its rows have no amount that can be read.
    """

    task_id: str
    po_number: str
    supplier: str
    amount: Decimal | None
    status: str
    priority: int
    attempts: int
    created_at: float
    completed_at: float | None
    seconds: float
    error_type: str = ""
    message: str = ""
    currency: str = ""
    rows: int = 1
    charges: tuple[Charge, ...] = ()
    unread_rows: int = 0


@dataclass(frozen=True, slots=True)
class Pause:
    """A time in which no PO was started; `ended_at` is None while it lasts."""

    began_at: float
    ended_at: float | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class RunHistory:
    """A run from its beginning until its end, or until now.

    Attributes:
        run: what ran, as in report.json; without a "reason" the run has not ended, or not in good order ("is_live" says
            which).
        accounts: input rows by what became of them.
        counts: POs by status, and attempts, retries, kills, interruptions.
        attempts: in the order in which they began.
        again: the command that runs the failures again; empty if there are none.
        rest: the command that goes on with what has not ended; empty if there is nothing, or if the run is live.
        po_words: every word in the data of all POs; what a redacted text must not hold.
    """

    run: dict[str, Any]
    accounts: dict[str, int]
    counts: dict[str, int]
    orders: tuple[Order, ...]
    attempts: tuple[Attempt, ...]
    pauses: tuple[Pause, ...] = ()
    again: str = ""
    rest: str = ""
    po_words: frozenset[str] = field(default=frozenset(), repr=False)

    @property
    def began_at(self) -> float:
        """UTC seconds of the first attempt, or of the first PO, or of the run; 0 if nothing is known."""
        if self.attempts:
            return self.attempts[0].started_at
        return min((o.created_at for o in self.orders), default=_seconds(self.run.get("begun_at")))

    @property
    def until(self) -> float:
        """UTC seconds of the last thing known."""
        ends = [a.ended_at or a.started_at + a.seconds for a in self.attempts]
        told = [p.ended_at or p.began_at for p in self.pauses if p.reason != NOT_RUNNING]
        done = [o.completed_at for o in self.orders if o.completed_at is not None]
        return max([self.began_at, *ends, *told, *done])

    @property
    def has_ended(self) -> bool:
        """Whether the run came to an end that it could tell."""
        return bool(self.run.get("reason"))


def history_from_journal(
    connection: sqlite3.Connection,
    *,
    run: Mapping[str, Any] | None = None,
    accounts: Mapping[str, int] | None = None,
    counted: Mapping[str, int] | None = None,
    again: str = "",
    rest: str = "",
) -> RunHistory:
    """Read the history of a run, ended, crashed or live, from a connection to its journal or a copy of that.

    Args:
        run, accounts: as in the run's report.json, if it has come to that; else what the journal can tell.
        counted: what the order file holds, as in the run's record: the queue may not have been given all of it.
        again, rest: the commands that run the failures again, and go on with what has not ended; left out of the
            history if there is nothing for them to do.

    Raises:
        sqlite3.Error: the journal cannot be read.
        ValueError: it says what cannot be.
    """
    reader = _Reader()
    for row in connection.execute("SELECT rank, task_id, po_number, priority, created_at, payload FROM tasks"):
        reader.add(*row)
    log = "SELECT kind, rank, token, at, worker, seconds, result, error FROM log ORDER BY seq"
    for line in connection.execute(log):
        reader.read(_Line(*line))
    return reader.history(dict(run or {}), accounts, counted or {}, again, rest)


@dataclass(slots=True)
class _Task:
    """A task on its way through the log."""

    task_id: str
    po_number: str
    priority: int
    created_at: float
    payload: Any
    status: TaskStatus = TaskStatus.PENDING
    attempts: int = 0
    completed_at: float | None = None
    error_type: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class _Line:
    kind: int
    rank: int | None
    token: int | None
    at: float
    worker: str | None
    seconds: float | None
    result: Any
    error: str | None

    @property
    def details(self) -> dict[str, Any]:
        found = json.loads(self.error) if self.error else {}
        return found if isinstance(found, dict) else {}


@dataclass(slots=True)
class _Lease:
    """A lease and, once that is told, its end."""

    task: _Task
    attempt: int
    worker: str
    leased_at: float
    ended_at: float | None = None
    seconds: float | None = None
    outcome: Outcome = "running"
    error_type: str = ""
    message: str = ""
    stack: str = ""

    def as_attempt(self, started_at: float, ended_at: float | None, seconds: float) -> Attempt:
        task = self.task
        return Attempt(
            task.task_id, task.po_number, self.attempt, self.worker, started_at, ended_at, seconds, self.outcome,
            self.error_type, self.message, self.stack,
        )  # fmt: skip


_ENDS: dict[int, tuple[TaskStatus, Outcome]] = {
    Kind.COMPLETED: (TaskStatus.COMPLETED, "completed"),
    Kind.FAILED: (TaskStatus.FAILED, "failed"),
    Kind.RETRY: (TaskStatus.RETRY_PENDING, "retry"),
    Kind.INTERRUPTED: (TaskStatus.PENDING, "interrupted"),
}


class _Reader:
    """Takes the log line by line; what it does not know it passes over, as a later version may tell more."""

    def __init__(self) -> None:
        self._tasks: dict[int, _Task] = {}
        self._live: dict[int, _Lease] = {}
        self._ended: list[_Lease] = []
        self._pauses: list[Pause] = []
        self._paused_at: tuple[float, str] | None = None
        self._first_at: float | None = None
        self._last_at = 0.0
        self._crashed_at: float | None = None

    def add(self, rank: int, task_id: str, po_number: str, priority: int, created_at: float, payload: Any) -> None:
        self._tasks[rank] = _Task(task_id, po_number, priority, created_at, payload)

    def read(self, line: _Line) -> None:
        if line.kind == Kind.OPENED:
            self._open(line.at)
        elif line.kind == Kind.PAUSED and self._paused_at is None:
            self._paused_at = (line.at, _pause_reason(line.error))
        elif line.kind == Kind.RESUMED and self._paused_at is not None:
            self._pauses.append(Pause(self._paused_at[0], line.at, self._paused_at[1]))
            self._paused_at = None
        elif line.rank in self._tasks:
            self._move(line, self._tasks[line.rank])
        self._first_at = line.at if self._first_at is None else self._first_at
        self._last_at = max(self._last_at, line.at)

    def history(
        self,
        run: dict[str, Any],
        accounts: Mapping[str, int] | None,
        counted: Mapping[str, int],
        again: str,
        rest: str,
    ) -> RunHistory:
        if self._paused_at is not None:
            self._pauses.append(Pause(self._paused_at[0], None, self._paused_at[1]))
        attempts = tuple(sorted(self._attempts(), key=lambda a: (a.started_at, a.ended_at or a.started_at)))
        seconds: dict[str, float] = defaultdict(float)
        for attempt in attempts:
            seconds[attempt.task_id] += attempt.seconds
        # An id may come again once the queue has forgotten the task that had it.
        latest = {task.task_id: task for task in self._tasks.values()}
        texts: set[str] = set()
        orders = tuple(_order(task, seconds[task.task_id], texts) for task in latest.values())
        counts = _counts(orders, attempts, counted.get("pos", 0))
        if self._first_at is not None:
            run.setdefault("begun_at", iso_time(self._first_at))
            run.setdefault("seconds", round(self._last_at - self._first_at, 3))
        rows = NOTHING_KNOWN | dict(accounts) if accounts else _accounts(orders, counted)
        return RunHistory(
            run, rows, counts, orders, attempts, tuple(self._pauses),
            again if counts["failed"] else "", rest if counts["completed"] + counts["failed"] < counts["total"] else "",
            frozenset(WORD.findall(" ".join(texts).casefold())),
        )  # fmt: skip

    def _open(self, at: float) -> None:
        """A manager begins; if it is not the first, the run stood still since the last word of the one before."""
        if self._first_at is not None:
            self._crashed_at = self._last_at
            self._pauses.append(Pause(self._last_at, at, NOT_RUNNING))

    def _move(self, line: _Line, task: _Task) -> None:
        lease = self._live.pop(line.token, None) if line.token is not None else None
        if line.kind == Kind.LEASED:
            task.attempts += 1
            task.status = TaskStatus.PROCESSING
            self._live[line.token or 0] = _Lease(task, task.attempts, line.worker or "", line.at)
        elif line.kind in _ENDS and lease is not None:
            self._end(line, task, lease)
        elif line.kind == Kind.UNDONE:
            task.attempts -= 1
            task.status = TaskStatus.PENDING
        elif line.kind in (Kind.REQUEUED, Kind.RETRIED):
            task.status, task.completed_at = TaskStatus.RETRY_PENDING, None
        elif line.kind == Kind.CANCELLED:
            task.status, task.completed_at = TaskStatus.FAILED, line.at
            task.error_type, task.message, _ = _error_of(line)
        elif line.kind == Kind.CLEARED:
            del self._tasks[line.rank or 0]

    def _end(self, line: _Line, task: _Task, lease: _Lease) -> None:
        task.status, lease.outcome = _ENDS[line.kind]
        task.completed_at = line.at if task.status in (TaskStatus.COMPLETED, TaskStatus.FAILED) else None
        lease.ended_at, lease.seconds = line.at, _seconds_of(line)
        if line.kind != Kind.COMPLETED:
            lease.error_type, lease.message, lease.stack = _error_of(line)
        if line.kind in (Kind.FAILED, Kind.RETRY):
            task.error_type, task.message = lease.error_type, lease.message
        if line.kind == Kind.INTERRUPTED and line.details.get("is_crash") and self._crashed_at is not None:
            lease.ended_at = max(lease.leased_at, self._crashed_at)  # told only when somebody took the run up again
        self._ended.append(lease)

    def _attempts(self) -> Iterator[Attempt]:
        by_worker: dict[str, list[_Lease]] = defaultdict(list)
        for lease in self._ended:
            by_worker[lease.worker].append(lease)
        for leases in by_worker.values():
            yield from _one_at_a_time(leases)
        running: dict[str, _Lease] = {}
        for _, lease in sorted(self._live.items()):
            if lease.task.status is not TaskStatus.PROCESSING:
                continue
            if lease.worker in running:
                lease.task.attempts -= 1  # held ahead, not begun
                continue
            running[lease.worker] = lease
            before = [end.ended_at or 0.0 for end in by_worker.get(lease.worker, ())]
            started_at = min(max(lease.leased_at, *before[-1:], 0.0), self._last_at)
            yield lease.as_attempt(started_at, None, max(0.0, self._last_at - started_at))


def _one_at_a_time(leases: list[_Lease]) -> Iterator[Attempt]:
    """The attempts of one worker, from its leases in the order of their ends; from the last to the first.

    An attempt ended when that was told, or earlier: when the worker began the next one.
    """
    next_start = float("inf")
    for number in range(len(leases) - 1, -1, -1):
        lease = leases[number]
        ended_at = min(lease.ended_at or lease.leased_at, next_start)
        if lease.seconds is None:
            before = leases[number - 1].ended_at or 0.0 if number else 0.0
            started_at = min(max(lease.leased_at, before), ended_at)
        else:
            started_at = min(max(lease.leased_at, ended_at - lease.seconds), ended_at)
        next_start = started_at
        seconds = ended_at - started_at if lease.seconds is None else lease.seconds
        yield lease.as_attempt(started_at, ended_at, seconds)


def _seconds_of(line: _Line) -> float | None:
    """How long an attempt took, from whoever says it: the queue, the supervisor that killed it, the worker."""
    if line.seconds is not None:
        return max(0.0, line.seconds)
    told = line.details.get("seconds")
    if told is None and line.result is not None:
        result = json.loads(line.result)
        told = result[2] if isinstance(result, list) and len(result) > 2 else None
    return max(0.0, float(told)) if isinstance(told, int | float) and told > 0 else None


def _error_of(line: _Line) -> tuple[str, str, str]:
    """Type, message and stack; a result that says no has no type, only a message."""
    details = line.details
    kind, message = str(details.get("error_type") or ""), str(details.get("message") or "")
    if line.result is not None and message.startswith(kind):
        kind = ""
    stack = details.get("stack") or details.get("traceback") or ""
    return kind, message, str(stack)


def _pause_reason(error: str | None) -> str:
    """The reason as it was given: bare text, or in JSON."""
    try:
        told = json.loads(error or '""')
    except ValueError:
        return error or ""
    return str(told.get("reason") or "") if isinstance(told, dict) else str(told)


def _order(task: _Task, seconds: float, texts: set[str]) -> Order:
    po = _po_data(task.payload)
    dossier = examine({**po, "po_number": task.po_number})
    totals = dossier.totals
    currency, amount = next(iter(totals.items())) if len(totals) == 1 else ("; ".join(filter(None, totals)), None)
    _add_texts(po, texts)
    supplier = str(po.get("supplier") or "").strip()
    return Order(
        task.task_id, task.po_number, supplier, amount, task.status.value, task.priority,
        task.attempts, task.created_at, task.completed_at, seconds, task.error_type, task.message, currency,
        len(dossier.lines), _charges(dossier.lines, supplier), sum(line.amount is None for line in dossier.lines),
    )  # fmt: skip


def _charges(lines: Iterable[Line], supplier: str) -> tuple[Charge, ...]:
    """Each row's amount for the supplier that it names itself, or else for the PO's."""
    by_supplier: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        by_supplier[str(line.cells.get("supplier") or "").strip() or supplier].append(line)
    return tuple(Charge(name, *total) for name, own in by_supplier.items() for total in add_up(own).items())


def _po_data(payload: Any) -> dict[str, Any]:
    """A PO's data, if it is JSON; a pickle is a program, and a report runs none."""
    try:
        po = json.loads(payload)
    except ValueError:
        return {}
    return po if isinstance(po, dict) else {}


def _add_texts(value: Any, texts: set[str]) -> None:
    """Add every value that the data hold, as text; many POs hold the same ones."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            _add_texts(item, texts)
    elif value is not None:
        texts.add(str(value))


def _counts(orders: Iterable[Order], attempts: Iterable[Attempt], pos: int) -> dict[str, int]:
    """POs by status, of so many at least: those that the queue does not know yet are pending."""
    by_status = Counter(order.status for order in orders)
    by_status[TaskStatus.PENDING.value] += max(0, pos - by_status.total())
    outcomes = Counter(attempt.outcome for attempt in attempts)
    return {
        "total": by_status.total(),
        **{status.value: by_status[status.value] for status in TaskStatus},
        "attempts": outcomes.total(),
        "retries": outcomes["retry"],
        "interruptions": outcomes["interrupted"],
        "kills": sum(attempt.is_kill for attempt in attempts),
    }


def _accounts(orders: Iterable[Order], counted: Mapping[str, int]) -> dict[str, int]:
    """Input rows: those of the file, or if nobody counted them, those that POs stand for."""
    names = {TaskStatus.COMPLETED.value: "succeeded", TaskStatus.FAILED.value: "failed"}
    accounts = dict(NOTHING_KNOWN)
    for order in orders:
        accounts[names.get(order.status, "not_run")] += order.rows
        accounts["rows"] += order.rows
    file = {key: counted.get(key, 0) for key in ("rows", "duplicate", "invalid")}
    unknown = file["rows"] - file["duplicate"] - file["invalid"] - accounts["rows"]
    if unknown >= 0:  # less than none: somebody has added POs of his own
        accounts |= file
        accounts["not_run"] += unknown
    return accounts


def _seconds(iso: Any) -> float:
    """UTC seconds of an ISO text; 0 if it is none."""
    try:
        return datetime.fromisoformat(iso).timestamp()
    except (TypeError, ValueError):
        return 0.0


def utc(at: float) -> datetime:
    """UTC seconds since the epoch as a time."""
    return datetime.fromtimestamp(at, UTC)
