"""What callers give, checked before anything is changed. All of it raises ValueError, and says what is wrong."""

import math
from collections.abc import Sequence

from poqueue.config import QueueConfig, check_max_retries, check_seconds, check_timeout, check_whole
from poqueue.entry import NewTask
from poqueue.hints import Any
from poqueue.ids import ids
from poqueue.packing import FrozenTask
from poqueue.payload import freeze_po, is_duration, is_json
from poqueue.task import DEFAULT_PRIORITY, ProcessingTask, Report

_WHOLE = frozenset({int})
_FROZEN = frozenset({FrozenTask, tuple})  # a plain one comes from a client


def admit(task: Any, priority: int, config: QueueConfig, needs_json: bool) -> NewTask:
    """A ProcessingTask, or FrozenTask, as the queue takes it, with the settings that it does not bring itself."""
    if type(task) in _FROZEN and len(task) == 8:
        task_id, po_number, payload, own_priority, retries, delay, timeout, group = task
        _check_frozen(po_number, payload, needs_json)
    elif isinstance(task, ProcessingTask):
        po_number, payload = freeze_po(task.po_data, needs_json)
        task_id, own_priority, group = task.task_id, task.priority, task.group
        retries, delay, timeout = task.max_retries, task.retry_delay, task.task_timeout
    else:
        raise ValueError(f"invalid task: a ProcessingTask is needed, got {type(task).__name__}")
    if type(group) is not str and not isinstance(group, str):
        raise ValueError(f"invalid task: group must be text, got {group!r}")
    if type(task_id) is not str and not isinstance(task_id, str):
        raise ValueError(f"invalid task: task_id must be text, got {task_id!r}")
    if type(priority) is not int or not 1 <= priority <= 10:
        check_whole(priority, "priority", minimum=1, maximum=10)
    if priority == DEFAULT_PRIORITY:
        priority = own_priority
        if type(priority) is not int or not 1 <= priority <= 10:
            check_whole(priority, "priority", minimum=1, maximum=10)
    if retries is None:
        retries = config.max_retries
    else:
        check_max_retries(retries)
    if delay is None:
        delay = config.retry_delay
    else:
        check_seconds(delay, "retry delay (retry_delay)", minimum=0.0)
    if timeout is None:
        timeout = config.task_timeout
    else:
        check_timeout(timeout)
    return task_id or ids.new(), po_number, payload, priority, retries, delay, timeout, group


def _check_frozen(po_number: Any, payload: Any, needs_json: bool) -> None:
    if type(payload) is not bytes:
        raise ValueError(f"invalid task data: it is frozen to bytes, got {type(payload).__name__}")
    if needs_json and not is_json(payload):
        raise ValueError("invalid task data: a queue with a journal takes it as JSON")
    if not isinstance(po_number, str) or not po_number.strip():
        raise ValueError(f"invalid task: po_number must be non-blank text, got {po_number!r}")


def check_exchange(reports: Any, limit: Any, wait_s: Any, turn: Any) -> None:
    """The plain arguments of an exchange."""
    if type(limit) is not int or limit < 0:
        check_whole(limit, "limit of leases (limit)", minimum=0)
    if type(turn) is not int or turn < 0:
        check_whole(turn, "turn", minimum=0)
    if type(wait_s) is not float or not 0.0 <= wait_s < math.inf:
        check_seconds(wait_s, "time to wait (wait_s)", minimum=0.0, maximum=math.inf)
    if type(reports) is not list and not isinstance(reports, Sequence):
        raise ValueError(f"invalid reports: a sequence is needed, got {type(reports).__name__}")


def check_report(report: Any) -> None:
    """A Report or a Success, and what tells whose it is."""
    is_known = isinstance(report, Report) or (isinstance(report, tuple) and len(report) == 4)
    if not is_known or not isinstance(report[0], str) or type(report[1]) is not int:
        raise ValueError(
            "invalid report: a Report or a Success is needed, its task_id text and its token a whole number, "
            f"got a {type(report).__name__}"
        )


def tokens_of(keeps: Any) -> frozenset[int]:
    """Lease tokens, as a set."""
    try:
        tokens = frozenset(keeps)
    except TypeError:
        raise ValueError(f"invalid keeps: a collection of tokens is needed, got {type(keeps).__name__}") from None
    if tokens and not _WHOLE.issuperset(map(type, tokens)):
        raise ValueError("invalid keeps: tokens are whole numbers")
    return tokens


def check_worker_id(worker_id: Any) -> None:
    """Who asks."""
    if not isinstance(worker_id, str) or not worker_id.strip():
        raise ValueError(f"worker_id must be a non-blank text, got {worker_id!r}")


def check_attempt_seconds(token: int, seconds: float) -> None:
    """How long an attempt took, by a worker's report."""
    if not is_duration(seconds):
        raise ValueError(
            f"invalid report on lease {token}: its seconds must be a finite number from 0, got {seconds!r}"
        )


def check_result(token: int, payload: bytes, needs_json: bool) -> None:
    """A frozen result, by a worker's report."""
    if type(payload) is not bytes:
        raise ValueError(f"invalid report on lease {token}: its result must be bytes, got {type(payload).__name__}")
    if needs_json and not is_json(payload):
        raise ValueError(f"invalid report on lease {token}: a queue with a journal takes its result as JSON")
