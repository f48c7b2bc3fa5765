"""Order files as public bodies publish them, and as a spreadsheet would save them again."""

import csv
from collections import Counter
from decimal import Decimal
from pathlib import Path

import pytest
import xlsxwriter

from poqueue.errors import OrdersError
from workers.orders import OrderBook, OrderSource, cells_as_given, read_orders
from workers.results import ResultsWriter

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data"
NEW_ORLEANS = REAL / "new_orleans_po_invoices.csv"
OXFORD = REAL / "oxford_spend_over_500_2015q3.csv"
NEW_ORLEANS_MAP = {"po_number": "PO", "supplier": "Vendor", "amount": "Amount"}
OXFORD_MAP = {"po_number": "Trans No", "supplier": "Supplier Name", "amount": "Amount"}

pytestmark = pytest.mark.skipif(
    not (NEW_ORLEANS.exists() and OXFORD.exists()), reason="the public order files are not beside this checkout"
)


def rows_of(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def rows_as_given(book: OrderBook) -> list[list[str]]:
    by_number = {n: row for order in book.orders for n, row in zip(order["row_numbers"], order["rows"], strict=True)}
    return [cells_as_given(book.names, by_number[number]) for number in sorted(by_number)]


@pytest.fixture(scope="module")
def new_orleans() -> OrderBook:
    return read_orders(OrderSource(NEW_ORLEANS, NEW_ORLEANS_MAP))


@pytest.fixture(scope="module")
def oxford() -> OrderBook:
    return read_orders(OrderSource(OXFORD, OXFORD_MAP))


def test_new_orleans_is_9706_orders_in_12728_rows(new_orleans):
    assert (new_orleans.row_count, len(new_orleans.orders)) == (12_728, 9_706)
    assert (new_orleans.invalid, new_orleans.duplicate_rows, new_orleans.notes) == ([], [], [])
    rows_a_po = Counter(len(order["rows"]) for order in new_orleans.orders)
    assert sum(count for rows, count in rows_a_po.items() if rows > 1) == 798
    assert max(rows_a_po) == 109


def test_new_orleans_keeps_odd_po_numbers_empty_suppliers_and_unreadable_amounts(new_orleans):
    rows = [row for order in new_orleans.orders for row in order["rows"]]

    assert {"BATCH #1", "13-Jan", "dec 2012 city s/tax"} <= {order["po_number"] for order in new_orleans.orders}
    assert sum(row["supplier"] is None for row in rows) == 726
    assert sum(row["amount"] == "NA" for row in rows) == 220
    assert rows_as_given(new_orleans) == rows_of(NEW_ORLEANS)[1:]


def test_oxford_is_3459_orders_in_3461_rows(oxford):
    assert (oxford.row_count, len(oxford.orders), oxford.invalid) == (3_461, 3_459, [])
    assert rows_as_given(oxford) == rows_of(OXFORD)[1:]
    assert sum(Decimal(row["amount"]) < 0 for order in oxford.orders for row in order["rows"]) == 2


@pytest.mark.parametrize(
    ("delimiter", "encoding"), [(";", "utf-8-sig"), (",", "cp1252"), ("\t", "utf-16"), ("|", "utf-8")]
)
def test_oxford_saved_in_another_way_is_the_same_orders(tmp_path, oxford, delimiter, encoding):
    rows = rows_of(OXFORD)
    rows[1][1] = "Señor’s café"  # the file itself is plain ASCII
    path = tmp_path / "oxford.csv"
    with path.open("w", encoding=encoding, newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)

    book = read_orders(OrderSource(path, OXFORD_MAP))

    assert book.delimiter == delimiter
    assert rows_as_given(book) == rows[1:]
    assert book.orders[1:] == oxford.orders[1:]
    assert bool(book.notes) == (encoding == "cp1252")
    assert read_orders(OrderSource(path, OXFORD_MAP, encoding=encoding)).orders == book.orders


@pytest.mark.once
@pytest.mark.parametrize("has_numbers", [True, False])
def test_oxford_as_a_workbook_is_the_same_orders(tmp_path, oxford, has_numbers):
    path = tmp_path / "oxford.xlsx"
    header, *rows = rows_of(OXFORD)
    amount = header.index("Amount")
    with xlsxwriter.Workbook(path, {"strings_to_numbers": False}) as workbook:
        sheet = workbook.add_worksheet("Spend")
        sheet.write_row(0, 0, header)
        for number, row in enumerate(rows, 1):
            sheet.write_row(number, 0, row)
            if has_numbers:
                sheet.write_number(number, amount, float(row[amount]))

    book = read_orders(OrderSource(path, OXFORD_MAP))

    assert (len(book.orders), book.invalid) == (3_459, [])
    for of_workbook, of_csv in zip(book.orders, oxford.orders, strict=True):
        assert Decimal(of_workbook.pop("amount")) == Decimal(of_csv["amount"])
        assert of_workbook["po_number"] == of_csv["po_number"]
        assert of_workbook["supplier"] == of_csv["supplier"]
        assert of_workbook["row_numbers"] == of_csv["row_numbers"]


def test_the_missing_column_is_named_with_those_that_are_there():
    with pytest.raises(OrdersError, match="did you mean --map po_number=PO"):
        read_orders(OrderSource(NEW_ORLEANS))


def test_failed_rows_of_new_orleans_run_again_as_the_same_orders(tmp_path, new_orleans):
    writer = ResultsWriter(tmp_path, new_orleans)
    chosen = new_orleans.orders[::50]
    for order in chosen:
        writer.outcome(order, status="failed", attempts=4, seconds=0.1, worker="w1.1", error="x", data={})
    accounts = writer.finish(order for index, order in enumerate(new_orleans.orders) if index % 50)
    writer.close()

    again = read_orders(OrderSource(tmp_path / "failed.csv", NEW_ORLEANS_MAP))

    assert accounts.balances
    assert accounts.failed == again.row_count
    assert [order["rows"] for order in again.orders] == [order["rows"] for order in chosen]
    assert len(rows_of(tmp_path / "results.csv")) == 12_729
