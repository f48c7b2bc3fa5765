"""Resuming with an order file that has changed, with a journal that is not there, and running again what failed."""

import json
import shlex
import signal
import sqlite3
from pathlib import Path

import pytest

from poqueue.records import Kind
from tests.faults.batches import Batch
from tests.faults.test_failpoints import Fault
from tests.integration.console import (
    APP_DIR,
    BEHAVE,
    outcomes,
    poqueue,
    read_csv,
    started,
    state,
    tree,
    wait_until,
    write_orders,
)

pytestmark = pytest.mark.usefixtures("nothing_left")


def halted(folder: Path, *rows: str, begun: int = 2, words: tuple[str, ...] = ()) -> Batch:
    """A run of these POs that was killed after some had ended; "wait" holds it up."""
    batch = Batch(folder, *rows, words=words)
    with batch.start() as run:
        wait_until(lambda: len([line for line in batch.lines() if line.event == "end"]) >= begun, "some have ended")
        batch.kill_everything(run)
    (folder / "go").touch()
    return batch


ROWS = ("A,", "B,", "C,wait", "D,wait", "E,", "F,")
LEFT_OUT = (("C", "wait"), ("D", "wait"), ("E", ""), ("F", ""))


@pytest.mark.once
def test_what_was_done_is_skipped_and_what_changed_in_the_file_is_run(tmp_path: Path) -> None:
    batch = halted(tmp_path, *ROWS)
    batch.write("N,", "E,", "B,", "A,0.001", "D,wait")  # A changed, N new, C and F removed, the rest has moved

    refused = batch.poqueue("run", "--resume", "r").check(2)
    assert "1 changed, 1 new, 2 removed POs" in refused.err and "--accept-changes" in refused.err
    ended = batch.finish("--accept-changes", "--json")

    resumed = json.loads(ended.out)["resumed"]
    assert {key: resumed[key] for key in ("changed", "new", "removed")} == {"changed": 1, "new": 1, "removed": 2}
    begun = batch.begun()
    assert begun.count("B") == 1 and begun.count("A") == 2 and begun.count("N") == 1 and "F" not in begun
    assert batch.statuses() == dict.fromkeys("NEBAD", "succeeded")
    assert [row["po_number"] for row in batch.results()] == ["N", "E", "B", "A", "D"]


@pytest.mark.slow
def test_a_refused_resume_changes_no_result(tmp_path: Path) -> None:
    batch = halted(tmp_path, *ROWS)
    batch.finish()
    before = {name: (batch.run_dir / name).read_bytes() for name in ("results.csv", "report.json", "run.json")}
    batch.write("A,", "X,")

    batch.poqueue("run", "--resume", "r").check(2)
    batch.poqueue("retry", "r").check(2)

    assert {name: (batch.run_dir / name).read_bytes() for name in before} == before


@pytest.mark.slow
def test_lines_that_only_moved_need_no_leave(tmp_path: Path) -> None:
    batch = halted(tmp_path, *ROWS)
    batch.write(*reversed(ROWS))

    batch.finish()

    batch.check()
    assert [row["po_number"] for row in batch.results()] == list("FEDCBA")


@pytest.mark.once
@pytest.mark.parametrize(
    "point",
    [
        "recovery.after_drop",
        *(pytest.param(point, marks=pytest.mark.slow) for point in ("recovery.after_record", "supervisor.after_add")),
    ],
)
def test_no_po_is_lost_when_the_edit_is_taken_back_after_a_crash(point: str, tmp_path: Path) -> None:
    """Killed when the tasks of the removed POs were gone, and nothing else had been written down."""
    batch = halted(tmp_path, *ROWS)
    batch.write("A,", "B,", "X,")
    with batch.resume("--accept-changes", env=Fault(tmp_path, point, 1).env) as run:
        run.process.wait(30)
        wait_until(lambda: not run.left(), "nothing is left", 5.0)
    assert (tmp_path / "once").exists()

    batch.write(*ROWS)
    batch.finish("--accept-changes")

    assert batch.statuses() == dict.fromkeys("ABCDEF", "succeeded")
    assert batch.begun().count("A") == 1


