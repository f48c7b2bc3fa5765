"""Order files in: what is read, what is refused, and how it is said."""

import csv
import datetime as dt
import gzip
import hashlib
import io
import os
import struct
import zipfile
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import xlsxwriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from poqueue.errors import ConfigError, OrdersError
from poqueue.payload import freeze_plain, freeze_po
from workers import orders as orders_module
from workers.amounts import parse_amount, plain_text
from workers.orders import OrderBook, OrderSource, cells_as_given, read_orders
from workers.workbook_faults import _Finder, find_faults

DATA = Path(__file__).parent.parent / "data"


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., OrderBook]:
    """Write a file and read it as orders."""

    def write_and_read(content: str | bytes, name: str = "orders.csv", **options: Any) -> OrderBook:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return read_orders(OrderSource(path, **options))

    return write_and_read


@pytest.fixture
def refusal(read: Callable[..., OrderBook]) -> Callable[..., str]:
    """The message with which a file is refused."""

    def refuse(content: str | bytes, name: str = "orders.csv", **options: Any) -> str:
        with pytest.raises(OrdersError) as caught:
            read(content, name, **options)
        assert name in str(caught.value)
        return str(caught.value)

    return refuse


def workbook(path: Path, sheets: dict[str, list[list[Any]]], hidden: tuple[str, ...] = ()) -> bytes:
    """An .xlsx file with these sheets; also leaves it at `path`."""
    with xlsxwriter.Workbook(path, {"default_date_format": "yyyy-mm-dd"}) as book:
        for name, rows in sheets.items():
            sheet = book.add_worksheet(name)
            if name in hidden:
                sheet.hide()
            for number, row in enumerate(rows):
                sheet.write_row(number, 0, row)
    return path.read_bytes()


def assert_frozen_unlooked_at_as_the_queue_would(book: OrderBook) -> None:
    for order in book.orders:
        assert (order["po_number"], freeze_plain(order)) == freeze_po(order, as_json=True)


def po_numbers(book: OrderBook) -> list[str]:
    return [order["po_number"] for order in book.orders]


# ------------------------------------------------------------------------------------------ orders and rows


def test_an_order_holds_its_rows_their_numbers_and_the_fields_of_the_first(read):
    book = read("PO Number,Supplier,Amount,Note\nA-1,Acme,10.50,x\nB-2,,7,\nA-1,Acme Ltd,3,y\n")

    first = {"po_number": "A-1", "supplier": "Acme", "amount": "10.50", "Note": "x"}
    third = {"po_number": "A-1", "supplier": "Acme Ltd", "amount": "3", "Note": "y"}
    second = {"po_number": "B-2", "supplier": None, "amount": "7", "Note": None}
    assert book.orders == [
        {**first, "rows": [first, third], "row_numbers": [2, 4]},
        {**second, "rows": [second], "row_numbers": [3]},
    ]
    assert book.priorities == [5, 5]
    assert (book.row_count, book.blank_rows, book.last_row) == (3, 0, 4)
    assert book.headers == ["PO Number", "Supplier", "Amount", "Note"]
    assert book.names == ["po_number", "supplier", "amount", "Note"]
    assert (book.invalid, book.duplicate_rows, book.left_out, book.notes) == ([], [], [], [])


def test_altered_cells_are_kept_as_given_so_that_the_row_can_be_written_back(read):
    book = read('po_number;supplier;amount;note\n 007 ; Acme ;"5.742,00 €"; kept \n')

    (row,) = book.orders[0]["rows"]
    assert row == {
        "po_number": "007",
        "supplier": "Acme",
        "amount": "5742.00",
        "note": " kept ",
        "as_given": {"po_number": " 007 ", "supplier": " Acme ", "amount": "5.742,00 €"},
    }
    assert "as_given" not in book.orders[0]
    assert cells_as_given(book.names, row) == [" 007 ", " Acme ", "5.742,00 €", " kept "]


def test_leading_zeros_and_the_text_nan_survive(read):
    assert po_numbers(read("po_number\n007\nnan\n0\n")) == ["007", "nan", "0"]


def test_blank_lines_and_rows_of_blanks_are_counted_and_keep_their_row_numbers(read):
    book = read("\npo_number,supplier\n\nA,x\n , \nB,y\n\n\n")

    assert [order["row_numbers"] for order in book.orders] == [[4], [6]]
    assert (book.row_count, book.blank_rows, book.last_row) == (2, 4, 6)


def test_rows_of_another_width_are_invalid_unless_the_surplus_cells_are_blank(read):
    book = read("po_number,supplier\nA\nB,x,y\nC,x,,\nD,x\n")

    assert po_numbers(book) == ["C", "D"]
    assert [(row.row, row.column, row.reason, row.cells) for row in book.invalid] == [
        (2, "", "has 1 cells where the header has 2", ["A"]),
        (3, "", "has 3 cells where the header has 2", ["B", "x", "y"]),
    ]
    assert cells_as_given(book.names, book.orders[0]["rows"][0]) == ["C", "x"]


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ("", "po_number is empty"),
        ('"  "', "po_number is empty"),
        ("x" * 65, "po_number has 65 characters; at most 64 are allowed"),
        ("a\u200fb", "po_number holds a character that cannot be printed, U+200F"),
        ('"a\nb"', "po_number holds a character that cannot be printed, U+000A"),
        ("a\x1b[31m", "po_number holds a character that cannot be printed, U+001B"),
    ],
)
def test_a_po_number_that_cannot_be_one_makes_the_row_invalid(read, cell, reason):
    book = read(f"PO No,po_number\nx,{cell}\n")

    (row,) = book.invalid
    assert (row.row, row.column, row.reason) == (2, "po_number", reason)
    assert book.orders == []


