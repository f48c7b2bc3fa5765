"""The journal under faults: what was told is in the file, what could not be written has not happened, and no file is misread."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import pickle
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import tracemalloc
from collections.abc import Callable, Iterator
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from poqueue import ProcessingTask, QueueFullError, TaskQueue, TaskResult, TaskStatus, failpoint
from poqueue import journal as journal_module
from poqueue import replay as replay_module
from poqueue.entry import NewTask, Row
from poqueue.errors import JournalError, JournalGoneError, WorkerMismatchError
from poqueue.journal import Journal, check_file
from poqueue.ledger import Ledger
from poqueue.packing import FrozenTask
from poqueue.payload import freeze_po, freeze_result
from poqueue.records import Kind, Record
from poqueue.server import METHODS
from poqueue.service import QueueService
from poqueue.task import Success
from poqueue.task_queue import FAULT_RETRY_S
from poqueue.verdict import MAX_CRASHES
from tests.contract.scene import Clock, Recorder, success
from tests.faults.journal_scene import (
    CAP_S,
    OPERATIONS,
    RETRY_DELAY_S,
    after_a_crash,
    assert_legal,
    closing,
    faults_at,
    filled,
    left_by_a_crash,
    open_queue,
    prepared,
    snapshot,
    task,
    token_of,
    told,
    whole_state,
)

S = TaskStatus
ROOT = Path(__file__).parents[2]
DAY_S = 86_400.0
SHORT_S = 0.1
DEADLINE_S = 30.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


@pytest.fixture
def queue(path: Path, clock: Clock) -> Iterator[TaskQueue]:
    with closing(open_queue(path, clock)) as queue:
        yield queue


@pytest.fixture(autouse=True)
def nobody_waits_long_for_a_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "BUSY_S", SHORT_S)


def journal_of(queue: TaskQueue) -> Journal:
    assert queue._journal is not None
    return queue._journal


def status_of(queue: TaskQueue, task_id: str) -> TaskStatus:
    found = queue.find_task(task_id=task_id)
    assert found is not None
    return found.status


def lease(queue: TaskQueue, worker_id: str = "w1") -> str | None:
    leased = queue.get_next_task(worker_id)
    return leased.task_id if leased else None


# ── written before it is told ────────────────────────────────────────────────────────────────────────────────────────

CHANGES_NO_TASK = {
    "retire_worker", "halt_after", "drain_queue", "drain_when_done", "hold_queue", "set_event_handlers", "open_events",
    "read_events", "read_events_packed", "close_events", "post_notice", "set_view", "close_queue", "copy_journal",
}  # fmt: skip
ASKS = ("get_", "find_", "export_", "has_", "optimize_")
INSIDE_ANOTHER = {"exchange_packed"}  # which exchange only unpacks


def test_every_method_that_changes_a_queue_is_tried_here() -> None:
    public = {name for name, _ in inspect.getmembers(TaskQueue, inspect.isfunction) if not name.startswith("_")}
    tried = {name.split(",")[0] for name in OPERATIONS}

    asking = {name for name in public if name.startswith(ASKS)} - {"get_next_task"}

    assert public - asking - CHANGES_NO_TASK - INSIDE_ANOTHER == tried
    assert set(METHODS) <= public


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_was_told_is_in_the_file(name: str, path: Path, clock: Clock, tmp_path: Path) -> None:
    with closing(prepared(name, path, clock)) as queue:
        before = snapshot(queue)

        OPERATIONS[name](queue)

        told = snapshot(queue)
        assert told != before
        assert_legal(queue)
        with closing(after_a_crash(queue, tmp_path / "crash", clock)) as again:
            assert snapshot(again) == told
            assert_legal(again)


@pytest.mark.once
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_copy_made_while_it_is_open_holds_the_same(name: str, path: Path, clock: Clock, tmp_path: Path) -> None:
    with closing(prepared(name, path, clock)) as queue:
        OPERATIONS[name](queue)

        queue.copy_journal(str(tmp_path / "copy"))

        with closing(open_queue(tmp_path / "copy", clock)) as again:
            assert snapshot(again) == snapshot(queue)


def test_replaying_twice_is_replaying_once(queue: TaskQueue, clock: Clock, tmp_path: Path) -> None:
    told = snapshot(filled(queue, clock))

    for name in ("once", "twice", "thrice"):
        queue.close_queue()
        shutil.copyfile(journal_of(queue).path, tmp_path / name)
        queue = open_queue(tmp_path / name, clock)
        assert snapshot(queue) == told
    queue.close_queue()


@pytest.mark.once
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_replay_up_to_any_commit_is_a_legal_state_and_the_last_one_that_was(
    name: str, path: Path, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies: list[Path] = []
    real = Journal.write

    def write(journal: Journal, *args: Any) -> None:
        real(journal, *args)
        copies.append(tmp_path / f"after-{len(copies)}")
        journal.copy_to(copies[-1])

    monkeypatch.setattr(Journal, "write", write)
    with closing(prepared(name, path, clock)) as queue:
        earlier = len(copies)
        OPERATIONS[name](queue)
        told = snapshot(queue)
    monkeypatch.undo()

    assert len(copies) > earlier > 15
    for copy in copies:
        with closing(open_queue(copy, clock)) as again:
            assert_legal(again)
            reached = snapshot(again)
    assert reached == told


@pytest.mark.parametrize("again", ["clear_queue", "drop_tasks", "retention"])
def test_an_id_that_is_free_again_is_another_task(queue: TaskQueue, clock: Clock, tmp_path: Path, again: str) -> None:
    queue.add_task(task("A"))
    if again == "clear_queue":
        queue.clear_queue()
    else:
        lease(queue)
        queue.complete_task("A", "w1", success())
    if again == "drop_tasks":
        queue.drop_tasks(["A"])
    elif again == "retention":
        clock.advance(2 * DAY_S)
        queue._cleanup_resources()
    queue.add_task(task("A", "another"))

    with closing(after_a_crash(queue, tmp_path / "crash", clock)) as second:
        for each in (queue, second):
            assert status_of(each, "A") is S.PENDING
            assert_legal(each) if again != "retention" else None
            clock.advance(2 * DAY_S)
            each._cleanup_resources()
            assert lease(each) == "A"
            assert each.find_task("another") is not None


def test_limits_given_to_the_tasks_there_are_do_not_reach_later_ones(
    queue: TaskQueue, clock: Clock, tmp_path: Path
) -> None:
    queue.add_task(task("before"))
    queue.reconfigure_tasks(max_retries=9, task_timeout=1.0)
    queue.add_task(task("after"))

    with closing(after_a_crash(queue, tmp_path / "crash", clock)) as again:
        assert snapshot(again) == snapshot(queue)
        assert [again.find_task(task_id=each).max_retries for each in ("before", "after")] == [9, 2]  # type: ignore[union-attr]


def test_settings_of_the_journal_win_over_those_of_its_opening(queue: TaskQueue, clock: Clock, tmp_path: Path) -> None:
    queue.update_configuration(max_retries=7, queue_size_limit=1)

    with closing(after_a_crash(queue, tmp_path / "crash", clock, max_retries=1, task_timeout=5.0)) as again:
        again.add_task(task("A"))

        found = again.find_task(task_id="A")
        assert found is not None and (found.max_retries, found.task_timeout) == (7, 5.0)
        with pytest.raises(QueueFullError):
            again.add_task(task("B"))


def test_a_replay_does_not_hold_all_that_there_ever_was(
    path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 10_000
    with closing(open_queue(path, clock, retention_s=10.0)) as queue:
        for number in range(500):
            queue.add_task(ProcessingTask(f"T{number}", {"po_number": f"PO-{number}", "text": "x" * size}))
            lease(queue)
            queue.complete_task(f"T{number}", "w1", success())
            clock.advance(1.0)
        queue._cleanup_resources()
        told = snapshot(queue)
    read, held = Ledger.add, []

    def add(ledger: Ledger, tasks: list[NewTask], first_rank: int, now: float, at: float) -> list[Row]:
        if first_rank % 100 == 0:
            held.append(tracemalloc.get_traced_memory()[0])
        return read(ledger, tasks, first_rank, now, at)

    monkeypatch.setattr(Ledger, "add", add)
    monkeypatch.setattr(replay_module, "FORGET_EVERY", 20)
    tracemalloc.start()
    try:
        with closing(open_queue(path, clock, retention_s=10.0)) as again:
            assert snapshot(again) == told
    finally:
        tracemalloc.stop()

    assert len(held) == 5 and max(held) < 50 * size


def test_a_task_that_failed_long_ago_may_be_wanted_again_though_less_is_kept_now(
    path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_module, "FORGET_EVERY", 1)
    with closing(open_queue(path, clock, retention_s=1000.0)) as queue:
        for name in ("Again", "Dropped", "Old"):
            queue.add_task(task(name, max_retries=0))
            lease(queue)
            queue.retry_task(name, {"error": "boom"})
        clock.advance(100.0)
        queue.requeue_failed(["Again"])
        queue.drop_tasks(["Dropped"])
        counts = queue.get_queue_status()

    with closing(open_queue(path, clock, retention_s=1.0)) as again:
        assert [entry.task_id for entry in again._ledger.tasks()] == ["Again"]
        assert status_of(again, "Again") is S.RETRY_PENDING
        assert again.get_queue_status() == counts


def test_a_task_dropped_twice_in_one_call_is_dropped_once(queue: TaskQueue, clock: Clock, tmp_path: Path) -> None:
    queue.add_tasks([task("A"), task("B")])

    assert queue.drop_tasks(["A", "A", "nobody"]) == 1

    with closing(after_a_crash(queue, tmp_path / "crash", clock)) as again:
        for each in (queue, again):
            assert_legal(each)
            assert (each.find_task(task_id="A"), status_of(each, "B")) == (None, S.PENDING)


def test_dropping_the_last_tasks_tells_that_the_queue_is_empty(queue: TaskQueue) -> None:
    recorder = Recorder(queue)
    queue.add_task(task("A"))

    queue.drop_tasks(["A"])

    assert recorder.events == [("empty",)]


def test_a_dropped_task_is_not_told_among_the_finished(queue: TaskQueue, clock: Clock) -> None:
    filled(queue, clock)

    queue.drop_tasks(["Lost"])

    assert [record.task_id for record in queue.get_finished()[0]] == ["Done", "Beaten"]


def test_a_place_among_the_finished_holds_when_earlier_ones_are_forgotten(
    path: Path, clock: Clock, tmp_path: Path
) -> None:
    with closing(open_queue(path, clock, retention_s=10.0)) as queue:
        for name in ("A", "B", "C", "D"):
            queue.add_task(task(name))
            lease(queue)
            clock.advance(6.0)
            queue.complete_task(name, "w1", success())
            if name == "B":
                place = queue.get_finished()[1]

        assert place == 2
        assert [record.task_id for record in queue.get_finished(place)[0]] == ["C", "D"]
        assert queue.get_finished(0)[1] == queue.get_finished(4)[1] == 4
        with closing(after_a_crash(queue, tmp_path / "crash", clock, retention_s=10.0)) as again:
            assert [record.task_id for record in again.get_finished(place)[0]] == ["C", "D"]


def test_a_worker_that_failed_a_task_is_still_known_after_a_later_lease_was_undone(queue: TaskQueue) -> None:
    queue.add_task(task("A", retry_delay=0.0))
    lease(queue)
    queue.retry_task("A", {"error": "boom"})
    lease(queue)

    queue.take_back("w1")

    assert [each.task_id for each in queue.get_tasks_by_worker("w1")] == ["A"]


# ── what cannot be written does not happen ───────────────────────────────────────────────────────────────────────────


@pytest.mark.once
@pytest.mark.parametrize("place", ["journal.write", "journal.before_commit"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_what_cannot_be_written_has_not_happened(
    name: str, place: str, path: Path, clock: Clock, tmp_path: Path
) -> None:
    with closing(prepared(name, path, clock)) as queue:
        recorder = Recorder(queue)
        before = whole_state(queue)

        with faults_at(place) as reached:
            try:
                outcome = OPERATIONS[name](queue)
            except JournalError as error:
                outcome = None
                assert "No space left on device" in str(error)

        assert place in reached
        assert not getattr(outcome, "leases", outcome)
        if name == "release_worker":
            before["retired"] |= {"w2"}  # it is dead whatever else can be said of it
        assert whole_state(queue) == before
        assert recorder.events == []
        with closing(after_a_crash(queue, tmp_path / "crash", clock)) as again:
            assert snapshot(again) == snapshot(queue)
        clock.advance(FAULT_RETRY_S)
        OPERATIONS[name](queue)
        assert snapshot(queue) != {key: before[key] for key in snapshot(queue)}


def test_the_status_says_why_nothing_starts_and_the_queue_goes_on_by_itself(queue: TaskQueue, clock: Clock) -> None:
    queue.add_tasks([task("before"), task("A")])
    lease(queue)
    clock.advance(1.0)
    queue.complete_task("before", "w1", success(1.0))
    with faults_at("journal.before_commit"):
        assert lease(queue) is None

        status = queue.get_queue_status()
        assert (status["status"], status["estimated_completion"]) == ("PAUSED", None)
        assert str(journal_of(queue).path) in status["reason"]
        assert "No space left on device" in status["reason"]
        assert "bytes free" in status["reason"]

    assert lease(queue) is None, "it is not tried again at once"
    clock.advance(FAULT_RETRY_S)
    assert lease(queue) == "A"
    assert (queue.get_queue_status()["status"], queue.get_queue_status()["reason"]) == ("ACTIVE", "")


def test_an_exchange_that_could_not_be_written_may_be_sent_again_as_it_was(queue: TaskQueue, clock: Clock) -> None:
    queue.add_task(task("A"))
    (leased,) = queue.exchange("w1", turn=1).leases
    report = told("A", leased.token, success())

    with faults_at("journal.before_commit"), pytest.raises(JournalError):
        queue.exchange("w1", [report], turn=2)
    queue.exchange("w1", [report], turn=2)

    assert status_of(queue, "A") is S.COMPLETED


def test_a_lease_that_could_not_be_written_delays_no_start(path: Path, clock: Clock) -> None:
    with closing(open_queue(path, clock, start_delay=60.0)) as queue:
        queue.add_task(task("A"))

        with faults_at("journal.write"):
            assert lease(queue) is None

        clock.advance(FAULT_RETRY_S)
        assert lease(queue) == "A"


def test_what_was_taken_and_not_leased_keeps_its_place(queue: TaskQueue, clock: Clock) -> None:
    queue.add_tasks([task("1", "A"), task("2", "A"), task("3", "B"), task("4", "A")])

    with faults_at("journal.write"):
        assert queue.exchange("w1", limit=9).leases == []

    clock.advance(FAULT_RETRY_S)
    assert [each.task_id for each in queue.exchange("w1", limit=9).leases] == ["1", "3"]
    queue.complete_task("1", "w1", success())
    assert [each.task_id for each in queue.exchange("w1", limit=9).leases] == ["2"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda q: q.add_task(task("A\ud800")),
        lambda q: q.add_task(task("A", "PO-\ud800")),
        lambda q: q.add_task(task("A", max_retries=2**63)),
        lambda q: q.get_next_task("w\ud800"),
        lambda q: q.exchange("w\ud800"),
    ],
    ids=["id", "po number", "number beyond 64 bits", "worker of a task", "worker of an exchange"],
)
def test_what_no_database_takes_is_refused_and_the_next_call_works(
    queue: TaskQueue, spoil: Callable[[TaskQueue], Any]
) -> None:
    queue.add_task(task("B"))
    before = whole_state(queue)

    with pytest.raises(ValueError, match="cannot be written down"):
        spoil(queue)

    assert whole_state(queue) == before
    assert lease(queue) == "B"


@pytest.mark.parametrize(
    "value", [["w1"], None, float("nan"), "x" * 2000], ids=["list", "nothing", "no number", "too long"]
)
def test_what_no_column_takes_is_no_fault_of_the_disk(path: Path, value: Any) -> None:
    row = (1, "A", "PO-A", 5, 3, 5.0, 60.0, 0.0, b"{}", "")
    with contextlib.closing(Journal(path)) as journal:
        journal._db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 1000)
        with pytest.raises(ValueError, match="cannot be written down"):
            journal.write((), [(*row[:7], value, *row[8:])])

        journal.write((), [row])
        with pytest.raises(JournalError, match="UNIQUE"):  # there is more in it than its queue knows
            journal.write((), [row])


@pytest.mark.parametrize("number", [None, "", " \t", 7, ["A"]])
def test_a_frozen_task_without_a_po_number_that_is_text_is_refused_and_the_queue_goes_on(
    queue: TaskQueue, number: Any
) -> None:
    before = whole_state(queue)

    with pytest.raises(ValueError, match="po_number must be non-blank text"):
        queue.add_tasks([FrozenTask("A", number, b"{}", 5, None, None, None, "")])  # type: ignore[list-item]

    assert whole_state(queue) == before


@pytest.mark.parametrize("payload", [None, ["{"], "{}", bytearray(b"{}")])
def test_a_frozen_task_whose_data_are_no_bytes_is_refused(clock: Clock, path: Path, payload: Any) -> None:
    for journal in (None, path):
        with closing(open_queue(journal, clock)) as queue:
            with pytest.raises(ValueError, match="frozen to bytes"):
                queue.add_tasks([FrozenTask("A", "A", payload, 5, None, None, None, "")])  # type: ignore[list-item]
            assert lease(queue) is None


def test_a_break_in_the_middle_of_a_write_leaves_no_transaction_open(
    queue: TaskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(name: str) -> None:
        raise KeyboardInterrupt

    queue.add_task(task("A"))
    monkeypatch.setattr(failpoint, "hit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lease(queue)
    monkeypatch.undo()

    assert lease(queue) == "A"


def test_a_closed_queue_refuses_changes_as_a_journal_error(
    queue: TaskQueue, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "FILE_CHECK_S", 0.0)
    filled(queue, clock)
    queue.close_queue()
    before = whole_state(queue)

    with pytest.raises(JournalError, match="closed"):
        queue.add_task(task("A"))
    with pytest.raises(JournalError, match="closed"):
        queue.complete_task("One", "w1", success())

    assert whole_state(queue) == before
    queue.close_queue()


# ── waiting for work ─────────────────────────────────────────────────────────────────────────────────────────────────


def a_due_retry(queue: TaskQueue, clock: Clock) -> None:
    queue.add_task(task("A"))
    lease(queue)
    queue.retry_task("A", {"error": "boom"})
    clock.advance(RETRY_DELAY_S)


def test_a_worker_waits_until_the_next_retry_is_due(queue: TaskQueue, clock: Clock) -> None:
    a_due_retry(queue, clock)
    clock.advance(-3.0)

    assert queue._waiting_time_s(5.0) == 3.0
    assert queue._waiting_time_s(1.0) == 1.0
    queue.pause_queue()
    assert queue._waiting_time_s(5.0) == 5.0


def test_a_due_retry_makes_no_waiting_worker_spin_while_nothing_can_be_written(queue: TaskQueue, clock: Clock) -> None:
    a_due_retry(queue, clock)
    with faults_at("journal.write"), pytest.raises(JournalError):
        queue.add_task(task("B"))

    assert queue._waiting_time_s(5.0) == FAULT_RETRY_S


def test_a_due_retry_makes_no_waiting_worker_spin_until_the_next_start(path: Path, clock: Clock) -> None:
    with closing(open_queue(path, clock, start_delay=3.0)) as queue:
        a_due_retry(queue, clock)
        queue.add_task(task("B"), 1)
        assert lease(queue) == "B"
        queue._schedule.delay(queue._ledger.get("A").row, clock())  # type: ignore[union-attr]  # due, and not looked at yet

        assert queue._waiting_time_s(5.0) == 3.0
        assert queue._waiting_time_s(1.0) == 1.0


def test_a_success_whose_result_nobody_could_read_later_is_refused_and_changes_nothing(queue: TaskQueue) -> None:
    queue.add_task(task("A"))
    (held,) = queue.exchange("w1", turn=1).leases

    with pytest.raises(ValueError, match="takes its result as JSON"):
        queue.exchange("w1", [Success("A", held.token, 1.0, pickle.dumps((True, [], 1.0, None, {})))], turn=2)

    assert queue.get_queue_status()["processing_tasks"] == 1


def test_starts_keep_their_distance(path: Path, clock: Clock) -> None:
    with closing(open_queue(path, clock, start_delay=3.0)) as queue:
        queue.add_tasks([task("A"), task("B"), task("C")])

        assert [each.task_id for each in queue.exchange("w1", limit=9).leases] == ["A"]
        for seconds, expected in ((0.0, None), (2.5, None), (0.5, "B"), (2.5, None), (9.0, "C")):
            clock.advance(seconds)
            assert lease(queue, "w2") == expected


def test_a_hold_stands_beside_a_pause_and_is_not_kept(queue: TaskQueue, clock: Clock, tmp_path: Path) -> None:
    queue.add_task(task("A"))
    queue.hold_queue("the disk is nearly full")

    assert lease(queue) is None
    assert queue.exchange("w1", limit=9).leases == []
    status = queue.get_queue_status()
    assert (status["status"], status["reason"]) == ("PAUSED", "the disk is nearly full")
    queue.resume_queue()
    assert lease(queue) is None
    with closing(after_a_crash(queue, tmp_path / "crash", clock)) as again:
        assert (again.get_queue_status()["status"], lease(again)) == ("ACTIVE", "A")
    queue.hold_queue("")
    assert lease(queue) == "A"


# ── real faults ──────────────────────────────────────────────────────────────────────────────────────────────────────


def fill_up(queue: TaskQueue) -> int:
    """Add until it is refused; how many were taken."""
    for number in range(10_000):
        before = whole_state(queue)
        try:
            queue.add_task(ProcessingTask(f"F{number}", {"po_number": f"F{number}", "text": "x" * 20_000}))
        except JournalError as error:
            assert "bytes free" in str(error)
            assert whole_state(queue) == before
            return number
    raise AssertionError("it never got full")


def goes_on(queue: TaskQueue, clock: Clock, taken: int) -> None:
    """There is room again: the queue needs nobody to tell it."""
    assert lease(queue, "w8") is None
    clock.advance(FAULT_RETRY_S)
    assert lease(queue, "w8") == "F0"
    assert queue.get_queue_status()["reason"] == ""
    assert queue.get_queue_status()["total_tasks"] == taken


def test_a_full_database(queue: TaskQueue, clock: Clock, tmp_path: Path) -> None:
    db = journal_of(queue)._db
    (pages,) = db.execute("PRAGMA page_count").fetchone()
    db.execute(f"PRAGMA max_page_count={pages + 40}")

    taken = fill_up(queue)

    assert 0 < taken < 40
    assert "full" in queue.get_queue_status()["reason"]
    db.execute("PRAGMA max_page_count=1000000")
    goes_on(queue, clock, taken)
    with closing(after_a_crash(queue, tmp_path / "crash", clock)) as again:
        assert snapshot(again) == snapshot(queue)


def test_a_full_disk(tmp_path: Path, clock: Clock) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "none", disk], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    try:
        with closing(open_queue(disk / "journal.sqlite", clock)) as queue:
            ballast = disk / "ballast"
            ballast.write_bytes(bytes(200_000))

            taken = fill_up(queue)

            assert taken > 0
            ballast.unlink()
            goes_on(queue, clock, taken)
            told = snapshot(queue)
        with closing(open_queue(disk / "journal.sqlite", clock)) as again:
            assert snapshot(again) == told
    finally:
        subprocess.run(["umount", disk], check=True)


def in_a_child(do: Callable[[], None]) -> int:
    """Run it in a forked process; how that ended, as subprocess tells it."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with contextlib.suppress(AssertionError):
                do()
                code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_limit_on_the_size_of_files(path: Path, clock: Clock, tmp_path: Path) -> None:
    def child() -> None:
        queue = open_queue(path, clock)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
        taken = fill_up(queue)
        assert taken > 0
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        goes_on(queue, clock, taken)
        (tmp_path / "taken").write_text(str(taken))
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_a_child(child) == -signal.SIGKILL

    with closing(open_queue(path, clock)) as again:
        assert again.get_queue_status()["total_tasks"] == int((tmp_path / "taken").read_text())
        assert status_of(again, "F0") is S.PROCESSING


