"""Whole batches of real files from public bodies, as they came and as a spreadsheet may have saved them again."""

import csv
import hashlib
import json
from collections import Counter, defaultdict
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import xlsxwriter

from tests.integration.console import APP_DIR, ROOT, Ended, poqueue, read_cells, read_csv

DATA = ROOT.parent / "shared" / "data"
NEW_ORLEANS = DATA / "new_orleans_po_invoices.csv"
OXFORD = DATA / "oxford_spend_over_500_2015q3.csv"
OXFORD_MAP = ("--map", "po_number=Trans No,supplier=Supplier Name,amount=Amount")

needs_new_orleans = pytest.mark.skipif(
    not NEW_ORLEANS.is_file(), reason=f"{NEW_ORLEANS.name} is not beside the checkout"
)
needs_oxford = pytest.mark.skipif(not OXFORD.is_file(), reason=f"{OXFORD.name} is not beside the checkout")


def run_file(path: Path, cwd: Path, *options: str, processor: str = "count_rows") -> tuple[Ended, dict[str, Any]]:
    """Run a file; the outcome as the command prints it."""
    target = ("-p", f"sample_processors:{processor}", "--app-dir", str(APP_DIR))
    ended = poqueue("run", str(path), *target, *options, "-j", "2", "--run-dir", "r", "--json", cwd=cwd)
    outcome: dict[str, Any] = json.loads(ended.check(0).out)
    return ended, outcome


@pytest.mark.once
@needs_new_orleans
def test_every_invoice_of_new_orleans_is_accounted_for(tmp_path: Path) -> None:
    before = hashlib.sha256(NEW_ORLEANS.read_bytes()).hexdigest()

    _, outcome = run_file(
        NEW_ORLEANS, tmp_path, "--map", "po_number=PO,supplier=Vendor,amount=Amount", processor="empty"
    )

    assert outcome["accounts"]["rows"] == outcome["accounts"]["succeeded"] == 12_728
    assert outcome["pos"] == {"succeeded": 9_706, "failed": 0, "not_run": 0}
    print(f"12,728 rows, 9,706 POs, 2 workers, empty processor: {outcome['seconds']:.1f} s")
    header, *lines = read_cells(tmp_path / "r" / "results.csv")
    given = read_cells(NEW_ORLEANS)[1:]
    assert [int(line[0]) for line in lines] == list(range(2, 12_730))
    assert [[cell.replace("'", "") for cell in line[1:23]] for line in lines] == [
        [cell.replace("'", "") for cell in row] for row in given
    ]  # fmt: skip
    assert header[23:] == ["status", "attempts", "seconds", "worker", "error"]
    assert hashlib.sha256(NEW_ORLEANS.read_bytes()).hexdigest() == before
    told = json.loads(poqueue("report", "r", "--format", "json", cwd=tmp_path).check(0).out)["suppliers"]
    costs: dict[str, Decimal] = defaultdict(Decimal)
    first: dict[str, str] = {}  # the PO's supplier, of whom a row is that names none
    for row in read_csv(NEW_ORLEANS):
        vendor = row["Vendor"].strip()
        of_po = first.setdefault(row["PO"].strip(), vendor)
        if row["Amount"] != "NA":
            costs[vendor or of_po] += Decimal(row["Amount"])
    assert {one["supplier"]: Decimal(one["total"]) for one in told} == costs


@pytest.mark.slow
@needs_new_orleans
def test_all_invoices_of_one_po_are_one_task(tmp_path: Path) -> None:
    run_file(NEW_ORLEANS, tmp_path, "--map", "po_number=PO,supplier=Vendor,amount=Amount")

    rows = defaultdict(list)
    for line in read_csv(tmp_path / "r" / "results.csv"):
        rows[line["PO"].strip()].append(line)
    assert len(rows) == 9_706
    assert max(len(lines) for lines in rows.values()) == 109
    for lines in rows.values():
        assert {line["numbers"] for line in lines} == {" ".join(line["row"] for line in lines)}
        assert {line["count"] for line in lines} == {str(len(lines))}
        assert len({line["worker"] for line in lines}) == 1
    tasks = json.loads((tmp_path / "r" / "report.json").read_text())["tasks"]
    assert len(tasks) == 9_706 and {task["status"] for task in tasks} == {"completed"}


