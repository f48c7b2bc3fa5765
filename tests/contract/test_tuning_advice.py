"""optimize_for_workload advises, and changes nothing."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from poqueue import TaskQueue
from tests.contract.scene import find, nothing_changes, task

pytestmark = pytest.mark.contract("R23")

SETTINGS = ("max_retries", "retry_delay", "task_timeout", "queue_size_limit")
WORKLOADS = [(1, 0.001, 1), (200, 30.0, 4), (10_000, 2.5, 8), (1_000_000, 3600.0, 64), (9, 1e7, 2), (9, 1e-310, 2)]


@pytest.mark.parametrize("workload", WORKLOADS)
def test_the_advice_is_plain_json_under_the_names_of_the_settings(
    queue: TaskQueue, workload: tuple[int, float, int]
) -> None:
    advice = queue.optimize_for_workload(*workload)

    assert json.loads(json.dumps(advice, allow_nan=False)) == advice
    assert set(advice) >= set(SETTINGS)
    for topic in ("worker", "memory", "priority"):
        assert [name for name in advice if topic in name] != [], topic


@pytest.mark.parametrize("workload", WORKLOADS)
def test_the_advice_can_be_taken_as_it_stands(queue: TaskQueue, workload: tuple[int, float, int]) -> None:
    advice = queue.optimize_for_workload(*workload)

    queue.update_configuration(**{name: advice[name] for name in SETTINGS})

    queue.add_task(task("PO-1", "a"))
    added = find(queue, "a")
    assert (added.max_retries, added.retry_delay, added.task_timeout) == tuple(advice[name] for name in SETTINGS[:3])


@pytest.mark.parametrize(("count", "workers"), [(1, 1), (2, 1), (3, 1), (5, 1), (100, 1), (101, 1), (4, 2)])
def test_few_tasks_are_predicted_to_take_what_they_take_on_average(queue: TaskQueue, count: int, workers: int) -> None:
    predicted_s = queue.optimize_for_workload(count, 100.0, workers)["predicted_completion_s"]

    plain_s = count * 100.0 / workers
    assert 0.9 * plain_s <= predicted_s <= (1.1 if workers == 1 else 2.0) * plain_s


@pytest.mark.parametrize("workload", WORKLOADS[:3])
def test_the_advice_fits_the_workload(queue: TaskQueue, workload: tuple[int, float, int]) -> None:
    count, duration, _ = workload

    advice = queue.optimize_for_workload(*workload)

    assert advice["task_timeout"] > duration
    assert advice["queue_size_limit"] >= count


def test_each_advice_has_its_reason_in_words(queue: TaskQueue) -> None:
    advice = queue.optimize_for_workload(200, 30.0, 4)

    reasons = advice["reasons"]
    topics = ("worker", "memory", "priority")
    assert set(reasons) >= {*SETTINGS, *(name for name in advice for topic in topics if topic in name)}
    assert set(reasons) <= set(advice)
    assert all(isinstance(reason, str) and len(reason.split()) > 2 for reason in reasons.values())


@pytest.mark.parametrize(("workload", "urgent"), [((10_000, 2.5, 8), "59.4 s"), ((1_000_000, 3600.0, 64), "156 h")])
def test_the_reason_of_a_threshold_says_how_long_the_urgent_tasks_take(
    queue: TaskQueue, workload: tuple[int, float, int], urgent: str
) -> None:
    reasons = queue.optimize_for_workload(*workload)["reasons"]

    assert f"through in about {urgent}" in reasons["priority_thresholds"]
    assert "e+0" not in " ".join(reasons.values())


@pytest.mark.parametrize("tasks", [0, 1, 3])
def test_fewer_workers_than_asked_for_are_explained_by_the_tasks_if_there_are_no_more(
    queue: TaskQueue, tasks: int
) -> None:
    advice = queue.optimize_for_workload(tasks, 1.0, 4)

    assert advice["worker_count"] == max(1, tasks)
    assert advice["reasons"]["worker_count"].endswith("instead of 4: there are no more tasks")


def test_it_is_advice_only(queue: TaskQueue) -> None:
    queue.add_task(task("PO-1", "before"))

    with nothing_changes(queue):
        queue.optimize_for_workload(10_000, 100.0, 8)

    queue.add_task(task("PO-2", "after"))
    after = find(queue, "after")
    assert (after.max_retries, after.retry_delay, after.task_timeout) == (3, 5.0, 300.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("expected_task_count", value) for value in (-1, 1.5, True, "10", None, math.nan)),
        pytest.param("expected_task_count", 10**400, id="more tasks than a float holds"),
        *(("average_task_duration", value) for value in (-1, math.nan, math.inf, True, "10", None)),
        pytest.param("average_task_duration", 10**400, id="more than a float holds"),
        *(("worker_count", value) for value in (0, -1, 2.5, True, "4", None)),
    ],
)
def test_bad_arguments_are_errors_that_name_them(queue: TaskQueue, name: str, value: Any) -> None:
    workload: dict[str, Any] = {"expected_task_count": 10, "average_task_duration": 1.0, "worker_count": 2}

    with nothing_changes(queue), pytest.raises(ValueError, match=name):
        queue.optimize_for_workload(**{**workload, name: value})
