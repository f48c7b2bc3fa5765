"""Event handlers: when they are called, with what, and that they can do no harm."""

from __future__ import annotations

import logging
import threading
from contextlib import AbstractContextManager
from typing import Any

import pytest

from poqueue import ProcessingTask, TaskQueue, TaskResult, TaskStatus, events
from poqueue.service import QueueService
from tests.contract.conftest import MakeQueue
from tests.contract.scene import (
    DEADLINE_S,
    Clock,
    Recorder,
    counts,
    fail,
    find,
    finish,
    give_back,
    lease,
    leased_id,
    success,
    task,
    wait_until,
)


def add(queue: TaskQueue, *task_ids: str) -> None:
    for task_id in task_ids:
        queue.add_task(task(f"PO-{task_id}", task_id))


@pytest.mark.contract("R21")
def test_events_come_in_the_order_of_what_happened(queue: TaskQueue) -> None:
    recorder = Recorder(queue)
    add(queue, "a", "b", "c", "d")
    finish(queue)
    fail(queue, error="first line\nsecond line")
    finish(queue)
    finish(queue)

    assert recorder.until("empty") == [
        ("complete", "a"),
        ("failed", "b", "first line\nsecond line"),
        ("complete", "c"),
        ("complete", "d"),
        ("empty",),
    ]


@pytest.mark.contract("R21")
def test_many_events_keep_their_order(queue: TaskQueue) -> None:
    recorder = Recorder(queue)
    add(queue, *(str(number) for number in range(300)))
    for _ in range(300):
        finish(queue)

    assert recorder.until("empty")[:-1] == [("complete", str(number)) for number in range(300)]


@pytest.mark.contract("R21")
def test_of_events_that_nobody_delivers_only_so_many_are_kept_and_the_others_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(events, "MAX_UNDELIVERED", 3)
    queue, heard = TaskQueue(), list[str]()

    def on_complete(done: ProcessingTask) -> None:
        heard.append(done.task_id)
        if done.task_id == "a":
            for _ in range(5):
                finish(queue)

    queue.set_event_handlers(on_task_complete=on_complete)
    add(queue, *"abcdef")

    finish(queue)

    assert heard == list("abcd")
    assert queue.get_performance_metrics()["events_dropped"] == 2


@pytest.mark.contract("R21")
def test_what_a_handler_that_is_interrupted_leaves_is_delivered_with_the_next_step() -> None:
    queue, heard = TaskQueue(), list[str]()

    def on_complete(done: ProcessingTask) -> None:
        heard.append(done.task_id)
        if done.task_id == "a":
            finish(queue)
            raise KeyboardInterrupt

    queue.set_event_handlers(on_task_complete=on_complete)
    add(queue, "a", "b")
    with pytest.raises(KeyboardInterrupt):
        finish(queue)

    add(queue, "c")

    assert heard == ["a", "b"]


@pytest.mark.contract("R21")
def test_an_interrupt_before_any_handler_is_called_leaves_them_to_the_next_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queue, heard = TaskQueue(), list[str]()

    class Interrupted(AbstractContextManager[None]):
        def __exit__(self, *raised: object) -> None:
            raise KeyboardInterrupt

    queue.set_event_handlers(on_task_complete=lambda done: heard.append(done.task_id))
    add(queue, "a", "b")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(queue._delivery, "_claiming", Interrupted())
        finish(queue)

    finish(queue)

    assert heard == ["a", "b"]


@pytest.mark.contract("R21")
def test_a_handler_gets_the_task_as_it_then_is(queue: TaskQueue) -> None:
    given: list[ProcessingTask] = []
    queue.set_event_handlers(on_task_complete=given.append, on_task_failed=lambda task, error: given.append(task))
    add(queue, "good", "bad")
    finish(queue)
    fail(queue)

    wait_until(lambda: len(given) == 2)

    assert given == [find(queue, "good"), find(queue, "bad")]
    assert [each.status for each in given] == [TaskStatus.COMPLETED, TaskStatus.FAILED]


