"""Random histories of one queue against a model of it that is too simple to be wrong.

The model keeps a dict of tasks and sorts it at every lease; the queue has to give the same answers, and its books have
to balance after every step. At the end everything is drained and has to be finished.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from poqueue import TaskQueue, TaskStatus
from tests.contract.scene import Clock, Recorder, failure, find, ids, nothing_changes, success, task
from workers.task_queue import QueueFullError, TaskNotFoundError, WorkerMismatchError

S = TaskStatus
T = TypeVar("T")
CAP_S = 40.0
COUNT_NAMES = {
    S.PENDING: "pending_tasks",
    S.PROCESSING: "processing_tasks",
    S.COMPLETED: "completed_tasks",
    S.FAILED: "failed_tasks",
    S.RETRY_PENDING: "retry_tasks",
}
picks = st.integers(0, 10**6)  # an index into whatever there is at that moment


@dataclass
class Known:
    """What the model knows of one task."""

    task_id: str
    po_number: str
    priority: int
    rank: int
    max_retries: int
    retry_delay: float
    status: TaskStatus = S.PENDING
    attempts: int = 0
    retries: int = 0
    due: float = 0.0
    worker_id: str = ""


class QueueMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.known: dict[str, Known] = {}
        self.old_leases: list[tuple[str, str]] = []
        self.events: list[tuple[str, ...]] = []
        self.added = self.cleared = self.leases = self.errors = 0
        self.is_paused = self.is_drain_news = False
        self.config: dict[str, float | int | None] = {"max_retries": 2, "retry_delay": 8.0, "queue_size_limit": None}

    @initialize(enable_priority=st.booleans())
    def begin(self, enable_priority: bool) -> None:
        self.enable_priority = enable_priority
        self.queue = TaskQueue(
            max_retries=2,
            retry_delay=8.0,
            enable_priority=enable_priority,
            max_retry_delay=CAP_S,
            clock=self.clock,
            wall_clock=self.clock.wall,
        )
        self.recorder = Recorder(self.queue)

    # ------------------------------------------------------------------ rules

    @rule(po=st.integers(1, 6), priority=st.sampled_from([1, 4, 5, 5, 5, 10]))
    def add(self, po: int, priority: int) -> None:
        added = task(f"PO-{po}", f"T-{self.added}")
        if self.is_full():
            with nothing_changes(self.queue), pytest.raises(QueueFullError):
                self.queue.add_task(added, priority)
            return

        task_id = self.queue.add_task(added, priority)

        assert task_id == added.task_id
        self.remember(task_id, f"PO-{po}", priority)

    @rule(priorities=st.lists(st.sampled_from([1, 5, 5, 10]), min_size=2, max_size=5))
    def add_several(self, priorities: list[int]) -> None:
        for po, priority in enumerate(priorities, 10):
            self.add(po, priority)

    @precondition(lambda self: self.known)
    @rule(pick=picks)
    def add_a_known_id(self, pick: int) -> None:
        known = self.pick(list(self.known.values()), pick)
        try:
            with nothing_changes(self.queue):
                task_id = self.queue.add_task(task("PO-again", known.task_id))
        except (ValueError, QueueFullError):
            return
        assert task_id not in self.known, "merged"

    @rule()
    def lease(self) -> None:
        self.lease_as_the_model()

    @rule(outcomes=st.lists(st.sampled_from(["success", "failure", "retry", "hang"]), min_size=2, max_size=8))
    def work_a_while(self, outcomes: list[str]) -> None:
        for outcome in outcomes:
            leased = self.lease_as_the_model()
            if leased and outcome == "retry":
                self.give_back(leased)
            elif leased and outcome != "hang":
                self.report(leased, outcome == "success")

    @rule()
    def see_a_retry_through(self) -> None:
        leased = self.lease_as_the_model()
        if leased:
            self.give_back(leased)
        if self.delayed():
            due = min(each.due for each in self.delayed())
            for moment in (due - 0.5, due):
                self.clock.advance(max(0.0, moment - self.clock()))
                self.lease_as_the_model()

    @precondition(lambda self: self.running())
    @rule(pick=picks)
    def fail_until_it_failed(self, pick: int) -> None:
        known = self.pick(self.running(), pick)
        while known.status is S.PROCESSING:
            self.give_back(known)
            self.clock.advance(max(0.0, known.due - self.clock()))
            while known.status is S.RETRY_PENDING and self.lease_as_the_model():
                pass

    @precondition(lambda self: self.running())
    @rule(pick=picks, is_success=st.booleans())
    def report_live(self, pick: int, is_success: bool) -> None:
        self.report(self.pick(self.running(), pick), is_success)

    @precondition(lambda self: self.running())
    @rule(pick=picks)
    def retry_live(self, pick: int) -> None:
        self.give_back(self.pick(self.running(), pick))

    @precondition(lambda self: self.running())
    @rule(pick=picks)
    def report_as_somebody_else(self, pick: int) -> None:
        known = self.pick(self.running(), pick)
        with nothing_changes(self.queue), pytest.raises(WorkerMismatchError):
            self.queue.complete_task(known.task_id, "somebody-else", success())

    @precondition(lambda self: self.old_leases)
    @rule(pick=picks, is_success=st.booleans())
    def report_old(self, pick: int, is_success: bool) -> None:
        task_id, worker_id = self.pick(self.old_leases, pick)
        refusal = WorkerMismatchError if task_id in self.known else TaskNotFoundError
        with nothing_changes(self.queue), suppress(refusal):
            self.queue.complete_task(task_id, worker_id, success() if is_success else failure())

    @precondition(lambda self: any(each.status is not S.PROCESSING for each in self.known.values()))
    @rule(pick=picks)
    def retry_what_does_not_run(self, pick: int) -> None:
        known = self.pick([each for each in self.known.values() if each.status is not S.PROCESSING], pick)
        if known.status is S.FAILED and known.retries < known.max_retries:
            assert self.queue.retry_task(known.task_id, {"error": "again, please"}) is True
            self.wait_for_retry(known)
            return
        with nothing_changes(self.queue):
            granted = self.queue.retry_task(known.task_id, {"error": "again, please"})
        assert granted is (known.status in (S.PENDING, S.RETRY_PENDING))

    @rule(seconds=st.sampled_from([0.5, 1.0, 7.5, 8.0, 16.0, CAP_S]))
    def let_time_pass(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(seconds=st.sampled_from([-86_400.0, 86_400.0]))
    def let_the_wall_clock_jump(self, seconds: float) -> None:
        self.clock.set_wall(self.clock.wall() + seconds)

    @rule(is_paused=st.sampled_from([False, False, True]))
    def pause_or_resume(self, is_paused: bool) -> None:
        (self.queue.pause_queue if is_paused else self.queue.resume_queue)()
        self.is_paused = is_paused

    @rule(preserve_processing=st.booleans())
    def clear(self, preserve_processing: bool) -> None:
        dropped = self.waiting() + ([] if preserve_processing else self.running())

        assert self.queue.clear_queue(preserve_processing) == len(dropped)

        self.old_leases.extend((each.task_id, each.worker_id) for each in dropped if each.status is S.PROCESSING)
        for each in dropped:
            del self.known[each.task_id]
        self.cleared += len(dropped)
        self.note_drain()

    @rule(
        max_retries=st.sampled_from([None, 0, 1, 3]),
        retry_delay=st.sampled_from([None, 2.0, 8.0]),
        queue_size_limit=st.sampled_from([None, 3, 6, 100]),
    )
    def update_configuration(
        self, max_retries: int | None, retry_delay: float | None, queue_size_limit: int | None
    ) -> None:
        given = {"max_retries": max_retries, "retry_delay": retry_delay, "queue_size_limit": queue_size_limit}
        self.queue.update_configuration(**given)  # type: ignore[arg-type]
        self.config.update({name: value for name, value in given.items() if value is not None})

    @rule()
    def ask_for_what_is_refused(self) -> None:
        with nothing_changes(self.queue):
            with pytest.raises(ValueError, match="timeout"):
                self.queue.update_configuration(max_retries=9, retry_delay=1.0, task_timeout=-1, queue_size_limit=1)
            with pytest.raises(TaskNotFoundError):
                self.queue.retry_task("nobody", {"error": "boom"})
            with pytest.raises(ValueError, match="invalid"):
                self.queue.add_task(task(" "))

    # ------------------------------------------------------------------ what always holds

    @invariant()
    def the_counters_equal_the_model_and_the_lists(self) -> None:
        status = self.queue.get_queue_status()
        for each, name in COUNT_NAMES.items():
            expected = {known.task_id for known in self.known.values() if known.status is each}
            listed = self.queue.get_tasks_by_status(each)
            assert ids(listed) == expected, name
            assert len(listed) == status[name] == len(expected), name
        assert status["total_tasks"] == self.added == len(self.known) + self.cleared
        assert status["cleared_tasks"] == self.cleared
        assert status["queue_length"] == len(self.waiting())
        assert status["status"] == ("PAUSED" if self.is_paused else "ACTIVE")
        assert self.queue.get_error_summary()["total_errors"] == self.errors

    @invariant()
    def at_most_one_task_of_a_po_runs(self) -> None:
        running = [each.po_data["po_number"] for each in self.queue.get_tasks_by_status(S.PROCESSING)]
        assert len(running) == len(set(running))

    @invariant()
    def every_event_was_told_once_and_in_order(self) -> None:
        assert [each for each in self.recorder.events if each != ("full",)] == self.events

    def teardown(self) -> None:
        if not hasattr(self, "queue"):
            return
        self.queue.resume_queue()
        self.is_paused = False
        while self.waiting() or self.running():
            for each in self.running():
                self.report(each, True)
            while self.lease_as_the_model():
                pass
            self.clock.advance(CAP_S)
        self.the_counters_equal_the_model_and_the_lists()
        self.every_event_was_told_once_and_in_order()
        assert all(each.status in (S.COMPLETED, S.FAILED) for each in self.known.values())
        assert self.queue.get_queue_status()["estimated_completion"] == 0.0
        assert self.queue.get_next_task("w-last") is None

    # ------------------------------------------------------------------ the model

    def pick(self, things: list[T], index: int) -> T:
        return things[index % len(things)]

    def running(self) -> list[Known]:
        return [each for each in self.known.values() if each.status is S.PROCESSING]

    def waiting(self) -> list[Known]:
        return [each for each in self.known.values() if each.status in (S.PENDING, S.RETRY_PENDING)]

    def delayed(self) -> list[Known]:
        return [each for each in self.known.values() if each.status is S.RETRY_PENDING and each.due > self.clock()]

    def is_full(self) -> bool:
        limit = self.config["queue_size_limit"]
        return limit is not None and len(self.waiting()) >= limit

    def remember(self, task_id: str, po_number: str, priority: int) -> None:
        retries, delay = int(self.config["max_retries"] or 0), float(self.config["retry_delay"] or 0)
        self.known[task_id] = Known(task_id, po_number, priority, self.added, retries, delay)
        self.added += 1
        self.is_drain_news = True

    def best(self) -> Known | None:
        """The task that has to be leased now."""
        running_pos = {each.po_number for each in self.running()}
        may_run = [each for each in self.waiting() if each.due <= self.clock() and each.po_number not in running_pos]
        if self.is_paused or not may_run:
            return None
        return min(may_run, key=lambda each: (each.priority if self.enable_priority else 0, each.rank))

    def lease_as_the_model(self) -> Known | None:
        self.leases += 1
        worker_id = f"w{self.leases}"
        expected = self.best()

        leased = self.queue.get_next_task(worker_id)

        assert (leased.task_id if leased else None) == (expected.task_id if expected else None)
        if expected and leased:
            expected.status, expected.worker_id = S.PROCESSING, worker_id
            expected.attempts += 1
            assert (leased.status, leased.worker_id, leased.attempt) == (S.PROCESSING, worker_id, expected.attempts)
            assert (leased.max_retries, leased.retry_delay) == (expected.max_retries, expected.retry_delay)
        return expected

    def report(self, known: Known, is_success: bool) -> None:
        self.queue.complete_task(known.task_id, known.worker_id, success() if is_success else failure())
        if is_success:
            self.finish(known, S.COMPLETED, ("complete", known.task_id))
        else:
            self.errors += 1
            self.finish(known, S.FAILED, ("failed", known.task_id, "boom"))

    def give_back(self, known: Known) -> None:
        granted = self.queue.retry_task(known.task_id, {"error": "boom"})

        assert granted is (known.retries < known.max_retries)
        self.errors += 1
        if granted:
            self.old_leases.append((known.task_id, known.worker_id))
            self.wait_for_retry(known)
        else:
            self.finish(known, S.FAILED, ("failed", known.task_id, "boom"))
        assert len(find(self.queue, known.task_id).error_history) >= 1

    def finish(self, known: Known, status: TaskStatus, event: tuple[str, ...]) -> None:
        known.status = status
        self.old_leases.append((known.task_id, known.worker_id))
        self.events.append(event)
        self.note_drain()

    def wait_for_retry(self, known: Known) -> None:
        known.retries += 1
        known.status = S.RETRY_PENDING
        known.due = self.clock() + min(CAP_S, known.retry_delay * 2 ** (known.retries - 1))
        self.is_drain_news = True

    def note_drain(self) -> None:
        if self.is_drain_news and not self.waiting() and not self.running():
            self.is_drain_news = False
            self.events.append(("empty",))


QueueMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
TestAnyHistory = pytest.mark.contract("R3", "R4", "R5", "R7", "R9", "R10", "R11", "R16", "R17", "R20")(
    QueueMachine.TestCase
)
