"""Runs the measurements: each in a process of its own with a time limit, pool after pool, round after round.

A pool's number is compared with that of another only within a round, where the machine was the same; every other round
goes through the pools backwards, so that a drift helps nobody. Where the machine changes faster than that, the pools of a
case are open together and take turns, in an order that is drawn anew each time (tests.benchmarks.turns). Every process of a
measurement carries a mark in its environment: whatever is left of it when it is over is ended, by its id.
"""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
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
    for number, case, group in _order(cases, pools, repeat):
        hopeful = [pool for pool in group if (case.name, pool) not in hopeless]
        size = max(1, round(case.size * scale))
        for measurement in measure_quietly(case, hopeful, number, size, patience_s) if hopeful else ():
            if measurement.reason:
                hopeless.add((case.name, measurement.pool))  # it is missing, or hangs: once is enough
            tell(measurement)
            yield measurement


def _order(cases: list[Case], pools: list[str], repeat: int) -> Iterator[tuple[int, Case, list[str]]]:
    """What is measured together: a pool alone, or all that take turns."""
    for number in range(repeat):
        for case in cases:
            if case.is_slow and number:
                continue
            wanted = [pool for pool in case.pools if not pools or pool in pools]
            if number % 2:
                wanted.reverse()
            in_turn = [pool for pool in wanted if pool in case.in_turn]
            for group in [in_turn, *([pool] for pool in wanted if pool not in in_turn)]:
                yield number, case, group


def measure_quietly(case: Case, pools: list[str], number: int, size: int, patience_s: float) -> list[Measurement]:
    """Measure, and again if others were at work meanwhile; the quietest counts."""
    best = measure_once(case, pools, number, size, patience_s)
    for _ in range(MORE_TRIES if patience_s else 0):
        if any(one.reason for one in best) or best[0].noise.is_quiet:
            break
        again = measure_once(case, pools, number, size, patience_s)
        if not any(one.reason for one in again) and again[0].noise.during < best[0].noise.during:
            best = again
    return best


def measure_once(case: Case, pools: list[str], number: int, size: int, patience_s: float) -> list[Measurement]:
    """One measurement of each pool in a process of its own, and nothing of them left afterwards."""
    with tempfile.TemporaryDirectory(prefix="pqb-", ignore_cleanup_errors=True) as folder:
        watch, draw = Watch(patience_s), Random(number)
        left_s = 0.0
        runs: list[_Run] = []
        waiting: list[_Run] = []
        try:
            for place, pool in enumerate(pools):
                run = _Run(Measurement(case.name, pool, number, size), case)
                runs.append(run)
                run.start(Path(folder, str(place)))
                if run.wait():
                    waiting.append(run)
                else:
                    left_s += run.end()
            while waiting:
                for run in draw.sample(waiting, len(waiting)):
                    if not run.take_turn():
                        waiting.remove(run)
                        left_s += run.end()
        finally:
            for run in runs:
                run.end()  # those that an error has cut off
        noise = watch.stop(left_s)
        return [run.outcome(noise) for run in runs]


class _Run:
    """The process that measures one pool, and what comes of it."""

    def __init__(self, measurement: Measurement, case: Case) -> None:
        self._measurement = measurement
        self._case = case
        self._mark = uuid.uuid4().hex
        self._process: subprocess.Popen[bytes] | None = None
        self._left_s = case.limit_s  # of its own time: others' turns do not count

    def start(self, folder: Path) -> None:
        """Start it with a folder of its own, which it makes."""
        folder.mkdir()
        self._file, self._log = folder / "answer.json", folder / "log"
        one, is_told = self._measurement, self._case.in_turn
        what = [one.case, one.pool, str(one.size), str(self._file)]
        environment = {**os.environ, MARK: self._mark, "TMPDIR": str(folder)}
        self._line, line = socket.socketpair()
        with open(self._log, "wb") as output, line:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.benchmarks.measure", *what], cwd=ROOT, env=environment,
                stdin=line if is_told else subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        self._end = os.pidfd_open(self._process.pid)
        self._awaited = [self._end, self._line] if is_told else [self._end]

    def wait(self) -> bool:
        """Until it has come to its end or, which it says, waits for its turn; no longer than its limit."""
        begun = time.monotonic()
        ready, _, _ = select.select(self._awaited, [], [], max(0.0, self._left_s))
        self._measurement.seconds += time.monotonic() - begun
        self._left_s -= time.monotonic() - begun
        with contextlib.suppress(OSError):  # it has died with a word unread
            return self._line in ready and bool(self._line.recv(1))
        return False

    def take_turn(self) -> bool:
        """Let it go on; whether it waits for another turn."""
        with contextlib.suppress(OSError):  # it has ended: that is seen
            self._line.send(b".")
        return self.wait()

    def end(self) -> float:
        """End it and what is left of it; CPU seconds that nobody will count any more."""
        if self._process is not None:
            self._process.kill()  # unless it has ended
            self._process.wait()
        count, left_s = end_marked(self._mark)
        self._measurement.left_running += count
        return left_s

    def outcome(self, noise: Noise) -> Measurement:
        """What came of it, once it has ended."""
        self._line.close()
        os.close(self._end)
        one, answer = self._measurement, self._read()
        one.noise = noise
        one.figures, one.reason = answer.get("figures", {}), answer.get("reason", "")
        return one

    def _read(self) -> dict[str, Any]:
        if self._left_s <= 0.0:
            return {"reason": f"no end within {self._case.limit_s:g} s"}
        if self._file.exists():
            found: dict[str, Any] = json.loads(self._file.read_text(encoding="utf-8"))
            return found
        last = self._log.read_text(errors="replace").strip().splitlines()[-1:] or ["no output"]
        assert self._process is not None
        return {"reason": f"exit code {self._process.returncode}: {last[0][:200]}"}


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
