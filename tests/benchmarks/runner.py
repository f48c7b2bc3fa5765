"""Runs the measurements: each in a process of its own with a time limit, pool after pool, round after round.

A pool's number is compared with that of another only within a round, where the machine was the same; every other round
goes through the pools backwards, so that a drift helps nobody. Every process of a measurement carries a mark in its
environment: whatever is left of it when it is over is ended, by its id.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.benchmarks.cases import CASES, ROOT, Case, Figures
from tests.benchmarks.machine import Noise, Watch

MARK = "BENCHMARK_MARK"  # not POQUEUE_...: those are settings, and an unknown one is refused
MORE_TRIES = 1  # for a measurement that others have disturbed


@dataclass(slots=True)
class Measurement:
    """Figures of one pool on one workload in one round, or the reason why there are none."""

    case: str
    pool: str
    round: int
    size: int
    figures: Figures = field(default_factory=dict)
    reason: str = ""
    noise: Noise = field(default_factory=lambda: Noise(0.0, 0.0))
    seconds: float = 0.0
    left_running: int = 0  # processes that the pool did not end itself

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "is_quiet": self.noise.is_quiet}


def run_all(
    cases: list[Case],
    pools: list[str],
    repeat: int,
    scale: float,
    patience_s: float,
    tell: Callable[[Measurement], None],
) -> Iterator[Measurement]:
    """Every pool on every case, `repeat` times, each as it is measured; an empty list of pools stands for all."""
    hopeless: set[tuple[str, str]] = set()
    for number, case, pool in _order(cases, pools, repeat):
        if (case.name, pool) in hopeless:
            continue
        measurement = measure_quietly(case, pool, number, max(1, round(case.size * scale)), patience_s)
        if measurement.reason:
            hopeless.add((case.name, pool))  # it is missing, or hangs: once is enough
        tell(measurement)
        yield measurement


def _order(cases: list[Case], pools: list[str], repeat: int) -> Iterator[tuple[int, Case, str]]:
    for number in range(repeat):
        for case in cases:
            if case.is_slow and number:
                continue
            wanted = [pool for pool in case.pools if not pools or pool in pools]
            for pool in wanted if number % 2 == 0 else reversed(wanted):
                yield number, case, pool


def measure_quietly(case: Case, pool: str, number: int, size: int, patience_s: float) -> Measurement:
    """Measure, and again if others were at work meanwhile; the quietest counts."""
    best = measure_once(case, pool, number, size, patience_s)
    for _ in range(MORE_TRIES if patience_s else 0):
        if best.reason or best.noise.is_quiet:
            break
        again = measure_once(case, pool, number, size, patience_s)
        if not again.reason and again.noise.during < best.noise.during:
            best = again
    return best


def measure_once(case: Case, pool: str, number: int, size: int, patience_s: float) -> Measurement:
    """One measurement in a process of its own, and nothing of it left afterwards."""
    measurement = Measurement(case.name, pool, number, size)
    mark = uuid.uuid4().hex
    with tempfile.TemporaryDirectory(prefix="pqb-", ignore_cleanup_errors=True) as folder:
        watch = Watch(patience_s)
        started = time.monotonic()
        try:
            answer = _run(case, pool, size, mark, folder)
        finally:
            left, left_s = end_marked(mark)
        measurement.seconds = time.monotonic() - started
        measurement.noise = watch.stop(left_s)
    measurement.left_running = left
    measurement.figures = answer.get("figures", {})
    measurement.reason = answer.get("reason", "")
    return measurement


def _run(case: Case, pool: str, size: int, mark: str, folder: str) -> dict[str, Any]:
    answer, log = Path(folder, "answer.json"), Path(folder, "log")
    command = [sys.executable, "-m", "tests.benchmarks.measure", case.name, pool, str(size), str(answer)]
    environment = {**os.environ, MARK: mark, "TMPDIR": folder}
    with open(log, "wb") as output, subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
    ) as process:  # fmt: skip
        try:
            process.wait(case.limit_s)
        except subprocess.TimeoutExpired:
            return {"reason": f"no end within {case.limit_s:g} s"}
        finally:
            if process.poll() is None:
                process.kill()
    if answer.exists():
        found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
        return found
    last = log.read_text(errors="replace").strip().splitlines()[-1:] or ["no output"]
    return {"reason": f"exit code {process.returncode}: {last[0][:200]}"}


def end_marked(mark: str) -> tuple[int, float]:
    """End every process with this mark; how many there were, and the CPU seconds that nobody will count any more."""
    spent: dict[int, float] = {}  # one that takes its time to die is killed again, and counts once
    sign = f"{MARK}={mark}".encode()
    for _ in range(20):  # one that forks just now is found the next time
        found = [pid for pid in psutil.pids() if _has(pid, sign)]
        if not found:
            break
        for pid in found:
            with contextlib.suppress(OSError, psutil.Error):
                times = psutil.Process(pid).cpu_times()
                os.kill(pid, signal.SIGKILL)
                spent[pid] = times.user + times.system
        time.sleep(0.05)
    return len(spent), sum(spent.values())


def _has(pid: int, sign: bytes) -> bool:
    try:
        return sign in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


def pick_cases(names: str) -> list[Case]:
    """Cases by name; W8 stands for all of W8-2k, W8-20k and so on.

    Raises:
        ValueError: there is no such case.
    """
    if not names:
        return list(CASES.values())
    picked: list[Case] = []
    for name in names.split(","):
        found = [case for case in CASES.values() if name in (case.name, case.name.split("-")[0]) or
                 case.name.rpartition("-")[0] == name]  # fmt: skip
        if not found:
            raise ValueError(f"there is no workload {name!r}; there are {', '.join(CASES)}")
        picked += found
    return picked
