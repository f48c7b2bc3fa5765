"""Predicted against measured completion time, and defaults against advice: `python -m tests.benchmarks.prediction`.

Each workload is written as an order file. `poqueue tune` runs a sample of it and predicts the whole, `poqueue run` runs the
whole, one right after the other and each a process of its own, as an operator would. What a PO does is drawn independently
of everything that the sample is stratified by, which is the hard case. All seeds are fixed; how far the sample's mean is
from the batch's, which no prediction can know, stands in a column of its own.

Other processes on the machine count against the pool, and a virtual machine's cores are not always equally fast. Each
measurement waits a little for a quiet moment, and all is measured in several rounds, of which the middle one counts. The
tables say how many cores others took at most, and by how much a fixed piece of computing differed between the
measurements: a sample that was run at another speed than the batch misses by as much where the work computes.
"""

import argparse
import contextlib
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PROCESSOR = "tests.benchmarks.prediction:process"
SHARE = 0.05
SEED = 1
ROUNDS = 3
PATIENCE_S = 5.0
ENOUGH = 7  # of the eight workloads are to be within NEAR
NEAR = 0.10
TIE = 0.05  # advice that promises less than this is only not to make the batch longer than by this
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
        lambda random: (0.02, 0.0, "fail-once" if random.random() < 0.1 else "", 5), {"--retry-delay": "0.5s"},
    ),
    Workload(
        "50 ms, 5 % hang once, timeout 250 ms", 4000, 8,
        lambda random: (0.05, 0.0, "hang-once" if random.random() < 0.05 else "", 5),
        {"--timeout": "0.25s", "--retry-delay": "0.5s"},
    ),
    Workload(
        "I/O-bound, 20 to 80 ms, 1 ms CPU, 16 workers", 4000, 16, lambda random: (random.uniform(0.019, 0.079), 0.001, "", 5)
    ),
    Workload("CPU-bound, 20 to 60 ms, 8 workers", 2000, 8, lambda random: (0.0, random.uniform(0.02, 0.06), "", 5)),
    Workload(
        "three priorities, 10 to 30 ms", 4000, 8,
        lambda random: (random.uniform(0.01, 0.03), 0.0, "", random.choice((1, 5, 9))),
    ),
)  # fmt: skip