@pytest.mark.once
def test_a_limit_given_later_leaves_out_what_has_not_ended_and_nothing_else(tmp_path: Path) -> None:
    batch = Batch(tmp_path, "A,", "B,fail", *(",".join(row) for row in LEFT_OUT), words=("--retries", "0"))
    with batch.start() as run:
        batch.wait_begun(4, run)  # A and B have ended
        batch.kill_everything(run)
    (tmp_path / "go").touch()

    refused = batch.poqueue("run", "--resume", "r", "--limit", "1").check(2)
    told = "this run was started with another limit: 0 changed, 0 new, 0 removed POs, 4 left out by the limit;"
    assert told in refused.err
    ended = batch.finish("--limit", "1", "--accept-changes", "--json", code=1)
    batch.poqueue("run", "--resume", "r").check(5)

    assert "4 POs are left out by the limit" in ended.err and "no longer" not in ended.err
    assert json.loads(ended.out)["pos"] == {"succeeded": 1, "failed": 1, "not_run": 0}
    assert read_csv(batch.run_dir / "not_run.csv") == [{"po_number": name, "do": do} for name, do in LEFT_OUT]
    assert [row["status"] for row in batch.results()] == ["succeeded", "failed", *["not run"] * 4]

    batch.finish("--limit", "5", "--accept-changes", code=1)
    assert batch.statuses() == dict(zip("ABCDEF", ["succeeded", "failed", *["succeeded"] * 3, "not run"], strict=True))
    assert batch.begun().count("A") == batch.begun().count("B") == 1
    (tmp_path / "c.yaml").write_text("limit: 5\n")
    retried = batch.poqueue("retry", "r", "--config", "c.yaml", "--accept-changes", "--json").check(1)
    assert json.loads(retried.out)["resumed"]["requeued"] == 1 and json.loads(retried.out)["pos"]["succeeded"] == 4


@pytest.mark.once
def test_a_check_counts_what_would_run_whatever_has_ended_beyond_the_limit(tmp_path: Path) -> None:
    batch = halted(tmp_path, "A,", "B,", "C,wait", "D,wait")
    batch.write("C,wait", "D,wait", "A,", "B,")

    checked = batch.poqueue("run", "--resume", "r", "--check", "--limit", "2", "--accept-changes").check(0)
    refused = batch.poqueue("retry", "r", "--check", "--accept-changes").check(2)

    assert "4 rows: 2 POs to run" in checked.err
    assert "2 POs of this run have not ended yet" in refused.err


@pytest.mark.once
def test_what_has_ended_stays_though_a_new_row_pushes_it_beyond_the_limit(tmp_path: Path) -> None:
    batch = Batch(tmp_path, "A,", "B,", "C,", words=("--limit", "2"))
    with batch.start() as run:
        run.wait().check(0)
    batch.write("N,", "A,", "B,", "C,")

    batch.finish("--accept-changes")
    batch.poqueue("run", "--resume", "r").check(5)

    assert batch.statuses() == {"N": "succeeded", "A": "succeeded", "B": "succeeded", "C": "not run"}
    assert sorted(batch.begun()) == ["A", "B", "N"]


@pytest.mark.slow
def test_an_order_file_that_is_gone_is_replaced_by_the_runs_copy(tmp_path: Path) -> None:
    batch = halted(tmp_path, *ROWS)
    rows = batch.orders.read_text()
    batch.orders.unlink()

    batch.finish()

    batch.orders.write_text(rows)
    batch.check()


