"""What a history amounts to: rates, queue lengths, durations, workers, errors, hangs, costs. No format knows more."""

import math
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from itertools import pairwise
from typing import Any, NamedTuple

from poqueue.adaptive import AdaptiveTimeout
from poqueue.task import TaskStatus
from workers.error_text import normalised, place
from workers.history import Attempt, Order, Pause, RunHistory
from workers.quantities import parse_duration
from workers.setting_values import Timeout, parse_timeout

SAMPLES = 5
MAX_BUCKETS = 120
QUEUE_POINTS = 1_000
NICE_S = tuple(
    base * unit
    for unit, bases in (
        (0.001, (1, 2, 5, 10, 20, 50, 100, 200, 500)),
        (1, (1, 2, 5, 10, 15, 30)),
        (60, (1, 2, 5, 10, 15, 30)),
        (3600, (1, 2, 3, 6, 12)),
        (86400, (1, 2, 7, 28, 365)),
    )
    for base in bases
)
_WAITING = frozenset({TaskStatus.PENDING.value, TaskStatus.RETRY_PENDING.value})
_EXACT = Context(prec=200)  # the default context would round a total to 28 digits


class Sample(NamedTuple):
    """An attempt to look up."""

    po_number: str
    attempt: int


@dataclass(frozen=True, slots=True)
class ErrorGroup:
    """Attempts that failed in the same way. `kills`: how many of them cost their worker."""

    error_type: str
    text: str
    count: int
    pos: int
    kills: int
    first_at: float
    last_at: float
    samples: tuple[Sample, ...]
    stack: str


@dataclass(frozen=True, slots=True)
class Hang:
    """A place in the code where attempts were when they were killed."""

    place: str
    count: int
    samples: tuple[Sample, ...]
    stack: str


@dataclass(frozen=True, slots=True)
class Bucket:
    """A stretch of the run, and how many POs ended in it; `waiting` and `running` at its end."""

    start: float
    end: float
    completed: int
    failed: int
    waiting: int
    running: int


class QueuePoint(NamedTuple):
    """How many POs waited and ran from a moment on."""

    at: float
    waiting: int
    running: int


@dataclass(frozen=True, slots=True)
class WorkerUse:
    """One worker's place: what it did and how much of the run's time, pauses included, it was busy."""

    slot: str
    processes: int
    attempts: int
    completed: int
    retries: int
    failed: int
    kills: int
    busy_s: float
    utilisation: float


@dataclass(frozen=True, slots=True)
class SupplierCost:
    """What was ordered from a supplier, in one currency. `pos`: in how many POs, which may have rows of others as well."""

    supplier: str
    currency: str
    pos: int
    total: Decimal
    completed: Decimal
    failed: Decimal


@dataclass(frozen=True, slots=True)
class TimeLimit:
    """How long an attempt may take where that follows the running median; times in seconds.

    Attributes:
        supplier: whose POs have completed often enough to go by themselves; empty: all together, for the others.
        completions: how many the median is of, the latest ones only.
    """

    supplier: str
    completions: int
    median_s: float
    limit_s: float


class Durations(NamedTuple):
    """Seconds of attempts, by outcome, and the figures of their distribution."""

    outcome: str
    attempts: int
    mean: float
    median: float
    p90: float
    p95: float
    p99: float
    longest: float


# ── errors ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def failed_attempts(history: RunHistory) -> Iterator[Attempt]:
    """Attempts that went wrong by themselves, whether the PO was tried again or not."""
    return (attempt for attempt in history.attempts if attempt.outcome in ("failed", "retry"))


def error_groups(history: RunHistory) -> list[ErrorGroup]:
    """The errors by type and reduced message, the most frequent first."""
    found: dict[tuple[str, str], list[Attempt]] = defaultdict(list)
    for attempt in failed_attempts(history):
        found[attempt.error_type, normalised(attempt.message, attempt.po_number)].append(attempt)
    groups = [_error_group(kind, text, attempts) for (kind, text), attempts in found.items()]
    return sorted(groups, key=lambda group: (-group.count, group.error_type, group.text))


def _error_group(kind: str, text: str, attempts: list[Attempt]) -> ErrorGroup:
    ends = [attempt.ended_at or attempt.started_at for attempt in attempts]
    stack = next((attempt.stack for attempt in attempts if attempt.stack), "")
    pos = len({attempt.task_id for attempt in attempts})
    kills = sum(attempt.is_kill for attempt in attempts)
    return ErrorGroup(kind, text, len(attempts), pos, kills, min(ends), max(ends), samples(attempts), stack)


def samples(attempts: Iterable[Attempt]) -> tuple[Sample, ...]:
    """The first few, each of another PO."""
    first: dict[str, Sample] = {}
    for attempt in attempts:
        first.setdefault(attempt.task_id, Sample(attempt.po_number, attempt.attempt))
        if len(first) == SAMPLES:
            break
    return tuple(first.values())


