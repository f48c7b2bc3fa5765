"""The main job from the command line: exit codes, files, accounts, settings, and what is said of every mistake."""

import csv
import hashlib
import io
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import textwrap
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests.integration.console import (
    APP_DIR,
    BEHAVE,
    SAMPLE,
    Ended,
    advised,
    command_line,
    environment,
    outcomes,
    poqueue,
    read_cells,
    read_csv,
    running,
    started,
    tree,
    wait_until,
    write_orders,
)
from workers.cli import main

ACCOUNTS = ("succeeded", "failed", "duplicate", "invalid", "not_run")
RUN_FILES = {
    "journal.sqlite", "run.json", "orders.csv", "lock", "results.csv", "failed.csv", "run.log", "report.json",
    "manager.log", "output",
}  # fmt: skip


class Job(NamedTuple):
    ended: Ended
    home: Path
    run_dir: Path
    temporary: Path

    @property
    def outcome(self) -> dict[str, Any]:
        outcome: dict[str, Any] = json.loads(self.ended.out)
        return outcome


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    """The sample orders, a third of which fail, with every output that there is."""
    home = tmp_path_factory.mktemp("home")
    reports = [word for suffix in ("json", "csv", "yaml", "CSV") for word in ("--report", f"x.{suffix}")]
    with tempfile.TemporaryDirectory(prefix="pq-") as temporary:
        ended = poqueue(
            "run", str(SAMPLE), "-j", "2", "-p", "sample_processors:some_fail", "--app-dir", str(APP_DIR),
            "--run-dir", "the run", "--results", "all.csv", *reports, "--json",
            cwd=home, env={"TMPDIR": temporary},
        )  # fmt: skip
        yield Job(ended, home, home / "the run", Path(temporary))


@pytest.fixture(scope="module")
def sample_rows() -> dict[int, list[str]]:
    """The cells of each row of the sample that is not blank, by the number that a spreadsheet shows."""
    rows = dict(enumerate(read_cells(SAMPLE), 1))
    return {number: cells for number, cells in rows.items() if number > 1 and any(cell.strip() for cell in cells)}


# ── the main job ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_sample_runs_with_the_default_processor_and_its_accounts_balance(tmp_path: Path) -> None:
    before = SAMPLE.read_bytes(), SAMPLE.stat().st_mtime_ns

    ended = poqueue("run", str(SAMPLE), "-j", "2", cwd=tmp_path).check(1)  # some rows of the sample are invalid

    assert ended.out == ""
    assert "208 input rows = 202 succeeded + 0 failed + 0 duplicate + 6 invalid + 0 not run" in ended.err
    assert (SAMPLE.read_bytes(), SAMPLE.stat().st_mtime_ns) == before
    run_dir = next((tmp_path / "runs").iterdir())
    assert tree(tmp_path) - {f"runs/{run_dir.name}/{name}" for name in tree(run_dir)} == {
        "runs",
        f"runs/{run_dir.name}",
    }
    dossiers = list((run_dir / "output").glob("*/dossier.json"))
    assert len(dossiers) == 152


@pytest.mark.parametrize(
    ("column", "rest"),
    [
        (["5,50", "1.234", "-2,500 €"], ["1234", "-2.5000 €"]),
        (["6.50", "5,50", "1.234", "2,500", "(1.234)"], ["5,50", "1.2340", "2500", "(1.2340)"]),
        (["1.5", "1.234", "2,500", "n/a"], ["1.234", "2,500", "n/a"]),
    ],
)
def test_the_rest_of_a_run_has_the_amounts_that_the_whole_file_gave_it(
    column: list[str], rest: list[str], tmp_path: Path
) -> None:
    rows = [f"{number};A;{amount}" for number, amount in enumerate(column)]
    write_orders(tmp_path / "amounts.csv", *rows, header="po_number;supplier;amount")
    poqueue("run", "amounts.csv", "--run-dir", "whole", cwd=tmp_path).check(0)
    poqueue("run", "amounts.csv", "--run-dir", "first", "--limit", "1", cwd=tmp_path).check(0)

    poqueue("run", "first/not_run.csv", "--run-dir", "rest", cwd=tmp_path).check(0)

    whole, again = (amounts_of(tmp_path / name) for name in ("whole", "rest"))
    assert again == {number: amount for number, amount in whole.items() if number != "0"}
    assert [row["amount"] for row in read_csv(tmp_path / "first" / "not_run.csv")] == rest


def amounts_of(run_dir: Path) -> dict[str, list[tuple[Decimal, str]]]:
    """By PO number, as the dossiers have them, with the currency."""
    found = {}
    for path in (run_dir / "output").glob("*/dossier.json"):
        dossier = json.loads(path.read_text())
        found[dossier["po_number"]] = [(Decimal(one["total"]), one["currency"]) for one in dossier["totals"]]
    return found


def test_the_exit_code_says_that_some_pos_failed(job: Job) -> None:
    job.ended.check(1)
    assert job.outcome["exit_code"] == 1
    assert job.outcome["reason"] == "done"


def test_the_accounts_balance_and_agree_everywhere(job: Job, sample_rows: dict[int, list[str]]) -> None:
    accounts = job.outcome["accounts"]

    statuses = Counter(row["status"].replace(" ", "_") for row in read_csv(job.run_dir / "results.csv"))

    assert accounts["rows"] == len(sample_rows) == sum(accounts[name] for name in ACCOUNTS)
    assert {name: statuses[name] for name in ACCOUNTS} == {name: accounts[name] for name in ACCOUNTS}
    assert accounts["failed"] > 0 and accounts["succeeded"] > 0 and accounts["invalid"] > 0
    parts = f"{accounts['succeeded']} succeeded + {accounts['failed']} failed + {accounts['duplicate']} duplicate"
    line = f"{accounts['rows']} input rows = {parts} + {accounts['invalid']} invalid + {accounts['not_run']} not run"
    assert line in job.ended.err


