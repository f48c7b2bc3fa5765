"""The benchmarks run, give every figure, and are not fooled. No time is asserted here."""

import dataclasses
import importlib
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable
from pathlib import Path

import psutil
import pytest

from tests.benchmarks import cases, pools, runner, tables
from tests.benchmarks.__main__ import main
from tests.benchmarks.machine import Noise
from tests.benchmarks.pools import Outcomes, Po
from tests.benchmarks.runner import Measurement
from tests.benchmarks.summary import Summary
from tests.benchmarks.targets import TARGETS, Target
from tests.benchmarks.work import make_orders, make_orders_with_bad, perform

JUDGED = {"lost", "charged", "never_ended", "bad_recovered"}


class SerialPool:
    """A pool of one: this process. `drops` names POs whose results it loses, `mixes_up` gives one PO's to another."""

    def __init__(self, drops: Iterable[str] = (), mixes_up: bool = False) -> None:
        self._drops, self._mixes_up = set(drops), mixes_up

    def warm(self, orders: list[Po]) -> list[Po]:
        return [{**perform(po), "pid": number} for number, po in enumerate(orders)]

    def run(self, orders: Iterable[Po], within_s: float) -> Outcomes:
        outcomes = Outcomes()
        for po in orders:
            if po["po_number"] not in self._drops:
                outcomes.results[po["po_number"]] = perform(po)
        if self._mixes_up:
            outcomes.results["PO0000000"] = outcomes.results["PO0000001"]
        return outcomes.end()

    def hold(self, orders: Iterable[Po]) -> None:
        raise pools.PoolUnavailable("holds nothing")

    def close(self) -> None:
        return None


def _measure_with(pool: SerialPool, monkeypatch: pytest.MonkeyPatch) -> cases.Figures:
    monkeypatch.setitem(pools.OPENERS, "planted", lambda jobs, timeout_s: pool)
    return cases.CASES["W1"].measure("planted", 20)


def _measured(case: str, pool: str, number: int, figures: cases.Figures) -> Measurement:
    return Measurement(case, pool, number, 1, figures)


# ---------------------------------------------------------------------- not fooled


def test_a_pool_that_loses_nothing_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = _measure_with(SerialPool(), monkeypatch)

    assert {name: figures[name] for name in JUDGED} == dict.fromkeys(JUDGED, 0.0)


def test_a_lost_innocent_is_counted_as_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = _measure_with(SerialPool(drops=["PO0000007"]), monkeypatch)

    assert figures["lost"] == 1
    assert figures["never_ended"] == 1


def test_a_result_of_another_po_is_a_lost_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _measure_with(SerialPool(mixes_up=True), monkeypatch)["lost"] == 1


def test_an_innocent_that_an_attempt_was_taken_from_is_counted_as_charged() -> None:
    orders = make_orders_with_bad(20, "crash")
    innocent, bad = orders[0]["po_number"], orders[6]["po_number"]
    results = {po["po_number"]: {"po_number": po["po_number"]} for po in orders}

    figures = cases.judge(Outcomes(results=results, charged={innocent, bad}), orders)

    assert figures == {"lost": 0, "charged": 1, "never_ended": 0, "bad_recovered": 1}


def test_results_from_before_the_clock_count_for_nothing() -> None:
    orders = make_orders(2, "nothing")
    results = {number: {"po_number": number} for number in ("PO0000000", "PO0000001", "WARM0000000")}

    assert cases.judge(Outcomes(results=results), orders)["bad_recovered"] == 0


def test_a_figure_that_is_better_than_possible_is_refused() -> None:
    with pytest.raises(AssertionError, match="the measurement is wrong"):
        cases.refuse_impossible(seconds=0.9, ideal_s=1.0)


def test_ratios_are_taken_within_a_round() -> None:
    summary = Summary(
        [
            _measured("W1", "poqueue", 0, {"per_s": 50.0}), _measured("W1", "ppe", 0, {"per_s": 10.0}),
            _measured("W1", "poqueue", 1, {"per_s": 20.0}), _measured("W1", "ppe", 1, {"per_s": 4.0}),
        ]
    )  # fmt: skip

    assert summary.ratio("W1", "poqueue", "ppe", "per_s") == 5.0


