"""The simulation against what queueing theory knows in closed form, small cases by hand, and mutants that must be seen."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poqueue import simulation
from poqueue.simulation import (
    FAILED,
    RETRY,
    Attempt,
    Costs,
    History,
    Rules,
    SimulatedRun,
    predict,
    simulate,
    stretch_of,
)

pytestmark = pytest.mark.once

FREE = Costs()
HANGS = Attempt(math.inf)


def tasks(*seconds: float) -> list[History]:
    return [(Attempt(one),) for one in seconds]


def run(histories: Sequence[History], rules: Rules, costs: Costs = FREE, **more: Any) -> SimulatedRun:
    return simulate(histories, rules, costs, Random(1), **more)


# ── closed forms ─────────────────────────────────────────────────────────────────────────────────────────────────────


def erlang_c_wait_s(arrivals_per_s: float, service_per_s: float, workers: int) -> float:
    """Mean wait of M/M/c: Erlang's C over the spare capacity."""
    load = arrivals_per_s / service_per_s
    last = load**workers / math.factorial(workers) * workers / (workers - load)
    waits = last / (sum(load**n / math.factorial(n) for n in range(workers)) + last)
    return waits / (workers * service_per_s - arrivals_per_s)


def simulated_wait_s(arrivals_per_s: float, service_per_s: float, workers: int, count: int = 60_000) -> float:
    random = Random(7)
    moment, arrivals = 0.0, []
    for _ in range(count):
        moment += random.expovariate(arrivals_per_s)
        arrivals.append(moment)
    histories = tasks(*(random.expovariate(service_per_s) for _ in range(count)))
    return run(histories, Rules(workers), arrivals=arrivals).waited_s


@pytest.mark.slow
@pytest.mark.parametrize(("arrivals_per_s", "workers"), [(0.7, 1), (1.5, 2), (4.0, 5), (9.0, 10)])
def test_the_mean_wait_of_random_arrivals_is_erlangs(arrivals_per_s: float, workers: int) -> None:
    expected_s = erlang_c_wait_s(arrivals_per_s, 1.0, workers)

    assert simulated_wait_s(arrivals_per_s, 1.0, workers) == pytest.approx(expected_s, rel=0.06)


def test_utilisation_is_load_over_workers() -> None:
    random = Random(3)
    histories = tasks(*(random.expovariate(1.0) for _ in range(20_000)))
    arrivals = [n / 3.0 for n in range(20_000)]

    assert run(histories, Rules(4), arrivals=arrivals).busy_share == pytest.approx(0.75, rel=0.02)


@given(st.lists(st.floats(0.001, 100.0), min_size=1, max_size=60), st.integers(1, 12))
def test_a_batch_takes_what_list_scheduling_allows(seconds: list[float], workers: int) -> None:
    """Graham 1969."""
    even_s, longest_s = sum(seconds) / workers, max(seconds)

    makespan_s = run(tasks(*seconds), Rules(workers)).makespan_s

    assert max(even_s, longest_s) <= makespan_s * (1 + 1e-9)
    assert makespan_s <= (even_s + longest_s * (1 - 1 / workers)) * (1 + 1e-9)


@given(st.integers(1, 200), st.integers(1, 20))
def test_equal_tasks_run_in_rounds(count: int, workers: int) -> None:
    assert run(tasks(*[2.0] * count), Rules(workers)).makespan_s == pytest.approx(2.0 * math.ceil(count / workers))


@given(st.integers(1, 64), st.integers(1, 16))
def test_computing_alone_is_stretched_by_what_is_missing(running: int, cores: int) -> None:
    assert stretch_of(running, 1.0, cores) == pytest.approx(max(1.0, running / cores))


@given(st.integers(1, 64), st.floats(0.0, 1.0), st.integers(1, 16))
def test_the_stretch_lies_between_none_and_all_computing(running: int, cpu_share: float, cores: int) -> None:
    stretch = stretch_of(running, cpu_share, cores)

    assert 1.0 <= stretch <= max(1.0, running / cores) * (1 + 1e-9)
    used = running * cpu_share / (1 - cpu_share + cpu_share * stretch)
    assert used <= cores * (1 + 1e-6)


