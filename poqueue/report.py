"""The queue's report as a dict of plain JSON types, as JSON text, as CSV text, and as YAML text."""

import contextlib
import csv
import functools
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from poqueue import fast_json
from poqueue.formula import guard_formula
from poqueue.payload import is_json, thaw_for_report, thaw_result
from poqueue.plain import plain_details
from poqueue.task import ReportParts, TaskRecord, TaskResult, TaskStatus

FORMATS = ("json", "csv", "yaml")
ENDED = (TaskStatus.COMPLETED, TaskStatus.FAILED)
TASK_COLUMNS = (
    "task_id", "po_number", "status", "priority", "attempt", "retry_count", "max_retries", "retry_delay", "task_timeout",
    "worker_id", "created_at", "assigned_at", "completed_at", "processing_time", "success", "error_message",
    "downloads", "data", "error_history", "interruptions", "po_data",
)  # fmt: skip


def check_format(format: str) -> None:
    """Refuse what is no format.

    Raises:
        ValueError: it is none.
    """
    if format not in FORMATS:
        raise ValueError(f"report format must be one of {', '.join(FORMATS)}, got {format!r}")


def build(parts: ReportParts, format: str = "json") -> dict[str, Any] | str:
    """The report in one of the formats. Errors as in check_format."""
    check_format(format)
    report = build_report(parts)
    if format == "csv":
        return as_csv(report)
    return as_yaml(report) if format == "yaml" else report


def build_report(parts: ReportParts) -> dict[str, Any]:
    """Put a report together: every task with its history, and the figures of the queue."""
    return {**_figures(parts), "tasks": [_task_as_dict(record) for record in parts.records]}


def as_json(parts: ReportParts, first: Mapping[str, Any], *, knows_data: bool = False) -> Iterator[str]:
    """The same as the pieces of a JSON text, with other fields in front; at no time are all tasks open.

    Args:
        first: plain JSON types.
        knows_data: whatever looks like JSON in the place of a PO's data was made by freeze_plain in this process, and is
            not read once more to see whether it is.

    Raises:
        ValueError, TypeError: `first` holds something else.
    """
    yield fast_json.encode_finite({**first, **_figures(parts)}).removesuffix("}") + ', "tasks": ['
    between = ""
    for record in parts.records:
        yield between + _task_as_json(record, knows_data)
        between = ", "
    yield "]}"


def _figures(parts: ReportParts) -> dict[str, Any]:
    figures = {
        "queue": parts.status,
        "configuration": parts.configuration,
        "performance": parts.metrics,
        "errors": parts.errors,
        "workers": _by_worker(parts.records, parts.metrics["worker_utilization"]),
    }
    return {"generated_at": iso_time(parts.wall_time), **plain_details(figures)}


def _task_as_dict(record: TaskRecord) -> dict[str, Any]:
    """One task in plain JSON types; times are ISO text in UTC, durations seconds."""
    task = thaw_for_report(record)
    return plain_details(_fields(record, task.result) | {"po_data": task.po_data})


def _task_as_json(record: TaskRecord, knows_data: bool) -> str:
    """The same as text. Data that are JSON go there as they are, once they have been read as that."""
    if is_json(record.payload) and is_json(record.result or b"["):
        with contextlib.suppress(Exception):  # the other way can open anything
            if not knows_data:
                fast_json.check_strict(record.payload)
            result = None if record.result is None else thaw_result(record.result)
            fields = fast_json.encode_finite(_fields(record, result))
            return f'{fields.removesuffix("}")}, "po_data": {record.payload.decode()}}}'
    return fast_json.encode_finite(_task_as_dict(record))


def _fields(record: TaskRecord, result: TaskResult | None) -> dict[str, Any]:
    """All but the PO itself."""
    return {
        "task_id": record.task_id,
        "po_number": record.po_number,
        "status": record.status.value,
        "priority": record.priority,
        "attempt": record.attempt,
        "retry_count": record.retry_count,
        "max_retries": record.max_retries,
        "retry_delay": record.retry_delay,
        "task_timeout": record.task_timeout,
        "worker_id": record.worker_id,
        "created_at": iso_time(record.created_at),
        "assigned_at": iso_time(record.assigned_at),
        "completed_at": iso_time(record.completed_at),
        "processing_time": result.processing_time if result else None,
        "success": result.success if result else None,
        "error_message": result.error_message if result else None,
        "downloads": _as_list(result.downloads) if result else [],
        "data": result.data if result else {},
        "error_history": list(record.error_history),
        "interruptions": record.interruptions,
    }


def _as_list(downloads: Any) -> list[Any]:
    """A result is carried as it was given, whatever it has in this place."""
    if isinstance(downloads, list | tuple | set | frozenset):
        return list(downloads)
    return [] if downloads is None else [downloads]


def as_csv(report: dict[str, Any]) -> str:
    """One row per task; nested values as JSON text; text that a spreadsheet would run as a formula gets a leading '."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(TASK_COLUMNS)
    for task in report.get("tasks", ()):
        writer.writerow([_csv_cell(task[column]) for column in TASK_COLUMNS])
    return out.getvalue()


def as_yaml(report: dict[str, Any]) -> str:
    """YAML text that safe_load reads back as the same dict; what of a path no encoding has comes back escaped."""
    import yaml  # only here: every worker process imports this package

    class Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]  # libyaml where it is built in
        def ignore_aliases(self, data: Any) -> bool:
            return True

    def represent_text(dumper: Any, text: str) -> Any:
        return dumper.represent_str(text if text.isascii() else text.encode("utf-8", "backslashreplace").decode())

    Dumper.add_representer(str, represent_text)
    text: str = yaml.dump(report, Dumper=Dumper, sort_keys=False, allow_unicode=True)
    return text


@functools.lru_cache(maxsize=4096)  # tasks that were added, leased or ended together have one time
def iso(wall_time: float) -> str:
    """UTC seconds since the epoch as ISO text."""
    return datetime.fromtimestamp(wall_time, UTC).isoformat(timespec="milliseconds")


def iso_time(wall_time: float | None) -> str | None:
    """The same, if there is any."""
    return None if wall_time is None else iso(wall_time)


def _csv_cell(value: Any) -> Any:
    if isinstance(value, str):
        return guard_formula(value)
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    return value


def _by_worker(records: Sequence[TaskRecord], utilization: dict[str, float]) -> dict[str, dict[str, Any]]:
    workers: dict[str, dict[str, Any]] = {
        worker_id: {"completed": 0, "failed": 0, "failed_attempts": 0, "utilization": share}
        for worker_id, share in utilization.items()
    }
    empty = {"completed": 0, "failed": 0, "failed_attempts": 0, "utilization": 0.0}
    for record in records:
        if record.worker_id is not None and record.status in ENDED:
            workers.setdefault(record.worker_id, dict(empty))[record.status.value] += 1
        for error in failed_attempts(record):
            workers.setdefault(error["worker_id"], dict(empty))["failed_attempts"] += 1
    return workers


def failed_attempts(record: TaskRecord) -> Iterator[dict[str, Any]]:
    """The errors of a task's attempts that a worker has failed; what was broken off, or somebody's wish, is none."""
    return (
        error for error in record.error_history if isinstance(error.get("worker_id"), str) and "is_crash" not in error
    )
