"""Failures, retries and time limits of whole batches, what processors say, and run_batch from Python."""

import json
import shlex
import textwrap
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.integration.console import (
    BEHAVE,
    Ended,
    outcomes,
    poqueue,
    python,
    read_csv,
    started,
    tree,
    wait_until,
    write_orders,
)
from tests.integration.http_server import MisbehavingServer, answer
from workers.outcome_text import MOST_COMPARED
from workers.processors.names import safe_name


def run_orders(tmp_path: Path, *rows: str, options: tuple[str, ...] = ()) -> Ended:
    write_orders(tmp_path / "orders.csv", *rows)
    words = ("run", "orders.csv", *BEHAVE, "--option", f"folder={tmp_path}", "--run-dir", "r", "-j", "2")
    return poqueue(*words, *options, cwd=tmp_path)


def trail(tmp_path: Path) -> dict[str, list[dict[str, Any]]]:
    """What each PO left behind, in order."""
    found = defaultdict(list)
    for line in (tmp_path / "trail").read_text().splitlines():
        record = json.loads(line)
        found[record["po"]].append(record)
    return found


def result(tmp_path: Path, po_number: str) -> dict[str, str]:
    return next(row for row in read_csv(tmp_path / "r" / "results.csv") if row["po_number"] == po_number)


def log_lines(tmp_path: Path) -> list[dict[str, Any]]:
    """run.log, each line parsed."""
    return [json.loads(line) for line in (tmp_path / "r" / "run.log").read_text(encoding="utf-8").split("\n") if line]


# ── workers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def count_started(tmp_path: Path) -> int:
    """How many workers the run has had."""
    return sum(line["message"].startswith("worker started") for line in log_lines(tmp_path))


def test_no_more_workers_are_started_than_there_are_pos(tmp_path: Path) -> None:
    run_orders(tmp_path, "A,ok", "B,ok", "C,ok", options=("-j", "8")).check(0)

    assert count_started(tmp_path) == 3


def test_a_resumed_run_starts_no_more_workers_than_it_has_pos_left(tmp_path: Path) -> None:
    rows = [f"{number},fail-until 2" for number in range(4)]
    run_orders(tmp_path, *rows, "A,ok", "B,ok", options=("--retries", "0", "-j", "1")).check(1)
    before = count_started(tmp_path)

    poqueue("retry", "r", "-j", "8", cwd=tmp_path).check(0)

    assert count_started(tmp_path) == before + 4


def test_a_lost_worker_is_replaced_if_there_is_a_po_for_it(tmp_path: Path) -> None:
    options = ("-j", "8", "--timeout", "300ms", "--retry-delay", "0s")
    run_orders(tmp_path, "A,hang-once", options=options).check(0)

    assert count_started(tmp_path) == 2


# ── POs of one number ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("processor", ["dossier:process", "download:Download"])
def test_each_of_several_pos_with_one_number_keeps_its_files(processor: str, tmp_path: Path) -> None:
    with MisbehavingServer() as server:
        urls = [server.on(f"/{name}", answer(name.encode())) for name in ("one", "two", "three")]
        rows = (f"{number},{url}" for number, url in zip(("A", "B", "A"), urls, strict=True))
        write_orders(tmp_path / "orders.csv", *rows, header="po_number,url")
        words = ("run", "orders.csv", "-p", f"workers.processors.{processor}", "--duplicates", "separate")
        poqueue(*words, "--run-dir", "r", cwd=tmp_path).check(0)

    found = read_csv(tmp_path / "r" / "results.csv")
    assert len({row["folder"] for row in found}) == 3
    assert found[1]["folder"] == safe_name("B")
    contents = [Path(json.loads(row["downloads"])[0]).read_text() for row in found]
    assert [name in content for name, content in zip(("one", "two", "three"), contents, strict=True)] == [True] * 3


# ── the order of POs ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_without_priorities_pos_run_in_the_order_of_the_file(tmp_path: Path) -> None:
    write_orders(tmp_path / "orders.csv", "A,ok,9", "B,ok,1", "C,ok,5", header="po_number,do,priority")
    words = ("run", "orders.csv", *BEHAVE, "--option", f"folder={tmp_path}", "--run-dir", "r", "-j", "1")

    poqueue(*words, "--no-priority", cwd=tmp_path).check(0)

    assert list(trail(tmp_path)) == ["A", "B", "C"]