def rewrite(rows: list[list[str]], path: Path, *, encoding: str = "utf-8", delimiter: str = ",") -> Path:
    with open(path, "w", encoding=encoding, newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


def with_accents(rows: list[list[str]]) -> list[list[str]]:
    """The same rows with letters that are no ASCII in every supplier's name."""
    names = rows[0].index("Supplier Name")
    return [rows[0], *([*row[:names], f"Café {row[names]} – Müller", *row[names + 1 :]] for row in rows[1:])]


def as_workbook(rows: list[list[str]], path: Path) -> Path:
    """The rows as a workbook, amounts as numbers, as a spreadsheet keeps them."""
    with xlsxwriter.Workbook(path, {"strings_to_numbers": False, "strings_to_formulas": False}) as book:
        sheet = book.add_worksheet("Spend")
        for number, row in enumerate(rows):
            for column, cell in enumerate(row):
                if number and rows[0][column] == "Amount":
                    sheet.write_number(number, column, float(cell))
                else:
                    sheet.write_string(number, column, cell)
    return path


@pytest.fixture(scope="module")
def oxford_outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[str, str, str]]:
    """What the file as published gives: by row number, the PO, its rows and its status."""
    folder = tmp_path_factory.mktemp("oxford")
    run_file(OXFORD, folder, *OXFORD_MAP)
    return row_outcomes(folder)


def row_outcomes(folder: Path) -> dict[int, tuple[str, str, str]]:
    lines = read_csv(folder / "r" / "results.csv")
    return {int(line["row"]): (line["Trans No"].strip(), line["numbers"], line["status"]) for line in lines}


@needs_oxford
def test_oxford_as_published(oxford_outcomes: dict[int, tuple[str, str, str]]) -> None:
    assert len(oxford_outcomes) == 3_461
    assert {status for _, _, status in oxford_outcomes.values()} == {"succeeded"}
    repeated = Counter(po for po, _, _ in oxford_outcomes.values())
    assert sorted(repeated.values())[-3:] == [1, 2, 2]


@pytest.mark.slow
@needs_oxford
@pytest.mark.parametrize(
    "form",
    ["semicolon and BOM", "cp1252 named", "workbook"],  # test_orders_real_files reads it in all the others
)
def test_oxford_in_any_other_form_gives_the_same_outcomes(
    form: str, oxford_outcomes: dict[int, tuple[str, str, str]], tmp_path: Path
) -> None:
    rows = read_cells(OXFORD)
    options: tuple[str, ...] = ()
    path = tmp_path / "oxford.csv"
    if form == "semicolon and BOM":
        rewrite(rows, path, encoding="utf-8-sig", delimiter=";")
    elif form == "cp1252 named":
        rows = with_accents(rows)
        rewrite(rows, path, encoding="cp1252")
        options = ("--encoding", "cp1252")
    else:
        path = as_workbook(rows, tmp_path / "oxford.xlsx")
    before = path.read_bytes()

    run_file(path, tmp_path, *OXFORD_MAP, *options)

    assert row_outcomes(tmp_path) == oxford_outcomes
    suppliers = [line["Supplier Name"] for line in read_csv(tmp_path / "r" / "results.csv")]
    assert suppliers == [row[rows[0].index("Supplier Name")] for row in rows[1:]]
    assert path.read_bytes() == before


@needs_oxford
def test_a_column_that_is_not_named_is_proposed(tmp_path: Path) -> None:
    ended = poqueue("run", str(OXFORD), cwd=tmp_path).check(3)

    assert "--map" in ended.err and "Trans No" in ended.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.once
@needs_oxford
def test_oxfords_dossiers_add_up(tmp_path: Path) -> None:
    poqueue("run", str(OXFORD), *OXFORD_MAP, "--limit", "200", "-j", "2", "--run-dir", "r", cwd=tmp_path).check(0)

    lines = [line for line in read_csv(tmp_path / "r" / "results.csv") if line["status"] == "succeeded"]
    assert len({line["Trans No"] for line in lines}) == 200
    for line in lines:
        document = json.loads((tmp_path / "r" / "output" / line["folder"] / "dossier.json").read_text())
        assert document["po_number"] == line["Trans No"].strip()
        assert document["totals"][0]["total"] == line["total"]
