"""From a journal's log to the history of its run."""

import json
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from poqueue.records import Kind
from tests.unit.sample_journal import BEGUN_AT, JournalMaker, read, simulate
from workers.history import NOT_RUNNING, Pause


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


def test_a_completed_po_is_told_with_its_supplier_and_exact_amount(path: Path) -> None:
    with JournalMaker(path) as journal:
        rank = journal.add("4711", rows=2, supplier=" Acme ", amount="0.10", currency="EUR", priority=2)
        token = journal.lease(rank, "w1.1", at=1.0)
        journal.end(Kind.COMPLETED, token, at=3.0, seconds=1.5, result=[True, [], 1.5, None, {}])

    history = read(path)

    (order,), (attempt,) = history.orders, history.attempts
    assert (order.task_id, order.po_number, order.status, order.priority) == ("t1", "4711", "completed", 2)
    assert (order.supplier, order.amount, order.currency, order.rows) == ("Acme", Decimal("0.20"), "EUR", 2)
    assert (order.attempts, order.seconds, order.completed_at) == (1, 1.5, BEGUN_AT + 3.0)
    assert (attempt.started_at, attempt.ended_at, attempt.outcome) == (BEGUN_AT + 1.5, BEGUN_AT + 3.0, "completed")
    assert history.accounts == {"rows": 2, "succeeded": 2, "failed": 0, "duplicate": 0, "invalid": 0, "not_run": 0}
    assert history.counts["completed"] == history.counts["total"] == 1
    assert history.began_at == BEGUN_AT + 1.5 and history.until == BEGUN_AT + 3.0


def test_a_kill_and_a_retry_are_two_attempts_of_one_po(path: Path) -> None:
    with JournalMaker(path) as journal:
        rank = journal.add("P")
        first = journal.lease(rank, "w2.1", at=0.0)
        journal.end(
            Kind.RETRY, first, at=10.0, error_type="TaskTimeout", message="too long", stack="where", seconds=None
        )
        second = journal.lease(rank, "w2.2", at=15.0)
        journal.end(Kind.COMPLETED, second, at=16.0, seconds=1.0)

    history = read(path, again="poqueue retry r")

    killed, done = history.attempts
    assert (killed.outcome, killed.is_kill, killed.stack, killed.slot) == ("retry", True, "where", "w2")
    assert (done.attempt, done.worker_id, done.slot, done.is_kill) == (2, "w2.2", "w2", False)
    assert (history.counts["retries"], history.counts["kills"], history.counts["attempts"]) == (1, 1, 2)
    assert history.orders[0].message == "too long" and history.orders[0].seconds == 11.0
    assert history.again == "", "nothing has failed in the end"


def test_attempts_told_together_lie_one_after_the_other(path: Path) -> None:
    with JournalMaker(path) as journal:
        tokens = [journal.lease(journal.add(f"P{n}"), "w1.1", at=0.0) for n in range(3)]
        for token in tokens:
            journal.end(Kind.COMPLETED, token, at=9.0, seconds=2.0)

    spans = [(a.started_at - BEGUN_AT, (a.ended_at or 0.0) - BEGUN_AT) for a in read(path).attempts]

    assert spans == [(3.0, 5.0), (5.0, 7.0), (7.0, 9.0)]


def test_a_lease_that_was_never_begun_is_no_attempt(path: Path) -> None:
    with JournalMaker(path) as journal:
        rank = journal.add("P")
        journal.end(Kind.UNDONE, journal.lease(rank, "w1.1", at=1.0), at=2.0)
        journal.end(Kind.COMPLETED, journal.lease(rank, "w1.2", at=3.0), at=4.0, seconds=1.0)

    history = read(path)

    assert [(a.attempt, a.worker_id) for a in history.attempts] == [(1, "w1.2")]
    assert history.orders[0].attempts == 1


def test_in_a_live_run_a_worker_runs_one_po_and_holds_the_rest(path: Path) -> None:
    with JournalMaker(path) as journal:
        ranks = [journal.add(f"P{n}") for n in range(4)]
        journal.end(Kind.COMPLETED, journal.lease(ranks[0], "w1.1", at=0.0), at=5.0, seconds=5.0)
        journal.lease(ranks[1], "w1.1", at=1.0)
        journal.lease(ranks[2], "w1.1", at=1.0)

    history = read(path)

    running = history.attempts[-1]
    assert (running.po_number, running.outcome, running.ended_at) == ("P1", "running", None)
    assert running.started_at == BEGUN_AT + 5.0, "it began when the one before had ended"
    assert [o.attempts for o in history.orders] == [1, 1, 0, 0]
    assert [o.status for o in history.orders] == ["completed", "processing", "processing", "pending"]
    assert history.accounts["not_run"] == 3 and not history.has_ended


