"""Rows of the table of bad inputs that no other file covers: odd workbooks, paths, calls, files of a run, ways to start."""

import contextlib
import copy
import itertools
import json
import logging
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import xlsxwriter

from poqueue import (
    ProcessingTask,
    QueueError,
    QueueFullError,
    TaskNotFoundError,
    TaskQueue,
    TaskResult,
    WorkerMismatchError,
)
from poqueue.client import QueueClient
from poqueue.errors import ConfigError, JournalError, OrdersError, PoqueueError, ServiceError
from poqueue.payload import FrozenResult, freeze_result
from poqueue.service import QueueService
from poqueue.task import Report, Success
from poqueue.verdict import Verdict
from tests.faults.batches import Batch
from tests.integration.console import ROOT, Ended, poqueue, read_csv, running, tree, write_orders
from workers.batch import check_writable, run_batch
from workers.cli import main
from workers.orders import OrderBook, OrderSource, read_orders
from workers.resolved import load_settings
from workers.run_control import CONTROL_NAME, LOCK_NAME, RunLock, is_live, reach
from workers.signals import NUMBERS

pytestmark = [
    pytest.mark.usefixtures("nothing_left"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]

# ── D9: settings ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), 1e308, True, "5 parsecs", "0.01s", "8d"])
def test_a_time_limit_that_is_none_is_refused_with_what_is_accepted(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"task_timeout must be .*100ms to 7d.*, got "):
        load_settings({"task_timeout": value}, None, {}, caller="run_batch")


# ── D21: cells that are none ─────────────────────────────────────────────────────────────────────────────────────────


def read_workbook(path: Path, fill: Callable[[Any, Any], None]) -> OrderBook:
    with xlsxwriter.Workbook(path) as book:
        sheet = book.add_worksheet()
        sheet.write_row(0, 0, ["po_number", "amount", "note"])
        fill(book, sheet)
    return read_orders(OrderSource(path))


def test_formulas_without_a_value_and_errors_are_empty_cells_and_never_text(tmp_path: Path) -> None:
    def fill(book: Any, sheet: Any) -> None:
        sheet.write_row(1, 0, ["A"])
        sheet.write_formula(1, 1, "=1+1", None, "")
        sheet.write_formula(1, 2, "=NA()", None, "#N/A")
        sheet.write_row(2, 2, ["so that the row is not blank"])
        sheet.write_row(3, 2, ["this one neither"])
        sheet.write_formula(2, 0, "=A9", None, "")
        sheet.write_formula(3, 0, "=NA()", None, "#N/A")
        sheet.write_formula(4, 0, '="B"&1', None, "B1")

    book = read_workbook(tmp_path / "o.xlsx", fill)

    assert [order["po_number"] for order in book.orders] == ["A", "B1"]
    assert (book.orders[0]["amount"], book.orders[0]["rows"][0]["note"]) == (None, None)
    assert [(row.row, row.reason) for row in book.invalid] == [
        (3, "po_number is a formula with no stored value (cell A3); enter the number itself"),
        (4, "po_number is an error, #N/A (cell A4); enter the number itself"),
    ]
    assert any("cell B2 is a formula with no stored value; cells without a value: 4" in note for note in book.notes)


def test_a_merged_po_number_belongs_to_its_first_row_and_the_others_are_told(tmp_path: Path) -> None:
    def fill(book: Any, sheet: Any) -> None:
        sheet.merge_range(1, 0, 2, 0, "A")
        sheet.write(1, 1, 5)
        sheet.write(2, 1, 6)

    book = read_workbook(tmp_path / "o.xlsx", fill)

    assert [order["row_numbers"] for order in book.orders] == [[2]]
    assert [(row.row, row.column) for row in book.invalid] == [(3, "po_number")]


# ── D30, D41: ways to start ──────────────────────────────────────────────────────────────────────────────────────────


def started_as(words: list[str], cwd: Path) -> Ended:
    with running([sys.executable, *words], cwd=cwd) as run:
        return run.wait()


@pytest.mark.once
def test_a_module_in_the_current_folder_is_not_imported_unasked(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "poqueue"  # as pip makes it; python -m would put the current folder on the path
    command.write_text(
        "import sys\nfrom workers.__main__ import main\nif __name__ == '__main__':\n    sys.exit(main())\n"
    )
    (tmp_path / "shop.py").write_text("def process(po):\n    return {}\n")
    (tmp_path / "json.py").write_text("raise RuntimeError('not this one')\n")
    write_orders(tmp_path / "o.csv", "A,ok")

    unasked = started_as([str(command), "run", "o.csv", "-p", "shop:process", "--run-dir", "r"], tmp_path).check(2)
    asked = started_as(
        [str(command), "run", "o.csv", "-p", "shop:process", "--run-dir", "r", "--app-dir", "."], tmp_path
    )

    assert "no module 'shop'" in unasked.err and "--app-dir" in unasked.err
    asked.check(0)


SCRIPT = """
from poqueue.errors import InputError
from workers import run_batch

def process(po):
    return {}

try:
    report = run_batch("o.csv", PROCESSOR, jobs=1, run_dir="r")
    print("exit code", report.exit_code)
except InputError as error:
    print(error)
"""


@pytest.mark.once
@pytest.mark.parametrize(
    ("by", "processor", "said"),
    [
        ("stdin", "process", "save it as a file"),
        ("stdin", "'no_such_module:process'", "save it as a file"),
        ("-c", "process", "put it into a file"),
        ("-c", "'workers.processors.dossier:process'", "exit code 0"),
        ("-i", "process", "put it into a file"),
    ],
)
def test_a_script_that_is_no_file_is_told_so_once(by: str, processor: str, said: str, tmp_path: Path) -> None:
    write_orders(tmp_path / "o.csv", "A,ok")
    script = textwrap.dedent(SCRIPT).replace("PROCESSOR", processor)
    (tmp_path / "script").write_text(script if by == "stdin" else f"exec({script!r})\n")
    words = {
        "stdin": [f"{sys.executable} - <script"],
        "-i": [f"{sys.executable} -iq <script"],
        "-c": [f'{sys.executable} -c "$(cat script)"'],
    }
    with running(["bash", "-c", *words[by]], cwd=tmp_path) as run:
        ended = run.wait()

    assert said in ended.out + ended.err
    assert "Traceback" not in ended.out + ended.err
    assert (tmp_path / "r").exists() == (said == "exit code 0")


# ── D32, D34: words and paths ────────────────────────────────────────────────────────────────────────────────────────


LONG = "a" * 256  # one character more than a file name may have


@pytest.mark.once
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "o.csv", "--timeout"], "expected one argument"),
        (["run", "o.csv", "--jobs=abc"], "--jobs must be a whole number"),
        (["run", "o.csv", "--run-dir", ""], "--run-dir must be a path"),
        (["run", "o.csv", "--report", ""], "--report must be a path"),
        (["run", "o.csv", "--config", ""], "configuration"),
        (["run", "--resume", ""], "there is no run"),
        (["run", "--resume", "o.csv"], "there is no run"),
        (["run", "--resume", "folder"], "is not a run directory"),
        (["run", "o.csv", "--accept-changes"], "--accept-changes belongs to --resume"),
        (["run", "o.csv", "more.csv"], "unrecognized arguments"),
        (["report", "nowhere"], "there is no run"),
        (["status", "folder"], "is not"),
        (["scale", "many"], "invalid int value"),
        (["retry", "folder", "--run-dir", "x"], "--run-dir cannot be given here"),
        (["run", "o.csv", "--report", "folder.csv"], "is a directory"),
        (["run", "o.csv", "--results", "folder.csv"], "is a directory"),
        (["run", "o.csv", "--results", "pipe.csv"], "is not a regular file"),
        (["run", "o.csv", "--report", "pipe.csv"], "is not a regular file"),
        (["run", "o.csv", "--results", "to-pipe.csv"], "is not a regular file"),
        (["report", "no run is looked for", "--output", "pipe.csv"], "is not a regular file"),
        (["report", "no run is looked for", "--output", "folder"], "is a directory"),
        (["report", "no run is looked for", "--output", LONG], "File name too long"),
        (["run", "o.csv", "--report", f"{LONG}.json"], "File name too long"),
        (["run", "o.csv", "--results", LONG], "File name too long"),
        (["tune", "o.csv", "--write", LONG], "File name too long"),
        (["run", "--resume", LONG], "there is no run"),
        (["report", LONG], "there is no run"),
        (["status", LONG], "there is no run"),
        (["run", "o.csv", "--results", "o.csv/x.csv"], "there is no directory"),
        (["run", "o.csv", "--report", "link.csv"], "is the order file"),
        (["run", "o.csv", "--run-dir", "o.csv"], "cannot be made"),
        (["run", "o.csv", "--run-dir", "o.csv/r"], "cannot be made"),
        (["run", "o.csv", "--run-dir", "dangling"], "cannot be made"),
        (["run", "o.csv", "--run-dir", "loop", "--results", "x.csv"], "cannot be made"),
        (["run", "o.csv", "--results", "loop"], "'loop' cannot be written: Too many levels"),
        (["run", "o.csv", "--report", "loop/x.json", "--run-dir", "r"], "Too many levels"),
        (["report", "no run is looked for", "--output", "loop"], "'loop' cannot be written: Too many levels"),
        (["report", "nowhere", "--output", "dangling-loop"], "there is no run"),
    ],
    ids=lambda value: " ".join(value).replace(LONG, "LONG") if isinstance(value, list) else "",
)
def test_words_and_paths_that_cannot_be_used_run_nothing(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_orders(tmp_path / "o.csv", "A,ok")
    (tmp_path / "link.csv").symlink_to("o.csv")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling-loop").symlink_to("nowhere/../loop/x")
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "to-pipe.csv").symlink_to("pipe.csv")
    for name in ("folder", "folder.csv"):
        (tmp_path / name).mkdir()
    before, orders = tree(tmp_path), (tmp_path / "o.csv").read_bytes()
    monkeypatch.chdir(tmp_path)

    assert exit_code_of(words) == 2

    shown = capsys.readouterr()
    assert said in shown.err and "Traceback" not in shown.err and not shown.out
    assert (tree(tmp_path), (tmp_path / "o.csv").read_bytes()) == (before, orders)


