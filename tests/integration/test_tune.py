"""`poqueue tune` as an operator meets it: a sample that is really run, the advice on stdout, a file that the run takes."""

import json
import os
import shlex
import signal
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from poqueue.simulation import TYPICAL_COSTS
from tests.integration.console import (
    APP_DIR,
    BEHAVE,
    ROOT,
    SAMPLE,
    Ended,
    command_line,
    poqueue,
    python,
    running,
    started,
    tree,
    wait_until,
)
from workers.measuring import WARM_UP_S
from workers.quantities import parse_duration
from workers.settings import RunSettings

TUNE = ("-j", "2", "--no-progress")


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A short path: sockets are made in it."""
    with tempfile.TemporaryDirectory(prefix="pq-") as name:
        yield Path(name)


def orders(folder: Path, *acts: str) -> Path:
    path = folder / "orders.csv"
    rows = [f"PO-{number},ACME {number % 3},{number}.50,{act}" for number, act in enumerate(acts)]
    path.write_text("\n".join(["po_number,supplier,amount,do", *rows]) + "\n", encoding="utf-8")
    return path


def tune(home: Path, temporary: Path, *words: str) -> Ended:
    return poqueue("tune", *words, *TUNE, cwd=home, env={"TMPDIR": str(temporary)})


def test_a_sample_is_run_and_advice_given_and_nothing_is_left(tmp_path: Path, temporary: Path) -> None:
    before = SAMPLE.read_bytes()

    ended = tune(tmp_path, temporary, str(SAMPLE), "--sample", "12", "--what-if", "jobs=1,2").check(0)

    assert "12 of 152 POs of sample_orders.csv" in ended.out
    for word in (
        "jobs",
        "task_timeout",
        "max_retries",
        "start_method",
        "by forkserver",
        "as set now",
        "as advised",
        "it stops paying at",
    ):
        assert word in ended.out, word
    assert "for real" in ended.err and "without a PO" in ended.err
    assert SAMPLE.read_bytes() == before
    assert tree(tmp_path) == set()
    assert tree(temporary) == set()


@pytest.mark.once
def test_what_went_wrong_in_the_sample_is_in_the_advice(tmp_path: Path, temporary: Path) -> None:
    path = orders(tmp_path, "hang-once", "fail-until 2", "give-up", "later 0.1", *["ok"] * 8)

    ended = tune(
        tmp_path, temporary, str(path), *BEHAVE, "--sample", "12", "--timeout", "1s", "--retry-delay", "100ms", "--json"
    ).check(0)  # fmt: skip

    found = json.loads(ended.out)
    assert found["measured"]["failures"] == {"TaskTimeout": 1, "RuntimeError": 1, "GiveUp": 1, "RetryLater": 1}
    assert found["measured"]["hung_pos"] == found["would_kill"] == ["PO-0"]
    assert (found["measured"]["retried_pos"], found["measured"]["recovered_pos"]) == (3, 3)
    assert found["measured"]["attempts"] == 15
    assert found["measured"]["rss_bytes"] > 5_000_000
    assert found["predicted"]["now"]["killed"] == 1
    assert found["predicted"]["now"]["failed"] == 1


@pytest.mark.once
def test_a_retry_that_one_po_of_many_needed_is_kept_and_none_is_added_for_those_that_never_recover(
    tmp_path: Path, temporary: Path
) -> None:
    path = orders(tmp_path, *["fail-until 2"] * 24, "fail-until 4", *["fail"] * 3, *["ok"] * 8)

    ended = tune(tmp_path, temporary, str(path), *BEHAVE, "--sample", "36", "--retry-delay", "20ms", "--json").check(0)

    found = json.loads(ended.out)
    assert found["advice"]["max_retries"] == {
        "now": 3,
        "advice": 3,
        "why": "as configured (3): 25 of 28 that were retried recovered, needing 3 at most; more may help the others",
    }
    assert found["predicted"]["now"]["failed"] == found["predicted"]["advised"]["failed"] == 3


@pytest.mark.once
def test_the_start_of_workers_is_measured_by_both_methods(tmp_path: Path, temporary: Path) -> None:
    path = orders(tmp_path, *["ok"] * 12)

    compared, kept = (
        json.loads(tune(tmp_path, temporary, str(path), *BEHAVE, "--json", *words).check(0).out)
        for words in ((), ("--start-method", "fork"))
    )

    costs, other = compared["measured"]["costs"], compared["measured"]["forkserver_costs"]
    assert 0.001 < other["boot_s"] < 60.0 and 0.02 < costs["boot_s"] < 60.0
    assert 0.0 < costs["boot_cpu_share"] <= 1.0
    assert other["dispatch_s"] == costs["dispatch_s"]
    assert kept["measured"]["forkserver_costs"] is None
    assert kept["advice"]["start_method"]["advice"] == "fork"
    assert tree(temporary) == set()


@pytest.mark.once
def test_the_setup_of_a_session_is_measured_apart_from_imports(tmp_path: Path, temporary: Path) -> None:
    path = orders(tmp_path, *["x"] * 8)
    (tmp_path / "logs_in.py").write_text(
        "import time\n\nclass Session:\n    def setup(self, context):\n        time.sleep(0.7)\n"
        "    def process(self, po):\n        return {}\n",
        encoding="utf-8",
    )

    ended = tune(tmp_path, temporary, str(path), "-p", "logs_in:Session", "--app-dir", ".", "--json").check(0)

    costs = json.loads(ended.out)["measured"]["costs"]
    assert 0.7 <= costs["setup_s"] < 10.0 and costs["setup_cpu_share"] < 0.5
    assert costs["boot_cpu_share"] > 0.3  # the sleep of the setup is not in it
    assert json.loads(ended.out)["predicted"]["now"]["seconds"] > 0.7


@pytest.mark.once
def test_the_cores_are_at_full_speed_before_the_first_po_is_measured(tmp_path: Path, temporary: Path) -> None:
    path = orders(tmp_path, *["x"] * 8)
    (tmp_path / "looks.py").write_text(
        textwrap.dedent("""
            import json, pathlib, time
            from workers.own_process import cpu_seconds, queued_seconds

            class Session:
                def setup(self, context):
                    self.ready, self.begun = time.monotonic(), cpu_seconds() + queued_seconds()

                def process(self, po):
                    waited, computed = time.monotonic() - self.ready, cpu_seconds() + queued_seconds() - self.begun
                    with open(pathlib.Path(__file__).parent / "looks", "a") as file:
                        file.write(json.dumps([waited, computed]) + "\\n")
        """),
        encoding="utf-8",
    )

    ended = tune(tmp_path, temporary, str(path), "-p", "looks:Session", "--app-dir", ".", "--json").check(0)

    looks = [json.loads(line) for line in (tmp_path / "looks").read_text().splitlines()]
    waited, computed = max(looks)  # a worker that comes later may find the cores at full speed
    assert len(looks) == 8 and waited >= WARM_UP_S and computed > 0.05 * WARM_UP_S  # the machine has other work
    costs = json.loads(ended.out)["measured"]["costs"]
    assert costs["boot_s"] + costs["setup_s"] < waited


@pytest.mark.slow
def test_computing_in_a_child_counts_as_computing(tmp_path: Path, temporary: Path) -> None:
    path = orders(tmp_path, *["x"] * 6)
    burn = "import time\nwhile time.process_time() < 0.2: pass"
    (tmp_path / "burn.py").write_text(burn, encoding="utf-8")

    ended = tune(tmp_path, temporary, str(path), "--command", "python3 burn.py", "--app-dir", ".", "--json")
    waits = tune(tmp_path, temporary, str(path), "--command", "sleep 0.2", "--json")

    computing, waiting = (json.loads(one.check(0).out)["measured"] for one in (ended, waits))
    assert computing["cpu_share"] > 3 * waiting["cpu_share"]


@pytest.mark.once
def test_what_is_written_is_what_the_run_takes(tmp_path: Path, temporary: Path) -> None:
    path = orders(tmp_path, *["ok"] * 20).rename(tmp_path / f"{'o' * 100} orders.csv")

    written = tune(
        tmp_path, temporary, str(path), *BEHAVE, "--map", "supplier=supplier", "--limit", "12", "--write", "my advice.yaml"
    ).check(0)  # fmt: skip
    again = tune(tmp_path, temporary, str(path), *BEHAVE, "--write", "my advice.yaml").check(2)
    command = written.err.splitlines()[-1].partition("take it with: poqueue ")[2]
    ran = poqueue(*shlex.split(command), "--run-dir", "out", "-q", cwd=tmp_path).check(0)

    assert f"# Take it with: poqueue {command}\n" in (tmp_path / "my advice.yaml").read_text()
    assert "my advice.yaml exists" in again.err and again.out == ""
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    settings = report["run"]["settings"]
    assert settings["processor"]["value"] == "sample_processors:behave"
    assert settings["jobs"]["from"].startswith("my advice.yaml")
    assert settings["map"]["value"] == {"supplier": "supplier"}
    assert len(report["tasks"]) == 12  # as predicted
    assert "limit" not in (tmp_path / "my advice.yaml").read_text().partition("poqueue run")[2].partition("\n")[2]
    assert ran.out == ""


@pytest.mark.once
def test_a_finished_run_is_learned_from_without_running_anything(tmp_path: Path, temporary: Path) -> None:
    path = orders(tmp_path, "fail-until 2", *["ok"] * 10)
    poqueue(
        "run", str(path), *BEHAVE, "--option", f"folder={tmp_path}", "--run-dir", "out", "--retry-delay", "100ms", "-j", "2",
        "-q", cwd=tmp_path,
    ).check(0)  # fmt: skip
    trail = (tmp_path / "trail").read_bytes()

    found = json.loads(poqueue("tune", "out", "--what-if", "jobs=1,4", "--json", cwd=tmp_path).check(0).out)
    text = poqueue("tune", "out", cwd=tmp_path).check(0).out
    unheard = ["bash", "-c", '"$@" >/dev/full', "-", *command_line("tune", "out", "--write", "advice.yaml")]
    with running(unheard, cwd=tmp_path) as run:
        run.wait().check(70)

    assert (tmp_path / "advice.yaml").exists()
    assert found["pos"] == 11
    assert found["measured"]["attempts"] == 12
    assert found["measured"]["kind"] in ("waits", "both", "computes")
    assert found["measured"]["rss_bytes"] > 5_000_000
    assert [row["jobs"] for row in found["what_if"]] == [1, 4]
    assert "the run took" in text
    assert (tmp_path / "trail").read_bytes() == trail


@pytest.mark.once
def test_what_the_run_had_stands_below_a_file_and_above_the_environment_and_the_defaults(tmp_path: Path) -> None:
    path = orders(tmp_path, *["ok"] * 3)
    ran = ("--run-dir", "out", "--retries", "5", "--retry-delay", "7s", "-j", "1", "-q")
    poqueue("run", str(path), *BEHAVE, *ran, cwd=tmp_path).check(0)
    (tmp_path / "c.yaml").write_text("max_retries: 9\njobs: 2\n", encoding="utf-8")
    words = ("tune", "out", "--config", "c.yaml", "-j", "4", "--json")
    env = {"POQUEUE_RETRY_DELAY": "8s", "POQUEUE_TASK_TIMEOUT": "44s", "POQUEUE_MAX_RETRIES": "8"}

    found = json.loads(poqueue(*words, cwd=tmp_path, env=env).check(0).out)["advice"]
    other = poqueue("tune", "out", "--command", "true", "--write", "w.yaml", cwd=tmp_path).check(0)

    assert {key: found[key]["now"] for key in ("jobs", "max_retries", "retry_delay")} == {
        "jobs": 4, "max_retries": 9, "retry_delay": 7.0
    }  # fmt: skip
    assert found["task_timeout"]["now"] == RunSettings().task_timeout.seconds
    assert "written" in other.err and "processor" not in (tmp_path / "w.yaml").read_text()


@pytest.mark.once
@pytest.mark.parametrize("target", ["process", "Process()"])
def test_what_a_program_gave_as_an_object_is_written_by_its_name_or_else_nothing_is(
    target: str, tmp_path: Path
) -> None:
    orders(tmp_path, *["ok"] * 3)
    script = f"""
        from workers import run_batch

        class Process:
            def __call__(self, po):
                pass

        def process(po):
            pass

        if __name__ == "__main__":
            run_batch("orders.csv", {target}, jobs=1, run_dir="out")
        """
    (tmp_path / "my_batch.py").write_text(textwrap.dedent(script), encoding="utf-8")
    python(tmp_path / "my_batch.py", cwd=tmp_path).check(0)
    has_name = target == "process"

    poqueue("tune", "out", cwd=tmp_path).check(0)
    told = poqueue("tune", "out", "--write", "w.yaml", cwd=tmp_path).check(0 if has_name else 2)

    if has_name:
        assert f"processor: my_batch:process\napp_dir: {tmp_path}\n" in (tmp_path / "w.yaml").read_text()
        return
    assert "-p MODULE:ATTR --app-dir DIR" in told.err and not (tmp_path / "w.yaml").exists()
    poqueue("tune", "out", "-p", "my_batch:process", "--app-dir", ".", "--write", "w.yaml", cwd=tmp_path).check(0)


COMPUTES = (
    "import time\n\ndef process(po):\n    end = time.process_time() + 0.03\n    while time.process_time() < end: pass\n"
)
WAITS = "import time\n\ndef process(po):\n    time.sleep(0.05)\n"


@pytest.mark.slow
def test_a_run_tells_whether_its_work_waits_or_computes_and_so_how_many_workers_pay(tmp_path: Path) -> None:
    path = orders(tmp_path, *["x"] * 100)
    found = {}
    for name, text in (("computes", COMPUTES), ("waits", WAITS)):
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
        poqueue(
            "run", str(path), "-p", f"{name}:process", "--app-dir", ".", "--run-dir", name, "-j", "4", "-q", cwd=tmp_path
        ).check(0)  # fmt: skip
        found[name] = json.loads(poqueue("tune", name, "--json", cwd=tmp_path).check(0).out)

    for name, told in found.items():
        assert told["measured"]["kind"] == name
    assert found["waits"]["advice"]["jobs"]["advice"] > 4


@pytest.mark.once
def test_what_was_used_before_a_resume_still_counts(tmp_path: Path) -> None:
    path = orders(tmp_path, *["ok"] * 6)

    def used() -> dict[str, float]:
        report = json.loads((tmp_path / "r" / "report.json").read_text())
        return dict(report["run"]["workers_used"])

    poqueue("run", str(path), *BEHAVE, "--run-dir", "r", "-q", cwd=tmp_path).check(0)
    before = used()
    poqueue("run", "--resume", "r", "-q", cwd=tmp_path).check(5)

    assert before["busy_s"] > 0.0 and before["cpu_s"] > 0.0
    assert used() == before


@pytest.mark.once
def test_a_run_that_goes_on_and_one_that_was_killed_are_learned_from_too(tmp_path: Path) -> None:
    path = orders(tmp_path, "ok", "wait", "ok")
    words = ["run", str(path), *BEHAVE, "--option", f"folder={tmp_path}", "--run-dir", "r", "-j", "1"]

    def learned() -> Ended:
        return poqueue("tune", "r", "--json", cwd=tmp_path)

    with started(*words, cwd=tmp_path) as run:
        wait_until((tmp_path / "trail").exists, "the PO that waits has started")
        wait_until(lambda: learned().code == 0, "the live run tells of the PO before it")
        live = json.loads(learned().check(0).out)
        os.killpg(run.pid, signal.SIGKILL)
        run.process.wait()
    killed = poqueue("tune", "r", cwd=tmp_path).check(0)

    assert (live["pos"], live["measured"]["attempts"]) == (3, 1)
    assert "did not come to its end" in killed.out and "1 of 3 POs" in killed.out


@pytest.mark.once
@pytest.mark.parametrize("more", [(), ("--no-journal",)], ids=["journal", "report"])
def test_of_an_interrupted_run_it_is_said_how_far_it_came(tmp_path: Path, more: tuple[str, ...]) -> None:
    path = orders(tmp_path, "ok", "wait", "ok")
    words = ["run", str(path), *BEHAVE, "--option", f"folder={tmp_path}", "--run-dir", "r", "-j", "1", *more]

    with started(*words, cwd=tmp_path) as run:
        wait_until((tmp_path / "trail").exists, "the PO that waits has started")
        run.send(signal.SIGINT)
        wait_until(lambda: run.said("no new PO starts"), "the first is taken")  # two in a row may arrive as one
        run.send(signal.SIGINT)
        assert run.wait().code == 128 + signal.SIGINT

    assert "ended early: learned from the 1 of 3 POs" in poqueue("tune", "r", cwd=tmp_path).check(0).out


@pytest.mark.once
def test_a_run_without_a_journal_is_learned_from_by_its_report(tmp_path: Path) -> None:
    path = orders(tmp_path, "fail-until 2", "ok")
    run = ("run", str(path), *BEHAVE, "--no-journal", "--run-dir", "out", "--retry-delay", "100ms", "-q")
    poqueue(*run, "--option", f"folder={tmp_path}", cwd=tmp_path).check(0)

    ended = poqueue("tune", "out", cwd=tmp_path).check(0)

    assert "3 attempts" in ended.out
    assert "kept no journal" in ended.out


@pytest.mark.once
def test_a_delay_between_starts_is_predicted_once(tmp_path: Path, temporary: Path) -> None:
    path = orders(tmp_path, *["ok"] * 24)
    words = (*BEHAVE, "--delay", "100ms", "--json")

    found = json.loads(tune(tmp_path, temporary, str(path), *words, "--sample", "12").check(0).out)

    assert found["predicted"]["now"]["seconds"] >= 23 * 0.1
    assert found["measured"]["costs"]["dispatch_s"] == TYPICAL_COSTS.dispatch_s


@pytest.mark.once
def test_rows_of_one_number_that_run_apart_are_told_to_be_left_out(tmp_path: Path, temporary: Path) -> None:
    path = orders(tmp_path, *["ok"] * 6)
    path.write_text(path.read_text() + "PO-1,ACME,1.00,ok\nPO-1,ACME,1.00,ok\n")

    ended = tune(tmp_path, temporary, str(path), *BEHAVE, "--duplicates", "separate").check(0)

    assert "2 POs have the number of another one" in ended.out


def test_two_numbers_are_enough_for_rough_advice(tmp_path: Path) -> None:
    text = poqueue("tune", "--tasks", "1000", "--duration", "2s", "-j", "4", cwd=tmp_path).check(0)
    found = json.loads(poqueue("tune", "--tasks", "1000", "--duration", "2s", "--json", cwd=tmp_path).check(0).out)

    assert "queue_size_limit" in text.out and "as given" in text.out
    assert found["based_on"]["durations"] == "given"


@pytest.mark.once
@pytest.mark.parametrize("duration", ["90s", "100.123", "5d"])
def test_what_is_advised_from_two_numbers_can_be_given_to_a_run(duration: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("max_retry_delay: 10s\n", encoding="utf-8")
    words = ("tune", "--tasks", "100", "--duration", duration, "--config", "c.yaml")

    rows = [line.split() for line in poqueue(*words, cwd=tmp_path).check(0).out.splitlines()]
    found = json.loads(poqueue(*words, "--json", cwd=tmp_path).check(0).out)

    timeout, delay = (next(row[2] for row in rows if row[:1] == [key]) for key in ("task_timeout", "retry_delay"))
    flags = ("--config", "c.yaml", "--timeout", timeout, "--retry-delay", delay, "--json")
    shown = json.loads(poqueue("config", "show", *flags, cwd=tmp_path).check(0).out)
    assert parse_duration(timeout, "") == found["task_timeout"] >= parse_duration(duration, "")
    assert delay == shown["retry_delay"]["value"] == "10s" and found["retry_delay"] == 10.0


@pytest.mark.once
def test_two_numbers_are_advised_on_as_set_wherever_that_is(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("jobs: 7\nmax_retries: 9\n", encoding="utf-8")
    words = ("tune", "--tasks", "10000000", "--duration", "2s", "--timeout", "44s", "--retry-delay", "7s")

    def advised(*more: str) -> Ended:
        return poqueue(*words, *more, cwd=tmp_path, env={"POQUEUE_MAX_RETRIES": "8", "POQUEUE_CONFIG": "c.yaml"}).check(
            0
        )

    found, text = json.loads(advised("--json").out), advised().out

    assert (found["worker_count"], found["max_retries"], found["retry_delay"]) == (7, 8, 7.0)
    assert found["now"] == {
        "worker_count": 7, "task_timeout": "44s", "max_retries": 8, "retry_delay": "7s", "start_method": "spawn"
    }  # fmt: skip
    assert "44s" in text and "e+0" not in text


@pytest.mark.once
@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ((), 2, "name an order file"),
        (("--tasks", "5"), 2, "--duration"),
        (("--tasks", "0x5", "--duration", "1s"), 2, "--tasks"),
        (("--tasks", "5", "--duration", "soon"), 2, "--duration"),
        (("nothing.csv",), 3, "no such file"),
        (("orders.csv", "--tasks", "5"), 2, "leave them out"),
        (("orders.csv", "--sample", "0"), 2, "--sample"),
        (("orders.csv", "--what-if", "jobs=none"), 2, "--what-if"),
        (("orders.csv", "--run-dir", "x"), 2, "--run-dir"),
        (("orders.csv", "--write", "nowhere/x.yaml"), 2, "no directory"),
        (("orders.csv", "-p", "nothing:there"), 2, "nothing"),
        (
            ("orders.csv", "-p", "sample_processors:SetupFails", "--app-dir", str(APP_DIR)),
            2,
            "the browser does not start",
        ),
        ((".",), 2, "not a run directory"),
        ((".", "--sample", "5"), 2, "--sample is for a sample"),
        (("--tasks", "5", "--duration", "1s", "--seed", "5"), 2, "--seed is for a sample"),
        (("--what-if", "jobs=2"), 2, "needs something that was measured"),
        (("--tasks", "5", "--duration", "1s", "--config", "missing.yaml"), 2, "missing.yaml"),
        (("--tasks", "5", "--duration", "1s", "--delay", "1s"), 2, "--delay does nothing"),
        (("--tasks", "5", "--duration", "1s", "-p", "a:b"), 2, "--processor does nothing"),
    ],
)
def test_mistakes_are_told_and_nothing_is_advised(tmp_path: Path, words: tuple[str, ...], code: int, says: str) -> None:
    orders(tmp_path, "ok")

    ended = poqueue("tune", *words, cwd=tmp_path).check(code)

    assert says in ended.err
    assert ended.out == ""


@pytest.mark.once
def test_the_command_that_lists_the_rows_can_be_typed(tmp_path: Path) -> None:
    orders(tmp_path).rename(tmp_path / "no orders.csv")

    ended = poqueue("tune", "no orders.csv", cwd=tmp_path).check(3)

    assert "; poqueue run 'no orders.csv' --check lists the rows" in ended.err


@pytest.mark.once
def test_a_sample_in_which_nothing_ends_well_gives_no_advice(tmp_path: Path, temporary: Path) -> None:
    path = orders(tmp_path, "fail", "give-up")

    ended = tune(tmp_path, temporary, str(path), *BEHAVE, "--retries", "0").check(3)

    assert "nothing to learn from" in ended.err and "RuntimeError" in ended.err
    assert ended.out == ""


INTERRUPTED_AT_THE_END = """
import os, signal, sys