def test_a_crash_ends_attempts_at_the_last_sign_of_life_and_is_a_pause_until_somebody_resumes(path: Path) -> None:
    with JournalMaker(path) as journal:
        rank, other = journal.add("P"), journal.add("Q")
        token = journal.lease(rank, "w1.1", at=1.0)
        journal.end(Kind.COMPLETED, journal.lease(other, "w2.1", at=1.0), at=7.0, seconds=6.0)
        journal.note(Kind.OPENED, 1000.0)
        journal.end(Kind.INTERRUPTED, token, at=1000.1, error_type="Interrupted", message="crash", is_crash=True)

    history = read(path)

    broken = next(a for a in history.attempts if a.outcome == "interrupted")
    assert (broken.started_at, broken.ended_at) == (BEGUN_AT + 1.0, BEGUN_AT + 7.0)
    assert history.pauses == (Pause(BEGUN_AT + 7.0, BEGUN_AT + 1000.0, NOT_RUNNING),)
    assert history.orders[0].status == "pending" and history.counts["interruptions"] == 1
    assert history.until == BEGUN_AT + 7.0, "that somebody has looked says nothing of the run"


def test_an_attempt_that_is_broken_off_in_the_run_that_goes_on_ends_when_that_is_told(path: Path) -> None:
    with JournalMaker(path) as journal:
        rank = journal.add("P")
        journal.note(Kind.OPENED, 1000.0)
        token = journal.lease(rank, "w1.1", at=1001.0)
        journal.end(Kind.INTERRUPTED, token, at=1005.0, error_type="Interrupted", message="stop", is_crash=False)

    [broken] = read(path).attempts
    assert (broken.outcome, broken.started_at, broken.ended_at) == ("interrupted", BEGUN_AT + 1001, BEGUN_AT + 1005)


def test_a_worker_that_was_ended_with_its_run_is_no_kill(path: Path) -> None:
    with JournalMaker(path) as journal:
        token = journal.lease(journal.add("P"), "w1.1", at=1.0)
        journal.end(Kind.INTERRUPTED, token, at=2.0, error_type="WorkerKilled", message="the worker was killed")

    history = read(path)
    assert not history.attempts[0].is_kill and history.counts["kills"] == 0


def test_a_run_whose_first_po_still_runs_lasts_until_the_last_word(path: Path) -> None:
    with JournalMaker(path) as journal:
        journal.lease(journal.add("P"), "w1.1", at=1.0)
        journal.lease(journal.add("Q"), "w1.1", at=9.0)  # ahead

    assert read(path).until == BEGUN_AT + 9.0


def test_the_rows_of_the_file_are_told_though_every_po_is_in_the_queue(path: Path) -> None:
    with JournalMaker(path) as journal:
        journal.add("P")

    accounts = read(path, counted={"pos": 1, "rows": 4, "duplicate": 2, "invalid": 1}).accounts

    assert accounts == {"rows": 4, "succeeded": 0, "failed": 0, "duplicate": 2, "invalid": 1, "not_run": 1}


def test_failed_requeued_cancelled_and_cleared_tasks_stand_where_the_queue_has_them(path: Path) -> None:
    with JournalMaker(path) as journal:
        failed, again, cancelled, cleared = (journal.add(name) for name in ("F", "A", "C", "X"))
        for rank in (failed, again):
            journal.end(Kind.FAILED, journal.lease(rank, "w1.1", at=1.0), at=2.0, error_type="GiveUp", message="no")
        journal.note(Kind.REQUEUED, 3.0, again)
        journal.note(Kind.CANCELLED, 3.0, cancelled, json.dumps({"error_type": "Cancelled", "message": "by hand"}))
        journal.note(Kind.CLEARED, 3.0, cleared)

    history = read(path, again="poqueue retry r")

    assert {o.po_number: o.status for o in history.orders} == {"F": "failed", "A": "retry_pending", "C": "failed"}
    assert {o.po_number: o.message for o in history.orders} == {"F": "no", "A": "no", "C": "by hand"}
    ends = {o.po_number: o.completed_at and o.completed_at - BEGUN_AT for o in history.orders}
    assert ends == {"F": 2.0, "A": None, "C": 3.0}
    assert history.again == "poqueue retry r"