def test_how_many_there_are_stands_in_the_record_from_the_start(job: Job) -> None:
    record = json.loads((job.run_dir / "run.json").read_text())

    pos = sum(job.outcome["pos"].values())
    rows = {name: job.outcome["accounts"][name] for name in ("rows", "duplicate", "invalid")}
    assert record["counted"] == {"pos": pos, **rows}


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8:strict"])
def test_what_standard_output_cannot_encode_is_escaped(encoding: str, tmp_path: Path) -> None:
    write_orders(tmp_path / "Łódź 😀.csv", "é😀,ok", ",ok")
    env = {"PYTHONIOENCODING": encoding}
    run_dir = os.fsdecode(b"runs/r\xe9 \xc5\x81")
    words = ["run", "Łódź 😀.csv", *BEHAVE, "--report", "x.yaml", "--run-dir", run_dir, "--json"]

    check = poqueue(*words, "--check", cwd=tmp_path, env=env).check(3)
    ended = poqueue(*words, cwd=tmp_path, env=env).check(1)

    assert json.loads(check.out)["to_run"] == 1
    assert json.loads(ended.out)["run_dir"].encode(errors="surrogateescape").endswith(os.fsencode(run_dir))
    for command in (["runs"], ["runs", "--json"], ["report", run_dir], ["config", "show", "--run-dir", run_dir]):
        assert poqueue(*command, cwd=tmp_path, env=env).check(0).out
    for kind, read in (("json", json.loads), ("yaml", yaml.safe_load)):  # a document is UTF-8 wherever it goes
        document = read(poqueue("report", run_dir, "--format", kind, cwd=tmp_path, env=env).check(0).out)
        assert [order["po_number"] for order in document["orders"]] == ["é😀"]
    write_orders(tmp_path / "Łódź 😀.csv", "é😀,wait")
    live = os.fsdecode(b"runs/live\xe9")
    with started(*words[:-3], "--run-dir", live, "--option", f"folder={tmp_path}", cwd=tmp_path, env=env) as run:
        wait_until((tmp_path / "trail").exists, "it runs")
        assert "1 running" in poqueue("status", live, cwd=tmp_path, env=env).check(0).out
        (tmp_path / "go").touch()
        run.wait().check(0)


def test_a_table_shows_the_outcomes(job: Job) -> None:
    accounts = job.outcome["accounts"]
    table = [line.split() for line in job.ended.err.splitlines()]

    assert ["outcome", "POs", "rows"] in table
    assert ["succeeded", str(job.outcome["pos"]["succeeded"]), str(accounts["succeeded"])] in table
    assert ["failed", str(job.outcome["pos"]["failed"]), str(accounts["failed"])] in table
    assert ["invalid", str(accounts["invalid"])] in table
    assert "x GiveUp: there is no such order" in job.ended.err


def test_results_hold_every_row_in_order_with_the_processors_columns(
    job: Job, sample_rows: dict[int, list[str]]
) -> None:
    header, *lines = read_cells(job.run_dir / "results.csv")
    width = len(read_cells(SAMPLE)[0])

    assert header == ["row", *read_cells(SAMPLE)[0], "status", "attempts", "seconds", "worker", "error", "page"]
    assert [int(line[0]) for line in lines] == sorted(sample_rows)
    for line in lines:
        row = dict(zip(header, line, strict=True))
        given = [cell.replace("'", "") for cell in sample_rows[int(line[0])]]
        if row["status"] != "invalid":
            assert [cell.replace("'", "") for cell in line[1 : width + 1]] == given
        if row["status"] == "succeeded":
            assert row["page"].endswith(row["po_number"].lstrip("'").strip()) and row["attempts"] == "1"
        if row["status"] == "failed":
            assert row["error"] == "GiveUp: there is no such order" and not row["page"]


def test_no_cell_of_the_results_is_a_formula(job: Job) -> None:
    cells = [cell for line in read_cells(job.run_dir / "results.csv") for cell in line]

    dangerous = [cell for cell in cells if cell.lstrip()[:1] in ("=", "@") or cell[:1] in ("\t", "\r")]

    assert dangerous == []
    assert any(cell.startswith("'@SUM") for cell in cells)


def test_the_failed_file_runs_again_and_gives_exactly_the_failed_rows(
    job: Job, sample_rows: dict[int, list[str]], tmp_path: Path
) -> None:
    header, *failed = read_cells(job.run_dir / "failed.csv")
    numbers = [int(row["row"]) for row in read_csv(job.run_dir / "results.csv") if row["status"] == "failed"]

    arguments = ["run", str(job.run_dir / "failed.csv"), "-p", "sample_processors:some_fail", "--app-dir", str(APP_DIR)]
    again = poqueue(*arguments, "--json", cwd=tmp_path).check(1)

    assert header == read_cells(SAMPLE)[0]
    assert failed == [sample_rows[number] for number in numbers]
    accounts = json.loads(again.out)["accounts"]
    assert accounts == {name: 0 for name in ACCOUNTS} | {"rows": len(failed), "failed": len(failed)}


def test_the_advised_command_runs_the_failures_again_in_their_run(job: Job, tmp_path: Path) -> None:
    shutil.copytree(job.run_dir, tmp_path / "the run")

    arguments = advised(job.ended, "run the failures again")
    outputs = ("--results", "all.csv", "--report", "x.json")  # those of the run belong to other tests
    again = json.loads(poqueue(*arguments, *outputs, "--json", cwd=tmp_path).check(1).out)

    assert arguments == ["retry", "the run"]
    assert again["accounts"] == job.outcome["accounts"]
    assert again["resumed"]["requeued"] == job.outcome["pos"]["failed"]
    assert again["resumed"]["done_before"] == job.outcome["pos"]["succeeded"]