if "tune" in sys.argv:
    from workers.supervisor import Supervisor

    close = Supervisor.close

    def interrupted_close(self):
        os.kill(os.getpid(), signal.SIGINT)
        close(self)

    Supervisor.close = interrupted_close
"""


@pytest.mark.once
def test_an_interrupt_after_the_last_po_of_the_sample_counts_too(tmp_path: Path, temporary: Path) -> None:
    path = orders(tmp_path, *["ok"] * 6)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(INTERRUPTED_AT_THE_END, encoding="utf-8")
    env = {"TMPDIR": str(temporary), "PYTHONPATH": f"{ROOT}:{tmp_path / 'site'}"}

    ended = poqueue("tune", str(path), *BEHAVE, *TUNE, cwd=tmp_path, env=env)

    assert ended.check(130).out == ""
    assert "interrupted" in ended.err
    assert tree(temporary) == set()


@pytest.mark.once
def test_an_interrupted_sample_ends_everything_and_advises_nothing(tmp_path: Path, temporary: Path) -> None:
    path = orders(tmp_path, *["wait"] * 4)
    option = ("--option", f"folder={tmp_path}")

    with started("tune", str(path), *BEHAVE, *option, *TUNE, cwd=tmp_path, env={"TMPDIR": str(temporary)}) as run:
        wait_until((tmp_path / "trail").exists, "the first PO has started")
        run.send(signal.SIGINT)
        wait_until(lambda: run.said("no new PO starts"), "the first is taken")  # two in a row may arrive as one
        run.send(signal.SIGINT)
        ended = run.wait()

    assert ended.code == 128 + signal.SIGINT
    assert "interrupted" in ended.err
    ended.check_quiet()
    assert ended.out == "" and tree(temporary) == set()
