"""Tasks and results as bytes, so that the queue copies by holding on and never opens what it carries."""

import math
import pickle
from collections.abc import Collection, Iterable

from poqueue import fast_json
from poqueue.fast_json import decode
from poqueue.hints import Any, NamedTuple
from poqueue.plain import flat_json
from poqueue.task import UNOPENED, ProcessingTask, TaskRecord, TaskResult, instance

MAX_DURATION_S = 1e12


class FrozenResult(NamedTuple):
    """What the queue needs to know of a result, and the whole of it as bytes; travels in the place of a TaskResult."""

    success: bool
    processing_time: float
    error_message: str | None
    payload: bytes


def freeze(value: Any, what: str, as_json: bool = False) -> bytes:
    """Turn a value into bytes: pickled, or as JSON if anybody is to be able to read it later.

    Raises:
        ValueError: the value cannot be pickled, or would come back from JSON as another; `what` names it.
    """
    try:
        if not as_json:
            return pickle.dumps(value, 5)
        if _is_same_in_json(value) or (type(value) is tuple and all(map(_is_same_in_json, value))):
            return freeze_plain(value)
    except Exception as error:  # a value's own __reduce__ may raise anything
        done = "written as JSON" if as_json else "pickled"
        raise ValueError(f"invalid {what}: it cannot be {done} ({type(error).__name__}: {error})") from None
    raise ValueError(
        f"invalid {what}: a queue with a journal takes what JSON can hold: dicts with text keys, lists, text, finite numbers"
    )


_JSON_BEGINS = b"{["
_TEXT = frozenset({str})
_SCALARS = frozenset({str, int, bool, type(None)})


def _is_same_in_json(value: Any) -> bool:
    """Whether it comes back from JSON as what it was."""
    kind = type(value)
    if kind in _SCALARS:
        return True
    if kind is dict:
        return _TEXT.issuperset(map(type, value)) and _are_same_in_json(value.values())
    if kind is list:
        return _are_same_in_json(value)
    return kind is float and math.isfinite(value)


def _are_same_in_json(values: Collection[Any]) -> bool:
    return _SCALARS.issuperset(map(type, values)) or all(map(_is_same_in_json, values))


def thaw(blob: bytes) -> Any:
    """Give a frozen value back, a fresh copy each time."""
    return decode(blob) if blob and blob[0] in _JSON_BEGINS else pickle.loads(blob)


def is_json(blob: bytes) -> bool:
    """Which of the two forms it is in."""
    return bool(blob) and blob[0] in _JSON_BEGINS


def freeze_po(po_data: Any, as_json: bool = False) -> tuple[str, bytes]:
    """Check and freeze a PO.

    Returns:
        Its number, and its data as bytes.

    Raises:
        ValueError: it is no dict, has no usable po_number (non-blank str, or int), or cannot be frozen.
    """
    if not isinstance(po_data, dict):
        raise ValueError(f"invalid task data: po_data must be a dict, got {type(po_data).__name__}")
    number = po_data.get("po_number")
    text = number.strip() if type(number) is str else _text_of(number)
    if not text:
        raise ValueError("invalid task data: po_number is blank")
    return text, freeze(po_data, "task data", as_json)


def _text_of(number: Any) -> str:
    if type(number) is bool or not isinstance(number, str | int):
        raise ValueError(f"invalid task data: po_number must be text or a whole number, got {number!r}")
    try:
        return str(number).strip()
    except Exception as error:  # a whole number of thousands of digits, or a __str__ of its own
        raise ValueError(f"invalid task data: po_number has no text ({type(error).__name__})") from None


def po_text(number: Any) -> str | None:
    """A PO number as the queue compares it, stripped text; None if it has none, and so no task has it."""
    try:
        return str(number).strip()
    except Exception:  # as above
        return None


def freeze_plain(value: Any) -> bytes:
    """Freeze what is known to be what JSON can hold, as the others do with `as_json`."""
    return fast_json.encode_finite(value).encode("utf-8", "surrogatepass")


def freeze_result(result: Any, as_json: bool = False) -> FrozenResult:
    """Check and freeze a result, field by field: a third of the bytes of the instance. One that is frozen is only checked.

    Raises:
        ValueError: it is no TaskResult, or cannot be frozen.
    """
    if isinstance(result, TaskResult):
        fields = result.success, result.downloads, result.processing_time, result.error_message, result.data
        return _frozen(result, freeze(fields, "result", as_json))
    if type(result) is not FrozenResult:
        raise ValueError(f"invalid result: a TaskResult is needed, got {type(result).__name__}")
    if not is_duration(result.processing_time):
        raise ValueError(f"invalid result: its processing_time must be seconds, got {result.processing_time!r}")
    if type(result.payload) is not bytes:
        raise ValueError(f"invalid result: it is frozen to bytes, got {type(result.payload).__name__}")
    if as_json and not is_json(result.payload):
        raise ValueError("invalid result: a queue with a journal takes it as JSON")
    return result