def test_every_report_parses_and_tells_the_same(job: Job) -> None:
    report = json.loads((job.run_dir / "report.json").read_text())
    rows = list(csv.DictReader(io.StringIO((job.home / "x.csv").read_text())))

    assert report["accounts"] == job.outcome["accounts"]
    assert json.loads((job.home / "x.json").read_text()) == report
    assert yaml.safe_load((job.home / "x.yaml").read_text())["accounts"] == report["accounts"]
    assert (job.home / "x.CSV").read_bytes() == (job.home / "x.csv").read_bytes()
    statuses = Counter(task["status"] for task in report["tasks"])
    assert statuses == {"completed": job.outcome["pos"]["succeeded"], "failed": job.outcome["pos"]["failed"]}
    assert Counter(row["status"] for row in rows) == statuses
    assert report["run"]["orders_sha256"] == hashlib.sha256(SAMPLE.read_bytes()).hexdigest()
    assert report["run"]["settings"]["jobs"] == {"value": 2, "from": "command line"}


def test_the_results_option_writes_the_same_table(job: Job) -> None:
    assert (job.home / "all.csv").read_bytes() == (job.run_dir / "results.csv").read_bytes()


def test_stdout_is_for_data(job: Job) -> None:
    assert len(job.ended.out.splitlines()) == 1
    assert set(job.outcome["files"]) >= {"results.csv", "failed.csv", "report.json", "run.log", "x.csv"}
    assert all((job.home / path).is_file() for path in job.outcome["files"].values())


@pytest.mark.once
@pytest.mark.parametrize("words", [["--json"], [], ["--jobs", "many"], ["--unknown"]])
def test_what_is_for_people_is_not_among_the_data_though_there_is_no_stderr(words: list[str], tmp_path: Path) -> None:
    write_orders(tmp_path / "orders.csv", "A,ok", ",ok")
    line = shlex.join(command_line("run", "orders.csv", *BEHAVE, *words))

    with running(["bash", "-c", f"{line} 2>&-"], cwd=tmp_path) as run:
        ended = run.wait()

    assert [json.loads(text)["accounts"]["succeeded"] for text in ended.out.splitlines()] == [1] * ("--json" in words)


def test_only_the_owner_may_read_what_a_run_writes(job: Job) -> None:
    paths = [
        job.run_dir,
        *job.run_dir.rglob("*"),
        *(job.home / name for name in ("all.csv", "x.csv", "x.json", "x.yaml")),
    ]

    modes = {str(path): stat.S_IMODE(path.stat().st_mode) for path in paths}

    assert modes == {str(path): 0o700 if path.is_dir() else 0o600 for path in paths}


def test_nothing_is_written_elsewhere(job: Job) -> None:
    at_home = {path.name for path in job.home.iterdir()}

    assert at_home == {"the run", "all.csv", "x.json", "x.csv", "x.CSV", "x.yaml"}
    assert {path.name for path in job.run_dir.iterdir()} == RUN_FILES
    assert tree(job.temporary) == set()


@pytest.mark.once
@pytest.mark.parametrize("hindrance", ["no directory", "a directory of that name"])
def test_results_that_cannot_be_written_elsewhere_spoil_nothing_in_the_run_directory(
    hindrance: str, tmp_path: Path
) -> None:
    write_orders(tmp_path / "orders.csv", "A,give-up", "B,wait")
    elsewhere = tmp_path / "out" / "all.csv"
    elsewhere.parent.mkdir()
    words = ["run", "orders.csv", *BEHAVE, "--option", f"folder={tmp_path}", "-j", "1", "--results", str(elsewhere)]
    with started(*words, "--run-dir", "r", cwd=tmp_path) as run:
        wait_until(lambda: (tmp_path / "trail").exists() and '"B"' in (tmp_path / "trail").read_text(), "B runs")
        elsewhere.parent.rmdir() if hindrance == "no directory" else elsewhere.mkdir()
        (tmp_path / "go").touch()
        ended = run.wait().check(70)

    header, *_ = read_cells(tmp_path / "r" / "results.csv")
    assert header[-1] == "attempt", "in its final shape, with a column for each field"
    assert "files in r: results.csv, failed.csv, run.log" in ended.err and "elsewhere" not in ended.err
    assert f"{elsewhere} cannot be written: " in ended.err


def test_the_rate_is_of_what_ran_now(tmp_path: Path) -> None:
    write_orders(tmp_path / "orders.csv", "A,give-up", *(f"P{number},ok" for number in range(500)))
    poqueue("run", "orders.csv", *BEHAVE, "--run-dir", "r", cwd=tmp_path).check(1)

    retried = poqueue("retry", "r", cwd=tmp_path).check(1).err
    through = poqueue("run", "--resume", "r", cwd=tmp_path).check(5).err

    shown = re.search(r"^(\S+) s, (\S+) POs/s$", retried, re.MULTILINE)
    assert shown is not None and float(shown[1]) * float(shown[2]) < 10, "one PO in that time, but for the rounding"
    assert "POs/s" not in through


def test_a_run_that_goes_on_elsewhere_writes_its_outputs_where_it_was_started(tmp_path: Path) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    (home / "r").mkdir(parents=True)
    elsewhere.mkdir()
    for name in ("rep.json", "all.csv"):
        (elsewhere / name).write_text("of somebody else")
    write_orders(home / "orders.csv", "A,give-up", "B,ok")
    options = ["--report", "rep.json", "--results", "all.csv", "--report", "r/rep.csv", "--run-dir", "r"]
    ended = poqueue("run", "orders.csv", *BEHAVE, *options, cwd=home).check(1)
    first = json.loads((home / "rep.json").read_text())

    again = poqueue("retry", "../home/r", cwd=elsewhere).check(1)

    assert {path.name: path.read_text() for path in elsewhere.iterdir()} == dict.fromkeys(
        ("rep.json", "all.csv"), "of somebody else"
    )
    assert json.loads((home / "rep.json").read_text())["run"]["began_run"] >= first["run"]["began_run"]
    assert "resumed" in json.loads((home / "rep.json").read_text())["run"]
    assert "files in r: results.csv, failed.csv, run.log, manager.log, report.json, rep.csv\n" in ended.err
    assert "files elsewhere: rep.json, all.csv\n" in ended.err
    assert f"files elsewhere: {home}/rep.json, {home}/all.csv\n" in again.err