@pytest.mark.once
@pytest.mark.parametrize(
    ("name", "said"),
    [(LONG, "File name too long"), ("loop", "Too many levels"), ("loop/o.csv", "Too many levels")],
    ids=["long", "a link to itself", "below a link to itself"],
)
def test_an_order_file_that_no_path_leads_to_is_told_so(
    name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.chdir(tmp_path)

    assert [exit_code_of([command, name]) for command in ("run", "tune")] == [3, 3]

    assert capsys.readouterr().err.count(f"cannot be read: {said}") == 2
    with pytest.raises(OrdersError, match=said):
        run_batch(name)


def exit_code_of(words: list[str]) -> int | str | None:
    """Of the command line, in this process."""
    before = {number: signal.getsignal(number) for number in NUMBERS}
    try:
        return main(words)
    except SystemExit as end:
        return end.code
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_folder_that_cannot_be_written_to_is_told_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders = write_orders(tmp_path / "o.csv", "A,ok")
    monkeypatch.setattr(os, "access", lambda path, mode: False)

    with pytest.raises(ConfigError, match="cannot be written to"):
        check_writable(tmp_path / "x.csv", orders)


@pytest.mark.once
def test_a_run_whose_directory_cannot_be_written_to_is_not_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_orders(tmp_path / "o.csv", "A,ok")
    monkeypatch.chdir(tmp_path)
    assert exit_code_of(["run", "o.csv", "--run-dir", "r", "-q"]) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "r").iterdir()}
    monkeypatch.setattr(os, "access", lambda path, mode: False)

    assert exit_code_of(["run", "--resume", "r"]) == 2

    assert "cannot be written to" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "r").iterdir()} == before