def test_one_core_and_thinking_customers_are_the_machine_repairman() -> None:
    """Two customers, half of their time on one core: p = (1, 2, 2) / 5 by hand, so 3 / 5 of a core is idle-free ..."""
    throughput_per_s = (1 - 1 / 5) / 0.5  # the core is busy but for p0, and a visit takes 0.5

    progress = throughput_per_s / 2
    assert stretch_of(2, 0.5, 1) == pytest.approx((1 / progress - 0.5) / 0.5)


@pytest.mark.parametrize(("workers", "cores"), [(2, 2), (8, 2), (3, 4), (16, 4)])
def test_a_computing_batch_takes_its_computing_over_the_cores(workers: int, cores: int) -> None:
    histories = [(Attempt(0.1, cpu_share=1.0),)] * 960

    found = run(histories, Rules(workers, cores))

    assert found.makespan_s == pytest.approx(96.0 / min(workers, cores))
    assert found.cpu_share == pytest.approx(min(1.0, workers / cores))


def test_waiting_is_not_stretched_by_those_who_compute() -> None:
    histories = [(Attempt(1.0, cpu_share=1.0),)] * 4 + [(Attempt(1.0),)] * 4

    found = run(histories, Rules(8, cores=2))

    assert found.makespan_s == pytest.approx(2.0)
    assert found.busy_share == pytest.approx((4 * 2.0 + 4 * 1.0) / (8 * 2.0))


# ── by hand ──────────────────────────────────────────────────────────────────────────────────────────────────────────

FAILS = Attempt(1.0, outcome=RETRY)
WELL = Attempt(1.0)


@pytest.mark.parametrize(
    ("history", "rules", "costs", "makespan_s", "completed", "killed", "attempts"),
    [
        pytest.param((FAILS, WELL), Rules(1), FREE, 1 + 5 + 1, 1, 0, 2, id="one retry waits its delay"),
        pytest.param((FAILS, FAILS, WELL), Rules(1), FREE, 1 + 5 + 1 + 10 + 1, 1, 0, 3, id="the second waits twice that"),
        pytest.param((FAILS,), Rules(1, max_retries=2), FREE, 1 + 5 + 1 + 10 + 1, 0, 0, 3, id="the last one repeats, in vain"),
        pytest.param((FAILS,), Rules(1, max_retries=0), FREE, 1, 0, 0, 1, id="no retries"),
        pytest.param((Attempt(1.0, outcome=FAILED),), Rules(1), FREE, 1, 0, 0, 1, id="given up"),
        pytest.param(
            (Attempt(1.0, outcome=RETRY, retry_after_s=2.5), WELL), Rules(1), FREE, 1 + 2.5 + 1, 1, 0, 2, id="its own delay"
        ),
        pytest.param((FAILS, FAILS, WELL), Rules(1, max_retry_delay=6.0), FREE, 1 + 5 + 1 + 6 + 1, 1, 0, 3, id="capped"),
        pytest.param((HANGS, WELL), Rules(1, task_timeout=3.0), FREE, 3 + 5 + 1, 1, 1, 2, id="a timeout, then a retry"),
        pytest.param((HANGS,), Rules(1, task_timeout=3.0, max_retries=1), FREE, 3 + 5 + 3, 0, 2, 2, id="hangs again"),
        pytest.param((Attempt(4.0),), Rules(1, task_timeout=3.0, max_retries=0), FREE, 3, 0, 1, 1, id="slow is killed too"),
        pytest.param(
            (HANGS, WELL), Rules(1, task_timeout=3.0), Costs(kill_s=0.5), 3.5 + 5 + 1, 1, 1, 2, id="a kill takes its time"
        ),
        pytest.param((WELL,), Rules(1), Costs(0.3, 0.2, 1.0, 0.1, 0.0, 0.0, 0.4), 0.3 + 0.1 + 1 + 0.4, 1, 0, 1, id="costs"),
        pytest.param((WELL,), Rules(1), Costs(start_s=0.3, boot_s=0.5), 0.5 + 1, 1, 0, 1, id="imports beside the queue's"),
        pytest.param((WELL,), Rules(1), Costs(start_s=0.3, boot_s=0.2, setup_s=0.4), 0.3 + 0.4 + 1, 1, 0, 1, id="then setup"),
        pytest.param(
            (Attempt(1.0, outcome=RETRY, ends_worker=True), WELL), Rules(1, retry_delay=0.0), Costs(boot_s=2.0),
            2 + 1 + 2 + 1, 1, 0, 2, id="a crash costs a start",
        ),
        pytest.param(
            (Attempt(1.0, outcome=RETRY, ends_worker=True), WELL), Rules(1, retry_delay=0.0),
            Costs(boot_s=2.0, setup_s=0.5), 2.5 + 1 + 2.5 + 1, 1, 0, 2, id="and a setup",
        ),
    ],
)  # fmt: skip
def test_one_task_takes_exactly(
    history: History, rules: Rules, costs: Costs, makespan_s: float, completed: int, killed: int, attempts: int
) -> None:
    found = run([history], rules, costs)

    assert found.makespan_s == pytest.approx(makespan_s)
    assert (found.completed, found.failed) == (completed, 1 - completed)
    assert (found.killed, found.attempts) == (killed, attempts)


