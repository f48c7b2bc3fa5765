"""The report as the pieces of a JSON text says what the report as a dict says, whatever the tasks hold."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poqueue import ProcessingTask, TaskQueue, TaskResult
from poqueue.packing import FrozenTask
from poqueue.report import as_json, build_report
from poqueue.task import ReportParts
from workers.batch_run import BatchReport, write_report
from workers.results import Accounts

TEXT = st.text(max_size=8)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
DATA = st.dictionaries(TEXT, st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3)), max_size=3)
ENDS = st.sampled_from(["succeeded", "refused", "failed", "running", "waiting"])
HEAD = {"run": {"orders": "a.csv"}, "accounts": {"rows": 7}}


def end(queue: TaskQueue, task_id: str, how: str, data: dict[str, Any]) -> None:
    if how in ("succeeded", "refused"):
        result = TaskResult(how == "succeeded", ["a.pdf"], 1.5, None if how == "succeeded" else "no", data)
        queue.complete_task(task_id, "w1", result)
    elif how == "failed":
        queue.retry_task(task_id, {"message": "boom"})


@pytest.mark.once
@given(tasks=st.lists(st.tuples(DATA, ENDS, DATA), max_size=6), has_journal=st.booleans())
@settings(max_examples=60)
def test_the_text_says_what_the_dict_says(
    tasks: list[tuple[dict[str, Any], str, dict[str, Any]]], has_journal: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        queue = TaskQueue(max_retries=0, journal=Path(folder, "journal") if has_journal else None)
        for number, (po_data, how, data) in enumerate(tasks):
            queue.add_task(ProcessingTask(f"t{number}", {**po_data, "po_number": f"P{number}"}))
            if how != "waiting":
                leased = queue.get_next_task("w1")
                assert leased is not None
                end(queue, leased.task_id, how, data)
        parts = queue.get_report_parts()
        queue.close_queue()

    text = "".join(as_json(parts, HEAD))

    assert json.loads(text, parse_constant=pytest.fail) == {**HEAD, **build_report(parts)}
    assert list(json.loads(text)) == [*HEAD, *build_report(parts)]
    assert json.loads("".join(as_json(parts, {}))) == build_report(parts)
    assert "".join(as_json(parts, HEAD, knows_data=True)) == text


def parts_of_one(payload: bytes, *, is_done: bool) -> ReportParts:
    queue = TaskQueue()
    queue.add_tasks([FrozenTask("t", "P", payload, 5, None, None, None, "")])  # type: ignore[list-item]
    if is_done:
        [lease] = queue.exchange("w1", [], 1).leases
        queue.complete_task(lease.task_id, "w1", TaskResult(True))
    return queue.get_report_parts()


@pytest.mark.parametrize("is_done", [True, False])
@pytest.mark.parametrize("payload", [b'{"po_number": "P", ', b"[", b"{}{}", b"\x80no pickle"])
def test_data_that_cannot_be_opened_spoils_no_report(payload: bytes, is_done: bool) -> None:
    parts = parts_of_one(payload, is_done=is_done)

    [task] = json.loads("".join(as_json(parts, {})))["tasks"]

    assert task["po_number"] == "P" and "cannot_be_opened" in task["po_data"]
    assert task == build_report(parts)["tasks"][0]


@pytest.mark.parametrize("is_done", [True, False])
@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_what_only_python_takes_for_json_is_written_as_something_else(number: str, is_done: bool) -> None:
    parts = parts_of_one(f'{{"po_number": "P", "amount": {number}}}'.encode(), is_done=is_done)

    [task] = json.loads("".join(as_json(parts, {})), parse_constant=pytest.fail)["tasks"]

    assert task == build_report(parts)["tasks"][0] and isinstance(task["po_data"]["amount"], str)


def test_text_that_is_no_unicode_is_written_as_json_escapes_it(tmp_path: Path) -> None:
    parts = parts_of_one('{"po_number": "P", "name": "a\ud800"}'.encode("utf-8", "surrogatepass"), is_done=True)

    path = write_report({}, parts, tmp_path / "report.json")

    [task] = json.loads(path.read_text(encoding="utf-8"))["tasks"]
    assert task["po_data"]["name"].startswith("a")


@pytest.mark.parametrize("name", ["report.json", "report.csv", "report.yaml"])
def test_of_a_lost_queue_there_is_the_head(name: str, tmp_path: Path) -> None:
    path = write_report(HEAD, None, tmp_path / name)

    assert path.read_text(encoding="utf-8").startswith(("{", "run:", "task_id,"))


def test_the_report_of_a_batch_is_its_head_and_the_queues_own() -> None:
    parts = parts_of_one(b'{"po_number": "P"}', is_done=True)

    report = BatchReport(0, Accounts(7, 7, 0, 0, 0, 0), {}, None, head=HEAD, parts=parts).report

    assert report == {**HEAD, **build_report(parts)}
    assert BatchReport(0, Accounts(0, 0, 0, 0, 0, 0), {}, None).report == {}
