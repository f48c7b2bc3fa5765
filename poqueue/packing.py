"""The hot calls in the form in which they cross between processes: plain tuples, which pickle three to ten times faster
than instances of a class. Whoever sends packs, whoever receives unpacks; both ends are of one version.

    add_tasks   list of tasks   ──► list of tuples
    exchange    list of reports ──► list of tuples;     Grant ◄── (list of tuples, stop)
    read_events                                         list of events ◄── list of tuples
    get_report_parts                                    ReportParts ◄── tuple, its records as tuples
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from poqueue.payload import FrozenResult, freeze_po
from poqueue.task import Event, Grant, Lease, ProcessingTask, Report, ReportParts, TaskRecord, instance


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
    """A new task as a tuple.

    Raises:
        ValueError: it is no task, or its data cannot be frozen.
    """
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


def pack_reports(reports: Sequence[Report]) -> list[tuple[Any, ...]]:
    """Reports as tuples."""
    return [
        (task_id, token, seconds, result and tuple(result), error, after_s, gives_up)
        for task_id, token, seconds, result, error, after_s, gives_up in reports
    ]


def unpack_grant(answer: tuple[list[tuple[Any, ...]], bool]) -> Grant:
    """The answer to an exchange."""
    leases, stop = answer
    return Grant([instance(Lease, lease) for lease in leases], stop)


def unpack_events(answer: list[tuple[Any, ...]]) -> list[Event]:
    """The answer to read_events."""
    return [
        instance(Event, (number, kind, record and instance(TaskRecord, record), error))
        for number, kind, record, error in answer
    ]


def unpack_parts(answer: tuple[Any, ...]) -> ReportParts:
    """The answer to get_report_parts."""
    records, *figures = answer
    return ReportParts([TaskRecord._make(record) for record in records], *figures)


def _unpack_report(packed: tuple[Any, ...]) -> Report:
    result = packed[3]
    if result is None:
        return Report._make(packed)
    task_id, token, seconds, _, error, after_s, gives_up = packed
    return instance(Report, (task_id, token, seconds, FrozenResult._make(result), error, after_s, gives_up))


def _unpack_adding(tasks: Any, *rest: Any) -> tuple[Any, ...]:
    return [FrozenTask._make(one) if type(one) is tuple else one for one in tasks], *rest


def _unpack_exchange(worker_id: Any, reports: Any = (), *rest: Any) -> tuple[Any, ...]:
    return worker_id, [_unpack_report(one) if type(one) is tuple else one for one in reports], *rest


def _pack_grant(grant: Grant) -> Any:
    return [tuple(lease) for lease in grant.leases], grant.stop


def _pack_events(events: list[Event]) -> list[tuple[Any, ...]]:
    return [(number, kind, record and tuple(record), error) for number, kind, record, error in events]


def _pack_parts(parts: ReportParts) -> tuple[Any, ...]:
    return [tuple(record) for record in parts.records], *parts[1:]


UNPACK_REQUEST: dict[str, Callable[..., tuple[Any, ...]]] = {"add_tasks": _unpack_adding, "exchange": _unpack_exchange}
PACK_ANSWER: dict[str, Callable[[Any], Any]] = {
    "exchange": _pack_grant,
    "read_events": _pack_events,
    "get_report_parts": _pack_parts,
}