def test_others_run_while_one_waits_for_its_retry() -> None:
    found = run([(FAILS, WELL), *tasks(2.0, 2.0)], Rules(1, retry_delay=1.0))

    assert found.makespan_s == pytest.approx(1 + 2 + 1 + 2)  # it comes back before the third, by its rank
    assert found.attempts == 4


def test_stretched_work_runs_into_its_timeout() -> None:
    histories = [(Attempt(1.0, cpu_share=1.0),)] * 4

    assert run(histories, Rules(4, cores=4, task_timeout=1.5, max_retries=0)).killed == 0
    assert run(histories, Rules(4, cores=2, task_timeout=1.5, max_retries=0)).killed == 4


HANGS, CRASHES = Attempt(math.inf, outcome=RETRY), Attempt(1.0, outcome=RETRY, ends_worker=True)


@pytest.mark.parametrize(
    ("first", "boot_s", "timeout_s", "seconds"),
    [
        (
            HANGS,
            2.0,
            1.0,
            8.0,
        ),  # up at 2; hangs until 3, replaced at 5, again from then; from 6 to 7 the other, replaced at once
        (HANGS, 2.0, 5.0, 14.0),  # somebody is made ready during each hang
        (CRASHES, 2.0, 5.0, 8.0),  # a crash is not foreseen; from the first on there is one in reserve
        (CRASHES, 0.0, 5.0, 4.0),
    ],
)
def test_a_lost_worker_is_replaced_by_one_in_reserve_as_soon_as_there_is_one(
    first: Attempt, boot_s: float, timeout_s: float, seconds: float
) -> None:
    rules = Rules(1, task_timeout=timeout_s, retry_delay=0.0)
    costs = Costs(boot_s=boot_s, boot_cpu_share=0.0)

    run = simulate([(first, Attempt(1.0))] * 2, rules, costs, Random(1))

    assert run.makespan_s == pytest.approx(seconds)


def test_workers_that_replace_others_compute_beside_the_tasks() -> None:
    tasks: list[History] = [(HANGS, Attempt(0.1))] * 200
    rules = Rules(8, cores=2, task_timeout=0.25, retry_delay=0.0)

    run = simulate(tasks, rules, Costs(boot_s=0.3), Random(1))

    assert run.makespan_s > 200 * 0.3 / 2


def test_one_in_reserve_has_its_setup_still_before_it() -> None:
    costs = Costs(boot_s=0.1, boot_cpu_share=0.0, setup_s=0.5)

    found = run([(HANGS, WELL)], Rules(1, task_timeout=2.0, retry_delay=0.0), costs)

    assert found.makespan_s == pytest.approx(0.1 + 0.5 + 2 + 0.5 + 1)