ADVISED = (
    Workload("I/O-bound, 100 to 300 ms, 1 ms CPU", 160, 0, lambda random: (random.uniform(0.1, 0.3), 0.001, "", 5)),
    Workload(
        "CPU-bound, 10 to 30 ms, 10 % fail once", 300, 0,
        lambda random: (0.0, random.uniform(0.01, 0.03), "fail-once" if random.random() < 0.1 else "", 5),
    ),
    Workload("CPU-bound, 10 to 30 ms, none fails", 300, 0, lambda random: (0.0, random.uniform(0.01, 0.03), "", 5)),
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


def _wait_for_orphans() -> None:
    """A fork server outlives what started it for a moment, and its workers' time counts as ours only then."""
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


def loops_per_second() -> float:
    """How much _compute gets through; the best of a few."""
    best_s = float("inf")
    for _ in range(10):
        begin = time.perf_counter()
        _compute(500_000)
        best_s = min(best_s, time.perf_counter() - begin)
    return 500_000 / best_s


# ---------------------------------------------------------------------- predicted and measured


@dataclass
class Scene:
    """One workload on disk, and the commands that are run on it; `cores` and `drift` are the worst that was seen so far."""

    workload: Workload
    folder: Path
    loops_per_s: float
    runs: int = 0
    cores: float = 0.0
    drift: float = 0.0

    @property
    def orders(self) -> Path:
        return self.folder / "orders.csv"

    def options(self) -> list[str]:
        settings = {"-p": PROCESSOR, "--app-dir": ROOT, **self.workload.settings}
        if self.workload.jobs:
            settings["-j"] = self.workload.jobs
        return [str(word) for pair in settings.items() for word in pair]

    def tune(self, count: int, *more: str) -> dict[str, Any]:
        """What `poqueue tune` says, from a sample of this many POs."""
        words = ["tune", str(self.orders), *self.options(), "--sample", str(count), "--json", "--no-progress", *more]
        told: dict[str, Any] = json.loads(self._command(*words))
        return told

    def measure(self, *words: str) -> float:
        """Seconds that the whole batch takes."""
        self.runs += 1
        run_dir = self.folder / f"run-{self.runs}"
        self._command("run", str(self.orders), *words, "--run-dir", str(run_dir), "-q")
        report = json.loads((run_dir / "report.json").read_bytes())
        assert report["run"]["reason"] == "done", report["run"]
        return float(report["run"]["seconds"])

    def _command(self, *words: str) -> str:
        from tests.benchmarks.machine import Watch

        watch = Watch(PATIENCE_S)
        speed = loops_per_second()
        ended = subprocess.run(
            [sys.executable, "-m", "workers", *words], check=False, cwd=ROOT, capture_output=True, text=True
        )
        _wait_for_orphans()
        noise = watch.stop(0.0)
        speeds = (self.loops_per_s, speed, loops_per_second())
        self.cores = max(self.cores, noise.before, noise.during)
        self.drift = max(self.drift, max(speeds) / min(speeds) - 1.0)
        assert ended.returncode == 0, (words, ended.returncode, ended.stderr[-2000:])
        return ended.stdout

    def sampling_error(self, count: int) -> float:
        """How far the mean work of the sampled POs is from that of all; known here, as the file says what each will do."""
        from workers.batch import Batch
        from workers.resolved import load_settings
        from workers.sample import choose

        book = Batch(self.orders, load_settings({}, None, {}, caller="benchmark")).check()
        works = [self._work_s(order) for order in book.orders]
        sampled = [works[place] for place in choose(book.orders, count, Random(SEED))]
        return statistics.fmean(sampled) / statistics.fmean(works) - 1.0

    def _work_s(self, po: dict[str, Any]) -> float:
        once_s = float(po["wait"]) + int(po["loops"]) / self.loops_per_s
        if po["act"] == "hang-once":
            return once_s + float(self.workload.settings["--timeout"].removesuffix("s"))
        return once_s * (2 if po["act"] == "fail-once" else 1)

    def noise(self) -> dict[str, str]:
        """For the tables."""
        from tests.benchmarks.machine import QUIET_CORES

        return {
            "others": f"{self.cores:.2f} cores",
            "drift": f"{self.drift:.0%}",
            "quiet": "yes" if self.cores <= QUIET_CORES else "NO",
        }


def scenes(workloads: tuple[Workload, ...], only: str) -> list[contextlib.AbstractContextManager[Scene]]:
    return [staged(workload) for workload in workloads if only in workload.name]


@contextlib.contextmanager
def staged(workload: Workload) -> Iterator[Scene]:
    with tempfile.TemporaryDirectory(prefix="poqueue-bench-") as name:
        scene = Scene(workload, Path(name), loops_per_second())
        write_orders(workload, scene.orders, scene.loops_per_s)
        yield scene


def predictions(only: str, rounds: int) -> list[dict[str, Any]]:
    """One row a workload, that of the round with the middle error; all workloads in turn, round by round."""
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(scene) for scene in scenes(WORKLOADS, only)]
        found = [[predicted(scene) for scene in made] for _ in range(rounds)]
    return [middle([rows[n] for rows in found]) for n in range(len(made))]


def predicted(scene: Scene) -> dict[str, Any]:
    """Sample, prediction and measurement of one workload."""
    count = round(SHARE * scene.workload.count)
    told = scene.tune(count)
    measured_s = scene.measure(*scene.options())
    expected = told["predicted"]["now"]
    low_s, high_s = expected["range"]
    error = expected["seconds"] / measured_s - 1.0
    _say(f"{scene.workload.name}: predicted {expected['seconds']:.2f} s, measured {measured_s:.2f} s, {error:+.1%}")
    return {
        "workload": scene.workload.name,
        "POs": scene.workload.count,
        "jobs": scene.workload.jobs,
        "predicted": f"{expected['seconds']:.2f} s",
        "range": f"{low_s:.1f} to {high_s:.1f} s",
        "measured": f"{measured_s:.2f} s",
        "error": error,
        "of the sample": f"{scene.sampling_error(count):+.1%}",
        "within 10 %": "yes" if abs(error) <= NEAR else "no",
        "in range": "yes" if low_s <= measured_s <= high_s else "no",
        **scene.noise(),
        "costs": told["measured"]["costs"],
    }


