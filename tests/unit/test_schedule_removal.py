"""Taking a waiting task out of the schedule: wherever it stands, and whether or not it comes back."""

import gc
import heapq
import random
from collections import deque
from collections.abc import Iterable
from typing import Any

import pytest

from poqueue import schedule as schedule_module
from poqueue.entry import PO_NUMBER, PRIORITY, RANK, Row
from poqueue.schedule import FORGET_AT, Schedule

NOW = 100.0


class Seen(str):
    """Text that the garbage collector knows of, which it does not of a row."""


def row(rank: int, po_number: str = "", priority: int = 5) -> Row:
    return Seen(f"t{rank}"), po_number or f"PO-{rank}", b"", priority, 3, 1.0, 60.0, "", rank, 0.0, 0.0


def end(schedule: Schedule, one: Row) -> int:
    return schedule.end([one[PO_NUMBER]])


def remove(schedule: Schedule, one: Row) -> None:
    schedule.remove(one[RANK], one[PO_NUMBER])


def ranks(schedule: Schedule, now: float = NOW) -> list[int]:
    """Whatever may run, one after the other; each stays running."""
    found = []
    while taken := schedule.take(now):
        found += taken
    return found


@pytest.fixture(params=[True, False], ids=["by priority", "in order"])
def schedule(request: pytest.FixtureRequest) -> Schedule:
    return Schedule(by_priority=request.param)


def put(schedule: Schedule, one: Row, place: str) -> None:
    if place == "fresh":
        schedule.add([one])
    elif place == "returned":
        schedule.put_back(one)
    elif place == "delayed":
        schedule.delay(one, NOW - 1.0)
    else:
        _set_aside(schedule, one)


def _set_aside(schedule: Schedule, one: Row) -> None:
    """Behind a running task of its PO."""
    running = row(0, one[PO_NUMBER])
    schedule.put_back(running)
    assert schedule.take(NOW) == [running[RANK]]
    schedule.add([one])
    assert schedule.take(NOW) == []
    end(schedule, running)


PLACES = ["fresh", "returned", "delayed", "aside"]


def test_many_removed_tasks_are_not_held_until_their_turn(schedule: Schedule) -> None:
    for rank in range(1, 4 * FORGET_AT):
        one = row(rank)
        put(schedule, one, PLACES[rank % len(PLACES)])
        remove(schedule, one)
    del one
    gc.collect()

    assert sum(isinstance(each, Seen) for each in gc.get_objects()) <= FORGET_AT + 1
    assert ranks(schedule) == []


@pytest.mark.parametrize("place", PLACES)
def test_a_removed_task_never_runs_wherever_it_stood(schedule: Schedule, place: str) -> None:
    gone = row(1)
    put(schedule, gone, place)
    schedule.add([row(2)])

    remove(schedule, gone)

    assert ranks(schedule) == [2]
    assert not schedule._removed, "a removal is forgotten once it was carried out"


def test_a_task_removed_while_another_of_its_po_runs_never_runs(schedule: Schedule) -> None:
    first, gone, third = row(1, "PO"), row(2, "PO"), row(3, "PO")
    for each in (first, gone, third):
        schedule.add([each])
    assert ranks(schedule) == [1]

    remove(schedule, gone)
    end(schedule, first)

    assert ranks(schedule) == [3]