# ── failures and retries ─────────────────────────────────────────────────────────────────────────────────────────────


def test_without_priorities_a_column_of_that_name_is_one_like_any_other(tmp_path: Path) -> None:
    write_orders(tmp_path / "orders.csv", "A,ok,High", "B,ok,", header="po_number,do,Priority")
    words = ("run", "orders.csv", *BEHAVE, "--option", f"folder={tmp_path}", "--run-dir", "r", "-j", "1")

    refused = poqueue(*words, "--check", cwd=tmp_path).check(3)
    poqueue(*words, "--no-priority", cwd=tmp_path).check(0)

    assert "priority must be a whole number 1 to 10 (--no-priority ignores the column), got 'High'" in refused.err
    assert outcomes(tmp_path / "r") == {"A": "succeeded", "B": "succeeded"}


def test_give_up_fails_at_once_and_anything_else_is_retried(tmp_path: Path) -> None:
    ended = run_orders(
        tmp_path, "G,give-up", "F,fail", "U,fail-until 3", "O,ok", options=("--retries", "2", "--retry-delay", "50ms")
    ).check(1)

    rows = {number: result(tmp_path, number) for number in "GFUO"}
    assert {number: (row["status"], row["attempts"]) for number, row in rows.items()} == {
        "G": ("failed", "1"), "F": ("failed", "3"), "U": ("succeeded", "3"), "O": ("succeeded", "1"),
    }  # fmt: skip
    assert rows["G"]["error"] == "GiveUp: there is no such order"
    assert rows["F"]["error"] == "RuntimeError: it went wrong"
    assert "1 x GiveUp" in ended.err and "3 x RuntimeError: it went wrong" in ended.err


def test_failures_are_counted_by_what_they_say(tmp_path: Path) -> None:
    says = ("http 429", "http 503", "http 503", "row 7", "row 8", "row 9")
    rows = [f"{number},fail {text}" for number, text in enumerate(says)]
    ended = run_orders(tmp_path, *rows, options=("--retries", "1", "--retry-delay", "0s")).check(1)

    told = [line.strip() for line in ended.err.splitlines() if " x " in line]
    assert told == [
        "6 x RuntimeError: it went wrong row #",
        "4 x RuntimeError: it went wrong http 503",
        "2 x RuntimeError: it went wrong http 429",
    ]


def test_of_thousands_of_messages_the_most_frequent_are_counted_and_the_others_owned_up_to(tmp_path: Path) -> None:
    rows = [f"P{number},fail row {number}" for number in range(MOST_COMPARED)]
    ended = run_orders(tmp_path, *rows, "A,fail it is shut", "B,fail it is shut", options=("--retries", "0")).check(1)

    told = [line.strip() for line in ended.err.splitlines() if " x " in line or " more, " in line]
    assert told == [
        f"{MOST_COMPARED - 1} x RuntimeError: it went wrong row #",
        "2 x RuntimeError: it went wrong it is shut",
        "… and 1 more, whose messages were not compared",
    ]


def test_the_seconds_of_a_failed_po_are_those_of_its_last_attempt(tmp_path: Path) -> None:
    ended = run_script(
        tmp_path,
        """
        import time
        from pathlib import Path

        from workers import GiveUp, run_batch

        def process(po):
            begun = time.monotonic()
            time.sleep(0.2)
            Path(po["po_number"]).write_text(str(time.monotonic() - begun))
            raise GiveUp("no") if po["po_number"] == "A" else ValueError("no")

        if __name__ == "__main__":
            print(run_batch("orders.csv", process, workers=2, run_dir="r", max_retries=1, retry_delay=0).exit_code)
        """,
    ).check(0)

    assert ended.out == "1\n"
    for number in ("A", "B"):
        took_s = float((tmp_path / number).read_text())
        assert float(result(tmp_path, number)["seconds"]) >= round(took_s, 3)


