"""Reports as a dict, as CSV and as YAML."""

from __future__ import annotations

import csv
import io
import json
import math
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml

from poqueue import ProcessingTask, TaskQueue, TaskResult
from tests.contract.scene import Clock, find, give_back, lease, nothing_changes, one_of_each, task

pytestmark = pytest.mark.contract("R22")

FORMULAS = ["=1+1", "+49 30 1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", " =1+1", "\n=1"]


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def texts_in(value: Any) -> set[str]:
    """Every text within nested plain data, keys and values."""
    if isinstance(value, dict):
        return set().union(*(texts_in(each) for pair in value.items() for each in pair)) if value else set()
    if isinstance(value, list):
        return set().union(*(texts_in(each) for each in value)) if value else set()
    return {value} if isinstance(value, str) else set()


def types_in(value: Any) -> set[type]:
    nested: list[Any] = []
    if isinstance(value, dict):
        nested = [each for pair in value.items() for each in pair]
    if isinstance(value, list):
        nested = value
    return {type(value)}.union(*(types_in(each) for each in nested)) if nested else {type(value)}


def test_the_default_is_a_dict_of_plain_json_types(queue: TaskQueue) -> None:
    one_of_each(queue)

    report = queue.export_queue_report()

    assert isinstance(report, dict)
    assert types_in(report) <= {dict, list, str, int, float, bool, type(None)}
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert queue.export_queue_report("json") == report


def test_the_report_tells_of_tasks_metrics_errors_and_workers(queue: TaskQueue, clock: Clock) -> None:
    one_of_each(queue)
    clock.advance(10)

    report = queue.export_queue_report("json")

    texts = texts_in(report)
    assert {"COMPLETED", "FAILED", "RETRY_PENDING", "PROCESSING", "PENDING"} <= texts  # the ids
    assert {f"PO-{name}" for name in ("COMPLETED", "FAILED", "RETRY_PENDING", "PROCESSING", "PENDING")} <= texts
    assert set(queue.get_queue_status()) <= texts
    assert set(queue.get_performance_metrics()) <= texts
    assert set(queue.get_error_summary()) <= texts
    assert {"w1", "boom", "error_history", "assigned_at", "completed_at"} <= texts


@pytest.mark.parametrize(
    ("downloads", "told"), [(None, []), ("a.pdf", ["a.pdf"]), ({"path": "a.pdf"}, [{"path": "a.pdf"}]), (7, [7])]
)
def test_downloads_that_are_no_list_are_told_as_one(queue: TaskQueue, downloads: Any, told: list[Any]) -> None:
    """The queue carries a result, and does not look into it."""
    queue.add_task(task("PO-1", "a"))
    lease(queue)
    queue.complete_task("a", "w1", TaskResult(success=False, downloads=downloads))

    [in_dict] = queue.export_queue_report("json")["tasks"]
    [in_csv] = rows_of(queue.export_queue_report("csv"))
    [in_yaml] = yaml.safe_load(queue.export_queue_report("yaml"))["tasks"]

    assert in_dict["downloads"] == json.loads(in_csv["downloads"]) == in_yaml["downloads"] == told


@pytest.mark.parametrize("payload", [Decimal("1234.50"), datetime(2024, 2, 29, 12, tzinfo=UTC)])
@pytest.mark.parametrize("more", [date(2024, 2, 29), Path("a/b.pdf"), {1, 2}, (1, 2), b"\xff\x00", math.nan, math.inf])
def test_data_that_is_not_json_is_written_as_something_that_is(queue: TaskQueue, payload: Any, more: Any) -> None:
    po_data = {"po_number": "PO-1", "amount": payload, "nested": [{"more": more, 7: more}]}
    queue.add_task(ProcessingTask(task_id="a", po_data=po_data))
    lease(queue)
    queue.complete_task("a", "w1", TaskResult(success=True, downloads=[more], processing_time=1.0))

    report = queue.export_queue_report("json")

    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert yaml.safe_load(str(queue.export_queue_report("yaml"))) == report
    (row,) = rows_of(str(queue.export_queue_report("csv")))
    assert row["po_number"] == "PO-1"