# ── one at a time ────────────────────────────────────────────────────────────────────────────────────────────────────

TRY_TO_OPEN = """
    import sys
    from pathlib import Path
    from poqueue import journal
    from poqueue.errors import JournalError
    journal.BUSY_S = 0.1
    try:
        journal.Journal(Path(sys.argv[1]))
    except JournalError as error:
        print(error)
    else:
        print("opened")
"""
HOLD = """
    import sqlite3, sys
    db = sqlite3.connect(sys.argv[1], isolation_level=None)
    db.execute("BEGIN EXCLUSIVE")
    print("held", flush=True)
    sys.stdin.read()
"""


def python(source: str, *args: Any) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(source), *map(str, args)]


def another_process_opens(path: Path) -> str:
    done = subprocess.run(
        python(TRY_TO_OPEN, path), cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=True
    )
    return done.stdout.strip()


def test_a_journal_in_use_is_opened_by_nobody_else(queue: TaskQueue, path: Path) -> None:
    assert another_process_opens(path) == f"{path}: the journal is in use by another process"


@pytest.mark.parametrize("look", [Journal, check_file])
def test_looking_at_a_journal_that_is_open_here_does_not_let_go_of_it(
    queue: TaskQueue, path: Path, look: Callable[[Path], Any]
) -> None:
    with pytest.raises(JournalError, match="in use by this process"):
        look(path)

    assert "in use by another process" in another_process_opens(path)


