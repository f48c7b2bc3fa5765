"""Predicted against measured completion time, and defaults against advice: `python -m tests.benchmarks.prediction`.

Each workload is written as an order file; a sample of it is run as `poqueue tune` runs one; the whole is predicted from
that, and then run. What a PO does is drawn independently of everything that the sample is stratified by, which is the
hard case. The seeds are fixed, the sizes are such that the sample's own error stays below about 5 % where it can.

Other processes on the machine count against the pool, and a virtual machine's cores are not always equally fast: each
measurement waits for a quiet moment, says what share of the cores others took and by how much a fixed piece of computing
differed before, between and after sample and run, and is made again, sample and all, where that was much.
"""

import argparse
import csv
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PROCESSOR = "tests.benchmarks.prediction:process"
SHARE = 0.05
SEED = 1
TRIES = 4
NOISY_SHARE, QUIET_SHARE = 0.08, 0.05
QUIET_S, PATIENCE_S = 3.0, 90.0
COLUMNS = ("po_number", "supplier", "amount", "priority", "wait", "loops", "act")


# ---------------------------------------------------------------------- what a PO does


def process(po: dict[str, Any], context: Any) -> None:
    """Wait, compute, and before that fail or hang, as the row says."""
    act = po["act"]
    if act == "hang-once" and context.attempt == 1:
        time.sleep(3600)
    time.sleep(float(po["wait"]))
    _compute(int(po["loops"]))
    if act == "fail" or (act == "fail-once" and context.attempt == 1):
        raise RuntimeError("as the row says")


def _compute(loops: int) -> int:
    total = 0
    for number in range(loops):
        total += number & 7
    return total


# ---------------------------------------------------------------------- workloads

Draw = Callable[[Random], tuple[float, float, str, int]]  # seconds of waiting and of computing, act, priority


@dataclass(frozen=True)
class Workload:
    name: str
    count: int
    jobs: int
    draw: Draw
    settings: dict[str, Any] = field(default_factory=dict)


def _plain(wait_s: Callable[[Random], float]) -> Draw:
    return lambda random: (wait_s(random), 0.0, "", 5)


WORKLOADS = (
    Workload("constant 20 ms", 4000, 8, _plain(lambda random: 0.02)),
    Workload("exponential, mean 20 ms", 8000, 8, _plain(lambda random: random.expovariate(50.0))),
    Workload("heavy tail, Pareto 1.5, mean 15 ms", 8000, 8, _plain(lambda random: 0.005 * random.paretovariate(1.5))),
    Workload(
        "20 ms, 10 % fail once", 4000, 8,
        lambda random: (0.02, 0.0, "fail-once" if random.random() < 0.1 else "", 5), {"retry_delay": 0.5},
    ),
    Workload(
        "50 ms, 5 % hang once, timeout 250 ms", 4000, 8,
        lambda random: (0.05, 0.0, "hang-once" if random.random() < 0.05 else "", 5),
        {"task_timeout": 0.25, "retry_delay": 0.5},
    ),
    Workload(
        "I/O-bound, 20 to 80 ms, 1 ms CPU, 16 workers", 4000, 16, lambda random: (random.uniform(0.019, 0.079), 0.001, "", 5)
    ),
    Workload("CPU-bound, 5 to 15 ms, 8 workers", 2000, 8, lambda random: (0.0, random.uniform(0.005, 0.015), "", 5)),
    Workload(
        "three priorities, 10 to 30 ms", 4000, 8,
        lambda random: (random.uniform(0.01, 0.03), 0.0, "", random.choice((1, 5, 9))),
    ),
)  # fmt: skip

ADVISED = (
    Workload("I/O-bound, 100 to 300 ms, 1 ms CPU", 400, 0, lambda random: (random.uniform(0.1, 0.3), 0.001, "", 5)),
    Workload("CPU-bound, 10 to 30 ms", 800, 0, lambda random: (0.0, random.uniform(0.01, 0.03), "", 5)),
    Workload(
        "CPU-bound, 10 to 30 ms, 5 % hopeless", 1600, 0,
        lambda random: (0.0, random.uniform(0.01, 0.03), "fail" if random.random() < 0.05 else "", 5),
    ),
)  # fmt: skip