@pytest.mark.once
def test_a_run_whose_order_file_is_overwritten_is_told_where_its_own_orders_are(tmp_path: Path) -> None:
    batch = halted(tmp_path, *ROWS, "G,fail", words=("--retries", "0"))
    rows = batch.orders.read_text()
    batch.write("X,", "Y,")

    resumed = batch.poqueue("run", "--resume", "r").check(2)
    words = resumed.err.rpartition("to go on with what it was: poqueue ")[2]
    batch.poqueue(*words.split()).check(1)
    assert batch.statuses() == {**dict.fromkeys("ABCDEF", "succeeded"), "G": "failed"}

    retried = batch.poqueue("retry", "r").check(2)
    words = retried.err.rpartition("run them by themselves: poqueue ")[2]
    assert words.startswith("run r/failed.csv ")
    batch.orders.write_text(rows)
    batch.check()
    before = batch.begun().count("G")
    batch.poqueue(*shlex.split(words)).check(1)  # by the same processor, and not the default one, which would succeed
    assert batch.begun().count("G") == before + 1


@pytest.mark.once
@pytest.mark.parametrize("change", ["a row more", "gone"])
@pytest.mark.parametrize("is_resumed", [False, True])
def test_the_runs_copy_is_what_was_read_or_nothing_runs(change: str, is_resumed: bool, tmp_path: Path) -> None:
    """The order file changes, or goes, after it was read and before it is copied."""
    if is_resumed:
        batch = halted(tmp_path, *ROWS)
        batch.write("A,", "B,")
    else:
        batch = Batch(tmp_path / "home", "A,", "B,")
    fault = Fault(tmp_path, "recovery.before_take_up" if is_resumed else "batch.before_run_dir", 1, "stop")
    before = tree(batch.folder) if not is_resumed else set()
    kept = (batch.run_dir / "orders.csv").read_bytes() if is_resumed else b""

    start = batch.resume("--accept-changes", env=fault.env) if is_resumed else batch.start(env=fault.env)
    with start as run:
        wait_until(lambda: fault.has_struck and state(run.pid) == "T", "the orders are read")
        if change == "gone":
            batch.orders.unlink()
        else:
            batch.orders.write_text(batch.orders.read_text() + "C,\n")
        run.send(signal.SIGCONT)
        ended = run.wait().check(3)

    assert str(batch.orders) in ended.err and "nothing ran" in ended.err
    if is_resumed:
        assert (batch.run_dir / "orders.csv").read_bytes() == kept
        batch.write(*ROWS)
        batch.finish()
        batch.check()
    else:
        assert tree(batch.folder) == before - ({"orders.csv"} if change == "gone" else set())


@pytest.mark.parametrize("is_retry", [False, True])
def test_the_same_command_goes_on_and_a_config_and_options_are_joined_as_in_a_run(
    is_retry: bool, tmp_path: Path
) -> None:
    write_orders(tmp_path / "orders.csv", "A,1,give-up", header="PO,Sum,do")
    (tmp_path / "c.yaml").write_text("map: {po_number: PO}\noptions: {a: '1', b: '2'}\n")
    words = ["--config", "c.yaml", "--map", "amount=Sum", "--option", "a=0", *BEHAVE]
    poqueue("run", "orders.csv", *words, "--run-dir", "r", cwd=tmp_path).check(1)

    again = ["retry", "r"] if is_retry else ["run", "orders.csv", "--resume", "r"]
    poqueue(*again, *words, cwd=tmp_path).check(1 if is_retry else 5)
    poqueue(*again, "--accept-changes", "--option", "a=3", cwd=tmp_path).check(1 if is_retry else 5)

    record = json.loads((tmp_path / "r" / "run.json").read_text())
    assert record["settings"]["map"] == {"po_number": "PO", "amount": "Sum"}
    assert record["settings"]["options"] == record["options"] == {"a": "3", "b": "2"}


