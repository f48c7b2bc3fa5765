"""`poqueue report` on runs that have ended, that were killed, and that go on."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.integration.console import BEHAVE, poqueue, started, wait_until, write_orders

FORMATS = ("table", "json", "csv", "yaml", "html", "trace")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run `r`: two POs succeeded, one failed."""
    home = tmp_path_factory.mktemp("home")
    write_orders(home / "orders.csv", "A,ok", "B,give-up", "C,ok")
    poqueue("run", "orders.csv", *BEHAVE, "-j", "1", "--run-dir", "r", cwd=home).check(1)
    return home


@pytest.mark.once
@pytest.mark.parametrize("kind", FORMATS)
def test_each_format_comes_on_standard_output_or_in_a_file(kind: str, home: Path, tmp_path: Path) -> None:
    shown = poqueue("report", "r", "--format", kind, cwd=home)  # it holds a processor's traceback: that is no mishap
    poqueue("report", "r", "--format", kind, "--output", str(tmp_path / "x"), cwd=home).check(0)

    assert shown.code == 0 and shown.err == "" and "B" in shown.out
    assert len((tmp_path / "x").read_text()) > 100


def test_the_accounts_are_those_of_the_run(home: Path) -> None:
    report = json.loads(poqueue("report", "r", "--format", "json", cwd=home).out)

    assert report["accounts"]["succeeded"] == 2 and report["accounts"]["failed"] == 1
    assert "poqueue retry" in json.dumps(report)


def test_a_file_that_cannot_be_written_is_told(home: Path) -> None:
    ended = poqueue("report", "r", "--output", "missing/x", cwd=home).check(2)

    assert "missing/x" in ended.err and "Traceback" not in ended.err


def test_a_report_takes_no_place_of_a_file_that_the_run_needs(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home, tmp_path / "home")
    written = {path: path.read_bytes() for path in (tmp_path / "home").rglob("*") if path.is_file()}
    orders = home / "orders.csv"
    written[orders] = orders.read_bytes()

    for path in [*written, tmp_path / "home" / "r" / "journal.sqlite-wal"]:
        if path != tmp_path / "home" / "orders.csv":  # a copy, that the run knows nothing of
            ended = poqueue("report", "r", "--output", str(path), cwd=tmp_path / "home").check(2)
            assert "itself writes" in ended.err or "is the order file" in ended.err, path

    assert {path: path.read_bytes() for path in written} == written


def test_a_run_whose_journal_was_replaced_is_not_said_to_go_on(tmp_path: Path) -> None:
    write_orders(tmp_path / "orders.csv", "A,ok", "B,wait", "C,give-up")
    words = ["run", "orders.csv", *BEHAVE, "--option", f"folder={tmp_path}", "--run-dir", "r", "-j", "1"]
    with started(*words, cwd=tmp_path) as run:
        log = tmp_path / "r" / "run.log"
        wait_until(lambda: log.exists() and '"completed"' in log.read_text(), "A has completed")
        (tmp_path / "other").write_text("something else")
        os.replace(tmp_path / "other", tmp_path / "r" / "journal.sqlite")
        run.send(signal.SIGINT)
        wait_until(lambda: run.said("no new PO starts"), "the signal is taken")
        (tmp_path / "go").touch()
        ended = run.wait()

    assert "--resume" not in ended.err and "poqueue retry" not in ended.err
    assert "run the rest: poqueue run r/not_run.csv" in ended.err


@pytest.mark.once
@pytest.mark.parametrize("words", [["report"], ["tune"]])
def test_what_is_no_journal_is_a_mistake_of_whoever_names_it(words: list[str], home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "r", tmp_path / "r")
    (tmp_path / "r" / "journal.sqlite").write_text("something else")

    ended = poqueue(*words, "r", cwd=tmp_path).check(2)

    assert "is not a journal" in ended.err


def test_a_live_run_and_one_that_was_killed_have_reports_too(tmp_path: Path) -> None:
    write_orders(tmp_path / "orders.csv", "A,ok", "B,wait", "C,ok")
    words = ["run", "orders.csv", *BEHAVE, "--option", f"folder={tmp_path}", "--run-dir", "r", "-j", "1"]
    with started(*words, cwd=tmp_path) as run:

        def counts() -> dict[str, int]:
            ended = poqueue("report", "r", "--format", "json", cwd=tmp_path)
            found: dict[str, int] = json.loads(ended.out)["counts"] if ended.code == 0 else {}
            return found

        wait_until(lambda: counts().get("completed", 0) == 1, "the live run tells of A")
        os.killpg(run.pid, signal.SIGKILL)
        run.process.wait()

    assert counts()["completed"] == 1