def write_orders(workload: Workload, path: Path, loops_per_s: float) -> None:
    """The order file of a workload: 7 suppliers and amounts, both without any bearing on what a PO does."""
    random = Random(f"{SEED} {workload.name}")
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for number in range(workload.count):
            wait_s, cpu_s, act, priority = workload.draw(random)
            amount = f"{random.uniform(1, 10_000):.2f}"
            cells = (f"{wait_s:.6f}", round(cpu_s * loops_per_s), act)
            writer.writerow((f"PO-{number}", f"supplier {random.randrange(7)}", amount, priority, *cells))


def loops_per_second() -> float:
    """How much _compute gets through; the best of a few."""
    best_s = float("inf")
    for _ in range(10):
        begin = time.perf_counter()
        _compute(500_000)
        best_s = min(best_s, time.perf_counter() - begin)
    return 500_000 / best_s


# ---------------------------------------------------------------------- predicted and measured


class Others:
    """What share of the cores other processes take while the block runs."""

    def __enter__(self) -> "Others":
        self._begun, self._busy_s, self._own_s = time.monotonic(), _busy_s(), _own_s()
        return self

    def __exit__(self, *exc_info: object) -> None:
        import psutil

        taken_s = (_busy_s() - self._busy_s) - (_own_s() - self._own_s)
        self.share = max(0.0, taken_s / (time.monotonic() - self._begun) / (psutil.cpu_count() or 1))


def _busy_s() -> float:
    import psutil

    times = psutil.cpu_times()
    return float(sum(times[:3]) + sum(getattr(times, name, 0.0) for name in ("irq", "softirq", "steal")))


def _own_s() -> float:
    return sum(os.times()[:4])


