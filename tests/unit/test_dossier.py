"""The default processor: names that are safe for any PO number, what a dossier says, and that it survives any kill."""

import json
import os
import re
import signal
import stat
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.processors import dossier
from workers.processors.names import safe_name

ODD_NUMBERS = [
    "../../etc/passwd", "/abs", "a/b", "a b", "..", ".", "", " ", "CON", "nul.txt", "a:b*c?", "-rf", "~", "x" * 300,
    "a\0b", "a\nb", "\u202ebcd", "😀", "注文-4471", "\udc80", "É", "E\u0301", "PO-1", "po-1", "PO-1.", "PO‑1",
    "$HOME", "%2e%2e",
]  # fmt: skip


@given(st.text() | st.sampled_from(ODD_NUMBERS))
def test_any_po_number_gives_a_name_that_is_no_path(po_number: str) -> None:
    name = safe_name(po_number)

    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,39}-[0-9a-f]{10}", name)
    assert (Path("base") / name).parent == Path("base")


@given(st.lists(st.text() | st.sampled_from(ODD_NUMBERS), unique=True))
def test_different_po_numbers_give_different_names_also_where_case_is_ignored(po_numbers: list[str]) -> None:
    assert len({safe_name(po_number).casefold() for po_number in po_numbers}) == len(po_numbers)


def test_a_name_can_still_be_read() -> None:
    assert safe_name("Café/2024 0815").startswith("Cafe-2024-0815-")
    assert safe_name("PO-1") == safe_name("PO-1")


@pytest.fixture
def context(tmp_path: Path) -> Any:
    return SimpleNamespace(output_dir=tmp_path / "out", options={})


def a_po(*rows: dict[str, Any], number: str = "PO-1") -> dict[str, Any]:
    filled = [{"po_number": number, "supplier": "Acme", "amount": "10.00", **row} for row in rows]
    return {**filled[0], "rows": filled, "row_numbers": list(range(2, 2 + len(filled)))}


def document(result: dict[str, Any]) -> Any:
    return json.loads(Path(result["downloads"][0]).read_text(encoding="utf-8"))


def page(result: dict[str, Any]) -> str:
    return Path(result["downloads"][1]).read_text(encoding="utf-8")


