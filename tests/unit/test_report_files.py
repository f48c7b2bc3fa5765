"""All formats from one history; what is redacted; files that are whole or not there."""

import csv
import io
import json
import os
import re
import shutil
import sqlite3
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml

from poqueue.errors import ConfigError, JournalError, ManagerLostError
from poqueue.records import Kind
from tests.unit.sample_journal import JournalMaker, read
from workers import report_files
from workers.history import RunHistory
from workers.report_files import as_document, read_history, render
from workers.report_words import balance_sentence, outcome_sentence
from workers.run_control import RunLock
from workers.run_record import RunRecord, read_run_record
from workers.setting_values import FORMATS
from workers.whole_file import write_whole

SECRETS = (
    "SECRETPO-77", "SecretSupplier", "secretcontact", "98765.43", "98,765.43", "SecretResult", "secretfolder", "s3cr3t",
    "hush-hush", "Initech", "SecretReason",
)  # fmt: skip
HOSTILE = (
    "=HYPERLINK(1)",
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "</script><b>",
    "\u202egnp\x1b[2J",
)


@pytest.fixture
def history(tmp_path: Path) -> RunHistory:
    """One PO that failed with a message, a stack and a result full of its data."""
    with JournalMaker(tmp_path / "journal.sqlite") as journal:
        rank = journal.add("SECRETPO-77", supplier="SecretSupplier", amount="98765.43", contact="secretcontact")
        journal.end(
            Kind.RETRY, journal.lease(rank, "w1.1", at=0.0), at=2.0, error_type="PortalError",
            message="cannot find SECRETPO-77 of SecretSupplier for 98765.43 of 'hush-hush' by secretcontact or Initech",
            traceback='Traceback (most recent call last):\n  File "/srv/secretfolder/site.py", line 4, in pay\n'
            "    pay('SecretSupplier')\nPortalError: 98765.43",
        )  # fmt: skip
        stack = 'Current thread 0x1 (most recent call first):\n  File "/srv/secretfolder/site.py", line 9 in fetch\n'
        journal.end(
            Kind.FAILED, journal.lease(rank, "w1.1", at=3.0), at=9.0, error_type="TaskTimeout", message="SecretSupplier",
            stack=stack,
        )  # fmt: skip
        other = journal.add("SECRETPO-778", supplier="SecretSupplier", amount="98765.43")
        result = [False, ["/srv/secretfolder/SecretResult.pdf"], 1.0, "SecretResult", {"total": "98765.43"}]
        journal.end(
            Kind.FAILED, journal.lease(other, "w1.1", at=10.0), at=11.0, result=result, error_type="SecretResult",
            message="SecretResult",
        )  # fmt: skip
        journal.note(Kind.PAUSED, 12.0, error='{"reason": "SecretReason"}')
    run = {
        "run_dir": "/srv/secretfolder/r1", "orders": "/srv/secretfolder/orders.csv", "processor": "site:Session",
        "reason": "done", "message": "SecretSupplier is gone", "begun_at": "2026-05-28T20:26:40+00:00",
        "settings": {
            "options": {"value": {"token": "s3cr3t"}, "from": "command line"}, "jobs": {"value": 2, "from": "default"},
            "app_dir": {"value": "/srv/secretfolder/app", "from": "/srv/secretfolder/c.yaml line 3"},
            "map": {"value": {}, "from": "command line, over /srv/secretfolder, over all/secretfolder Inc/c.yaml line 4"},
            "command": {"value": "pay --key s3cr3t {po_number}", "from": "command line"},
        },
    }  # fmt: skip
    again = (
        "poqueue run /srv/secretfolder/failed.csv -p site:Session --option token=s3cr3t --sheet hush-hush --timeout 60s"
    )
    return read(tmp_path / "journal.sqlite", run=run, again=again)


@pytest.mark.once
@pytest.mark.parametrize("format", FORMATS)
def test_a_redacted_report_holds_no_planted_secret(history: RunHistory, format: str) -> None:
    plain, redacted = render(history, format), render(history, format, redact=True)

    assert sum(secret in plain for secret in SECRETS) > 2, "the secrets are in the history"
    assert [secret for secret in SECRETS if secret.casefold() in redacted.casefold()] == []


@pytest.mark.parametrize("told", ["message", "reason", "run"])
def test_no_word_of_another_po_is_in_a_redacted_report(tmp_path: Path, told: str) -> None:
    text, run = "conflicts with umbrella about a merger", {}
    with JournalMaker(tmp_path / "journal.sqlite") as journal:
        rank = journal.add("A1", supplier="Acme")
        journal.add("B2", supplier="Umbrella", note="the_Merger")
        if told == "message":
            journal.end(Kind.FAILED, journal.lease(rank, "w1.1", at=0.0), at=1.0, error_type="ValueError", message=text)
        elif told == "reason":
            journal.note(Kind.PAUSED, 1.0, error=json.dumps({"reason": text}))
        else:
            run = {"message": text}

    redacted = render(read(tmp_path / "journal.sqlite", run=run), "json", redact=True)

    assert "conflicts with … about a …" in redacted
    assert "umbrella" not in redacted.casefold() and "merger" not in redacted.casefold()