@pytest.mark.once
def test_the_limit_leaves_the_rest_to_a_file_that_runs_it(tmp_path: Path) -> None:
    orders = write_orders(tmp_path / "orders.csv", "A,ok", "B,ok", "A,ok", "C,ok", "D,ok")

    ended = poqueue("run", orders.name, *BEHAVE, "--limit", "2", "--run-dir", "r", "--json", cwd=tmp_path)
    rest = poqueue(*advised(ended, "run the rest"), "--json", cwd=tmp_path).check(0)

    ended.check(0)
    assert read_cells(tmp_path / "r" / "not_run.csv") == [["po_number", "do"], ["C", "ok"], ["D", "ok"]]
    assert json.loads(ended.out)["accounts"]["not_run"] == 2
    assert json.loads(rest.out)["accounts"]["succeeded"] == 2


def test_the_rest_is_run_without_a_field_that_the_run_took_out_of_its_configs_map(tmp_path: Path) -> None:
    write_orders(tmp_path / "orders.csv", "A,ok", "B,ok")
    (tmp_path / "c.yaml").write_text("map: {po_number: po_number, amount: Sum}\n")
    words = ["--config", "c.yaml", "--map", "amount=", "--limit", "1", "--run-dir", "r"]

    ended = poqueue("run", "orders.csv", *BEHAVE, *words, cwd=tmp_path).check(0)
    poqueue(*advised(ended, "run the rest"), "--run-dir", "rest", cwd=tmp_path).check(0)

    assert outcomes(tmp_path / "rest") == {"B": "succeeded"}


@pytest.mark.once
def test_after_a_retry_the_rest_is_run_by_the_processor_of_the_run(tmp_path: Path) -> None:
    write_orders(tmp_path / "orders.csv", "A,give-up", "B,give-up")
    poqueue("run", "orders.csv", *BEHAVE, "--limit", "1", "--retries", "0", "--run-dir", "r", cwd=tmp_path).check(1)

    ended = poqueue("retry", "r", "-q", cwd=tmp_path).check(1)
    rest = poqueue(*advised(ended, "run the rest"), "--run-dir", "rest", cwd=tmp_path).check(1)

    assert outcomes(tmp_path / "rest") == {"B": "failed"}, rest.err
    settings = json.loads((tmp_path / "rest" / "run.json").read_text())["settings"]
    assert settings["max_retries"] == 0 and settings["limit"] is None


@pytest.mark.once
def test_the_printed_commands_can_be_typed_though_the_run_directory_looks_like_an_option(tmp_path: Path) -> None:
    write_orders(tmp_path / "orders.csv", "A,give-up", "B,ok")
    ended = poqueue("run", "orders.csv", *BEHAVE, "--limit", "1", "--run-dir=-d", cwd=tmp_path).check(1)

    poqueue(*advised(ended, "run the failures again"), cwd=tmp_path).check(1)
    poqueue(*advised(ended, "run the rest"), "--run-dir", "rest", cwd=tmp_path).check(0)
    report = poqueue("report", "./-d", cwd=tmp_path).check(0)

    assert "run the failures again: poqueue retry ./-d\n" in report.out
    assert outcomes(tmp_path / "rest") == {"B": "succeeded"}


@pytest.mark.once
@pytest.mark.parametrize("source", ["config", "environment"])
@pytest.mark.parametrize("words", [["run the rest", "--journal"], ["run the failures again", "--no-journal"]])
def test_rows_that_are_left_run_as_printed_however_the_first_file_was_read(
    words: list[str], source: str, tmp_path: Path
) -> None:
    (tmp_path / "orders.csv").write_bytes("Nr, alt;do;name\nA;give-up;Ä\nB;give-up;Müller\n".encode("cp1252"))
    told = {"encoding": "cp1252", "delimiter": ";", "limit": "1", "run_dir": "r", "results": "all.csv"}
    told |= {"report": "all.json,all.yaml"}
    told |= {"map": r"po_number=Nr\, alt", "jobs": "1", "max_retries": "0"}
    told |= {"processor": "sample_processors:behave", "app_dir": str(APP_DIR)}
    (tmp_path / "c.yaml").write_text("".join(f"{key}: '{value}'\n" for key, value in told.items()))
    given = ["--config", "c.yaml"] if source == "config" else []
    env = {} if source == "config" else {f"POQUEUE_{key.upper()}": value for key, value in told.items()}

    ended = poqueue("run", "orders.csv", *given, words[1], cwd=tmp_path, env=env).check(1)
    outputs = {path: path.read_bytes() for path in tmp_path.glob("all.*")}
    assert len(outputs) == 3
    for environ in [env, {}]:  # that of another day may be another one
        again = poqueue(*advised(ended, words[0]), "--json", cwd=tmp_path, env=environ).check(1)

        run_dir = Path(json.loads(again.out)["run_dir"])
        [row] = read_csv(run_dir / "results.csv")
        left = {"run the rest": ("B", "Müller"), "run the failures again": ("A", "Ä")}[words[0]]
        assert (row["Nr, alt"], row["name"]) == left and row["status"] == "failed"
        assert run_dir.parent.name == "runs" and all(path.read_bytes() == outputs[path] for path in outputs)


