"""What `poqueue status` says of a queue and of what its supervisor left to be seen."""

from typing import Any

from workers.live_commands import _status_text

STATUS: dict[str, Any] = {
    "run": "r", "total_tasks": 270, "cleared_tasks": 0, "completed_tasks": 20, "failed_tasks": 1, "processing_tasks": 2,
    "retry_tasks": 0, "pending_tasks": 247, "throughput": 10.0, "estimated_completion": 25.0, "reason": "",
}  # fmt: skip
VIEW: dict[str, Any] = {"workers": (), "elapsed_s": 2.0, "jobs": 2, "phase": "running", "note": ""}


def test_what_is_still_to_be_added_counts_and_no_time_is_guessed_without_it() -> None:
    told = _status_text({**STATUS, "view": {**VIEW, "to_add": 1000}})

    assert "21 of 1270 POs" in told and "1247 waiting" in told
    assert "not known yet" in told


def test_once_all_is_added_the_queue_says_how_long_it_takes() -> None:
    told = _status_text({**STATUS, "view": {**VIEW, "to_add": 0}})

    assert "21 of 270 POs" in told and "247 waiting" in told
    assert "25s to go" in told