def test_a_journal_is_free_once_its_queue_is_closed(queue: TaskQueue, path: Path, clock: Clock) -> None:
    queue.close_queue()

    assert another_process_opens(path) == "opened"
    with closing(open_queue(path, clock)):
        pass


def test_a_file_that_somebody_else_has_locked_is_not_opened(queue: TaskQueue, path: Path, clock: Clock) -> None:
    queue.add_task(task("A"))
    queue.close_queue()
    with subprocess.Popen(python(HOLD, path), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"

        with pytest.raises(JournalError, match="in use by another process"):
            open_queue(path, clock)

        holder.communicate()
    with closing(open_queue(path, clock)) as again:
        assert status_of(again, "A") is S.PENDING


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_file_that_was_deleted_or_replaced_is_noticed(
    path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, is_replaced: bool
) -> None:
    monkeypatch.setattr(journal_module, "FILE_CHECK_S", 0.0)
    with closing(filled(open_queue(path, clock), clock)) as queue:
        before = whole_state(queue)
        aside = path.with_suffix(".aside")
        path.rename(aside)
        if is_replaced:
            shutil.copyfile(aside, path)

        with pytest.raises(JournalGoneError, match="deleted or replaced"):
            queue.add_task(task("New"))
        assert lease(queue, "w9") is None

        assert whole_state(queue) == before
        assert "deleted or replaced" in queue.get_queue_status()["reason"]


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_wal_file_that_was_deleted_or_replaced_is_noticed_and_nothing_told_before_is_lost(
    path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_replaced: bool
) -> None:
    monkeypatch.setattr(journal_module, "FILE_CHECK_S", 0.0)
    with closing(filled(open_queue(path, clock), clock)) as queue:
        before, known = whole_state(queue), snapshot(queue)
        wal = Path(f"{path}-wal")
        content = wal.read_bytes()
        wal.unlink()
        if is_replaced:
            wal.write_bytes(content)

        with pytest.raises(JournalGoneError, match="-wal was deleted or replaced"):
            queue.add_task(task("New"))
        assert lease(queue, "w9") is None

        assert whole_state(queue) == before
        assert "-wal was deleted or replaced" in queue.get_queue_status()["reason"]
        with closing(open_queue(left_by_a_crash(path, tmp_path / "crash"), clock)) as again:
            assert snapshot(again) == known


def test_the_wal_file_is_the_same_through_copies_and_reopenings(
    path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(journal_module, "FILE_CHECK_S", 0.0)
    for name in ("A", "B"):
        with closing(open_queue(path, clock)) as queue:
            queue.copy_journal(str(tmp_path / name))
            journal_of(queue)._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

            queue.add_task(task(name))


# ── forks ────────────────────────────────────────────────────────────────────────────────────────────────────────────

FORK_AND_DIE = """
    import os, signal, sys
    from poqueue import ProcessingTask, TaskQueue
    queue = TaskQueue(journal=sys.argv[1])
    queue.add_task(ProcessingTask("A", {"po_number": "A"}))
    pid = os.fork()
    if pid == 0:
        if sys.argv[2] == "closes":
            queue.close_queue()
        elif sys.argv[2] == "forgets":
            del queue
        sys.exit()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    queue.add_task(ProcessingTask("B", {"po_number": "B"}))
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("child", ["ends", "closes", "forgets"])
def test_what_is_told_after_a_fork_is_in_the_file_whatever_the_child_does(path: Path, clock: Clock, child: str) -> None:
    done = subprocess.run(
        python(FORK_AND_DIE, path, child), cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )

    assert (done.returncode, done.stderr) == (-signal.SIGKILL, "")
    with closing(open_queue(path, clock)) as again:
        assert [entry.task_id for entry in again._ledger.tasks()] == ["A", "B"]


def test_in_a_forked_child_a_journal_is_refused_to_everybody(queue: TaskQueue, path: Path, tmp_path: Path) -> None:
    queue.add_task(task("A"))
    journal = journal_of(queue)
    uses: list[Callable[[], object]] = [
        lambda: queue.add_task(task("B")), queue.pause_queue, journal.write, journal.last_at,
        lambda: list(journal.tasks()), lambda: list(journal.records()),
        lambda: queue.copy_journal(str(tmp_path / "copy")), lambda: Journal(path), lambda: check_file(path),
    ]  # fmt: skip

    def child() -> None:
        for use in uses:
            with pytest.raises(JournalError, match="opened before this process was forked; open it after the fork"):
                use()
        queue.close_queue()
        assert [one.task_id for one in queue.get_tasks_by_status(S.PENDING)] == ["A"]

    assert in_a_child(child) == 0

    assert lease(queue) == "A"
    assert another_process_opens(path) == f"{path}: the journal is in use by another process"


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_manager_that_is_forked_beside_an_open_journal_has_its_own(
    queue: TaskQueue, clock: Clock, tmp_path: Path
) -> None:
    with QueueService(start_method="fork", journal=tmp_path / "its.sqlite") as service:
        service.client().add_task(task("A"))
        queue.add_task(task("B"))
        os.kill(service.pid, signal.SIGKILL)
        service.replace()
        assert service.client().find_task(task_id="A") is not None
    queue.add_task(task("C"))

    with closing(after_a_crash(queue, tmp_path / "crash", clock)) as again:
        assert [entry.task_id for entry in again._ledger.tasks()] == ["B", "C"]


# ── killed ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def short_history(queue: TaskQueue, clock: Clock) -> Iterator[None]:
    """A step at a time: each is one commit."""
    queue.add_tasks([task("A"), task("B"), task("C", "PO-A"), task("D")])
    yield
    (first, second) = queue.exchange("w1", limit=2, turn=1).leases
    yield
    queue.exchange("w1", [told("A", first.token, success()), told("B", second.token, error={"error": "x"})], 0, turn=2)
    yield
    clock.advance(RETRY_DELAY_S)
    lease(queue, "w2")
    yield
    queue.pause_queue()
    yield
    queue.interrupt_leases([token_of(queue, "B")], "killed", is_crash=True)
    yield
    queue.update_configuration(max_retries=1)
    yield
    queue.resume_queue()
    yield
    queue.cancel_task("D")
    yield
    queue.requeue_failed()
    yield
    queue.drop_tasks(["D"])
    yield
    queue.add_task(task("D"))
    yield


def states(path: Path, clock: Clock) -> list[dict[str, Any]]:
    """What a queue has been through: [0] is the empty one."""
    with closing(open_queue(path, clock)) as queue:
        return [snapshot(queue), *(snapshot(queue) for _ in short_history(queue, clock))]


def live(path: Path, clock: Clock, acks: Path, failpoints: str) -> None:
    """The same, with a byte written down for each step that was told."""
    failpoint.hit = failpoint._Points(failpoints, None).hit
    acked = os.open(acks, os.O_WRONLY | os.O_CREAT, 0o600)
    queue = open_queue(path, clock)
    os.write(acked, b"+")
    for _ in short_history(queue, clock):
        os.write(acked, b"+")


def same_tasks(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Leaves out what depends on the present moment."""
    keys = ("tasks", "tally", "paused", "config", "last", "delayed")
    return all(one[key] == other[key] for key in keys)


@pytest.mark.parametrize(("place", "is_written"), [("journal.before_commit", False), ("journal.after_commit", True)])
def test_a_kill_at_any_commit_loses_nothing_that_was_told(tmp_path: Path, place: str, is_written: bool) -> None:
    expected = states(tmp_path / "expected", Clock())
    nth = 0
    while True:
        nth += 1
        path, acks, clock = tmp_path / f"killed-{nth}", tmp_path / f"acks-{nth}", Clock()
        if in_a_child(partial(live, path, clock, acks, f"{place}:{nth}:kill")) == 0:
            break
        acked = len(acks.read_bytes())
        assert acked == nth - 1
        with closing(open_queue(path, clock)) as again:
            assert_legal(again)
            reached = acked + is_written - 1  # the first commit is that of the opening
            assert same_tasks(snapshot(again), expected[max(reached, 0)])
    assert nth == len(expected) + 1


def test_a_kill_asked_for_in_the_environment(path: Path, clock: Clock) -> None:
    source = """
        import sys
        from poqueue import ProcessingTask, TaskQueue
        queue = TaskQueue(journal=sys.argv[1])
        for number in range(9):
            print(queue.add_task(ProcessingTask("", {"po_number": number})), flush=True)
    """
    asked = {"POQUEUE_TESTING": "1", "POQUEUE_FAILPOINT": "journal.before_commit:5:kill"}

    done = subprocess.run(
        python(source, path), cwd=ROOT, env={**os.environ, **asked}, capture_output=True, text=True, check=False,
        timeout=DEADLINE_S,
    )  # fmt: skip

    assert done.returncode == -signal.SIGKILL
    assert len(done.stdout.split()) == 3
    with closing(open_queue(path, clock)) as again:
        assert {each.task_id for each in again.get_tasks_by_status(S.PENDING)} == set(done.stdout.split())


def test_a_log_that_was_cut_off_is_an_earlier_state_or_an_error(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "journal.sqlite"
    with closing(open_queue(path, clock)) as queue:
        told = [snapshot(queue), *(snapshot(queue) for _ in short_history(queue, clock))]
        whole = Path(f"{left_by_a_crash(path, tmp_path / 'left')}-wal").read_bytes()
    main = (tmp_path / "left" / path.name).read_bytes()
    reached: list[int] = []
    errors = 0

    for cut in [*range(1, len(whole), 1501), len(whole) - 40, len(whole)]:
        spoilt = tmp_path / f"cut-{cut}"
        spoilt.write_bytes(main)
        Path(f"{spoilt}-wal").write_bytes(whole[: len(whole) - cut])
        try:
            again = open_queue(spoilt, clock)
        except JournalError as error:
            errors += 1
            assert "not a journal of poqueue" in str(error)
            continue
        with closing(again):
            assert_legal(again)
            found = [number for number, state in enumerate(told) if same_tasks(state, snapshot(again))]
            assert found, f"cut by {cut} bytes: a state that never was"
            assert errors == 0
            reached.append(found[0])
    assert reached == sorted(reached, reverse=True)
    assert len(set(reached)) > 5
    assert errors > 0


# ── files that are no journal, or not a whole one ────────────────────────────────────────────────────────────────────


def _flip_a_page_header(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for page in range(1, len(content) // 4096):
        for offset in range(8):
            content[page * 4096 + offset] ^= 0xFF
    path.write_bytes(content)


def _halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 8192 * 4096)


def _pragma(statement: str) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.execute(statement)
            db.commit()

    return spoil


def _configured(changes: dict[str, Any]) -> Callable[[Path], None]:
    return _pragma(f"INSERT INTO log(kind, at, error) VALUES({Kind.CONFIGURED:d}, 1.0, '{json.dumps(changes)}')")


SPOILED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "0 bytes": (lambda path: path.write_bytes(b""), "is empty"),
    "no SQLite file": (lambda path: path.write_bytes(b"po_number,amount\n" * 900), "no SQLite file"),
    "another program's": (_pragma("PRAGMA application_id=7"), "not a journal of poqueue"),
    "of a newer poqueue": (_pragma("PRAGMA user_version=99"), "schema version 99"),
    "settings of a newer poqueue": (_configured({"shiny": 1, "new": 2}), "cannot be taken up: unknown: new, shiny"),
    "a setting that cannot be": (_configured({"max_retries": "x"}), "cannot be taken up: retry count"),
    "a damaged page": (_flip_a_page_header, "damaged"),
}
ALSO_DAMAGED: dict[str, Callable[[Path], Any]] = {
    "half of it": _halve,
    "no log": _pragma("DROP TABLE log"),
    "no tasks": _pragma("DROP TABLE tasks"),
    "an unknown line": _pragma("INSERT INTO log(kind, rank, at) VALUES(77, 1, 1.0)"),
    "a line of no task": _pragma("INSERT INTO log(kind, rank, at) VALUES(8, 777, 1.0)"),
    "a step that cannot be": _pragma("INSERT INTO log(kind, rank, token, at) VALUES(1, 1, 99, 1.0)"),
    "a token used again": _pragma("UPDATE log SET token=1 WHERE kind=1"),
    "an impossible priority": _pragma("UPDATE tasks SET priority=99"),
    "an impossible time": _pragma("UPDATE log SET at=1e300"),
    "an impossible last time": _pragma("UPDATE log SET at=9e999 WHERE seq=(SELECT max(seq) FROM log)"),
    "a task of no day": _pragma("UPDATE tasks SET created_at=1e12"),
    "retries that are no number": _pragma("UPDATE tasks SET max_retries='x' WHERE task_id='Twin'"),
    "a delay that is no number": _pragma("UPDATE tasks SET retry_delay=CAST('x' AS BLOB) WHERE task_id='Twin'"),
    "a time limit below 0": _pragma("UPDATE tasks SET task_timeout=-1 WHERE task_id='Twin'"),
    "limits that are no numbers": _configured({"waiting": {"max_retries": "x"}}),
    "limits of the unlimited": _configured({"waiting": {"status": 1}}),
    "no JSON": _pragma("UPDATE log SET error='{' WHERE error IS NOT NULL"),
    "other JSON": _pragma("UPDATE log SET error='[]' WHERE error IS NOT NULL"),
    "one id twice": _pragma("UPDATE tasks SET task_id='Done'"),
}


@pytest.fixture
def closed_journal(path: Path, clock: Clock) -> Path:
    with closing(filled(open_queue(path, clock), clock)):
        pass
    return path


@pytest.mark.parametrize("name", [*SPOILED, *ALSO_DAMAGED])
def test_no_other_file_is_taken_for_a_journal(closed_journal: Path, clock: Clock, name: str) -> None:
    spoil, message = SPOILED.get(name) or (ALSO_DAMAGED[name], "damaged")
    spoil(closed_journal)
    before = closed_journal.read_bytes()

    with pytest.raises(JournalError, match=message) as refusal:
        open_queue(closed_journal, clock)

    assert str(closed_journal) in str(refusal.value)
    assert closed_journal.read_bytes() == before
    others = {text for other, (_, text) in SPOILED.items() if other != name and text != message}
    assert not any(text in str(refusal.value) for text in others)


def test_a_journal_that_has_to_be_there_or_must_not(path: Path, closed_journal: Path, clock: Clock) -> None:
    with pytest.raises(JournalError, match="there is a journal already"):
        open_queue(path, clock, journal_must_exist=False)
    with pytest.raises(JournalError, match="there is no journal"):
        open_queue(path.with_name("other"), clock, journal_must_exist=True)
    with pytest.raises(JournalError, match="cannot be made"):
        open_queue(path.parent / "nowhere" / "journal", clock)

    assert not path.with_name("other").exists()


def test_a_symbolic_link_to_nowhere_is_not_followed(path: Path, clock: Clock) -> None:
    path.symlink_to(path.with_name("elsewhere"))

    with pytest.raises(JournalError):
        open_queue(path, clock)

    assert not path.with_name("elsewhere").exists()


def test_the_files_are_for_this_user_alone(queue: TaskQueue, path: Path, tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        queue.add_task(task("A"))
        queue.copy_journal(str(tmp_path / "copy"))
    finally:
        os.umask(mask)

    for file in (path, Path(f"{path}-wal"), tmp_path / "copy"):
        assert file.stat().st_mode & 0o777 == 0o600, file


@pytest.mark.parametrize(("durability", "level"), [("normal", 1), ("full", 2)])
def test_durability_is_what_was_asked_for(path: Path, clock: Clock, durability: str, level: int) -> None:
    for _ in range(2):  # made, and opened again
        with closing(open_queue(path, clock, durability=durability)) as queue:
            assert journal_of(queue)._db.execute("PRAGMA synchronous").fetchone() == (level,)
            assert journal_of(queue)._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_an_unknown_durability_makes_no_file(path: Path, clock: Clock) -> None:
    with pytest.raises(ValueError, match="durability"):
        open_queue(path, clock, durability="some")

    assert not path.exists()


def test_a_closed_journal_is_one_file(closed_journal: Path) -> None:
    assert [file.name for file in closed_journal.parent.iterdir()] == [closed_journal.name]


# ── delays, pauses, tokens ───────────────────────────────────────────────────────────────────────────────────────────


def boot(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(replay_module, "boot_id", lambda: name)


def seconds_until_leased(queue: TaskQueue, clock: Clock) -> float:
    """By steps of half a second."""
    waited_s = 0.0
    while lease(queue, "w7") is None:
        clock.advance(0.5)
        waited_s += 0.5
        assert waited_s <= CAP_S
    return waited_s


@pytest.mark.parametrize("jump_s", [0.0, DAY_S, -DAY_S])
@pytest.mark.parametrize(("down_s", "expected"), [(0.0, 8.0), (3.0, 5.0), (8.0, 0.0), (3600.0, 0.0)])
def test_in_one_boot_a_retry_is_due_when_it_was_whatever_the_wall_clock_says(
    queue: TaskQueue, clock: Clock, tmp_path: Path, jump_s: float, down_s: float, expected: float
) -> None:
    a_due_retry(queue, clock)
    lease(queue)
    queue.take_back("w1")  # it waits at its place, due
    queue.add_task(task("B"), 1)
    lease(queue)
    queue.retry_task("B", {"error": "boom"})
    queue.drop_tasks(["A"])

    clock.advance(down_s)
    clock.set_wall(clock.wall() + jump_s)

    with closing(after_a_crash(queue, tmp_path / "crash", clock)) as again:
        assert seconds_until_leased(again, clock) == expected


@pytest.mark.parametrize("succeeds", [True, False])
def test_an_attempt_in_which_the_clock_was_set_back_took_no_time_as_it_is_read(
    path: Path, clock: Clock, succeeds: bool
) -> None:
    with closing(open_queue(path, clock)) as queue:
        queue.add_task(task("A"))
        queue.get_next_task("w1")
        clock.advance(1.0)
        clock.set_wall(clock.wall() - 60.0)
        queue.complete_task("A", "w1", success(0.25)) if succeeds else queue.retry_task("A", {"error": "no"})
    clock.set_wall(clock.wall() + 60.0)

    with closing(open_queue(path, clock)) as again:
        assert again.get_performance_metrics()["worker_utilization"] == {"w1": 0.0}


@pytest.mark.parametrize(
    ("down_s", "jump_s", "expected"),
    [(0.0, 0.0, 8.0), (3.0, 0.0, 5.0), (3600.0, 0.0, 0.0), (3.0, DAY_S, 0.0), (3.0, -DAY_S, 8.0)],
)
def test_after_another_boot_a_retry_waits_the_rest_of_its_delay_and_never_longer(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, down_s: float, jump_s: float, expected: float
) -> None:
    clock = Clock()
    boot(monkeypatch, "first")
    with closing(open_queue(path, clock)) as queue:
        queue.add_task(task("A"))
        lease(queue)
        queue.retry_task("A", {"error": "boom"})
        clock.advance(down_s)
        left = left_by_a_crash(path, tmp_path / "crash")
    clock._write(5.0, clock.wall() + jump_s)  # a monotonic clock begins anew with each boot
    boot(monkeypatch, "second")

    with closing(open_queue(left, clock)) as again:
        assert seconds_until_leased(again, clock) == expected


def test_where_boots_cannot_be_told_apart_each_is_another(
    path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    boot(monkeypatch, "")
    with closing(open_queue(path, clock)) as queue:
        queue.add_task(task("A"))
        lease(queue)
        queue.retry_task("A", {"error": "boom"})
    clock._write(5.0, clock.wall())

    with closing(open_queue(path, clock)) as again:
        assert seconds_until_leased(again, clock) == RETRY_DELAY_S


def test_the_boot_is_that_of_the_machine() -> None:
    assert replay_module.boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def test_a_pause_outlives_a_crash_and_another_one_and_says_so(queue: TaskQueue, clock: Clock, tmp_path: Path) -> None:
    queue.add_task(task("A"))
    queue.pause_queue()

    with (
        closing(after_a_crash(queue, tmp_path / "1", clock)) as again,
        closing(after_a_crash(again, tmp_path / "2", clock)) as third,
    ):
        assert third.get_queue_status()["status"] == "PAUSED"
        assert lease(third) is None
        third.resume_queue()
        assert lease(third) == "A"
        with closing(after_a_crash(third, tmp_path / "3", clock)) as fourth:
            assert fourth.get_queue_status()["status"] == "ACTIVE"


def test_tokens_grow_from_one_life_to_the_next(queue: TaskQueue, clock: Clock, tmp_path: Path) -> None:
    queue.add_tasks([task(str(number)) for number in range(6)])
    first = [each.token for each in queue.exchange("w1", limit=2).leases]
    queue.release_worker("w1")

    with closing(after_a_crash(queue, tmp_path / "crash", clock)) as again:
        second = [each.token for each in again.exchange("w2", limit=2).leases]
        again.exchange("w1", [told("0", first[0], success())], limit=0)

        assert second == [3, 4]
        assert status_of(again, "0") is S.PROCESSING, "a report from before the crash counted for another lease"


def test_a_lease_from_before_a_crash_still_counts(queue: TaskQueue, clock: Clock, tmp_path: Path) -> None:
    queue.add_task(task("A"))
    (leased,) = queue.exchange("w1", turn=1).leases

    with closing(after_a_crash(queue, tmp_path / "crash", clock)) as again:
        again.exchange("w1", [told("A", leased.token, success())], turn=2)

        assert status_of(again, "A") is S.COMPLETED


# ── interruptions ────────────────────────────────────────────────────────────────────────────────────────────────────


def broken_off_by(queue: TaskQueue, is_crash: bool) -> None:
    assert lease(queue) == "A"
    assert queue.interrupt_leases([token_of(queue, "A")], "the end", is_crash=is_crash) == 1


def test_three_crashes_go_on_and_the_fourth_is_poison(queue: TaskQueue, clock: Clock, tmp_path: Path) -> None:
    queue.add_task(task("A"))
    for number in range(3):
        broken_off_by(queue, is_crash=True)
        assert status_of(queue, "A") is S.PENDING
        queue = after_a_crash(queue, tmp_path / str(number), clock)

    broken_off_by(queue, is_crash=True)

    found = queue.find_task(task_id="A")
    assert found is not None and (found.status, found.attempt, found.retry_count) == (S.FAILED, 4, 0)
    assert found.error_history[-1]["error_type"] == "Poison"
    assert [each["attempt"] for each in found.error_history] == [1, 2, 3, 4]
    queue.close_queue()


@pytest.mark.parametrize("end", ["retried", "failed and wanted again"])
def test_crashes_are_in_a_row_only_if_no_attempt_ended_in_between(
    queue: TaskQueue, clock: Clock, tmp_path: Path, end: str
) -> None:
    queue.add_task(task("A", max_retries=9, retry_delay=0.0))
    for number in range(3):
        for _ in range(MAX_CRASHES):
            broken_off_by(queue, is_crash=True)
        assert lease(queue) == "A"
        if end == "retried":
            assert queue.retry_task("A", {"error": "boom"})
        else:
            queue.complete_task("A", "w1", TaskResult(False, error_message="no"))
            assert queue.retry_task("A", {"error": "once more"})
        told = snapshot(queue)
        queue = after_a_crash(queue, tmp_path / str(number), clock)
        assert snapshot(queue) == told

    for _ in range(MAX_CRASHES):
        broken_off_by(queue, is_crash=True)
    assert status_of(queue, "A") is S.PENDING
    broken_off_by(queue, is_crash=True)
    assert status_of(queue, "A") is S.FAILED
    queue.close_queue()


def test_no_number_of_stops_is_poison_and_none_costs_a_retry(queue: TaskQueue, clock: Clock, tmp_path: Path) -> None:
    queue.add_task(task("A"))
    for _ in range(3 * MAX_CRASHES):
        broken_off_by(queue, is_crash=False)

    with closing(after_a_crash(queue, tmp_path / "crash", clock)) as again:
        found = again.find_task(task_id="A")
        assert found is not None
        assert (found.status, found.retry_count, found.interruptions) == (S.PENDING, 0, 3 * MAX_CRASHES)
        assert again.get_error_summary()["total_errors"] == 0
        broken_off_by(again, is_crash=True)
        assert status_of(again, "A") is S.PENDING


def test_whoever_asks_for_a_failed_task_again_gives_all_its_chances_back(
    queue: TaskQueue, clock: Clock, tmp_path: Path
) -> None:
    queue.add_task(task("A", retry_delay=0.0))
    for _ in range(MAX_CRASHES + 1):
        broken_off_by(queue, is_crash=True)

    assert queue.requeue_failed() == 1

    with closing(after_a_crash(queue, tmp_path / "crash", clock)) as again:
        for _ in range(MAX_CRASHES):
            broken_off_by(again, is_crash=True)
        granted = []
        while lease(again) == "A":
            granted.append(again.retry_task("A", {"error": "boom"}))
        assert granted == [True, True, False]
        assert again.requeue_failed(["nobody"]) == 0
        assert again.requeue_failed(["A"]) == 1
        assert lease(again) == "A"


def test_interrupting_a_lease_that_is_not_live_changes_nothing(queue: TaskQueue, clock: Clock) -> None:
    filled(queue, clock)
    old = token_of(queue, "One")
    queue.complete_task("One", "w1", success())
    before = whole_state(queue)

    assert queue.interrupt_leases([old, 999, old], "the end", is_crash=True) == 0

    assert whole_state(queue) == before


def test_a_task_cancelled_while_it_waits_is_over(queue: TaskQueue, clock: Clock, tmp_path: Path) -> None:
    filled(queue, clock)

    answers = [queue.cancel_task(name) for name in ("First", "Late", "One", "Done", "Lost")]

    assert answers == ["cancelled", "cancelled", "stopping", "finished", "finished"]
    with closing(after_a_crash(queue, tmp_path / "crash", clock)) as again:
        clock.advance(CAP_S)
        for each in (queue, again):
            assert status_of(each, "First") is status_of(each, "Late") is S.FAILED
            assert [lease(each, f"w{number}") for number in (10, 11)] == ["Second", None]
            with pytest.raises(WorkerMismatchError):
                each.complete_task("First", "w0", success())


WHAT_COMES_THEN: dict[str, Callable[[TaskQueue, int], object]] = {
    "it fails": lambda q, token: q.exchange("w1", [told("A", token, error={"error": "x"})], limit=0),
    "its worker is killed": lambda q, token: q.retry_task("A", {"error": "x", "worker_id": "w1"}),
    "its worker had not begun it": lambda q, token: q.exchange("w1", [told("A", token)], limit=0),
    "its worker never heard of it": lambda q, token: q.exchange("w1", [], limit=0, turn=1),
    "its worker is dead": lambda q, token: q.release_worker("w1"),
    "others are to have it": lambda q, token: q.take_back("w1"),
    "its run is stopped": lambda q, token: q.interrupt_leases([token], "stopped", is_crash=False),
    "its run has crashed": lambda q, token: q.interrupt_leases([], "killed", is_crash=True, all_others=True),
}


@pytest.mark.parametrize("what", WHAT_COMES_THEN)
@pytest.mark.parametrize("has_crashed", [False, True])
def test_a_task_cancelled_while_it_runs_ends_whatever_comes_then(
    queue: TaskQueue, clock: Clock, tmp_path: Path, what: str, has_crashed: bool
) -> None:
    queue.add_task(task("A", max_retries=3))
    lease(queue, "w1")
    token = token_of(queue, "A")
    assert queue.cancel_task("A") == queue.cancel_task("A") == "stopping"
    if has_crashed:
        queue = after_a_crash(queue, tmp_path / "crash", clock)

    WHAT_COMES_THEN[what](queue, token)

    assert status_of(queue, "A") is S.FAILED and queue.get_leases() == {}
    with closing(after_a_crash(queue, tmp_path / "later", clock)) as again:
        assert snapshot(again) == snapshot(queue)
        assert again.requeue_failed() == 1 and lease(again, "w2") == "A"
        again.retry_task("A", {"error": "x"})
        assert status_of(again, "A") is S.RETRY_PENDING, "asked for again, it has its retries"
    queue.close_queue()


def test_a_task_cancelled_while_it_runs_is_done_if_it_succeeds_before_it_is_stopped(queue: TaskQueue) -> None:
    queue.add_task(task("A"))
    lease(queue, "w1")
    queue.cancel_task("A")

    queue.complete_task("A", "w1", success())

    assert status_of(queue, "A") is S.COMPLETED


def test_who_comes_new_is_told_what_is_to_be_stopped(queue: TaskQueue, clock: Clock, tmp_path: Path) -> None:
    queue.add_tasks([task("A"), task("B")])
    lease(queue, "w1"), lease(queue, "w2")
    queue.cancel_task("A")

    with closing(after_a_crash(queue, tmp_path / "crash", clock)) as again:
        events = again.read_events(*again.open_events())

        assert [(e.kind, e.task and e.task.task_id, e.error) for e in events] == [
            ("cancel", "A", str(token_of(again, "A")))
        ]


@pytest.mark.parametrize(("later_s", "uptime_s"), [(-3600.0, 1000.0), (86_400.0, 20.0), (86_400.0, 90_000.0)])
def test_the_rate_after_a_replay_is_none_that_there_never_was(
    later_s: float, uptime_s: float, queue: TaskQueue, clock: Clock, tmp_path: Path
) -> None:
    """A clock that was set back, and a machine that was started again since, or much earlier."""
    for number in range(100):
        queue.add_task(task(f"T{number}"))
        lease(queue)
        clock.advance(1.0)
        queue.complete_task(f"T{number}", "w1", success(1.0))
    queue.add_tasks([task(f"X{number}") for number in range(100)])
    clock._write(uptime_s, clock.wall() + later_s)

    with closing(after_a_crash(queue, tmp_path / "crash", clock)) as again:
        status = again.get_queue_status()

        assert status["throughput"] <= 1.1
        assert status["estimated_completion"] >= 90.0


def test_the_eta_of_a_run_that_was_taken_up_goes_by_the_time_since_then(
    queue: TaskQueue, clock: Clock, tmp_path: Path
) -> None:
    queue.add_tasks([task(f"T{number}") for number in range(100)])
    for number in range(50):
        lease(queue)
        clock.advance(1.0)
        queue.complete_task(f"T{number}", "w1", success(1.0))
    clock.advance(3600.0)

    with closing(after_a_crash(queue, tmp_path / "crash", clock)) as again:
        for number in range(50, 55):
            lease(again)
            clock.advance(1.0)
            again.complete_task(f"T{number}", "w1", success(1.0))

        assert again.get_queue_status()["estimated_completion"] == pytest.approx(45.0, rel=0.1)


def test_no_time_in_which_nothing_ran_is_a_workers(queue: TaskQueue, clock: Clock, tmp_path: Path) -> None:
    """Neither that of a worker which was idle at the crash, nor that of one which was in the middle of something."""
    queue.add_tasks([task(name) for name in "ABCDE"])
    for worker_id in ("idle", "works", "works"):
        name = lease(queue, worker_id)
        clock.advance(10.0)
        queue.complete_task(str(name), worker_id, success(5.0))
    lease(queue, "works")
    clock.advance(3600.0)

    with closing(after_a_crash(queue, tmp_path / "crash", clock)) as again:
        again.interrupt_leases(list(again.get_leases()), "killed", is_crash=True)
        clock.advance(3600.0)

        assert again.get_performance_metrics()["worker_utilization"] == pytest.approx({"idle": 0.5, "works": 0.5})
        with closing(after_a_crash(again, tmp_path / "another", clock)) as third:
            assert third.get_performance_metrics()["worker_utilization"] == pytest.approx({"idle": 0.5, "works": 0.5})


def test_the_time_of_a_worker_that_outlives_its_queue_goes_on(queue: TaskQueue, clock: Clock, tmp_path: Path) -> None:
    queue.add_tasks([task(name) for name in "ABC"])
    lease(queue)
    clock.advance(10.0)
    queue.complete_task("A", "w1", success(5.0))
    lease(queue)
    clock.advance(10.0)

    with closing(after_a_crash(queue, tmp_path / "crash", clock)) as again:
        again.complete_task("B", "w1", success(10.0))
        lease(again)
        clock.advance(10.0)

        assert again.get_performance_metrics()["worker_utilization"] == {"w1": pytest.approx(25.0 / 30.0)}


# ── what JSON cannot hold ────────────────────────────────────────────────────────────────────────────────────────────

loop: list[Any] = []
loop.append(loop)
NOT_JSON: dict[str, Any] = {
    "tuple": (1, 2),
    "set": {1},
    "NaN": float("nan"),
    "infinity": float("inf"),
    "number as key": {1: "a"},
    "true as key": {True: "a"},
    "colliding keys": {1: "a", "1": "b"},
    "Decimal": Decimal("1.5"),
    "bytes": b"x",
    "object": object,
    "cycle": loop,
}


@pytest.mark.parametrize("name", NOT_JSON)
def test_what_json_would_change_is_refused_and_nothing_changes(queue: TaskQueue, clock: Clock, name: str) -> None:
    filled(queue, clock)
    value = {"deep": [NOT_JSON[name]]}
    before = whole_state(queue)

    with pytest.raises(ValueError, match="JSON"):
        queue.add_tasks([task("Fine"), ProcessingTask("New", {"po_number": "New", "value": value})])
    with pytest.raises(ValueError, match="JSON"):
        queue.complete_task("One", "w1", TaskResult(True, [], 1.0, None, value))
    with pytest.raises(ValueError, match="JSON"):
        queue.complete_task("One", "w1", TaskResult(True, [value]))

    assert whole_state(queue) == before


def test_what_json_holds_comes_back_as_it_was(queue: TaskQueue, clock: Clock, tmp_path: Path) -> None:
    data = {"po_number": " 47 ", "a": [1, -0.0, 1.5e300, 2**70, None, True, {}], "Ł": "\x00\ud800\U0001f600", "": []}
    queue.add_task(ProcessingTask("A", data))
    lease(queue)
    result = TaskResult(True, [{"path": "x"}], 1.25, None, {"answer": data})
    queue.complete_task("A", "w1", result)

    with closing(after_a_crash(queue, tmp_path / "crash", clock)) as again:
        found = again.find_task("47")
        assert found is not None
        assert (found.po_data, found.result) == (data, result)
        assert json.dumps(found.po_data) == json.dumps(data)


def test_error_details_come_back_as_they_were_told(queue: TaskQueue, clock: Clock, tmp_path: Path) -> None:
    queue.add_task(task("A"))
    lease(queue)
    queue.retry_task("A", {"exception": ValueError("b\ud800d"), "when": {1, 2}, 3: float("nan"), "po": (Decimal(1),)})

    with closing(after_a_crash(queue, tmp_path / "crash", clock)) as again:
        assert again.find_task(task_id="A") == queue.find_task(task_id="A")


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_through_a_manager_the_same_is_refused_and_the_rest_survives(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    with QueueService(start_method="fork", journal=path) as service:
        client = service.client()
        client.add_task(task("A"))
        assert lease(client) == "A"
        before = client.get_queue_status()

        for value in NOT_JSON.values():
            with pytest.raises(ValueError, match="JSON"):
                client.add_task(ProcessingTask("New", {"po_number": "New", "value": [value]}))
            with pytest.raises(ValueError, match="JSON"):
                client.complete_task("A", "w1", TaskResult(True, [value]))
        with pytest.raises(ValueError, match="cannot be written down"):
            client.add_task(task("\ud800"))

        after = client.get_queue_status()
        assert {**after, "throughput": 0, "estimated_completion": 0} == {
            **before, "throughput": 0, "estimated_completion": 0,
        }  # fmt: skip
        client.complete_task("A", "w1", success())

    with closing(TaskQueue(journal=path)) as again:
        assert status_of(again, "A") is S.COMPLETED
        assert len(again._ledger) == 1


def test_a_frozen_value_that_is_no_json_is_refused_as_well(queue: TaskQueue) -> None:
    with closing(TaskQueue()) as plain:
        plain.add_task(task("A"))
        payload = plain._ledger.get("A").record().payload  # type: ignore[union-attr]
    number, pickled = freeze_po({"po_number": "A"})
    assert pickled[:1] == payload[:1] != b"{"

    with pytest.raises(ValueError, match="JSON"):
        queue.add_tasks([FrozenTask("A", number, pickled, 5, None, None, None, "")])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="JSON"):
        queue.complete_task("A", "w1", freeze_result(success()))  # type: ignore[arg-type]


def test_a_queue_without_a_journal_takes_whatever_can_be_pickled(clock: Clock) -> None:
    queue = open_queue(None, clock)

    queue.add_task(ProcessingTask("A", {"po_number": "A", "value": {1: (Decimal(1), {2})}}))

    found = queue.find_task(task_id="A")
    assert found is not None and found.po_data["value"] == {1: (Decimal(1), {2})}


# ── stopping early ───────────────────────────────────────────────────────────────────────────────────────────────────


def end(queue: TaskQueue, outcome: str) -> None:
    name = lease(queue)
    assert name is not None
    if outcome == "fail":
        queue.complete_task(name, "w1", TaskResult(False))
    elif outcome == "retry":
        queue.retry_task(name, {"error": "boom"})
    else:
        queue.complete_task(name, "w1", success())


@pytest.mark.parametrize(
    ("limits", "outcomes", "reason"),
    [
        ({"failed": 2}, ["fail", "ok", "retry", "ok", "fail"], "2 failed"),
        ({"succeeded": 2}, ["ok", "fail", "fail", "ok"], "2 succeeded"),
        ({"done": 3}, ["ok", "retry", "fail", "ok"], "3 done"),
        ({"failed": 9, "done": 1}, ["ok"], "1 done"),
    ],
)
def test_a_halt_strikes_at_the_number_and_no_sooner(
    queue: TaskQueue, limits: dict[str, int], outcomes: list[str], reason: str
) -> None:
    queue.add_tasks([task(str(number)) for number in range(12)])
    end(queue, "ok")
    end(queue, "fail")
    queue.halt_after(**limits)
    reader, after = queue.open_events()

    for outcome in outcomes:
        assert queue.get_queue_status()["status"] == "ACTIVE"
        end(queue, outcome)

    assert queue.get_queue_status()["status"] == "DRAINING"
    assert lease(queue) is None
    assert queue.exchange("w1").stop
    halts = [each.error for each in queue.read_events(reader, after) if each.kind == "halted"]
    assert halts == [reason]


def test_a_halt_strikes_once_though_more_end_in_the_same_step(queue: TaskQueue) -> None:
    queue.add_tasks([task(str(number)) for number in range(4)])
    leases = queue.exchange("w1", limit=4).leases
    queue.halt_after(succeeded=2, done=3)
    reader, after = queue.open_events()

    queue.exchange("w1", [told(each.task_id, each.token, success()) for each in leases], limit=0)

    assert queue.get_queue_status()["completed_tasks"] == 4
    assert [each.error for each in queue.read_events(reader, after) if each.kind == "halted"] == ["2 succeeded"]


def test_a_cancelled_and_a_poisonous_task_count_as_failed_for_a_halt(queue: TaskQueue) -> None:
    queue.add_tasks([task("A"), task("B")])
    for _ in range(MAX_CRASHES):
        broken_off_by(queue, is_crash=True)
    queue.halt_after(failed=2)

    queue.cancel_task("B")
    assert queue.get_queue_status()["status"] == "ACTIVE"
    broken_off_by(queue, is_crash=True)

    assert queue.get_queue_status()["status"] == "DRAINING"


def test_a_halt_that_could_not_be_written_has_not_counted(queue: TaskQueue, clock: Clock) -> None:
    queue.add_task(task("A"))
    lease(queue)
    queue.halt_after(done=1)

    with faults_at("journal.before_commit"), pytest.raises(JournalError):
        queue.complete_task("A", "w1", success())

    assert queue.get_queue_status()["status"] != "DRAINING"
    queue.complete_task("A", "w1", success())
    assert queue.get_queue_status()["status"] == "DRAINING"


# ── the journal by itself ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_transaction_is_whole_or_not_there(path: Path) -> None:
    journal = Journal(path)
    records = [Record(Kind.PAUSED, None, None, 1.0), Record(Kind.RESUMED, None, None, 2.0)]
    journal.write(records)

    with faults_at("journal.before_commit"), pytest.raises(JournalError):
        journal.write(records * 3)

    assert list(journal.records()) == records
    journal.close()
    journal.close()


def test_a_copy_that_cannot_be_written_is_an_error_and_the_journal_goes_on(queue: TaskQueue, tmp_path: Path) -> None:
    with pytest.raises(JournalError):
        queue.copy_journal(str(tmp_path / "nowhere" / "copy"))
    with pytest.raises(JournalError):
        queue.copy_journal(str(tmp_path))

    assert queue.add_task(task("A")) == "A"


def test_another_schema_version_is_taken_if_that_is_accepted_and_its_tables_are_ours(tmp_path: Path) -> None:
    path = tmp_path / "j.sqlite"
    queue = TaskQueue(journal=path)
    queue.add_task(ProcessingTask(task_id="t1", po_data={"po_number": "A"}))
    queue.close_queue()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version=99")

    accepted = TaskQueue(journal=path, journal_any_version=True)
    found = accepted.find_task(task_id="t1")
    accepted.close_queue()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("ALTER TABLE log ADD COLUMN mood TEXT")

    assert found is not None and found.po_number == "A"
    with pytest.raises(JournalError, match="its tables are other ones"):
        TaskQueue(journal=path, journal_any_version=True)
