"""A history as trace events: what ui.perfetto.dev and chrome://tracing open.

A track per worker's place with an event per attempt; kills and pauses are instants, the queue's length a counter.
Times are microseconds since the run began.

Source: "Trace Event Format" (the Chromium project), JSON Object Format.
"""

import json
from collections.abc import Iterator
from typing import Any

from workers.history import Attempt, RunHistory
from workers.report_figures import queue_points, slot_order
from workers.safe_text import safe_text

PID = 1
QUEUE_TID = 0
MAX_MESSAGE_CHARS = 500
_COLOURS = {  # names that chrome://tracing knows; Perfetto chooses its own
    "completed": "good", "retry": "bad", "failed": "terrible", "interrupted": "grey", "running": "thread_state_running",
}  # fmt: skip


def as_trace(history: RunHistory) -> str:
    """The trace as JSON text."""
    document = {
        "displayTimeUnit": "ms",
        "otherData": {"run": str(history.run.get("run_dir", "")), "begun_at": str(history.run.get("begun_at", ""))},
        "traceEvents": list(trace_events(history)),
    }
    return json.dumps(document, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def trace_events(history: RunHistory) -> Iterator[dict[str, Any]]:
    """The events: names of the tracks first, then all others in the order of time."""
    began = history.began_at
    slots = sorted({attempt.slot for attempt in history.attempts}, key=slot_order)
    tids = {slot: number for number, slot in enumerate(slots, QUEUE_TID + 1)}
    yield from _names(tids)
    events = [*_attempts(history, tids, began), *_pauses(history, began), *_queue(history, began)]
    yield from sorted(events, key=lambda event: event["ts"])


def _names(tids: dict[str, int]) -> Iterator[dict[str, Any]]:
    yield _metadata("process_name", QUEUE_TID, {"name": "poqueue"})
    for name, tid in {"queue": QUEUE_TID, **tids}.items():
        yield _metadata("thread_name", tid, {"name": name})
        yield _metadata("thread_sort_index", tid, {"sort_index": tid})


def _metadata(name: str, tid: int, args: dict[str, Any]) -> dict[str, Any]:
    return {"ph": "M", "name": name, "pid": PID, "tid": tid, "ts": 0, "args": args}


def _attempts(history: RunHistory, tids: dict[str, int], began: float) -> Iterator[dict[str, Any]]:
    until = history.until
    for attempt in history.attempts:
        tid = tids[attempt.slot]
        start, end = _us(attempt.started_at, began), _us(attempt.ended_at or until, began)
        yield {
            "ph": "X", "name": safe_text(attempt.po_number), "cat": attempt.outcome, "ts": start,
            "dur": max(0, end - start), "pid": PID, "tid": tid, "cname": _COLOURS[attempt.outcome], "args": _args(attempt),
        }  # fmt: skip
        if attempt.is_kill:
            args = {"po_number": safe_text(attempt.po_number), "attempt": attempt.attempt}
            yield {
                "ph": "i", "name": f"kill: {safe_text(attempt.error_type)}", "cat": "kill", "ts": end, "pid": PID,
                "tid": tid, "s": "t", "args": args,
            }  # fmt: skip


def _args(attempt: Attempt) -> dict[str, Any]:
    args: dict[str, Any] = {
        "task_id": attempt.task_id, "attempt": attempt.attempt, "worker_id": attempt.worker_id,
        "outcome": attempt.outcome, "seconds": round(attempt.seconds, 6),
    }  # fmt: skip
    if attempt.error_type or attempt.message:
        args["error_type"] = safe_text(attempt.error_type)
        args["message"] = safe_text(attempt.message, MAX_MESSAGE_CHARS)
    return args


def _pauses(history: RunHistory, began: float) -> Iterator[dict[str, Any]]:
    for pause in history.pauses:
        args = {"reason": safe_text(pause.reason, MAX_MESSAGE_CHARS)}
        yield _pause("paused", pause.began_at, began, args)
        if pause.ended_at is not None:
            yield _pause("resumed", pause.ended_at, began, args)


def _pause(name: str, at: float, began: float, args: dict[str, Any]) -> dict[str, Any]:
    ts = _us(at, began)
    return {"ph": "i", "name": name, "cat": "pause", "ts": ts, "pid": PID, "tid": QUEUE_TID, "s": "g", "args": args}


def _queue(history: RunHistory, began: float) -> Iterator[dict[str, Any]]:
    for point in queue_points(history):
        args = {"waiting": point.waiting, "running": point.running}
        yield {"ph": "C", "name": "POs", "ts": _us(point.at, began), "pid": PID, "tid": QUEUE_TID, "args": args}


def _us(at: float, began: float) -> int:
    """Microseconds since the beginning; what lies before it (POs were added) counts as the beginning."""
    return max(0, round((at - began) * 1e6))
