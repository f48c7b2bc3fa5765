"""Many threads at one queue: nothing is leased twice, nothing is lost, and the counters balance at every moment."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import pytest

from poqueue import TaskQueue, TaskStatus
from tests.contract.conftest import MakeQueue
from tests.contract.scene import Recorder, counts, failure, ids, success, task, wait_until
from workers.task_queue import QueueFullError

pytestmark = pytest.mark.contract("R11", "Part 1")

THREADS = 8
TASKS = 2000


def run_in_threads(work: Callable[[int], None], threads: int = THREADS) -> None:
    """Run `work(number)` in that many threads at once, and raise what any of them raised."""
    start = threading.Barrier(threads)
    errors: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            start.wait(10)
            work(number)
        except BaseException as error:
            errors.append(error)

    running = [threading.Thread(target=guarded, args=(number,), daemon=True) for number in range(threads)]
    for each in running:
        each.start()
    for each in running:
        each.join(60)
    assert [each for each in running if each.is_alive()] == []
    if errors:
        raise errors[0]


def assert_balanced(queue: TaskQueue) -> None:
    status = queue.get_queue_status()
    parts = ("pending_tasks", "processing_tasks", "completed_tasks", "failed_tasks", "retry_tasks", "cleared_tasks")
    assert status["total_tasks"] == sum(status[name] for name in parts), status
    assert status["queue_length"] == status["pending_tasks"] + status["retry_tasks"], status


def test_no_task_is_leased_twice_and_every_task_ends_once(queue: TaskQueue) -> None:
    queue.add_tasks([task(f"PO-{number}", str(number)) for number in range(TASKS)])
    leased: list[list[str]] = [[] for _ in range(THREADS)]

    def drain(number: int) -> None:
        while each := queue.get_next_task(f"w{number}"):
            leased[number].append(each.task_id)
            queue.complete_task(each.task_id, f"w{number}", failure() if each.task_id.endswith("7") else success())

    run_in_threads(drain)

    assert Counter(task_id for each in leased for task_id in each) == Counter(str(number) for number in range(TASKS))
    assert counts(queue, "total_tasks", "completed_tasks", "failed_tasks", "processing_tasks") == (
        TASKS,
        TASKS - TASKS // 10,
        TASKS // 10,
        0,
    )
    assert_balanced(queue)
    for number in range(THREADS):
        assert ids(queue.get_tasks_by_worker(f"w{number}")) == set(leased[number])


def test_adding_leasing_retrying_and_reading_at_once_keep_the_balance(make_queue: MakeQueue) -> None:
    queue = make_queue(max_retries=1, retry_delay=0.001, clock=Ticking())
    added: list[list[str]] = [[] for _ in range(2)]
    is_added = threading.Event()

    def add(number: int) -> None:
        added[number].extend(queue.add_task(task(f"PO-{number}-{each}"), 1 + each % 10) for each in range(300))

    def work(number: int) -> None:
        while counts(queue, "queue_length", "processing_tasks") != (0, 0) or not is_added.is_set():
            each = queue.get_next_task(f"w{number}")
            if each is None:
                continue
            if each.attempt == 1 and hash(each.task_id) % 3 == 0:
                queue.retry_task(each.task_id, {"error": "boom"})
            else:
                queue.complete_task(each.task_id, f"w{number}", success())

    def read(_: int) -> None:
        while counts(queue, "queue_length", "processing_tasks") != (0, 0) or not is_added.is_set():
            assert_balanced(queue)
            queue.get_performance_metrics()

    def act(number: int) -> None:
        if number < 2:
            add(number)
            if all(len(each) == 300 for each in added):
                is_added.set()
        elif number < 7:
            work(number)
        else:
            read(number)

    run_in_threads(act)

    assert counts(queue, "total_tasks", "completed_tasks", "failed_tasks", "retry_tasks") == (600, 600, 0, 0)
    assert ids(queue.get_tasks_by_status(TaskStatus.COMPLETED)) == {each for ids_ in added for each in ids_}


class Ticking:
    """A clock that goes on by itself at each look, so that retries become due without waiting."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.01
        return self.now


