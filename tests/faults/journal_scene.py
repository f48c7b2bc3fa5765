"""The stage of the journal's tests: queues on a clock that stands, all that one of them knows, and what a crash leaves of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

from poqueue import ProcessingTask, TaskQueue, TaskResult, TaskStatus, failpoint
from poqueue.entry import Entry
from poqueue.payload import freeze_result
from poqueue.schedule import Schedule
from poqueue.task import Report
from tests.contract.scene import Clock, success

S = TaskStatus
RETRY_DELAY_S = 8.0
CAP_S = 32.0
MAX_RETRIES = 2


def open_queue(path: Path | None, clock: Clock, **options: Any) -> TaskQueue:
    settings = {"max_retries": MAX_RETRIES, "retry_delay": RETRY_DELAY_S, "max_retry_delay": CAP_S, **options}
    return TaskQueue(journal=path, clock=clock, wall_clock=clock.wall, **settings)


def task(task_id: str, po_number: str = "", **fields: Any) -> ProcessingTask:
    return ProcessingTask(task_id, {"po_number": po_number or f"PO-{task_id}", "lines": [1, 2.5, "Ł"]}, **fields)


def told(task_id: str, token: int, result: TaskResult | None = None, **fields: Any) -> Report:
    """A worker's report."""
    frozen = freeze_result(result, as_json=True) if result is not None else None
    return Report(task_id, token, fields.pop("processing_time", 0.5), frozen, **fields)


def token_of(queue: TaskQueue, task_id: str) -> int:
    return next(token for token, record in queue.get_leases().items() if record.task_id == task_id)


# ── what a queue knows ───────────────────────────────────────────────────────────────────────────────────────────────


def entries(queue: TaskQueue) -> list[Entry]:
    return list(queue._ledger.tasks())


def snapshot(queue: TaskQueue) -> dict[str, Any]:
    """All that has to survive: every field of every task, in what order they are served, sums, settings, pause."""
    shown = {
        "tasks": {entry.task_id: _fields(entry) for entry in entries(queue)},
        "order": _service_order(queue._schedule, queue._clock()),
        "delayed": sorted((entry.ready, entry.rank) for entry in queue._ledger.of_status(S.RETRY_PENDING)),
        "tally": queue._ledger.tally(),
        "finished": [record.task_id for record in queue.get_finished()[0]],
        "paused": queue._is_paused,
        "config": queue._config.as_dict(),
        "last": (queue._ledger.last_rank, queue._ledger.last_token),
        "metrics": {
            **queue.get_performance_metrics(),
            "worker_utilization": {},
        },  # how long a worker stayed is not known,
        "busy_s": {
            name: one.busy_s for name, one in (queue._metrics._gone | queue._metrics._workers).items()
        },  # how long it worked is
        "errors": queue.get_error_summary(),
        "workers": {worker: sorted(tasks) for worker, tasks in queue._ledger._by_worker.items()},
    }
    return deepcopy(shown)


def whole_state(queue: TaskQueue) -> dict[str, Any]:
    """Beside that, all that lives in memory only: a refusal changes none of it."""
    return {
        **snapshot(queue),
        "status": {**queue.get_queue_status(), "status": "", "reason": "", "estimated_completion": None},
        "turns": dict(queue._turns),
        "retired": set(queue._retired),
        "next start": queue._next_start,
        "news": (queue._empty_is_news, queue._full_was_told, queue._is_draining),
        "halt": dict(queue._halt._counts),
        "events": queue._feed.last,
    }


def _fields(entry: Entry) -> dict[str, Any]:
    return {name: getattr(entry, name) for name in Entry.__slots__}


def _service_order(schedule: Schedule, now: float) -> list[int]:
    """The ranks of what may be leased now, one after the other."""
    rehearsed = deepcopy(schedule)
    ranks = []
    while taken := rehearsed.take(now):
        ranks += taken
    return ranks