def test_workers_beyond_the_cores_are_started_when_the_queue_is_there() -> None:
    costs = Costs(start_s=1.0, boot_s=1.0, boot_cpu_share=0.0)

    assert run(tasks(1.0, 1.0), Rules(2, cores=3), costs).makespan_s == pytest.approx(2.0)
    assert run(tasks(1.0, 1.0), Rules(2, cores=2), costs).makespan_s == pytest.approx(3.0)
    assert run(tasks(1.0, 1.0), Rules(2, cores=2), replace(costs, boot_s=1.5)).makespan_s == pytest.approx(3.5)


def test_starts_are_a_delay_apart_however_many_workers_there_are() -> None:
    found = run(tasks(*[1.0] * 10), Rules(10, start_delay=0.5))
    again = run([(FAILS, WELL)] * 2, Rules(2, start_delay=3.0, retry_delay=0.0))

    assert found.makespan_s == pytest.approx(9 * 0.5 + 1.0)
    assert again.makespan_s == pytest.approx(3 * 3.0 + 1.0)
    assert run(tasks(*[1.0] * 10), Rules(1, start_delay=0.5)).makespan_s == pytest.approx(10.0)


def test_a_worker_is_replaced_after_as_many_attempts_as_it_may_make() -> None:
    costs = Costs(boot_s=0.5, boot_cpu_share=0.0, setup_s=0.25, leave_s=0.1)

    found = run(tasks(*[1.0] * 6), Rules(1, max_tasks_per_worker=2), costs)

    up_s = 0.5 + 0.25
    assert found.makespan_s == pytest.approx(up_s + 2 * (2.0 + 0.1 + up_s) + 2.0 + 0.1)


def test_a_batch_that_cannot_end_is_refused() -> None:
    with pytest.raises(ValueError, match="timeout"):
        run([(HANGS,)], Rules(1))


def test_the_urgent_end_first_and_those_alike_in_order() -> None:
    found = run(tasks(1.0, 1.0, 1.0, 1.0), Rules(1), priorities=[9, 5, 1, 5])

    assert found.ended_s == {1: 1.0, 5: 3.0, 9: 4.0}


def test_without_priorities_the_order_of_arrival_counts() -> None:
    found = run(tasks(1.0, 1.0, 1.0), Rules(1, by_priority=False), priorities=[9, 5, 1])

    assert found.ended_s == {9: 1.0, 5: 2.0, 1: 3.0}


def test_the_same_seed_gives_the_same_run_and_another_one_another_jitter() -> None:
    histories = [(FAILS, WELL)] * 20
    rules = Rules(2, jitter=1.0)

    first, again, other = (simulate(histories, rules, FREE, Random(seed)) for seed in (1, 1, 2))

    assert first == again
    assert first.makespan_s != other.makespan_s


# ── laws ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

attempts = st.builds(
    Attempt,
    seconds=st.one_of(st.floats(0.01, 10.0), st.just(math.inf)),
    cpu_share=st.floats(0.0, 1.5),
    outcome=st.sampled_from(["completed", "retry", "failed"]),
    ends_worker=st.booleans(),
)
histories_of_attempts = st.lists(st.lists(attempts, min_size=1, max_size=3).map(tuple), min_size=1, max_size=30)


@pytest.mark.slow
@given(histories_of_attempts, st.integers(1, 6), st.sampled_from([1.0, 2.0, math.inf]), st.integers(0, 3))
def test_every_task_ends_once_whatever_happens(
    histories: list[History], workers: int, cores: float, max_retries: int
) -> None:
    costs = Costs(0.1, 0.2, 0.9, 0.01, 0.01, 0.1, 0.1)

    found = run(histories, Rules(workers, cores, 4.0, max_retries, 0.5), costs)

    assert found.completed + found.failed == len(histories)
    assert len(histories) <= found.attempts <= len(histories) * (max_retries + 1)
    assert 0.0 <= found.busy_share <= 1.0 and 0.0 <= found.cpu_share <= 1.0
    assert found.stretch >= 1.0 - 1e-9 and math.isfinite(found.makespan_s)


# ── predictions ──────────────────────────────────────────────────────────────────────────────────────────────────────


def drawn(shape: Callable[[Random], float], count: int, seed: int) -> list[History]:
    random = Random(seed)
    return tasks(*(shape(random) for _ in range(count)))