def test_a_disturbed_round_counts_only_where_there_is_no_quiet_one() -> None:
    quiet, disturbed = _measured("W1", "ppe", 0, {"per_s": 10.0}), _measured("W1", "ppe", 1, {"per_s": 2.0})
    disturbed.noise = Noise(load=1.0, before=0.0, during=0.5)

    assert Summary([quiet, disturbed]).median("W1", "ppe", "per_s") == 10.0
    assert Summary([quiet, disturbed]).span("W1", "ppe", "per_s") == (2.0, 10.0)
    assert Summary([disturbed]).median("W1", "ppe", "per_s") == 2.0
    target = Target("rate", lambda summary: summary.median("W1", "ppe", "per_s"), goal=1.0, stretch=None)
    assert target.verdict(Summary([disturbed])) == "met (machine not quiet)"
    assert target.verdict(Summary([quiet, disturbed])) == "met"


@pytest.mark.parametrize(
    ("value", "verdict"), [(0.9, "stretch met"), (1.05, "met"), (1.21, "missed by 10.0%"), (None, "not measured")]
)
def test_a_verdict_says_by_how_much_a_target_is_missed(value: float | None, verdict: str) -> None:
    target = Target("time over ideal", lambda summary: value, goal=1.1, stretch=1.0, is_at_most=True)

    assert target.verdict(Summary([])) == verdict


def test_a_disturbed_measurement_is_marked() -> None:
    one = _measured("W1", "poqueue", 0, {"per_s": 50.0})
    one.noise = Noise(load=1.0, before=0.0, during=0.5)

    assert "not quiet in 1 of 1" in tables.measured_table(Summary([one]))


def test_a_missing_peer_is_left_out_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(importlib, "import_module", without)

    for peer in ("pebble", "mpire", "loky", "joblib"):
        with pytest.raises(pools.PoolUnavailable, match=f"{peer} is not installed"):
            pools.open_warm(peer, 2, 1.0, "nothing")


# ---------------------------------------------------------------------- the harness itself


def test_poqueue_and_a_peer_run_and_give_every_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "figures.json"

    code = main(
        [
            "--only",
            "W1",
            "--pools",
            "poqueue,ppe",
            "--repeat",
            "1",
            "--scale",
            "0.005",
            "--patience",
            "0",
            "--json",
            str(file),
        ]
    )

    assert code == 0
    told = json.loads(file.read_text())
    assert [(one["case"], one["pool"]) for one in told["measurements"]] == [("W1", "poqueue"), ("W1", "ppe")]
    for one in told["measurements"]:
        assert one["figures"].keys() == {"seconds", "per_s", "efficiency"} | JUDGED
        assert one["figures"]["lost"] == one["figures"]["never_ended"] == 0
        assert one["size"] == 100
        assert one["noise"].keys() == {"load", "before", "during"}
    assert told["about"].keys() == {"python", "system", "cores", "temporary_files_on", "repeat", "scale", "packages"}
    out = capsys.readouterr().out
    assert "ProcessPoolExecutor" in out
    assert "the targets do not apply" in out


def test_what_does_not_end_is_ended_and_leaves_nothing_running(monkeypatch: pytest.MonkeyPatch) -> None:
    mark = uuid.uuid4()
    monkeypatch.setattr(uuid, "uuid4", lambda: mark)
    case = cases.Case("W4", "too slow", ("poqueue",), 200, cases.CASES["W4"].measure, limit_s=1.0)

    [measurement] = runner.measure_once(case, ["poqueue"], 0, 200, patience_s=0.0)

    assert measurement.reason == "no end within 1 s"
    assert runner.end_marked(mark.hex) == (0, 0.0)


def test_pools_take_turns_and_one_that_fails_keeps_nobody_from_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = list[str]()
    take_turn = runner._Run.take_turn
    monkeypatch.setattr(runner._Run, "take_turn", lambda run: turns.append(run._measurement.pool) or take_turn(run))

    measured = runner.measure_once(
        cases.CASES["W9"], ["ppe", "no-such-pool", "mp-1"], 0, 2 * cases.POS_A_TURN, patience_s=0.0
    )

    assert [sorted(turns[:2]), sorted(turns[2:])] == [["mp-1", "ppe"]] * 2
    assert turns[:2] != turns[2:]  # drawn anew, so that none is always the one after another
    assert [one.pool for one in measured if "lost" in one.figures and not one.figures["lost"]] == ["ppe", "mp-1"]
    assert measured[1].reason == "exit code 1: KeyError: 'no-such-pool'"


