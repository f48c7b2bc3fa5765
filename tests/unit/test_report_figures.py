"""What a history amounts to."""

import csv
import io
import json
from decimal import Decimal
from pathlib import Path

import pytest

from poqueue.records import Kind
from tests.unit.sample_journal import BEGUN_AT, JournalMaker, read, simulate
from workers.history import Attempt, RunHistory
from workers.report_figures import (
    MAX_BUCKETS,
    SAMPLES,
    buckets,
    costs,
    durations,
    error_groups,
    hangs,
    nice_width,
    quantile,
    queue_points,
    slot_order,
    slowest,
    thinned,
    time_limits,
    worker_use,
)
from workers.report_files import render
from workers.report_words import amount_text, outcome_sentence, seconds_text, share_text


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


def test_errors_that_differ_in_numbers_are_one_group_the_most_frequent_first(path: Path) -> None:
    with JournalMaker(path) as journal:
        for number, (kind, text) in enumerate([("A", "x 1"), ("B", "total 1"), ("B", "total 2"), ("B", "total 3")]):
            token = journal.lease(journal.add(f"PO{number}"), "w1.1", at=number)
            journal.end(Kind.FAILED, token, at=number + 0.5, seconds=0.5, error_type=kind, message=text)

    first, second = error_groups(read(path))

    assert (first.error_type, first.text, first.count, first.pos) == ("B", "total #", 3, 3)
    assert [sample.po_number for sample in first.samples] == ["PO1", "PO2", "PO3"]
    assert (second.error_type, second.count) == ("A", 1)


def test_the_pos_of_an_error_are_counted_by_themselves_and_the_first_few_shown(path: Path) -> None:
    with JournalMaker(path) as journal:
        for number in range(SAMPLES + 1):
            journal.end(
                Kind.FAILED, journal.lease(journal.add("same"), "w1.1", at=number), at=number + 0.5, error_type="A"
            )

    [group] = error_groups(read(path))

    assert (group.count, group.pos, len(group.samples)) == (SAMPLES + 1, SAMPLES + 1, SAMPLES)


def test_the_queue_holds_what_waits_for_a_worker_or_a_retry(path: Path) -> None:
    with JournalMaker(path) as journal:
        one, two = journal.add("A"), journal.add("B")
        journal.end(Kind.RETRY, journal.lease(one, "w1.1", at=1.0), at=2.0, seconds=1.0, error_type="E", message="m")
        journal.end(Kind.COMPLETED, journal.lease(two, "w1.1", at=2.0), at=4.0, seconds=2.0)
        journal.end(Kind.COMPLETED, journal.lease(one, "w1.1", at=5.0), at=6.0, seconds=1.0)

    points = [(point.at - BEGUN_AT, point.waiting, point.running) for point in queue_points(read(path))]

    assert points == [(0, 2, 0), (1, 1, 1), (2, 1, 1), (4, 1, 0), (5, 0, 1), (6, 0, 0)]


@pytest.mark.parametrize("is_live", [False, True])
def test_buckets_hold_every_end_and_the_queue_comes_out_as_it_stands(path: Path, is_live: bool) -> None:
    simulate(path, pos=300, workers=3, is_live=is_live)
    history = read(path)

    parts = buckets(history)

    assert sum(part.completed for part in parts) == history.counts["completed"]
    assert sum(part.failed for part in parts) == history.counts["failed"]
    assert len(parts) <= 120 and parts[-1].waiting == history.counts["pending"] + history.counts["retry_pending"]
    assert all(point.waiting >= 0 and 0 <= point.running <= 3 for point in queue_points(history))


@pytest.mark.parametrize(("until", "count"), [(0.28, 56), (4_324_937_142.857142, MAX_BUCKETS)])
def test_what_numbers_are_rounded_by_makes_no_bucket_more(until: float, count: int) -> None:
    """Divided by their width these come to a hair more than they are."""
    history = RunHistory({}, {}, {}, (), (Attempt("t1", "A", 1, "w1.1", 0.0, until, until, "completed"),))

    parts = buckets(history)

    assert len(parts) == count and parts[-1].end == pytest.approx(until)


def test_a_po_that_was_cancelled_before_the_first_attempt_is_in_the_first_bucket(path: Path) -> None:
    with JournalMaker(path) as journal:
        journal.note(
            Kind.CANCELLED, 1.0, journal.add("A"), json.dumps({"error_type": "Cancelled", "message": "by hand"})
        )
        journal.end(Kind.COMPLETED, journal.lease(journal.add("B"), "w1.1", at=100.0), at=110.0, seconds=10.0)

    parts = buckets(read(path))

    assert (parts[0].failed, sum(part.failed for part in parts)) == (1, 1)
    assert sum(part.completed for part in parts) == 1


