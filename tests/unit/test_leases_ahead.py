"""How much a worker holds ahead."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poqueue.task import LEASE_AHEAD_S, MAX_LEASES
from workers.worker import ANSWER_S, HOLD_S, RELIEF_S, leases_ahead


@pytest.mark.parametrize(
    ("pace_s", "left", "leases"),
    [
        (1.0, 10_000, 1), (0.011, 10_000, 5), (0.0009, 10_000, 66), (1e-5, 10_000, MAX_LEASES), (0.0, 10_000, MAX_LEASES),
        (0.001, 20, 10), (0.001, 3, 1), (0.001, 1, 1), (0.001, 0, 1),
    ],
)  # fmt: skip
def test_so_many(pace_s: float, left: int, leases: int) -> None:
    assert leases_ahead(pace_s, left) == leases


@given(st.floats(0.0, 1e4), st.integers(0, 10**7))
def test_it_is_never_none_nor_too_much(pace_s: float, left: int) -> None:
    leases = leases_ahead(pace_s, left)

    assert 1 <= leases <= MAX_LEASES
    assert leases == 1 or (leases * pace_s <= LEASE_AHEAD_S and leases <= left / 2)


def test_what_is_asked_for_ahead_is_begun_while_it_is_good() -> None:
    """At most that much is in hand when more is asked for, and then comes what was asked for."""
    assert ANSWER_S + LEASE_AHEAD_S < HOLD_S


def test_nobody_is_relieved_of_what_he_may_still_begin() -> None:
    assert HOLD_S < RELIEF_S / 2
