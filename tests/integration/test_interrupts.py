"""Ctrl-C once, twice, three times; TERM, HUP and QUIT; signals at bad moments; and what SIGKILL leaves behind."""

import contextlib
import csv
import json
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import xlsxwriter

from tests.integration.console import (
    APP_DIR,
    BEHAVE,
    GONE_WITHIN_S,
    MARK,
    ROOT,
    SAMPLE,
    Ended,
    Running,
    advised,
    command_line,
    outcomes,
    pids_with,
    poqueue,
    read_csv,
    running,
    started,
    state,
    tree,
    wait_until,
    write_orders,
)
from workers.signals import SignalInbox

INTERRUPTED, TERMINATED, HUNG_UP = 130, 143, 129
ACCOUNTS = ("succeeded", "failed", "duplicate", "invalid", "not_run")


@contextlib.contextmanager
def two_at_work(tmp_path: Path, *options: str, act: str = "wait", count: int = 6) -> Iterator[Running]:
    """A run of some POs, the first two of which have begun and wait for the file `go`."""
    write_orders(tmp_path / "orders.csv", *(f"P{number},{act}" for number in range(count)))
    words = ["run", "orders.csv", *BEHAVE, "--option", f"folder={tmp_path}", "--run-dir", "r", "-j", "2"]
    with started(*words, *options, cwd=tmp_path) as run:
        event = "deaf" if act == "stubborn" else "begin"
        wait_until(lambda: len(trail(tmp_path, event)) == 2, "two POs have begun")
        yield run


def trail(tmp_path: Path, event: str = "begin") -> list[str]:
    """The POs that have left such a line."""
    with contextlib.suppress(FileNotFoundError):
        lines = (tmp_path / "trail").read_text().splitlines()
        return [record["po"] for record in map(json.loads, lines) if record["event"] == event]
    return []


def not_run(tmp_path: Path) -> set[str]:
    return {row["po_number"] for row in read_csv(tmp_path / "r" / "not_run.csv")}


def report(tmp_path: Path) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads((tmp_path / "r" / "report.json").read_text())
    return parsed


def check_accounts(tmp_path: Path) -> None:
    """Every row has ended in one way, in the report as in the table."""
    accounts = report(tmp_path)["accounts"]
    statuses = Counter(row["status"].replace(" ", "_") for row in read_csv(tmp_path / "r" / "results.csv"))
    assert accounts["rows"] == sum(accounts[name] for name in ACCOUNTS)
    assert {name: statuses[name] for name in ACCOUNTS} == {name: accounts[name] for name in ACCOUNTS}


def run_the_rest(ended: Ended, tmp_path: Path) -> dict[str, int]:
    """The accounts of the whole run, once the advised command has gone on with it."""
    (tmp_path / "go").touch()
    arguments = advised(ended, "go on with the rest")
    assert arguments == ["run", "--resume", "r"]
    accounts: dict[str, int] = json.loads(poqueue(*arguments, "--json", cwd=tmp_path).check(0).out)["accounts"]
    return accounts


# ── the ladder ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("to_group", [False, True], ids=["to the command", "to the group"])
def test_the_first_ctrl_c_lets_running_pos_end_and_starts_no_other(to_group: bool, tmp_path: Path) -> None:
    with two_at_work(tmp_path) as run:
        (run.send_group if to_group else run.send)(signal.SIGINT)
        wait_until(lambda: run.said("no new PO starts"), "it says what the first Ctrl-C does")
        assert run.said("a second one")
        (tmp_path / "go").touch()
        ended = run.wait().check(INTERRUPTED)

    assert sorted(trail(tmp_path)) == ["P0", "P1"]
    assert outcomes(tmp_path / "r") == {
        f"P{number}": "succeeded" if number < 2 else "not run" for number in range(6)
    }  # fmt: skip
    assert not_run(tmp_path) == {"P2", "P3", "P4", "P5"}
    assert report(tmp_path)["run"]["reason"] == "interrupted"
    check_accounts(tmp_path)
    assert run_the_rest(ended, tmp_path)["succeeded"] == 6
    check_accounts(tmp_path)


