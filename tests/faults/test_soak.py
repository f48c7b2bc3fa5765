"""Two minutes of everything at random; the seed is the date's unless POQUEUE_TEST_SEED says another."""

import os
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from tests.integration.console import ROOT


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_minutes_of_everything_at_random(nothing_left: str) -> None:
    seed = os.environ.get("POQUEUE_TEST_SEED") or f"{datetime.now(UTC):%Y%m%d}"
    words = [sys.executable, "-m", "tests.faults.soak", "--minutes", "2", "--seed", seed]
    ended = subprocess.run(words, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    print(ended.stdout)
    assert ended.returncode == 0, ended.stdout[-5000:]