@pytest.mark.parametrize("error", [None, '{"reason": "memory"}', '"memory"', "memory"])
def test_a_pause_keeps_its_reason_and_may_last(path: Path, error: str | None) -> None:
    with JournalMaker(path) as journal:
        journal.note(Kind.PAUSED, 1.0, error=error)
        journal.note(Kind.PAUSED, 1.5)
        journal.note(Kind.RESUMED, 2.0)
        journal.note(Kind.PAUSED, 3.0)

    reason = "memory" if error else ""
    assert read(path).pauses == (Pause(BEGUN_AT + 1.0, BEGUN_AT + 2.0, reason), Pause(BEGUN_AT + 3.0, None))


def test_a_result_that_says_no_has_a_message_and_no_type(path: Path) -> None:
    with JournalMaker(path) as journal:
        token = journal.lease(journal.add("P"), "w1.1", at=1.0)
        result = [False, [], 0.25, "PO is closed", {}]
        journal.end(Kind.FAILED, token, at=2.0, result=result, error_type="PO is closed", message="PO is closed")

    (attempt,) = read(path).attempts
    assert (attempt.error_type, attempt.message, attempt.seconds) == ("", "PO is closed", 0.25)


def test_amounts_in_several_currencies_make_no_sum(path: Path) -> None:
    with JournalMaker(path) as journal:
        rows = [{"amount": "1", "currency": "EUR"}, {"amount": "2", "currency": "USD"}]
        journal.add("P", payload=json.dumps({"po_number": "P", "rows": rows, "row_numbers": [2, 3]}).encode())

    (order,) = read(path).orders
    assert (order.amount, order.currency, order.rows) == (None, "EUR; USD", 2)


def test_a_payload_that_is_no_json_is_not_opened(path: Path) -> None:
    with JournalMaker(path) as journal:
        journal.add("P", payload=b"\x80\x05cos\nsystem\n")

    (order,) = read(path).orders
    assert (order.po_number, order.supplier, order.amount, order.rows) == ("P", "", None, 1)


@pytest.mark.parametrize(
    ("data", "rows"),
    [
        *(({"rows": rows}, 1) for rows in (12, "ab", {"a": 1}, [1, 2], [{"amount": "9"}, 1], [[]])),
        *(({"row_numbers": numbers}, 1) for numbers in (7, "ab", [1, 2], {"a": 1})),
        *(({"as_given": given}, 1) for given in (3, "ab", ["ab"], [[[], 1]])),
        *(
            ({"rows": [{"amount": "2"}, {"amount": "3"}], "row_numbers": numbers}, 2)
            for numbers in (None, [4], [4, 5, 6])
        ),
    ],
)
def test_a_po_whose_data_only_look_like_an_orders_is_told_as_far_as_they_can_be_read(
    data: dict[str, Any], rows: int, path: Path
) -> None:
    """Programs add POs with data of their own."""
    with JournalMaker(path) as journal:
        journal.add("P", payload=json.dumps({"po_number": "P", "supplier": "Acme", "amount": "5", **data}).encode())
        journal.add("Q", amount="1")

    of_p, of_q = read(path).orders

    assert (of_p.po_number, of_p.supplier, of_p.amount, of_p.rows) == ("P", "Acme", Decimal(5), rows)
    assert (of_q.amount, of_q.rows) == (Decimal(1), 1)


def test_of_two_tasks_with_one_id_the_later_counts(path: Path) -> None:
    with JournalMaker(path) as journal:
        journal.add("old", task_id="t1")
        journal.add("new", task_id="t1")

    assert [(order.task_id, order.po_number) for order in read(path).orders] == [("t1", "new")]


def test_an_empty_journal_is_an_empty_history(path: Path) -> None:
    with JournalMaker(path):
        pass

    history = read(path)
    assert (history.orders, history.attempts, history.counts["total"], history.until) == ((), (), 0, BEGUN_AT)


@pytest.mark.parametrize("is_live", [False, True])
def test_no_worker_of_a_simulated_run_does_two_things_at_once(path: Path, is_live: bool) -> None:
    simulate(path, pos=400, workers=3, is_live=is_live)

    history = read(path)

    assert history.counts["total"] == len(history.orders) == 400
    assert sum(history.accounts[key] for key in ("succeeded", "failed", "not_run")) == 400
    assert sum(order.attempts for order in history.orders) == len(history.attempts)
    for worker in {attempt.worker_id for attempt in history.attempts}:
        spans = [(a.started_at, a.ended_at or history.until) for a in history.attempts if a.worker_id == worker]
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    assert history.counts["kills"] > 0 and len(history.pauses) == 2