@pytest.mark.parametrize("cell", ["4.5E+09", " 4E+11", '"4,5E+09"'])
def test_a_po_number_that_a_spreadsheet_has_shortened_makes_the_row_invalid(read, cell):
    book = read(f"po_number,x\n{cell},1\n{cell},2\n")

    number, advice = cell.strip(' "'), "format the column as text and export again"
    reason = f"po_number holds {number}, a number that a spreadsheet has shortened; {advice}"
    assert [(row.row, row.reason) for row in book.invalid] == [(2, reason), (3, reason)]
    assert book.orders == []


def test_a_row_that_repeats_the_header_is_no_order(read):
    book = read("po_number,supplier,\nA,x,\npo_number,supplier,\npo_number,y,\n")

    assert [(row.row, row.column, row.reason) for row in book.invalid] == [(3, "", "repeats the header")]
    assert po_numbers(book) == ["A", "po_number"]


@pytest.mark.parametrize(
    "po_number",
    ["../../etc/x", "/abs", "..", "CON", "a:b", "-rf", "=1+1", "x" * 64, "🧾 12", "é", "4E09", "45E+09", "4E+9"],
)
def test_a_po_number_may_be_any_printable_text(read, po_number):
    assert po_numbers(read(f"po_number,x\n{po_number},1\n")) == [po_number]


def test_an_invalid_row_says_in_one_safe_line_where_and_what_it_is(read):
    book = read("po_number,Priority\nA,\x1b[31mhigh\n")

    assert str(book.invalid[0]) == (
        "row 2, column 'Priority': priority must be a whole number 1 to 10 (--no-priority ignores the column), "
        "got '\\x1b[31mhigh'"
    )


# ------------------------------------------------------------------------------------------ priorities, duplicates


def test_the_priority_of_an_order_is_the_most_urgent_of_its_rows(read):
    book = read("po_number,Priority\nA,7\nB,\nA, 2 \nC,10\nD,1\n")

    assert book.priorities == [2, 5, 10, 1]


def test_a_whole_number_that_a_program_wrote_as_a_fraction_is_a_priority(read):
    assert read("po_number,priority\nA,3.0\nB,\nC,10.00\n").priorities == [3, 5, 10]


@pytest.mark.parametrize(
    "cell", ["high", "1.5", "0.0", "3.", "nan", "true", "-1", "0", "11", "1" + "0" * 30, "٣", "01", "1_0"]
)
def test_a_priority_that_is_no_whole_number_from_1_to_10_makes_the_row_invalid(read, cell):
    book = read(f"po_number,priority\nA,{cell}\nB,3\n")

    (row,) = book.invalid
    assert (row.row, row.column, row.value) == (2, "priority", cell)
    assert (po_numbers(book), book.priorities) == (["B"], [3])


def test_duplicates_can_be_refused_naming_the_rows(refusal):
    message = refusal("po_number\nA\nB\nA\nA\n", duplicates="error")

    assert "'A' in rows 2, 4, 5" in message
    assert "'B'" not in message
    assert "--duplicates" in message


def test_duplicates_can_be_left_aside_after_the_first(read):
    book = read("po_number,x\nA,1\nB,2\nA,3\n", duplicates="first")

    assert [order["row_numbers"] for order in book.orders] == [[2], [3]]
    (duplicate,) = book.duplicate_rows
    assert (duplicate.row, duplicate.po_number, duplicate.first_row, duplicate.cells) == (4, "A", 2, ["A", "3"])


def test_duplicates_can_be_orders_of_their_own(read):
    book = read("po_number,priority\nA,1\nB,2\nA,3\n", duplicates="separate")

    assert [order["row_numbers"] for order in book.orders] == [[2], [3], [4]]
    assert [order.get("number_repeats") for order in book.orders] == [True, None, True]
    assert book.priorities == [1, 2, 3]


def test_po_numbers_are_compared_exactly(read):
    assert po_numbers(read("po_number\npo-1\nPO-1\n PO-1\n")) == ["po-1", "PO-1"]


def test_a_limit_counts_orders_and_leaves_the_others_out_whole(read):
    book = read("po_number\nA\nB\nA\nC\n", limit=1)

    assert [order["row_numbers"] for order in book.orders] == [[2, 4]]
    assert [order["row_numbers"] for order in book.left_out] == [[3], [5]]
    assert book.priorities == [5]
    assert book.row_count == 4


# ------------------------------------------------------------------------------------------ columns


@pytest.mark.parametrize(
    "header", ["po_number", "PO Number", "PO-NUMBER", " po.number ", "ponumber", "Po_Number", "\uff30\uff2f Number"]
)
def test_a_field_is_found_without_case_blanks_dots_dashes_and_underscores(read, header):
    book = read(f"x,{header}\n1,A\n")

    assert book.names == ["x", "po_number"]
    assert book.headers == ["x", header]


def test_mapped_headers_are_found_as_loosely(read):
    mapping = {"po_number": "trans_no", "supplier": "Supplier Name", "url": "Link"}
    book = read("Trans No,Supplier Name ,link\n1,Acme,http://x\n", mapping=mapping)

    assert book.names == ["po_number", "supplier", "url"]


def test_an_exact_header_wins_over_one_that_is_only_alike(read):
    assert read("PO,po,po_number\n1,2,3\n", mapping={"po_number": "po"}).names == ["PO", "po_number", "po_number_2"]


def test_every_column_gets_a_name_of_its_own(read):
    book = read(",po_number,Date,Date,,column_1,rows,as_given\n" + "1,2,3,4,5,6,7,8\n")

    assert book.names == [
        "column_1", "po_number", "Date", "Date_2", "column_5", "column_1_2", "rows_2", "as_given_2",
    ]  # fmt: skip
    assert cells_as_given(book.names, book.orders[0]["rows"][0]) == list("12345678")


def test_a_column_without_a_header_can_be_mapped_by_its_name(read):
    assert po_numbers(read(",Date,Date\n1,2,3\n", mapping={"po_number": "column_1"})) == ["1"]
    assert po_numbers(read(",Date,Date\n1,2,3\n", mapping={"po_number": "Date_2"})) == ["3"]