def test_a_field_without_a_header_leaves_the_map_when_its_column_is_gone(tmp_path: Path) -> None:
    write_orders(tmp_path / "orders.csv", "A,1,S,ok", header="po_number,Sum,supplier,do")
    poqueue(
        "run", "orders.csv", *BEHAVE, "--map", "supplier=supplier,amount=Sum", "--run-dir", "r", cwd=tmp_path
    ).check(0)
    write_orders(tmp_path / "orders.csv", "A,S,ok", "B,S,ok", header="po_number,supplier,do")
    again = ["run", "--resume", "r", "--accept-changes"]

    assert "no column 'Sum' for amount" in poqueue(*again, cwd=tmp_path).check(3).err
    poqueue(*again, "--map", "amount=", cwd=tmp_path).check(0)

    assert json.loads((tmp_path / "r" / "run.json").read_text())["settings"]["map"] == {"supplier": "supplier"}
    assert outcomes(tmp_path / "r") == {"A": "succeeded", "B": "succeeded"}


def test_another_processor_gets_none_of_the_options_that_the_one_before_had(tmp_path: Path) -> None:
    write_orders(tmp_path / "orders.csv", "A,give-up")
    poqueue("run", "orders.csv", *BEHAVE, "--option", "a=1", "--run-dir", "r", cwd=tmp_path).check(1)
    again = ["retry", "r", "--accept-changes"]

    poqueue(*again, *BEHAVE, "--option", "b=2", cwd=tmp_path).check(1)
    assert json.loads((tmp_path / "r" / "run.json").read_text())["options"] == {"a": "1", "b": "2"}
    poqueue(*again, "-p", "workers.processors.dossier:process", "--option", "c=3", cwd=tmp_path).check(0)
    assert json.loads((tmp_path / "r" / "run.json").read_text())["options"] == {"c": "3"}


def test_a_config_may_take_a_limit_away_from_a_run_that_goes_on(tmp_path: Path) -> None:
    write_orders(tmp_path / "orders.csv", "A,ok", "B,ok")
    (tmp_path / "c.yaml").write_text("limit: none\n")
    poqueue("run", "orders.csv", *BEHAVE, "--run-dir", "r", "--limit", "1", cwd=tmp_path).check(0)

    refused = poqueue("run", "--resume", "r", "--limit", "2", cwd=tmp_path).check(2)
    assert "this run was started with another limit: 0 changed, 1 new, 0 removed POs;" in refused.err
    assert "orders.csv is not" not in refused.err
    poqueue("run", "--resume", "r", "--config", "c.yaml", "--accept-changes", cwd=tmp_path).check(0)

    assert outcomes(tmp_path / "r") == {"A": "succeeded", "B": "succeeded"}


def test_a_command_given_now_wins_over_the_processor_of_a_config_and_that_over_the_command_of_before(
    tmp_path: Path,
) -> None:
    write_orders(tmp_path / "orders.csv", "A,ok")
    (tmp_path / "c.yaml").write_text("processor: sample_processors:behave\n")
    poqueue("run", "orders.csv", "--command", "echo {po_number}", "--run-dir", "r", cwd=tmp_path).check(0)
    again = ["run", "--resume", "r", "--config", "c.yaml"]

    poqueue(*again, "--command", "echo {po_number}", cwd=tmp_path).check(5)
    ended = poqueue(*again, "--app-dir", str(APP_DIR), cwd=tmp_path).check(2)

    assert "not by sample_processors:behave" in ended.err


def test_a_directory_that_is_gone_may_be_replaced_by_another(tmp_path: Path) -> None:
    write_orders(tmp_path / "orders.csv", "A,ok")
    (tmp_path / "old").symlink_to(APP_DIR)
    words = ["-p", "sample_processors:behave", "--app-dir", "old", "--run-dir", "r"]
    poqueue("run", "orders.csv", *words, cwd=tmp_path).check(0)
    (tmp_path / "old").unlink()

    assert "app_dir" in poqueue("run", "--resume", "r", cwd=tmp_path).check(2).err
    poqueue("run", "--resume", "r", "--app-dir", str(APP_DIR), cwd=tmp_path).check(5)


@pytest.mark.slow
def test_another_processor_is_refused(tmp_path: Path) -> None:
    batch = halted(tmp_path, *ROWS)
    other = ("-p", "tests.faults.witness:note")
    refused = batch.poqueue("run", "--resume", "r", "--option", "seconds=0.5").check(2)
    assert "--accept-changes" in refused.err and "witness:process" in refused.err
    assert batch.poqueue("run", "--resume", "r", *other).code == 2
    batch.finish()
    batch.check()