@pytest.mark.contract("R21", "R26")
def test_a_handler_gets_the_task_as_it_was_whatever_has_become_of_it_since(queue: TaskQueue) -> None:
    given: list[ProcessingTask] = []
    is_busy, may_go_on = threading.Event(), threading.Event()

    def take_long(failed: ProcessingTask, error: str) -> None:
        is_busy.set()
        may_go_on.wait(DEADLINE_S)
        given.append(failed)

    queue.set_event_handlers(on_task_failed=take_long)
    add(queue, "a", "b")
    failing = threading.Thread(target=fail, args=(queue,), daemon=True)
    failing.start()
    assert is_busy.wait(DEADLINE_S)
    fail(queue, "w2", "no such PO")
    failed = find(queue, "b")
    queue.retry_task("b", {"error": "again, please"})
    may_go_on.set()
    failing.join(DEADLINE_S)

    wait_until(lambda: len(given) == 2)
    assert given[1] == failed
    assert failed.status is TaskStatus.FAILED


@pytest.mark.contract("R21")
def test_the_state_has_changed_when_a_handler_is_called(queue: TaskQueue) -> None:
    seen: list[Any] = []

    def look(done: ProcessingTask) -> None:
        seen.append((find(queue, done.task_id).status, counts(queue, "completed_tasks", "processing_tasks")))

    queue.set_event_handlers(on_task_complete=look)
    add(queue, "a")
    finish(queue)

    wait_until(lambda: len(seen) == 1)
    assert seen == [(TaskStatus.COMPLETED, (1, 0))]


@pytest.mark.contract("R21")
def test_a_handler_may_use_the_queue_itself(queue: TaskQueue) -> None:
    errors: list[BaseException] = []

    def follow_up(done: ProcessingTask) -> None:
        try:
            if done.task_id == "a":
                queue.add_task(task("PO-b", "b"))
                finish(queue, "w2")
        except BaseException as error:
            errors.append(error)

    queue.set_event_handlers(on_task_complete=follow_up)
    add(queue, "a")
    finish(queue)

    wait_until(lambda: bool(errors) or counts(queue, "completed_tasks") == (2,), f"follow-up {errors}")
    assert errors == []


@pytest.mark.contract("R21")
@pytest.mark.parametrize("event", ["complete", "failed", "empty", "full"])
def test_no_handler_is_called_under_the_lock(make_queue: MakeQueue, event: str) -> None:
    queue = make_queue(queue_size_limit=1)
    answers: list[int] = []

    def ask_from_another_thread(*_: Any) -> None:
        asking = threading.Thread(target=lambda: answers.append(counts(queue, "total_tasks")[0]), daemon=True)
        asking.start()
        asking.join(2)
        answers.append(-1)

    name = {"complete": "on_task_complete", "failed": "on_task_failed"}.get(event, f"on_queue_{event}")
    queue.set_event_handlers(**{name: ask_from_another_thread})
    add(queue, "a")
    with pytest.raises(Exception, match=r"full|limit"):
        add(queue, "b")
    (fail if event == "failed" else finish)(queue)

    wait_until(lambda: -1 in answers)
    assert answers == [1, -1]


@pytest.mark.contract("R21")
@pytest.mark.parametrize("ends_it", ["release_worker", "take_back"])
def test_no_handler_is_called_under_the_lock_for_a_cancelled_task_that_was_never_begun(
    make_queue: MakeQueue, ends_it: str
) -> None:
    queue = make_queue()
    answers: list[int] = []

    def ask_from_another_thread(*_: Any) -> None:
        asking = threading.Thread(target=lambda: answers.append(counts(queue, "failed_tasks")[0]), daemon=True)
        asking.start()
        asking.join(2)
        answers.append(-1)

    queue.set_event_handlers(on_task_failed=ask_from_another_thread)
    add(queue, "a")
    lease(queue, "w1")
    assert queue.cancel_task("a") == "stopping"

    assert getattr(queue, ends_it)("w1") == []

    wait_until(lambda: -1 in answers)
    assert answers == [1, -1]