def test_a_hundred_thousand_columns_of_one_name_are_named_in_one_go(read):
    book = read(f"po_number{',x' * 100_000}\n")  # by counting from 2 for each it would take longer than a test may

    assert book.names[:3] == ["po_number", "x", "x_2"] and book.names[-1] == "x_100000"


def test_a_missing_po_number_column_names_what_was_found_and_what_is_meant_perhaps(refusal):
    message = refusal("Check,PO,Vendor\n1,2,3\n")

    assert "columns found: 'Check', 'PO', 'Vendor'" in message
    assert "needed: po_number (did you mean --map po_number=PO?)" in message
    assert "did you mean --map 'po_number=Purchase Order'?" in refusal("x,Purchase Order\n1,2\n")
    assert r"did you mean --map 'po_number=PO\, number'?" in refusal('x;"PO, number"\n1;2\n')
    assert "name it: --map po_number=HEADER" in refusal("x,y\n1,2\n")
    assert "did you mean --map po_number=y?" in refusal("x,y\n1,2\n", mapping={"po_nubmer": "y"})


def test_a_mapped_column_that_is_missing_or_repeated_is_named(refusal):
    assert "no column 'Vendr' for supplier (did you mean Vendor?); columns found: 'po_number', 'Vendor'" in refusal(
        "po_number,Vendor\n1,2\n", mapping={"supplier": "Vendr"}
    )
    assert "column 'PO' for po_number appears more than once (columns 1, 3)" in refusal(
        "PO,x,PO\n1,2,3\n", mapping={"po_number": "PO"}
    )
    assert "--map gives column 'PO' to po_number and url" in refusal(
        "PO\n1\n", mapping={"po_number": "PO", "url": "po"}
    )


def test_several_columns_that_could_be_the_po_number_are_refused_and_other_fields_left_alone(read, refusal):
    assert "columns 1, 2 could all be po_number" in refusal("PO Number,PO_Number\n1,2\n")

    book = read("po_number,Amount,AMOUNT\n1,2,3\n")
    assert book.names == ["po_number", "Amount", "AMOUNT"]
    assert "columns 2, 3 could all be amount" in book.notes[0]


# ------------------------------------------------------------------------------------------ CSV


def test_a_byte_order_mark_is_no_part_of_the_header(read):
    for encoding in ("utf-8-sig", "utf-16", "utf-32"):
        assert po_numbers(read('"po_number","é"\nA,1\n'.encode(encoding))) == ["A"]
    with_mark = "\ufeffpo_number,é\nA,1\n".encode("utf-16-le")
    assert read(with_mark[2:], encoding="utf-16-le").headers == ["po_number", "é"]
    assert read(with_mark, encoding="utf-16-le").headers == ["po_number", "é"]
    assert read("\ufeffpo_number,é\nA,1\n", encoding="utf-8").headers == ["po_number", "é"]


def test_what_is_not_utf_8_is_read_as_cp1252_with_a_note(read):
    book = read("po_number,supplier\nA,Café\nB,5 €\n".encode("cp1252"))

    assert [order["supplier"] for order in book.orders] == ["Café", "5 €"]
    assert book.encoding == "cp1252"
    assert "is not UTF-8 at byte 24 (0xe9, line 2), so it was read as cp1252" in book.notes[0]


def test_a_given_encoding_is_used_and_a_wrong_one_refused(read, refusal):
    cp1252 = "po_number,supplier\nA,Café\n".encode("cp1252")

    assert read(cp1252, encoding="cp1252").notes == []
    assert "is not utf-8 at byte 24 (0xe9, line 2); give another --encoding" in refusal(cp1252, encoding="utf-8")
    assert "unknown encoding 'utf-9'" in refusal(cp1252, encoding="utf-9")
    assert "unknown encoding 'hex'" in refusal(cp1252, encoding="hex")
    assert "name its --encoding" in refusal(b"po_number\n\x81\xff\n")


def test_an_encoding_that_the_file_cannot_have_is_to_be_left_out_and_one_that_lacks_its_mark_named_with_its_order(
    refusal,
):
    text = "po_number,supplier\nA,Café\n"

    for encoding in ("utf-16", "utf-32"):
        for content in (text.encode(), text.encode("cp1252"), "\ufeffpo_number\nA\n".encode()):
            assert f"is not {encoding}; leave --encoding out" in refusal(content, encoding=encoding)
        for order in ("le", "be"):
            message = refusal(text.encode(f"{encoding}-{order}"), encoding=encoding)
            assert message.endswith(f"if the file is that, use --encoding {encoding}-{order}")
    assert "is not utf-32; leave --encoding out" in refusal(text.encode("utf-16"), encoding="utf-32")
    assert refusal("採購單,供應商\n".encode("utf-32-le"), encoding="utf-32").endswith("--encoding utf-32-le")


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_found_out(read, delimiter):
    text = 'po_number;supplier;amount\nA;"x, y";1,50\nB;z|z;2,50\n'
    book = read(text.replace(";", "\0").replace("1,50", "1.50").replace("2,50", "2.50").replace("\0", delimiter))

    assert book.delimiter == delimiter
    assert book.names == ["po_number", "supplier", "amount"]


def test_decimal_commas_do_not_pass_for_delimiters(read):
    book = read("po_number;amount\nA;1,50\nB;2,50\n")

    assert [order["amount"] for order in book.orders] == ["1.50", "2.50"]


def test_a_header_that_names_no_known_field_still_shows_its_columns(refusal):
    assert "columns found: 'a', 'b', 'c'" in refusal("a;b;c\n1;2;3\n4;5;6,7\n")


def test_a_given_delimiter_is_used(read):
    assert read("po_number~x\nA~1\n", delimiter="~").names == ["po_number", "x"]
    assert read("po_number\tx\nA\t1\n", delimiter="tab").delimiter == "\t"