def test_a_python_without_docstrings_leaves_them_out_of_the_help(tmp_path: Path) -> None:
    with running([sys.executable, "-OO", "-m", "workers", "status", "--help"], cwd=tmp_path) as run:
        assert "None" not in run.wait().check(0).out


def test_runs_of_a_folder_that_is_not_there_is_a_slip_and_not_no_runs(tmp_path: Path) -> None:
    assert (
        "--dir must be a directory that exists, got 'rnus'"
        in poqueue("runs", "--dir", "rnus", cwd=tmp_path).check(2).err
    )
    poqueue("runs", cwd=tmp_path).check(0)


WITHOUT_THE_RIGHTS_OF_ROOT = """
import ctypes, os, sys
for right in (1, 2):  # to read and list whatever the mode says: CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    ctypes.CDLL(None).prctl(24, right, 0, 0, 0)  # PR_CAPBSET_DROP
os.execv(sys.argv[1], sys.argv[1:])
"""


def poqueue_as_anybody(*words: str, cwd: Path) -> Ended:
    """The command line of somebody for whom modes hold."""
    with running([sys.executable, "-c", WITHOUT_THE_RIGHTS_OF_ROOT, *command_line(*words)], cwd=cwd) as run:
        return run.wait()


def test_a_run_that_may_not_be_read_hides_none_that_may(tmp_path: Path) -> None:
    orders = write_orders(tmp_path / "orders.csv", "A,ok")
    poqueue("run", "orders.csv", *BEHAVE, "--run-dir", "runs/mine", cwd=tmp_path).check(0)
    (tmp_path / "runs" / "of-another-user").mkdir(0o000)

    listed = poqueue_as_anybody("runs", "--json", cwd=tmp_path).check(0)
    newest = poqueue_as_anybody("report", "--format", "json", cwd=tmp_path).check(0)

    assert [line["run"] for line in json.loads(listed.out)] == ["mine"]
    assert json.loads(newest.out)["run"]["orders"] == str(orders)


def test_a_folder_that_may_not_be_listed_is_not_said_to_have_no_runs(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir(0o311)

    for words in (["runs"], ["runs", "--dir", "./runs"], ["report"]):
        ended = poqueue_as_anybody(*words, cwd=tmp_path).check(2)

        assert ended.err == "poqueue: runs cannot be read: Permission denied\n"


def test_a_mapped_field_that_is_nearly_one_of_ours_gets_a_hint(tmp_path: Path) -> None:
    write_orders(tmp_path / "orders.csv", "A,Acme,1", header="po_number,Vendor,Sum")
    words = ["--map", "suplier=Vendor,note=Sum", *BEHAVE, "--run-dir", "r"]

    ended = poqueue("run", "orders.csv", *words, cwd=tmp_path).check(0)

    assert "--map gives column 'Vendor' to suplier (did you mean supplier?)" in ended.err
    assert ended.err.count("did you mean") == 1


def test_check_reads_and_runs_nothing(tmp_path: Path) -> None:
    write_orders(tmp_path / "good.csv", "A,ok", "A,ok")
    write_orders(tmp_path / "bad.csv", "A,ok", ",ok")

    good = poqueue("run", "good.csv", *BEHAVE, "--check", cwd=tmp_path).check(0)
    bad = poqueue("run", "bad.csv", *BEHAVE, "--check", "--json", cwd=tmp_path).check(3)

    assert "2 rows: 1 POs to run" in good.err
    assert json.loads(bad.out)["invalid"][0]["row"] == 3
    assert tree(tmp_path) == {"good.csv", "bad.csv"}


@pytest.mark.once
def test_what_a_module_starts_while_it_is_imported_ends_with_the_command(tmp_path: Path) -> None:
    write_orders(tmp_path / "orders.csv", "A,ok")
    (tmp_path / "starter.py").write_text(
        textwrap.dedent("""
            import os, signal, subprocess
            subprocess.Popen(["sleep", "300"], start_new_session=True)
            if (child := os.fork()) == 0:  # a daemon by the textbook
                os.setsid()
                if os.fork() == 0:
                    os.execvp("sleep", ["sleep", "300"])
                os._exit(0)
            os.waitpid(child, 0)
            print(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])))
            if os.path.exists("fail"):
                raise RuntimeError("after all that")

            def process(po):
                return {}
        """)
    )
    words = ("run", "orders.csv", "-p", "starter:process", "--app-dir", ".")

    poqueue(*words, "--check", cwd=tmp_path).check(0)
    poqueue(*words, "--run-dir", "r", cwd=tmp_path).check(0)
    (tmp_path / "fail").touch()
    failed = poqueue(*words, "--check", cwd=tmp_path).check(2)

    assert "after all that" in failed.err
    assert "| []" in failed.err, "no signal is blocked for what it starts"


def test_a_fault_of_our_own_is_told_whole_and_no_outcome_of_pos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("nobody has thought of this")

    monkeypatch.setattr("workers.batch.Batch.run", fail)

    assert main(["run", str(SAMPLE), "--run-dir", str(tmp_path / "run")]) == 70
    told = capsys.readouterr().err
    assert told.startswith("Traceback ") and told.endswith("\nRuntimeError: nobody has thought of this\n")


# ── exit codes ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_zero_when_every_po_succeeds(tmp_path: Path) -> None:
    orders = write_orders(tmp_path / "orders.csv", "A,ok", "B,ok")

    ended = poqueue("run", orders.name, *BEHAVE, "-j", "1", cwd=tmp_path).check(0)

    assert "2 input rows = 2 succeeded" in ended.err
    assert "again" not in ended.err


@pytest.mark.once
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "o.csv", "--time-out", "5"], "(did you mean --timeout?)"),
        (["run", "o.csv", "--retry", "5"], "(did you mean --retries?)"),
        (["run", "o.csv", "--timeout", "soon"], "--timeout must be a duration"),
        (["run", "o.csv", "-j", "0"], "--jobs must be a whole number 1 to 256"),
        (["run", "o.csv", "--report", "x.pdf"], "--report must end in one of .json, .csv, .yaml"),
        (["run", "o.csv", "--report", "nowhere/x.csv"], "there is no directory 'nowhere'"),
        (["run", "o.csv", "--results", "o.csv"], "order file"),
        (["run", "o.csv", "--report", "taken/x.csv", "--run-dir", "taken"], "'taken' is not empty"),
        (["run", "o.csv", "--retry-delay", "2s", "--max-retry-delay", "1s"], "must not be longer than"),
        (["run", "o.csv", "--shell"], "needs a command"),
        (["run", ""], "ORDERS is empty"),
        (["run"], "ORDERS"),
        (["rum", "o.csv"], "(did you mean run?)"),
        ([], "COMMAND"),
    ],
    ids=lambda value: " ".join(value) or "nothing" if isinstance(value, list) else "",
)
def test_two_for_a_mistake_on_the_command_line(words: list[str], said: str, tmp_path: Path) -> None:
    write_orders(tmp_path / "o.csv", "A,ok")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "old").touch()
    before = tree(tmp_path)

    ended = poqueue(*words, cwd=tmp_path).check(2)

    assert said in ended.err
    assert ended.out == ""
    assert tree(tmp_path) == before


