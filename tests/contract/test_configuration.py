"""Settings: what is refused, and for whom a change counts."""

from __future__ import annotations

import math
from typing import Any

import pytest

from poqueue import TaskQueue
from tests.contract.conftest import MakeQueue
from tests.contract.scene import (
    Clock,
    counts,
    find,
    finish,
    give_back,
    lease,
    leased_id,
    nothing_changes,
    task,
)
from workers.task_queue import QueueFullError

BAD_TIMEOUTS = [0, 0.0, -1, -0.5, math.nan, math.inf, -math.inf, True, False, "5", "5s", [5]]
BAD_RETRY_DELAYS = [-1, -0.5, math.nan, math.inf, True, False, "5", [5]]
BAD_MAX_RETRIES = [-1, 1.5, 3.0, math.nan, math.inf, True, False, "3", [3]]
BAD_LIMITS = [-1, 1.5, math.nan, math.inf, True, False, "3", [3]]


@pytest.mark.contract("R1", "R28")
@pytest.mark.parametrize("task_timeout", [*BAD_TIMEOUTS, None])
def test_a_bad_timeout_is_refused_with_the_word_timeout(task_timeout: Any) -> None:
    with pytest.raises(ValueError, match="timeout"):
        TaskQueue(task_timeout=task_timeout)


@pytest.mark.contract("R1", "R28")
@pytest.mark.parametrize("max_retries", [*BAD_MAX_RETRIES, None])
def test_bad_retries_are_refused_with_the_word_retry(max_retries: Any) -> None:
    with pytest.raises(ValueError, match="retry"):
        TaskQueue(max_retries=max_retries)


@pytest.mark.contract("R1", "R28")
@pytest.mark.parametrize("retry_delay", [*BAD_RETRY_DELAYS, None])
def test_a_bad_retry_delay_is_refused_with_the_word_retry(retry_delay: Any) -> None:
    with pytest.raises(ValueError, match="retry"):
        TaskQueue(retry_delay=retry_delay)


@pytest.mark.contract("R28")
@pytest.mark.parametrize("name", ["max_retry_delay", "retry_jitter", "retention_s"])
@pytest.mark.parametrize("value", [-1, math.nan, math.inf, True, "5"])
def test_bad_further_numbers_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        TaskQueue(**{name: value})


@pytest.mark.contract("R9", "R28")
@pytest.mark.parametrize("queue_size_limit", BAD_LIMITS)
def test_a_bad_size_limit_is_refused(queue_size_limit: Any) -> None:
    with pytest.raises(ValueError, match="limit"):
        TaskQueue(queue_size_limit=queue_size_limit)


@pytest.mark.contract("R1", "R28")
@pytest.mark.parametrize(
    "options",
    [{"task_timeout": 0.001}, {"task_timeout": 1}, {"retry_delay": 0.001}, {"retry_delay": 2}, {"max_retries": 0}],
)
def test_small_and_whole_numbers_will_do(make_queue: MakeQueue, options: dict[str, Any]) -> None:
    queue = make_queue(**options)

    assert queue.add_task(task())


@pytest.mark.contract("R28")
@pytest.mark.parametrize("task_timeout", BAD_TIMEOUTS)
def test_a_task_with_a_bad_timeout_of_its_own_is_refused(queue: TaskQueue, task_timeout: Any) -> None:
    with nothing_changes(queue), pytest.raises(ValueError, match="timeout"):
        queue.add_task(task("PO-1", task_timeout=task_timeout))


@pytest.mark.contract("R28")
@pytest.mark.parametrize("fields", [{"max_retries": -1}, {"max_retries": True}, {"retry_delay": math.nan}])
def test_a_task_with_bad_retry_values_of_its_own_is_refused(queue: TaskQueue, fields: dict[str, Any]) -> None:
    with nothing_changes(queue), pytest.raises(ValueError, match="retry"):
        queue.add_task(task("PO-1", **fields))