def middle(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The row with the middle error, and the errors of all; others and drift are the worst of all by then."""
    ordered = sorted(rows, key=lambda row: row["error"])
    row = ordered[(len(ordered) - 1) // 2]
    errors = {"error": f"{row['error']:+.1%}", "of all": ", ".join(f"{one['error']:+.0%}" for one in ordered)}
    last = {key: rows[-1][key] for key in ("others", "drift", "quiet")}
    return {**row, **errors, **last}


# ---------------------------------------------------------------------- defaults and advice


def advised(only: str, rounds: int) -> list[dict[str, Any]]:
    """Defaults against advice, measured in turn, the one that begins changing from round to round; the medians count."""
    found = []
    for one in scenes(ADVISED, only):
        with one as scene:
            found.append(compared(scene, rounds))
    return found


def compared(scene: Scene, rounds: int) -> dict[str, Any]:
    """One workload with the defaults, and as `poqueue tune --write` advises."""
    advice = scene.folder / "advice.yaml"
    told = scene.tune(round(0.1 * scene.workload.count), "--write", str(advice))
    ways = {"defaults": scene.options(), "advice": ["--config", str(advice)]}
    times: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds):
        for way in sorted(ways, reverse=number % 2 == 0):
            times[way].append(scene.measure(*ways[way]))
    before_s, after_s = statistics.median(times["defaults"]), statistics.median(times["advice"])
    now, then = (told["predicted"][way]["seconds"] for way in ("now", "advised"))
    changes = {key: item["advice"] for key, item in told["advice"].items() if item["advice"] != item["now"]}
    _say(f"{scene.workload.name}: defaults {before_s:.2f} s, advice {after_s:.2f} s")
    return {
        "workload": scene.workload.name,
        "POs": scene.workload.count,
        "advice": ", ".join(f"{key} {value}" for key, value in changes.items()) or "as set",
        "defaults": _spread(times["defaults"]),
        "with advice": _spread(times["advice"]),
        "times faster": f"{before_s / after_s:.2f}",
        "promised": f"{now / then:.2f}",
        "kept": is_kept(now / then, times["defaults"], times["advice"]),
        **scene.noise(),
    }


def is_kept(promised: float, defaults: list[float], advice: list[float]) -> str:
    """Whether the advice kept what it promised: each run with it is faster than any without, or none was to be."""
    faster = statistics.median(defaults) / statistics.median(advice)
    if promised < 1.0 + TIE:
        return "nothing promised" if faster > 1.0 - TIE else "no"
    return "yes" if max(advice) < min(defaults) else "unclear" if faster > 1.0 else "no"


def _spread(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})"


# ---------------------------------------------------------------------- told


def verdicts(found: dict[str, list[dict[str, Any]]]) -> Iterator[tuple[bool, str]]:
    """What is to be seen, and whether it was."""
    if rows := found.get("predictions", []):
        near, covered = (sum(row[key] == "yes" for row in rows) for key in ("within 10 %", "in range"))
        is_reached = near >= ENOUGH * len(rows) / len(WORKLOADS) and covered == len(rows)
        yield is_reached, f"{near} of {len(rows)} within 10 %; the range covers {covered} of {len(rows)}"
    if rows := found.get("advice", []):
        faster, even = (sum(row["kept"] == word for row in rows) for word in ("yes", "nothing promised"))
        yield (
            faster + even == len(rows),
            f"every run with advice beats every one with the defaults on {faster} of {len(rows)}; "
            f"on {even} nothing was promised, and nothing lost",
        )


def disturbed(found: dict[str, list[dict[str, Any]]]) -> str:
    """Which rows are no figures to hand on; or empty."""
    names = [row["workload"] for rows in found.values() for row in rows if row["quiet"] == "NO"]
    return f"NOT QUIET, so no figures to hand on: {'; '.join(names)}" if names else ""


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    from tabulate import tabulate

    from workers.own_process import Adoption

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", metavar="TEXT", help="workloads whose name holds this")
    parser.add_argument("--part", choices=("predictions", "advice", "both"), default="both")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"how often each is measured (default: {ROUNDS})")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    Adoption().hold()
    found: dict[str, list[dict[str, Any]]] = {}
    if arguments.part != "predictions":
        found["advice"] = advised(arguments.only, arguments.rounds)
    if arguments.part != "advice":
        found["predictions"] = predictions(arguments.only, arguments.rounds)
    told = list(verdicts(found))
    if arguments.json:
        print(json.dumps({**found, "verdicts": [text for _, text in told], "disturbed": disturbed(found)}))
    else:
        for rows in found.values():
            shown = [{key: value for key, value in row.items() if key != "costs"} for row in rows]
            print(tabulate(shown, headers="keys", tablefmt="simple", disable_numparse=True), end="\n\n")
        for is_reached, text in told:
            print(f"{'reached' if is_reached else 'MISSED'}: {text}")
        print(disturbed(found) or "the machine was quiet")
    return 0 if all(is_reached for is_reached, _ in told) else 1


if __name__ == "__main__":
    raise SystemExit(main())