def test_a_retry_never_starts_before_its_delay_and_the_delay_doubles(tmp_path: Path) -> None:
    run_orders(tmp_path, "F,fail", options=("--retries", "3", "--retry-delay", "200ms", "--max-retry-delay", "400ms"))

    records = trail(tmp_path)["F"]
    begins = [record["at"] for record in records if record["event"] == "begin"]
    ends = [record["at"] for record in records if record["event"] == "end"]
    waits = [begin - end for begin, end in zip(begins[1:], ends, strict=False)]
    assert len(begins) == 4
    assert [wait >= least for wait, least in zip(waits, (0.2, 0.4, 0.4), strict=True)] == [True] * 3


def test_retry_later_waits_as_long_as_it_asked(tmp_path: Path) -> None:
    run_orders(tmp_path, "L,later 0.7", "O,ok", options=("--retries", "1", "--retry-delay", "0s")).check(0)

    _, first_end, second_begin, _ = (record["at"] for record in trail(tmp_path)["L"])
    assert second_begin - first_end >= 0.7
    assert result(tmp_path, "L")["attempts"] == "2"


def test_retry_later_uses_up_retries_as_well(tmp_path: Path) -> None:
    run_orders(tmp_path, "L,later 0", options=("--retries", "0")).check(1)

    assert "RetryLater: the server asked for a pause" in result(tmp_path, "L")["error"]


def test_a_number_too_long_for_other_programs_fails_its_po_and_spoils_nothing_else(tmp_path: Path) -> None:
    run_orders(tmp_path, "A,ok", "N,long-number", "B,ok", options=("--retries", "0", "-j", "1")).check(1)

    assert outcomes(tmp_path / "r") == {"A": "succeeded", "N": "failed", "B": "succeeded"}
    assert result(tmp_path, "N")["error"].startswith("ResultNotSerializable: result['n'] is a int of more than 4,000")


def test_a_po_that_removes_the_current_folder_with_the_order_file_in_it_spoils_no_report(tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "orders.csv").write_text(f"po_number,folder\nA,{here}\n")

    words = ("run", "orders.csv", "-j", "1", "--command", "rm -r {folder}", "--run-dir", str(tmp_path / "r"))
    ended = poqueue(*words, cwd=here)

    assert ended.code == 0, ended.err
    assert json.loads((tmp_path / "r" / "report.json").read_text())["run"]["orders"] == str(here / "orders.csv")


def test_a_hung_po_is_killed_and_retried_on_another_worker(tmp_path: Path) -> None:
    run_orders(
        tmp_path, "H,hang-once", *(f"O{number},ok" for number in range(4)),
        options=("--timeout", "500ms", "--retries", "1", "--retry-delay", "0s"),
    ).check(0)  # fmt: skip

    begins = [record for record in trail(tmp_path)["H"] if record["event"] == "begin"]
    assert [record["attempt"] for record in begins] == [1, 2]
    assert begins[0]["pid"] != begins[1]["pid"] and begins[0]["worker"] != begins[1]["worker"]
    killed = [line for line in log_lines(tmp_path) if "_hang" in line.get("stack", "")]
    assert killed and killed[0]["po_number"] == "H"  # where it hung is on record


def test_ten_hung_pos_of_two_hundred_harm_nobody_else(tmp_path: Path) -> None:
    rows = [f"P{number},{'hang' if number % 20 == 7 else 'ok'}" for number in range(200)]

    ended = run_orders(
        tmp_path, *rows, options=("--timeout", "500ms", "--retries", "0", "--grace", "500ms", "--json")
    ).check(1)

    ends = outcomes(tmp_path / "r")
    assert {number for number, status in ends.items() if status == "failed"} == {f"P{n}" for n in range(7, 200, 20)}
    assert sum(status == "succeeded" for status in ends.values()) == 190
    assert all(result(tmp_path, f"P{n}")["error"].startswith("TaskTimeout") for n in range(7, 200, 20))
    begins = [record["po"] for records in trail(tmp_path).values() for record in records if record["event"] == "begin"]
    assert sorted(begins) == sorted(ends)  # each of them once: nobody was started twice for another's fault
    seconds, ideal = json.loads(ended.out)["seconds"], 10 * 0.5 / 2
    print(f"10 of 200 POs hang for 0.5 s on 2 workers: {seconds:.2f} s, {seconds / ideal:.2f} times the ideal")