OWN_FILES = ["run.json", "control.json", "results.csv"]


@pytest.mark.once
@pytest.mark.parametrize("name", OWN_FILES)
def test_an_output_in_the_place_of_a_file_of_the_run_is_refused(name: str, tmp_path: Path) -> None:
    orders = write_orders(tmp_path / "o.csv", "A,ok")
    (tmp_path / "r").mkdir()

    ended = poqueue("run", orders.name, "-j", "1", "--run-dir", "r", "--report", f"r/{name}", cwd=tmp_path)

    assert ended.code == 2 and not tree(tmp_path / "r")


@pytest.fixture
def ended_run(tmp_path: Path) -> Path:
    """A run of the first of two POs, in the folder `r`."""
    orders = write_orders(tmp_path / "o.csv", "A,ok", "B,ok")
    poqueue("run", orders.name, "-j", "1", "--run-dir", "r", "--limit", "1", cwd=tmp_path).check(0)
    return tmp_path


@pytest.mark.once
@pytest.mark.parametrize(
    "words",
    [
        ("run", "o.csv", "-j", "1", "--run-dir", "new", "--report", "r/run.json"),
        ("run", "o.csv", "-j", "1", "--run-dir", "new", "--results", "r/journal.sqlite"),
        ("report", "other", "--output", "r/failed.csv"),
    ],
)
def test_an_output_in_the_place_of_a_file_of_another_run_is_refused(words: tuple[str, ...], ended_run: Path) -> None:
    poqueue("run", "o.csv", "-j", "1", "--run-dir", "other", cwd=ended_run).check(0)
    before = {path: path.read_bytes() for path in (ended_run / "r").iterdir() if path.is_file()}

    ended = poqueue(*words, cwd=ended_run).check(2)

    assert f"{words[-1]!r} is a file that another run writes; name another one" in ended.err
    assert {path: path.read_bytes() for path in before} == before and not (ended_run / "new").exists()


@pytest.mark.once
def test_outputs_that_are_named_as_the_files_of_a_run_are_written_over_where_there_is_no_run(ended_run: Path) -> None:
    words = ("run", "o.csv", "-j", "1", "--report", "run.json", "--results", "results.csv")
    for _ in range(2):
        poqueue(*words, cwd=ended_run).check(0)


@pytest.mark.once
@pytest.mark.parametrize(
    ("option", "path"), [("--report", "nowhere/x.json"), ("--report", "folder.csv"), ("--report", "o.csv")]
)
def test_a_resumed_run_looks_at_its_outputs_first_as_well(option: str, path: str, ended_run: Path) -> None:
    (ended_run / "folder.csv").mkdir()
    orders = (ended_run / "o.csv").read_bytes()

    ended = poqueue("run", "--resume", "r", option, path, cwd=ended_run)

    assert (ended_run / "o.csv").read_bytes() == orders, "the order file is never written to"
    assert ended.code == 2 and path in ended.err


@pytest.mark.once
def test_another_order_file_for_an_old_run_is_refused_until_accepted(ended_run: Path) -> None:
    write_orders(ended_run / "other.csv", "A,ok", "C,ok")
    before = {path: path.read_bytes() for path in (ended_run / "r").rglob("*") if path.is_file()}

    refused = poqueue("run", "--resume", "r", "other.csv", "--limit", "2", cwd=ended_run).check(2)
    untouched = {path: path.read_bytes() for path in before if path.name not in ("run.log", "lock", "journal.sqlite")}
    accepted = poqueue("run", "--resume", "r", "other.csv", "--limit", "2", "--accept-changes", cwd=ended_run).check(0)

    assert "is not what this run was started with" in refused.err and "--accept-changes" in refused.err
    assert all(before[path] == data for path, data in untouched.items())
    assert "1 POs had ended before" in accepted.err and "1 POs are new in the file" in accepted.err


@pytest.mark.once
@pytest.mark.parametrize("named", ["the copy", "nothing"])
def test_a_run_that_goes_on_with_its_copy_of_the_order_file_keeps_it(named: str, ended_run: Path) -> None:
    copied = (ended_run / "r" / "orders.csv").read_bytes()
    (ended_run / "o.csv").unlink()
    words = ["r/orders.csv"] if named == "the copy" else []

    poqueue("run", "--resume", "r", *words, "--limit", "2", "--accept-changes", cwd=ended_run).check(0)

    assert (ended_run / "r" / "orders.csv").read_bytes() == copied
    assert [row["status"] for row in read_csv(ended_run / "r" / "results.csv")] == ["succeeded"] * 2