@pytest.mark.parametrize(
    ("text", "given", "meant"),
    [
        ("po_number,supplier\n1,A\n", ";", "if it is ',', use --delimiter comma"),
        ("PO;Supplier\n1;A\n", ",", "if it is ';', use --delimiter semicolon"),
        ("PO|Supplier\n1|A\n", "~", "if it is '|', use --delimiter pipe"),
        ("sep=;\nNo\tSupplier\n1\tA\n", ";", r"if it is '\t', use --delimiter tab"),
    ],
)
def test_a_delimiter_that_leaves_the_header_in_one_piece_is_named(text, given, meant, refusal):
    for mapping in ({}, {"po_number": "Supplier"}):
        message = refusal(text, delimiter=given, mapping=mapping)

        assert f"the delimiter was given as {given!r}" in message and meant in message
        assert "did you mean" not in message


def test_a_file_of_one_column_may_be_given_any_delimiter(read, refusal):
    assert po_numbers(read("po_number\nA,1\n", delimiter=";")) == ["A,1"]
    assert po_numbers(read("PO, number\n1\n", delimiter=";", mapping={"po_number": "PO, number"})) == ["1"]
    for text in ("x\n1\n", '"x;y"\n1\n'):
        assert "no column for po_number" in refusal(text, delimiter=";")


def test_the_sep_line_of_excel_is_obeyed_and_is_no_row(read):
    book = read("sep=~\r\npo_number~x\r\nA~1\r\n")

    assert (book.headers, book.orders[0]["row_numbers"]) == (["po_number", "x"], [2])


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_every_line_end_is_read_and_cells_may_hold_lines(read, line_end):
    book = read(f'po_number,note{line_end}A,"one{line_end}two"{line_end}B,x{line_end}')

    assert book.orders[0]["note"] == f"one{line_end}two"
    assert [order["row_numbers"] for order in book.orders] == [[2], [3]]


def test_a_quote_that_is_never_closed_is_refused_with_the_line_that_opens_it(refusal):
    assert 'row 4 (from line 5): the file ends inside a quoted cell; close the " that this row opens' in refusal(
        'po_number,x\nA,"1\n2"\nB,2\nC,"3\nD,4\n'
    )
    assert "row 3 (from line 3): a cell is too large (limit 131,072 characters)" in refusal(
        'po_number,x\nA,1\nB,"' + "y\n" * 70_000
    )


def test_text_after_a_closing_quote_is_refused(refusal):
    assert 'row 2 (from line 2): text follows a closing "' in refusal('po_number,x\nA,"5" pipe"\n')


def test_a_nul_byte_is_refused_with_its_line(refusal):
    assert "NUL byte at line 3" in refusal("po_number\nA\nB\0\n")
    for encoding in ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"):
        assert f"--encoding {encoding}" in refusal("po_number\nA\n".encode(encoding))
        assert f"--encoding {encoding}" in refusal("po_number\nA\n".encode(encoding), encoding=encoding[:6])


def test_files_that_are_no_table_are_told_apart(tmp_path, refusal):
    assert "is empty (0 bytes)" in refusal("")
    assert "holds only blank lines" in refusal("\n , \n")
    assert "not a regular file" in _refusal_of(_made(os.mkfifo, tmp_path / "pipe"))
    assert "is a directory" in _refusal_of(_made(os.mkdir, tmp_path / "directory"))
    assert "no such file (did you mean orders.csv?)" in _refusal_of(tmp_path / "order.csv")
    assert "no such file" in _refusal_of(tmp_path / "nowhere" / "order.csv")
    assert "cannot be read" in _refusal_of(Path("a\0b"))


def test_a_file_that_may_not_be_read_says_so(tmp_path, monkeypatch):
    path = tmp_path / "orders.csv"
    path.write_text("po_number\nA\n")

    def refuse(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert "cannot be read: Permission denied" in _refusal_of(path)


def _made(make: Callable[[Path], None], path: Path) -> Path:
    make(path)
    return path


def _refusal_of(path: Path) -> str:
    with pytest.raises(OrdersError) as caught:
        read_orders(OrderSource(path))
    return str(caught.value)


def test_a_header_without_rows_is_a_book_without_orders_and_a_note(read):
    book = read("po_number,x\n\n")

    assert (book.orders, book.row_count, book.last_row) == ([], 0, 1)
    assert "has a header and no orders" in book.notes[0]


def test_the_digest_is_that_of_the_file_and_the_file_is_not_touched(tmp_path, read):
    book = read("po_number\nA\n")

    assert book.sha256 == hashlib.sha256(b"po_number\nA\n").hexdigest()
    assert (tmp_path / "orders.csv").read_text() == "po_number\nA\n"


def test_progress_is_told_every_ten_thousand_rows(tmp_path):
    path = tmp_path / "orders.csv"
    path.write_text("po_number\n" + "".join(f"{number}\n" for number in range(25_000)))

    told: list[int] = []
    read_orders(OrderSource(path), on_progress=told.append)

    assert told == [9_999, 19_999]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"delimiter": ";;"}, "delimiter must be one character"),
        ({"delimiter": '"'}, "delimiter must be one character"),
        (
            {"duplicates": "grup"},
            "duplicates must be one of group, error, first, separate, got 'grup' (did you mean group?)",
        ),
        ({"limit": 0}, "limit must be a whole number from 1"),
        ({"mapping": {"rows": "x"}}, "'rows' cannot be the name of a field"),
    ],
)
def test_a_source_refuses_values_out_of_range(options, text):
    with pytest.raises(ConfigError) as caught:
        OrderSource(Path("orders.csv"), **options)
    assert text in str(caught.value)


