"""Stopping early: at which end a policy strikes, and that it does so once."""

from typing import Any

import pytest

from poqueue.halt import HaltPolicy


def strikes(policy: HaltPolicy, ends: str) -> list[str]:
    """What it says to each end: + is a success, - a failure."""
    return [policy.count(succeeded=end == "+") for end in ends]


@pytest.mark.parametrize(
    ("limits", "ends", "expected"),
    [
        ({"failed": 1}, "++-", ["", "", "1 failed"]),
        ({"failed": 2}, "-+-", ["", "", "2 failed"]),
        ({"succeeded": 2}, "-+-+", ["", "", "", "2 succeeded"]),
        ({"done": 3}, "-+-", ["", "", "3 done"]),
        ({"failed": 3, "done": 2}, "--", ["", "2 done"]),
        ({"failed": 2, "done": 2}, "--", ["", "2 failed"]),
    ],
)
def test_it_strikes_at_the_end_that_reaches_a_number(limits: dict[str, int], ends: str, expected: list[str]) -> None:
    assert strikes(HaltPolicy(**limits), ends) == expected


def test_it_strikes_once() -> None:
    policy = HaltPolicy(failed=1, succeeded=1, done=2)

    assert strikes(policy, "-+-+") == ["1 failed", "", "", ""]


def test_without_numbers_it_never_strikes() -> None:
    assert set(strikes(HaltPolicy(), "+-" * 500)) == {""}


@pytest.mark.parametrize("name", ["failed", "succeeded", "done"])
@pytest.mark.parametrize("limit", [0, -1, 1.0, True, "3", float("nan")])
def test_what_is_no_number_of_ends_is_refused_by_name(name: str, limit: Any) -> None:
    with pytest.raises(ValueError, match=f"halt: {name} must be a whole number from 1"):
        HaltPolicy(**{name: limit})
