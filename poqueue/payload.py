"""Tasks and results as bytes, so that the queue copies by holding on and never opens what it carries."""

import json
import math
import pickle
from copy import deepcopy
from typing import Any, NamedTuple

from poqueue.task import ProcessingTask, TaskRecord, TaskResult


class FrozenPo(NamedTuple):
    """A PO's number, and its data as bytes; travels in the place of po_data."""

    po_number: str
    payload: bytes


class FrozenResult(NamedTuple):
    """What the queue needs to know of a result, and the whole of it as bytes; travels in the place of a TaskResult."""

    success: bool
    processing_time: float
    error_message: str | None
    payload: bytes


def freeze(value: Any, what: str) -> bytes:
    """Turn a value into bytes.

    Raises:
        ValueError: the value cannot be pickled; `what` names it.
    """
    try:
        return pickle.dumps(value, 5)
    except Exception as error:  # a value's own __reduce__ may raise anything
        raise ValueError(f"invalid {what}: it cannot be pickled ({type(error).__name__}: {error})") from None


def thaw(blob: bytes) -> Any:
    """Give a frozen value back, a fresh copy each time."""
    return pickle.loads(blob)


def freeze_po(po_data: Any) -> FrozenPo:
    """Check and freeze a PO.

    Raises:
        ValueError: it is no dict, has no usable po_number (non-blank str, or int), or cannot be pickled.
    """
    if type(po_data) is FrozenPo:
        return po_data
    if not isinstance(po_data, dict):
        raise ValueError(f"invalid task data: po_data must be a dict, got {type(po_data).__name__}")
    number = po_data.get("po_number")
    if type(number) is bool or not isinstance(number, str | int):
        raise ValueError(f"invalid task data: po_number must be text or a whole number, got {number!r}")
    text = str(number).strip()
    if not text:
        raise ValueError("invalid task data: po_number is blank")
    return FrozenPo(text, freeze(po_data, "task data"))


def freeze_result(result: Any) -> FrozenResult:
    """Check and freeze a result, field by field: a third of the bytes of the instance.

    Raises:
        ValueError: it is no TaskResult, or cannot be pickled.
    """
    if type(result) is FrozenResult:
        return result
    if not isinstance(result, TaskResult):
        raise ValueError(f"invalid result: a TaskResult is needed, got {type(result).__name__}")
    return _frozen(result, freeze(_fields_of(result), "result"))


def freeze_plain_result(result: TaskResult) -> FrozenResult:
    """Freeze a result that holds plain data only, as JSON: it may stand in a file and be read by anybody.

    Raises:
        ValueError, TypeError: it holds something else.
    """
    return _frozen(result, json.dumps(_fields_of(result), allow_nan=False, ensure_ascii=False).encode())


def _fields_of(result: TaskResult) -> tuple[Any, ...]:
    return (result.success, result.downloads, result.processing_time, result.error_message, result.data)


def _frozen(result: TaskResult, payload: bytes) -> FrozenResult:
    seconds = result.processing_time
    is_number = isinstance(seconds, int | float) and math.isfinite(seconds) and seconds > 0
    message = None if result.error_message is None else str(result.error_message)
    return FrozenResult(bool(result.success), float(seconds) if is_number else 0.0, message, payload)


def thaw_result(blob: bytes) -> TaskResult:
    """Give a frozen result back."""
    return TaskResult(*(json.loads(blob) if blob.startswith(b"[") else thaw(blob)))


def thaw_task(record: TaskRecord) -> ProcessingTask:
    """Open a record: a task that shares nothing with the queue."""
    fields: list[Any] = list(record)[:-1]  # but for the PO number, which is in the payload
    fields[1] = thaw(record.payload)
    fields[13] = thaw_result(record.result) if record.result is not None else None
    fields[14] = deepcopy(record.error_history) if record.error_history else []
    return ProcessingTask(*fields)


def thaw_for_report(record: TaskRecord) -> ProcessingTask:
    """Open a record; a payload that cannot be opened here is named in its place, and spoils no report."""
    try:
        return thaw_task(record)
    except Exception as error:
        told = {"po_number": record.po_number, "cannot_be_opened": f"{type(error).__name__}"}
        return thaw_task(record._replace(payload=freeze(told, "report"), result=None))