def test_no_name_of_a_file_or_of_code_in_a_redacted_report_holds_a_word_of_a_po(tmp_path: Path) -> None:
    stack = (
        'Traceback (most recent call last):\n  File "/srv/run.py", line 3, in process\n'
        '  File "/srv/adapters/globexo.py", line 2, in fetch_globexo\n'
        '  File "/usr/lib/python3.11/socket.py", line 7, in connect\nOSError: no\n'
    )
    run = {
        "run_dir": "/r/2026-05-28-202640-Globexo_orders", "orders": "/o/globexo orders.csv", "processor": "globexo:process",
        "settings": {
            "processor": {"value": "globexo:process", "from": "globexo.yaml line 3"},
            "jobs": {"value": 2, "from": "command line, over /srv/Globexo/c-globexo.yaml line 4"},
            "results": {"value": "Globexo.csv", "from": "command line"},
        },
    }  # fmt: skip
    with JournalMaker(tmp_path / "journal.sqlite") as journal:
        rank = journal.add("1", supplier="Globexo", note="command line of 2026-05, connected to a socket")
        journal.end(
            Kind.FAILED,
            journal.lease(rank, "w1.1", at=0.0),
            at=1.0,
            error_type="OSError",
            message="no",
            traceback=stack,
        )

    shown = [render(read(tmp_path / "journal.sqlite", run=dict(run)), format, redact=True) for format in FORMATS]

    assert [text for text in shown if "globexo" in text.casefold()] == []
    document = json.loads(shown[FORMATS.index("json")])
    run, settings = document["run"], document["run"]["settings"]
    assert (run["run_dir"], run["orders"]) == ("2026-05-28-202640-…_orders", "… orders.csv")
    assert run["processor"] == settings["processor"]["value"] == "…:process"
    assert [entry["from"] for entry in settings.values()] == [
        "….yaml line 3", "command line, over c-….yaml line 4", "command line",
    ]  # fmt: skip
    assert document["attempts"][0]["stack"].splitlines()[1:] == [
        '  File "run.py", line 3 in process',
        '  File "….py", line 2 in fetch_…',
        '  File "<library>/socket.py", line 7 in connect',
    ]


def test_a_redacted_report_hides_words_of_pos_also_where_all_went_well_but_not_in_names_of_ours(tmp_path: Path) -> None:
    with JournalMaker(tmp_path / "journal.sqlite") as journal:
        journal.add("1", supplier="Globexo", note="work to be processed by a processor")
    run = {"orders": "/o/Globexo.csv", "processor": "workers.processors.dossier:process"}

    shown = json.loads(render(read(tmp_path / "journal.sqlite", run=run), "json", redact=True))["run"]

    assert (shown["orders"], shown["processor"]) == ("….csv", "workers.processors.dossier:process")


def test_a_redacted_report_still_says_what_went_wrong_and_where(history: RunHistory) -> None:
    document = json.loads(render(history, "json", redact=True))

    assert [attempt["error_type"] for attempt in document["attempts"]] == ["PortalError", "TaskTimeout", ""]
    assert document["attempts"][0]["message"].startswith("cannot find")
    assert document["hangs"][0]["place"] == "fetch (site.py:9)"
    assert [order["po_number"] for order in document["orders"]] == ["PO 1", "PO 2"]
    assert document["again"] == document["rest"] == "", "a command is of no use without its folder"
    assert document["run"]["run_dir"] == "r1" and document["run"]["settings"]["jobs"]["value"] == 2
    origins = {key: entry["from"] for key, entry in document["run"]["settings"].items()}
    assert (origins["app_dir"], origins["map"]) == ("c.yaml line 3", "command line, over c.yaml line 4")


def test_json_and_yaml_say_the_same(history: RunHistory) -> None:
    document = json.loads(render(history, "json"))
    assert yaml.safe_load(render(history, "yaml")) == document == json.loads(json.dumps(as_document(history)))
    assert document["orders"][0]["amount"] == "98765.43"
    assert document["suppliers"] == [
        {
            "supplier": "SecretSupplier", "currency": "", "pos": 2, "total": "197530.86", "completed": "0",
            "failed": "197530.86",
        }
    ]  # fmt: skip


