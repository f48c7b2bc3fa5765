"""The queue's report as a dict of plain JSON types, as CSV text, and as YAML text."""

import csv
import io
import json
from datetime import UTC, datetime
from typing import Any

from poqueue.formula import guard_formula
from poqueue.payload import is_json, thaw_for_report
from poqueue.plain import plain_details
from poqueue.task import ProcessingTask, ReportParts

FORMATS = ("json", "csv", "yaml")
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
    tasks = [thaw_for_report(record) for record in parts.records]
    figures = {
        "queue": parts.status,
        "configuration": parts.configuration,
        "performance": parts.metrics,
        "errors": parts.errors,
        "workers": _by_worker(tasks, parts.metrics["worker_utilization"]),
    }
    return {
        "generated_at": iso_time(parts.wall_time),
        **plain_details(figures),
        "tasks": [
            task_as_dict(task, is_plain=is_json(record.payload) and is_json(record.result or b"["))
            for task, record in zip(tasks, parts.records, strict=True)
        ],
    }


def task_as_dict(task: ProcessingTask, *, is_plain: bool = False) -> dict[str, Any]:
    """One task in plain JSON types; times are ISO text in UTC, durations seconds. `is_plain`: its data comes from JSON."""
    result = task.result
    fields = {
        "task_id": task.task_id,
        "po_number": task.po_number,
        "status": task.status.value,
        "priority": task.priority,
        "attempt": task.attempt,
        "retry_count": task.retry_count,
        "max_retries": task.max_retries,
        "retry_delay": task.retry_delay,
        "task_timeout": task.task_timeout,
        "worker_id": task.worker_id,
        "created_at": iso_time(task.created_at),
        "assigned_at": iso_time(task.assigned_at),
        "completed_at": iso_time(task.completed_at),
        "processing_time": result.processing_time if result else None,
        "success": result.success if result else None,
        "error_message": result.error_message if result else None,
        "downloads": list(result.downloads) if result else [],
        "data": result.data if result else {},
        "error_history": task.error_history,
        "interruptions": task.interruptions,
        "po_data": task.po_data,
    }
    return fields if is_plain else plain_details(fields)


def as_csv(report: dict[str, Any]) -> str:
    """One row per task; nested values as JSON text; text that a spreadsheet would run as a formula gets a leading '."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(TASK_COLUMNS)
    for task in report["tasks"]:
        writer.writerow([_csv_cell(task[column]) for column in TASK_COLUMNS])
    return out.getvalue()


def as_yaml(report: dict[str, Any]) -> str:
    """YAML text that safe_load reads back as the same dict."""
    import yaml  # only here: every worker process imports this package

    class Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]  # libyaml where it is built in
        def ignore_aliases(self, data: Any) -> bool:
            return True

    text: str = yaml.dump(report, Dumper=Dumper, sort_keys=False, allow_unicode=True)
    return text


def iso_time(wall_time: float | None) -> str | None:
    """UTC seconds since the epoch as ISO text."""
    return None if wall_time is None else datetime.fromtimestamp(wall_time, UTC).isoformat(timespec="milliseconds")


def _csv_cell(value: Any) -> Any:
    if isinstance(value, str):
        return guard_formula(value)
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    return value


def _by_worker(tasks: list[ProcessingTask], utilization: dict[str, float]) -> dict[str, dict[str, Any]]:
    workers: dict[str, dict[str, Any]] = {
        worker_id: {"completed": 0, "failed": 0, "failed_attempts": 0, "utilization": share}
        for worker_id, share in utilization.items()
    }
    empty = {"completed": 0, "failed": 0, "failed_attempts": 0, "utilization": 0.0}
    for task in tasks:
        if task.worker_id is not None and task.status.value in ("completed", "failed"):
            workers.setdefault(task.worker_id, dict(empty))[task.status.value] += 1
        for error in task.error_history:
            if isinstance(error.get("worker_id"), str):
                workers.setdefault(error["worker_id"], dict(empty))["failed_attempts"] += 1
    return workers