def test_a_slow_po_holds_nobody_else_up(tmp_path: Path) -> None:
    write_orders(tmp_path / "orders.csv", *(f"P{n:03},{'wait' if n == 200 else 'ok'}" for n in range(350)))
    words = ("run", "orders.csv", *BEHAVE, "--option", f"folder={tmp_path}", "--run-dir", "r", "-j", "2")

    with started(*words, cwd=tmp_path) as run:
        log = tmp_path / "r" / "run.log"
        wait_until(lambda: log.exists() and log.read_text().count('"completed"') == 349, "all others are on record")
        (tmp_path / "go").touch()
        run.wait().check(0)

    assert {len(records) for records in trail(tmp_path).values()} == {2}  # each PO began once and ended once


# ── what processors say ──────────────────────────────────────────────────────────────────────────────────────────────


def test_all_output_is_in_the_log_with_its_po_and_attempt(tmp_path: Path) -> None:
    pos = [f"P{number}" for number in range(12)]
    options = ("--retries", "1", "--retry-delay", "0s")

    ended = run_orders(tmp_path, *(f"{po},say {'again' if po == 'P3' else ''}" for po in pos), options=options).check(0)

    said = [line for line in log_lines(tmp_path) if line["logger"] == "workers.output"]
    for po in pos:
        for attempt in (1, 2) if po == "P3" else (1,):
            mine = [line for line in said if line["po_number"] == po and line["attempt"] == attempt]
            texts = {line["message"] for line in mine}
            assert texts == {f"printed {po}", f"complained {po}", f"my.site: logged {po}", f"child {po}"}
            assert len({line["worker_id"] for line in mine}) == 1 and len({line["task_id"] for line in mine}) == 1
    assert len(said) == 4 * 13
    assert all(list(line)[:5] == ["time", "level", "logger", "message", "run"] for line in log_lines(tmp_path))
    assert {line["level"] for line in said if "logged" in line["message"]} == {"WARNING"}
    assert "printed" not in ended.err  # that is for -vv
    told = [line for line in log_lines(tmp_path) if line["message"].startswith(("attempt", "completed"))]
    assert [line.get("po_number") for line in told].count(None) == 0
    assert "P3" in next(line for line in ended.err.splitlines() if "will be retried" in line)


def test_a_po_cannot_forge_a_line_of_the_log(tmp_path: Path) -> None:
    nasty = 'X\n12:00:00 error   [w9.9] forged \x1b[2J\u202e"}'
    quoted = nasty.replace('"', '""')

    ended = run_orders(tmp_path, f'"{quoted}",say', f'"Y","fail {quoted}"', options=("--retries", "0", "-vv")).check(1)

    assert "\x1b" not in ended.err and "\u202e" not in ended.err
    assert not [line for line in ended.err.splitlines() if line.startswith("12:00:00 error   [w9.9] forged")]
    assert all(isinstance(line, dict) for line in log_lines(tmp_path))
    assert [line for line in log_lines(tmp_path) if "forged" in line["message"]]
    [line] = (tmp_path / "r" / "manager.log").read_text(encoding="utf-8").splitlines()
    assert "PO Y" in line and "forged \\x1b[2J\\u202e" in line and line.isprintable()


@pytest.mark.once
def test_verbosity_shows_more_each_time(tmp_path: Path) -> None:
    write_orders(tmp_path / "orders.csv", "A,say", "B,fail")
    words = ("run", "orders.csv", *BEHAVE, "-j", "1", "--retries", "0")

    options = [(), ("-v",), ("-vv",), ("-q",), ("-vv", "--log-format", "json")]
    said = [poqueue(*words, *more, cwd=tmp_path).err for more in options]

    quiet, life, every, silent, as_json = said
    assert not any("Traceback" in text for text in said[:4])
    assert "failed for good" in quiet and "worker started" not in quiet
    assert "worker started" in life and "completed" not in life
    assert "worker started" in every and "completed" in every and "printed A" in every
    assert "failed for good" in silent and "running" not in silent
    assert any(json.loads(line)["message"] == "printed A" for line in as_json.splitlines() if line.startswith("{"))


# ── from Python ──────────────────────────────────────────────────────────────────────────────────────────────────────


def run_script(tmp_path: Path, text: str) -> Ended:
    script = tmp_path / "my_batch.py"
    script.write_text(textwrap.dedent(text))
    write_orders(tmp_path / "orders.csv", "A,1", "B,2", "A,3", header="po_number,amount")
    return python(script, cwd=tmp_path)