# ── D35 to D37: calls of the queue ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(params=["memory", "journal", "service", "service with a journal"])
def queue(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """A queue by itself and through its service, each with and without a journal."""
    journal = {"journal": tmp_path / "journal"} if "journal" in request.param else {}
    if request.param.startswith("service"):
        with QueueService(start_method="fork", retry_delay=0, **journal) as service:
            yield service.client()
        return
    here = TaskQueue(retry_delay=0, **journal)
    yield here
    here.close_queue()


def task(number: str, **more: Any) -> ProcessingTask:
    return ProcessingTask(number, {"po_number": number, **more})


COUNTS = (
    "total_tasks",
    "pending_tasks",
    "processing_tasks",
    "completed_tasks",
    "failed_tasks",
    "retry_tasks",
    "status",
)


def counts(queue: Any) -> dict[str, Any]:
    status = queue.get_queue_status()
    return {key: status[key] for key in COUNTS}


BAD_TASKS: dict[str, Callable[[], Any]] = {
    "a known id": lambda: ProcessingTask("A", {"po_number": "B"}),
    "none": lambda: None,
    "a dict": lambda: {"po_number": "B"},
    "a number as id": lambda: ProcessingTask(7, {"po_number": "B"}),  # type: ignore[arg-type]
    "bytes as id": lambda: ProcessingTask(b"x", {"po_number": "B"}),  # type: ignore[arg-type]
    "no id": lambda: ProcessingTask(None, {"po_number": "B"}),  # type: ignore[arg-type]
    "a list as data": lambda: ProcessingTask("X", [("po_number", "B")]),  # type: ignore[arg-type]
    "a list as number": lambda: ProcessingTask("X", {"po_number": ["B"]}),
    "a truth as number": lambda: ProcessingTask("X", {"po_number": True}),
    "a fraction as number": lambda: ProcessingTask("X", {"po_number": 1.5}),
    "nothing as number": lambda: ProcessingTask("X", {"po_number": "  "}),
    "a lock": lambda: ProcessingTask("X", {"po_number": "B", "x": threading.Lock()}),
    "a lambda": lambda: ProcessingTask("X", {"po_number": "B", "x": lambda: None}),
}
NOT_IN_A_JOURNAL: dict[str, Callable[[], Any]] = {
    "keys that are no text": lambda: ProcessingTask("X", {"po_number": "B", 1: 2}),  # type: ignore[dict-item]
    "no number": lambda: ProcessingTask("X", {"po_number": "B", "x": float("nan")}),
    "bytes": lambda: ProcessingTask("X", {"po_number": "B", "x": b"x"}),
    "an id that is no unicode": lambda: ProcessingTask("\ud800", {"po_number": "B"}),
    "a number that is no unicode": lambda: ProcessingTask("X", {"po_number": "\ud800"}),
}


def test_bad_tasks_are_refused_and_change_nothing(queue: Any) -> None:
    queue.add_task(task("A"))
    before = counts(queue)
    refused = BAD_TASKS | (NOT_IN_A_JOURNAL if queue.has_journal() else {})

    for name, make in refused.items():
        with pytest.raises(ValueError) as refusal:
            queue.add_task(make())
        assert len(str(refusal.value)) < 400, name
        assert counts(queue) == before, name
    queue.add_task(task("X"))


@pytest.mark.once
def test_ids_and_large_data_survive_as_they_are(queue: Any) -> None:
    for task_id in ("a\0b", "'; DROP TABLE tasks; --", "x" * 10_000, "🧾\u202e", "../../etc/passwd"):
        queue.add_task(ProcessingTask(task_id, {"po_number": f"PO {task_id[:5]!r}"}))
        found = queue.find_task(task_id=task_id)
        assert found is not None and found.task_id == task_id
    queue.add_task(task("BIG", x="y" * 50_000_000), 1)

    leased = queue.get_next_task("w")

    assert leased is not None and len(leased.po_data["x"]) == 50_000_000


def test_bad_worker_ids_get_nothing(queue: Any) -> None:
    queue.add_task(task("A"))
    before = counts(queue)

    for worker_id in ("", "  ", None, 7, b"w", ["w"]):
        with pytest.raises(ValueError, match="worker_id"):
            queue.get_next_task(worker_id)
    assert counts(queue) == before


BAD_RESULTS: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "a dict": lambda: {"success": True},
    "a lock": lambda: TaskResult(True, data={"x": threading.Lock()}),
}


def test_bad_reports_are_refused_and_the_task_runs_on(queue: Any) -> None:
    queue.add_task(task("A"))
    assert queue.get_next_task("w1") is not None
    before = counts(queue)

    for name, make in BAD_RESULTS.items():
        with pytest.raises(ValueError, match="invalid result"):
            queue.complete_task("A", "w1", make())
        assert counts(queue) == before, name
    for error in (None, "text", 7, ["x"]):
        with pytest.raises(ValueError, match="error_details"):
            queue.retry_task("A", error)
    with pytest.raises(WorkerMismatchError):
        queue.complete_task("A", "w2", TaskResult(True))
    for task_id in ("unknown", None, 7):
        with pytest.raises(TaskNotFoundError):
            queue.complete_task(task_id, "w1", TaskResult(True))
    assert counts(queue) == before

    queue.complete_task("A", "w1", TaskResult(True))
    done = counts(queue)
    with pytest.raises(WorkerMismatchError):
        queue.complete_task("A", "w1", TaskResult(True))
    assert queue.retry_task("A", {}) is False
    assert counts(queue) == done


def test_a_report_after_the_task_was_cancelled_or_dropped_changes_nothing(queue: Any) -> None:
    queue.add_tasks([task("A"), task("B")])
    assert [queue.get_next_task(worker_id).task_id for worker_id in ("w1", "w2")] == ["A", "B"]
    queue.clear_queue(preserve_processing=False)
    dropped = counts(queue)

    for number, worker_id in (("A", "w1"), ("B", "w2")):
        with pytest.raises(TaskNotFoundError):
            queue.complete_task(number, worker_id, TaskResult(True))
    assert counts(queue) == dropped


def test_a_closed_queue_refuses_changes(queue: Any) -> None:
    queue.add_task(task("A"))
    has_journal = queue.has_journal()
    queue.close_queue()

    if has_journal:
        for call in (
            lambda: queue.add_task(task("B")),
            queue.clear_queue,
            lambda: queue.add_tasks([task("C")]),
        ):
            with pytest.raises(JournalError):
                call()
        assert queue.get_next_task("w") is None
    assert queue.get_queue_status()["total_tasks"] == 1
    queue.close_queue()


def test_a_full_queue_refuses_and_goes_on(queue: Any) -> None:
    queue.update_configuration(queue_size_limit=1)
    queue.add_task(task("A"))

    with pytest.raises(QueueFullError):
        queue.add_task(task("B"))
    assert queue.get_next_task("w").task_id == "A"
    queue.add_task(task("B"))


def test_data_too_large_to_be_sent_are_no_lost_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("poqueue.wire.MAX_REQUEST_BYTES", 1_000_000)
    with QueueService(start_method="fork") as service:
        queue = service.client()
        try:
            queue.add_task(task("A", x="y" * 2_000_000))
        except ServiceError as error:
            pytest.fail(f"{type(error).__name__}: {error}")
        except ValueError as error:
            assert "large" in str(error)


# ── D38: calls in the middle of calls ────────────────────────────────────────────────────────────────────────────────


