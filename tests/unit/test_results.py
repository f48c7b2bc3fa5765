"""Results out: every row of the order file, in the right file, safe to open and ready to run again."""

import csv
import errno
import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from poqueue.errors import ConfigError
from poqueue.formula import guard_formula
from workers import results
from workers.orders import OrderBook, OrderSource, read_orders
from workers.results import Accounts, ResultsWriter

OK: dict[str, Any] = {"status": "succeeded", "attempts": 1, "seconds": 0.25, "worker": "w1.1", "error": "", "data": {}}
FAILED: dict[str, Any] = {**OK, "status": "failed", "attempts": 4, "error": "no such PO"}


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    path.mkdir()
    return path


@pytest.fixture
def open_run(tmp_path: Path, run_dir: Path) -> Iterator[Callable[..., tuple[OrderBook, ResultsWriter]]]:
    """Read an order file and open the results of a run of it."""
    writers: list[ResultsWriter] = []

    def start(content: str, results_path: Path | None = None, **options: Any) -> tuple[OrderBook, ResultsWriter]:
        source = tmp_path / "orders.csv"
        source.write_text(content, encoding="utf-8", newline="")
        book = read_orders(OrderSource(source, **options))
        writers.append(ResultsWriter(run_dir, book, results_path))
        return book, writers[-1]

    yield start
    for writer in writers:
        writer.close()


def table(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file, strict=True))


# ------------------------------------------------------------------------------------------ during the run


def test_during_the_run_there_is_a_line_for_each_row_in_the_order_of_completion(open_run, run_dir):
    book, writer = open_run("po_number,note\nA,1\nB,2\nA,3\n")

    writer.outcome(book.orders[1], **{**OK, "data": {"url": "x", "pages": [1, 2]}})
    writer.outcome(book.orders[0], **FAILED)
    writer.flush()

    assert table(run_dir / "results.csv") == [
        ["row", "po_number", "note", "status", "attempts", "seconds", "worker", "error", "result"],
        ["3", "B", "2", "succeeded", "1", "0.250", "w1.1", "", '{"url": "x", "pages": [1, 2]}'],
        ["2", "A", "1", "failed", "4", "0.250", "w1.1", "no such PO", ""],
        ["4", "A", "3", "failed", "4", "0.250", "w1.1", "no such PO", ""],
    ]
    assert table(run_dir / "failed.csv") == [["po_number", "note"], ["A", "1"], ["A", "3"]]