@pytest.mark.once
@pytest.mark.parametrize(
    "words",
    [["run", "o.csv", "--results"], ["run", "o.csv", "--report"], ["report", "r", "--output"]],
    ids=lambda words: str(words[-1]),
)
@pytest.mark.parametrize("target", ["/proc/self/fd/1", "/dev/fd/1", "other.csv"])
def test_a_name_that_stands_for_an_open_file_is_not_replaced_by_another_file(
    words: list[str], target: str, tmp_path: Path
) -> None:
    write_orders(tmp_path / "o.csv", "A,ok")
    poqueue("run", "o.csv", *BEHAVE, "--run-dir", "r", cwd=tmp_path).check(0)
    (tmp_path / "other.csv").symlink_to("/proc/self/fd/1")
    (tmp_path / "out.csv").symlink_to(target)
    before = tree(tmp_path)

    ended = poqueue(*words, "out.csv", cwd=tmp_path).check(2)  # its standard output is a regular file

    assert "where no file can be" in ended.err
    assert (tmp_path / "out.csv").is_symlink() and tree(tmp_path) == before


@pytest.mark.once
@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("missing.csv", None, "no such file (did you mean missin.csv?)"),
        ("empty.csv", b"", "is empty"),
        ("no_po.csv", b"supplier,amount\nX,5\n", "po_number"),
        ("quote.csv", b'po_number,x\nA,"never closed\n', "quoted cell"),
        ("nul.csv", b"po_number\nA\0B\n", "NUL"),
        ("fake.xlsx", b"po_number\nA\n", "is not an .xlsx workbook"),
        ("broken.xlsx", b"PK\x03\x04nonsense", "is not a workbook"),
        ("all_bad.csv", b"po_number,x\n,1\n ,2\n", "none of the 2 rows can be run"),
        ("folder", None, "is a directory"),
        ("dangling.csv", None, "nowhere.csv, which does not exist"),
    ],
)
def test_three_for_orders_that_cannot_be_used(name: str, content: bytes | None, said: str, tmp_path: Path) -> None:
    (tmp_path / "missin.csv").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling.csv").symlink_to("nowhere.csv")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    before = tree(tmp_path)

    ended = poqueue("run", name, cwd=tmp_path).check(3)

    assert said in ended.err and name in ended.err
    assert ended.out == ""
    assert tree(tmp_path) == before


def test_four_when_workers_cannot_boot(tmp_path: Path) -> None:
    orders = write_orders(tmp_path / "orders.csv", "A,ok", "B,ok", "C,ok")

    ended = poqueue(
        "run", orders.name, "-p", "sample_processors:SetupFails", "--app-dir", str(APP_DIR), "-j", "1",
        "--run-dir", "r", cwd=tmp_path,
    ).check(4)  # fmt: skip

    assert "3 workers in a row could not start: OSError: the browser does not start …\n" in ended.err
    log = (tmp_path / "r" / "run.log").read_text()
    assert "Traceback " in log and "for more see the manual" in log
    assert read_cells(tmp_path / "r" / "not_run.csv")[1:] == [["A", "ok"], ["B", "ok"], ["C", "ok"]]
    assert not list((tmp_path / "r").glob("work.*"))
    assert "3 input rows = 0 succeeded + 0 failed + 0 duplicate + 0 invalid + 3 not run" in ended.err
    assert json.loads((tmp_path / "r" / "report.json").read_text())["accounts"]["not_run"] == 3
    assert advised(ended, "go on with the rest") == ["run", "--resume", "r"]


@pytest.mark.parametrize(
    ("rows", "rule", "code"), [(["A,ok", "B,give-up"], "now,fail=1", 1), (["A,ok", "B,ok"], "soon,success=2", 0)]
)
def test_a_halt_that_comes_with_the_last_po_has_cut_nothing_short(
    rows: list[str], rule: str, code: int, tmp_path: Path
) -> None:
    write_orders(tmp_path / "orders.csv", *rows)

    ended = poqueue("run", "orders.csv", *BEHAVE, "--halt", rule, "-j", "1", "--run-dir", "r", "--json", cwd=tmp_path)

    told = json.loads(ended.check(code).out)
    assert (told["reason"], told["message"]) == ("done", "") and "--resume" not in ended.err
    poqueue("run", "--resume", "r", cwd=tmp_path).check(5)


