"""--timeout in percent of the running median: what hangs is killed soon, what is slow gets its time."""

import json
from pathlib import Path

import pytest

from tests.integration.console import APP_DIR, outcomes, poqueue, read_csv

ROWS = [f"P{number:02},ACME,1" for number in range(40)]


@pytest.mark.once
def test_a_hang_is_cut_off_by_the_median_and_then_gets_the_most(tmp_path: Path) -> None:
    rows = [*ROWS, "SLOW,ACME,1", "HUNG,ACME,1"]
    (tmp_path / "orders.csv").write_text("po_number,supplier,amount\n" + "\n".join(rows) + "\n")
    (tmp_path / "paced.py").write_text(
        "import time\n"
        "def process(po, context):\n"
        "    slow = {'SLOW': 1.0, 'HUNG': 600.0 if context.attempt < 3 else 0.0}\n"
        "    time.sleep(slow.get(po['po_number'], 0.02))\n"
    )

    ended = poqueue(
        "run", "orders.csv", "-p", "paced:process", "--app-dir", ".", "-j", "2", "--timeout", "300%,3s",
        "--timeout-floor", "300ms",
        "--retry-delay", "0s", "--grace", "0s", "--run-dir", "r", "--json", cwd=tmp_path,
    ).check(0)  # fmt: skip

    attempts = {row["po_number"]: row["attempts"] for row in read_csv(tmp_path / "r" / "results.csv")}
    assert attempts["P00"] == "1" and attempts["SLOW"] == "2" and attempts["HUNG"] == "3"
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    messages = {t["po_number"]: [e["message"] for e in t["error_history"]] for t in report["tasks"]}
    assert [m.split(" (")[0] for m in messages["HUNG"]] == ["took longer than 0.3 s", "took longer than 3 s"]
    assert report["performance"]["adaptive_timeouts"]["ACME"]["limit_s"] == pytest.approx(0.3)
    limits = json.loads(poqueue("report", "r", "--format", "json", cwd=tmp_path).check(0).out)["time_limits"]
    assert [(limit["supplier"], limit["limit_s"]) for limit in limits] == [("", 0.3), ("ACME", 0.3)]
    assert "time limits by the running median" in poqueue("report", "r", cwd=tmp_path).check(0).out
    assert set(outcomes(tmp_path / "r").values()) == {"succeeded"}
    assert ended.out and APP_DIR.exists()


@pytest.mark.once
def test_what_a_processor_states_shortens_no_limit(tmp_path: Path) -> None:
    (tmp_path / "orders.csv").write_text("po_number,supplier,amount\n" + "\n".join(ROWS[:24]) + "\n")
    (tmp_path / "states.py").write_text(
        "import time\n"
        "from poqueue import TaskResult\n"
        "def process(po):\n"
        "    time.sleep(0.2)\n"
        "    return TaskResult(True, processing_time=0.001)\n"
    )

    poqueue(
        "run", "orders.csv", "-p", "states:process", "--app-dir", ".", "-j", "4", "--timeout", "2000%,60s",
        "--timeout-floor", "100ms", "--retries", "0", "--run-dir", "r", "-q", cwd=tmp_path,
    ).check(0)  # fmt: skip

    report = json.loads((tmp_path / "r" / "report.json").read_text())
    learned = report["performance"]["adaptive_timeouts"]
    shown = json.loads(poqueue("report", "r", "--format", "json", cwd=tmp_path).check(0).out)["time_limits"]
    assert learned["ACME"]["median_s"] >= 0.2
    assert {limit["supplier"]: limit["limit_s"] for limit in shown} == pytest.approx(
        {group: seen["limit_s"] for group, seen in learned.items()}, abs=0.02
    )


@pytest.mark.parametrize("given", ["100%", "50%", "200", "200%,0s", "-200%", "%", "1e3%"])
def test_a_share_that_makes_no_sense_is_refused(given: str, tmp_path: Path) -> None:
    (tmp_path / "orders.csv").write_text("po_number\nA\n")

    ended = poqueue("run", "orders.csv", f"--timeout={given}", "--check", cwd=tmp_path)

    assert (ended.code, "--timeout" in ended.err) == ((0, False) if given == "200" else (2, True))
