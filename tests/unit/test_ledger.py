"""The order in which tasks have ended, read in the middle of a step, as a signal handler may."""

from collections import deque
from collections.abc import Iterator

import pytest

from poqueue.ledger import Entry, Ledger


def entry(rank: int) -> Entry:
    return Entry(f"t{rank}", f"P{rank}", b"{}", 5, rank, 0, 0.0, 1.0, 0.0, 0.0)


@pytest.mark.parametrize("step", ["an end", "an expiry"])
def test_a_place_in_the_order_of_ends_stays_while_a_step_is_under_way(step: str) -> None:
    seen = []

    class Times(deque[float]):
        def append(self, at: float) -> None:
            seen.append(ledger.finished(0, 10))
            super().append(at)

        def popleft(self) -> float:
            at = super().popleft()
            seen.append(ledger.finished(0, 10))
            return at

    ledger, entries = Ledger(), [entry(rank) for rank in (1, 2, 3)]
    ledger.add(entries, 1, 0.0, 0.0)
    ledger.lease(entries, 1, "w1", 0.0, 0.0)
    ledger.complete(entries[:2], now=1.0)
    ledger._finished_at = Times(ledger._finished_at)
    if step == "an end":
        ledger.complete(entries[2:], now=2.0)
    else:
        ledger.expire(1.5)

    assert seen == ([([], 0)] if step == "an end" else [([], 0), ([], 1)])  # nothing for now, nothing skipped
    assert ledger.finished(0, 10) == ((entries, 3) if step == "an end" else ([], 2))


def test_since_when_workers_hold_leases_can_be_asked_in_the_middle_of_a_step() -> None:
    """Of a worker's first lease, or of its last one."""
    ledger = Ledger()
    ledger._held["w1"] = {}

    assert ledger.held_since() == {}


def test_the_counts_agree_with_each_other_in_the_middle_of_a_step() -> None:
    """As a signal handler may read them."""
    sums = []

    class Entries(list[Entry]):
        def __iter__(self) -> Iterator[Entry]:
            for one in super().__iter__():
                added, cleared, counts = ledger.tally()
                sums.append(sum(counts.values()) + cleared - added)
                yield one

    ledger, entries = Ledger(), Entries(entry(rank) for rank in (1, 2, 3))
    ledger.add(entries, 1, 0.0, 0.0)
    ledger.lease(entries, 1, "w1", 0.0, 0.0)
    ledger.complete(entries, now=1.0)

    assert sums == [0] * 9
