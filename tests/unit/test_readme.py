"""The README says what is: its table of settings, its Python and its commands are taken from it and tried."""

import os
import re
import subprocess
import sys
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
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, check=False
    )


@pytest.mark.parametrize("line", [line for block in blocks("sh") for line in block.splitlines() if line.startswith("poqueue")])
def test_its_commands_run(line: str, folder: Path) -> None:
    import shlex

    words = shlex.split(line)
    if "--map" in words:
        (folder / "orders.csv").write_text("PO,Vendor,Amount\n4711,ACME,1\n", encoding="utf-8")

    ended = run([sys.executable, "-m", "workers", *words[1:]], folder)

    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("number", [n for n, block in enumerate(blocks("python")) if "my_site.py" not in block])
def test_its_python_runs(number: int, folder: Path) -> None:
    (folder / "script.py").write_text(blocks("python")[number], encoding="utf-8")

    ended = run([sys.executable, "script.py"], folder)

    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() in ("1", "0 2 input rows = 2 succeeded + 0 failed + 0 duplicate + 0 invalid + 0 not run")