def test_the_second_ctrl_c_gives_running_pos_back_without_charging_them(tmp_path: Path) -> None:
    with two_at_work(tmp_path, "--retries", "0") as run:
        run.send(signal.SIGINT)
        wait_until(lambda: run.said("no new PO starts"), "the first is taken")
        run.send(signal.SIGINT)
        ended = run.wait().check(INTERRUPTED)

    rows = read_csv(tmp_path / "r" / "results.csv")
    assert {(row["status"], row["attempts"], row["error"]) for row in rows} == {("not run", "0", "")}
    tasks = report(tmp_path)["tasks"]
    assert {(task["status"], task["retry_count"]) for task in tasks} == {("pending", 0)}
    assert sorted(task["interruptions"] for task in tasks) == [0, 0, 0, 0, 1, 1]
    check_accounts(tmp_path)
    assert run_the_rest(ended, tmp_path)["succeeded"] == 6


def test_the_third_ctrl_c_kills_at_once_what_does_not_listen(tmp_path: Path) -> None:
    with two_at_work(tmp_path, "--grace", "1h", "--stop-grace", "1h", act="stubborn") as run:
        run.send(signal.SIGINT)
        wait_until(lambda: run.said("no new PO starts"), "the first is taken")
        run.send(signal.SIGINT)
        wait_until(lambda: run.said("running POs are stopped"), "the second is taken")
        run.send(signal.SIGINT)
        run.wait().check(INTERRUPTED)

    assert not_run(tmp_path) == {f"P{number}" for number in range(6)}
    check_accounts(tmp_path)


def test_three_at_once_are_three(tmp_path: Path) -> None:
    with two_at_work(tmp_path, "--grace", "1h", "--stop-grace", "1h", act="stubborn") as run:
        for level in range(3):
            run.send_group(signal.SIGINT)
            wait_until(lambda: run.said(("no new PO", "running POs are", "killing")[level]), "it is taken")  # noqa: B023
        run.wait().check(INTERRUPTED)

    check_accounts(tmp_path)


def test_when_the_stop_grace_is_over_running_pos_are_given_back(tmp_path: Path) -> None:
    with two_at_work(tmp_path, "--stop-grace", "200ms") as run:
        run.send(signal.SIGINT)
        run.wait().check(INTERRUPTED)

    assert not_run(tmp_path) == {f"P{number}" for number in range(6)}
    check_accounts(tmp_path)


def test_term_is_as_graceful_and_has_its_own_code(tmp_path: Path) -> None:
    with two_at_work(tmp_path) as run:
        run.send_group(signal.SIGTERM)
        wait_until(lambda: run.said("no new PO starts"), "it is taken")
        (tmp_path / "go").touch()
        run.wait().check(TERMINATED)

    assert sorted(trail(tmp_path, "end")) == ["P0", "P1"]
    assert not_run(tmp_path) == {"P2", "P3", "P4", "P5"}
    check_accounts(tmp_path)


def test_hup_drains_however_often_it_comes(tmp_path: Path) -> None:
    with two_at_work(tmp_path) as run:
        run.send_group(signal.SIGHUP)
        wait_until(lambda: run.said("no new PO starts"), "it is taken")
        for _ in range(3):
            run.send_group(signal.SIGHUP)
        (tmp_path / "go").touch()
        run.wait().check(HUNG_UP)

    assert sorted(trail(tmp_path, "end")) == ["P0", "P1"]
    assert not_run(tmp_path) == {"P2", "P3", "P4", "P5"}
    check_accounts(tmp_path)


def test_a_run_under_nohup_outlives_its_terminal(tmp_path: Path) -> None:
    write_orders(tmp_path / "orders.csv", *(f"P{number},wait" for number in range(6)))
    words = ["run", "orders.csv", *BEHAVE, "--option", f"folder={tmp_path}", "--run-dir", "r", "-j", "2"]
    with running(["nohup", *command_line(*words)], cwd=tmp_path) as run:
        wait_until(lambda: len(trail(tmp_path)) == 2, "two POs have begun")
        run.send_group(signal.SIGHUP)
        (tmp_path / "go").touch()
        run.wait().check(0)

    assert set(outcomes(tmp_path / "r").values()) == {"succeeded"}