def test_of_many_tasks_of_one_po_each_is_moved_a_few_times_only(
    schedule: Schedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    moves = 0
    real = heapq.heappush

    def push(heap: list[Any], item: Any) -> None:
        nonlocal moves
        moves += 1
        real(heap, item)

    monkeypatch.setattr(heapq, "heappush", push)
    rows = [row(rank, "PO") for rank in range(1, 301)]
    schedule.add(rows)

    for one in rows:
        assert schedule.take(NOW, 3) == [one[RANK]]
        assert schedule.take(NOW) == []
        assert end(schedule, one) == (one is not rows[-1])

    assert moves <= 3 * len(rows)


@pytest.mark.parametrize("gone", [[2], [3], [2, 3], [3, 2], [4, 2], [2, 4]])
def test_a_task_does_not_wait_for_one_of_its_po_that_was_removed(schedule: Schedule, gone: list[int]) -> None:
    rows = [row(rank, "PO") for rank in (1, 2, 3, 4)]
    schedule.add(rows)
    assert ranks(schedule) == [1]
    end(schedule, rows[0])

    for rank in gone:
        remove(schedule, rows[rank - 1])

    for rank in {2, 3, 4} - set(gone):
        assert ranks(schedule) == [rank]
        end(schedule, rows[rank - 1])
    assert ranks(schedule) == []


def test_the_best_task_of_a_po_runs_next_not_the_oldest(schedule: Schedule) -> None:
    rows = [row(rank, "PO", priority) for rank, priority in ((1, 5), (2, 5), (3, 9), (4, 2), (5, 5))]
    schedule.add(rows[:1])
    assert ranks(schedule) == [1]
    schedule.add(rows[1:])
    assert ranks(schedule) == []

    served = [1]
    while end(schedule, rows[served[-1] - 1]):
        served += ranks(schedule)

    assert served == ([1, 4, 2, 5, 3] if schedule._by_priority else [1, 2, 3, 4, 5])


@pytest.mark.parametrize("place", PLACES)
def test_a_removed_task_that_is_wanted_again_stands_in_one_place_only(schedule: Schedule, place: str) -> None:
    one = row(1)
    put(schedule, one, place)
    remove(schedule, one)

    schedule.delay(one, NOW + 5.0)

    assert (schedule.next_due(), schedule.latest_due()) == (NOW + 5.0, NOW + 5.0)
    assert ranks(schedule, NOW) == []
    assert ranks(schedule, NOW + 5.0) == [1]
    end(schedule, one)
    assert ranks(schedule, NOW + 99.0) == []


def test_many_removed_tasks_that_are_wanted_again_are_looked_for_once(
    schedule: Schedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = 0

    class Counted(deque[Row]):
        def __init__(self, rows: Iterable[Row] = ()) -> None:
            nonlocal moved
            super().__init__(rows)
            moved += len(self)

    rows = [row(rank) for rank in range(1, 1001)]
    schedule.add(rows)
    for one in rows[:400]:
        remove(schedule, one)
    monkeypatch.setattr(schedule_module, "deque", Counted)

    for one in rows[:400]:
        schedule.delay(one, NOW)

    assert moved <= len(rows)
    assert ranks(schedule) == list(range(1, 1001))


def test_what_was_removed_is_due_at_no_time(schedule: Schedule) -> None:
    early, late, latest = row(1), row(2), row(3)
    for each, due in ((early, 1.0), (late, 2.0), (latest, 3.0)):
        schedule.delay(each, NOW + due)

    remove(schedule, early)
    remove(schedule, latest)

    assert (schedule.next_due(), schedule.latest_due()) == (NOW + 2.0, NOW + 2.0)
    remove(schedule, late)
    assert (schedule.next_due(), schedule.latest_due()) == (None, None)


def test_untaking_is_as_if_it_had_not_been_taken(schedule: Schedule) -> None:
    rows = [row(1, "A"), row(2, "B"), row(3, "A"), row(4, "C")]
    schedule.add(rows)
    taken = schedule.take(NOW, 2)
    assert taken == [1, 2]

    schedule.untake(rows[:2])

    assert ranks(schedule) == [1, 2, 4]
    assert end(schedule, rows[0]) == 1
    assert ranks(schedule) == [3]


def test_rebuilding_forgets_what_was_there(schedule: Schedule) -> None:
    old, running, waiting, delayed = row(1), row(2, "A"), row(3, "A"), row(4)
    schedule.add([old])
    remove(schedule, old)
    schedule.delay(row(5), NOW)

    schedule.rebuild([waiting, old], [(NOW + 1.0, delayed)], [running[PO_NUMBER]])

    assert ranks(schedule) == [1]
    end(schedule, running)
    assert ranks(schedule) == [3]
    assert ranks(schedule, NOW + 1.0) == [4]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("forget_at", [1, FORGET_AT])
def test_any_mixture_of_steps_serves_what_a_sorted_list_would(
    seed: int, forget_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule_module, "FORGET_AT", forget_at)
    chance = random.Random(seed)
    schedule = Schedule(by_priority=True)
    waiting: dict[int, tuple[Row, float]] = {}
    running: list[Row] = []
    gone: list[Row] = []
    now = NOW

    for rank in range(1, 400):
        step = chance.choice(("add", "add", "take", "take", "end", "delay", "remove", "return", "untake", "wait"))
        if step == "add":
            one = row(rank, f"PO-{chance.randint(1, 9)}", chance.randint(1, 3))
            schedule.add([one])
            waiting[one[RANK]] = one, 0.0
        elif step in ("take", "untake"):
            busy = {each[PO_NUMBER] for each in running}
            due_now = [each for each, due in waiting.values() if due <= now]
            best: list[Row] = []
            for one in sorted(due_now, key=lambda each: (each[PRIORITY], each[RANK])):
                if one[PO_NUMBER] not in busy:
                    busy.add(one[PO_NUMBER])
                    best.append(one)
            limit = chance.choice((1, 1, 2, 3, 8))
            taken = schedule.take(now, limit)
            assert taken == [one[RANK] for one in best[:limit]]
            if step == "untake":
                schedule.untake(best[:limit])
                continue
            for rank_taken in taken:
                del waiting[rank_taken]
            running += best[:limit]
        elif step in ("end", "delay") and running:
            one = running.pop(chance.randrange(len(running)))
            end(schedule, one)
            if step == "delay":
                due = now + chance.randint(0, 3)
                schedule.delay(one, due)
                waiting[one[RANK]] = one, due
        elif step == "remove" and waiting:
            one, _ = waiting.pop(chance.choice(list(waiting)))
            remove(schedule, one)
            gone.append(one)
        elif step == "return" and gone:
            one = gone.pop(chance.randrange(len(gone)))
            schedule.delay(one, now + 1.0)
            waiting[one[RANK]] = one, now + 1.0
        elif step == "wait":
            now += 1.0
