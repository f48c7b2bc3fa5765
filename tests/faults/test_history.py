"""The check of a history finds each kind of violation, and nothing where there is none."""

import sqlite3
import time
from pathlib import Path

import pytest

from poqueue.journal import JOURNAL_NAME, Journal
from poqueue.records import Kind, Record
from tests.faults.history import Facts, Line, Violation, check, read_facts

POS = ("A", "B")
RESULTS = [("A", "succeeded"), ("B", "failed")]
CLEAN = [
    Line("begin", "A", 1, 10, 1.0), Line("end", "A", 1, 10, 2.0),
    Line("begin", "B", 1, 11, 1.0), Line("fail", "B", 1, 11, 1.5),
    Line("begin", "B", 2, 10, 2.6), Line("fail", "B", 2, 10, 2.7),
]  # fmt: skip


def journal_of(folder: Path, *records: Record, pos: tuple[str, ...] = POS) -> Facts:
    """The facts of a journal that holds these lines; monotonic time 0 is its wall time 0."""
    journal = Journal(folder / JOURNAL_NAME)
    row = (3, 1, 1.0, 60.0, 0.0, b"{}", "")
    journal.write(tasks=[(rank, f"t{rank}", po, *row) for rank, po in enumerate(pos, 1)])
    zero = time.time() - time.monotonic()
    journal.write([record._replace(at=record.at + zero) for record in records])
    journal.close()
    return read_facts(folder / JOURNAL_NAME)


def leased(rank: int, token: int, at: float) -> Record:
    return Record(Kind.LEASED, rank, token, at, worker="w1.1")


def clean_log() -> list[Record]:
    return [
        leased(1, 1, 0.9), leased(2, 2, 0.9), Record(Kind.RETRY, None, 2, 1.5, delay_s=1.0), Record(Kind.COMPLETED, None, 1, 2.0),
        leased(2, 3, 2.55), Record(Kind.FAILED, None, 3, 2.7),
    ]  # fmt: skip


def rules(found: list[Violation]) -> set[tuple[str, str]]:
    return {(violation.rule, violation.po) for violation in found}


def test_a_clean_history_is_clean(tmp_path: Path) -> None:
    assert check(POS, CLEAN, RESULTS, journal_of(tmp_path, *clean_log())) == []


@pytest.mark.parametrize(
    ("lines", "results", "expected"),
    [
        (CLEAN, RESULTS[:1], ("lost", "B")),
        (CLEAN, [("A", "succeeded"), ("B", "not run")], ("lost", "B")),
        (CLEAN, [*RESULTS, ("X", "succeeded")], ("unexpected", "X")),
        ([*CLEAN, Line("begin", "X", 1, 10, 3.0)], RESULTS, ("unexpected", "X")),
        (CLEAN, [*RESULTS, ("A", "succeeded")], ("ended twice", "A")),
        ([*CLEAN, Line("begin", "B", 2, 12, 5.0)], RESULTS, ("run twice", "B")),
        ([*CLEAN, Line("begin", "A", 2, 12, 1.5)], RESULTS, ("overlap", "A")),
        ([*CLEAN, Line("overlap", "A", 2, 12, 9.0)], RESULTS, ("overlap", "A")),
    ],
)
def test_what_the_witnesses_and_the_results_show(
    lines: list[Line], results: list[tuple[str, str]], expected: tuple[str, str]
) -> None:
    assert rules(check(POS, lines, results)) == {expected}


def test_an_attempt_without_an_end_lasts_until_its_process_dies() -> None:
    lines = [Line("begin", "A", 1, 10, 1.0), Line("begin", "A", 2, 11, 4.0), Line("end", "A", 2, 11, 5.0)]
    results = [("A", "succeeded")]
    assert check("A", lines, results, deaths={10: 3.9}) == []
    assert rules(check("A", lines, results, deaths={10: 4.1})) == {("overlap", "A")}


def test_an_attempt_without_an_end_is_over_when_its_process_begins_another() -> None:
    lines = [
        Line("begin", "A", 1, 10, 1.0), Line("begin", "A", 2, 11, 4.0), Line("begin", "B", 1, 10, 4.5),
        Line("end", "B", 1, 10, 4.6), Line("end", "A", 2, 11, 5.0),
    ]  # fmt: skip
    assert rules(check(POS, lines, [("A", "succeeded"), ("B", "succeeded")])) == {("overlap", "A")}


def test_a_completed_po_that_is_leased_again(tmp_path: Path) -> None:
    facts = journal_of(tmp_path, *clean_log(), leased(1, 4, 3.0), Record(Kind.INTERRUPTED, None, 4, 3.1))
    assert rules(check(POS, CLEAN, RESULTS, facts)) == {("done twice", "A")}


def test_a_completed_po_that_is_begun_again(tmp_path: Path) -> None:
    lines = [*CLEAN, Line("begin", "A", 2, 12, 2.2)]
    facts = journal_of(tmp_path, *clean_log())
    assert rules(check(POS, lines, RESULTS, facts)) == {("done twice", "A"), ("run twice", "A")}


def test_more_executions_than_leases(tmp_path: Path) -> None:
    log = [*clean_log()[:4], leased(2, 3, 2.55), Record(Kind.UNDONE, None, 3, 2.58), leased(2, 4, 2.59), clean_log()[5]]
    log[-1] = log[-1]._replace(token=4)
    lines = [*CLEAN, Line("begin", "B", 3, 12, 2.71)]
    assert rules(check(POS, lines, RESULTS, journal_of(tmp_path, *log))) == {("run twice", "B")}


def test_a_retry_before_its_delay(tmp_path: Path) -> None:
    lines = [line._replace(at=2.3) if line == Line("begin", "B", 2, 10, 2.6) else line for line in CLEAN]
    assert rules(check(POS, lines, RESULTS, journal_of(tmp_path, *clean_log()))) == {("early retry", "B")}


def test_a_po_completed_twice_and_one_that_is_two_tasks(tmp_path: Path) -> None:
    log = [*clean_log(), leased(3, 4, 3.0), Record(Kind.COMPLETED, None, 4, 3.1)]
    found = check(POS, CLEAN, RESULTS, journal_of(tmp_path, *log, pos=("A", "B", "A")))
    assert ("ended twice", "A") in rules(found) and {rule for rule, _ in rules(found)} <= {"ended twice", "done twice"}


def test_results_that_the_journal_does_not_know(tmp_path: Path) -> None:
    results = [("A", "failed"), ("B", "failed")]
    assert rules(check(POS, CLEAN, results, journal_of(tmp_path, *clean_log()))) == {("disagreement", "A")}


def test_a_journal_is_read_without_being_changed(tmp_path: Path) -> None:
    journal_of(tmp_path, *clean_log())
    path = tmp_path / JOURNAL_NAME
    before = path.read_bytes()
    read_facts(path)
    assert path.read_bytes() == before
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT count(*) FROM log").fetchone() == (6,)
    db.close()
