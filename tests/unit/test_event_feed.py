"""Events for readers in other processes: the ends of many attempts come in bunches, anything else at once."""

import math
import threading
import time
from collections.abc import Iterator
from itertools import islice
from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from poqueue import ProcessingTask, QueueError, TaskQueue, TaskResult
from poqueue import task_queue as task_queue_module
from poqueue.events import MANY, SILENCE_S
from poqueue.hints import Any
from poqueue.packing import last_number, unpack_events
from poqueue.payload import freeze_success, thaw_task
from poqueue.task import Event, Success
from tests.contract.scene import Clock, counts, wait_until

LONG_S = 4.0
OK = TaskResult(True)


def filled(count: int) -> tuple[TaskQueue, int, int]:
    """A queue with `count` tasks at a worker, and one that waits; a reader of its events, and the last one before."""
    queue = TaskQueue()
    queue.add_tasks([ProcessingTask(f"t{n}", {"po_number": f"P{n}"}) for n in range(count + 1)])
    for _ in range(count):
        queue.get_next_task("w")
    return queue, *queue.open_events()


def read_beside(queue: TaskQueue, *words: float, **more: float) -> tuple[threading.Thread, list[list[Event]]]:
    calls: list[list[Event]] = []
    thread = threading.Thread(target=lambda: calls.append(queue.read_events(*words, **more)))  # type: ignore[arg-type]
    thread.start()
    return thread, calls


def test_ends_of_attempts_are_told_together_and_what_is_urgent_ends_the_wait() -> None:
    queue, reader, after = filled(3)
    begun = time.monotonic()
    thread, calls = read_beside(queue, reader, after, wait_s=LONG_S, gather_s=LONG_S)

    for number in range(3):
        queue.complete_task(f"t{number}", "w", OK)
        thread.join(0.05)  # a reader that is told of each has left by now
    queue.post_notice("hurry")
    thread.join()

    assert [[event.kind for event in events] for events in calls] == [["completed"] * 3 + ["notice"]]
    assert time.monotonic() - begun < LONG_S


def test_a_full_bunch_does_not_wait() -> None:
    queue, reader, after = filled(3)
    for number in range(3):
        queue.complete_task(f"t{number}", "w", OK)
    begun = time.monotonic()

    events = queue.read_events(reader, after, 2, wait_s=LONG_S, gather_s=LONG_S)

    assert [event.sequence for event in events] == [after + 1, after + 2]
    assert time.monotonic() - begun < LONG_S


def test_a_reader_that_gathers_is_woken_when_its_bunch_is_full_and_no_other_with_it() -> None:
    queue, small, after = filled(5)
    large, _ = queue.open_events()
    begun = time.monotonic()
    of_small, small_calls = read_beside(queue, small, after, 2, wait_s=LONG_S, gather_s=LONG_S)
    of_large, large_calls = read_beside(queue, large, after, 4, wait_s=LONG_S, gather_s=LONG_S)
    wait_until(lambda: len(queue._news._waiters) == 2)  # type: ignore[attr-defined]

    queue.complete_task("t0", "w", OK)
    queue.retry_task("t1", {"error": "no"})
    of_small.join()
    queue.complete_task("t2", "w", OK)
    of_large.join(0.05)  # one that is woken with the other, or too early, has left by now
    assert not large_calls
    queue.complete_task("t3", "w", OK)
    of_large.join()

    assert [len(calls[0]) for calls in (small_calls, large_calls)] == [2, 4]
    assert time.monotonic() - begun < LONG_S


def test_a_bunch_is_told_when_its_time_is_over() -> None:
    queue, reader, after = filled(1)
    queue.complete_task("t0", "w", OK)

    assert [event.kind for event in queue.read_events(reader, after, wait_s=LONG_S, gather_s=0.01)] == ["completed"]
    assert queue.read_events(reader, after + 1, wait_s=0.01, gather_s=LONG_S) == []