class Texts(HTMLParser):
    """What a page shows, and the tags that it holds."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text = ""
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_po_becomes_one_folder_with_a_document_and_a_page(context: Any) -> None:
    result = dossier.process(a_po({"amount": "1234.50"}, {"amount": "0.50", "note": "2nd"}), context)

    folder = context.output_dir / safe_name("PO-1")
    assert [Path(file) for file in result["downloads"]] == [folder / "dossier.json", folder / "index.html"]
    assert {k: v for k, v in result.items() if k != "downloads"} == {
        "folder": folder.name, "rows": 2, "total": "1235.00", "findings": "",
    }  # fmt: skip
    assert os.listdir(context.output_dir) == [folder.name]
    assert document(result) == {
        "po_number": "PO-1",
        "totals": [{"currency": None, "total": "1235.00"}],
        "findings": [],
        "rows": [
            {"row_number": 2, "amount": "1234.50", "currency": None, "as_given": {},
             "cells": {"po_number": "PO-1", "supplier": "Acme", "amount": "1234.50"}},
            {"row_number": 3, "amount": "0.50", "currency": None, "as_given": {},
             "cells": {"po_number": "PO-1", "supplier": "Acme", "amount": "0.50", "note": "2nd"}},
        ],
    }  # fmt: skip
    shown = Texts(page(result)).text
    assert all(text in shown for text in ("PO-1", "Acme", "1,234.50", "1,235.00", "2nd"))


def test_only_the_owner_can_read_it(context: Any) -> None:
    result = dossier.process(a_po({}), context)

    assert stat.S_IMODE((context.output_dir / result["folder"]).stat().st_mode) == 0o700
    assert {stat.S_IMODE(Path(file).stat().st_mode) for file in result["downloads"]} == {0o600}


@pytest.mark.parametrize(
    ("row", "kind", "message"),
    [
        ({"supplier": None}, "missing_supplier", "row 2: no supplier"),
        ({"supplier": "  "}, "missing_supplier", "row 2: no supplier"),
        ({"amount": None}, "missing_amount", "row 2: no amount"),
        ({"amount": "n/a"}, "unreadable_amount", "row 2: amount 'n/a' is not a number"),
        ({"amount": "-5.00"}, "negative_amount", "row 2: negative amount -5.00"),
        ({"amount": "-0.01"}, "negative_amount", "row 2: negative amount -0.01"),
    ],
)
def test_what_a_person_should_look_at_is_found(context: Any, row: dict[str, Any], kind: str, message: str) -> None:
    result = dossier.process(a_po(row), context)

    assert result["findings"] == message
    assert [(f["row_number"], f["kind"]) for f in document(result)["findings"]] == [(2, kind)]
    assert message.partition(": ")[2] in Texts(page(result)).text


@pytest.mark.parametrize("amount", ["0", "0.00", "-0.00"])
def test_nothing_is_no_finding(context: Any, amount: str) -> None:
    assert dossier.process(a_po({"amount": amount}), context)["findings"] == ""


def test_a_repeated_row_is_found_however_far_apart(context: Any) -> None:
    result = dossier.process(a_po({"n": "a"}, {"n": "b"}, {"n": "a"}, {"n": "c"}, {"n": "a"}), context)

    assert (
        result["findings"] == "row 4: same as row 2, counted in the total; row 6: same as row 2, counted in the total"
    )
    assert result["total"] == "50.00"


def test_columns_that_a_file_does_not_have_are_no_findings(context: Any) -> None:
    result = dossier.process({"po_number": "PO-1", "rows": [{"po_number": "PO-1"}], "row_numbers": [7]}, context)

    assert (result["rows"], result["total"], result["findings"]) == (1, None, "")


def test_many_findings_are_counted_in_the_result_and_listed_in_the_dossier(context: Any) -> None:
    result = dossier.process(a_po(*({"supplier": None, "n": str(n)} for n in range(40))), context)

    assert result["findings"].startswith("row 2: no supplier; ")
    assert result["findings"].endswith("; and 35 more")
    assert len(document(result)["findings"]) == 40


def test_the_total_is_exact_and_leaves_out_what_cannot_be_read(context: Any) -> None:
    amounts = ["0.1", "0.2", "n/a", "12345678901234567890123456789.07", "-0.05"]
    result = dossier.process(a_po(*({"amount": amount} for amount in amounts)), context)

    assert result["total"] == "12345678901234567890123456789.32"


def test_no_readable_amount_has_no_total(context: Any) -> None:
    assert dossier.process(a_po({"amount": "n/a"}, {"amount": None}), context)["total"] is None


def test_one_currency_gives_a_number_and_several_are_never_added_up(context: Any) -> None:
    one = dossier.process(a_po({"Currency": "eur"}, {"Currency": "EUR"}, {"Currency": "€"}), context)
    several = dossier.process(
        a_po({"Currency": "EUR"}, {"Currency": "USD", "amount": "7.00"}, {"Currency": None}, {"Currency": "EUR"}),
        context,
    )

    assert one["total"] == "30.00"
    assert several["total"] == "20.00 EUR; 7.00 USD; 10.00"


@pytest.mark.parametrize(
    "column", ["currency", "Currency Code", "CURRENCY-CODE", "currency_code", "Curr.", "CCY", "Währung", "WAERS"]
)
def test_the_currency_column_is_found_without_case_blanks_dots_dashes_and_underscores(
    column: str, context: Any
) -> None:
    result = dossier.process(a_po({column: "EUR"}, {column: "USD", "amount": "7.00"}), context)

    assert result["total"] == "10.00 EUR; 7.00 USD"


def test_the_currency_sign_that_the_amount_lost_still_counts(context: Any) -> None:
    rows = [
        {"amount": "5742.00", "as_given": {"Betrag": "5.742,00 €"}},
        {"amount": "3.00", "as_given": {"Betrag": "US$ 3.00", "Nr": "AB 12"}},
        {"amount": "1.00", "as_given": {"Betrag": "EUR 1"}},
        {"amount": "100000", "as_given": {"Betrag": "1e5"}},
    ]

    result = dossier.process(a_po(*rows), context)

    assert result["total"] == "5743.00 EUR; 3.00 US$; 100000"
    assert "Betrag: 5.742,00 €" in Texts(page(result)).text


NASTY = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;</td></table>"


def test_nothing_in_a_cell_becomes_part_of_the_page(context: Any) -> None:
    plain = Texts(page(dossier.process(a_po({"x": "x", "as_given": {"x": "y"}, "supplier": None}), context)))
    row = {"supplier": NASTY, "amount": NASTY, NASTY: NASTY, "as_given": {NASTY: NASTY}}
    nasty = Texts(page(dossier.process(a_po(row, number=NASTY), context)))

    assert set(nasty.tags) == set(plain.tags)
    assert set(nasty.attributes) <= set(plain.attributes)
    assert nasty.text.count(NASTY) >= 5


def test_the_page_needs_nothing_from_elsewhere(context: Any) -> None:
    html = page(dossier.process(a_po({"supplier": None}), context))

    assert not re.search(r"https?:|src=|@import|url\(|<link|<script", html)
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html


HEADERS = st.text().filter(lambda name: name not in ("po_number", *dossier.NOT_COLUMNS))  # the loader renames those


@given(st.dictionaries(HEADERS, st.text() | st.none() | st.integers() | st.floats(), max_size=4), st.text())
def test_any_cells_and_any_number_can_be_written(
    tmp_path_factory: pytest.TempPathFactory, cells: dict[str, Any], number: str
) -> None:
    context: Any = SimpleNamespace(output_dir=tmp_path_factory.getbasetemp() / "any", options={})

    result = dossier.process(a_po(cells, number=number), context)

    assert document(result)["po_number"] == number.strip()
    assert "</html>" in page(result)


def test_a_po_given_without_rows_is_its_own_only_row(context: Any) -> None:
    result = dossier.process({"po_number": 4711, "supplier": "Acme", "amount": 12.5}, context)

    assert (result["folder"], result["rows"], result["total"]) == (safe_name("4711"), 1, "12.5")


def test_a_second_run_replaces_the_dossier_and_keeps_what_others_put_there(context: Any) -> None:
    first = dossier.process(a_po({"amount": "1.00"}), context)
    (context.output_dir / first["folder"] / "invoice.pdf").write_text("kept")

    second = dossier.process(a_po({"amount": "2.00"}), context)

    assert second["downloads"] == first["downloads"]
    assert document(second)["totals"] == [{"currency": None, "total": "2.00"}]
    assert "2.00" in page(second)
    assert sorted(os.listdir(context.output_dir / second["folder"])) == ["dossier.json", "index.html", "invoice.pdf"]
    assert os.listdir(context.output_dir) == [second["folder"]]


def test_a_folder_that_is_a_link_elsewhere_is_not_followed(context: Any, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    context.output_dir.mkdir()
    (context.output_dir / safe_name("PO-1")).symlink_to(elsewhere)

    with pytest.raises(OSError, match="PO-1"):
        dossier.process(a_po({}), context)

    assert os.listdir(elsewhere) == []
    assert os.listdir(context.output_dir) == [safe_name("PO-1")]


def test_a_write_that_fails_leaves_nothing_behind(context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Any, target: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", full)

    with pytest.raises(OSError, match="No space left"):
        dossier.process(a_po({}), context)

    assert os.listdir(context.output_dir) == []


def killed_at_each_step(work: Callable[[], object]) -> Iterator[int]:
    """Run `work` in a child that dies by SIGKILL at its 1st, 2nd, ... touch of the file system, until it survives."""
    for step in range(1, 100):
        child = os.fork()
        if child == 0:
            remaining = step

            def die(event: str, _args: tuple[Any, ...]) -> None:
                nonlocal remaining
                if event == "open" or event.startswith("os."):
                    remaining -= 1
                    if remaining == 0:
                        os._exit(signal.SIGKILL)

            sys.addaudithook(die)
            work()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        yield step
        if os.waitstatus_to_exitcode(status) == 0:
            return
    raise AssertionError("never survived")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("was_there", [False, True])
def test_killed_at_any_moment_no_half_dossier_is_seen_and_the_retry_repairs(context: Any, was_there: bool) -> None:
    po = a_po({"amount": "1.00"}, {"amount": "2.00"})
    context.output_dir.mkdir()
    folder = context.output_dir / safe_name("PO-1")
    if was_there:
        dossier.process(po, context)
    steps = 0

    for steps in killed_at_each_step(lambda: dossier.process(po, context)):  # noqa: B007
        visible = [name for name in os.listdir(context.output_dir) if not name.startswith(".")]
        if was_there or visible:
            assert visible == [folder.name]
            assert json.loads((folder / "dossier.json").read_text())["totals"][0]["total"] == "3.00"
            assert (folder / "index.html").read_text().endswith("</html>\n")

    assert steps > 4
    assert os.listdir(context.output_dir) == [folder.name]
    assert sorted(os.listdir(folder)) == ["dossier.json", "index.html"]