@pytest.mark.slow
def test_the_range_holds_the_truth_nearly_always_and_narrows_with_the_sample() -> None:
    """Sixty predictions for batches of exponential durations, each from a sample of its own."""
    rules = Rules(8)
    widths: dict[int, list[float]] = {20: [], 200: []}
    missed = 0
    for seed in range(30):
        truth_s = run(drawn(lambda random: random.expovariate(1.0), 800, seed), rules).makespan_s
        for size, found_widths in widths.items():
            sample = drawn(lambda random: random.expovariate(1.0), size, 1000 + seed)
            found = predict(sample, [5] * 800, rules, FREE, Random(seed), runs=10)
            missed += not found.low_s <= truth_s <= found.high_s
            found_widths.append(found.high_s - found.low_s)

    assert missed <= 3
    assert statistics.fmean(widths[200]) < statistics.fmean(widths[20]) / 2


def test_a_heavy_tail_is_told_and_its_range_reaches_beyond_what_was_seen() -> None:
    rules = Rules(4)
    heavy = predict(drawn(lambda random: random.paretovariate(1.3), 100, 5), [5] * 2000, rules, FREE, Random(1))
    light = predict(drawn(lambda random: random.uniform(1.0, 3.0), 100, 5), [5] * 2000, rules, FREE, Random(1))

    assert heavy.is_heavy_tailed and not light.is_heavy_tailed
    assert heavy.high_s - heavy.seconds > 3 * (light.high_s - light.seconds) * heavy.seconds / light.seconds


def test_a_long_batch_goes_on_at_its_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = drawn(lambda random: random.uniform(1.0, 2.0), 50, 1)
    whole = predict(sample, [5] * 4000, Rules(4), FREE, Random(1), runs=0)
    monkeypatch.setattr(simulation, "MAX_SIMULATED_TASKS", 500)

    found = predict(sample, [5] * 4000, Rules(4), FREE, Random(1), runs=0)

    assert found.seconds == pytest.approx(whole.seconds, rel=0.03)
    assert found.run.completed == 4000


def test_more_workers_never_take_longer_while_work_waits() -> None:
    sample = drawn(lambda random: random.expovariate(1.0), 100, 2)

    took = [predict(sample, [5] * 500, Rules(n), FREE, Random(1), runs=0).seconds for n in (1, 2, 4, 8, 16)]

    assert all(fewer > more for fewer, more in pairwise(took))


def test_nothing_measured_is_no_prediction() -> None:
    with pytest.raises(ValueError, match="measured"):
        predict([], [5], Rules(1), FREE, Random(1))


# ── mutants ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _forgets_half_of_the_delay(retry: int, base_s: float, *rest: Any) -> float:
    return base_s * 2.0 ** (retry - 1) / 2


def test_the_tests_see_a_backoff_that_is_too_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation, "backoff_s", _forgets_half_of_the_delay)

    with pytest.raises(AssertionError):
        test_one_task_takes_exactly((FAILS, WELL), Rules(1), FREE, 7, 1, 0, 2)


@pytest.mark.once
def test_the_tests_see_a_worker_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    original = simulation._Simulation._boot_workers

    def one_more(self: Any) -> None:
        self._rules = replace(self._rules, workers=self._rules.workers + 1)
        original(self)

    monkeypatch.setattr(simulation._Simulation, "_boot_workers", one_more)

    with pytest.raises(AssertionError):
        test_the_mean_wait_of_random_arrivals_is_erlangs(4.0, 5)


def test_the_tests_see_the_last_task_served_first(monkeypatch: pytest.MonkeyPatch) -> None:
    original = simulation._Simulation.__init__

    def backwards(self: Any, histories: Any, priorities: Any, *rest: Any) -> None:
        original(self, histories, [10 - one for one in priorities], *rest)
        self._priorities = priorities

    monkeypatch.setattr(simulation._Simulation, "__init__", backwards)

    with pytest.raises(AssertionError):
        test_the_urgent_end_first_and_those_alike_in_order()


def test_the_tests_see_cores_that_are_never_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation, "stretch_of", lambda running, cpu_share, cores: 1.0)

    with pytest.raises(AssertionError):
        test_a_computing_batch_takes_its_computing_over_the_cores(8, 2)