def test_files_are_for_their_owner_only_and_never_written_over(open_run, run_dir):
    open_run("po_number\nA\n")

    for name in ("results.csv", "failed.csv"):
        assert stat.S_IMODE((run_dir / name).stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        open_run("po_number\nA\n")


def test_a_link_in_the_place_of_a_file_is_not_followed(open_run, run_dir, tmp_path):
    (run_dir / "results.csv").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(FileExistsError):
        open_run("po_number\nA\n")
    assert not (tmp_path / "elsewhere").exists()


# ------------------------------------------------------------------------------------------ at the end


def test_at_the_end_every_row_stands_in_file_order_with_a_column_for_each_field(open_run, run_dir):
    book, writer = open_run("po_number,note\nC,1\nB,2\nA,3\n,4\nC,5\nD,6\n", duplicates="first")
    writer.outcome(book.orders[2], **{**OK, "data": {"url": "x", "pages": [1, 2], "ok": True}})
    writer.outcome(book.orders[1], **FAILED)
    writer.outcome(book.orders[0], **{**OK, "data": {"total": 1.5, "url": None}})

    accounts = writer.finish([book.orders[3]])

    assert table(run_dir / "results.csv") == [
        ["row", "po_number", "note", "status", "attempts", "seconds", "worker", "error", "url", "pages", "ok", "total"],
        ["2", "C", "1", "succeeded", "1", "0.250", "w1.1", "", "", "", "", "1.5"],
        ["3", "B", "2", "failed", "4", "0.250", "w1.1", "no such PO", "", "", "", ""],
        ["4", "A", "3", "succeeded", "1", "0.250", "w1.1", "", "x", "[1, 2]", "true", ""],
        ["5", "", "4", "invalid", "0", "", "", "po_number: po_number is empty", "", "", "", ""],
        ["6", "C", "5", "duplicate", "0", "", "", "same PO number as row 2", "", "", "", ""],
        ["7", "D", "6", "not run", "0", "", "", "", "", "", "", ""],
    ]
    assert table(run_dir / "failed.csv") == [["po_number", "note"], ["B", "2"]]
    assert table(run_dir / "not_run.csv") == [["po_number", "note"], ["D", "6"]]
    assert accounts == Accounts(rows=6, succeeded=2, failed=1, duplicate=1, invalid=1, not_run=1)
    assert accounts.balances
    assert str(accounts) == "6 input rows = 2 succeeded + 1 failed + 1 duplicate + 1 invalid + 1 not run"
    assert sorted(path.name for path in run_dir.iterdir()) == ["failed.csv", "not_run.csv", "results.csv"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in run_dir.iterdir()} == {0o600}


def test_failed_rows_stand_in_file_order_at_the_end(open_run, run_dir):
    book, writer = open_run("po_number\nA\nB\nC\n")
    for order in reversed(book.orders):
        writer.outcome(order, **FAILED)

    writer.finish()

    assert table(run_dir / "failed.csv") == [["po_number"], ["A"], ["B"], ["C"]]
    assert not (run_dir / "not_run.csv").exists()


def test_orders_beyond_the_limit_were_not_run(open_run, run_dir):
    book, writer = open_run("po_number\nA\nB\nC\n", limit=1)
    writer.outcome(book.orders[0], **OK)

    assert writer.finish() == Accounts(rows=3, succeeded=1, failed=0, duplicate=0, invalid=0, not_run=2)
    assert table(run_dir / "not_run.csv") == [["po_number"], ["B"], ["C"]]


def test_the_last_word_about_an_order_counts(open_run, run_dir):
    book, writer = open_run("po_number\nA\nB\n")
    writer.outcome(book.orders[0], **FAILED)
    writer.outcome(book.orders[0], **OK)

    accounts = writer.finish([book.orders[0], book.orders[1]])

    assert [line[2] for line in table(run_dir / "results.csv")] == ["status", "succeeded", "not run"]
    assert table(run_dir / "failed.csv") == [["po_number"]]
    assert accounts == Accounts(rows=2, succeeded=1, failed=0, duplicate=0, invalid=0, not_run=1)


def test_a_row_that_nobody_accounts_for_is_seen(open_run):
    _, writer = open_run("po_number\nA\nB\n")

    accounts = writer.finish()

    assert not accounts.balances
    assert "the accounts do not balance: 0 outcomes for 2 input rows" in str(accounts)


def test_names_that_the_order_file_has_already_are_prefixed(open_run, run_dir):
    book, writer = open_run("po_number,status,url,error\nA,open,http://x,none\n")
    writer.outcome(book.orders[0], **{**OK, "data": {"url": "y", "worker": "z", "row": 1, "pages": 2}})

    writer.finish()

    header, line = table(run_dir / "results.csv")
    assert header == [
        "row", "po_number", "status", "url", "error", "result_status", "attempts", "seconds", "worker", "result_error",
        "result_url", "result_worker", "result_row", "pages",
    ]  # fmt: skip
    assert line == ["2", "A", "open", "http://x", "none", "succeeded", "1", "0.250", "w1.1", "", "y", "z", "1", "2"]


def test_no_two_columns_have_one_name_though_the_order_file_numbers_its_rows_itself(open_run, run_dir):
    book, writer = open_run("row,po_number,status\n99,A,open\n")
    writer.outcome(book.orders[0], **{**OK, "data": {"row": 1}})
    writer.flush()
    during = table(run_dir / "results.csv")[0]

    writer.finish()

    header, line = table(run_dir / "results.csv")
    outcome = ["result_status", "attempts", "seconds", "worker", "error"]
    assert header == ["result_row", "row", "po_number", "status", *outcome, "result_result_row"]
    assert during == [*header[:-1], "result"]
    assert line[:4] == ["2", "99", "A", "open"]


def test_fields_beyond_a_number_of_columns_stay_together(open_run, run_dir, monkeypatch):
    monkeypatch.setattr(results, "MAX_FIELD_COLUMNS", 2)
    book, writer = open_run("po_number\nA\nB\n")
    writer.outcome(book.orders[0], **{**OK, "data": {"a": 1, "b": 2, "c": 3}})
    writer.outcome(book.orders[1], **{**OK, "data": {"b": 4}})

    writer.finish()

    assert [line[7:] for line in table(run_dir / "results.csv")] == [
        ["a", "b", "result"],
        ["1", "2", '{"c": 3}'],
        ["", "4", ""],
    ]


def test_rows_of_another_width_do_not_shift_the_columns(open_run, run_dir):
    _, writer = open_run("po_number,x\nA\nB,1,2,3\n")

    writer.finish()

    assert [line[:4] for line in table(run_dir / "results.csv")[1:]] == [
        ["2", "A", "", "invalid"],
        ["3", "B", "1 | 2 | 3", "invalid"],
    ]


def test_large_and_odd_texts_survive_the_final_shape(open_run, run_dir):
    book, writer = open_run('po_number,note\nA,"one\r\ntwo\rthree"\nB,x\n')
    large = "x" * 300_000
    writer.outcome(book.orders[0], **{**FAILED, "error": 'line one\nline "two", \udcff\0'})
    writer.outcome(book.orders[1], **{**OK, "data": {"page": large}})

    writer.finish()

    before = csv.field_size_limit(10**6)
    lines = table(run_dir / "results.csv")
    assert csv.field_size_limit(before) == 10**6
    assert lines[1][2] == "one\r\ntwo\rthree"
    assert lines[1][7] == 'line one\nline "two", \\udcff\0'
    assert lines[2][8] == large


# ------------------------------------------------------------------------------------------ another place


def test_the_results_can_be_written_to_a_second_place_as_well(open_run, run_dir, tmp_path):
    second = tmp_path / "out.csv"
    second.write_text("old")
    book, writer = open_run("po_number\nA\n", second)
    writer.outcome(book.orders[0], **{**OK, "data": {"n": 1}})
    assert second.read_text() == "old"

    writer.finish()

    assert second.read_bytes() == (run_dir / "results.csv").read_bytes()
    assert table(second)[1][-1] == "1"


@pytest.mark.parametrize("name", ["a" * 255, "é" * 127])
def test_a_second_place_may_have_the_longest_name_that_there_is(open_run, run_dir, tmp_path, name):
    book, writer = open_run("po_number\nA\n", tmp_path / name)
    writer.outcome(book.orders[0], **OK)

    writer.finish()

    assert (tmp_path / name).read_bytes() == (run_dir / "results.csv").read_bytes()


def test_a_second_place_that_cannot_be_one_is_refused_before_anything_is_written(open_run, run_dir, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, text in [
        (tmp_path, "is a directory"),
        (tmp_path / "nowhere" / "out.csv", "there is no directory"),
        (tmp_path / "orders.csv", "is the order file itself"),
        (tmp_path / "pipe", "is not a regular file"),
    ]:
        with pytest.raises(ConfigError, match=text):
            open_run("po_number\nA\n", path)
    assert list(run_dir.iterdir()) == []


# ------------------------------------------------------------------------------------------ formulas


@pytest.mark.parametrize(
    "text",
    [
        "=1+1",
        " =x",
        "\t=x",
        "\u00a0=x",
        "+x",
        "-x",
        "@x",
        "\tx",
        "\rx",
        "\nx",
        "\n=x",
        "\r\n @x",
        "-5 EUR",
        "-2+3",
        "＝1",
    ],
)
def test_text_that_a_spreadsheet_would_run_gets_an_apostrophe(text):
    assert guard_formula(text) == f"'{text}"


@pytest.mark.parametrize(
    "text", ["", "x", "-5", "+5.5", "-.5", "-1e3", "-1,234.50", " -5 ", "a=b", "a\nb", "x@y.z", "007"]
)
def test_numbers_and_harmless_text_stay_as_they_are(text):
    assert guard_formula(text) == text


def test_a_formula_in_a_later_line_of_a_cell_is_guarded_too():
    assert guard_formula("a\n=x\r\n @y") == "a\n'=x\r\n '@y"


def test_results_are_guarded_and_failed_rows_are_as_they_came(open_run, run_dir):
    book, writer = open_run("po_number,=cmd\n=A,-5\n")
    writer.outcome(book.orders[0], **{**FAILED, "error": "=boom", "worker": "@w", "data": {"=f": "+1+1", "n": -3}})
    writer.flush()
    assert table(run_dir / "results.csv")[1][:3] == ["2", "'=A", "-5"]

    writer.finish()

    assert table(run_dir / "results.csv") == [
        ["row", "po_number", "'=cmd", "status", "attempts", "seconds", "worker", "error", "'=f", "n"],
        ["2", "'=A", "-5", "failed", "4", "0.250", "'@w", "'=boom", "'+1+1", "-3"],
    ]
    assert table(run_dir / "failed.csv") == [["po_number", "=cmd"], ["=A", "-5"]]


# ------------------------------------------------------------------------------------------ what can go wrong


def test_a_full_disk_is_an_error_with_the_path_of_the_file(open_run):
    book, writer = open_run("po_number\nA\n")
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, writer._results._file.fileno())
    os.close(full)
    writer.outcome(book.orders[0], **OK)

    with pytest.raises(OSError, match=r"results\.csv") as caught:
        writer.flush()

    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match=r"results\.csv"):
        writer.close()