def test_a_script_may_define_its_processor_itself(tmp_path: Path) -> None:
    ended = run_script(
        tmp_path,
        """
        from workers import run_batch

        def process(po):
            print("to the log, not to stdout")
            return {"doubled": sum(2 * int(row["amount"]) for row in po["rows"])}

        if __name__ == "__main__":
            report = run_batch("orders.csv", process, workers=2, task_timeout=60, run_dir="r")
            print(report.exit_code, report.reason, report.accounts.succeeded, report.tasks, report.accounts.balances)
        """,
    ).check(0)

    assert ended.out == "0 done 3 {'succeeded': 2, 'failed': 0, 'not_run': 0} True\n"
    assert ended.err == ""
    assert {row["po_number"]: row["doubled"] for row in read_csv(tmp_path / "r" / "results.csv")} == {
        "A": "8",
        "B": "4",
    }


@pytest.mark.parametrize("start_method", ["spawn", "forkserver", "fork"])
def test_a_time_limit_that_a_script_sets_for_its_sockets_is_none_for_ours(start_method: str, tmp_path: Path) -> None:
    ended = run_script(
        tmp_path,
        f"""
        import socket

        from workers import run_batch

        socket.setdefaulttimeout(30)

        def process(po):
            return {{}}

        if __name__ == "__main__":
            report = run_batch("orders.csv", process, workers=2, run_dir="r", start_method="{start_method}")
            print(report.exit_code, report.message)
        """,
    ).check(0)

    assert ended.out == "0 \n", ended.err


def test_the_log_is_whole_though_a_script_sets_up_its_own_logging_later(tmp_path: Path) -> None:
    run_script(
        tmp_path,
        """
        import logging.config

        from workers import run_batch

        def process(po):
            print("hello")

        if __name__ == "__main__":
            logging.config.dictConfig({"version": 1})  # which disables all loggers that there are
            run_batch("orders.csv", process, workers=1, run_dir="r")
        """,
    ).check(0)

    assert [line["po_number"] for line in log_lines(tmp_path) if line["message"] == "hello"] == ["A", "B"]
    assert count_started(tmp_path) == 1


@pytest.mark.parametrize("start_method", ["spawn", "fork"])
def test_what_loggers_of_ours_say_in_a_worker_is_its_output_and_in_the_manager_its_log(
    start_method: str, tmp_path: Path
) -> None:
    run_script(
        tmp_path,
        f"""
        import logging

        from workers import run_batch

        def process(po):
            logging.getLogger("workers.mine").info("hello")
            raise ValueError("it does not work")

        if __name__ == "__main__":
            run_batch("orders.csv", process, workers=1, run_dir="r", max_retries=0, start_method="{start_method}")
        """,
    ).check(0)

    lines = [line for line in log_lines(tmp_path) if line["message"].endswith("hello")]
    assert [(line["logger"], line["message"]) for line in lines] == [("workers.output", "workers.mine: hello")] * 2
    assert [line["po_number"] for line in lines] == ["A", "B"]
    assert (tmp_path / "r" / "manager.log").read_text().count("it does not work") == 2


def test_a_script_may_define_a_class(tmp_path: Path) -> None:
    ended = run_script(
        tmp_path,
        """
        from pathlib import Path
        from workers import GiveUp, run_batch

        class Site:
            def setup(self, context):
                self.session = f"session of {context.worker_id}"
            def process(self, po, context):
                if po["po_number"] == "B":
                    raise GiveUp("not here")
                return {"session": self.session, "greeting": context.options["greeting"]}
            def teardown(self):
                Path("torn-down").touch()

        if __name__ == "__main__":
            report = run_batch("orders.csv", Site, jobs=1, run_dir="r", options={"greeting": "hello"})
            print(report.exit_code, report.tasks)
        """,
    ).check(0)

    assert ended.out == "1 {'succeeded': 1, 'failed': 1, 'not_run': 0}\n"
    row = result(tmp_path, "A")
    assert (row["session"], row["greeting"]) == ("session of w1.1", "hello")
    assert (tmp_path / "torn-down").exists()