def hostile_history(path: Path) -> RunHistory:
    with JournalMaker(path) as journal:
        for text in HOSTILE:
            rank = journal.add(text, supplier=text, amount="1")
            journal.end(
                Kind.FAILED, journal.lease(rank, "w1.1", at=1.0), at=2.0, seconds=1.0, error_type=text,
                message=f"{text} \ud800", stack=text,
            )  # fmt: skip
    return read(
        path, run={"run_dir": "/r/<b>", "message": "</style><script>", "settings": {"<i>": {"value": "</pre>"}}}
    )


def test_no_cell_of_the_csv_is_run_by_a_spreadsheet(tmp_path: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(render(hostile_history(tmp_path / "j"), "csv"))))

    assert len(rows) == len(HOSTILE)
    assert rows[0]["po_number"] == rows[0]["supplier"] == rows[0]["error_type"] == "'=HYPERLINK(1)"
    assert rows[1]["po_number"] == HOSTILE[1] and rows[1]["attempts"] == "1" and rows[1]["amount"] == "1"
    assert rows[1]["errors"].startswith("attempt 1: <script>alert(1)</script>: ")


@pytest.mark.once
@pytest.mark.parametrize("format", FORMATS)
def test_every_format_takes_hostile_text_and_can_be_written(tmp_path: Path, format: str) -> None:
    text = render(hostile_history(tmp_path / "j"), format)
    write_whole(text, tmp_path / "report")

    written = (tmp_path / "report").read_text(encoding="utf-8")
    assert "\x1b" not in written or format == "csv"
    if format == "html":
        markup = re.sub(r"<script>.*?</script>", "", written, flags=re.DOTALL)  # each ends where it was meant to end
        assert [wrong for wrong in ("alert(1)</s", "<img", "<b>", "<i>", "</script", "\u202e") if wrong in markup] == []


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_takes_a_run_in_which_nothing_has_happened(tmp_path: Path, format: str) -> None:
    with JournalMaker(tmp_path / "j") as journal:
        journal.add("P")
    assert "P" in render(read(tmp_path / "j"), format) and render(read(tmp_path / "j"), format, redact=True)


def test_the_table_is_for_a_terminal_and_puts_the_outcome_first(history: RunHistory) -> None:
    lines = render(history, "table").splitlines()
    assert lines[0] == "2 of 2 POs failed; 0 succeeded."
    assert "where killed POs hung" in lines and lines[-1].startswith("run the failures again: poqueue run ")


def test_an_unknown_format_is_refused(history: RunHistory) -> None:
    with pytest.raises(ValueError, match="format must be one of table, json"):
        render(history, "pdf")