def hangs(history: RunHistory) -> list[Hang]:
    """Where killed attempts were, the most frequent place first; only those that left a stack."""
    found: dict[str, list[Attempt]] = defaultdict(list)
    for attempt in failed_attempts(history):
        if attempt.is_kill and attempt.stack:
            found[place(attempt.stack) or attempt.stack.strip().splitlines()[0]].append(attempt)
    groups = [Hang(where, len(all_), samples(all_), all_[0].stack) for where, all_ in found.items()]
    return sorted(groups, key=lambda hang: (-hang.count, hang.place))


# ── time ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def nice_width(span_s: float, most: int = MAX_BUCKETS) -> float:
    """The smallest round number of seconds of which `most` make up the span."""
    return next((width for width in NICE_S if span_s <= width * most), span_s / most)


def buckets(history: RunHistory, most: int = MAX_BUCKETS) -> list[Bucket]:
    """The run in equal stretches; what was cancelled before the first attempt began is in the first one."""
    began, until = history.began_at, history.until
    width = nice_width(until - began, most)
    count = min(max(1, math.ceil((until - began) / width - 1e-9)), most)
    ends = Counter(
        (min(max(0, int((o.completed_at - began) / width)), count - 1), o.status)
        for o in history.orders
        if o.completed_at is not None
    )
    points = queue_points(history)
    times = [point.at for point in points]
    found = []
    for number in range(count):
        start, end = began + number * width, began + (number + 1) * width
        last = points[bisect_right(times, min(end, until)) - 1] if points else QueuePoint(start, 0, 0)
        done = ends[number, TaskStatus.COMPLETED.value], ends[number, TaskStatus.FAILED.value]
        found.append(Bucket(start, end, *done, last.waiting, last.running))
    return found


def queue_points(history: RunHistory) -> list[QueuePoint]:
    """Each change of the queue's length and of the number of POs being worked on, in order."""
    changes: dict[float, list[int]] = defaultdict(lambda: [0, 0])
    for start, end in _waits(history):
        changes[start][0] += 1
        if end is not None:
            changes[end][0] -= 1
    for attempt in history.attempts:
        changes[attempt.started_at][1] += 1
        if attempt.ended_at is not None:
            changes[attempt.ended_at][1] -= 1
    waiting = running = 0
    points = []
    for at in sorted(changes):
        waiting, running = waiting + changes[at][0], running + changes[at][1]
        points.append(QueuePoint(at, waiting, running))
    return points


def thinned(points: Sequence[QueuePoint]) -> list[QueuePoint]:
    """At most about QUEUE_POINTS of them, the highest queue of each stretch among them."""
    if len(points) <= QUEUE_POINTS:
        return list(points)
    step = math.ceil(len(points) / QUEUE_POINTS * 2)
    kept = []
    for start in range(0, len(points), step):
        part = points[start : start + step]
        kept += sorted({part[0], max(part, key=lambda point: point.waiting)})
    return [*kept, points[-1]]


def shows_running(points: Sequence[QueuePoint]) -> bool:
    """Whether the POs that are worked on can be seen beside those that wait."""
    return max(point.running for point in points) * 20 >= max(point.waiting for point in points)


def _waits(history: RunHistory) -> Iterator[tuple[float, float | None]]:
    """When POs waited: from being added or given back until an attempt begins."""
    by_task: dict[str, list[Attempt]] = defaultdict(list)
    for attempt in history.attempts:
        by_task[attempt.task_id].append(attempt)
    for order in history.orders:
        attempts = by_task.get(order.task_id, [])
        yield from _waits_of(order, attempts)


def _waits_of(order: Order, attempts: list[Attempt]) -> Iterator[tuple[float, float | None]]:
    if not attempts:
        yield order.created_at, order.completed_at
        return
    yield min(order.created_at, attempts[0].started_at), attempts[0].started_at
    for before, after in pairwise(attempts):
        yield before.ended_at or after.started_at, after.started_at
    last = attempts[-1]
    if last.ended_at is not None and order.status in _WAITING:
        yield last.ended_at, None
    elif last.outcome in ("retry", "interrupted") and last.ended_at is not None:
        yield last.ended_at, max(order.completed_at or last.ended_at, last.ended_at)


def paused_s(pauses: Iterable[Pause], until: float) -> float:
    """How long the run stood still, in seconds."""
    return sum(max(0.0, (pause.ended_at or until) - pause.began_at) for pause in pauses)


# ── durations and workers ────────────────────────────────────────────────────────────────────────────────────────────