def is_duration(seconds: Any) -> bool:
    """Whether it is a number of seconds that an attempt can have taken, from 0 to 30,000 years; sums of them are finite."""
    return (type(seconds) is float or isinstance(seconds, int | float)) and 0.0 <= seconds <= MAX_DURATION_S


def freeze_plain_result(result: TaskResult) -> FrozenResult:
    """Freeze a result that holds plain data only, as JSON: it may stand in a file and be read by anybody.

    Raises:
        ValueError, TypeError: it holds something else.
    """
    return _frozen(result, fast_json.encode_finite(_fields_of(result)).encode())


def freeze_success(downloads: list[Any], nanoseconds: int, data: dict[str, Any]) -> bytes:
    """The same for a success of so many nanoseconds (0 or more), without a TaskResult in between. Errors as there.

    The time reads as `nanoseconds / 1e9` seconds; to find the shortest digits of such a float takes longer than all else.
    """
    told = fast_json.encode_finite(downloads) if downloads else "[]"
    return f"[true, {told}, {nanoseconds}e-9, null, {fast_json.encode_finite(data)}]".encode()


def freeze_flat_success(nanoseconds: int, data: dict[Any, Any]) -> bytes | None:
    """The same without downloads, in half the time; None unless the data is plain already, and flat."""
    try:
        told = flat_json(data)
        return None if told is None else f"[true, [], {nanoseconds}e-9, null, {told}]".encode()
    except ValueError:  # a text that is no valid Unicode, or an int that is longer than this program allows
        return None


def refreeze(payload: bytes) -> FrozenResult:
    """The frozen result that a payload is of.

    Raises:
        ValueError, TypeError: it is not that of a plain result, which is JSON; nothing else is opened.
    """
    if payload[:1] != b"[":
        raise ValueError("no result in JSON")
    return _frozen(thaw_result(payload), payload)


def _fields_of(result: TaskResult) -> tuple[Any, ...]:
    return (result.success, result.downloads, result.processing_time, result.error_message, result.data)


def _frozen(result: TaskResult, payload: bytes) -> FrozenResult:
    seconds, message = result.processing_time, result.error_message
    if type(seconds) is not float or not 0.0 <= seconds <= MAX_DURATION_S:
        seconds = float(seconds) if is_duration(seconds) else 0.0
    if message is not None:
        message = str(message)
    return instance(FrozenResult, (bool(result.success), seconds, message, payload))


def thaw_result(blob: bytes) -> TaskResult:
    """Give a frozen result back."""
    return TaskResult(*thaw(blob))


def thaw_task(record: tuple[Any, ...]) -> ProcessingTask:
    """Open a TaskRecord, or a plain tuple of its fields: a task that shares nothing with the queue.

    Its data and result are opened when somebody looks at them.
    """
    task = ProcessingTask.__new__(ProcessingTask)
    (
        task.task_id, payload, task.priority, task.status, task.attempt, task.retry_count,
        task.max_retries, task.retry_delay, task.task_timeout, task.worker_id,
        task.created_at, task.assigned_at, task.completed_at, result, errors,
        task.interruptions, po_number, task.group,
    ) = record  # fmt: skip
    if payload:
        task._held_po_data, task._frozen_po_data = UNOPENED, [payload]
    else:
        task._held_po_data = {"po_number": po_number}
    if result is not None:
        task._held_result, task._frozen_result = UNOPENED, [result]
    else:
        task._held_result = None
    task.error_history = _copies(errors) if errors else []
    return task


def _copies(errors: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    from copy import deepcopy  # only here: most tasks have none

    return deepcopy(list(errors))


def thaw_for_report(record: TaskRecord) -> ProcessingTask:
    """Open a record; a payload, or result, that cannot be opened here is named in its place, and spoils no report."""
    try:
        task = thaw_task(record)
        _ = task.po_data, task.result
        return task
    except Exception as error:
        told = {"po_number": record.po_number, "cannot_be_opened": f"{type(error).__name__}"}
        return thaw_task(record._replace(payload=freeze(told, "report"), result=None))