def test_without_the_library_the_html_report_says_what_to_install(
    history: RunHistory, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ConfigError, match=r"pip install 'poqueue\[html\]'"):
        render(history, "html")


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_file_is_replaced_whole_for_this_user_alone(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    write_whole("new\ud800\r\n", path)

    assert path.read_bytes() == b"new\\ud800\r\n" and path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["report.html"]


@pytest.mark.parametrize("name", ["a" * 255, "é" * 127])
def test_a_file_may_have_the_longest_name_that_there_is(tmp_path: Path, name: str) -> None:
    write_whole("new", tmp_path / name)

    assert (tmp_path / name).read_text() == "new" and os.listdir(tmp_path) == [name]


def test_what_cannot_be_written_leaves_the_old_file_and_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    full = OSError(28, "No space left on device")

    def no_space(*_: Any) -> None:
        raise full

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        write_whole("new", path)

    assert path.read_text() == "old" and os.listdir(tmp_path) == ["report.html"]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run of one PO that was started and never ended."""
    folder = tmp_path / "r"
    folder.mkdir()
    with JournalMaker(folder / "journal.sqlite") as journal:
        token = journal.lease(journal.add("P"), "w1.1", at=1.0)
        journal.end(Kind.FAILED, token, at=2.0, seconds=1.0, error_type="GiveUp", message="no")
        journal.add("Q")
    record = RunRecord(
        "/o/orders.csv",
        "00",
        "orders.csv",
        "site:Session",
        {},
        {"processor": "site:Session", "jobs": 3},
        "2026-05-28T20:26:40+00:00",
    )
    record.write(folder)
    return folder


def test_a_crashed_runs_journal_is_read_with_what_its_log_alone_holds_and_is_left_as_it_was(run_dir: Path) -> None:
    writer = sqlite3.connect(run_dir / "journal.sqlite", isolation_level=None)
    writer.execute("UPDATE tasks SET po_number = 'in the log'")  # the write-ahead log, as after a crash
    assert (run_dir / "journal.sqlite-wal").stat().st_size > 0
    before = {path.name: path.read_bytes() for path in run_dir.iterdir() if not path.name.endswith("-shm")}

    history = read_history(run_dir)

    assert history.orders[0].po_number == "in the log" and not history.has_ended
    assert history.run["processor"] == "site:Session" and history.run["settings"]["jobs"]["value"] == 3
    assert (history.again, history.rest) == (f"poqueue retry {run_dir}", f"poqueue run --resume {run_dir}")
    assert before == {path.name: path.read_bytes() for path in run_dir.iterdir() if not path.name.endswith("-shm")}
    writer.close()


def test_pos_that_the_queue_was_never_given_are_left_over_like_others(run_dir: Path) -> None:
    record = read_run_record(run_dir)
    record.counted = {"pos": 600, "rows": 700, "duplicate": 30, "invalid": 10}
    record.write(run_dir)

    history = read_history(run_dir)

    assert (history.counts["total"], history.counts["failed"], history.counts["pending"]) == (600, 1, 599)
    assert history.accounts == {
        "rows": 700, "succeeded": 0, "failed": 1, "duplicate": 30, "invalid": 10, "not_run": 659,
    }  # fmt: skip
    assert "0 of 600 POs succeeded, 1 failed, 599 did not end" in outcome_sentence(history)
    assert "do not balance" not in balance_sentence(history)


def test_a_run_that_was_killed_before_its_first_po_was_last_seen_when_it_began(run_dir: Path) -> None:
    (run_dir / "journal.sqlite").unlink()
    with JournalMaker(run_dir / "journal.sqlite"):
        pass

    told = outcome_sentence(read_history(run_dir))

    assert "last seen 2026-05-28 20:26:40 UTC" in told


def test_a_run_that_ends_while_it_is_asked_is_read_as_it_ended(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = RunLock(run_dir)
    lock.acquire()

    def ends_now(run_dir: Path) -> NoReturn:
        told = {"run": {"reason": "done", "began_run": "2026-05-28T20:26:40+00:00"}, "accounts": {"rows": 4}}
        (run_dir / "report.json").write_text(json.dumps(told))
        lock.release()
        raise ManagerLostError("connect: the manager process is gone")

    monkeypatch.setattr(report_files, "reach", ends_now)

    assert read_history(run_dir).has_ended


def test_a_run_that_has_just_begun_is_read_once_its_queue_is_there(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Queue:
        def copy_journal(self, path: str) -> None:
            shutil.copyfile(run_dir / "journal.sqlite", path)

        def close(self) -> None: ...

    def begins(run_dir: Path) -> Any:
        monkeypatch.setattr(report_files, "reach", lambda run_dir: Queue())
        raise ConfigError("is not running")

    monkeypatch.setattr(report_files, "reach", begins)
    lock = RunLock(run_dir)
    lock.acquire()

    history = read_history(run_dir)

    lock.release()
    assert history.counts["total"] == 2 and history.run["is_live"]


def test_a_run_that_has_no_queue_for_long_is_waited_for_not_without_a_word_and_is_not_said_to_be_over(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_files, "TELLS_AFTER_S", 0.0)
    monkeypatch.setattr(report_files, "SETTLES_WITHIN_S", 0.5)
    told: list[str] = []
    lock = RunLock(run_dir)
    lock.acquire()

    with pytest.raises(ConfigError, match=r"starting or ending.*try again"):
        read_history(run_dir, told.append)

    lock.release()
    assert told == [f"{run_dir} is starting or ending: waiting for up to 0.5 s"]


@pytest.mark.parametrize(("began", "reason"), [("2026-05-28T20:26:40+00:00", "interrupted"), ("earlier", None)])
def test_the_runs_own_report_counts_unless_the_run_was_resumed_after_it(
    run_dir: Path, began: str, reason: str | None
) -> None:
    accounts = {"rows": 4, "succeeded": 0, "failed": 1, "duplicate": 1, "invalid": 1, "not_run": 1}
    told = {"run": {"run_dir": "r", "reason": "interrupted", "began_run": began}, "accounts": accounts}
    (run_dir / "report.json").write_text(json.dumps(told))

    history = read_history(run_dir)

    assert history.run.get("reason") == reason
    assert history.accounts["rows"] == (4 if reason else 2)


@pytest.mark.parametrize("content", [None, b"", b"no journal at all", b"SQLite format 3\0" + b"\0" * 200])
def test_what_is_no_journal_is_refused_with_its_name(run_dir: Path, content: bytes | None) -> None:
    (run_dir / "journal.sqlite").unlink()
    if content is not None:
        (run_dir / "journal.sqlite").write_bytes(content)
    with pytest.raises(JournalError, match=str(run_dir)):
        read_history(run_dir)


def test_a_run_that_keeps_no_journal_is_told_from_one_that_has_lost_it(run_dir: Path) -> None:
    (run_dir / "journal.sqlite").unlink()
    record = read_run_record(run_dir)
    record.settings["journal"] = False
    record.write(run_dir)

    with pytest.raises(JournalError, match="keeps no journal"):
        read_history(run_dir)


def test_what_is_no_run_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a run directory"):
        read_history(tmp_path)