# ── a journal that is not there, or not ours ─────────────────────────────────────────────────────────────────────────


@pytest.mark.once
def test_six_distinct_messages_for_six_ways_of_having_no_journal(tmp_path: Path) -> None:
    batch = Batch(tmp_path, "A,", "B,")
    with batch.start() as run:
        run.wait().check(0)
    journal = batch.run_dir / "journal.sqlite"
    kept = journal.read_bytes()
    errors = {}

    def resume(name: str, code: int, *words: str) -> None:
        results = (batch.run_dir / "results.csv").read_bytes()
        errors[name] = batch.poqueue("run", "--resume", "r", *words).check(code).err
        assert (batch.run_dir / "results.csv").read_bytes() == results

    resume("through", 5)
    journal.unlink()
    resume("missing", 2)
    journal.write_bytes(b"")
    resume("empty", 2)
    journal.write_bytes(b"po_number,status\nA,done\n")
    resume("no SQLite", 2)
    journal.unlink()
    with sqlite3.connect(journal) as other:
        other.execute("CREATE TABLE t(x)")
    other.close()
    resume("not ours", 2)
    journal.write_bytes(kept)
    with sqlite3.connect(journal) as ours:
        ours.execute("PRAGMA user_version=99")
    ours.close()
    resume("another schema", 2)
    with sqlite3.connect(journal) as ours:
        ours.execute(f"INSERT INTO log(kind, at, error) VALUES({Kind.CONFIGURED:d}, 1.0, '{{\"shiny\": 1}}')")
    ours.close()
    resume("another setting", 2, "--accept-changes")

    words = {
        "through": "nothing to do", "missing": "there is no journal", "empty": "empty", "no SQLite": "no SQLite file",
        "not ours": "not a journal of poqueue", "another schema": "schema version 99",
        "another setting": "settings cannot be taken up: unknown: shiny\n",
    }  # fmt: skip
    for name, text in words.items():
        assert [other for other, said in errors.items() if text in said] == [name]


@pytest.mark.once
def test_a_run_that_has_a_journal_does_not_go_on_without_it(tmp_path: Path) -> None:
    batch = Batch(tmp_path, "A,", "B,fail", words=("--retries", "0"))
    with batch.start() as run:
        run.wait().check(1)
    (tmp_path / "c.yaml").write_text("journal: false\n")
    before = {name: (batch.run_dir / name).read_bytes() for name in ("results.csv", "report.json", "run.json")}

    for words in (["run", "--resume"], ["retry"]):
        for option in (["--no-journal"], ["--config", "c.yaml"]):
            refused = batch.poqueue(*words, "r", *option).check(2)
            assert "journal cannot be off" in refused.err and "not ended" not in refused.err

    assert {name: (batch.run_dir / name).read_bytes() for name in before} == before
    batch.poqueue("run", "--resume", "r").check(5)
    assert sorted(batch.begun()) == ["A", "B"]


@pytest.mark.slow
def test_a_run_record_of_another_version_is_refused(tmp_path: Path) -> None:
    batch = halted(tmp_path, *ROWS)
    path = batch.run_dir / "run.json"
    kept = path.read_text()
    path.write_text(json.dumps(json.loads(kept) | {"version": 99}))
    assert "version 99" in batch.poqueue("run", "--resume", "r").check(2).err
    path.write_text(kept)
    batch.finish()