@pytest.mark.contract("R21")
@pytest.mark.parametrize("kind", [RuntimeError, SystemExit])
def test_what_a_handler_raises_is_logged_and_felt_by_nobody(
    queue: TaskQueue, caplog: pytest.LogCaptureFixture, kind: type[BaseException]
) -> None:
    completed: list[str] = []

    def stumble(done: ProcessingTask) -> None:
        completed.append(done.task_id)
        raise kind("the handler stumbled")

    queue.set_event_handlers(on_task_complete=stumble)
    add(queue, "a", "b")
    with caplog.at_level(logging.WARNING):
        finish(queue)
        finish(queue)
        wait_until(lambda: completed == ["a", "b"])
        wait_until(lambda: "the handler stumbled" in caplog.text, "a log record")

    assert counts(queue, "completed_tasks", "total_tasks") == (2, 2)


@pytest.mark.contract("R21")
def test_a_handler_that_raises_does_not_keep_the_others_from_being_called(queue: TaskQueue) -> None:
    emptied = threading.Event()
    queue.set_event_handlers(on_task_complete=lambda _: 1 / 0, on_queue_empty=emptied.set)
    add(queue, "a")
    finish(queue)

    assert emptied.wait(DEADLINE_S)


@pytest.mark.contract("R21")
def test_an_omitted_argument_leaves_the_handler_as_it_is(queue: TaskQueue) -> None:
    recorder = Recorder(queue)
    queue.set_event_handlers()
    queue.set_event_handlers(on_queue_full=lambda: None)
    add(queue, "a", "b")
    finish(queue)
    fail(queue)

    assert recorder.until("empty") == [("complete", "a"), ("failed", "b", "boom"), ("empty",)]


@pytest.mark.contract("R21")
def test_none_unsets_one_handler(queue: TaskQueue) -> None:
    recorder = Recorder(queue)
    queue.set_event_handlers(on_task_complete=None)
    add(queue, "a", "b")
    finish(queue)
    fail(queue)

    assert recorder.until("empty") == [("failed", "b", "boom"), ("empty",)]


@pytest.mark.contract("R21")
def test_a_new_handler_takes_the_place_of_the_old_one(queue: TaskQueue) -> None:
    old, new = [], threading.Event()
    queue.set_event_handlers(on_queue_empty=lambda: old.append("old"))
    queue.set_event_handlers(on_queue_empty=new.set)
    add(queue, "a")
    finish(queue)

    assert new.wait(DEADLINE_S)
    assert old == []


@pytest.mark.contract("R21")
@pytest.mark.parametrize(
    "handlers",
    [
        {"on_task_complete": "log"},
        {"on_task_failed": None, "on_task_complete": 7},
        {"on_task_complete": [], "on_task_failed": None},
    ],
    ids=["alone", "last", "first"],
)
def test_what_cannot_be_called_is_refused_and_all_handlers_stay(queue: TaskQueue, handlers: dict[str, Any]) -> None:
    recorder = Recorder(queue)

    with pytest.raises(ValueError, match="on_task_complete"):
        queue.set_event_handlers(**handlers)

    add(queue, "a", "b")
    finish(queue)
    fail(queue)
    assert recorder.until("empty") == [("complete", "a"), ("failed", "b", "boom"), ("empty",)]


@pytest.mark.contract("R21", "R26")
def test_what_a_handler_does_to_its_task_never_changes_the_queue(queue: TaskQueue) -> None:
    spoiled = threading.Event()

    def spoil(done: ProcessingTask) -> None:
        done.status = TaskStatus.PENDING
        done.po_data["po_number"] = "spoiled"
        done.error_history.append({"error": "spoiled"})
        spoiled.set()

    queue.set_event_handlers(on_task_complete=spoil)
    add(queue, "a")
    finish(queue)

    assert spoiled.wait(DEADLINE_S)
    kept = find(queue, "a")
    assert (kept.status, kept.po_data, kept.error_history) == (TaskStatus.COMPLETED, {"po_number": "PO-a"}, [])


@pytest.mark.contract("R20")
def test_on_queue_empty_fires_once_per_draining(queue: TaskQueue) -> None:
    recorder = Recorder(queue)
    add(queue, "a")
    finish(queue)
    for worker_id in ("w1", "w2", "w1"):
        assert queue.get_next_task(worker_id) is None
    add(queue, "b")
    finish(queue)

    recorder.until("complete", "b")
    wait_until(lambda: len(recorder.events) >= 4)
    assert recorder.events == [("complete", "a"), ("empty",), ("complete", "b"), ("empty",)]