@pytest.mark.once
@pytest.mark.parametrize("run_dir", ["r", None])
@pytest.mark.parametrize("processor", ["process", '"my_batch:process"', "None"])
def test_a_script_without_a_guard_is_told_so_once(processor: str, run_dir: str | None, tmp_path: Path) -> None:
    ended = run_script(
        tmp_path,
        f"""
        from workers import run_batch

        def process(po):
            return {{}}

        report = run_batch("orders.csv", {processor}, workers=2, run_dir={run_dir!r}, app_dir=".")
        """,
    )

    assert ended.code != 0
    assert '__name__ == "__main__"' in ended.err
    assert ended.err.count("Traceback") <= 1, ended.err
    assert len(ended.err) < 3000, ended.err
    assert len(list(tmp_path.glob("runs/*"))) <= 1


GIVEN = """
    from workers import run_batch
    {imports}

    class Fails:
        def __call__(self, po):
            raise ValueError("of an object")

    def process(po):
        raise ValueError("of the script")

    if __name__ == "__main__":
        settings = {{"max_retries": 0, "retry_delay": 0, "options": {{"a": "1"}}}}
        print(run_batch("orders.csv", {target}, jobs=1, run_dir="r", **settings).exit_code)
    """


def words_again(report: str) -> list[str]:
    """The command that a report prints for its failures, after `poqueue`."""
    line = next(line for line in report.splitlines() if "run the failures again: poqueue " in line)
    return shlex.split(line.partition("again: poqueue ")[2])


@pytest.mark.once
@pytest.mark.parametrize(
    ("target", "name"), [("process", "my_batch:process"), ("site.Page.process", "shop.site:Page.process")]
)
def test_a_run_of_a_function_goes_on_from_the_command_line_by_its_name(target: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").touch()
    page = "class Page:\n    @staticmethod\n    def process(po): raise ValueError('of a module')\n"
    (tmp_path / "shop" / "site.py").write_text(page, encoding="utf-8")
    imports = "from shop import site" if "site" in target else ""
    (elsewhere := tmp_path / "elsewhere").mkdir()

    assert run_script(tmp_path, GIVEN.format(imports=imports, target=target)).check(0).out == "1\n"
    retried = poqueue(*words_again(poqueue("report", "../r", cwd=elsewhere).out), cwd=elsewhere).check(1)
    shown = json.loads((tmp_path / "r" / "run.json").read_text(encoding="utf-8"))

    assert " x ValueError: of " + ("a module" if "site" in target else "the script") in retried.err
    assert (shown["processor"], shown["settings"]["processor"]) == (name, name)
    assert shown["options"] == {"a": "1"}


@pytest.mark.once
def test_a_run_of_an_object_without_a_name_goes_on_with_nothing_else_unless_that_is_named(tmp_path: Path) -> None:
    run_script(tmp_path, GIVEN.format(imports="", target="Fails()")).check(0)
    record = (tmp_path / "r" / "run.json").read_bytes()

    for words in (["retry", "r"], ["run", "--resume", "r"], ["retry", "r", "--check"]):
        for more in ([], ["--accept-changes"]):
            assert "-p MODULE:ATTR --app-dir DIR" in poqueue(*words, *more, cwd=tmp_path).check(2).err
    (tmp_path / "goes_on.py").write_text("from workers import run_batch\nrun_batch(resume='r', accept_changes=True)\n")
    refused = python(tmp_path / "goes_on.py", cwd=tmp_path)
    again = words_again(poqueue("report", "r", cwd=tmp_path).out)

    assert "-p MODULE:ATTR --app-dir DIR" in refused.err
    assert (tmp_path / "r" / "run.json").read_bytes() == record
    filled_in = [{"MODULE:ATTR": "my_batch:process", "DIR": "."}.get(word, word) for word in again]
    for named in (filled_in, ["retry", "r"]):
        assert " x ValueError: of the script" in poqueue(*named, cwd=tmp_path).check(1).err


@pytest.mark.once
def test_a_script_without_a_guard_starts_no_batch_where_its_processor_is_imported(tmp_path: Path) -> None:
    run_script(
        tmp_path,
        """
        from workers import run_batch

        def process(po):
            raise ValueError("of the script")

        run_batch("orders.csv", process, jobs=1, start_method="fork", max_retries=0)
        """,
    ).check(0)
    before = tree(tmp_path)

    refused = poqueue("retry", cwd=tmp_path).check(2)

    assert "my_batch:process" in refused.err and 'if __name__ == "__main__"' in refused.err
    assert {path for path in tree(tmp_path) - before if not path.startswith("__pycache__")} == set()


@pytest.mark.once
@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("run_batch('orders.csv', lambda po: {})", "define it at the top level of a module"),
        ("run_batch('orders.csv', 42)", "is a int"),
        ("run_batch('orders.csv', 'my_batch')", "module:attribute"),
        ("run_batch('orders.csv', 'no_such:process')", "there is no module 'no_such'"),
        ("run_batch('missing.csv', process)", "missing.csv: no such file"),
        ("run_batch('orders.csv', process, timeout=5)", "unknown setting 'timeout' (did you mean task_timeout?)"),
        ("run_batch('orders.csv', process, jobs=0)", "jobs must be a whole number"),
        ("run_batch('orders.csv', process, task_timeout=-1)", "task_timeout must be a duration"),
        ("run_batch('orders.csv', process, jobs=1, workers=2)", "jobs"),
        ("run_batch('orders.csv', process, check=True)", "check can only be given on the command line, as --check"),
        (
            "run_batch('orders.csv', process, progress=True)",
            "progress must be an object, such as make_progress(sys.stderr)",
        ),
    ],
)
def test_a_mistake_in_a_call_is_one_of_our_errors_and_runs_nothing(call: str, said: str, tmp_path: Path) -> None:
    ended = run_script(
        tmp_path,
        f"""
        from poqueue.errors import InputError
        from workers import run_batch

        def process(po):
            return {{}}

        if __name__ == "__main__":
            try:
                {call}
            except InputError as error:
                print(error)
        """,
    ).check(0)

    assert said in ended.out
    assert {"runs", "r"} & tree(tmp_path) == set()