def test_yaml_says_the_same_as_the_dict(queue: TaskQueue) -> None:
    one_of_each(queue)

    text = queue.export_queue_report("yaml")

    assert isinstance(text, str)
    assert yaml.safe_load(text) == queue.export_queue_report("json")


def test_yaml_says_in_each_place_what_stands_there(queue: TaskQueue) -> None:
    shared = [1, {"a": 2}]
    queue.add_task(ProcessingTask("a", {"po_number": "PO-1", "amount": Decimal("1.50"), "one": shared, "two": shared}))

    text = str(queue.export_queue_report("yaml"))

    assert "&id" not in text and "*id" not in text
    [told] = yaml.safe_load(text)["tasks"]
    assert told["po_data"]["one"] == told["po_data"]["two"] == shared


def test_an_attempt_that_was_broken_off_is_no_failure_of_its_worker(queue: TaskQueue) -> None:
    queue.add_task(task("PO-1", "a"))
    [first] = queue.exchange("w1").leases
    queue.interrupt_leases([first.token], "the run ended", is_crash=False)
    lease(queue, "w2")
    queue.retry_task("a", {"error": "boom"})

    workers = queue.export_queue_report("json")["workers"]

    assert {name: told["failed_attempts"] for name, told in workers.items() if told["failed_attempts"]} == {"w2": 1}


def test_csv_has_one_row_per_task_with_number_and_status_in_columns_of_their_own(queue: TaskQueue) -> None:
    names = one_of_each(queue)

    text = queue.export_queue_report("csv")

    assert isinstance(text, str)
    rows = rows_of(text)
    statuses = {row["po_number"]: row["status"] for row in rows}
    assert len(rows) == len(statuses) == 5
    assert statuses == {f"PO-{name}": find(queue, name).status.value for name in names}


def test_csv_of_an_empty_queue_is_a_header(queue: TaskQueue) -> None:
    reader = csv.DictReader(io.StringIO(str(queue.export_queue_report("csv")), newline=""))

    assert {"po_number", "status"} <= set(reader.fieldnames or [])
    assert list(reader) == []


def test_csv_writes_nested_values_as_json_text(queue: TaskQueue) -> None:
    po_data = {"po_number": "PO-1", "rows": [{"supplier": 'A "B", C\nD', "amount": "1,50"}]}
    queue.add_task(ProcessingTask(task_id="a", po_data=po_data))
    give_back(queue, error='boom, "twice"\nand more')

    (row,) = rows_of(str(queue.export_queue_report("csv")))

    nested = [json.loads(cell) for cell in row.values() if cell and cell[0] in "[{"]
    assert any(texts_in(each) >= {'A "B", C\nD'} for each in nested)
    assert any(texts_in(each) >= {'boom, "twice"\nand more'} for each in nested)


@pytest.mark.parametrize("formula", FORMULAS)
def test_csv_guards_what_a_spreadsheet_would_run(queue: TaskQueue, formula: str) -> None:
    po_number = formula + "x"
    queue.add_task(ProcessingTask(task_id=formula + "id", po_data={"po_number": po_number, "supplier": formula}))
    leased = lease(queue, formula + "w")
    queue.complete_task(leased.task_id, formula + "w", TaskResult(False, [formula], 1.0, formula))

    (row,) = rows_of(str(queue.export_queue_report("csv")))

    assert row["po_number"].lstrip("'").strip() == po_number.strip()
    assert [cell for cell in row.values() if is_formula_like(cell)] == []