def durations(history: RunHistory) -> list[Durations]:
    """Of completed attempts, and of those that failed in any way."""
    parts = {"completed": ("completed",), "failed or retried": ("failed", "retry")}
    found = []
    for name, outcomes in parts.items():
        seconds = sorted(attempt.seconds for attempt in history.attempts if attempt.outcome in outcomes)
        if seconds:
            median, p90, p95, p99 = (quantile(seconds, share) for share in (0.5, 0.9, 0.95, 0.99))
            mean = math.fsum(seconds) / len(seconds)
            found.append(Durations(name, len(seconds), mean, median, p90, p95, p99, seconds[-1]))
    return found


def quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least this share does not exceed (nearest rank)."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def slowest(history: RunHistory, most: int) -> list[Order]:
    """The POs on which most time was spent, all attempts together."""
    return sorted((order for order in history.orders if order.attempts), key=lambda order: -order.seconds)[:most]


def worker_use(history: RunHistory) -> list[WorkerUse]:
    """By worker's place, in the order of their numbers."""
    by_slot: dict[str, list[Attempt]] = defaultdict(list)
    for attempt in history.attempts:
        by_slot[attempt.slot].append(attempt)
    span = max(history.until - history.began_at, 1e-9)
    return [_worker_use(slot, by_slot[slot], span) for slot in sorted(by_slot, key=slot_order)]


def slot_order(slot: str) -> tuple[str, int]:
    """Sorts w2 before w10."""
    letters = slot.rstrip("0123456789")
    digits = slot[len(letters) :][:9]
    return letters, int(digits) if digits.isascii() and digits else 0


def _worker_use(slot: str, attempts: list[Attempt], span: float) -> WorkerUse:
    outcomes = Counter(attempt.outcome for attempt in attempts)
    busy = math.fsum((a.ended_at - a.started_at) if a.ended_at is not None else a.seconds for a in attempts)
    return WorkerUse(
        slot, len({attempt.worker_id for attempt in attempts}), len(attempts), outcomes["completed"], outcomes["retry"],
        outcomes["failed"], sum(attempt.is_kill for attempt in attempts), busy, min(1.0, busy / span),
    )  # fmt: skip


# ── time limits ──────────────────────────────────────────────────────────────────────────────────────────────────────


def time_limits(history: RunHistory) -> list[TimeLimit]:
    """Where the limits stood at last, those of most completions first; empty if the timeout is no share of the median."""
    rule = _time_limit_rule(history.run.get("settings"))
    if rule is None:
        return []
    timeout, floor_s = rule
    limits = AdaptiveTimeout(timeout.share, floor_s)
    suppliers = {order.task_id: order.supplier for order in history.orders}
    completed = [attempt for attempt in history.attempts if attempt.outcome == "completed"]
    for attempt in sorted(completed, key=lambda one: one.ended_at or 0.0):
        limits.note(suppliers.get(attempt.task_id, ""), attempt.seconds)
    found = [
        TimeLimit(supplier, int(seen["count"]), seen["median_s"], seen["limit_s"])
        for supplier, seen in limits.view(timeout.seconds).items()
    ]
    return sorted(found, key=lambda limit: (bool(limit.supplier), -limit.completions, limit.supplier))


def _time_limit_rule(settings: Any) -> tuple[Timeout, float] | None:
    """The timeout and its floor, as the run was set; None: it is the same for all, or not known."""
    if not isinstance(settings, dict) or not {"task_timeout", "timeout_floor"} <= settings.keys():
        return None
    try:
        timeout = parse_timeout(settings["task_timeout"]["value"], "task_timeout")
        return (timeout, parse_duration(settings["timeout_floor"]["value"], "timeout_floor")) if timeout.share else None
    except ValueError:  # from another version
        return None


# ── costs ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def costs(history: RunHistory) -> list[SupplierCost]:
    """By supplier and currency, the currency with most POs first, in it the highest total first."""
    found: dict[tuple[str, str], list[tuple[str, Decimal]]] = defaultdict(list)
    for order in history.orders:
        for charge in order.charges:
            found[charge.supplier, charge.currency].append((order.status, charge.amount))
    popular = Counter(currency for order in history.orders for currency in {one.currency for one in order.charges})
    rows = [_cost(supplier, currency, amounts) for (supplier, currency), amounts in found.items()]
    return sorted(rows, key=lambda row: (-popular[row.currency], row.currency, -row.total, row.supplier))


def _cost(supplier: str, currency: str, amounts: Sequence[tuple[str, Decimal]]) -> SupplierCost:
    """From the status and the amount of each PO."""
    total = exact_sum(amount for _, amount in amounts)
    completed = exact_sum(amount for status, amount in amounts if status == TaskStatus.COMPLETED.value)
    failed = exact_sum(amount for status, amount in amounts if status == TaskStatus.FAILED.value)
    return SupplierCost(supplier, currency, len(amounts), total, completed, failed)


def exact_sum(amounts: Iterable[Decimal]) -> Decimal:
    """The sum with every digit, however many there are."""
    total = Decimal(0)
    for amount in amounts:
        total = _EXACT.add(total, amount)
    return total
