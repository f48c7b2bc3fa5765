"""`poqueue tune` without a process: samples, attempts summed up, the advice, and the file that it writes."""

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poqueue import ProcessingTask, TaskQueue, TaskResult, tuning
from poqueue.adaptive import TIMEOUT_ERROR
from poqueue.errors import ConfigError, OrdersError
from poqueue.metrics import Metrics
from poqueue.simulation import COMPLETED, RETRY, Costs
from poqueue.tuning import Machine
from workers import advice as tuned
from workers.advice import Item, recommend
from workers.advice_report import as_json, as_text, as_yaml
from workers.measurement import Measurement, measured_from_history
from workers.measuring import Measure
from workers.resolved import load_settings
from workers.sample import MeasuredAttempt, _alone_s, choose
from workers.settings import RunSettings
from workers.tune import check_new_file, parse_what_if

pytestmark = pytest.mark.once

MACHINE = Machine(cores=2, free_bytes=8_000_000_000)


def order(number: int, supplier: str, amount: str = "1") -> dict[str, Any]:
    return {"po_number": f"PO-{number}", "supplier": supplier, "rows": [{"amount": amount}]}


def well(number: int, seconds: float = 1.0, cpu_s: float = 0.0) -> MeasuredAttempt:
    return MeasuredAttempt(f"PO-{number}", seconds, "completed", cpu_s=cpu_s, max_rss_bytes=50_000_000)


def badly(
    number: int, outcome: str = "retry", kind: str = "ValueError", seconds: float | None = 1.0
) -> MeasuredAttempt:
    return MeasuredAttempt(f"PO-{number}", seconds, outcome, kind, cpu_s=0.0)


def advised(
    measurement: Measurement, *, pos: int = 200, settings: RunSettings | None = None, **more: Any
) -> dict[str, Any]:
    found = recommend(measurement, [5] * pos, settings or RunSettings(), MACHINE, **more)
    return as_json(measurement, found, pos)


# ── the sample ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_large_supplier_is_there_by_its_share_and_small_ones_together() -> None:
    orders = [order(n, "large") for n in range(500)] + [order(500 + n, f"small {n}") for n in range(500)]

    chosen = choose(orders, 20, Random(1))

    assert Counter(place < 500 for place in chosen) == {True: 10, False: 10}