def assert_legal(queue: TaskQueue) -> None:
    """The invariants of a state, whatever led to it: 1 to 4, 7, 8 and 14 of the table in the design."""
    known = entries(queue)
    counts = {status: sum(entry.status is status for entry in known) for status in S}
    tally = queue._ledger.tally()
    assert counts == tally.counts
    assert sum(counts.values()) + tally.cleared == tally.added
    assert len({entry.task_id for entry in known}) == len(known)
    for status in S:
        assert {entry.task_id for entry in queue._ledger.of_status(status)} == {
            entry.task_id for entry in known if entry.status is status
        }
    running = [entry for entry in known if entry.status is S.PROCESSING]
    tokens = [entry.token for entry in running]
    assert len(set(tokens)) == len(tokens)
    assert all(0 < token <= queue._ledger.last_token for token in tokens)
    assert len({entry.po_number for entry in running}) == len(running)
    for entry in known:
        _assert_legal_task(entry)


def _assert_legal_task(entry: Entry) -> None:
    errors = entry.error_history or []
    ended_badly = {error["attempt"] for error in errors} - {0}
    works_or_worked = entry.status in (S.PROCESSING, S.COMPLETED)
    assert entry.attempt == len(ended_badly) + works_or_worked, f"{entry.task_id}: {errors}"
    assert (entry.status is S.FAILED) <= bool(errors)
    assert (entry.status is S.PROCESSING) <= bool(entry.worker_id and entry.token)
    assert (entry.result is not None) <= (entry.status in (S.COMPLETED, S.FAILED))
    assert (entry.completed_at is not None) == (entry.status in (S.COMPLETED, S.FAILED))
    assert 0 <= entry.crashes <= entry.interruptions


# ── what a crash leaves ──────────────────────────────────────────────────────────────────────────────────────────────


def left_by_a_crash(path: Path, folder: Path) -> Path:
    """The files as they are at this moment, as the kill of their owner would leave them."""
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / path.name
    shutil.copyfile(path, copy)
    wal = Path(f"{path}-wal")
    if wal.exists():
        shutil.copyfile(wal, f"{copy}-wal")
    return copy


def after_a_crash(queue: TaskQueue, folder: Path, clock: Clock, **options: Any) -> TaskQueue:
    """A queue on what this one's crash would leave now."""
    assert queue._journal is not None
    return open_queue(left_by_a_crash(queue._journal.path, folder), clock, **options)


@contextmanager
def closing(queue: TaskQueue) -> Iterator[TaskQueue]:
    try:
        yield queue
    finally:
        queue.close_queue()


@contextmanager
def faults_at(place: str, error: int = 28) -> Iterator[list[str]]:
    """Every write raises there; gives the places that were reached."""
    reached: list[str] = []
    real = failpoint.hit

    def hit(name: str) -> None:
        reached.append(name)
        if name == place:
            raise OSError(error, os.strerror(error))

    failpoint.hit = hit
    try:
        yield reached
    finally:
        failpoint.hit = real


# ── every method that changes a queue ────────────────────────────────────────────────────────────────────────────────


def filled(queue: TaskQueue, clock: Clock) -> TaskQueue:
    """A queue with tasks in every state.

    Done has ended well, Lost and Beaten badly; Late waits for its retry; w1 has One; w2 has Two, Three and Four; First and
    Second are pending, and Twin, which has the PO number of One.
    """
    add, lease = queue.add_task, queue.get_next_task
    for name in ("Done", "Lost", "Beaten", "Late"):
        add(task(name, max_retries=0 if name == "Beaten" else None), 1)
        lease("w0")
        clock.advance(1.0)
        if name == "Done":
            queue.complete_task(name, "w0", success(0.5))
        elif name == "Lost":
            queue.complete_task(name, "w0", TaskResult(False, ["a"], 0.25, "no", {"why": [None]}))
        else:
            queue.retry_task(name, {"error_type": "Boom", "error": f"{name} broke", "worker_id": "w0"})
    queue.add_tasks([task(name) for name in ("One", "Two", "Three", "Four")], 2)
    lease("w1")
    queue.exchange("w2", limit=3, turn=1)
    queue.add_tasks([task("First"), task("Second"), task("Twin", "PO-One")], 3)
    clock.advance(1.0)
    return queue