@pytest.mark.contract("R20")
def test_on_queue_empty_does_not_fire_while_something_runs_or_waits(queue: TaskQueue, clock: Clock) -> None:
    recorder = Recorder(queue)
    add(queue, "a", "b", "c")
    lease(queue, "w1")
    finish(queue, "w2")
    give_back(queue, "w3")
    queue.complete_task("a", "w1", success())
    clock.advance(5)
    finish(queue)

    assert recorder.until("empty") == [("complete", "b"), ("complete", "a"), ("complete", "c"), ("empty",)]


@pytest.mark.contract("R20")
def test_on_queue_empty_never_fires_on_a_fresh_queue(queue: TaskQueue) -> None:
    recorder = Recorder(queue)
    assert queue.get_next_task("w1") is None
    queue.clear_queue()
    queue.pause_queue()
    queue.resume_queue()
    add(queue, "a")
    finish(queue)

    recorder.until("empty")
    assert recorder.events == [("complete", "a"), ("empty",)]


@pytest.mark.contract("R20", "R3")
def test_a_retry_of_a_failed_task_arms_on_queue_empty_again(queue: TaskQueue, clock: Clock) -> None:
    recorder = Recorder(queue)
    add(queue, "a")
    fail(queue)
    queue.retry_task("a", {"error": "again, please"})
    clock.advance(5)
    finish(queue)

    recorder.until("complete", "a")
    wait_until(lambda: len(recorder.events) >= 4)
    assert recorder.events == [("failed", "a", "boom"), ("empty",), ("complete", "a"), ("empty",)]


@pytest.mark.contract("R20", "R16")
@pytest.mark.parametrize("preserve_processing", [True, False])
def test_clearing_drains_the_queue_too(queue: TaskQueue, preserve_processing: bool) -> None:
    recorder = Recorder(queue)
    add(queue, "a", "b")
    lease(queue)

    queue.clear_queue(preserve_processing)
    if preserve_processing:
        queue.complete_task("a", "w1", success())

    recorder.until("empty")
    add(queue, "c")
    finish(queue)
    recorder.until("complete", "c")
    wait_until(lambda: recorder.events.count(("empty",)) >= 2)
    first = [("complete", "a")] if preserve_processing else []
    assert recorder.events == [*first, ("empty",), ("complete", "c"), ("empty",)]


@pytest.mark.contract("R20")
def test_on_queue_empty_comes_after_the_last_failure(make_queue: MakeQueue) -> None:
    queue = make_queue(max_retries=0)
    recorder = Recorder(queue)
    add(queue, "a")
    lease(queue)
    queue.retry_task("a", {"error_type": "TimeoutError", "error": "killed"})

    events = recorder.until("empty")
    assert [each[:2] for each in events] == [("failed", "a"), ("empty",)]
    assert "killed" in events[0][2]


@pytest.mark.contract("R21")
def test_a_granted_retry_fires_no_failure(queue: TaskQueue, clock: Clock) -> None:
    recorder = Recorder(queue)
    add(queue, "a")
    give_back(queue)
    clock.advance(5)
    assert leased_id(queue) == "a"
    queue.complete_task("a", "w1", success())

    assert recorder.until("empty") == [("complete", "a"), ("empty",)]


@pytest.mark.contract("R21")
def test_every_client_with_handlers_hears_every_event() -> None:
    slow: list[str] = []
    quick: list[str] = []
    go_on = threading.Event()

    def dawdle(task: ProcessingTask) -> None:
        go_on.wait(20)
        slow.append(task.po_number)

    numbers = [f"PO-{n}" for n in range(100)]
    with QueueService(start_method="fork") as service:
        queue, other = service.client(), service.client()
        queue.set_event_handlers(on_task_complete=dawdle)
        other.set_event_handlers(on_task_complete=lambda task: quick.append(task.po_number))
        for number in numbers:
            queue.add_task(ProcessingTask(task_id=number, po_data={"po_number": number}))
            queue.get_next_task("w1")
            queue.complete_task(number, "w1", TaskResult(True))
        wait_until(lambda: len(quick) == 100)
        go_on.set()
        wait_until(lambda: len(slow) == 100)

    assert quick == slow == numbers