def test_a_run_whose_starter_ignores_the_ends_of_children_ends(tmp_path: Path) -> None:
    book = xlsxwriter.Workbook(tmp_path / "orders.xlsx")
    book.add_worksheet().write_column(0, 0, ["po_number", "P1", "P2"])
    book.close()
    words = command_line("run", "orders.xlsx", *BEHAVE, "--run-dir", "r")
    ignore = (
        "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    )

    with running([sys.executable, "-c", ignore, *words], cwd=tmp_path) as run:
        run.wait(30.0).check(0)

    assert outcomes(tmp_path / "r") == {"P1": "succeeded", "P2": "succeeded"}


def test_quit_writes_down_every_stack_and_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "r" / "run.log"
    with two_at_work(tmp_path) as run:
        run.send_group(signal.SIGQUIT)
        wait_until(lambda: log.read_text().count("_wait") >= 2, "both workers' stacks are in the log")
        (tmp_path / "go").touch()
        ended = run.wait()

    assert ended.code == 0
    assert "supervisor.py" in log.read_text()
    stacks = [line for line in map(json.loads, log.read_text().splitlines()) if "_wait" in line["message"]]
    assert {line["po_number"] for line in stacks} == {"P0", "P1"}
    assert set(outcomes(tmp_path / "r").values()) == {"succeeded"}


def test_quit_does_no_harm_to_workers_that_are_only_starting(tmp_path: Path) -> None:
    write_orders(tmp_path / "orders.csv", "A,wait", "B,wait")
    words = ["run", "orders.csv", *BEHAVE, "--option", f"folder={tmp_path}", "--run-dir", "r", "-j", "2"]

    def have_begun() -> bool:
        run.send(signal.SIGQUIT)
        return len(trail(tmp_path)) == 2

    with started(*words, cwd=tmp_path) as run:
        wait_until((tmp_path / "r" / "results.csv").exists, "the run listens to signals")
        wait_until(have_begun, "both workers have started, whatever was sent meanwhile")
        (tmp_path / "go").touch()
        ended = run.wait().check(0)

    assert "could not start" not in ended.err
    assert set(outcomes(tmp_path / "r").values()) == {"succeeded"}


def test_a_po_that_waits_for_its_retry_is_not_run_after_ctrl_c(tmp_path: Path) -> None:
    write_orders(tmp_path / "orders.csv", "A,fail", "B,ok")
    with started("run", "orders.csv", *BEHAVE, "--run-dir", "r", "-j", "1", "--retry-delay", "1h", cwd=tmp_path) as run:
        wait_until(lambda: run.said("will be retried"), "A has failed once")
        wait_until(lambda: '"completed"' in (tmp_path / "r" / "run.log").read_text(), "B is through")
        run.send(signal.SIGINT)
        run.wait().check(INTERRUPTED)

    assert outcomes(tmp_path / "r") == {"A": "not run", "B": "succeeded"}
    check_accounts(tmp_path)


# ── bad moments ──────────────────────────────────────────────────────────────────────────────────────────────────────

# What is lost in Python's own imports, before the first line of ours: nothing can be raised in a weak reference's callback.
LOST_AT_START = (
    "Exception ignored in: <function _get_module_lock",
    "Exception ignored in: <function _WeakValueDictionary",
)
# A frame of a traceback that is not of the interpreter's own start: of our modules, or of a child process.
OURS = re.compile(r'/(?:workers|poqueue)/(?!__init__)\w+\.py"|multiprocessing/')
MOMENTS_MS = (10, 20, 50, 100, 150, 200, 300, 400)


@pytest.fixture(scope="module")
def workbook(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Orders that a child process reads."""
    path = tmp_path_factory.mktemp("workbook") / "orders.xlsx"
    with xlsxwriter.Workbook(path) as book:
        sheet = book.add_worksheet()
        for number, cells in enumerate([("po_number", "do"), *((f"P{number}", "hang") for number in range(5000))]):
            sheet.write_row(number, 0, cells)
    return path


def interrupt_at(moment_ms: int, number: int, orders: Path, tmp_path: Path) -> Ended:
    # A moment after the start is what is tried here; the process may be anywhere by then, or through.
    write_orders(tmp_path / "slow.csv", *(f"P{number},hang" for number in range(4)))
    words = [
        "run",
        str(orders if orders.is_absolute() else tmp_path / orders),
        *BEHAVE,
        "-j",
        "2",
        "--stop-grace",
        "0s",
    ]
    with started(*words, cwd=tmp_path) as run:
        with contextlib.suppress(subprocess.TimeoutExpired):
            run.process.wait(moment_ms / 1000)
        run.send_group(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            run.process.wait(10.0)
        if run.process.poll() is None and any(map(run.said, LOST_AT_START)):
            run.send_group(number)
        return run.wait(20.0)


@pytest.mark.parametrize("moment_ms", MOMENTS_MS)
@pytest.mark.parametrize("kind", ["csv", "xlsx"])
def test_ctrl_c_ends_a_run_cleanly_at_any_moment(kind: str, moment_ms: int, workbook: Path, tmp_path: Path) -> None:
    ended = interrupt_at(moment_ms, signal.SIGINT, workbook if kind == "xlsx" else Path("slow.csv"), tmp_path)

    was_starting = any(lost in ended.err for lost in LOST_AT_START) or ended.code in (1, -signal.SIGINT)
    if was_starting and "KeyboardInterrupt" in ended.err and not OURS.search(ended.err):
        return  # Python itself was still starting, which takes long on a busy machine, and nothing of ours can help that
    assert ended.code in (INTERRUPTED, -signal.SIGINT), ended.err  # a shell shows 130 for either
    ended.check_quiet()


@pytest.mark.parametrize("moment_ms", MOMENTS_MS)
def test_term_ends_a_run_cleanly_at_any_moment(moment_ms: int, tmp_path: Path) -> None:
    ended = interrupt_at(moment_ms, signal.SIGTERM, Path("slow.csv"), tmp_path)

    assert ended.code in (TERMINATED, -signal.SIGTERM), ended.err
    ended.check_quiet()


def test_once_there_is_a_run_directory_an_interrupt_writes_its_report(tmp_path: Path) -> None:
    write_orders(tmp_path / "orders.csv", *(f"P{number},hang" for number in range(4)))
    words = ["run", "orders.csv", *BEHAVE, "-j", "2", "--stop-grace", "0s", "--run-dir", "r"]
    with started(*words, cwd=tmp_path) as run:
        wait_until((tmp_path / "r" / "results.csv").exists, "the results have been begun")
        run.send_group(signal.SIGINT)
        run.wait().check(INTERRUPTED)

    assert not_run(tmp_path) == {"P0", "P1", "P2", "P3"}
    check_accounts(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_while_a_processor_is_imported_leaves_nothing(number: int, tmp_path: Path) -> None:
    (tmp_path / "slow_import.py").write_text(
        "import pathlib, time\npathlib.Path('importing').touch()\ntime.sleep(60)\ndef process(po):\n    return {}\n"
    )
    write_orders(tmp_path / "orders.csv", "A,ok")
    with started("run", "orders.csv", "-p", "slow_import:process", "--app-dir", ".", cwd=tmp_path) as run:
        wait_until((tmp_path / "importing").exists, "the import is under way")
        run.send_group(number)
        ended = run.wait().check(128 + number)

    assert "interrupted before anything ran" in ended.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("before", "number"), [([], signal.SIGQUIT), (["nohup"], signal.SIGHUP)])
def test_what_ends_no_run_does_not_end_it_before_it_begins(before: list[str], number: int, tmp_path: Path) -> None:
    (tmp_path / "slow_import.py").write_text(
        "import pathlib, time\npathlib.Path('importing').touch()\n"
        "while not pathlib.Path('go').exists():\n    time.sleep(0.01)\ndef process(po):\n    return {}\n"
    )
    write_orders(tmp_path / "orders.csv", "A,ok")
    words = command_line("run", "orders.csv", "-p", "slow_import:process", "--app-dir", ".", "--run-dir", "r")
    with running([*before, *words], cwd=tmp_path) as run:
        wait_until((tmp_path / "importing").exists, "the import is under way")
        run.send_group(number)
        if number == signal.SIGQUIT:
            wait_until(lambda: run.said("processor_check.py"), "its stack is shown")
        (tmp_path / "go").touch()
        ended = run.wait().check(0)

    assert outcomes(tmp_path / "r") == {"A": "succeeded"}
    assert "resource_tracker" not in ended.err  # multiprocessing's helper would be missed, and started again


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_a_resume_still_reads_and_imports_ends_it_at_once(number: int, tmp_path: Path) -> None:
    (tmp_path / "slow_import.py").write_text(
        "import pathlib, time\n"
        "if pathlib.Path('is slow').exists():\n    pathlib.Path('importing').touch()\n    time.sleep(60)\n"
        "def process(po):\n    return {}\n"
    )
    write_orders(tmp_path / "orders.csv", "A,ok")
    words = ("-p", "slow_import:process", "--app-dir", ".", "--run-dir", "r", "-q")
    poqueue("run", "orders.csv", *words, cwd=tmp_path).check(0)
    (tmp_path / "is slow").touch()
    results = (tmp_path / "r" / "results.csv").read_bytes()

    with started("run", "--resume", "r", cwd=tmp_path) as run:
        wait_until((tmp_path / "importing").exists, "the import is under way")
        run.send_group(number)
        ended = run.wait(20.0).check(128 + number)
    (tmp_path / "is slow").unlink()
    again = poqueue("run", "--resume", "r", cwd=tmp_path).check(5)

    assert "interrupted before anything ran" in ended.err
    assert (tmp_path / "r" / "results.csv").read_bytes() == results
    assert "nothing to do" in again.err


RINGS = """
import os, sys

class Last:
    def __del__(self):  # where Python prints what a handler raises, and goes on
        ring()

def ring():
    os.kill(os.getpid(), int(os.environ["RING_SIGNAL"]))
    for _ in range(1000):
        pass

done = []

def hook(event, arguments):
    if not done and event == os.environ["RING_EVENT"] and str(arguments[0]).endswith(os.environ["RING_AT"]):
        done.append(event)
        Last() if os.environ["RING_HOW"] == "swallowed" else ring()

sys.addaudithook(hook)
if os.environ["RING_EVENT"] == "call":
    sys.setprofile(lambda frame, event, argument: hook(event, [frame.f_code.co_qualname]))
"""


def rung(event: str, at: str, number: int, how: str, tmp_path: Path) -> dict[str, str]:
    """The environment of a command that gets a signal at the first audit event of this kind whose argument ends so, or the
    first call of a function of such a name."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(RINGS)
    write_orders(tmp_path / "orders.csv", "A,hang")
    rings = {"RING_SIGNAL": str(int(number)), "RING_EVENT": event, "RING_AT": at, "RING_HOW": how}
    return {"PYTHONPATH": f"{ROOT}:{tmp_path / 'site'}", **rings}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("event", "at"), [("import", "workers.batch"), ("open", "orders.csv")])
def test_no_interrupt_is_lost_where_python_swallows_exceptions(
    event: str, at: str, number: int, tmp_path: Path
) -> None:
    env = rung(event, at, number, "swallowed", tmp_path)

    with started("run", "orders.csv", *BEHAVE, "--stop-grace", "0s", cwd=tmp_path, env=env) as run:
        assert run.wait(20.0).code in (128 + number, -number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_is_not_taken_for_a_fault_of_the_processor_that_is_imported(number: int, tmp_path: Path) -> None:
    env = rung("open", f"dossier.{sys.implementation.cache_tag}.pyc", number, "raised", tmp_path)

    with started("run", "orders.csv", cwd=tmp_path, env=env) as run:
        ended = run.wait(20.0).check(128 + number)

    assert "processor" not in ended.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("event", "at", "number"),
    [
        ("call", "EarlyStart.close", signal.SIGTERM),
        ("import", "tabulate", signal.SIGINT),
        ("call", "_put_out", signal.SIGHUP),
    ],
)
def test_an_interrupt_once_the_run_is_complete_leaves_its_exit_code(
    event: str, at: str, number: int, tmp_path: Path
) -> None:
    env = rung(event, at, number, "raised", tmp_path)
    write_orders(tmp_path / "orders.csv", "A,give-up")

    with started("run", "orders.csv", *BEHAVE, "--run-dir", "r", "-q", cwd=tmp_path, env=env) as run:
        ended = run.wait(20.0).check(1)

    assert "interrupted" not in ended.err
    assert (" x GiveUp" in ended.err) == (at == "_put_out")  # by then all has been told
    assert outcomes(tmp_path / "r") == {"A": "failed"}


# ── SIGKILL ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("to_group", [False, True], ids=["to the command", "to the group"])
def test_nothing_of_a_killed_run_goes_on(to_group: bool, tmp_path: Path) -> None:
    with two_at_work(tmp_path, act="stubborn") as run:
        assert len(pids_with(MARK, run.mark)) >= 4  # the command, the manager and two workers

        (run.send_group if to_group else run.send)(signal.SIGKILL)

        wait_until(lambda: not pids_with(MARK, run.mark), "all of the run is gone", GONE_WITHIN_S)
        assert run.wait().code == -signal.SIGKILL
    for row in read_csv(tmp_path / "r" / "results.csv"):
        assert row["status"] in ("succeeded", "failed")  # what had been written is whole


def test_what_commands_started_dies_with_a_killed_run(tmp_path: Path) -> None:
    write_orders(tmp_path / "orders.csv", "A,x")
    template = "setsid sh -c 'echo $$ > pid; exec sleep 600' & sleep 600 # {po_number}"
    with started("run", "orders.csv", "--command", template, "--shell", "-j", "1", cwd=tmp_path) as run:
        wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip(), "it runs")

        run.send_group(signal.SIGKILL)

        wait_until(lambda: not pids_with(MARK, run.mark), "all of the run is gone", GONE_WITHIN_S)
        assert state(int((tmp_path / "pid").read_text())) in ("", "Z", "X")