# ------------------------------------------------------------------------------------------ amounts


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("1234.50", "1234.50"),
        ("1,234.50", "1234.50"),
        ("1.234,50", "1234.50"),
        ("1 234,50", "1234.50"),
        ("1\u202f234,50", "1234.50"),
        ("1'234.50", "1234.50"),
        ("1’234.50", "1234.50"),
        ("1,23,456.00", "123456.00"),
        ("1.234.567", "1234567"),
        ("5.742,00 €", "5742.00"),
        ("12 EUR", "12"),
        ("USD 12", "12"),
        ("US$ 1,000.00", "1000.00"),
        ("R$10,00", "10.00"),
        ("99,90 kr", "99.90"),
        ("£5", "5"),
        ("(1,234.50)", "-1234.50"),
        ("($5)", "-5"),
        ("$(250.00)", "-250.00"),
        (" $ (1,000.00)", "-1000.00"),
        ("USD (5.00)", "-5.00"),
        ("(5,00) €", "-5.00"),
        ("(5.00 EUR)", "-5.00"),
        ("-5", "-5"),
        ("5-", "-5"),
        ("5,00- €", "-5.00"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("\u22125", "-5"),
        ("+5", "5"),
        (" 5 ", "5"),
        (".5", "0.5"),
        (",5", "0.5"),
        ("0,500", "0.500"),
        ("1234,567", "1234.567"),
        ("1,234", "1234"),
        ("1.234", "1.234"),
        ("1.5E+06", "1500000"),
        ("1e-07", "0.0000001"),
        ("1,5E+03", "1500"),
        ("-1,234E+05", "-123400"),
        ("-0.00", "0.00"),
        ("9" * 40, "9" * 40),
    ],
)
def test_amounts_are_read_exactly_in_either_convention(text, amount):
    read = parse_amount(text)

    assert read == Decimal(amount)
    assert plain_text(read) == amount


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "NA", "NaN", "sNaN", "Infinity", "-inf", "EUR", "-", "()", "1_000", "٣", "1e999999", "1e13",
        "9" * 5000, "16.500,00 1 DIA", "1,2,3", "1.2.3", "1.234.56", "1 2", "--5", "(-5)", "(5", "5)",
        "-5-", "0x10", "5 pcs", "1,234,", "($(5))", "$(5", "$5)", "-$(5)", "$(-5)", "$(5)-", "(5)(",
    ],
)  # fmt: skip
def test_what_is_no_amount_is_none(text):
    assert parse_amount(text) is None


def test_the_convention_of_the_column_settles_what_can_be_read_two_ways():
    assert parse_amount("1.234", ",") == Decimal("1234")
    assert parse_amount("1,234", ",") == Decimal("1.234")
    assert parse_amount("1,234", ".") == Decimal("1234")
    assert parse_amount("1234.5", ",") == Decimal("1234.5")


def test_the_other_amounts_of_a_file_show_its_convention(read):
    book = read("po_number;amount\nA;1.234\nB;5,50\nC;2,345\n")

    assert [order["amount"] for order in book.orders] == ["1234", "5.50", "2.345"]
    assert book.orders[0]["rows"][0]["as_given"] == {"amount": "1.234"}
    assert book.notes == []


def test_without_a_sign_of_the_convention_the_reading_is_noted(read):
    book = read("po_number;amount\nA;1.234\nB;2,345\nC;7\n")

    assert [order["amount"] for order in book.orders] == ["1.234", "2345", "7"]
    assert "as_given" not in book.orders[0]["rows"][0]
    assert "2 amounts, such as in row 2 (read as 1.234), can be read two ways" in book.notes[0]


def test_a_number_of_a_workbook_has_no_mark_that_would_tell_how_its_texts_are_read(tmp_path, read):
    rows = [["po_number", "amount"], ["A", 99.5], ["B", "5,50"], ["C", "1.234"], ["D", 2.125]]
    book = read(workbook(tmp_path / "w.xlsx", {"Orders": rows}), "orders.xlsx")

    assert [order["amount"] for order in book.orders] == ["99.5", "5.50", "1234", "2.125"]
    assert book.notes == []


def test_an_amount_that_cannot_be_read_stays_as_it_is(read):
    book = read("po_number,amount\nA,NA\nB, ask \nC,\n")

    assert [order["amount"] for order in book.orders] == ["NA", " ask ", None]
    assert book.invalid == []


@pytest.mark.parametrize("name", ["orders.csv", "orders.xlsx"])
def test_a_po_that_is_larger_than_a_call_may_carry_is_named(name, tmp_path, read, refusal, monkeypatch):
    rows = [["po_number", "\x01 and more" * 3 if name == "orders.csv" else "text"]]
    rows += [["ALL" if number < 50 else f"P{number}", "some text"] for number in range(100)]
    content = workbook(tmp_path / "w.xlsx", {"Orders": rows})
    if name == "orders.csv":
        content = "".join(",".join(row) + "\n" for row in rows).encode()
    [largest] = [order for order in read(content, name).orders if order["po_number"] == "ALL"]
    size = len(freeze_plain(largest))

    monkeypatch.setattr(orders_module, "MAX_PO_BYTES", size)
    assert len(read(content, name).orders) == 51
    monkeypatch.setattr(orders_module, "MAX_PO_BYTES", size - 1)
    message = refusal(content, name)

    assert "PO 'ALL' (rows 2, 3, 4" in message and f"takes {size:,} bytes" in message
    assert "'po_number' the column" in message and "--duplicates separate" in message
    assert len(read(content, name, duplicates="separate").orders) == 100


@given(st.decimals(allow_nan=False, allow_infinity=False, places=2, min_value=-(10**12), max_value=10**12))
def test_every_way_to_write_an_amount_reads_the_same(amount):
    american = f"{amount:,.2f}"
    european = american.translate(str.maketrans(",.", ".,"))

    assert parse_amount(american) == parse_amount(european) == parse_amount(f"{european} EUR") == amount
    assert parse_amount(plain_text(amount)) == amount


@given(st.text(max_size=70))
def test_no_text_makes_reading_an_amount_fail(text):
    amount = parse_amount(text)

    assert amount is None or amount.is_finite()


# ------------------------------------------------------------------------------------------ workbooks