def test_amounts_are_there_from_the_smallest_to_the_largest() -> None:
    orders = [order(n, "ACME", str(n)) for n in range(1000)]
    Random(5).shuffle(orders)

    amounts = sorted(int(orders[place]["rows"][0]["amount"]) for place in choose(orders, 10, Random(1)))

    assert [amount // 100 for amount in amounts] == list(range(10))


@given(st.integers(0, 300), st.integers(1, 400), st.integers(0, 5))
def test_a_sample_has_the_size_asked_for_and_nothing_twice(count: int, size: int, seed: int) -> None:
    orders = [order(n, f"s{n % 3}", f"{n * 7 % 100}") for n in range(count)]

    chosen = choose(orders, size, Random(seed))

    assert len(set(chosen)) == len(chosen) == min(size, count)
    assert chosen == choose(orders, size, Random(seed))


def test_every_po_may_be_chosen() -> None:
    orders = [order(n, f"s{n % 3}", f"{n * 7 % 100}") for n in range(60)]

    assert {place for seed in range(200) for place in choose(orders, 6, Random(seed))} == set(range(60))


def test_an_amount_that_is_none_counts_as_nothing() -> None:
    orders: list[dict[str, Any]] = [
        {"po_number": "1", "supplier": None, "amount": "NA"},
        {"po_number": "2"},
        order(3, "x", "12.50"),
    ]

    assert choose(orders, 3, Random(1)) == [0, 1, 2]


# ── attempts, summed up ──────────────────────────────────────────────────────────────────────────────────────────────


def test_attempts_become_histories_by_po() -> None:
    found = measured_from_history(
        [badly(1), well(2, 3.0, 2.4), well(1), badly(3, kind=TIMEOUT_ERROR, seconds=9.0), badly(3, "failed")]
    )

    assert [[(a.seconds, a.outcome) for a in history] for history in found.histories] == [
        [(1.0, "retry"), (1.0, "completed")],
        [(3.0, "completed")],
        [(math.inf, "retry"), (1.0, "retry")],
    ]
    assert found.seconds == [1.0, 3.0]
    assert (found.attempts, found.retried, found.recovered, found.in_vain, found.retries_needed) == (5, 2, 1, 1, 1)
    assert found.failures == {"ValueError": 2, TIMEOUT_ERROR: 1}
    assert found.hung == {"PO-3": 9.0}


@pytest.mark.parametrize(
    ("cpu_s", "queued_s", "seconds"),
    [
        (1.0, 2.0, 1.0),  # it computed, and had no core two thirds of the time: that tells of the machine
        (0.0, 0.5, 3.0),  # it slept, and woke up late: so it will in the batch
        (1.25, 0.5, 2.75),
        (4.0, 0.0, 3.0),  # two cores at once
    ],
)
def test_the_wait_for_a_core_counts_as_far_as_the_attempt_does_not_compute(
    cpu_s: float, queued_s: float, seconds: float
) -> None:
    measure = Measure("t1", 1, 4711, 10.0, 13.0, cpu_s, queued_s)

    assert _alone_s(measure) == pytest.approx(seconds)


def test_two_tasks_of_one_po_number_stay_two() -> None:
    assert len(measured_from_history([well(1), well(1)]).histories) == 2


def test_a_po_that_waits_for_its_retry_is_no_po_that_fails_for_ever() -> None:
    measurement = measured_from_history([*(well(n) for n in range(20)), badly(77, kind=TIMEOUT_ERROR, seconds=300.0)])

    found = advised(measurement, pos=21)

    assert (measurement.retried, measurement.recovered, measurement.in_vain) == (1, 0, 0)
    assert [(one.seconds, one.outcome) for one in measurement.histories[-1]] == [
        (math.inf, RETRY), (1.0, COMPLETED)
    ]  # fmt: skip
    assert (found["predicted"]["now"]["attempts"], found["predicted"]["now"]["failed"]) == (22, 0)


def test_an_interrupted_attempt_says_nothing() -> None:
    found = measured_from_history([badly(1, "interrupted"), well(1)])

    assert (found.attempts, found.retried) == (1, 0)


def test_an_attempt_of_unknown_length_takes_the_usual_time() -> None:
    found = measured_from_history([badly(1, seconds=None), well(1, 2.0), well(2, 4.0), well(3, 4.0)])

    assert found.histories[0][0].seconds == 4.0


def test_a_crash_takes_its_worker_along_and_giving_up_is_final() -> None:
    gave_up = MeasuredAttempt("PO-2", 1.0, "failed", "GiveUp", is_final=True)

    found = measured_from_history([badly(1, kind="WorkerKilled"), well(1), gave_up])

    assert [attempt.ends_worker for attempt in found.histories[0]] == [True, False]
    assert found.histories[1][0].outcome == "failed"


def test_nothing_that_ended_well_is_nothing_to_learn_from() -> None:
    with pytest.raises(OrdersError, match="1 x ValueError"):
        measured_from_history([badly(1, "failed")])


@pytest.mark.parametrize(("cpu_s", "kind"), [(0.0, "waits"), (0.5, "both"), (0.9, "computes"), (None, "unknown")])
def test_it_is_told_whether_the_work_waits_or_computes(cpu_s: float | None, kind: str) -> None:
    assert measured_from_history([MeasuredAttempt("1", 1.0, "completed", cpu_s=cpu_s)]).kind == kind


# ── the advice ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_work_that_waits_gets_many_workers_and_work_that_computes_the_cores() -> None:
    waits = measured_from_history([well(n, 1.0, 0.01) for n in range(20)])
    computes = measured_from_history([well(n, 1.0, 1.0) for n in range(20)])

    assert advised(waits)["advice"]["jobs"]["advice"] == 16  # as many times as were measured at once
    assert advised(computes)["advice"]["jobs"]["advice"] == 2


def test_workers_fit_into_the_memory_and_are_no_more_than_the_pos() -> None:
    measurement = measured_from_history([well(n, 1.0, 0.01) for n in range(20)])
    small = Machine(cores=2, free_bytes=200_000_000)

    assert recommend(measurement, [5] * 200, RunSettings(), small).items[0].advice == 3
    assert recommend(measurement, [5] * 4, RunSettings(), MACHINE).items[0].advice <= 4


def test_where_computing_was_not_measured_the_workers_stay_and_the_range_is_wide() -> None:
    measurement = measured_from_history([MeasuredAttempt(str(n), 1.0, "completed") for n in range(20)])
    settings = RunSettings(jobs=8)

    found = recommend(measurement, [5] * 200, settings, MACHINE)

    assert found.items[0].advice == 8
    assert found.now.low_s < 25.0 and found.now.high_s > 100.0


@pytest.mark.parametrize("repeated", [0, 7])
def test_workers_on_which_nothing_is_advised_are_as_set_or_as_many_as_memory_holds(repeated: int) -> None:
    unmeasured = [MeasuredAttempt(str(n), 1.0, "completed") for n in range(20)]
    measured = [well(n, 1.0, 0.01) for n in range(20)]
    measurement = replace(measured_from_history(measured if repeated else unmeasured), repeated=repeated)
    small = Machine(cores=2, free_bytes=200_000_000)

    def workers(pos: int, machine: Machine) -> Item:
        return recommend(measurement, [5] * pos, RunSettings(jobs=32), machine).items[0]

    for stays in (workers(200, MACHINE), workers(4, MACHINE), workers(0, MACHINE), workers(2, small)):
        assert stays.advice == 32 and stays.why.startswith("as set: ")
    held = workers(200, small)
    assert held.advice < 32 and held.why.startswith(f"no more than {held.advice} fit into the memory: ")


@given(st.lists(st.floats(0.001, 5000.0), min_size=1, max_size=50))
def test_the_timeout_kills_nothing_that_ended_well(seconds: list[float]) -> None:
    measurement = measured_from_history([well(n, one) for n, one in enumerate(seconds)])
    reasons: dict[str, str] = {}

    timeout_s = tuned.recommended_timeout(measurement, reasons)

    assert timeout_s >= 2.9 * max(seconds) and timeout_s >= 1.0
    assert tuned.would_kill(measurement, timeout_s) == []


def test_the_pos_that_a_timeout_would_have_killed_are_named() -> None:
    measurement = measured_from_history(
        [*(well(n) for n in range(20)), badly(77, kind=TIMEOUT_ERROR, seconds=300.0), badly(77, "failed")]
    )

    found = advised(measurement)

    assert found["would_kill"] == ["PO-77"]
    assert "PO-77" in found["advice"]["task_timeout"]["why"]
    assert found["advice"]["task_timeout"]["advice"] == 5.0
    assert tuned.would_kill(measurement, 0.5) == ["PO-77", *(f"PO-{n}" for n in range(20))]


def needing(*retries: int, tried: int = 3) -> Measurement:
    """Of POs that needed so many retries each, where there were so many; 20 others had no need of any."""
    attempts = [well(n) for n in range(20)]
    for number, needed in enumerate(retries, 20):
        attempts += [badly(number) for _ in range(min(needed, tried))]
        attempts.append(well(number) if needed <= tried else badly(number, "failed"))
    return measured_from_history(attempts)


NEVER = 1_000


@pytest.mark.parametrize(
    ("retries", "why"),
    [
        ([], "nothing that was retried has ended yet; up to"),
        ([1], "1 of 1 that were retried recovered, needing 1 at most; too few to go by"),
        ([NEVER] * 5 + [2] * 5, "5 of 10 that were retried recovered, needing 2 at most; too few to go by"),
        ([NEVER] * 19, "none of 19 that were retried recovered; too few to go by"),
        ([1] * 30 + [3], "31 of 31 that were retried recovered, needing 3 at most"),
        ([NEVER] * 10 + [1] * 20, "20 of 30 that were retried recovered, needing 1 at most"),
        ([NEVER] * 10 + [3] * 20, "20 of 30 that were retried recovered, needing 3 at most; more may help the others"),
    ],
)
def test_retries_are_as_configured_where_nothing_measured_speaks_against_them(retries: list[int], why: str) -> None:
    found = advised(needing(*retries))["advice"]["max_retries"]

    assert found["advice"] == 3
    assert found["why"].startswith(f"as configured (3): {why}")


@pytest.mark.parametrize(
    ("retries", "fewer", "why"),
    [
        ([NEVER] * 20, 1, "none of 20 that were retried recovered; 1 leaves room for others"),
        (
            [NEVER] * 10 + [2] * 10,
            5,
            "10 of 20 that were retried recovered, needing 2 at most; 5 leaves room for others",
        ),
        ([NEVER] + [5] * 30, 10, "as configured (10): 30 of 31 that were retried recovered, needing 5 at most"),
        ([4] * 30, 10, "as configured (10): 30 of 30 that were retried recovered, needing 4 at most"),
    ],
)
def test_fewer_retries_are_far_more_than_any_po_needed_and_only_where_some_are_in_vain(
    retries: list[int], fewer: int, why: str
) -> None:
    found = advised(needing(*retries, tried=10), settings=RunSettings(max_retries=10))["advice"]["max_retries"]

    assert (found["advice"], found["why"]) == (fewer, why)


def test_a_po_that_recovered_is_not_lost_to_fewer_retries_that_are_set_now() -> None:
    found = advised(needing(1, 5, NEVER, tried=6), settings=RunSettings(max_retries=2), pos=23)

    assert found["advice"]["max_retries"] == {
        "now": 2, "advice": 5, "why": "2 of 3 that were retried recovered, needing 5 at most"
    }  # fmt: skip
    assert (found["predicted"]["now"]["failed"], found["predicted"]["advised"]["failed"]) == (2, 1)


@given(st.lists(st.sampled_from([0, 1, 2, 3, 4, 6, NEVER]), max_size=40), st.integers(0, 7), st.integers(0, 2))
def test_no_advice_is_worse_than_what_is_set_in_its_own_prediction(
    retries: list[int], max_retries: int, waiting: int
) -> None:
    attempts = [badly(n) for n in range(100, 103) for _ in range(waiting)]  # the run has not come to their end
    measurement = needing(*retries, tried=6)
    open_ones = measured_from_history([*attempts, well(0)]).histories
    measurement = replace(measurement, histories=[*measurement.histories, *open_ones])
    settings = RunSettings(max_retries=max_retries, jobs=2)

    found = recommend(measurement, [5] * len(measurement.histories), settings, MACHINE)

    now, better = found.now.run, found.advised.run
    assert better.failed <= now.failed
    assert better.attempts <= now.attempts or better.failed < now.failed


def test_what_may_fail_unseen_is_told_by_the_rule_of_three_only_where_nothing_failed() -> None:
    smooth = measured_from_history([well(n) for n in range(20)])
    rough = measured_from_history([*(well(n) for n in range(10)), *(badly(n, "failed") for n in range(10, 20))])

    assert "up to 15.0% of all POs may still need some" in advised(smooth)["advice"]["max_retries"]["why"]
    assert "rule of three" not in advised(rough)["advice"]["max_retries"]["why"]


@pytest.mark.parametrize(
    ("cpu_s", "retried", "delay_s"),
    [(0.97, True, 0.1), (0.97, False, 5.0), (0.8, True, 5.0), (0.05, True, 5.0), (None, True, 5.0)],
)
def test_only_work_that_computes_need_not_wait_for_its_retry(
    cpu_s: float | None, retried: bool, delay_s: float
) -> None:
    attempts = [*(well(n) for n in range(20)), *([badly(77), well(77)] if retried else [])]
    measurement = measured_from_history([replace(one, cpu_s=cpu_s) for one in attempts])

    assert advised(measurement)["advice"]["retry_delay"]["advice"] == delay_s


@pytest.mark.parametrize(
    "failed", [badly(77, kind="OutOfMemory"), replace(badly(77, kind="RetryLater"), retry_after_s=2.0)]
)
def test_where_memory_or_a_service_was_missing_a_retry_waits_as_set(failed: MeasuredAttempt) -> None:
    attempts = [replace(one, cpu_s=1.0) for one in (*(well(n) for n in range(20)), failed, well(77))]

    assert advised(measured_from_history(attempts))["advice"]["retry_delay"]["advice"] == 5.0


def test_a_shorter_retry_delay_is_in_the_prediction() -> None:
    attempts = [*(well(n, 1.0, 1.0) for n in range(19)), badly(77), well(77, 1.0, 1.0)]
    settings = RunSettings(jobs=2, retry_delay=600.0)

    found = advised(measured_from_history([replace(one, cpu_s=1.0) for one in attempts]), pos=20, settings=settings)

    assert found["predicted"]["now"]["seconds"] > 600.0
    assert found["predicted"]["advised"]["seconds"] < 20.0


def started(measurement: Measurement, spawn_s: float, forkserver_s: float) -> Measurement:
    """With a measured start of workers by either method."""
    return replace(
        measurement, costs=Costs(boot_s=spawn_s, end_s=0.5), forkserver_costs=Costs(boot_s=forkserver_s, end_s=0.5)
    )


def test_workers_come_from_a_forkserver_where_that_saves_a_share_of_the_batch() -> None:
    measurement = measured_from_history([well(n, 1.0, 1.0) for n in range(20)])

    short = recommend(started(measurement, 1.0, 0.1), [5] * 10, RunSettings(), MACHINE)
    long = recommend(started(measurement, 1.0, 0.1), [5] * 2000, RunSettings(), MACHINE)

    assert (short.items[4].key, short.items[4].now, short.items[4].advice) == ("start_method", "spawn", "forkserver")
    for figure in ("1 s by spawn", "100 ms by forkserver", "14% less"):
        assert figure in short.items[4].why, short.items[4].why
    assert short.now.seconds - short.advised.seconds == pytest.approx(0.9)
    assert long.items[4].advice == "spawn" and "less than 10%" in long.items[4].why


def test_more_workers_may_pay_once_they_start_faster() -> None:
    measurement = measured_from_history([well(n, 1.0, 0.01) for n in range(20)])
    slow = Costs(boot_s=2.0, boot_cpu_share=1.0)
    both = replace(measurement, costs=slow, forkserver_costs=replace(slow, boot_s=0.01))

    alone = recommend(replace(both, forkserver_costs=None), [5] * 50, RunSettings(), MACHINE)
    found = recommend(both, [5] * 50, RunSettings(), MACHINE)

    assert found.items[0].advice > alone.items[0].advice
    assert found.advised.seconds < alone.advised.seconds


@pytest.mark.parametrize(("method", "why"), [("spawn", "was not measured"), ("fork", "faster than by spawn already")])
def test_a_start_that_was_not_compared_stays_as_set(method: str, why: str) -> None:
    measurement = measured_from_history([well(n) for n in range(20)])

    item = recommend(measurement, [5] * 200, RunSettings(start_method=method), MACHINE).items[4]

    assert (item.now, item.advice) == (method, method)
    assert why in item.why


def test_what_spaces_the_starts_and_what_replaces_workers_is_in_the_prediction() -> None:
    measurement = measured_from_history([well(n, 0.01, 0.0001) for n in range(20)])

    plain = recommend(measurement, [5] * 200, RunSettings(jobs=2), MACHINE)
    spaced = recommend(measurement, [5] * 200, RunSettings(jobs=2, start_delay=0.1), MACHINE)
    replaced = recommend(measurement, [5] * 200, RunSettings(jobs=2, max_tasks_per_worker=1), MACHINE)

    assert spaced.now.seconds == pytest.approx(20.0, rel=0.05)
    assert spaced.items[0].advice == 1  # more wait for their turn
    assert replaced.now.seconds > 5 * plain.now.seconds


def test_where_pos_share_a_number_nothing_is_advised_on_workers() -> None:
    measurement = replace(measured_from_history([well(n, 1.0, 0.01) for n in range(20)]), repeated=7)
    settings = RunSettings(jobs=3, duplicates="separate")

    found = recommend(measurement, [5] * 200, settings, MACHINE, [1, 8])

    assert (found.items[0].advice, found.stops_paying_at) == (3, None)
    assert "never two of one number" in found.items[0].why
    assert "stops paying" not in as_text(measurement, found, 200)


def test_what_if_shows_each_and_where_it_stops_paying() -> None:
    measurement = measured_from_history([well(n, 1.0, 1.0) for n in range(20)])

    found = advised(measurement, what_if=[1, 2, 4, 8])

    times = [row["seconds"] for row in found["what_if"]]
    assert [row["jobs"] for row in found["what_if"]] == [1, 2, 4, 8]
    assert times[0] > 1.8 * times[1] and times[1] == pytest.approx(times[3], rel=0.1)
    assert found["stops_paying_at"] == 2
    assert [row["memory_bytes"] for row in found["what_if"]] == [50_000_000 * n for n in (1, 2, 4, 8)]


def test_the_advice_is_plain_json_and_the_same_each_time() -> None:
    measurement = measured_from_history([well(n, 1.0 + n, 0.5) for n in range(20)])

    first = advised(measurement, what_if=[2])

    assert json.loads(json.dumps(first, allow_nan=False)) == first == advised(measurement, what_if=[2])


def test_text_from_outside_cannot_steer_the_terminal() -> None:
    evil = MeasuredAttempt("\x1b[2J", 9.0, "retry", TIMEOUT_ERROR)
    failed = MeasuredAttempt("\x1b[2J", 9.0, "failed", "\x1b]0;x")
    measurement = measured_from_history([well(1), evil, failed])

    text = as_text(measurement, recommend(measurement, [5], RunSettings(), MACHINE), 1)

    assert "\x1b" not in text and "\\x1b" in text


@pytest.mark.parametrize("text", ["jobs", "4", "jobs=", "jobs=0", "jobs=2,x", "retries=1", ""])
def test_a_what_if_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--what-if"):
        parse_what_if(text)


def test_a_what_if_is_read_in_order_and_once() -> None:
    assert parse_what_if("jobs=8, 2,2") == [2, 8]


# ── written ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_written_is_taken_as_a_configuration_and_keeps_what_was_set(tmp_path: Path) -> None:
    given = {
        "map": ["po_number=PO", "supplier=#Vendor: x"],
        "retry_delay": "250ms",
        "run_dir": "out",
        "jobs": "2",
        "app_dir": ".",
    }
    resolved = load_settings(given, None, {})
    measurement = measured_from_history(
        [*(well(n, 1.0, 0.01) for n in range(20)), badly(9, kind="multi\nline: {x}"), well(9)]
    )
    advice = recommend(measurement, [5] * 200, resolved.settings, MACHINE)
    path = tmp_path / "advice.yaml"

    path.write_text(as_yaml(measurement, advice, resolved, 200, "poqueue run x"), encoding="utf-8")
    settings = load_settings({}, path, {}).settings

    assert settings.jobs == advice.items[0].advice == 16
    assert settings.task_timeout.seconds == advice.items[1].advice
    assert settings.max_retries == advice.items[2].advice
    assert settings.map == {"po_number": "PO", "supplier": "#Vendor: x"}
    assert (settings.retry_delay, settings.run_dir) == (0.25, None)


def test_a_file_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("jobs: 3\n", encoding="utf-8")

    for path, said in ((tmp_path / "mine.yaml", "--write"), (tmp_path / "nowhere" / "x.yaml", "no directory")):
        with pytest.raises(ConfigError, match=said):
            check_new_file(path)


# ── optimize_for_workload ────────────────────────────────────────────────────────────────────────────────────────────


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def worked(queue: TaskQueue, clock: Clock, seconds: list[float], failing: int = 0) -> None:
    for number, one in enumerate(seconds):
        queue.add_task(ProcessingTask(po_data={"po_number": f"PO-{number}"}))
        task = queue.get_next_task("w")
        assert task is not None
        if number < failing:
            queue.retry_task(task.task_id, {"error_type": "ValueError", "error": "no"})
            clock.now += 10.0
            task = queue.get_next_task("w")
            assert task is not None
        clock.now += one
        queue.complete_task(task.task_id, "w", TaskResult(True, [], one))


def retried(queue: TaskQueue, clock: Clock, *retries: int) -> None:
    """Tasks that need so many retries each."""
    for number, needed in enumerate(retries):
        queue.add_task(ProcessingTask(po_data={"po_number": f"PO-retried-{number}"}))
        for attempt in range(1_000):
            task = queue.get_next_task("w")
            assert task is not None
            clock.now += 1.0
            if attempt == needed:
                queue.complete_task(task.task_id, "w", TaskResult(True, [], 1.0))
                break
            if not queue.retry_task(task.task_id, {"error_type": "ValueError", "error": "no"}):
                break
            clock.now += 10_000.0


def test_the_advice_says_whether_it_rests_on_what_was_given_or_measured() -> None:
    clock = Clock()
    queue = TaskQueue(clock=clock)

    given = queue.optimize_for_workload(100, 9.0, 2)
    worked(queue, clock, [1.0, 3.0] * 50)
    measured = queue.optimize_for_workload(100, 9.0, 2)

    assert (given["based_on"]["durations"], measured["based_on"]["durations"]) == ("given", "measured")
    assert given["predicted_completion_s"] == pytest.approx(450, rel=0.1)
    assert measured["predicted_completion_s"] == pytest.approx(100, rel=0.05)
    low, high = measured["predicted_range_s"]
    assert low < measured["predicted_completion_s"] < high


def test_the_longest_that_was_seen_fits_into_the_timeout() -> None:
    clock = Clock()
    queue = TaskQueue(clock=clock)
    worked(queue, clock, [1.0] * 99 + [10.0])

    assert queue.optimize_for_workload(100, 1.0, 2)["task_timeout"] == 15.0


def test_no_retry_waits_longer_than_a_minute_and_a_tenth_more_tasks_have_room() -> None:
    advice = TaskQueue().optimize_for_workload(10_000, 1_000.0, 2)

    assert advice["retry_delay"] == 60.0
    assert advice["queue_size_limit"] == 11_000


def test_no_retry_delay_is_advised_above_the_longest_that_the_queue_waits() -> None:
    queue = TaskQueue(retry_delay=1, max_retry_delay=10)

    assert queue.optimize_for_workload(100, 100.0, 2)["retry_delay"] == 10.0


def test_measured_retries_are_in_the_prediction() -> None:
    clock = Clock()
    smooth, rough = TaskQueue(clock=clock), TaskQueue(clock=clock)
    worked(smooth, clock, [1.0] * 100)
    worked(rough, clock, [1.0] * 100, failing=50)

    expected = smooth.optimize_for_workload(1000, 1.0, 2)["predicted_completion_s"]

    assert rough.optimize_for_workload(1000, 1.0, 2)["predicted_completion_s"] == pytest.approx(
        1.5 * expected, rel=0.05
    )


def test_those_retried_in_vain_are_in_the_prediction_as_many_as_they_were() -> None:
    clock = Clock()
    queue = TaskQueue(clock=clock)
    worked(queue, clock, [1.0] * 90)
    retried(queue, clock, *[1, NEVER] * 5)

    predicted_s = queue.optimize_for_workload(100, 1.0, 1)["predicted_completion_s"]

    assert predicted_s == pytest.approx(90 + 5 * 2 + 5 * 4 + 5 + 10 + 20, rel=0.3)
    assert "x 1.20 attempts" in queue.optimize_for_workload(100, 1.0, 1)["reasons"]["predicted_completion_s"]


@pytest.mark.parametrize(
    ("retries", "most", "advice", "why"),
    [
        (
            [NEVER] * 5 + [2] * 5,
            3,
            3,
            "as configured (3): 5 of 10 that were retried recovered, needing 2 at most; too few",
        ),
        ([1] * 30 + [3], 3, 3, "as configured (3): 31 of 31 that were retried recovered, needing 3 at most"),
        ([NEVER] * 20, 3, 1, "none of 20 that were retried recovered; 1 leaves room for others"),
        ([NEVER] * 10 + [2] * 10, 10, 5, "10 of 20 that were retried recovered, needing 2 at most; 5 leaves room"),
    ],
)
def test_a_queue_advises_on_retries_by_what_its_tasks_needed(
    retries: list[int], most: int, advice: int, why: str
) -> None:
    clock = Clock()
    queue = TaskQueue(max_retries=most, clock=clock)
    retried(queue, clock, *retries)

    found = queue.optimize_for_workload(1000, 1.0, 2)

    assert found["max_retries"] == advice
    assert found["reasons"]["max_retries"].startswith(why)


def test_a_queue_that_is_set_to_fewer_retries_than_a_task_needed_is_told_so() -> None:
    clock = Clock()
    queue = TaskQueue(max_retries=5, clock=clock)
    retried(queue, clock, 1, 4)
    queue.update_configuration(max_retries=2)

    assert queue.optimize_for_workload(1000, 1.0, 2)["max_retries"] == 4


def test_a_retry_that_has_not_ended_says_nothing_against_retries() -> None:
    clock = Clock()
    queue = TaskQueue(clock=clock)
    worked(queue, clock, [1.0] * 30)
    queue.add_task(ProcessingTask(po_data={"po_number": "PO-waits"}))
    task = queue.get_next_task("w")
    assert task is not None and queue.retry_task(task.task_id, {"error_type": "ValueError", "error": "no"})

    advice = queue.optimize_for_workload(1000, 1.0, 2)

    assert advice["max_retries"] == 3
    assert "nothing that was retried has ended yet" in advice["reasons"]["max_retries"]
    assert advice["predicted_completion_s"] == pytest.approx(500.0 * 31 / 30, rel=0.05)


@given(st.lists(st.floats(1e-5, 1e5), min_size=1, max_size=200))
def test_the_histogram_keeps_every_duration_within_its_bucket(seconds: list[float]) -> None:
    metrics = Metrics()
    metrics.completed("w1", 0.0, seconds, now=1.0)

    kept = [middle for middle, count in metrics.duration_buckets() for _ in range(count)]

    assert len(kept) == len(seconds)
    assert all(middle == pytest.approx(one, rel=0.05) for middle, one in zip(kept, sorted(seconds), strict=True))


@pytest.mark.parametrize("strange", [0.0, -1.0, math.inf, math.nan, 1e300])
def test_the_histogram_takes_whatever_a_processor_states(strange: float) -> None:
    metrics = Metrics()

    metrics.completed("w1", 0.0, [strange], now=1.0)

    assert sum(count for _, count in metrics.duration_buckets()) == 1


def test_the_costs_of_a_start_are_predicted_too() -> None:
    costs = Costs(start_s=1.0, boot_s=2.0, end_s=0.5, leave_s=0.25)
    measurement = measured_from_history([well(n) for n in range(20)])

    found = tuned.predict_batch(
        replace(measurement, costs=costs), [5] * 4, tuned.rules_of(RunSettings(jobs=2), 2), runs=0
    )

    assert found.seconds == pytest.approx(1.0 + 2.0 + 2.0 + 0.5 + 2 * 0.25)


def test_the_start_of_one_method_goes_with_the_work_of_another() -> None:
    work = Costs(1.0, 2.0, 0.9, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
    start = Costs(10.0, 20.0, 0.5, 11.0, 12.0, 13.0, 40.0, 15.0, 60.0, 17.0, 80.0)

    assert work.with_start_of(start) == Costs(10.0, 20.0, 0.5, 0.1, 0.2, 0.3, 40.0, 0.5, 60.0, 0.7, 80.0)


@pytest.mark.parametrize(("tasks", "method"), [(50, "forkserver"), (100_000, "spawn")])
def test_the_start_of_workers_is_advised_by_what_it_saves(
    monkeypatch: pytest.MonkeyPatch, tasks: int, method: str
) -> None:
    starts = {"spawn": Costs(boot_s=0.5), "forkserver": Costs(boot_s=0.05)}
    monkeypatch.setattr(tuning, "TYPICAL_BY_START", starts)

    advice = TaskQueue().optimize_for_workload(tasks, 0.1, 2)

    assert advice["start_method"] == method
    assert "by forkserver" in advice["reasons"]["start_method"]


def test_a_start_that_saves_nothing_is_not_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "TYPICAL_BY_START", {"spawn": Costs(boot_s=0.1), "forkserver": Costs(boot_s=0.2)})

    assert TaskQueue().optimize_for_workload(10, 0.1, 2)["start_method"] == "spawn"