def test_the_accounts_are_known_though_nothing_can_be_written(open_run, monkeypatch):
    book, writer = open_run("po_number\nA\nB\nA\nC\n")

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer._results, "write", refuse)
    for order in book.orders[:2]:
        with pytest.raises(OSError, match="No space left"):
            writer.outcome(order, **OK)

    assert writer.accounts(book.orders[2:]) == Accounts(4, 3, 0, 0, 0, 1)


def test_if_the_final_file_cannot_be_written_the_lines_of_the_run_remain(open_run, run_dir, monkeypatch):
    book, writer = open_run("po_number\nA\n")
    writer.outcome(book.orders[0], **OK)
    writer.flush()
    before = (run_dir / "results.csv").read_bytes()

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space left"):
        writer.finish()

    assert (run_dir / "results.csv").read_bytes() == before
    assert sorted(path.name for path in run_dir.iterdir()) == ["failed.csv", "results.csv"]


def test_a_copy_that_cannot_be_written_is_told_and_the_file_of_the_run_is_whole_all_the_same(
    open_run, run_dir, tmp_path
):
    (tmp_path / "elsewhere").mkdir()
    book, writer = open_run("po_number\nA\nB\n", tmp_path / "elsewhere" / "copy.csv")
    for order in reversed(book.orders):
        writer.outcome(order, **OK)
    (tmp_path / "elsewhere").rmdir()

    with pytest.raises(OSError, match="copy") as caught:
        writer.finish()

    assert caught.value.errno == errno.ENOENT
    assert [row[0] for row in table(run_dir / "results.csv")] == ["row", "2", "3"]