# ── retry ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.once
def test_retry_runs_what_failed_and_nothing_else(tmp_path: Path) -> None:
    batch = Batch(tmp_path, "A,", "B,fail_once", "C,fail", "D,", words=("--retries", "0"))
    with batch.start() as run:
        run.wait().check(1)
    assert batch.statuses() == {"A": "succeeded", "B": "failed", "C": "failed", "D": "succeeded"}

    checks = [batch.poqueue(*words, "--check") for words in (["retry", "r"], ["run", "--resume", "r"])]
    assert "4 rows: 2 of 4 POs to run" in checks[0].check(0).err and "0 of 4 POs to run" in checks[1].check(5).err
    retried = batch.poqueue("retry", "r", "--json")
    assert retried.code == 1 and json.loads(retried.out)["resumed"]["requeued"] == 2

    batch.check()
    assert sorted(batch.begun()) == ["A", "B", "B", "C", "C", "D"]
    assert batch.statuses() == {"A": "succeeded", "B": "succeeded", "C": "failed", "D": "succeeded"}
    assert [line.attempt for line in batch.lines() if line.po == "C" and line.event == "begin"] == [1, 2]


@pytest.mark.parametrize("option", ["--limit", "--run-dir"])
def test_retry_has_no_place_for_an_option_that_could_not_hold(option: str, tmp_path: Path) -> None:
    batch = Batch(tmp_path, "A,give-up", "B,give-up")
    with batch.start("--retries", "0") as run:
        run.wait().check(1)
    begun = batch.begun()

    refused = batch.poqueue("retry", "r", option, "1").check(2)

    assert f"{option} cannot be given here: " in refused.err and batch.begun() == begun
    assert option not in batch.poqueue("retry", "--help").check(0).out
    assert option in batch.poqueue("run", "--help").check(0).out


@pytest.mark.parametrize(("key", "again"), [("limit", "retry"), ("run_dir", "retry"), ("run_dir", "run --resume")])
def test_nor_has_a_run_that_goes_on_for_a_config_that_names_another_limit_or_place(
    key: str, again: str, tmp_path: Path
) -> None:
    write_orders(tmp_path / "orders.csv", "A,give-up", "B,ok", "C,ok")
    for name, limit, run_dir in (("same", 2, "r"), ("other", 1, "elsewhere")):
        (tmp_path / f"{name}.yaml").write_text(f"{key}: {limit if key == 'limit' else run_dir}\n")
    poqueue("run", "orders.csv", *BEHAVE, "--limit", "2", "--run-dir", "r", cwd=tmp_path).check(1)
    before = (tmp_path / "r" / "run.json").read_bytes()

    refused = poqueue(*again.split(), "r", "--config", "other.yaml", cwd=tmp_path).check(2)

    assert f"{key} (other.yaml line 1) cannot be given here: " in refused.err
    assert (tmp_path / "r" / "run.json").read_bytes() == before
    poqueue(*again.split(), "r", "--config", "same.yaml", cwd=tmp_path).check(1 if again == "retry" else 5)


@pytest.mark.slow
def test_limits_given_to_retry_hold_for_the_old_tasks(tmp_path: Path) -> None:
    words = ("--retries", "0", "--timeout", "0.4", "--grace", "0.2", "--retry-delay", "0.05")
    batch = Batch(tmp_path, "A,0.8", "B,fail", words=words)
    with batch.start() as run:
        run.wait().check(1)
    assert batch.statuses() == {"A": "failed", "B": "failed"}

    assert batch.poqueue("retry", "r", "--timeout", "30", "--retries", "2").code == 1

    batch.check()
    assert batch.statuses() == {"A": "succeeded", "B": "failed"}
    assert batch.begun().count("A") == 2 and batch.begun().count("B") == 4


@pytest.mark.slow
def test_an_unfinished_run_is_not_retried(tmp_path: Path) -> None:
    batch = halted(tmp_path, *ROWS)
    refused = batch.poqueue("retry", "r").check(2)
    assert "have not ended yet" in refused.err and "--resume" in refused.err
    batch.finish()
    batch.check()


