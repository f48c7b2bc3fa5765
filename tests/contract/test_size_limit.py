"""How many tasks may wait, and what a full queue does."""

from __future__ import annotations

import pytest

from poqueue import TaskQueue
from tests.contract.conftest import MakeQueue
from tests.contract.scene import Clock, Recorder, counts, finish, give_back, lease, nothing_changes, task
from workers.task_queue import QueueFullError

pytestmark = pytest.mark.contract("R9")


def refuse(queue: TaskQueue) -> None:
    with nothing_changes(queue), pytest.raises(QueueFullError):
        queue.add_task(task("PO-refused", "refused"))


def test_there_is_no_limit_by_default(queue: TaskQueue) -> None:
    queue.add_tasks([task(f"PO-{number}") for number in range(3000)])

    assert counts(queue, "total_tasks", "queue_length") == (3000, 3000)


def test_a_full_queue_refuses_and_nothing_changes(make_queue: MakeQueue) -> None:
    queue = make_queue(queue_size_limit=2)
    queue.add_task(task("PO-1", "a"))
    queue.add_task(task("PO-2", "b"))

    refuse(queue)

    assert queue.find_task(task_id="refused") is None
    assert counts(queue, "total_tasks", "queue_length") == (2, 2)


def test_a_refusal_says_whether_the_queue_is_full_or_these_are_too_many(make_queue: MakeQueue) -> None:
    queue = make_queue(queue_size_limit=5)
    many = [task(f"PO-{number}") for number in range(5)]

    with (
        nothing_changes(queue),
        pytest.raises(QueueFullError, match=r"^10 more do not fit: 0 tasks wait, the limit is 5$"),
    ):
        queue.add_tasks([*many, *many])
    queue.add_tasks(many)
    with (
        nothing_changes(queue),
        pytest.raises(QueueFullError, match=r"^the queue is full: 5 tasks wait, the limit is 5$"),
    ):
        queue.add_task(task("PO-6"))


def test_a_refused_id_is_free_when_there_is_room_again(make_queue: MakeQueue) -> None:
    queue = make_queue(queue_size_limit=1)
    queue.add_task(task("PO-1", "a"))
    refuse(queue)
    finish(queue)

    assert queue.add_task(task("PO-refused", "refused")) == "refused"


def test_what_runs_does_not_count_and_what_waits_for_a_retry_does(make_queue: MakeQueue) -> None:
    queue = make_queue(queue_size_limit=1)
    queue.add_task(task("PO-1", "a"))
    lease(queue, "w1")
    queue.add_task(task("PO-2", "b"))
    lease(queue, "w2")

    queue.retry_task("a", {"error": "boom"})

    refuse(queue)


def test_a_retry_is_never_refused(make_queue: MakeQueue, clock: Clock) -> None:
    queue = make_queue(queue_size_limit=1)
    queue.add_task(task("PO-1", "a"))
    lease(queue, "w1")
    queue.add_task(task("PO-2", "b"))

    assert queue.retry_task("a", {"error": "boom"}) is True

    assert counts(queue, "pending_tasks", "retry_tasks", "queue_length") == (1, 1, 2)
    refuse(queue)
    lease(queue)
    refuse(queue)
    clock.advance(5)
    lease(queue, "w2")
    queue.add_task(task("PO-3", "c"))


def test_many_tasks_at_once_are_refused_as_a_whole(make_queue: MakeQueue) -> None:
    queue = make_queue(queue_size_limit=2)
    queue.add_task(task("PO-1", "a"))

    with nothing_changes(queue), pytest.raises(QueueFullError):
        queue.add_tasks([task("PO-2", "b"), task("PO-3", "c")])
    queue.add_tasks([task("PO-2", "b")])
    assert counts(queue, "total_tasks", "queue_length") == (2, 2)


def test_on_queue_full_fires_once_per_filling(make_queue: MakeQueue) -> None:
    queue = make_queue(queue_size_limit=2)
    recorder = Recorder(queue)
    for filling in ("first", "second"):
        queue.add_task(task("PO-1", f"{filling}-a"))
        queue.add_task(task("PO-2", f"{filling}-b"))
        refuse(queue)
        refuse(queue)
        finish(queue)
        finish(queue)

    recorder.until("complete", "second-b")
    assert [each for each in recorder.events if each != ("empty",)] == [
        ("full",),
        ("complete", "first-a"),
        ("complete", "first-b"),
        ("full",),
        ("complete", "second-a"),
        ("complete", "second-b"),
    ]


@pytest.mark.parametrize("way", ["cancel_task", "drop_tasks", "clear_queue"])
def test_on_queue_full_fires_again_after_room_was_made(make_queue: MakeQueue, way: str) -> None:
    queue = make_queue(queue_size_limit=2)
    recorder = Recorder(queue)
    queue.add_tasks([task("PO-1", "a"), task("PO-2", "b")])
    refuse(queue)

    if way == "cancel_task":
        queue.cancel_task("a")
    elif way == "drop_tasks":
        queue.drop_tasks(["a"])
    else:
        queue.clear_queue()
        queue.add_task(task("PO-2", "b2"))
    queue.add_task(task("PO-3", "c"))
    refuse(queue)
    refuse(queue)

    finish(queue)
    recorder.until("complete", "b2" if way == "clear_queue" else "b")
    assert recorder.events.count(("full",)) == 2


def test_on_queue_full_fires_at_the_limit_though_too_many_at_once_were_refused_before(make_queue: MakeQueue) -> None:
    queue = make_queue(queue_size_limit=3)
    recorder = Recorder(queue)
    queue.add_task(task("PO-1", "a"))
    for _ in range(2):
        with nothing_changes(queue), pytest.raises(QueueFullError):
            queue.add_tasks([task(f"PO-{number}") for number in (7, 8, 9)])
    queue.add_task(task("PO-2", "b"))
    queue.add_task(task("PO-3", "c"))

    refuse(queue)
    refuse(queue)

    for _ in range(3):
        finish(queue)
    assert recorder.until("empty").count(("full",)) == 2


def test_on_queue_full_does_not_fire_below_the_limit(make_queue: MakeQueue) -> None:
    queue = make_queue(queue_size_limit=3)
    recorder = Recorder(queue)
    queue.add_task(task("PO-1", "a"))
    queue.add_task(task("PO-2", "b"))
    finish(queue)
    finish(queue)

    assert recorder.until("empty") == [("complete", "a"), ("complete", "b"), ("empty",)]


@pytest.mark.contract("R10")
def test_a_new_limit_acts_at_once_and_drops_nobody(make_queue: MakeQueue) -> None:
    queue = make_queue()
    for number in range(3):
        queue.add_task(task(f"PO-{number}", str(number)))

    queue.update_configuration(queue_size_limit=2)

    assert counts(queue, "queue_length") == (3,)
    refuse(queue)
    finish(queue)
    refuse(queue)
    finish(queue)
    queue.add_task(task("PO-3", "3"))
    refuse(queue)
    queue.update_configuration(queue_size_limit=3)
    queue.add_task(task("PO-4", "4"))
    refuse(queue)


def test_giving_back_and_failing_leave_the_limit_as_it_is(make_queue: MakeQueue, clock: Clock) -> None:
    queue = make_queue(queue_size_limit=1, max_retries=1)
    queue.add_task(task("PO-1", "a"))
    give_back(queue)
    refuse(queue)
    clock.advance(5)
    lease(queue)

    assert queue.retry_task("a", {"error": "boom"}) is False

    queue.add_task(task("PO-2", "b"))
    refuse(queue)