# ------------------------------------------------------------------------------------------ again

_HEADERS = st.lists(st.sampled_from(["", "Date", "rows", "supplier", "=x", "a,b", 'c"d', "é\n"]), max_size=4)
_CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=60)
@given(headers=_HEADERS, data=st.data())
def test_failed_rows_read_again_are_the_same_orders(tmp_path_factory, headers, data):
    rows = data.draw(
        st.lists(st.tuples(st.sampled_from(["A", " B", "=C", "007"]), *[_CELLS] * len(headers)), min_size=1, max_size=6)
    )
    folder = tmp_path_factory.mktemp("again")
    with (folder / "orders.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["po_number", *headers], *rows])
    book = read_orders(OrderSource(folder / "orders.csv"))
    writer = ResultsWriter(folder, book)
    for order in book.orders:
        writer.outcome(order, **FAILED)
    accounts = writer.finish()
    writer.close()

    again = read_orders(OrderSource(folder / "failed.csv"))

    assert accounts == Accounts(len(rows), 0, len(rows), 0, 0, 0)
    assert (again.headers, again.names) == (book.headers, book.names)
    assert again.orders == book.orders


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=60)
@given(ends=st.lists(st.sampled_from(["succeeded", "failed", "not run", "invalid"]), min_size=1, max_size=12))
def test_every_row_ends_in_exactly_one_way(tmp_path_factory, ends):
    folder = tmp_path_factory.mktemp("ends")
    cells = ["" if end == "invalid" else f"PO-{number}" for number, end in enumerate(ends)]
    (folder / "orders.csv").write_text("x,po_number\n" + "".join(f"1,{cell}\n" for cell in cells))
    book = read_orders(OrderSource(folder / "orders.csv"))
    writer = ResultsWriter(folder, book)
    by_po_number = {order["po_number"]: order for order in book.orders}
    for end, cell in reversed(list(zip(ends, cells, strict=True))):
        if end in ("succeeded", "failed"):
            writer.outcome(by_po_number[cell], **{**OK, "status": end, "data": {"n": json.loads("1")}})

    accounts = writer.finish(by_po_number[cell] for end, cell in zip(ends, cells, strict=True) if end == "not run")
    writer.close()

    assert accounts.balances
    assert [line[3] for line in table(folder / "results.csv")[1:]] == ends