def test_five_when_there_is_nothing_to_do(tmp_path: Path) -> None:
    orders = write_orders(tmp_path / "orders.csv")

    ended = poqueue("run", orders.name, cwd=tmp_path).check(5)

    assert "holds no POs" in ended.err
    assert tree(tmp_path) == {"orders.csv"}


@pytest.mark.once
@pytest.mark.parametrize("stdout", ["nobody listens", "a full disk"])
@pytest.mark.parametrize(
    ("rows", "words", "code"),
    [
        (["A,ok"], [], 0),
        (["A,give-up"], [], 1),
        (["A,give-up", "B,ok"], ["--halt", "now,fail=1", "-j", "1"], 4),
        (["A,ok", ",ok"], ["--check"], 3),
    ],
)
def test_the_code_tells_of_the_pos_though_standard_output_cannot_be_written(
    rows: list[str], words: list[str], code: int, stdout: str, tmp_path: Path
) -> None:
    write_orders(tmp_path / "orders.csv", *rows)
    if stdout == "nobody listens":
        reader, descriptor = os.pipe()
        os.close(reader)
    else:
        descriptor = os.open("/dev/full", os.O_WRONLY)

    ended = subprocess.run(
        command_line("run", "orders.csv", *BEHAVE, "--json", *words), cwd=tmp_path, env=environment(), timeout=60,
        stdout=descriptor, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    os.close(descriptor)

    assert ended.returncode == code, ended.stderr
    assert "Traceback" not in ended.stderr and "BrokenPipe" not in ended.stderr
    told = "poqueue: standard output cannot be written: No space left on device"
    assert ended.stderr.count(told) == (stdout == "a full disk")
    assert "--check" in words or "input rows = " in ended.stderr


@pytest.mark.once
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "words",
    [
        ["run", "orders.csv", "--check", "--json"],
        ["config", "show"],
        ["config", "show", "--json"],
        ["runs", "--dir", "many"],
        ["runs", "--dir", "many", "--json"],
        ["tune", "--tasks", "5", "--duration", "1s"],
        ["tune", "--tasks", "5", "--duration", "1s", "--json"],
        ["report", "--help"],
        ["--version"],
    ],
    ids=" ".join,
)
def test_seventy_when_nothing_else_was_to_be_done_and_standard_output_cannot_be_written(
    words: list[str], unbuffered: str, tmp_path: Path
) -> None:
    write_orders(tmp_path / "orders.csv", "A,ok")
    for number in range(100):  # more than a buffer holds
        (tmp_path / "many" / f"a run with a name that takes some room, {number}").mkdir(parents=True)
        (tmp_path / "many" / f"a run with a name that takes some room, {number}" / "run.json").touch()

    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            command_line(*words), cwd=tmp_path, env=environment({"PYTHONUNBUFFERED": unbuffered}), timeout=60,
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip

    told = "poqueue: standard output cannot be written: No space left on device\n"
    assert (ended.returncode, ended.stderr) == (70, told)


# ── settings ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def shown_config(*words: str, cwd: Path, env: dict[str, str] | None = None) -> dict[str, dict[str, Any]]:
    config: dict[str, dict[str, Any]] = json.loads(
        poqueue("config", "show", "--json", *words, cwd=cwd, env=env).check(0).out
    )
    return config


def test_the_command_line_beats_the_environment_beats_the_file_beats_the_default(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("jobs: 3\ntask_timeout: 30s\nmax_retries: 7\n")
    environment = {"POQUEUE_JOBS": "4", "POQUEUE_TASK_TIMEOUT": "40s", "POQUEUE_CONFIG": "c.yaml"}

    config = shown_config("--jobs", "5", cwd=tmp_path, env=environment)

    assert config["jobs"] == {"value": 5, "from": "command line"}
    assert config["task_timeout"] == {"value": "40s", "from": "environment POQUEUE_TASK_TIMEOUT"}
    assert config["max_retries"] == {"value": 7, "from": "c.yaml line 3"}
    assert config["retry_delay"] == {"value": "5s", "from": "default"}


def test_a_run_obeys_the_same_order(tmp_path: Path) -> None:
    orders = write_orders(tmp_path / "orders.csv", "A,fail")
    (tmp_path / "c.yaml").write_text("max_retries: 3\nretry_delay: 0s\njobs: 1\n")

    ended = poqueue(
        "run",
        orders.name,
        *BEHAVE,
        "--no-journal",
        "--config",
        "c.yaml",
        "--run-dir",
        "r",
        cwd=tmp_path,
        env={"POQUEUE_MAX_RETRIES": "1"},
    ).check(1)

    assert read_csv(tmp_path / "r" / "results.csv")[0]["attempts"] == "2"
    assert "--config c.yaml" in ended.err


def test_config_show_is_a_table_for_people(tmp_path: Path) -> None:
    ended = poqueue("config", "show", "--timeout", "90s", cwd=tmp_path).check(0)

    lines = [line.split() for line in ended.out.splitlines()]
    assert ["setting", "value", "from"] in lines
    assert ["task_timeout", '"90s"', "command", "line"] in lines
    assert tree(tmp_path) == set()


@pytest.mark.once
@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("task_timout: 5s\n", "c.yaml:1: unknown key task_timout (did you mean task_timeout?)"),
        ("jobs: 2\nworkers: 3\n", "c.yaml:2: unknown key workers (did you mean jobs?)"),
        ("jobs: many\n", "c.yaml:1: jobs must be a whole number"),
        ("jobs: 2\njobs: 3\n", "duplicate key"),
        ("jobs: [2\n", "not valid YAML"),
        ("- jobs\n", "lines 'key: value'"),
        ("jobs: !!python/object/apply:os.system ['true']\n", "is not allowed"),
        (None, "configuration not found: c.yaml"),
    ],
)
def test_a_bad_configuration_is_named_with_its_line(content: str | None, said: str, tmp_path: Path) -> None:
    write_orders(tmp_path / "o.csv", "A,ok")
    if content is not None:
        (tmp_path / "c.yaml").write_text(content)

    ended = poqueue("run", "o.csv", "--config", "c.yaml", cwd=tmp_path).check(2)

    assert said in ended.err
    assert not (tmp_path / "runs").exists()