def is_formula_like(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return cell.startswith(("\t", "\r", "\n")) or cell.strip().startswith(("=", "+", "-", "@"))
    return False


def test_csv_leaves_a_harmless_number_as_it_is(queue: TaskQueue) -> None:
    queue.add_task(task("4500017"))

    (row,) = rows_of(str(queue.export_queue_report("csv")))

    assert row["po_number"] == "4500017"


@pytest.mark.parametrize("text", ["Ä€😀", "a\x00b", "\u2028line", "\x1b[31mred", "null", "012", "yes", "{}", "1e3", ""])
def test_every_text_comes_back_from_every_format(queue: TaskQueue, text: str) -> None:
    queue.add_task(ProcessingTask(task_id="a", po_data={"po_number": "PO-1", "supplier": text}))

    assert text in texts_in(json.loads(json.dumps(queue.export_queue_report("json"))))
    assert text in texts_in(yaml.safe_load(str(queue.export_queue_report("yaml"))))
    (row,) = rows_of(str(queue.export_queue_report("csv")))
    nested = [json.loads(cell) for cell in row.values() if cell and cell[0] in "[{"]
    assert any(text in texts_in(each) for each in nested)


@pytest.mark.contract("R26")
@pytest.mark.parametrize("report_format", ["json", "csv", "yaml"])
def test_text_that_is_no_unicode_can_be_reported_and_written(queue: TaskQueue, report_format: str) -> None:
    broken = "x\udc80"
    queue.add_task(ProcessingTask(task_id=broken, po_data={"po_number": broken, "supplier": broken}))
    lease(queue, broken)
    queue.complete_task(broken, broken, TaskResult(False, [broken], 1.0, broken))

    report = queue.export_queue_report(report_format)

    text = json.dumps(report, ensure_ascii=False) if isinstance(report, dict) else report
    assert text.encode("utf-8")


@pytest.mark.parametrize("report_format", ["json", "csv", "yaml"])
def test_a_number_that_is_too_long_for_text_spoils_no_report(queue: TaskQueue, report_format: str) -> None:
    queue.add_task(ProcessingTask(task_id="a", po_data={"po_number": "PO-1", "n": 10**5000, "rows": [-(10**5000)]}))
    give_back(queue)
    queue.add_task(task("PO-2", "b"))

    report = queue.export_queue_report(report_format)

    text = json.dumps(report) if isinstance(report, dict) else report
    assert "PO-1" in text and "PO-2" in text


def test_completed_tasks_may_be_left_out(queue: TaskQueue) -> None:
    one_of_each(queue)

    for report in (
        queue.export_queue_report("json", include_completed=False),
        yaml.safe_load(str(queue.export_queue_report("yaml", False))),
    ):
        texts = texts_in(report)
        assert "PO-COMPLETED" not in texts
        assert {"PO-FAILED", "PO-RETRY_PENDING", "PO-PROCESSING", "PO-PENDING"} <= texts
    rows = rows_of(str(queue.export_queue_report("csv", include_completed=False)))
    assert {row["po_number"] for row in rows} == {"PO-FAILED", "PO-RETRY_PENDING", "PO-PROCESSING", "PO-PENDING"}


@pytest.mark.parametrize("unknown", ["xml", "", "jsn", "pickle", None, 7])
def test_another_format_is_an_error_that_names_the_known_ones(queue: TaskQueue, unknown: Any) -> None:
    with pytest.raises(ValueError, match=r"json.*csv.*yaml"):
        queue.export_queue_report(unknown)


def test_exporting_changes_nothing_and_the_report_is_a_copy(queue: TaskQueue) -> None:
    one_of_each(queue)

    with nothing_changes(queue):
        report = queue.export_queue_report("json")
        assert isinstance(report, dict)
        empty(report)
        queue.export_queue_report("csv")
        queue.export_queue_report("yaml")


def empty(value: Any) -> None:
    for each in list(value.values()) if isinstance(value, dict) else list(value):
        if isinstance(each, dict | list):
            empty(each)
    value.clear()