class Ringing:
    """A signal handler that uses the queue, at any moment of the main thread's own calls."""

    def __init__(self, queue: TaskQueue) -> None:
        self.queue = queue
        self.added = 0
        self.errors: list[BaseException] = []
        self.is_over = False

    def __enter__(self) -> "Ringing":
        self.before = signal.signal(signal.SIGALRM, self._ring)
        signal.setitimer(signal.ITIMER_REAL, 0.0005)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()
        signal.signal(signal.SIGALRM, self.before)

    def stop(self) -> None:
        self.is_over = True  # a signal may have come that nobody has heard yet
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _ring(self, number: int, frame: Any) -> None:
        if self.is_over:
            return
        try:
            self.queue.add_task(task(f"S{self.added}"))
            self.added += 1
            leased = self.queue.get_next_task("handler")
            if leased is not None:
                self.queue.complete_task(leased.task_id, "handler", TaskResult(True))
        except PoqueueError as error:
            self.errors.append(error)
        signal.setitimer(signal.ITIMER_REAL, 0.0003)


@pytest.mark.once
@pytest.mark.parametrize(
    "kind",
    [
        "memory",
        "journal",
    ],
)
def test_a_signal_handler_may_use_the_queue(kind: str, tmp_path: Path) -> None:
    queue = TaskQueue(**({"journal": tmp_path / "journal"} if kind == "journal" else {}))
    own = 0
    with contextlib.closing(_closing(queue)), Ringing(queue) as ringing:
        for number in range(3000):
            with contextlib.suppress(PoqueueError):
                queue.add_task(task(f"M{number}"))
                own += 1
                leased = queue.get_next_task("main")
                if leased is not None:
                    queue.complete_task(leased.task_id, "main", TaskResult(True))
        ringing.stop()
        while (rest := queue.get_next_task("rest")) is not None:
            queue.complete_task(rest.task_id, "rest", TaskResult(True))

        status = queue.get_queue_status()
        assert ringing.added > 20
        assert all(isinstance(error, QueueError) for error in ringing.errors)  # refused in the middle of a change
        assert status["status"] == "ACTIVE"
        assert status["total_tasks"] == status["completed_tasks"] == own + ringing.added


def test_a_signal_handler_is_refused_in_the_middle_of_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = TaskQueue()
    queue.add_tasks([task("A"), task("B")])
    queue.exchange("w")
    end = queue._schedule.end

    def ring(entry: Any) -> bool:
        """A signal comes here, in the middle of the undoing."""
        for call in (partial(queue.get_next_task, "w"), partial(queue.take_back, "w"), queue.clear_queue):
            with pytest.raises(QueueError, match="in the middle of a change"):
                call()
        return end(entry)

    monkeypatch.setattr(queue._schedule, "end", ring)

    assert queue.take_back("w") == ["A"]
    monkeypatch.undo()
    assert [queue.get_next_task("w2").task_id for _ in "AB"] == ["A", "B"]  # type: ignore[union-attr]