@pytest.mark.contract("R10", "R28")
@pytest.mark.parametrize(
    ("name", "word", "value"),
    [
        *(("task_timeout", "timeout", value) for value in BAD_TIMEOUTS),
        *(("max_retries", "retry", value) for value in BAD_MAX_RETRIES),
        *(("retry_delay", "retry", value) for value in BAD_RETRY_DELAYS),
        *(("queue_size_limit", "limit", value) for value in BAD_LIMITS),
    ],
)
def test_one_bad_value_keeps_all_settings_as_they_were(queue: TaskQueue, name: str, word: str, value: Any) -> None:
    good = {"max_retries": 9, "retry_delay": 99.0, "task_timeout": 999.0, "queue_size_limit": 1}

    with nothing_changes(queue), pytest.raises(ValueError, match=word):
        queue.update_configuration(**{**good, name: value})

    queue.add_tasks([task("PO-1", "a"), task("PO-2", "b")])
    added = find(queue, "a")
    assert (added.max_retries, added.retry_delay, added.task_timeout) == (3, 5.0, 300.0)


@pytest.mark.contract("R10")
def test_a_task_carries_the_settings_of_the_time_it_was_added(queue: TaskQueue) -> None:
    queue.add_task(task("PO-1", "old"))
    queue.update_configuration(max_retries=1, retry_delay=50.0, task_timeout=60.0)
    queue.add_task(task("PO-2", "new"))

    old, new = find(queue, "old"), find(queue, "new")
    assert (old.max_retries, old.retry_delay, old.task_timeout) == (3, 5.0, 300.0)
    assert (new.max_retries, new.retry_delay, new.task_timeout) == (1, 50.0, 60.0)


@pytest.mark.contract("R10")
def test_what_is_left_out_stays(queue: TaskQueue) -> None:
    queue.update_configuration(max_retries=1)
    queue.update_configuration(retry_delay=50.0)
    queue.update_configuration()
    queue.add_task(task("PO-1", "a"))

    added = find(queue, "a")
    assert (added.max_retries, added.retry_delay, added.task_timeout) == (1, 50.0, 300.0)


@pytest.mark.contract("R10", "R1")
def test_old_tasks_keep_their_retries_and_new_ones_get_the_new_number(queue: TaskQueue, clock: Clock) -> None:
    queue.add_task(task("PO-1", "old"))
    queue.update_configuration(max_retries=0)
    queue.add_task(task("PO-2", "new"))

    give_back(queue)
    lease(queue)
    assert queue.retry_task("new", {"error": "boom"}) is False
    for _ in range(2):
        clock.advance(3600)
        assert give_back(queue) == "old"
    clock.advance(3600)
    lease(queue)
    assert queue.retry_task("old", {"error": "boom"}) is False
    assert counts(queue, "failed_tasks") == (2,)


@pytest.mark.contract("R10", "R4")
def test_old_tasks_keep_their_retry_delay_even_while_they_wait(queue: TaskQueue, clock: Clock) -> None:
    queue.add_task(task("PO-1", "waiting"))
    queue.add_task(task("PO-2", "pending"))
    give_back(queue)
    queue.update_configuration(retry_delay=1000.0)
    give_back(queue)

    clock.advance(5)
    assert [leased_id(queue, "w1"), leased_id(queue, "w2")] == ["waiting", "pending"]
    queue.add_task(task("PO-3", "new"))
    give_back(queue, "w3")
    clock.advance(999)
    assert queue.get_next_task("w3") is None
    clock.advance(1)
    assert leased_id(queue, "w3") == "new"


@pytest.mark.contract("R10")
def test_settings_of_a_tasks_own_win(queue: TaskQueue) -> None:
    queue.add_task(task("PO-1", "a", max_retries=7, retry_delay=1.5, task_timeout=42.0))

    added = find(queue, "a")
    assert (added.max_retries, added.retry_delay, added.task_timeout) == (7, 1.5, 42.0)


@pytest.mark.contract("R10", "R9")
def test_a_change_of_the_size_limit_acts_on_the_next_add(queue: TaskQueue) -> None:
    queue.add_task(task("PO-1"))
    queue.update_configuration(queue_size_limit=1)

    with nothing_changes(queue), pytest.raises(QueueFullError):
        queue.add_task(task("PO-2"))
    finish(queue)
    assert queue.add_task(task("PO-2"))