@pytest.mark.once
@pytest.mark.parametrize("processor", ["Site", '"my_batch:Site"'])
@pytest.mark.parametrize("start_method", ["spawn", "fork"])
def test_a_class_that_cannot_be_constructed_is_told_before_anything_runs(
    processor: str, start_method: str, tmp_path: Path
) -> None:
    ended = run_script(
        tmp_path,
        f"""
        from poqueue.errors import ProcessorError
        from workers import run_batch

        class Site:
            def __init__(self):
                raise RuntimeError("no configuration")
            def process(self, po):
                return {{}}

        if __name__ == "__main__":
            try:
                run_batch("orders.csv", {processor}, run_dir="r", app_dir=".", start_method="{start_method}")
            except ProcessorError as error:
                print(error)
        """,
    ).check(0)

    name = "__main__:Site" if processor == "Site" else "my_batch:Site"
    assert f"processor '{name}': constructing it failed: RuntimeError: no configuration" in ended.out
    assert "r" not in tree(tmp_path)


@pytest.mark.once
def test_a_batch_in_a_daemonic_process_is_refused_with_what_to_do(tmp_path: Path) -> None:
    ended = run_script(
        tmp_path,
        """
        import multiprocessing
        from poqueue.errors import ConfigError
        from workers import run_batch

        def run(name):
            try:
                run_batch(name, "my_batch:run", app_dir=".", run_dir="r")
            except ConfigError as error:
                return str(error)

        if __name__ == "__main__":
            with multiprocessing.Pool(1) as pool:
                print(pool.map(run, ["orders.csv"]))
        """,
    ).check(0)

    assert "a daemonic process may not" in ended.out
    assert "r" not in tree(tmp_path)


@pytest.mark.once
def test_two_batches_in_one_process_and_one_in_a_thread(tmp_path: Path) -> None:
    ended = run_script(
        tmp_path,
        """
        import signal
        import threading
        from workers import run_batch

        def process(po):
            return {}

        if __name__ == "__main__":
            before = signal.getsignal(signal.SIGINT)
            codes = [run_batch("orders.csv", process, workers=1).exit_code for _ in range(2)]
            thread = threading.Thread(target=lambda: codes.append(run_batch("orders.csv", process, workers=1).exit_code))
            thread.start()
            thread.join()
            print(codes, signal.getsignal(signal.SIGINT) is before)
        """,
    ).check(0)

    assert ended.out == "[0, 0, 0] True\n"
    assert len(list((tmp_path / "runs").iterdir())) == 3