class AtLine:
    """Calls something before the n-th line of the queue's own that the calls inside run, as a signal handler might be."""

    def __init__(self, nth: int, call: Callable[[], Any]) -> None:
        self._left = nth
        self._call = call
        self.has_called = False

    def __enter__(self) -> "AtLine":
        sys.settrace(self._trace)
        return self

    def __exit__(self, *exc_info: object) -> None:
        sys.settrace(None)

    def _trace(self, frame: Any, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.endswith("poqueue/task_queue.py"):
            return None
        self._left -= event == "line"
        if not self._left and not self.has_called:
            self.has_called = True
            sys.settrace(None)
            with contextlib.suppress(PoqueueError, ValueError):
                self._call()
        return self._trace


CHANGES: dict[str, Callable[[TaskQueue], Any]] = {
    "fail": lambda queue: queue.complete_task("A", "w", TaskResult(False)),
    "retry": lambda queue: queue.retry_task("A", {"error": "x"}),
    "cancel": lambda queue: queue.cancel_task("A"),
    "clear": lambda queue: queue.clear_queue(preserve_processing=False),
    "add": lambda queue: queue.add_task(task("new")),
    "exchange": lambda queue: queue.exchange("w", [Success("A", 1, 0.1, b"[true, [], 0.1, null, {}]")], 1, 0.0, 1),
    "take back": lambda queue: queue.take_back("w"),
    "interrupt": lambda queue: queue.interrupt_leases([1], "why", is_crash=True),
    "requeue": lambda queue: queue.requeue_failed(),
    "drop": lambda queue: queue.drop_tasks(["B", "C"]),
}


@pytest.mark.once
@pytest.mark.parametrize("outer", CHANGES)
def test_a_call_between_any_two_lines_of_a_change_leaves_the_queue_and_its_journal_whole(
    outer: str, tmp_path: Path
) -> None:
    """What the change was decided by would be true no more."""

    def tasks_of(queue: TaskQueue) -> dict[str, Any]:
        records = queue.get_report_parts().records
        return {one.task_id: (one.status, one.attempt, one.retry_count, one.worker_id) for one in records}

    made = tmp_path / "made"
    queue = TaskQueue(journal=made, max_retries=1, retry_delay=0.0)
    queue.add_tasks([task(name) for name in "ABCD"])
    for worker_id in ("w", "w2"):
        queue.get_next_task(worker_id)
    queue.complete_task("B", "w2", TaskResult(False))
    queue.close_queue()
    for inner, call in CHANGES.items():
        for nth in itertools.count(1):
            path = tmp_path / f"{inner}{nth}"
            shutil.copy(made, path)
            queue = TaskQueue(journal=path, max_retries=1, retry_delay=0.0)
            caller = AtLine(nth, partial(call, queue))
            with caller, contextlib.suppress(TaskNotFoundError, WorkerMismatchError, ValueError):
                CHANGES[outer](queue)
            found, status = tasks_of(queue), queue.get_queue_status()
            counted = [status[f"{name}_tasks"] for name in ("pending", "processing", "completed", "failed", "retry")]
            assert sum(counted) == len(found), (inner, nth)
            queue.close_queue()
            again = TaskQueue(journal=path, journal_must_exist=True)
            assert tasks_of(again) == found, (inner, nth)
            again.close_queue()
            if not caller.has_called:
                break


@pytest.mark.parametrize("kind", ["memory", "journal"])
def test_a_change_that_was_broken_off_is_the_last_one(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Ctrl-C that the caller catches: what is here may contradict what is written down, and must not be written on."""
    journal = {"journal": tmp_path / "journal"} if kind == "journal" else {}
    queue = TaskQueue(**journal)
    queue.add_tasks([task("A"), task("B")])
    leases = queue.exchange("w", limit=2).leases

    def interrupt(*args: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(queue._schedule, "end", interrupt)
    done = [Success(lease.task_id, lease.token, 0.1, b"[true, [], 0.1, null, {}]") for lease in leases]
    with pytest.raises(KeyboardInterrupt):
        queue.exchange("w", done, limit=0)
    monkeypatch.undo()

    for call in (partial(queue.add_task, task("C")), partial(queue.get_next_task, "w")):
        with pytest.raises(QueueError, match="broken off"):
            call()
    assert queue.get_queue_status()["total_tasks"] == 2  # it can be looked at
    queue.close_queue()
    if kind == "journal":
        with contextlib.closing(_closing(again := TaskQueue(**journal))):
            assert again.get_queue_status()["completed_tasks"] == 2


@pytest.mark.parametrize("kind", ["memory", "journal"])
@pytest.mark.parametrize("call", ["get_next_task", "exchange"])
def test_an_interrupt_while_a_task_is_leased_loses_none(kind: str, call: str, tmp_path: Path) -> None:
    """At whichever line it comes, the task is still served, or the queue says that a change was broken off."""
    for number in itertools.count(1):
        queue = TaskQueue(**({"journal": tmp_path / f"journal{number}"} if kind == "journal" else {}))
        with contextlib.closing(_closing(queue)):
            queue.add_tasks([task("A"), task("B")])

            is_through = not interrupted_at_line(number, partial(getattr(queue, call), "w"))

            served = {record.task_id for record in queue.get_leases().values()}
            try:
                while (found := queue.get_next_task("w2")) is not None:
                    served.add(found.task_id)
            except QueueError as error:
                assert "broken off" in str(error)
            else:
                assert served == {"A", "B"}, f"line {number}"
        if is_through:
            assert number > 20
            return


def interrupted_at_line(number: int, call: Callable[[], object]) -> bool:
    """Call, with a Ctrl-C before the line of ours that is run as this one; False if there are not so many."""
    lines = itertools.count(1)

    def trace(frame: Any, event: str, argument: Any) -> Any:
        if "/poqueue/" in frame.f_code.co_filename and event == "line" and next(lines) == number:
            raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
    return False


def test_a_change_that_could_not_begin_is_not_the_last_one() -> None:
    queue = TaskQueue()
    queue.add_task(task("A"))
    lease = queue.exchange("w").leases[0]

    for seconds in (math.nan, math.inf, -1.0, 10**400, 1e13):
        with pytest.raises(ValueError, match="seconds must be a finite number"):
            queue.exchange("w", [Success("A", lease.token, seconds, b"[]")])

    queue.exchange("w", [Success("A", lease.token, 0.1, b"[true, [], 0.1, null, {}]")], limit=0)
    assert queue.get_performance_metrics()["average_task_duration"] == pytest.approx(0.1)


@pytest.mark.parametrize("seconds", ["1.2", math.nan, math.inf, -50.0, None, 10**400])
def test_a_failure_that_took_no_time_that_there_is_is_refused_and_changes_nothing(seconds: Any) -> None:
    queue = TaskQueue()
    queue.add_task(task("A"))
    lease = queue.exchange("w").leases[0]

    with pytest.raises(ValueError, match="seconds must be"):
        queue.exchange("w", [Report("A", lease.token, seconds, error={"error": "x"})], limit=0)
    with pytest.raises(ValueError, match="retry_after_s"):
        queue.exchange("w", [Report("A", lease.token, 0.1, error={"error": "x"}, retry_after_s=math.nan)], limit=0)

    queue.exchange("w", [Report("A", lease.token, 0.1, error={"error": "x"})], limit=0)
    assert queue.get_queue_status()["retry_tasks"] == 1


def test_a_delay_asked_for_that_is_a_date_waits_for_the_longest_delay_and_no_longer() -> None:
    now = [0.0]
    queue = TaskQueue(max_retry_delay=60.0, clock=lambda: now[0])
    queue.add_tasks([task("A"), task("B")])
    leases = queue.exchange("w", limit=2).leases

    queue.exchange("w", [Report("A", leases[0].token, 0.1, error={"error": "x"}, retry_after_s=1_764_000_000)], limit=0)
    assert queue.retry_task("B", {"error": "x", "retry_after_s": 1_764_000_000})

    now[0] = 59.0
    assert not queue.exchange("w", limit=2).leases
    now[0] = 60.0
    assert {lease.task_id for lease in queue.exchange("w", limit=2).leases} == {"A", "B"}


class _Pausing(logging.Handler):
    """A program's own: it stops everything at the first failure, and cannot write the line."""

    def __init__(self, queue: TaskQueue) -> None:
        super().__init__()
        self.queue = queue

    def emit(self, record: logging.LogRecord) -> None:
        self.queue.pause_queue()
        raise KeyError("request_id")


def test_what_the_program_does_with_log_lines_spoils_no_change() -> None:
    queue = TaskQueue(max_retries=0)
    queue.add_tasks([task("A"), task("B")])
    lease = queue.exchange("w").leases[0]
    handler = _Pausing(queue)
    logging.getLogger("poqueue.task_queue").addHandler(handler)
    try:
        queue.retry_task(lease.task_id, {"error": "x"})
    finally:
        logging.getLogger("poqueue.task_queue").removeHandler(handler)

    assert queue.get_queue_status()["status"] == "PAUSED"
    queue.resume_queue()
    assert queue.get_next_task("w") is not None


class _AlarmAfterCommit:
    """A database connection in whose last step a signal arrives."""

    def __init__(self, db: Any, error: BaseException) -> None:
        self.db, self.error = db, error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.db, name)

    def execute(self, sql: str, *more: Any) -> Any:
        done = self.db.execute(sql, *more)
        if sql == "COMMIT":
            raise self.error
        return done


@pytest.mark.parametrize("error", [TimeoutError("alarm"), ValueError("alarm"), KeyboardInterrupt()])
def test_an_alarm_that_comes_with_the_commit_is_no_failed_write(error: BaseException, tmp_path: Path) -> None:
    queue = TaskQueue(journal=tmp_path / "journal")
    assert queue._journal is not None
    db = queue._journal._db
    queue._journal._db = _AlarmAfterCommit(db, error)  # type: ignore[assignment]
    with pytest.raises(type(error)) as caught:
        queue.add_task(task("A"))
    queue._journal._db = db

    assert caught.value is error
    with pytest.raises(QueueError, match="broken off"):
        queue.add_task(task("B"))
    queue.close_queue()
    with contextlib.closing(_closing(again := TaskQueue(journal=tmp_path / "journal"))):
        assert again.get_queue_status()["total_tasks"] == 1


def test_a_result_that_is_no_json_does_not_enter_a_journal(tmp_path: Path) -> None:
    queue = TaskQueue(journal=tmp_path / "journal")
    queue.add_task(task("A"))
    lease = queue.exchange("w").leases[0]
    pickled = freeze_result(TaskResult(True))

    for report in (Success("A", lease.token, 0.1, pickled.payload), Report("A", lease.token, 0.1, pickled)):
        with pytest.raises(ValueError, match="as JSON"):
            queue.exchange("w", [report])

    queue.close_queue()
    with contextlib.closing(_closing(again := TaskQueue(journal=tmp_path / "journal"))):
        assert again.get_queue_status()["processing_tasks"] == 1


OK_JSON = b"[true, [], 1.0, null, {}]"


@pytest.mark.parametrize(
    "frozen",
    [
        FrozenResult(True, "x", None, OK_JSON),  # type: ignore[arg-type]
        FrozenResult(True, math.nan, None, OK_JSON),
        FrozenResult(True, 10**400, None, OK_JSON),
        FrozenResult(True, -1.0, None, OK_JSON),
        FrozenResult(True, 1.0, None, OK_JSON.decode()),  # type: ignore[arg-type]
    ],
)
@pytest.mark.parametrize("kind", ["memory", "journal"])
def test_a_frozen_result_that_is_none_is_refused_and_nothing_is_written(
    kind: str, frozen: FrozenResult, tmp_path: Path
) -> None:
    journal = tmp_path / "journal" if kind == "journal" else None
    queue = TaskQueue(journal=journal)
    queue.add_task(task("A"))
    lease = queue.exchange("w").leases[0]

    with pytest.raises(ValueError, match="invalid result"):
        queue.complete_task("A", "w", frozen)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="invalid result"):
        queue.exchange("w", [Report("A", lease.token, 1.0, frozen)], limit=0)

    if journal is not None:
        queue.close_queue()
        queue = TaskQueue(journal=journal)
    queue.complete_task("A", "w", TaskResult(True))
    assert queue.get_queue_status()["completed_tasks"] == 1
    queue.close_queue()