def test_an_unknown_variable_is_refused(tmp_path: Path) -> None:
    ended = poqueue("run", str(SAMPLE), cwd=tmp_path, env={"POQUEUE_TIMEOUT": "5s"}).check(2)

    assert "unknown environment variable POQUEUE_TIMEOUT (did you mean POQUEUE_TASK_TIMEOUT?)" in ended.err


# ── processors ───────────────────────────────────────────────────────────────────────────────────────────────────────

BAD_MODULES = {
    "constructed.py": "class Site:\n    def __init__(self):\n        print('looking')\n        raise OSError('no display')\n\n"
    "    def process(self, po): ...\n\n\n"
    "class Leaves(Site):\n    def __init__(self):\n        raise SystemExit(3)\n",
    "prints.py": "print('hello from the module')\nraise KeyError('no such site')\n",
    "leaves.py": "import sys\nprint('last words')\nsys.exit('please log in')\n",
    "dies.py": "import os\nos.write(2, b'a crash')\nos._exit(7)\n",
    "crashes.py": "import os\nos.abort()\n",
    "interrupts.py": "raise KeyboardInterrupt\n",
    "broken.py": "def process(po)\n    pass\n",
    "needs.py": "import module_that_nobody_has\n",
    "lazy.py": "def process(po):\n    yield po\n",
    "frame.py": "class Site:\n    def process(self):\n        pass\n",
    "setup.py": "class Site:\n    def setup(self):\n        pass\n    def process(self, po):\n        pass\n",
}


@pytest.mark.once
@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("no_colon", "must be module:attribute"),
        ("a:b:c", "must be module:attribute"),
        ("no_such_module:process", "no module 'no_such_module'"),
        ("sample_processors:behav", "(did you mean behave?)"),
        ("sample_processors:number", "is a int"),
        ("sample_processors:takes_nothing", "must take (po) or (po, context)"),
        ("sample_processors:takes_three", "must take (po) or (po, context)"),
        ("sample_processors:asynchronous", "async"),
        ("sample_processors:NeedsArguments", "constructed without arguments"),
        ("sample_processors:NoProcess", "needs a method process"),
        ("prints:process", "KeyError: 'no such site'"),
        ("leaves:process", "please log in"),
        ("dies:process", "exit code 7"),
        ("crashes:process", "ended the process"),
        ("interrupts:process", "importing interrupts"),
        ("broken:process", "SyntaxError"),
        ("needs:process", "module_that_nobody_has"),
        ("lazy:process", "generator"),
        ("frame:Site", "process must take (self, po)"),
        ("setup:Site", "setup must take (self, context)"),
        ("constructed:Site", "constructing it failed: OSError: no display ("),
        ("constructed:Leaves", "constructing it failed: SystemExit: 3 ("),
    ],
)
def test_a_bad_processor_is_one_message_and_no_run(target: str, said: str, tmp_path: Path) -> None:
    app = tmp_path / "app"
    app.mkdir()
    for name, text in BAD_MODULES.items():
        (app / name).write_text(text)
    home = tmp_path / "home"
    home.mkdir()
    write_orders(home / "orders.csv", "A,ok")

    ended = poqueue(
        "run", "orders.csv", "-p", target, "--app-dir", str(app), cwd=home,
        env={"PYTHONPATH": f"{SAMPLE.parents[1]}:{APP_DIR}"},
    ).check(2)  # fmt: skip

    assert said in ended.err
    assert ended.err.count("poqueue: ") == 1
    assert tree(home) == {"orders.csv"}
    assert ended.out == ""


@pytest.mark.once
def test_what_a_module_prints_while_it_is_imported_is_shown_with_its_error_and_in_the_log_otherwise(
    tmp_path: Path,
) -> None:
    (tmp_path / "bad.py").write_text("print('hello from bad')\nraise RuntimeError('not today')\n")
    (tmp_path / "chatty.py").write_text("print('hello from chatty')\ndef process(po):\n    return {}\n")
    orders = write_orders(tmp_path / "orders.csv", "A,ok")

    bad = poqueue("run", orders.name, "-p", "bad:process", "--app-dir", ".", cwd=tmp_path).check(2)
    chatty = poqueue(
        "run",
        orders.name,
        "-p",
        "chatty:process",
        "--app-dir",
        ".",
        "-j",
        "1",
        "--json",
        "--run-dir",
        "r",
        cwd=tmp_path,
    ).check(0)

    assert "not today" in bad.err and "| hello from bad" in bad.err
    assert json.loads(chatty.out)["exit_code"] == 0
    assert "hello from chatty" in (tmp_path / "r" / "run.log").read_text()


def test_a_class_is_set_up_and_torn_down_once_a_worker(tmp_path: Path) -> None:
    orders = write_orders(tmp_path / "orders.csv", *(f"P{number},ok" for number in range(20)))

    poqueue(
        "run", orders.name, "-p", "sample_processors:Session", "--app-dir", str(APP_DIR), "-j", "2",
        "--option", f"folder={tmp_path}", "--run-dir", "r", cwd=tmp_path,
    ).check(0)  # fmt: skip

    trail = [json.loads(line) for line in (tmp_path / "trail").read_text().splitlines()]
    setups = sorted(line["worker"] for line in trail if line["event"] == "setup")
    endings = {line["worker"]: line["served"] for line in trail if line["event"] == "teardown"}
    assert setups == sorted(endings) == ["w1.1", "w2.1"]
    assert sum(endings.values()) == 20