def test_a_workbook_is_read_with_numbers_exact_and_dates_in_iso_form(tmp_path, read):
    rows = [
        ["po_number", "supplier", "amount", "paid", "ok"],
        ["00123", "Möller", 0.1, dt.date(2015, 7, 3), True],
        [4711, None, 1234.5, dt.datetime(2015, 7, 3, 12, 30), False],
        ["PO 9", None, "1.234,50", None, None],
    ]
    book = read(workbook(tmp_path / "w.xlsx", {"Orders": rows}), "orders.xlsx")

    assert [cells_as_given(book.names, order["rows"][0]) for order in book.orders] == [
        ["00123", "Möller", "0.1", "2015-07-03", "TRUE"],
        ["4711", "", "1234.5", "2015-07-03T12:30:00", "FALSE"],
        ["PO 9", "", "1.234,50", "", ""],
    ]
    assert [order["amount"] for order in book.orders] == ["0.1", "1234.5", "1234.50"]
    assert_frozen_unlooked_at_as_the_queue_would(book)
    assert (book.encoding, book.delimiter, book.invalid) == (None, None, [])


def test_cells_that_lost_their_po_number_are_invalid_with_their_address(tmp_path, read):
    cells = [1.5, 1e15, True, dt.date(2020, 1, 13), None, 123456789012345]
    rows = [["x", "po_number"], *([f"row {n}", cell] for n, cell in enumerate(cells))]
    book = read(workbook(tmp_path / "w.xlsx", {"Orders": rows}), "orders.xlsx")

    assert [row.reason for row in book.invalid] == [
        "po_number holds the number 1.5 (cell B2); format the column as text",
        "po_number holds 1000000000000000, of which Excel keeps only 15 digits (cell B3); format the column as text",
        "po_number holds the truth value TRUE (cell B4); format the column as text",
        "po_number holds the date or time 2020-01-13 (cell B5); format the column as text",
        "po_number is empty (cell B6)",
    ]
    assert po_numbers(book) == ["123456789012345"]


def test_errors_and_formulas_without_a_stored_value_are_named_and_no_row_of_them_is_blank(tmp_path, read):
    with xlsxwriter.Workbook(tmp_path / "w.xlsx") as book:
        sheet = book.add_worksheet("Some & more")
        sheet.write_row(1, 1, ["po_number", "amount", "note"])
        sheet.write_row(2, 1, ["A", 1])
        sheet.write_formula(3, 1, "=NA()", None, "#N/A")
        sheet.write_formula(4, 1, '="X"', None, "")
        sheet.write_row(5, 1, ["B"])
        sheet.write_formula(5, 2, "=1/0", None, "#DIV/0!")
        sheet.write_formula(6, 1, "=1+1", None, 2)
    with_nothing_shown = b'<c r="B5"><f>"X"</f><v></v></c>', b'<c r="B5" t="str"><f>"X"</f><v></v></c>'
    as_a_program_writes_it_that_calculates_nothing = b"<f>1+1</f><v>2</v>", b"<f>1+1</f><v></v>"
    content = rewritten(tmp_path / "w.xlsx", with_nothing_shown, as_a_program_writes_it_that_calculates_nothing)

    book = read(content, "orders.xlsx")

    assert [(row.row, row.value, row.reason) for row in book.invalid] == [
        (4, "", "po_number is an error, #N/A (cell B4); enter the number itself"),
        (7, "", "po_number is a formula with no stored value (cell B7); enter the number itself"),
    ]
    assert [(order["po_number"], order["amount"]) for order in book.orders] == [("A", "1"), ("B", None)]
    assert (book.row_count, book.blank_rows, book.last_row) == (4, 1, 7)
    assert book.notes[-1].endswith("cell B4 is an error, #N/A; cells without a value: 3")


def test_headers_without_a_stored_value_are_named_also_where_they_are_missed(tmp_path, read, refusal):
    with xlsxwriter.Workbook(tmp_path / "w.xlsx") as book:
        sheet = book.add_worksheet()
        sheet.write_row(0, 0, ["po_number", "note", "more"])
        sheet.write_row(1, 0, ["A", "x", "y"])
        sheet.write_formula(0, 3, "=NA()", None, "#N/A")
    no_note = b'<c r="B1" t="s"><v>1</v></c>', b'<c r="B1"><f>"note"</f></c>'
    no_po_number = b'<c r="A1" t="s"><v>0</v></c>', b'<c r="A1"><f>"po_number"</f></c>'

    book = read(rewritten(tmp_path / "w.xlsx", no_note), "orders.xlsx")
    refused = refusal(rewritten(tmp_path / "w.xlsx", no_po_number), "orders.xlsx")

    assert book.names == ["po_number", "column_2", "more", "column_4"]
    said = "header cell {} is a formula with no stored value; headers without a value: 2"
    assert book.notes[0].endswith(f"orders.xlsx: {said.format('B1')}")
    assert "no column for po_number; columns found: '', 'note'" in refused
    assert refused.endswith(f"orders.xlsx: {said.format('A1')}")


SOUND_CELLS = (
    '<c r="{0}"/>',
    '<c r="{0}" s="3" />',
    '<c r="{0}" s="1" t="s"><v>7</v></c>',
    '<c r="{0}"><v>1.5</v></c>\n',
    '<c r="{0}" t="b"><f/><v>1</v></c>',
    '<c r="{0}"><f t="shared" si="0"/><v>5</v></c>',
    '<c r="{0}" t="str"><f>A1&amp;"/"</f><v>e</v></c>',
    '<c r="{0}" t="str"><f>A1</f><v></v></c>',
    '<c r="{0}" t="inlineStr"><is><t xml:space="preserve"> e </t></is></c>',
    '<x:c r="{0}" t="n"><x:f>1+1</x:f><x:v>2</x:v></x:c>',
    "<c t='n'><v>1</v></c>",
)
FAULTY_CELLS = (
    '<c r="{0}" t="e"><v>#N/A</v></c>',
    '<c r="{0}" s="1" t="e"><f>1/0</f><v>#DIV/0!</v></c>',
    "<c t = 'e' r='{0}'><v>#REF!</v></c>",
    '<c r="{0}"><f>1+1</f></c>',
    '<c r="{0}"><f>1+1</f><v/></c>',
    '<c r="{0}"><f t="shared" si="0"/><v></v></c>',
    '<x:c r="{0}" s="2"><x:f>1+1</x:f></x:c>',
)
FAULTS_TOLD = ("#N/A", "#DIV/0!", "#REF!", None, None, None, None)


