"""The journal's tests, tested: each planted bug has to be caught, by random histories or by the test that is named for it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from poqueue.errors import JournalError, QueueError
from tests.faults.journal_mutants import CAUGHT_BY_HISTORIES, CAUGHT_BY_NAME
from tests.faults.test_journal_machine import TO_CATCH_A_MUTANT, JournalMachine

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # a bug may need a thousand histories, on a slow machine

ROOT = Path(__file__).parents[2]
LIMIT_S = 60
NAMED_TESTS = sorted({test for _, test in CAUGHT_BY_NAME.values()})


def run(*tests: str, mutant: str = "") -> str:
    """Run tests in a process with a bug planted; gives pytest's last line."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-x", "-n0", "--tb=line", "-p", "tests.faults.journal_mutants"),
            *(f"tests/faults/{test}" for test in tests),
        ],
        cwd=ROOT,
        env={**os.environ, "POQUEUE_MUTANT": mutant},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr


def leaves(error: BaseException) -> list[BaseException]:
    """The errors of a group, or the one that it is."""
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    return [leaf for each in error.exceptions for leaf in leaves(each)]


def test_without_a_bug_the_histories_pass() -> None:
    run_state_machine_as_test(JournalMachine, settings=settings(TO_CATCH_A_MUTANT, max_examples=300))


@pytest.mark.parametrize("name", CAUGHT_BY_HISTORIES)
def test_a_bug_is_caught_by_random_histories(name: str) -> None:
    with CAUGHT_BY_HISTORIES[name](), pytest.raises(Exception) as caught:
        run_state_machine_as_test(JournalMachine, settings=TO_CATCH_A_MUTANT)

    kinds = {type(error) for error in leaves(caught.value)}
    assert kinds <= {AssertionError, JournalError, KeyError, QueueError}, "the mutant itself is broken"


def test_without_a_bug_the_named_tests_pass() -> None:
    assert re.match(r"\d+ passed", run(*NAMED_TESTS))


@pytest.mark.parametrize("name", CAUGHT_BY_NAME)
def test_a_bug_is_caught_by_its_test(name: str) -> None:
    assert re.match(r"1 failed", run(CAUGHT_BY_NAME[name][1], mutant=name))