@pytest.mark.slow
def test_a_retry_that_is_killed_is_resumed(tmp_path: Path) -> None:
    batch = Batch(tmp_path, "A,", "B,fail_once", "C,fail_once", "D,fail_once", words=("--retries", "0"))
    with batch.start() as run:
        run.wait().check(1)
    fault = Fault(tmp_path, "reaper.before_release", 1)
    with_kill = {**fault.env, "POQUEUE_FAILPOINT": "worker.begun:1:sleep=30"}
    with started("retry", "r", cwd=tmp_path, env=with_kill) as run:
        wait_until(lambda: fault.has_struck, "a PO is in hand")
        batch.kill_everything(run)
    batch.finish()

    batch.check()
    assert batch.statuses() == dict.fromkeys("ABCD", "succeeded")
    assert batch.begun().count("A") == 1


def test_a_retry_that_was_killed_before_its_report_is_told_by_the_exit_code_of_its_resume(tmp_path: Path) -> None:
    batch = Batch(tmp_path, "A,", "B,fail_once", words=("--retries", "0"))
    with batch.start() as run:
        run.wait().check(1)
    env = {"POQUEUE_TESTING": "1", "POQUEUE_FAILPOINT": "batch.before_report:1:kill"}
    assert batch.poqueue("retry", "r", env=env).code == -signal.SIGKILL
    assert runs(batch) == ["crashed"]

    batch.finish(code=0)

    batch.finish(code=5)
    assert batch.statuses() == dict.fromkeys("AB", "succeeded") and batch.begun().count("B") == 2


@pytest.mark.slow
@pytest.mark.parametrize("nth", [4, 5, 6, 7])
def test_a_manager_killed_while_a_retry_begins(nth: int, tmp_path: Path) -> None:
    """The failed POs are asked for again twice when the first answer is lost."""
    batch = Batch(tmp_path, "A,", "B,fail_once", "C,fail_once", words=("--retries", "0"))
    with batch.start() as run:
        run.wait().check(1)
    fault = Fault(tmp_path, "service.before_answer", nth)
    batch.poqueue("retry", "r", env=fault.env).check(0)

    assert fault.has_struck
    batch.check()
    assert batch.statuses() == dict.fromkeys("ABC", "succeeded")


@pytest.mark.slow
def test_a_po_is_told_its_attempt_after_ctrl_c_and_has_used_no_retry(tmp_path: Path) -> None:
    batch = Batch(tmp_path, "A,wait", "B,", words=("--retries", "0"))
    with batch.start() as run:
        wait_until(lambda: {line.po for line in batch.lines()} == {"A", "B"}, "both have begun")
        run.send(signal.SIGINT)
        wait_until(lambda: run.said("no new PO starts"), "the first is taken")
        run.send(signal.SIGINT)
        run.wait().check(130)
    assert runs(batch)[0] == "interrupted"
    (tmp_path / "go").touch()
    batch.finish()

    batch.check()
    assert [line.attempt for line in batch.lines() if line.po == "A" and line.event == "begin"] == [1, 2]
    assert next(task for task in batch.report()["tasks"] if task["po_number"] == "A")["retry_count"] == 0


def runs(batch: Batch) -> list[str]:
    found = json.loads(batch.poqueue("runs", "--dir", str(batch.folder), "--json").check(0).out)
    return [line["state"] for line in found]


@pytest.mark.slow
def test_runs_tells_the_states_apart(tmp_path: Path) -> None:
    batch = Batch(tmp_path, "A,wait", "B,wait", "C,fail", "D,", words=("--retries", "0", "--stop-grace", "0"))
    with batch.start() as run:
        batch.wait_begun(2)
        assert runs(batch) == ["running"]
        batch.kill_everything(run)
    assert runs(batch) == ["crashed"]
    with batch.resume() as run:
        batch.wait_begun(4)
        run.send(signal.SIGINT)
        run.wait().check(130)
    assert runs(batch) == ["interrupted"]
    batch.finish("--halt", "now,fail=1", "-j", "4", code=4)  # A and B wait while C fails
    assert runs(batch) == ["halted"]
    (tmp_path / "go").touch()
    batch.finish(code=1)
    assert runs(batch) == ["finished"]
    batch.poqueue("run", "--resume", "r").check(5)
    assert runs(batch) == ["finished"]
    batch.check()