def test_a_time_that_no_attempt_can_have_taken_is_not_counted() -> None:
    queue = TaskQueue()
    queue.add_task(task("A"))
    queue.get_next_task("w")

    queue.complete_task("A", "w", TaskResult(True, [], 10**400))

    assert queue.get_performance_metrics()["average_task_duration"] < 1e6
    done = queue.find_task(task_id="A")
    assert done is not None and done.result is not None and done.result.processing_time == 10**400


@pytest.mark.parametrize("give_up", [False, True])
def test_an_error_with_a_number_that_is_too_long_for_text_is_described(tmp_path: Path, give_up: bool) -> None:
    queue = TaskQueue(journal=tmp_path / "journal")
    queue.add_tasks([task("A"), task("B")])
    lease = queue.exchange("w", turn=1).leases[0]
    error = {"error_type": "E", "n": 10**5000}

    grant = queue.exchange("w", [Report("A", lease.token, 0.1, None, error, None, give_up)], turn=2)

    assert [lease.task_id for lease in grant.leases] == ["B"]
    assert queue.retry_task("B", error) is True
    queue.close_queue()
    with contextlib.closing(_closing(again := TaskQueue(journal=tmp_path / "journal"))):
        for name in "AB":
            told = again.find_task(task_id=name)
            assert told is not None and told.error_history[0]["n"] == "<int>"


def test_what_cannot_be_put_into_words_breaks_nothing_off_and_loses_no_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = TaskQueue(journal=tmp_path / "journal")
    queue.add_tasks([task("A"), task("B")])
    lease = queue.exchange("w", turn=1).leases[0]
    report = Report("A", lease.token, 0.1, None, {"error": "x"}, None, True)

    def refuse(*args: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(Verdict, "record", refuse)
    with pytest.raises(MemoryError):
        queue.exchange("w", [report], turn=2)
    monkeypatch.undo()

    assert [lease.task_id for lease in queue.exchange("w", [report], turn=3).leases] == ["B"]
    assert queue.get_queue_status()["failed_tasks"] == 1
    queue.close_queue()


def test_an_error_that_no_journal_can_hold_is_described(tmp_path: Path) -> None:
    queue = TaskQueue(journal=tmp_path / "journal")
    queue.add_tasks([task("A"), task("B")])
    lease = queue.exchange("w", turn=1).leases[0]
    error = {"error_type": "E", "when": datetime(2026, 1, 1)}

    grant = queue.exchange("w", [Report("A", lease.token, 0.1, None, error, None, True)], turn=2)

    assert [lease.task_id for lease in grant.leases] == ["B"]
    failed = queue.find_task(task_id="A")
    assert failed is not None and "2026" in failed.error_history[0]["when"]
    queue.close_queue()


class _closing:
    def __init__(self, queue: TaskQueue) -> None:
        self.close = queue.close_queue


# ── D39, D40: clients and their keys ─────────────────────────────────────────────────────────────────────────────────


def test_a_client_is_no_value_to_be_handed_on(tmp_path: Path) -> None:
    """Another process connects for itself: the key would travel with the copy."""
    client = QueueClient(str(tmp_path / "s"), b"0123456789abcdef")

    for make in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError):
            make(client)
    assert b"0123456789abcdef".decode() not in repr(client)