def test_thinned_points_keep_the_ends_and_the_peak() -> None:
    from workers.report_figures import QueuePoint

    points = [QueuePoint(float(n), 100 if n == 4321 else n % 7, 1) for n in range(10_000)]
    few = thinned(points)
    assert len(few) <= 1_100 and few[0] == points[0] and few[-1] == points[-1]
    assert max(point.waiting for point in few) == 100 and few == sorted(few)


def test_utilisation_is_the_share_of_the_run_in_which_a_worker_was_busy(path: Path) -> None:
    with JournalMaker(path) as journal:
        journal.end(Kind.COMPLETED, journal.lease(journal.add("A"), "w1.1", at=0.0), at=10.0, seconds=10.0)
        journal.end(Kind.COMPLETED, journal.lease(journal.add("B"), "w10.1", at=0.0), at=2.5, seconds=2.5)
        journal.end(Kind.COMPLETED, journal.lease(journal.add("C"), "w2.1", at=0.0), at=5.0, seconds=5.0)

    use = worker_use(read(path))

    assert [(worker.slot, worker.utilisation) for worker in use] == [("w1", 1.0), ("w2", 0.5), ("w10", 0.25)]


def test_costs_are_exact_and_keep_currencies_apart(path: Path) -> None:
    with JournalMaker(path) as journal:
        for number, (supplier, amount, currency) in enumerate(
            [("A", "0.10", "EUR"), ("A", "0.20", "EUR"), ("A", "5", "USD"), ("B", "1e12", "EUR"), ("B", "none", "EUR")]
        ):
            journal.add(f"P{number}", supplier=supplier, amount=amount, currency=currency)

    rows = [(row.supplier, row.currency, row.pos, row.total) for row in costs(read(path))]

    assert rows == [
        ("B", "EUR", 1, Decimal("1e12")), ("A", "EUR", 2, Decimal("0.30")), ("A", "USD", 1, Decimal(5)),
    ]  # fmt: skip


def test_what_is_not_in_the_costs_is_said_with_them(path: Path) -> None:
    with JournalMaker(path) as journal:
        for number, amounts in {"1": ["100", "NA"], "2": ["50"], "3": ["", "ask"], "4": ["", "", "7"]}.items():
            rows = [{"supplier": "Acme", "amount": amount} for amount in amounts]
            po = {"po_number": number, **rows[0], "rows": rows, "row_numbers": [*range(len(rows))]}
            journal.add(number, payload=json.dumps(po).encode())

    history = read(path)

    assert [order.unread_rows for order in history.orders] == [1, 0, 2, 2]
    left_out = "1 PO without an amount left out. 3 rows of 2 other POs have no amount that can be read."
    assert f"Amounts of 3 POs, added up exactly; currencies are kept apart. {left_out}" in render(history, "html")
    assert left_out in render(history, "table").splitlines()
    assert [row["unread_rows"] for row in csv.DictReader(io.StringIO(render(history, "csv")))] == ["1", "0", "2", "2"]
    assert left_out not in render(history, "table", redact=True)


def test_each_row_of_a_po_is_charged_to_the_supplier_that_it_names(path: Path) -> None:
    with JournalMaker(path) as journal:
        for number, cells in {
            "1": [("Acme", "10", "EUR"), (" Bolt ", "1000", "EUR"), ("Bolt", "7", "USD")],
            "2": [("Bolt", "5", "EUR")],
        }.items():
            rows = [dict(zip(("supplier", "amount", "currency"), row, strict=True)) for row in cells]
            po = {"po_number": number, **rows[0], "rows": rows, "row_numbers": [*range(len(rows))]}
            token = journal.lease(journal.add(number, payload=json.dumps(po).encode()), "w1.1", at=1.0)
            journal.end(Kind.COMPLETED if number == "1" else Kind.FAILED, token, at=2.0, seconds=1.0)

    history = read(path)

    assert [(row.supplier, row.currency, row.pos, row.completed, row.failed) for row in costs(history)] == [
        ("Bolt", "EUR", 2, 1000, 5), ("Acme", "EUR", 1, 10, 0), ("Bolt", "USD", 1, 7, 0),
    ]  # fmt: skip
    page = render(history, "html")
    assert 'All 2 suppliers</th><td class="n">2</td><td class="n">1,015</td>' in page, "a PO of both is one PO"


def test_the_currency_of_most_pos_comes_first_however_many_suppliers_they_have(path: Path) -> None:
    with JournalMaker(path) as journal:
        rows = [{"supplier": name, "amount": "10", "currency": "USD"} for name in ("Acme", "Bolt", "Cog")]
        journal.add("1", payload=json.dumps({"po_number": "1", "rows": rows, "row_numbers": [1, 2, 3]}).encode())
        for number in "23":
            journal.add(number, supplier="Acme", amount="1", currency="EUR")

    assert [row.currency for row in costs(read(path))] == ["EUR", "USD", "USD", "USD"]