def wait_for_quiet() -> None:
    """Until others leave the machine alone for a while, or have not for too long."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        with Others() as others:
            time.sleep(QUIET_S)
        if others.share < QUIET_SHARE:
            return


@dataclass
class Scene:
    """One workload on disk, and how to run it."""

    workload: Workload
    folder: Path
    settings: dict[str, Any]
    runs: int = 0
    others: float = 0.0

    @property
    def orders(self) -> Path:
        return self.folder / "orders.csv"

    def measure(self, **more: Any) -> float:
        """Seconds that the whole batch takes."""
        from workers import run_batch

        self.runs += 1
        settings = {**self.settings, **more, "run_dir": str(self.folder / f"run-{self.runs}")}
        with Others() as others:
            report = run_batch(self.orders, **settings)
        self.others = max(self.others, others.share)
        assert report.reason == "done" and report.accounts.balances, report
        return report.seconds

    def sample(self) -> tuple[Any, Any, list[int], float]:
        """The measurement, the settings, all priorities, and the seconds that the sample took."""
        from workers.batch import Batch, processor_spec
        from workers.progress import SilentProgress
        from workers.quantities import usable_cores
        from workers.resolved import load_settings
        from workers.sample import choose, run_sample
        from workers.tune import measured_from_history

        resolved = load_settings(self.settings, None, {}, caller="benchmark")
        settings = resolved.settings
        book = Batch(self.orders, resolved).check()
        places = choose(book.orders, round(SHARE * len(book.orders)), Random(SEED))
        jobs = min(settings.jobs, usable_cores())
        with Others() as others:
            sample = run_sample(
                [book.orders[n] for n in places], [book.priorities[n] for n in places], settings,
                processor_spec(settings), SilentProgress(None), jobs=jobs,
            )  # fmt: skip
        self.others = others.share
        measurement = replace(measured_from_history(sample.attempts), source="sample", costs=sample.costs, jobs=jobs)
        return measurement, settings, book.priorities, sample.seconds


def scenes(workloads: tuple[Workload, ...], only: str) -> Iterator[Scene]:
    loops_per_s = loops_per_second()
    for workload in workloads:
        if only not in workload.name:
            continue
        with tempfile.TemporaryDirectory(prefix="poqueue-bench-") as name:
            jobs = {"jobs": workload.jobs} if workload.jobs else {}
            settings = {"processor": PROCESSOR, "app_dir": str(ROOT), **jobs, **workload.settings}
            scene = Scene(workload, Path(name), settings)
            write_orders(workload, scene.orders, loops_per_s)
            yield scene


def predictions(only: str) -> list[dict[str, Any]]:
    """One row a workload."""
    from poqueue.tuning import look_at_machine
    from workers.tune import predict_batch, rules_of

    cores = look_at_machine().cores
    rows = []
    for scene in scenes(WORKLOADS, only):
        for _ in range(TRIES):
            wait_for_quiet()
            speeds = [loops_per_second()]
            measurement, settings, priorities, sampled_s = scene.sample()
            speeds.append(loops_per_second())
            measured_s = scene.measure()
            speeds.append(loops_per_second())
            drift = max(speeds) / min(speeds) - 1.0
            if scene.others < NOISY_SHARE and drift < NOISY_SHARE:
                break
        begin = time.perf_counter()
        prediction = predict_batch(measurement, priorities, rules_of(settings, cores))
        thought_s = time.perf_counter() - begin
        error = prediction.seconds / measured_s - 1.0
        rows.append(
            {
                "workload": scene.workload.name,
                "POs": scene.workload.count,
                "jobs": scene.workload.jobs,
                "sample": f"{sampled_s:.1f} s",
                "predicted": f"{prediction.seconds:.2f} s",
                "range": f"{prediction.low_s:.1f} to {prediction.high_s:.1f} s",
                "measured": f"{measured_s:.2f} s",
                "error": f"{error:+.1%}",
                "within 10 %": "yes" if abs(error) <= 0.10 else "no",
                "in range": "yes" if prediction.low_s <= measured_s <= prediction.high_s else "no",
                "simulated in": f"{thought_s:.1f} s",
                "others": f"{scene.others:.0%}",
                "drift": f"{drift:.0%}",
                "costs": measurement.costs,
            }
        )
        outcome = f"predicted {prediction.seconds:.2f} s, measured {measured_s:.2f} s, {error:+.1%}"
        _say(f"{scene.workload.name}: {outcome}, others {scene.others:.0%}, drift {drift:.0%}")
    return rows


def advised(only: str, repeats: int) -> list[dict[str, Any]]:
    """Defaults against advice, each measured `repeats` times in turn; the best counts."""
    from poqueue.tuning import look_at_machine
    from workers.tune import recommend

    rows = []
    for scene in scenes(ADVISED, only):
        wait_for_quiet()
        measurement, settings, priorities, _ = scene.sample()
        advice = recommend(measurement, priorities, settings, look_at_machine())
        changes = {item.key: item.advice for item in advice.items if item.advice != item.now}
        times: dict[str, list[float]] = {"defaults": [], "advice": []}
        for _ in range(repeats):
            wait_for_quiet()
            times["defaults"].append(scene.measure())
            times["advice"].append(scene.measure(**changes))
        before_s, after_s = min(times["defaults"]), min(times["advice"])
        rows.append(
            {
                "workload": scene.workload.name,
                "POs": scene.workload.count,
                "advice": ", ".join(f"{key} {value:g}" for key, value in changes.items()) or "as set",
                "defaults": f"{before_s:.2f} s",
                "with advice": f"{after_s:.2f} s",
                "times faster": f"{before_s / after_s:.2f}",
                "predicted": f"{advice.now.seconds:.2f} s, {advice.advised.seconds:.2f} s",
                "others": f"{scene.others:.0%}",
            }
        )
        _say(f"{scene.workload.name}: defaults {before_s:.2f} s, advice {after_s:.2f} s")
    return rows


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    from tabulate import tabulate

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", metavar="TEXT", help="workloads whose name holds this")
    parser.add_argument("--part", choices=("predictions", "advice", "both"), default="both")
    parser.add_argument("--repeats", type=int, default=3, help="runs of defaults and advice each")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {}
    if arguments.part != "advice":
        found["predictions"] = predictions(arguments.only)
    if arguments.part != "predictions":
        found["advice"] = advised(arguments.only, arguments.repeats)
    if arguments.json:
        print(json.dumps(found, default=str))
        return 0
    for rows in found.values():
        shown = [{key: value for key, value in row.items() if key != "costs"} for row in rows]
        print(tabulate(shown, headers="keys", tablefmt="simple", disable_numparse=True), end="\n\n")
    rows = found.get("predictions", [])
    if rows:
        near, covered = (sum(row[key] == "yes" for row in rows) for key in ("within 10 %", "in range"))
        print(f"{near} of {len(rows)} within 10 %; the range covers {covered} of {len(rows)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
