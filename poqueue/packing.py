"""The hot calls in the form in which they cross between processes: plain tuples, which pickle three to ten times faster
than instances of a class. Whoever sends packs, whoever receives unpacks; both ends are of one version.

    add_tasks           list of tasks   ──► list of tuples
    exchange_packed     list of reports ──► list of tuples;     Grant ◄── (list of tuples, stop, left)
    read_events_packed                                          list of events ◄── runs of them, their records as columns
    get_report_parts                                            ReportParts ◄── tuple, its records as tuples
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import chain, count, repeat

from poqueue.hints import Any, NamedTuple
from poqueue.payload import FrozenResult, freeze_po
from poqueue.task import (
    Event,
    Grant,
    Lease,
    PlainLease,
    PlainSuccess,
    ProcessingTask,
    Report,
    ReportParts,
    TaskRecord,
    instance,
)


class FrozenTask(NamedTuple):
    """What a caller says of a new task, its data frozen; travels in the place of a ProcessingTask."""

    task_id: str
    po_number: str
    payload: bytes
    priority: int
    max_retries: int | None
    retry_delay: float | None
    task_timeout: float | None
    group: str


def pack_task(task: Any, as_json: bool) -> tuple[Any, ...]:
    """A new task as a tuple; one that is frozen already as it is.

    Raises:
        ValueError: it is no task, or its data cannot be frozen.
    """
    if isinstance(task, FrozenTask):
        return tuple(task)
    if not isinstance(task, ProcessingTask):
        raise ValueError(f"invalid task: a ProcessingTask is needed, got {type(task).__name__}")
    number, payload = freeze_po(task.po_data, as_json)
    return (
        task.task_id,
        number,
        payload,
        task.priority,
        task.max_retries,
        task.retry_delay,
        task.task_timeout,
        task.group,
    )


def pack_reports(reports: Sequence[Report | PlainSuccess]) -> list[tuple[Any, ...]]:
    """Reports as tuples: a Success of four fields, others of seven."""
    return [
        tuple(report) if len(report) == 4 or report[3] is None else (*report[:3], tuple(report[3]), *report[4:])
        for report in reports
    ]


PackedGrant = tuple[list[PlainLease], bool, int]


def unpack_grant(answer: PackedGrant) -> Grant:
    """The answer to an exchange."""
    leases, stop, left = answer
    return Grant([instance(Lease, lease) for lease in leases], stop, left)


PackedEvents = list[tuple[int, str, Any, str]]
"""Event by event, its task a plain tuple or None; but of many neighbours that are "completed" the first one's number, and
the tasks of all as columns (poqueue.entry), which are a list.
"""


def unpack_events(answer: PackedEvents) -> list[Event]:
    """The answer to read_events."""
    return list(chain.from_iterable(map(unpack_run, answer)))


def unpack_run(run: tuple[int, str, Any, str]) -> Iterable[Event]:
    """One item of it: an event, or many that are "completed", each made when its turn comes."""
    first, kind, task, error = run
    if not isinstance(task, list):
        return (instance(Event, (first, kind, task and instance(TaskRecord, task), error)),)
    fields = [column if len(column) > 1 else repeat(column[0], len(task[0])) for column in task]
    records = map(instance, repeat(TaskRecord), zip(*fields, strict=True))
    return map(instance, repeat(Event), zip(count(first), repeat(kind), records, repeat(error)))


def last_number(answer: PackedEvents) -> int:
    """That of the last event in an answer that is not empty."""
    first, _, task, _ = answer[-1]
    return first + len(task[0]) - 1 if isinstance(task, list) else first


def unpack_parts(answer: tuple[Any, ...]) -> ReportParts:
    """The answer to get_report_parts."""
    records, *figures = answer
    return ReportParts([TaskRecord._make(record) for record in records], *figures)


def _unpack_report(packed: tuple[Any, ...]) -> Report:
    task_id, token, seconds, told, *rest = packed
    return Report(task_id, token, seconds, None if told is None else FrozenResult._make(told), *rest)


def _unpack_exchange(worker_id: Any, reports: Any = (), *rest: Any) -> tuple[Any, ...]:
    """A Success is left a plain tuple, as new tasks are: the queue takes it by its length, and there are hundreds of them."""
    return (
        worker_id,
        [one if type(one) is not tuple or len(one) == 4 else _unpack_report(one) for one in reports],
        *rest,
    )


def _pack_parts(parts: ReportParts) -> tuple[Any, ...]:
    return [tuple(record) for record in parts.records], *parts[1:]


UNPACK_REQUEST: dict[str, Callable[..., tuple[Any, ...]]] = {"exchange_packed": _unpack_exchange}
PACK_ANSWER: dict[str, Callable[[Any], Any]] = {"get_report_parts": _pack_parts}