def manager_of(pid: int) -> psutil.Process:
    """The child that listens on the queue's socket."""
    found = [
        child
        for child in psutil.Process(pid).children()
        if any(str(one.laddr).endswith("queue.sock") for one in child.net_connections("unix"))
    ]
    assert len(found) == 1, found
    return found[0]


def test_without_a_journal_a_lost_manager_ends_the_run_with_its_accounts_in_balance(tmp_path: Path) -> None:
    write_orders(tmp_path / "orders.csv", "A,ok", "B,give-up", "C,wait", "D,wait", "E,ok", "C,ok", ",ok")
    words = [
        "run",
        "orders.csv",
        *BEHAVE,
        "--option",
        f"folder={tmp_path}",
        "--run-dir",
        "r",
        "-j",
        "2",
        "--no-journal",
    ]
    with started(*words, cwd=tmp_path) as run:
        wait_until(lambda: {"C", "D"} <= set(trail(tmp_path)), "two POs hang")
        manager_of(run.pid).kill()
        ended = run.wait().check(70)

    assert "manager" in ended.err and "lost" in ended.err
    statuses = [row["status"] for row in read_csv(tmp_path / "r" / "results.csv")]
    # A and B may be told or not; what was not recorded runs again.
    assert statuses[2:] == ["not run", "not run", "not run", "not run", "invalid"]
    assert statuses[0] in ("succeeded", "not run") and statuses[1] in ("failed", "not run")
    assert "7 input rows = " in ended.err and "do not balance" not in ended.err
    check_accounts(tmp_path)
    (tmp_path / "go").touch()
    assert poqueue(*advised(ended, "run the rest"), cwd=tmp_path).code in (0, 1)


