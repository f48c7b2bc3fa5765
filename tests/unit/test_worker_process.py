"""What a worker's end was about, when a kill had begun: the PO in hand, the one before it, or the worker as such."""

import pytest

from workers.worker_process import Kill, WorkerProcess


@pytest.mark.parametrize(
    ("token", "stage", "why"),
    [
        (7, "evidence", "timeout"),
        (7, "kill", "timeout"),
        (0, "term", "timeout"),
        (6, "evidence", ""),  # nothing had been sent: the end of the one in hand is its own
        (6, "term", "another"),
        (6, "kill", "another"),
    ],
)
def test_a_kill_is_the_cause_of_the_end_of_what_it_was_about_or_broke_off(token: int, stage: str, why: str) -> None:
    worker = object.__new__(WorkerProcess)
    worker.kill = Kill("timeout", token, 0.0, 0.0)
    worker.kill.stage = stage

    assert worker.why_killed(7) == why


def test_without_a_kill_an_end_is_its_own() -> None:
    worker = object.__new__(WorkerProcess)
    worker.kill = None

    assert worker.why_killed(7) == ""
