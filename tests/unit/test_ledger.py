"""The order in which tasks have ended, read in the middle of a step, as a signal handler may."""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TypeVar

import pytest

from poqueue.entry import NewTask
from poqueue.ledger import TRANSITIONS, Ledger
from poqueue.task import TaskStatus as S

T = TypeVar("T")


def new_task(number: int) -> NewTask:
    return f"t{number}", f"P{number}", b"{}", 5, 0, 0.0, 1.0, ""


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

    ledger = Ledger()
    ledger.add([new_task(rank) for rank in (1, 2, 3)], 1, 0.0, 0.0)
    entries, *_ = ledger.lease([1, 2, 3], 1, "w1", 0.0, 0.0)
    ledger.complete(entries[:2], now=1.0)
    ledger._finished_at = Times(ledger._finished_at)
    if step == "an end":
        ledger.complete(entries[2:], now=2.0)
    else:
        ledger.expire(1.5)

    assert seen == ([([], 0)] if step == "an end" else [([], 0), ([], 1)])  # nothing for now, nothing skipped
    ended, place = ledger.finished(0, 10)
    assert ([one.task_id for one in ended], place) == ((["t1", "t2", "t3"], 3) if step == "an end" else ([], 2))


def test_since_when_workers_hold_leases_can_be_asked_in_the_middle_of_a_step() -> None:
    """Of a worker's first lease, or of its last one."""
    ledger = Ledger()
    ledger._held["w1"] = {}

    assert ledger.held_since() == {}


def test_the_counts_agree_with_each_other_in_the_middle_of_a_step() -> None:
    """As a signal handler may read them."""
    sums = []

    def looked_at(things: Iterable[T]) -> Iterator[T]:
        for one in things:
            added, cleared, counts = ledger.tally()
            sums.append(sum(counts.values()) + cleared - added)
            yield one

    class Looked(list[T]):
        def __iter__(self) -> Iterator[T]:
            return looked_at(super().__iter__())

    ledger = Ledger()
    ledger.add(Looked(new_task(rank) for rank in (1, 2, 3)), 1, 0.0, 0.0)
    entries, *_ = ledger.lease(Looked([1, 2, 3]), 1, "w1", 0.0, 0.0)
    ledger.complete(Looked(entries), now=1.0)

    assert sums == [0] * 9


@pytest.mark.parametrize("status", S)
def test_a_lease_follows_the_table_of_arrows_and_no_other(status: S) -> None:
    ledger = Ledger()
    ledger.add([new_task(1)], 1, 0.0, 0.0)
    if status is not S.PENDING:
        [entry], *_ = ledger.lease([1], 1, "w1", 0.0, 0.0)
        if status is S.COMPLETED:
            ledger.complete([entry], now=1.0)
        elif status is not S.PROCESSING:
            ledger.move(entry, status, 1.0)

    if S.PROCESSING in TRANSITIONS[status]:
        ledger.lease([1], 2, "w2", 2.0, 2.0)
        assert list(ledger.held_by("w2")) == [2]
    else:
        with pytest.raises(AssertionError, match=f"{status.name} may not become PROCESSING"):
            ledger.lease([1], 2, "w2", 2.0, 2.0)


def test_the_lease_of_a_task_that_is_not_there_says_so() -> None:
    with pytest.raises(LookupError, match="no task has the rank 5"):
        Ledger().lease([5], 1, "w1", 0.0, 0.0)
