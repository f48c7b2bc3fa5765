"""The benchmark of predictions judges as it says, and writes the same orders each time. No time is asserted here."""

from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.prediction import WORKLOADS, Scene, disturbed, is_kept, middle, verdicts, write_orders


def rows(near: int, covered: int, noisy: int = 0) -> dict[str, list[dict[str, Any]]]:
    return {
        "predictions": [
            {
                "workload": f"w{n}",
                "within 10 %": "yes" if n < near else "no",
                "in range": "yes" if n < covered else "no",
                "quiet": "NO" if n < noisy else "yes",
            }
            for n in range(8)
        ]
    }


@pytest.mark.parametrize(("near", "covered", "is_reached"), [(8, 8, True), (7, 8, True), (6, 8, False), (8, 7, False)])
def test_seven_of_eight_must_be_near_and_every_range_must_cover(near: int, covered: int, is_reached: bool) -> None:
    assert [reached for reached, _ in verdicts(rows(near, covered))] == [is_reached]


@pytest.mark.parametrize(
    ("promised", "advice", "kept"),
    [
        (2.0, [1.0, 1.1], "yes"),
        (2.0, [1.0, 2.0], "unclear"),  # one run of it was as slow as one with the defaults
        (2.0, [2.5, 2.6], "no"),
        (1.01, [2.0, 2.1], "nothing promised"),
        (1.01, [2.3, 2.4], "no"),
    ],
)
def test_advice_keeps_what_it_promises_or_is_told(promised: float, advice: list[float], kept: str) -> None:
    assert is_kept(promised, [2.0, 2.2], advice) == kept
    [(is_reached, _)] = verdicts({"advice": [{"kept": kept}]})
    assert is_reached == (kept in ("yes", "nothing promised"))


def test_of_several_rounds_the_middle_error_counts() -> None:
    row = middle(
        [{"error": error, "others": n, "drift": n, "quiet": "yes"} for n, error in enumerate((0.4, 0.02, -0.03))]
    )

    assert (row["error"], row["of all"], row["others"]) == ("+2.0%", "-3%, +2%, +40%", 2)


def test_what_was_measured_beside_other_work_is_named() -> None:
    assert disturbed(rows(8, 8)) == ""
    assert disturbed(rows(8, 8, noisy=2)).endswith("w0; w1")


def test_the_orders_are_the_same_each_time_and_the_error_of_their_sample_is_known(tmp_path: Path) -> None:
    scene = Scene(WORKLOADS[1], tmp_path, loops_per_s=1e7)
    write_orders(scene.workload, scene.orders, scene.loops_per_s)
    before = scene.orders.read_bytes()
    write_orders(scene.workload, scene.orders, scene.loops_per_s)

    assert scene.orders.read_bytes() == before
    assert scene.sampling_error(scene.workload.count) == pytest.approx(0.0)
    assert 0.0 < abs(scene.sampling_error(400)) < 0.1