def test_a_worker_killed_from_outside_costs_one_attempt_of_its_po(tmp_path: Path) -> None:
    with two_at_work(tmp_path, "--retry-delay", "0s") as run:
        with open(tmp_path / "trail") as file:
            pids = {record["po"]: record["pid"] for record in map(json.loads, file)}
        psutil.Process(pids["P0"]).kill()
        (tmp_path / "go").touch()
        ended = run.wait().check(0)

    rows = {row["po_number"]: row for row in read_csv(tmp_path / "r" / "results.csv")}
    assert rows["P0"]["attempts"] == "2"
    assert {row["attempts"] for number, row in rows.items() if number != "P0"} == {"1"}
    assert "WorkerKilled" in ended.err


def test_a_signal_that_a_library_in_c_has_taken_stays_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    caught: list[int] = []
    getsignal = signal.getsignal
    before = signal.signal(signal.SIGHUP, lambda number, frame: caught.append(number))
    try:
        # as Python tells of those that are none of its own
        monkeypatch.setattr(signal, "getsignal", lambda number: None if number == signal.SIGHUP else getsignal(number))
        with SignalInbox() as inbox:
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGTERM)
            taken = [inbox.take(), inbox.take()]
    finally:
        signal.signal(signal.SIGHUP, before)

    assert caught == [signal.SIGHUP] and taken == [signal.SIGTERM, None]


def test_the_sample_is_only_read_by_an_interrupted_run(tmp_path: Path) -> None:
    before = SAMPLE.read_bytes()
    words = ["run", str(SAMPLE), "-p", "sample_processors:SetupFails", "--app-dir", str(APP_DIR)]
    with started(*words, cwd=tmp_path) as run:
        wait_until((tmp_path / "runs").exists, "the run has begun")
        run.send(signal.SIGINT)
        ended = run.wait()

    assert ended.code in (INTERRUPTED, 4)
    assert SAMPLE.read_bytes() == before
    run_dir = next((tmp_path / "runs").iterdir())
    with open(run_dir / "not_run.csv", encoding="utf-8", newline="") as file:
        assert sum(1 for _ in csv.reader(file)) == 203
    assert "report.json" in tree(run_dir)