@pytest.mark.parametrize("sound", SOUND_CELLS)
@pytest.mark.parametrize(("faulty", "told"), list(zip(FAULTY_CELLS, FAULTS_TOLD, strict=True)))
def test_a_faulty_cell_is_found_beside_sound_ones_however_they_are_written(sound, faulty, told):
    cells = [sound.format("A1"), faulty.format("B1"), sound.format("C1"), sound.format("D1"), faulty.format("E1")]

    found = find_faults(sheet_of(f'<row r="1">{"".join(cells)}</row><row r="2">{faulty.format("C2")}</row>'), "S")

    fault = {"fault": f"is an error, {told}" if told else "is a formula with no stored value"}
    assert found == {1: {1: fault, 4: fault}, 2: {2: fault}}


def test_an_error_that_no_spreadsheet_knows_is_shown_on_one_line_and_not_at_length():
    cell = f'<c r="A1" t="e"><v>#\x9b31m\npoqueue: all is well {"!" * 10_000}</v></c>'

    found = find_faults(sheet_of(f'<row r="1">{cell}</row>'), "S")

    assert found[1][0] == {"fault": r"is an error, #\x9b31m\npoqueue: all is well !!!!!!!!…"}


def test_a_few_faulty_cells_in_a_large_sheet_are_the_only_ones_that_are_looked_at_one_by_one(monkeypatch):
    looked_at = []
    end = _Finder._end
    monkeypatch.setattr(_Finder, "_end", lambda self, name: looked_at.append(name) or end(self, name))
    rows = [f'<row r="{n}">{"".join(cell.format(f"A{n}") for cell in SOUND_CELLS[2:7])}</row>' for n in range(2, 1000)]

    found = find_faults(sheet_of("".join([*rows, f'<row r="1000">{FAULTY_CELLS[0].format("A1000")}</row>'])), "S")

    assert list(found) == [1000] and looked_at.count("c") == 1