def crash_while_it_runs(queue: TaskQueue, task_id: str, times: int = 1) -> None:
    """The run crashes while this task is in hand, which has to be the next one; and it is leased again."""
    for _ in range(times):
        assert queue.interrupt_leases([token_of(queue, task_id)], "killed", is_crash=True) == 1
        leased = queue.get_next_task("w1")
        assert leased is not None and leased.task_id == task_id


def _report_and_lease(queue: TaskQueue) -> Any:
    reports = [
        told("Two", token_of(queue, "Two"), success(0.25)),
        told("Three", token_of(queue, "Three"), error={"error_type": "Boom", "message": "broke"}, retry_after_s=4.0),
    ]
    return queue.exchange("w2", reports, limit=2, turn=2)


def _give_up(queue: TaskQueue) -> Any:
    error = {"error_type": "Boom", "message": "never"}
    return queue.exchange("w1", [told("One", token_of(queue, "One"), error=error, give_up=True)], limit=0)


Operation = Callable[[TaskQueue], Any]
OPERATIONS: dict[str, Operation] = {
    "add_task": lambda q: q.add_task(task("New"), 1),
    "add_tasks": lambda q: q.add_tasks([task("New", max_retries=7, retry_delay=1.5, task_timeout=9.0), task("Newer")]),
    "get_next_task": lambda q: q.get_next_task("w3"),
    "complete_task, well": lambda q: q.complete_task("One", "w1", success(0.5)),
    "complete_task, well, of unknown duration": lambda q: q.complete_task("One", "w1", success()),
    "complete_task, badly": lambda q: q.complete_task("One", "w1", TaskResult(False, [], 0.0, "no")),
    "retry_task, granted": lambda q: q.retry_task("One", {"error_type": "Timeout", "error": "slow", "worker_id": "w1"}),
    "retry_task, of one that failed": lambda q: q.retry_task("Lost", {"error": "again"}),
    "exchange, a lease": lambda q: q.exchange("w3", limit=2),
    "exchange, reports and a lease": _report_and_lease,
    "exchange, never again": _give_up,
    "exchange, nothing in hand": lambda q: q.exchange("w2", limit=0, turn=2),
    "release_worker": lambda q: q.release_worker("w2"),
    "take_back": lambda q: q.take_back("w2", but=token_of(q, "Two")),
    "interrupt_leases": lambda q: q.interrupt_leases([token_of(q, "One")], "stop", is_crash=False, all_others=True),
    "interrupt_leases, poison": lambda q: q.interrupt_leases([token_of(q, "One")], "killed", is_crash=True),
    "requeue_failed": lambda q: q.requeue_failed(),
    "requeue_failed, one": lambda q: q.requeue_failed(["Beaten"]),
    "drop_tasks": lambda q: q.drop_tasks(["First", "Lost", "Late", "First", "nobody"]),
    "cancel_task": lambda q: q.cancel_task("Late"),
    "pause_queue": lambda q: q.pause_queue(),
    "resume_queue": lambda q: q.resume_queue(),
    "clear_queue": lambda q: q.clear_queue(),
    "clear_queue, running ones too": lambda q: q.clear_queue(False),
    "update_configuration": lambda q: q.update_configuration(1, 3.0, 77.0, 500),
    "reconfigure_tasks": lambda q: q.reconfigure_tasks(max_retries=5, retry_delay=2.0, task_timeout=60.0),
}
PREPARATIONS: dict[str, Operation] = {
    "resume_queue": lambda q: q.pause_queue(),
    "interrupt_leases, poison": lambda q: crash_while_it_runs(q, "One", 3),
}


def prepared(name: str, path: Path | None, clock: Clock) -> TaskQueue:
    """A queue before an operation."""
    queue = filled(open_queue(path, clock), clock)
    PREPARATIONS.get(name, lambda q: None)(queue)
    return queue