def test_a_row_without_a_supplier_is_charged_to_the_one_of_its_po(path: Path) -> None:
    with JournalMaker(path) as journal:
        for number, (supplier, others) in {"1": ("Acme", ["", "Bolt"]), "2": ("", ["Bolt"])}.items():
            rows = [{"supplier": name, "amount": "10"} for name in (supplier, *others)]
            po = {"po_number": number, **rows[0], "rows": rows, "row_numbers": [*range(len(rows))]}
            journal.add(number, payload=json.dumps(po).encode())

    assert [(row.supplier, row.total) for row in costs(read(path))] == [("Acme", 20), ("Bolt", 20), ("", 10)]


def test_slowest_hangs_and_durations_of_a_simulated_run(path: Path) -> None:
    simulate(path, pos=1_200, workers=4)
    history = read(path)

    assert slowest(history, 3)[0].seconds == max(order.seconds for order in history.orders)
    assert hangs(history)[0].place.startswith("readinto (socket.py:706), called from ")
    completed, failed = durations(history)
    assert completed.attempts == history.counts["completed"] and completed.median <= completed.p90 <= completed.longest
    assert failed.longest >= 60.0


def limited(timeout: str) -> dict[str, object]:
    return {"settings": {"task_timeout": {"value": timeout}, "timeout_floor": {"value": "1s"}}}


def test_limits_follow_the_median_by_supplier_where_enough_have_completed(path: Path) -> None:
    with JournalMaker(path) as journal:
        for number in range(24):
            supplier, seconds = ("Slow", 4.0) if number < 12 else ("Quick", 0.1) if number < 22 else ("Rare", 9.0)
            token = journal.lease(journal.add(f"PO{number}", supplier=supplier), "w1.1", at=10.0 * number)
            journal.end(Kind.COMPLETED, token, at=10.0 * number + seconds, seconds=seconds)

    limits = time_limits(read(path, run=limited("300%,10s")))

    assert [(limit.supplier, limit.completions, limit.limit_s) for limit in limits] == [
        ("", 24, 10.0),
        ("Slow", 12, 10.0),
        ("Quick", 10, 1.0),
    ]
    assert [limit.median_s for limit in limits] == [4.0, 4.0, 0.1]


@pytest.mark.parametrize("run", [limited("300s"), {}, limited("what a later version may say")])
def test_one_limit_for_all_is_no_list_of_limits(path: Path, run: dict[str, object]) -> None:
    with JournalMaker(path) as journal:
        for number in range(12):
            journal.end(Kind.COMPLETED, journal.lease(journal.add(f"PO{number}"), "w1.1", at=number), at=number + 0.5)

    assert time_limits(read(path, run=run)) == []


@pytest.mark.parametrize(("share", "value"), [(0.0, 1), (0.5, 2), (0.51, 3), (1.0, 4)])
def test_a_quantile_is_a_value_that_occurs(share: float, value: float) -> None:
    assert quantile([1, 2, 3, 4], share) == value


@pytest.mark.parametrize(("span", "width"), [(0.0, 0.001), (100.0, 1), (6473.0, 60), (1e9, 28 * 86400 * 1.0)])
def test_the_width_of_buckets_is_round_or_fits(span: float, width: float) -> None:
    assert nice_width(span) == (width if span < 1e9 else 365 * 86400)


def test_slots_sort_by_number() -> None:
    assert sorted(["w10", "w2", "x", "w1"], key=slot_order) == ["w1", "w2", "w10", "x"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"), (0.00034, "0.34 ms"), (0.012, "12 ms"), (0.15, "150 ms"), (0.9996, "1.0 s"), (3.44, "3.4 s"), (59.9, "60 s"),
        (125, "2 min 5 s"), (3600, "1 h"), (12_000, "3 h 20 min"), (90_000, "1 d 1 h"),
    ],
)  # fmt: skip
def test_durations_read_in_the_unit_that_suits_them(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


def test_what_is_not_all_never_reads_as_all() -> None:
    assert [share_text(share) for share in (0, 0.0012, 0.5, 0.9999, 1)] == ["0 %", "0.1 %", "50 %", "99.9 %", "100 %"]
    assert amount_text(Decimal("1234567.50")) == "1,234,567.50"


def test_the_outcome_in_words(path: Path) -> None:
    simulate(path, pos=50, workers=2, is_live=True)
    assert outcome_sentence(read(path)).startswith("The run was broken off; last seen 2026-05-28")
    assert outcome_sentence(read(path, run={"is_live": True})).startswith("The run goes on; as of 2026-05-28")
    early = outcome_sentence(read(path, run={"reason": "interrupted"}))
    assert early.startswith("The run ended early (interrupted): ") and "did not end" in early
