"""The README says what is: its table of settings, its Python and its commands are taken from it and tried."""

import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from workers.settings import markdown_table

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ORDERS = "po_number,supplier,amount\n4711,ACME,12.50\n4712,Öl AG,\n"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_the_table_of_settings_is_the_one_the_program_has() -> None:
    assert markdown_table() in README


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "orders.csv").write_text(ORDERS, encoding="utf-8")
    module = next(block for block in blocks("python") if "my_site.py" in block)
    (tmp_path / "my_site.py").write_text(module, encoding="utf-8")
    return tmp_path


def run(command: list[str], folder: Path) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        check=False,
    )


LINES = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("poqueue")]
LIVE = ("status", "pause", "resume", "scale", "cancel", "drain", "stop")
MOODY = """
import pathlib, time
from workers import GiveUp

def process(po):
    if pathlib.Path("slow").exists():
        time.sleep(0.3)
    if po["po_number"] == "4711" and pathlib.Path("broken").exists():
        raise GiveUp("the site is down")
"""


def words_of(line: str) -> list[str]:
    return [sys.executable, "-m", "workers", *shlex.split(line, comments=True)[1:]]


def is_about_a_run(line: str) -> bool:
    return shlex.split(line)[1] in (*LIVE, "retry", "runs", "report") or "--resume" in line


@pytest.mark.once
@pytest.mark.parametrize("line", [line for line in LINES if not is_about_a_run(line)])
def test_its_commands_run(line: str, folder: Path) -> None:
    if "--map" in line:
        (folder / "orders.csv").write_text("PO,Vendor,Amount\n4711,ACME,1\n", encoding="utf-8")

    ended = run(words_of(line), folder)

    assert ended.returncode == 0, ended.stderr


@pytest.mark.once
@pytest.mark.parametrize("line", [line for line in LINES if is_about_a_run(line) and shlex.split(line)[1] not in LIVE])
def test_its_commands_about_a_run_that_has_ended_run(line: str, folder: Path) -> None:
    named = re.search(r"runs/\S+", line)
    (folder / "moody.py").write_text(MOODY, encoding="utf-8")
    (folder / "broken").touch()
    halt = ["--halt", "soon,fail=1", "-j1"] if "--resume" in line else []
    run_dir = named[0] if named else "runs/some-run"
    first = run(words_of(f"poqueue run orders.csv --app-dir . -p moody:process --run-dir {run_dir}") + halt, folder)
    assert first.returncode == (4 if halt else 1), first.stderr
    (folder / "broken").unlink()

    ended = run(words_of(line), folder)

    assert ended.returncode == (1 if halt else 0), ended.stderr  # resumed, what failed stays failed


@pytest.mark.once
def test_its_commands_for_a_live_run_run(folder: Path) -> None:
    (folder / "moody.py").write_text(MOODY, encoding="utf-8")
    (folder / "slow").touch()
    rows = "".join(f"{4700 + number},ACME,1\n" for number in reversed(range(300)))  # 4711 is far from its turn
    (folder / "orders.csv").write_text("po_number,supplier,amount\n" + rows, encoding="utf-8")
    (folder / "runs").mkdir()
    lines = [line for line in LINES if shlex.split(line)[1] in LIVE]
    assert {shlex.split(line)[1] for line in lines} >= {"status", "pause", "scale", "cancel", "drain"}
    command = words_of("poqueue run orders.csv --app-dir . -p moody:process -j 2 --run-dir runs/live")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    live = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while run(words_of("poqueue status"), folder).returncode != 0:
            assert time.monotonic() < deadline
        for line in lines:
            ended = run([word for word in words_of(line) if word != "--watch"], folder)
            assert ended.returncode == 0, (line, ended.stderr)
        assert live.wait(60) == 130
    finally:
        live.kill()
        live.wait()


@pytest.mark.once
@pytest.mark.parametrize("number", [n for n, block in enumerate(blocks("python")) if "my_site.py" not in block])
def test_its_python_runs(number: int, folder: Path) -> None:
    (folder / "script.py").write_text(blocks("python")[number], encoding="utf-8")

    ended = run([sys.executable, "script.py"], folder)

    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() in (
        "1",
        "0 2 input rows = 2 succeeded + 0 failed + 0 duplicate + 0 invalid + 0 not run",
    )