@pytest.mark.contract("R7")
def test_two_tasks_of_one_po_never_run_at_once_in_many_threads(queue: TaskQueue) -> None:
    queue.add_tasks([task(f"PO-{number % 5}", str(number)) for number in range(300)])
    running: Counter[str] = Counter()
    guard = threading.Lock()

    def work(number: int) -> None:
        while counts(queue, "queue_length") != (0,):
            each = queue.get_next_task(f"w{number}")
            if each is None:
                continue
            po_number = each.po_data["po_number"]
            with guard:
                running[po_number] += 1
                assert running[po_number] == 1
            with guard:
                running[po_number] -= 1
            queue.complete_task(each.task_id, f"w{number}", success())

    run_in_threads(work, 6)
    assert counts(queue, "completed_tasks", "total_tasks") == (300, 300)


@pytest.mark.contract("R6")
def test_of_many_threads_with_one_id_one_is_taken_at_its_word(queue: TaskQueue) -> None:
    given: list[str] = []

    def add(number: int) -> None:
        for each in range(20):
            with suppress(ValueError):
                given.append(queue.add_task(task(f"PO-{number}-{each}", f"T-{each}")))

    run_in_threads(add)

    assert len(given) == len(set(given)) == counts(queue, "total_tasks")[0]
    assert {f"T-{each}" for each in range(20)} <= set(given)


@pytest.mark.contract("R9")
def test_many_threads_fill_a_queue_exactly(make_queue: MakeQueue) -> None:
    queue = make_queue(queue_size_limit=50)
    recorder = Recorder(queue)
    accepted: list[str] = []

    def add(number: int) -> None:
        for each in range(20):
            with suppress(QueueFullError):
                accepted.append(queue.add_task(task(f"PO-{number}-{each}")))

    run_in_threads(add)

    assert len(accepted) == 50
    assert counts(queue, "total_tasks", "queue_length") == (50, 50)
    recorder.until("full")
    queue.clear_queue()
    assert recorder.until("empty") == [("full",), ("empty",)]


@pytest.mark.contract("R17")
def test_of_many_reports_on_one_lease_one_counts(queue: TaskQueue) -> None:
    queue.add_tasks([task(f"PO-{number}", str(number)) for number in range(50)])
    leased = [str(queue.get_next_task("w1").task_id) for _ in range(50)]  # type: ignore[union-attr]

    def report(number: int) -> None:
        for task_id in leased:
            with suppress(Exception):
                if number % 2:
                    queue.complete_task(task_id, "w1", success())
                else:
                    queue.retry_task(task_id, {"error": "boom"})

    run_in_threads(report)

    completed, waiting = counts(queue, "completed_tasks", "retry_tasks")
    assert (completed + waiting, counts(queue, "processing_tasks")) == (50, (0,))
    assert queue.get_error_summary()["total_errors"] == sum(
        len(each.error_history) for status in TaskStatus for each in queue.get_tasks_by_status(status)
    )
    assert_balanced(queue)


@pytest.mark.contract("R15")
def test_from_the_moment_pause_returns_nothing_is_leased(queue: TaskQueue) -> None:
    queue.add_tasks([task(f"PO-{number}", str(number)) for number in range(300)])
    is_stopped = threading.Event()

    def act(number: int) -> None:
        if number == 0:
            wait_until(lambda: counts(queue, "completed_tasks")[0] > 10)
            for _ in range(10):
                queue.pause_queue()
                pending = counts(queue, "pending_tasks")
                wait_until(lambda: counts(queue, "processing_tasks") == (0,))
                assert counts(queue, "pending_tasks") == pending
                queue.resume_queue()
            is_stopped.set()
            return
        while not is_stopped.is_set():
            each = queue.get_next_task(f"w{number}")
            if each:
                queue.complete_task(each.task_id, f"w{number}", success())

    run_in_threads(act, 4)