def test_what_others_take_for_their_turns_is_no_time_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    passed_s, take_turn = [0.0], runner._Run.take_turn

    def take_turn_later(run: runner._Run) -> bool:
        passed_s[0] += 1000.0  # above the limit, and between two turns
        return take_turn(run)

    monkeypatch.setattr(runner._Run, "take_turn", take_turn_later)
    real, clock = time.monotonic, type("Clock", (), {"sleep": staticmethod(time.sleep)})
    clock.monotonic = staticmethod(lambda: real() + passed_s[0])  # type: ignore[attr-defined]
    monkeypatch.setattr(runner, "time", clock)

    measured = runner.measure_once(cases.CASES["W9"], ["ppe", "mp-1"], 0, 2 * cases.POS_A_TURN, patience_s=0.0)

    assert [one.reason for one in measured] == ["", ""]
    assert all(one.seconds < 1000.0 for one in measured)


def test_what_takes_turns_without_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    case = dataclasses.replace(cases.CASES["W9"], limit_s=2.0)

    [measured] = runner.measure_once(case, ["ppe"], 0, 100 * cases.POS_A_TURN, patience_s=0.0)

    assert measured.reason == "no end within 2 s"
    assert measured.left_running


def test_only_marked_processes_are_ended() -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    mark = uuid.uuid4().hex
    marked = subprocess.Popen(sleep, env={**os.environ, runner.MARK: mark})
    other = subprocess.Popen(sleep)
    try:
        deadline = time.monotonic() + 10.0
        while not (ended := runner.end_marked(mark)[0]) and time.monotonic() < deadline:
            time.sleep(0.01)  # its environment is there once it has begun

        assert ended == 1
        assert marked.wait(5) == -9
        assert other.poll() is None
    finally:
        for process in (marked, other):
            process.kill()
            process.wait()


def test_a_process_that_takes_its_time_to_die_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([True, True, True])
    monkeypatch.setattr(runner, "_has", lambda pid, sign: pid == os.getpid() and next(looks, False))
    monkeypatch.setattr(runner.os, "kill", lambda pid, number: None)

    count, spent_s = runner.end_marked("any")

    assert count == 1
    assert 0.0 < spent_s <= sum(psutil.Process().cpu_times()[:2])


def test_workloads_are_picked_by_name_and_by_family() -> None:
    assert [case.name for case in runner.pick_cases("W1,W8")] == ["W1", "W8-2k", "W8-20k", "W8-100k", "W8-1M"]
    assert [case.name for case in runner.pick_cases("in-process")] == ["in-process-20k", "in-process-200k"]
    with pytest.raises(ValueError, match="no workload 'W77'"):
        runner.pick_cases("W77")


def test_every_case_has_a_headline_and_every_pool_a_title() -> None:
    for case in cases.CASES.values():
        assert tables.headline(case.name)
        assert all(pool in pools.TITLES for pool in case.pools)


def test_every_target_asks_for_a_figure_that_is_measured() -> None:
    names = [
        "seconds",
        "per_s",
        "efficiency",
        "over_ideal",
        "lost",
        "charged",
        "bytes_a_task",
        "p50_ms",
        "p99_ms",
        "percent",
    ]
    names += [f"{call}_p99_ms" for call in ("status", "find", "metrics")]
    everything = [
        _measured(case.name, pool, 0, dict.fromkeys(names, 1.0)) for case in cases.CASES.values() for pool in case.pools
    ]

    assert [target.name for target in TARGETS if target.measured(Summary(everything)) is None] == []
    assert "a peer is better" in tables.markdown(Summary(everything))


# ---------------------------------------------------------------------- all of it, small


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", [name for name in cases.CASES if name != "orders" or cases.DATA.is_file()])
def test_every_workload_runs_on_every_pool_that_is_here(case: str) -> None:
    for measurement in runner.run_all([cases.CASES[case]], [], repeat=1, scale=0.02, patience_s=0.0, tell=print):
        assert measurement.figures or "is not installed" in measurement.reason, measurement
        if measurement.pool.startswith("poqueue"):
            assert measurement.figures.get("lost", 0.0) == 0