def test_after_a_silence_an_end_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(task_queue_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    queue, reader, after = filled(1)
    thread, calls = read_beside(queue, reader, after, wait_s=LONG_S, gather_s=0.01)
    wait_until(lambda: bool(queue._news._waiters))  # type: ignore[attr-defined]
    now[0] += 0.02
    wait_until(lambda: queue._feed.waiting == 1)  # the time of a bunch is over, and there was none

    queue.complete_task("t0", "w", OK)  # from here on no time passes
    thread.join(LONG_S)

    assert [[event.kind for event in events] for events in calls] == [["completed"]]


@pytest.mark.parametrize(("gather_s", "count"), [(LONG_S, 1), (LONG_S, 0), (0.0, 0)])
def test_a_reader_that_is_closed_while_it_reads_is_told_so(gather_s: float, count: int) -> None:
    queue, reader, after = filled(count)
    errors = list[QueueError]()

    def read() -> None:
        try:
            queue.read_events(reader, after, wait_s=LONG_S, gather_s=gather_s)
        except QueueError as error:
            errors.append(error)

    for number in range(count):
        queue.complete_task(f"t{number}", "w", OK)
    thread = threading.Thread(target=read)
    begun = time.monotonic()
    thread.start()
    wait_until(lambda: bool(queue._news._waiters))  # type: ignore[attr-defined]
    queue.close_events(reader)
    thread.join()

    assert len(errors) == 1
    assert time.monotonic() - begun < LONG_S


def test_a_bunch_may_take_longer_than_a_reader_waits_for_its_first_event() -> None:
    queue, reader, after = filled(2)
    queue.complete_task("t0", "w", OK)
    begun = time.monotonic()
    thread, calls = read_beside(queue, reader, after, wait_s=0.0, gather_s=LONG_S)
    wait_until(lambda: bool(queue._news._waiters))  # type: ignore[attr-defined]

    queue.complete_task("t1", "w", OK)
    queue.post_notice("hurry")
    thread.join()

    assert [len(events) for events in calls] == [3]
    assert time.monotonic() - begun < LONG_S


@pytest.mark.parametrize(
    "words", [{"wait_s": math.nan}, {"wait_s": math.nan, "gather_s": math.nan}, {"gather_s": math.nan}]
)
def test_what_is_no_number_is_no_time(words: dict[str, float]) -> None:
    queue, reader, after = filled(1)
    assert queue.read_events(reader, after, **words) == []  # type: ignore[arg-type]


def test_what_was_urgent_before_is_no_news(monkeypatch: pytest.MonkeyPatch) -> None:
    queue, reader, after = filled(0)
    queue.post_notice("hurry")
    queue.read_events(reader, after + 1)  # it is let go
    waits = list[float]()
    wait = queue._news.wait
    monkeypatch.setattr(queue._news, "wait", lambda timeout: waits.append(timeout) or wait(timeout))

    assert queue.read_events(reader, after, wait_s=0.01) == []
    assert queue.read_events(reader, after, wait_s=0.01, limit=0) == []

    assert len(waits) >= 2


def test_a_reader_that_does_not_gather_hears_at_once_beside_one_that_does() -> None:
    queue, first, after = filled(2)
    second, _ = queue.open_events()
    gathers, all_calls = read_beside(queue, first, after, wait_s=LONG_S, gather_s=LONG_S)
    hears, its_calls = read_beside(queue, second, after, wait_s=LONG_S)

    queue.complete_task("t0", "w", OK)
    hears.join()
    assert [event.kind for event in its_calls[0]] == ["completed"] and not all_calls

    queue.complete_task("t1", "w", OK)
    queue.post_notice("hurry")
    gathers.join()
    assert [event.kind for event in all_calls[0]] == ["completed", "completed", "notice"]


def test_a_reader_that_is_closed_is_told_so_instead_of_missing_events() -> None:
    queue, reader, after = filled(2)
    queue.complete_task("t0", "w", OK)
    queue.close_events(reader)
    queue.complete_task("t1", "w", OK)

    for _ in range(2):
        with pytest.raises(QueueError, match=f"reader {reader} is closed"):
            queue.read_events(reader, after)
    assert not queue._feed.is_read, "nothing is kept for it"
    again, after = queue.open_events()
    queue.post_notice("on")
    assert [event.sequence for event in queue.read_events(again, after)] == [after + 1]


def test_a_reader_of_a_queue_is_none_of_the_one_in_its_place() -> None:
    _, reader, after = filled(1)
    other, _, _ = filled(1)

    with pytest.raises(QueueError, match=f"reader {reader} is closed"):
        other.read_events(reader, after)


def test_a_reader_that_is_closed_while_it_waits_is_told_so() -> None:
    queue, reader, after = filled(1)
    faults: list[BaseException] = []

    def read() -> None:
        try:
            queue.read_events(reader, after, wait_s=LONG_S)
        except QueueError as error:
            faults.append(error)

    queue.open_events()  # somebody else reads as well
    thread = threading.Thread(target=read)
    thread.start()
    wait_until(lambda: queue._feed.waiting == 1)
    queue.close_events(reader)
    queue.post_notice("wakes it")
    thread.join()

    assert [str(error) for error in faults] == [f"reader {reader} is closed"]


def test_events_come_without_the_data_for_a_reader_that_needs_none() -> None:
    queue, reader, after = filled(1)
    other, _ = queue.open_events(brings_data=False)
    queue.complete_task("t0", "w", OK)

    [whole], [bare] = (queue.read_events(number, after) for number in (reader, other))

    assert whole.task is not None and bare.task is not None
    assert bare.task.payload == b"" and whole.task.payload
    assert bare == whole._replace(task=whole.task._replace(payload=b""))
    assert thaw_task(whole.task).po_data == {"po_number": "P0"}
    opened = thaw_task(bare.task)
    assert opened.result == thaw_task(whole.task).result
    assert opened.po_data == {"po_number": "P0"} and opened.po_number == "P0" and "P0" in repr(opened)


STEPS = st.one_of(
    st.tuples(st.just("add"), st.integers(1, 4), st.integers(1, 10), st.sampled_from([60, 60.0])),
    st.tuples(st.just("add"), st.integers(1, 3 * MANY), st.just(5), st.none()),
    st.tuples(st.just("lease"), st.integers(1, 3 * MANY), st.sampled_from(["w1", "w2"])),
    st.tuples(st.just("end"), st.integers(1, 3 * MANY), st.sampled_from(["w1", "w2"])),
    st.tuples(st.just("fail"), st.sampled_from(["w1", "w2"])),
    st.tuples(st.just("notice")),
)
ALIKE = [
    ("add", MANY, 5, 60),
    ("add", 1, 5, 60.0),
    ("add", 1, 5, 60),
    *((step, 3 * MANY, "w1") for step in ("lease", "end")),
]


def play(queue: TaskQueue, steps: list[tuple[Any, ...]]) -> None:
    """Some history: tasks that are alike and others, ends in bunches and singly, and other events between them."""
    numbers = iter(range(10_000))
    for kind, *rest in steps:
        if kind == "add":
            count, priority, seconds = rest
            for n in islice(numbers, count):
                queue.add_task(ProcessingTask(f"t{n}", {"po_number": f"P{n}"}, priority, task_timeout=seconds))
        elif kind == "lease":
            queue.exchange(rest[1], limit=rest[0])
        elif kind == "end":
            held = [(token, task) for token, task in queue.get_leases().items() if task.worker_id == rest[1]]
            told = [Success(task.task_id, token, 0.5, freeze_success([], token, {})) for token, task in held[: rest[0]]]
            queue.exchange(rest[1], told, limit=0)
        elif kind == "fail":
            for task in [task for task in queue.get_leases().values() if task.worker_id == rest[0]][:1]:
                queue.retry_task(task.task_id, {"error": "no", "worker_id": rest[0]})
        else:
            queue.post_notice("hear, hear")


def read_all(queue: TaskQueue, reader: int, after: int, limit: int) -> Iterator[Event]:
    while packed := queue.read_events_packed(reader, after, limit):
        yield from unpack_events(packed)
        after = last_number(packed)


def exactly(events: list[Event]) -> list[str]:
    """Also what is equal, and yet another thing: 60 and 60.0."""
    return [repr(tuple(event)) for event in events]


@given(steps=st.lists(STEPS, max_size=25), limit=st.integers(2, 3 * MANY))
@example(steps=ALIKE, limit=3 * MANY)
def test_events_that_cross_in_a_bunch_are_those_that_cross_one_by_one(steps: list[tuple[Any, ...]], limit: int) -> None:
    queue = TaskQueue(max_retries=1, retry_delay=0.0)
    bunch, after = queue.open_events()
    single, _ = queue.open_events()
    bare, _ = queue.open_events(brings_data=False)
    play(queue, steps)

    events = list(read_all(queue, bunch, after, limit))

    assert [event.sequence for event in events] == list(range(after + 1, after + 1 + len(events)))
    assert exactly(events) == exactly(list(read_all(queue, single, after, 1)))
    done = [event.task for event in events if event.kind == "completed" and event.task is not None]
    assert [repr(thaw_task(task)) for task in done] == [repr(queue.find_task(task_id=task.task_id)) for task in done]
    without = [
        event._replace(task=event.task._replace(payload=b"")) if event.kind == "completed" and event.task else event
        for event in events
    ]
    assert exactly(list(read_all(queue, bare, after, limit))) == exactly(without)


def test_ends_of_one_id_are_as_many_events() -> None:
    queue, reader, after = filled(0)
    for _ in range(MANY):
        queue.add_task(ProcessingTask("again", {"po_number": "A"}))
        queue.exchange("w", limit=2)
        queue.complete_task("again", "w", OK)
        queue.drop_tasks(["again"])

    events = queue.read_events(reader, after)

    assert [(event.sequence, event.kind) for event in events] == [(after + 1 + n, "completed") for n in range(MANY)]


def test_a_queue_drains_when_every_reader_has_acted_on_what_it_was_told() -> None:
    queue = TaskQueue()
    reader, after = queue.open_events()
    other, _ = queue.open_events()
    queue.add_task(ProcessingTask("a", {"po_number": "A"}))
    queue.get_next_task("w")
    assert queue.drain_when_done(reader, after) == "busy"
    queue.complete_task("a", "w", OK)

    assert queue.drain_when_done(reader, after) == "unread"
    last = queue.read_events(reader, after)[-1].sequence
    assert queue.drain_when_done(reader, last) == "unheard"
    queue.read_events(other, after)
    assert queue.drain_when_done(reader, last) == "unheard", "it has the events, and may not have acted on them"
    assert not queue.exchange("w").stop
    queue.read_events(other, last)

    assert queue.drain_when_done(reader, last) == "drained"
    assert queue.exchange("w").stop


def test_a_reader_that_hangs_is_not_waited_for_for_ever() -> None:
    clock = Clock()
    queue = TaskQueue(clock=clock)
    reader, _ = queue.open_events()
    other, after = queue.open_events()
    queue.post_notice("to act on")
    last = queue.read_events(reader, after)[-1].sequence
    clock.advance(SILENCE_S - 1.0)
    queue.read_events(other, after)
    clock.advance(SILENCE_S - 1.0)

    assert queue.drain_when_done(reader, last) == "unheard"
    clock.advance(1.0)
    assert queue.drain_when_done(reader, last) == "drained"


def test_a_queue_that_was_drained_since_all_is_done_refuses_what_is_added_and_another_one_keeps_it() -> None:
    is_done, is_interrupted = TaskQueue(), TaskQueue()
    is_interrupted.drain_queue()
    assert is_done.drain_when_done(*is_done.open_events()) == "drained"

    with pytest.raises(QueueError, match="the run is over"):
        is_done.add_task(ProcessingTask("a", {"po_number": "A"}))
    is_interrupted.add_task(ProcessingTask("a", {"po_number": "A"}))

    assert counts(is_done, "total_tasks", "pending_tasks") == (0, 0)
    assert counts(is_interrupted, "total_tasks", "pending_tasks") == (1, 1)


def test_a_queue_that_was_drained_since_all_is_done_lets_nothing_run_again() -> None:
    queue = TaskQueue()
    queue.add_task(ProcessingTask("a", {"po_number": "A"}))
    queue.get_next_task("w")
    queue.complete_task("a", "w", TaskResult(False, error_message="x"))
    assert queue.drain_when_done(*queue.open_events()) == "drained"
    before = queue.export_queue_report()["tasks"]

    for run_again in (queue.requeue_failed, lambda: queue.retry_task("a", {"error": "once more"})):
        with pytest.raises(QueueError, match="the run is over"):
            run_again()

    assert queue.export_queue_report()["tasks"] == before
    assert counts(queue, "failed_tasks", "queue_length") == (1, 0)