def test_another_thread_and_another_client_see_the_same_queue() -> None:
    with QueueService(start_method="fork") as service:
        service.client().add_task(task("A"))
        found: list[Any] = []
        threads = [threading.Thread(target=lambda: found.append(service.client().find_task("A"))) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [one.task_id for one in found] == ["A"] * 3


GOOD_CONTROL = {
    "address": "/tmp/nowhere/queue.sock", "key": "00" * 32, "run_id": "1-2", "pid": 1, "manager_pid": 1, "manager_started": 0.0,
}  # fmt: skip


@pytest.mark.once
@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        json.dumps({**GOOD_CONTROL, "more": 1}),
        json.dumps(GOOD_CONTROL),
        pytest.param(json.dumps({**GOOD_CONTROL, "key": "zz"})),
        pytest.param(json.dumps({**GOOD_CONTROL, "key": ""})),
        pytest.param(json.dumps({**GOOD_CONTROL, "key": 7})),
        pytest.param(json.dumps({**GOOD_CONTROL, "address": "relative"})),
        pytest.param(json.dumps({**GOOD_CONTROL, "address": ["127.0.0.1", 80]})),
        pytest.param(json.dumps({**GOOD_CONTROL, "address": "/" + "x" * 108})),
    ],
)
def test_a_damaged_control_file_is_one_of_our_errors(content: str, tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    lock.acquire()
    path = tmp_path / CONTROL_NAME
    path.touch(0o600)
    path.write_text(content)
    try:
        with pytest.raises(PoqueueError) as refusal:
            reach(tmp_path)
    finally:
        lock.release()

    assert "00" * 32 not in str(refusal.value)


@pytest.mark.once
@pytest.mark.parametrize("kind", ["link", pytest.param("folder"), "mode", "none"])
def test_a_control_file_of_another_kind_is_refused(kind: str, tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    lock.acquire()
    path, other = tmp_path / CONTROL_NAME, tmp_path / "other"
    other.touch(0o600)
    other.write_text(json.dumps(GOOD_CONTROL))
    if kind == "link":
        path.symlink_to(other)
    elif kind == "folder":
        path.mkdir()
    elif kind == "mode":
        other.rename(path)
        path.chmod(0o640)
    try:
        with pytest.raises(ConfigError):
            reach(tmp_path)
    finally:
        lock.release()


@pytest.mark.parametrize("target", ["other", LOCK_NAME])
def test_a_lock_that_is_a_link_is_not_followed(target: str, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("not a lock")
    (tmp_path / LOCK_NAME).symlink_to(target)

    assert not is_live(tmp_path)
    with pytest.raises(ConfigError, match="cannot be locked"):
        RunLock(tmp_path).acquire()

    assert (tmp_path / "other").read_text() == "not a lock"


def test_whoever_asks_whether_a_run_lives_keeps_nobody_from_starting_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / LOCK_NAME).touch()
    take = (
        f"from pathlib import Path; from workers.run_control import RunLock; RunLock(Path({str(tmp_path)!r})).acquire()"
    )
    close, codes = os.close, []

    def take_before_close(descriptor: int) -> None:
        monkeypatch.setattr(os, "close", close)
        codes.append(subprocess.run([sys.executable, "-c", take], cwd=ROOT, check=False).returncode)
        close(descriptor)

    monkeypatch.setattr(os, "close", take_before_close)  # while the one who asks has the file open

    assert not is_live(tmp_path)
    assert codes == [0]


@pytest.mark.once
def test_a_long_run_directory_has_its_socket_elsewhere(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    batch = Batch(folder, "A,wait", jobs=1)
    with batch.start() as run:
        batch.wait_begun(1)
        address = batch.control()["address"]
        shown = batch.poqueue("status", "r", "--json").check(0).out
        mode = os.stat(Path(address).parent).st_mode & 0o777
        (folder / "go").touch()
        run.wait().check(0)

    assert len(os.fsencode(address)) <= 100 and mode == 0o700
    assert json.loads(shown)["processing_tasks"] == 1
    assert not Path(address).parent.exists()


def test_an_interrupt_where_any_function_begins_leaves_the_queue_usable_or_known_as_broken() -> None:
    """For each of a task's three calls, one function after the other; what is broken is told to who looks after the queue."""
    outcomes = Counter[bool]()
    for call in ("add", "get", "complete"):
        for nth in itertools.count():
            queue = TaskQueue()
            queue.add_tasks([task("A"), task("B")])
            leased = queue.get_next_task("w")
            assert leased is not None
            calls = {
                "add": lambda: queue.add_task(task("C")),  # noqa: B023
                "get": lambda: queue.get_next_task("w"),  # noqa: B023
                "complete": lambda: queue.complete_task(leased.task_id, "w", TaskResult(True)),  # noqa: B023
            }
            if not _interrupted_at(nth, calls[call]):
                break
            if not queue._change.is_broken:
                queue.add_task(task("D"))
            outcomes[queue._change.is_broken] += 1

    assert outcomes[False] > 10 and outcomes[True] > 3


def _interrupted_at(nth: int, call: Callable[[], Any]) -> bool:
    """Whether so many functions had begun, and the next one was interrupted."""
    begun = itertools.count(-1)  # the call itself is not one of them

    def interrupt(frame: Any, event: str, argument: Any) -> None:
        if event == "call" and next(begun) == nth:
            raise KeyboardInterrupt

    sys.settrace(interrupt)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
    return False
