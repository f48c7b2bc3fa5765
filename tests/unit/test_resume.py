"""Which order of a file is which task of the run that goes on."""

from typing import Any

import pytest

from poqueue import ProcessingTask, TaskStatus
from workers.resume import match_orders


def order(number: str, *rows: int, amount: str = "1", repeats: bool = False) -> dict[str, Any]:
    """A PO as it is read from these rows of the file."""
    lines = [{"amount": amount} for _ in rows]
    return {"po_number": number, "row_numbers": list(rows), "number_repeats": repeats, "rows": lines}


def task(task_id: str, content: dict[str, Any], status: TaskStatus = TaskStatus.PENDING) -> ProcessingTask:
    return ProcessingTask(task_id, content, status=status)


def test_a_file_that_holds_what_the_run_had_is_the_same_wherever_its_rows_stand() -> None:
    tasks = [task("t0", order("A", 1)), task("t1", order("B", 2))]

    match = match_orders([order("B", 1), order("A", 9)], tasks)

    assert match.is_same
    assert match.task_of == {0: "t1", 1: "t0"}


def test_that_a_number_has_come_up_again_elsewhere_changes_no_po() -> None:
    match = match_orders([order("A", 1, repeats=True), order("A", 2, amount="5")], [task("t0", order("A", 1))])

    assert match.task_of == {0: "t0"}
    assert match.to_add == [1]


def test_what_is_changed_new_or_gone_is_told_apart() -> None:
    tasks = [task("t0", order("A", 1)), task("t1", order("B", 2)), task("t2", order("C", 3))]

    match = match_orders([order("A", 1), order("B", 2, amount="5"), order("D", 3)], tasks)

    assert (match.task_of, match.to_add, match.to_drop) == ({0: "t0"}, [1, 2], ["t1", "t2"])
    assert str(match) == "1 changed, 1 new, 1 removed POs"


@pytest.mark.parametrize("kept", [1, 2, 3, 4])
def test_of_equal_pos_those_that_are_done_are_kept_first_and_each_once(kept: int) -> None:
    statuses = (TaskStatus.FAILED, TaskStatus.COMPLETED, TaskStatus.PENDING, TaskStatus.COMPLETED)
    tasks = [task(f"t{number}", order("A", number), status) for number, status in enumerate(statuses)]

    match = match_orders([order("A", row) for row in range(kept)], tasks)

    assert list(match.task_of.values()) == ["t1", "t3", "t0", "t2"][:kept]
    assert sorted(match.to_drop) == sorted({"t0", "t1", "t2", "t3"} - set(match.task_of.values()))
    assert match.removed == 0  # the number is still in the file


# ── beyond the limit ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_the_limit_leaves_out_keeps_its_place_if_it_has_ended_and_is_dropped_otherwise() -> None:
    statuses = (TaskStatus.PENDING, TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.RETRY_PENDING)
    orders = [order(name, row) for row, name in enumerate("ABCD")]
    tasks = [
        task(f"t{number}", content, status)
        for number, (content, status) in enumerate(zip(orders, statuses, strict=True))
    ]

    match = match_orders(orders[:1], tasks, orders[1:])

    assert match.task_of == {0: "t0", 1: "t1", 2: "t2"}
    assert match.kept == orders[1:3]
    assert (match.to_drop, match.left_out, match.removed) == (["t3"], 1, 0)


def test_a_changed_po_beyond_the_limit_is_left_out_and_not_removed_and_counts_once() -> None:
    beyond = [order("B", 2, amount="5"), order("B", 3, amount="6"), order("E", 4)]

    match = match_orders([order("A", 1)], [task("t0", order("A", 1)), task("t1", order("B", 2))], beyond)

    assert (match.to_drop, match.left_out, match.removed) == (["t1"], 1, 0)
    assert str(match) == "0 changed, 0 new, 0 removed POs, 1 left out by the limit"


def test_a_number_that_also_stands_within_the_limit_is_changed_there_and_not_left_out() -> None:
    match = match_orders([order("B", 1, amount="5")], [task("t1", order("B", 2))], [order("B", 2, amount="6")])

    assert (match.to_drop, match.changed, match.left_out, match.removed) == (["t1"], 1, 0, 0)
