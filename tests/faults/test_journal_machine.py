"""Random histories of a queue with a journal, crashes and failed commits among them, against a model too simple to be wrong."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from poqueue import ProcessingTask, TaskQueue, TaskStatus
from poqueue import replay as replay_module
from poqueue.errors import JournalError, WorkerMismatchError
from poqueue.task import Lease, Report
from poqueue.task_queue import FAULT_RETRY_S
from poqueue.verdict import MAX_CRASHES
from tests.contract.scene import Clock, failure, success
from tests.faults.journal_scene import (
    CAP_S,
    MAX_RETRIES,
    RETRY_DELAY_S,
    assert_legal,
    closing,
    entries,
    faults_at,
    left_by_a_crash,
    open_queue,
    snapshot,
    told,
    whole_state,
)

S = TaskStatus
T = TypeVar("T")
ERROR = {"error_type": "Boom", "message": "boom"}
OUTCOMES = ("ok", "retryable", "fatal", "by its result")
BOOTED_S = 16.0  # what the monotonic clock shows after another boot: less than ever before
ENDED = (S.COMPLETED, S.FAILED)
NO_LEASE = NEVER = 10**9
picks = st.integers(0, 10**6)  # an index into whatever there is at that moment
outcomes = st.sampled_from(OUTCOMES)


@dataclass
class Known:
    """What the model knows of one task."""

    task_id: str
    po_number: str
    priority: int
    rank: int
    max_retries: int = MAX_RETRIES
    status: TaskStatus = S.PENDING
    attempt: int = 0
    retries: int = 0
    crashes: int = 0
    interruptions: int = 0
    due: float = 0.0
    worker_id: str = ""
    token: int = 0
    errors: int = 0
    is_unwanted: bool = False
    earlier_tokens: list[int] = field(default_factory=list)

    @property
    def is_waiting(self) -> bool:
        return self.status in (S.PENDING, S.RETRY_PENDING)

    @property
    def is_running(self) -> bool:
        return self.status is S.PROCESSING


@dataclass
class Worker:
    """One worker as it sees itself: what it has reported and not yet heard of, and its count of exchanges."""

    slot: int
    incarnation: int = 1
    turn: int = 0
    unanswered: list[Report] = field(default_factory=list)

    @property
    def worker_id(self) -> str:
        return f"w{self.slot}-{self.incarnation}"


class JournalMachine(RuleBasedStateMachine):
    old_leases: Bundle[Lease | tuple[str, int, str]] = Bundle("old_leases")

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.folder = tempfile.TemporaryDirectory(prefix="poqueue-machine-")
        self.lives = itertools.count()
        self.known: dict[str, Known] = {}
        self.workers = [Worker(slot) for slot in range(3)]
        self.added = self.cleared = self.last_token = 0
        self.cleared_leases: dict[
            int, tuple[str, str]
        ] = {}  # token: worker and PO of what may run though it was cleared
        self.is_paused = False
        self.max_retries = MAX_RETRIES
        self.boot = "boot 0"
        self.boot_patch = mock.patch.object(replay_module, "boot_id", lambda: self.boot)
        self.boot_patch.start()

    @initialize(pos=st.lists(st.integers(1, 9), min_size=4, max_size=8))
    def begin(self, pos: list[int]) -> None:
        self.queue = self.opened(Path(self.folder.name) / "journal.sqlite")
        self.add_several(pos)

    def opened(self, path: Path) -> TaskQueue:
        return open_queue(path, self.clock)

    # ------------------------------------------------------------------ rules: adding

    @rule(po=st.integers(1, 9), priority=st.sampled_from([1, 5, 5, 5, 10]))
    def add(self, po: int, priority: int) -> None:
        task_id = f"T-{self.added}"
        assert self.queue.add_task(self.new_task(task_id, po), priority) == task_id
        self.remember(task_id, po, priority)

    @rule(pos=st.lists(st.integers(1, 9), min_size=2, max_size=5))
    def add_several(self, pos: list[int]) -> None:
        names = [f"T-{number}" for number in range(self.added, self.added + len(pos))]
        self.queue.add_tasks([self.new_task(*each) for each in zip(names, pos, strict=True)])
        for name, po in zip(names, pos, strict=True):
            self.remember(name, po, 5)

    @precondition(lambda self: self.known)
    @rule(pick=picks)
    def add_duplicate(self, pick: int) -> None:
        before = whole_state(self.queue)
        with pytest.raises(ValueError, match="already in the queue"):
            self.queue.add_tasks([self.new_task("T-new", 1), self.new_task(self.pick(self.known, pick).task_id, 1)])
        assert whole_state(self.queue) == before

    @precondition(lambda self: len(self.known) < self.added)
    @rule(pick=picks)
    def add_an_id_that_is_free_again(self, pick: int) -> None:
        task_id = self.pick([name for number in range(self.added) if (name := f"T-{number}") not in self.known], pick)
        self.queue.add_task(self.new_task(task_id, 1))
        self.remember(task_id, 1, 5)

    # ------------------------------------------------------------------ rules: workers

    @precondition(lambda self: self.may_lease())
    @rule(slot=st.integers(0, 2))
    def lease(self, slot: int) -> None:
        self.lease_as_the_model(self.workers[slot])

    @precondition(lambda self: self.may_lease() or self.running())
    @rule(slot=st.integers(0, 2), hand=st.lists(outcomes, max_size=3), limit=st.integers(0, 3), is_lost=st.booleans())
    def exchange_with_turn(self, slot: int, hand: list[str], limit: int, is_lost: bool) -> None:
        """A worker reports some of what it holds and has nothing else in hand; it may not hear the answer."""
        self.exchange(self.workers[slot], hand, limit, is_lost)

    @precondition(lambda self: self.running())
    @rule(slot=st.integers(0, 2), hand=st.lists(outcomes, max_size=2), limit=st.integers(0, 3), is_lost=st.booleans())
    def ask_ahead(self, slot: int, hand: list[str], limit: int, is_lost: bool) -> None:
        """A worker reports some of what it holds and keeps all the rest, or all but one, which never reached it."""
        worker = next((each for each in self.workers if len(self.held_by(each)) > 1), self.workers[slot])
        self.exchange(worker, hand, limit, is_lost, keeps=self.held_by(worker)[len(hand) + limit % 2 :])

    @precondition(lambda self: self.may_lease())
    @rule(slot=st.integers(0, 2), hand=st.lists(outcomes, max_size=2))
    def lose_an_answer_and_go_on(self, slot: int, hand: list[str]) -> None:
        worker = self.workers[slot]
        self.exchange(worker, hand, 2, is_lost=True)
        self.exchange(worker, [], 1, is_lost=False)

    @precondition(lambda self: self.queue._turns)
    @rule(slot=st.integers(0, 2), behind=st.integers(0, 2))
    def exchange_of_an_older_turn(self, slot: int, behind: int) -> None:
        worker = self.workers[slot]
        turn = self.queue._turns.get(worker.worker_id, 0) - behind
        if turn > 0:
            before = whole_state(self.queue)
            assert self.queue.exchange(worker.worker_id, self.reports_of(worker, ["ok"]), 2, turn=turn).leases == []
            assert whole_state(self.queue) == before

    @precondition(lambda self: self.running())
    @rule(target=old_leases, pick=picks, outcome=outcomes)
    def report_live(self, pick: int, outcome: str) -> Any:
        known = self.pick(self.running(), pick)
        lease = (known.task_id, known.token, known.worker_id)
        self.queue.exchange(known.worker_id, [self.report(known, outcome)] * 2, limit=0)  # sent twice, counted once
        self.end(known, outcome)
        return lease

    @rule(lease=consumes(old_leases), outcome=outcomes)
    def report_old(self, lease: tuple[str, int, str], outcome: str) -> None:
        self.report_too_late(*lease, outcome)

    @precondition(lambda self: self.run_again())
    @rule(pick=picks, outcome=outcomes)
    def report_an_earlier_attempt_of_one_that_runs(self, pick: int, outcome: str) -> None:
        known = self.pick(self.run_again(), pick)
        self.report_too_late(known.task_id, self.pick(known.earlier_tokens, pick), known.worker_id, outcome)

    @precondition(lambda self: self.running())
    @rule(target=old_leases, pick=picks)
    def timeout(self, pick: int) -> Any:
        known = self.pick(self.running(), pick)
        lease = (known.task_id, known.token, known.worker_id)
        with pytest.raises(WorkerMismatchError):
            self.queue.retry_task(known.task_id, {**ERROR, "worker_id": "somebody-else"})
        granted = self.queue.retry_task(known.task_id, {**ERROR, "worker_id": known.worker_id})
        assert granted is (known.retries < known.max_retries and not known.is_unwanted)
        assert self.queue.retry_task(known.task_id, {**ERROR, "worker_id": known.worker_id}) is granted  # sent twice
        self.end(known, "retryable")
        return lease

    @rule(target=old_leases, slot=st.integers(0, 2), first=st.sampled_from(["untold", "charge", "nothing"]))
    def worker_lost(self, slot: int, first: str) -> MultipleResults[Any]:
        worker = next((each for each in self.workers if self.held_by(each)), self.workers[slot])
        held = self.held_by(worker)
        leases = [(known.task_id, known.token, known.worker_id) for known in held]
        if held and first == "untold":
            self.queue.exchange(worker.worker_id, [self.report(held[0], "ok")], limit=0)
            self.end(held.pop(0), "ok")
        elif held and first == "charge":
            self.queue.exchange(worker.worker_id, [self.report(held[0], "retryable")], limit=0)
            self.end(held.pop(0), "retryable")

        waits_again = [known.task_id for known in held if not known.is_unwanted]
        assert self.queue.release_worker(worker.worker_id) == waits_again

        for known in held:
            self.undo(known)
        self.let_go(worker)
        assert self.queue.get_next_task(worker.worker_id) is None
        assert self.queue.exchange(worker.worker_id, limit=3).stop
        self.workers[worker.slot] = Worker(worker.slot, worker.incarnation + 1)
        return multiple(*leases)

    @precondition(lambda self: self.running())
    @rule(slot=st.integers(0, 2), pick=picks)
    def give_back(self, slot: int, pick: int) -> None:
        """What a worker holds ahead goes to others; one of them it works on."""
        held = self.held_by(self.workers[slot])
        keeps = held[pick % len(held)] if held and pick % 3 else None
        others = [known for known in held if known is not keeps]

        given = self.queue.take_back(self.workers[slot].worker_id, but=keeps.token if keeps else 0)

        assert given == [known.task_id for known in others if not known.is_unwanted]
        for known in others:
            self.undo(known)
        self.let_go(self.workers[slot], keeps=[keeps.token] if keeps else [])

    @rule(slot=st.integers(0, 2))
    def give_back_too_late(self, slot: int) -> None:
        """What it worked on has ended meanwhile: what it holds now may be another grant's, and is begun."""
        assert self.queue.take_back(self.workers[slot].worker_id, but=NO_LEASE) == []

    @precondition(lambda self: self.may_lease())
    @rule(outcomes=st.lists(st.sampled_from([*OUTCOMES, "hang"]), min_size=2, max_size=8))
    def work_n_steps(self, outcomes: list[str]) -> None:
        for number, outcome in enumerate(outcomes):
            leased = self.lease_as_the_model(self.workers[number % 3])
            if leased and outcome != "hang":
                self.queue.exchange(leased.worker_id, [self.report(leased, outcome)], limit=0)
                self.end(leased, outcome)

    @precondition(lambda self: self.running() and not self.is_paused)
    @rule(pick=picks)
    def fail_until_it_failed(self, pick: int) -> None:
        known = self.pick(self.running(), pick)
        while known.is_running:
            self.queue.exchange(known.worker_id, [self.report(known, "retryable")], limit=0)
            self.end(known, "retryable")
            self.clock.advance(max(0.0, known.due - self.clock()))
            while known.status is S.RETRY_PENDING and self.lease_as_the_model(self.workers[0]):
                pass

    @precondition(lambda self: self.may_lease())
    @rule()
    def see_a_retry_through(self) -> None:
        leased = self.lease_as_the_model(self.workers[0])
        if leased:
            self.queue.exchange(leased.worker_id, [self.report(leased, "retryable")], limit=0)
            self.end(leased, "retryable")
        dues = [known.due for known in self.known.values() if known.status is S.RETRY_PENDING]
        if dues and min(dues) > self.clock():
            for moment in (min(dues) - 0.5, min(dues)):
                self.clock.advance(max(0.0, moment - self.clock()))
                self.lease_as_the_model(self.workers[0])

    # ------------------------------------------------------------------ rules: managing

    @precondition(lambda self: self.known)
    @rule(pick=picks)
    def cancel(self, pick: int) -> None:
        known = self.pick(self.known, pick)
        answer = self.queue.cancel_task(known.task_id)
        assert answer == ("cancelled" if known.is_waiting else "stopping" if known.is_running else "finished")
        if known.is_waiting:
            known.status = S.FAILED
            known.errors += 1
        elif known.is_running:
            known.is_unwanted = True

    @precondition(lambda self: self.running())
    @rule(pick=picks, then=st.sampled_from(["retryable", "undone", "interrupted", "ok", "crash"]))
    def cancel_one_that_runs(self, pick: int, then: str) -> None:
        """Whatever comes then but a success is its end."""
        known = self.pick(self.running(), pick)
        assert self.queue.cancel_task(known.task_id) == "stopping"
        known.is_unwanted = True
        if then == "crash":
            self.crash_and_replay(0.5, is_new_boot=False)
        elif then == "undone":
            self.queue.exchange(known.worker_id, [told(known.task_id, known.token)], limit=0)
            self.undo(known)
        elif then == "interrupted":
            assert self.queue.interrupt_leases([known.token], "x", is_crash=False) == 1
            self.break_off(known, is_crash=False)
        else:
            self.queue.exchange(known.worker_id, [self.report(known, then)], limit=0)
            self.end(known, then)

    @precondition(lambda self: len(self.known) > 2)
    @rule(wanted=st.lists(picks, min_size=1, max_size=3))
    def drop(self, wanted: list[int]) -> None:
        names = [self.pick(self.known, each).task_id for each in wanted]
        gone = {name for name in names if not self.known[name].is_running}
        assert self.queue.drop_tasks([*names, "nobody"]) == len(gone)
        self.forget(gone)

    @precondition(lambda self: any(known.status is S.FAILED for known in self.known.values()))
    @rule(wanted=st.none() | st.lists(picks, max_size=2))
    def requeue(self, wanted: list[int] | None) -> None:
        names = None if wanted is None else [self.pick(self.known, each).task_id for each in wanted if self.known]
        failed = [k for k in self.known.values() if k.status is S.FAILED and (names is None or k.task_id in names)]
        assert self.queue.requeue_failed(names) == len(failed)
        for known in failed:
            known.status, known.due, known.retries, known.crashes = S.RETRY_PENDING, self.clock(), 0, 0

    @precondition(lambda self: self.running())
    @rule(begun=st.lists(picks, max_size=2), is_crash=st.booleans(), all_others=st.booleans())
    def interrupt(self, begun: list[int], is_crash: bool, all_others: bool) -> None:
        running = self.running()
        broken = {self.pick(running, each).token for each in begun if running}
        assert self.queue.interrupt_leases(broken | {10**9}, "x", is_crash=is_crash, all_others=all_others) == len(
            broken
        )
        for known in running:
            if known.token in broken:
                self.break_off(known, is_crash)
            elif all_others:
                self.undo(known)

    @precondition(lambda self: self.may_lease())
    @rule()
    def crash_again_and_again(self) -> None:
        """As often as it takes for the one that is in hand to be taken for the cause."""
        leased = self.lease_as_the_model(self.workers[0])
        while leased and leased.is_running:
            assert self.queue.interrupt_leases([leased.token], "killed", is_crash=True) == 1
            self.break_off(leased, is_crash=True)
            again = self.lease_as_the_model(self.workers[0])
            if again is not leased:
                break

    @rule(steps=st.integers(0, 2))
    def pause(self, steps: int) -> None:
        self.queue.pause_queue()
        self.is_paused = True
        for worker in self.workers[:steps]:
            self.lease_as_the_model(worker)

    @precondition(lambda self: self.is_paused)
    @rule()
    def resume(self) -> None:
        self.queue.resume_queue()
        self.is_paused = False

    @rule(seconds=st.sampled_from([0.5, 1.0, 7.5, 8.0, 16.0, CAP_S]))
    def tick(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @precondition(lambda self: len(self.known) > 8)
    @rule(preserve_processing=st.booleans())
    def clear(self, preserve_processing: bool) -> None:
        gone = {k.task_id for k in self.known.values() if k.is_waiting or (k.is_running and not preserve_processing)}
        assert self.queue.clear_queue(preserve_processing) == len(gone)
        self.cleared_leases |= {
            known.token: (known.worker_id, known.po_number)
            for known in self.running()
            if known.task_id in gone and known.worker_id in self.queue._turns
        }
        self.forget(gone)

    @precondition(lambda self: any(known.worker_id in self.queue._turns for known in self.running()))
    @rule(pick=picks)
    def clear_what_runs_and_add_it_again(self, pick: int) -> None:
        """It waits until the worker of a pool, which cannot know yet, has nothing of it any more."""
        known = self.pick([known for known in self.running() if known.worker_id in self.queue._turns], pick)
        worker = next(each for each in self.workers if each.worker_id == known.worker_id)
        self.clear(preserve_processing=False)
        self.add(int(known.po_number.removeprefix("PO-")), 5)
        self.lease_as_the_model(Worker(worker.slot + 3))
        self.exchange(worker, [], 1, is_lost=False)

    @rule(max_retries=st.integers(0, 3), is_for_all=st.booleans())
    def configure(self, max_retries: int, is_for_all: bool) -> None:
        if not is_for_all:
            self.queue.update_configuration(max_retries=max_retries)
            self.max_retries = max_retries
            return
        self.queue.reconfigure_tasks(max_retries=max_retries)
        for known in self.known.values():
            if known.status is not S.COMPLETED:
                known.max_retries = max_retries

    # ------------------------------------------------------------------ rules: crashes and faults

    @rule(down_s=st.sampled_from([0.0, 0.5, 4.0, 100.0]), is_new_boot=st.booleans())
    def crash_and_replay(self, down_s: float, is_new_boot: bool) -> None:
        """The owner is killed; what stands in its files is all that is left."""
        assert self.queue._journal is not None
        self.let_all_go()  # what is no task any more is in no journal
        was = snapshot(self.queue)
        left = left_by_a_crash(self.queue._journal.path, Path(self.folder.name) / str(next(self.lives)))

        for retention_s in (0.5, 16.0):
            self.forget_on_the_way(left, retention_s)
        again = self.opened(left)
        assert snapshot(again) == was
        self.queue.close_queue()  # the copies are made: nothing that this does reaches them
        if down_s or is_new_boot:
            again.close_queue()
            self.clock.advance(down_s)
            if is_new_boot:
                self.start_the_machine_again()
            again = self.opened(left)
        self.queue = again
        for worker in self.workers:
            worker.turn = 0 if is_new_boot else worker.turn

    def forget_on_the_way(self, left: Path, retention_s: float) -> None:
        """A replay that forgets after each line what had ended long ago stands where one stands that forgets in the end."""
        found = []
        for every in (1, NEVER):
            with (
                mock.patch.object(replay_module, "FORGET_EVERY", every),
                closing(open_queue(left, self.clock, retention_s=retention_s)) as again,
            ):
                found.append((snapshot(again), again.get_finished()))
        assert found[0] == found[1]

    def start_the_machine_again(self) -> None:
        """The monotonic clock begins anew: what is left of a delay stays what it is."""
        before = self.clock()
        self.boot = f"boot {next(self.lives)}"
        self.clock._write(BOOTED_S, self.clock.wall())
        for known in self.known.values():
            known.due = BOOTED_S + max(0.0, known.due - before)

    @rule(place=st.sampled_from(["journal.write", "journal.before_commit"]), call=picks, pick=picks)
    def commit_fails_once(self, place: str, call: int, pick: int) -> None:
        """Nothing has happened; and after a while the queue tries again by itself."""
        calls = self.calls_that_write(pick)
        self.let_all_go()  # what a worker has not, it has not, whatever else fails
        before = whole_state(self.queue)
        with faults_at(place) as reached:
            try:
                outcome = self.pick(calls, call)()
            except JournalError:
                outcome = None
        assert not getattr(outcome, "leases", outcome)
        if reached:
            assert whole_state(self.queue) == before
        self.clock.advance(FAULT_RETRY_S)

    def calls_that_write(self, pick: int) -> list[Callable[[], Any]]:
        queue, worker = self.queue, self.workers[pick % 3]
        calls: list[Callable[[], Any]] = [
            lambda: queue.add_task(self.new_task("T-never", 3)),
            lambda: queue.get_next_task(worker.worker_id),
            lambda: queue.exchange(worker.worker_id, limit=3),
            queue.requeue_failed,
            lambda: queue.clear_queue(preserve_processing=False),
            lambda: queue.update_configuration(max_retries=1),
            lambda: queue.reconfigure_tasks(max_retries=1),
            queue.resume_queue if self.is_paused else queue.pause_queue,
        ]
        holders = [each for each in self.workers if self.held_by(each)]
        if holders:
            holder = self.pick(holders, pick)
            reports, turn = self.reports_of(holder, ["ok"] * (pick % 2)), self.next_turn(holder)
            calls += [
                lambda: queue.exchange(holder.worker_id, reports, 0, turn=turn),
                lambda: queue.exchange(holder.worker_id, reports, 2, turn=turn),
                lambda: queue.take_back(holder.worker_id),
            ]
        if self.running():
            known = self.pick(self.running(), pick)
            calls += [
                lambda: queue.complete_task(known.task_id, known.worker_id, success()),
                lambda: queue.exchange(known.worker_id, [self.report(known, "retryable")], limit=2),
                lambda: queue.interrupt_leases([known.token], "killed", is_crash=True, all_others=True),
            ]
        waiting = [known for known in self.known.values() if known.is_waiting]
        if waiting:
            calls.append(lambda: queue.drop_tasks([self.pick(waiting, pick).task_id]))
        return calls

    # ------------------------------------------------------------------ what always holds

    @invariant()
    def every_task_is_where_the_model_has_it(self) -> None:
        found = {
            e.task_id: (
                e.status, e.attempt, e.retry_count, e.crashes, e.interruptions, e.max_retries, e.rank,
                len(e.error_history or ()),
            )
            for e in entries(self.queue)
        }  # fmt: skip
        assert found == {
            k.task_id: (k.status, k.attempt, k.retries, k.crashes, k.interruptions, k.max_retries, k.rank, k.errors)
            for k in self.known.values()
        }

    @invariant()
    def the_leases_are_those_of_the_model(self) -> None:
        leases = {token: (record.task_id, record.worker_id) for token, record in self.queue.get_leases().items()}
        assert leases == {known.token: (known.task_id, known.worker_id) for known in self.running()}

    @invariant()
    def every_retry_is_due_when_the_model_says(self) -> None:
        now = self.clock()
        found = {e.task_id: max(now, e.ready) for e in entries(self.queue) if e.status is S.RETRY_PENDING}
        assert found == {k.task_id: max(now, k.due) for k in self.known.values() if k.status is S.RETRY_PENDING}

    @invariant()
    def the_state_is_legal(self) -> None:
        assert_legal(self.queue)
        status = self.queue.get_queue_status()
        assert (status["total_tasks"], status["cleared_tasks"]) == (self.added_ever(), self.cleared)
        assert status["status"] == ("PAUSED" if self.is_paused or status["reason"] else "ACTIVE")

    def teardown(self) -> None:
        try:
            if hasattr(self, "queue"):
                self.drain()
        finally:
            if hasattr(self, "queue"):
                self.queue.close_queue()
            self.boot_patch.stop()
            self.folder.cleanup()

    def drain(self) -> None:
        self.queue.resume_queue()
        self.is_paused = False
        self.let_all_go()
        for known in self.running():
            self.queue.retry_task(known.task_id, ERROR)
            self.end(known, "retryable")
        for _ in range(len(self.known) * (MAX_RETRIES + 9) + 1):
            while leased := self.lease_as_the_model(self.workers[0]):
                self.queue.complete_task(leased.task_id, leased.worker_id, success())
                self.end(leased, "ok")
            self.clock.advance(CAP_S)
        self.crash_and_replay(0.0, is_new_boot=False)
        self.every_task_is_where_the_model_has_it()
        self.the_state_is_legal()
        assert all(known.status in ENDED for known in self.known.values())

    # ------------------------------------------------------------------ the model

    def pick(self, things: dict[str, T] | list[T], index: int) -> T:
        return list(things.values() if isinstance(things, dict) else things)[index % len(things)]

    def running(self) -> list[Known]:
        return [known for known in self.known.values() if known.is_running]

    def run_again(self) -> list[Known]:
        return [known for known in self.running() if known.earlier_tokens]

    def may_lease(self) -> bool:
        return not self.is_paused and any(known.is_waiting for known in self.known.values())

    def held_by(self, worker: Worker) -> list[Known]:
        return sorted((k for k in self.running() if k.worker_id == worker.worker_id), key=lambda known: known.token)

    def added_ever(self) -> int:
        return len(self.known) + self.cleared

    def new_task(self, task_id: str, po: int) -> ProcessingTask:
        return ProcessingTask(task_id, {"po_number": f"PO-{po}"})

    def remember(self, task_id: str, po: int, priority: int) -> None:
        rank = self.queue._ledger.get(task_id).rank  # type: ignore[union-attr]
        assert all(rank > known.rank for known in self.known.values())
        self.known[task_id] = Known(task_id, f"PO-{po}", priority, rank, self.max_retries)
        self.added = max(self.added, int(task_id.removeprefix("T-")) + 1)

    def forget(self, names: set[str]) -> None:
        for name in names:
            del self.known[name]
        self.cleared += len(names)

    def let_go(self, worker: Worker, keeps: Sequence[int] = ()) -> None:
        """Of what was cleared it has no more than these."""
        gone = [t for t, (holder, _) in self.cleared_leases.items() if holder == worker.worker_id and t not in keeps]
        for token in gone:
            del self.cleared_leases[token]

    def let_all_go(self) -> None:
        for worker_id, _ in self.cleared_leases.values():
            self.queue._moves.let_go(worker_id, ())
        self.cleared_leases.clear()

    def best(self, beside: list[Known]) -> Known | None:
        """The task that has to be leased now."""
        busy = {known.po_number for known in [*self.running(), *beside]}
        busy |= {po_number for _, po_number in self.cleared_leases.values()}
        may_run = [
            k for k in self.known.values()
            if (k.status is S.PENDING or (k.status is S.RETRY_PENDING and k.due <= self.clock())) and k.po_number not in busy
        ]  # fmt: skip
        return min(may_run, key=lambda k: (k.priority, k.rank), default=None) if not self.is_paused else None

    def lease_as_the_model(self, worker: Worker) -> Known | None:
        expected = self.best([])
        leased = self.queue.get_next_task(worker.worker_id)
        assert (leased.task_id if leased else None) == (expected.task_id if expected else None)
        if expected and leased:
            token = next(t for t, record in self.queue.get_leases().items() if record.task_id == leased.task_id)
            self.note_lease(expected, worker, token)
            assert leased.attempt == expected.attempt
        return expected

    def note_lease(self, known: Known, worker: Worker, token: int) -> None:
        assert token > self.last_token, "a token was given out twice"
        known.earlier_tokens += [known.token] * bool(known.token)
        self.last_token = known.token = token
        known.status, known.worker_id = S.PROCESSING, worker.worker_id
        known.attempt += 1

    def exchange(self, worker: Worker, hand: list[str], limit: int, is_lost: bool, keeps: Sequence[Known] = ()) -> None:
        reports = self.reports_of(worker, hand)
        told_now = [(known, outcome) for known, outcome in zip(self.held_by(worker), hand, strict=False)]
        resent = {report.token for report in worker.unanswered}
        worker.turn = self.next_turn(worker)
        in_hand = {report.token for report in reports} | {known.token for known in keeps}
        untold = [known for known in self.held_by(worker) if known.token not in in_hand]

        grant = self.queue.exchange(
            worker.worker_id, reports, limit, turn=worker.turn, keeps=[known.token for known in keeps]
        )

        for known, outcome in told_now:
            if known.token not in resent:
                self.end(known, outcome)
        for known in untold:
            self.undo(known)
        self.let_go(worker, keeps=[known.token for known in keeps])
        self.take_grant(worker, grant.leases, limit)
        worker.unanswered = reports if is_lost else []

    def next_turn(self, worker: Worker) -> int:
        return max(worker.turn, self.queue._turns.get(worker.worker_id, 0)) + 1

    def reports_of(self, worker: Worker, hand: list[str]) -> list[Report]:
        reports = [self.report(known, outcome) for known, outcome in zip(self.held_by(worker), hand, strict=False)]
        return [*worker.unanswered, *reports]

    def take_grant(self, worker: Worker, leases: list[Lease], limit: int) -> None:
        for lease in leases:
            expected = self.best([])
            assert expected is not None and lease.task_id == expected.task_id
            self.note_lease(expected, worker, lease.token)
            assert lease.attempt == expected.attempt
            assert lease.max_attempts == expected.attempt + expected.max_retries - expected.retries
        assert len(leases) == limit or self.best([]) is None

    def report(self, known: Known, outcome: str) -> Report:
        if outcome in ("ok", "by its result"):
            return told(known.task_id, known.token, success() if outcome == "ok" else failure())
        return told(known.task_id, known.token, error=ERROR, give_up=outcome == "fatal")

    def report_too_late(self, task_id: str, token: int, worker_id: str, outcome: str) -> None:
        """Of an attempt that has ended: whoever sends it, it changes nothing."""
        before = whole_state(self.queue)
        late = Known(task_id, "", 5, 0, token=token)
        self.queue.exchange(worker_id, [self.report(late, outcome)], limit=0)
        assert whole_state(self.queue) == before

    def end(self, known: Known, outcome: str) -> None:
        """An attempt ended."""
        if outcome == "ok":
            known.status, known.crashes = S.COMPLETED, 0  # of what is done nobody asks how it came to it
            return
        known.errors += 1
        if outcome != "cancelled before it began":
            known.crashes = 0
        if outcome == "retryable" and known.retries < known.max_retries and not known.is_unwanted:
            known.retries += 1
            known.status = S.RETRY_PENDING
            known.due = self.clock() + min(CAP_S, RETRY_DELAY_S * 2 ** (known.retries - 1))
        else:
            known.status, known.is_unwanted = S.FAILED, False

    def undo(self, known: Known) -> None:
        known.attempt -= 1
        if known.is_unwanted:
            self.end(known, "cancelled before it began")
            return
        known.status = S.PENDING

    def break_off(self, known: Known, is_crash: bool) -> None:
        if known.is_unwanted:
            self.end(known, "cancelled")
            return
        known.errors += 1
        if is_crash and known.crashes >= MAX_CRASHES:
            known.status, known.crashes = S.FAILED, 0
            return
        known.crashes += is_crash
        known.interruptions += 1
        known.status = S.PENDING


SETTINGS = settings(max_examples=60, stateful_step_count=40)
TO_CATCH_A_MUTANT = settings(  # caught, not explained; most are within a few examples
    SETTINGS, derandomize=True, phases=[Phase.generate], max_examples=1000
)
JournalMachine.TestCase.settings = SETTINGS
TestAnyHistoryWithAJournal = JournalMachine.TestCase