def sheet_of(rows: str) -> bytes:
    """A workbook of one sheet, S, in as much as the search for faults looks at it."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("xl/workbook.xml", '<workbook><sheets><sheet name="S" r:id="rId1"/></sheets></workbook>')
        link = '<Relationship Id="rId1" Target="worksheets/sheet1.xml"/>'
        archive.writestr("xl/_rels/workbook.xml.rels", f"<Relationships>{link}</Relationships>")
        archive.writestr("xl/worksheets/sheet1.xml", f"<worksheet><sheetData>{rows}</sheetData></worksheet>")
    return out.getvalue()


@pytest.mark.parametrize("address", ["B9999999999", "XFE4", "ZZZZZZZZZ4"])
def test_a_formula_at_a_place_that_no_sheet_has_is_nothing(address, tmp_path, read):
    with xlsxwriter.Workbook(tmp_path / "w.xlsx") as book:
        sheet = book.add_worksheet()
        sheet.write_column(0, 0, ["po_number", "A"])
    row = address.lstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    far = f'<row r="{row}"><c r="{address}"><f>1+1</f></c></row></sheetData>'.encode()

    book = read(rewritten(tmp_path / "w.xlsx", (b"</sheetData>", far)), "orders.xlsx")

    assert [order["po_number"] for order in book.orders] == ["A"] and not book.invalid
    assert (book.row_count, book.last_row, book.notes) == (1, 2, [])


def rewritten(path: Path, *changes: tuple[bytes, bytes]) -> bytes:
    """The workbook with these pieces of its sheet replaced."""
    out = io.BytesIO()
    with zipfile.ZipFile(path) as before, zipfile.ZipFile(out, "w") as after:
        for name in before.namelist():
            part = before.read(name)
            for old, new in changes:
                assert name != "xl/worksheets/sheet1.xml" or old in part
                part = part.replace(old, new)
            after.writestr(name, part)
    return out.getvalue()


def test_rows_above_and_columns_left_of_the_table_do_not_shift_the_numbers(tmp_path, read):
    rows = [[], [], [None, "x", "po_number"], [None, 1, "A"], [], [None, 2, "B"]]
    book = read(workbook(tmp_path / "w.xlsx", {"Orders": rows}), "orders.xlsx")

    assert [order["row_numbers"] for order in book.orders] == [[4], [6]]
    assert book.names == ["column_1", "x", "po_number"]


def test_old_excel_and_open_document_files_are_read():
    old = read_orders(OrderSource(DATA / "orders.xls"))
    assert [cells_as_given(old.names, order["rows"][0]) for order in old.orders] == [
        ["00123", "Möller GmbH", "1234.5", "2015-07-03"],
        ["4711", "Café", "-0.1", ""],
        ["PO 9", "", "1.234,50", ""],
    ]
    assert [row.row for row in old.invalid] == [4]

    ods = read_orders(OrderSource(DATA / "orders.ods"))
    assert [order["po_number"] for order in ods.orders] == ["00123", "4711"]


def test_content_decides_what_a_file_is_not_its_name(tmp_path, read, refusal):
    data = workbook(tmp_path / "w.xlsx", {"Orders": [["po_number"], ["A"]]})

    assert po_numbers(read(data, "orders.csv")) == ["A"]
    assert "is not an .xlsx workbook; if it is text, rename it to .csv" in refusal("po_number\nA\n", "orders.xlsx")
    assert "has no sheets" in refusal("po_number\nA\n", sheet="1")


def test_the_only_visible_sheet_with_data_is_read_and_several_must_be_chosen_from(tmp_path, read, refusal):
    one, other = [["po_number"], ["A"]], [["po_number"], ["B"]]
    data = workbook(tmp_path / "w.xlsx", {"Empty": [], "Orders": one, "Old": other}, hidden=("Old",))
    assert po_numbers(read(data, "orders.xlsx")) == ["A"]
    assert po_numbers(read(data, "orders.xlsx", sheet="Old")) == ["B"]

    data = workbook(tmp_path / "v.xlsx", {"Orders": one, "More": other})
    assert "has 2 sheets with data: 'Orders', 'More'; choose one with --sheet NAME" in refusal(data, "orders.xlsx")
    assert po_numbers(read(data, "orders.xlsx", sheet="more")) == ["B"]
    assert po_numbers(read(data, "orders.xlsx", sheet="1")) == ["A"]
    assert "no sheet 'Order' (did you mean Orders?); it has 'Orders', 'More'" in refusal(
        data, "orders.xlsx", sheet="Order"
    )
    assert "no sheet '3'" in refusal(data, "orders.xlsx", sheet="3")


def test_a_workbook_without_data_is_refused(tmp_path, refusal):
    assert "the sheet is empty" in refusal(workbook(tmp_path / "w.xlsx", {"A": [], "B": []}), "orders.xlsx")


def _zip(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def test_a_compressed_file_is_refused_with_what_to_do(refusal):
    content = gzip.compress(b"po_number\nA\n" * 1000)

    assert refusal(content, "orders.csv.gz").endswith("is compressed by gzip; unpack it first (gunzip)")
    assert "unpack it" in refusal(content, "orders.csv", encoding="latin-1")


def test_what_only_looks_like_a_workbook_is_refused(refusal):
    types = "[Content_Types].xml"
    ole = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600)

    assert "is a zip archive but not a workbook" in refusal(_zip({"a.txt": b"x"}), "orders.xlsx")
    assert "is not a workbook that can be read" in refusal(_zip({types: b"x"}), "orders.xlsx")
    assert "is not a workbook, or is damaged" in refusal(_zip({types: b"x"})[:-30], "orders.xlsx")
    assert "is not a workbook that can be read" in refusal(ole, "orders.xls")
    assert "is protected with a password" in refusal(ole + "EncryptedPackage".encode("utf-16-le"), "orders.xlsx")


def test_zip_bombs_are_refused_before_they_are_unpacked(refusal):
    types = "[Content_Types].xml"
    bomb = _zip({types: b"x", "xl/sheet.xml": bytes(40 * 1024**2)})
    many = _zip({types: b"x", **{f"{number}": b"" for number in range(1001)}})
    honest = _zip({types: b"x" * 99, "xl/sheet.xml": b"y" * 99})
    first, second = (honest.rindex(name.encode()) for name in (types, "xl/sheet.xml"))
    overlapping = bytearray(honest)
    overlapping[second - 4 : second] = overlapping[first - 4 : first] = struct.pack("<I", 0)
    lying = bytearray(honest)
    lying[second - 22 : second - 18] = struct.pack("<I", 2**32 - 2)

    assert "refused as a zip bomb" in refusal(bomb, "orders.xlsx")
    assert "holds 1,002 parts (limit 1,000)" in refusal(many, "orders.xlsx")
    assert "parts that overlap" in refusal(bytes(overlapping), "orders.xlsx")
    assert "bytes (limit" in refusal(bytes(lying), "orders.xlsx")


def test_a_sheet_with_a_stray_cell_at_its_far_end_is_refused_and_does_not_take_the_reader_along(tmp_path, refusal):
    with xlsxwriter.Workbook(tmp_path / "w.xlsx") as book:
        sheet = book.add_worksheet()
        sheet.write(0, 0, "po_number")
        sheet.write(1_048_575, 16_383, "stray")

    message = refusal((tmp_path / "w.xlsx").read_bytes(), "orders.xlsx")

    assert "a stray cell far below or right of the data makes a sheet huge" in message


def test_a_workbook_without_its_package_says_what_to_install(tmp_path, refusal, monkeypatch):
    data = workbook(tmp_path / "w.xlsx", {"Orders": [["po_number"], ["A"]]})
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)

    assert "pip install 'poqueue[excel]'" in refusal(data, "orders.xlsx")


# ------------------------------------------------------------------------------------------ round trips

_CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff"), max_size=12)
_PO_NUMBERS = st.text("0123456789ABCäß-/ ", min_size=1, max_size=12).filter(str.strip)
_TABLES = st.integers(1, 4).flatmap(
    lambda width: st.lists(st.tuples(_PO_NUMBERS, *[_CELLS] * width), min_size=1, max_size=8)
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    table=_TABLES,
    delimiter=st.sampled_from(",;\t|"),
    # With "\n" only if all is quoted: before 3.13 csv.writer forgets the quotes of a lone CR.
    style=st.sampled_from([(csv.QUOTE_ALL, "\n"), (csv.QUOTE_ALL, "\r\n"), (csv.QUOTE_MINIMAL, "\r\n")]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
)
def test_any_table_written_as_csv_is_read_back_equal(read, table, delimiter, style, encoding):
    headers = ["po_number", *(f"column {n}" for n in range(1, len(table[0])))]
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, quoting=style[0], lineterminator=style[1])
    writer.writerows([headers, *table])

    book = read(out.getvalue().encode(encoding))

    assert (book.delimiter, book.headers) == (delimiter, headers)
    by_number = {n: row for order in book.orders for n, row in zip(order["row_numbers"], order["rows"], strict=True)}
    assert [cells_as_given(book.names, by_number[n]) for n in sorted(by_number)] == [list(row) for row in table]
    assert (book.invalid, book.row_count) == ([], len(table))
    assert_frozen_unlooked_at_as_the_queue_would(book)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(content=st.binary(max_size=200) | st.text(',;"\n\r\t|=po_number1.\0é', max_size=100).map(str.encode))
def test_any_bytes_are_a_book_that_balances_or_an_orders_error(read, content):
    try:
        book = read(content)
    except OrdersError:
        return
    in_orders = sum(len(order["rows"]) for order in book.orders)
    assert book.row_count == in_orders + len(book.invalid)
    assert_frozen_unlooked_at_as_the_queue_would(book)
