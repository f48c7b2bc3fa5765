"""The tests of the contract, tested: each planted fault has to make the test that is named for it fail."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.contract.mutants import CAUGHT_BY_HISTORIES, HISTORY_TEST, MUTANTS

pytestmark = [pytest.mark.contract("Part 1"), pytest.mark.slow]

PROJECT = Path(__file__).parents[2]
LIMIT_S = 60
NAMED_TESTS = sorted({HISTORY_TEST, *(mutant.caught_by for mutant in MUTANTS.values())})


@pytest.fixture
def copy_of_the_project(tmp_path: Path) -> Path:
    """The packages and these tests, free to be spoiled."""
    skip = shutil.ignore_patterns("__pycache__", Path(__file__).name)
    for folder in ("poqueue", "workers", "tests/contract"):
        shutil.copytree(PROJECT / folder, tmp_path / folder, ignore=skip)
    (tmp_path / "tests" / "__init__.py").touch()
    return tmp_path


def run(project: Path, *tests: str) -> str:
    """Run tests of the copy on queues in one process; gives pytest's last line, as "1 failed in 0.5s"."""
    done = subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "-x",
                "-n0",
                "--tb=line",
                "-k",
                "not manager",
                f"--rootdir={project}",
            ),
            *("-p", "no:cacheprovider", "--hypothesis-profile=no-shrinking"),
            *(f"tests/contract/{test}" for test in tests),
        ],
        cwd=project,
        env={**os.environ, "CI": "1"},  # the same histories each time
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr


def test_without_a_mutant_the_named_tests_pass(copy_of_the_project: Path) -> None:
    assert re.match(r"\d+ passed", run(copy_of_the_project, *NAMED_TESTS))


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_caught_by_its_test(copy_of_the_project: Path, name: str) -> None:
    MUTANTS[name].plant(copy_of_the_project)

    assert re.match(r"1 failed", run(copy_of_the_project, MUTANTS[name].caught_by))


@pytest.mark.parametrize("name", CAUGHT_BY_HISTORIES)
def test_a_mutant_is_caught_by_random_histories(copy_of_the_project: Path, name: str) -> None:
    MUTANTS[name].plant(copy_of_the_project)

    assert re.match(r"1 failed", run(copy_of_the_project, HISTORY_TEST))
