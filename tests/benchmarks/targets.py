"""The performance targets, and how far they are met."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.benchmarks.summary import Summary

Measured = Callable[[Summary], float | None]


@dataclass(frozen=True, slots=True)
class Target:
    """A goal and a stretch goal; either may be missing."""

    name: str
    measured: Measured
    goal: float | None
    stretch: float | None
    is_at_most: bool = False
    unit: str = ""

    def verdict(self, summary: Summary) -> str:
        """In words; a missed one by how much, and whether others have disturbed every round that it rests on."""
        summary.is_disturbed = False
        value = self.measured(summary)
        if value is None:
            return "not measured"
        return self._judge(value) + (" (machine not quiet)" if summary.is_disturbed else "")

    def _judge(self, value: float) -> str:
        if self.stretch is not None and self._meets(value, self.stretch):
            return "stretch met"
        if self.goal is None:
            return f"stretch missed by {self._missed_by(value, self.stretch or 0.0)}"
        if self._meets(value, self.goal):
            return "met"
        return f"missed by {self._missed_by(value, self.goal)}"

    def _meets(self, value: float, wanted: float) -> bool:
        return value <= wanted if self.is_at_most else value >= wanted

    @staticmethod
    def _missed_by(value: float, wanted: float) -> str:
        return f"{abs(value / wanted - 1.0):.1%}" if wanted else f"{value:g}"


def _median(case: str, pool: str, figure: str) -> Measured:
    return lambda summary: summary.median(case, pool, figure)


def _worst(case: str, figure: str) -> Measured:
    """Over all variants of poqueue."""

    def measured(summary: Summary) -> float | None:
        pools = ("poqueue", "poqueue+journal", "poqueue-forkserver", "poqueue-fork")
        found = [value for pool in pools if (value := summary.worst(case, pool, figure)) is not None]
        return max(found) if found else None

    return measured


def _over(case: str, pool: str, other: str, figure: str) -> Measured:
    return lambda summary: summary.ratio(case, pool, other, figure)


def _efficiency(case: str, pool: str = "poqueue") -> Measured:
    return lambda summary: summary.ratio(case, pool, "bare", "efficiency")


def _growth(pool: str) -> Measured:
    """The rate at 100,000 over that at 20,000, round by round."""
    return lambda summary: summary.ratio_of(("W8-100k", pool), ("W8-20k", pool), "per_s")


def _at_least(name: str, measured: Measured, goal: float | None, stretch: float | None, unit: str = "") -> Target:
    return Target(name, measured, goal, stretch, False, unit)


def _at_most(name: str, measured: Measured, goal: float | None, stretch: float | None, unit: str = "") -> Target:
    return Target(name, measured, goal, stretch, True, unit)


TARGETS = (
    _at_least("W1 no-ops, times ProcessPoolExecutor", _over("W1", "poqueue", "ppe", "per_s"), 5, 8, "x"),
    _at_least("W1, times pebble with timeout", _over("W1", "poqueue", "pebble", "per_s"), 4, None, "x"),
    _at_least("W1, times mp.Pool in chunks of 64", _over("W1", "poqueue", "mp-64", "per_s"), None, 0.7, "x"),
    _at_least("W1 with journal, times ProcessPoolExecutor", _over("W1", "poqueue+journal", "ppe", "per_s"), 2.5, 5, "x"),
    _at_least("W2 sleeps of 1 ms, efficiency over bare fork", _efficiency("W2"), 0.95, 0.98),
    _at_least("W3 sleeps of 10 ms, efficiency over bare fork", _efficiency("W3"), 0.98, 0.99),
    _at_least("W3b burns of 1 ms, efficiency over bare fork", _efficiency("W3b"), 0.92, 0.95),
    _at_most("W4 hangs, time over ideal, spawn", _median("W4", "poqueue", "over_ideal"), 1.10, 1.05),
    _at_most("W4 hangs, time over ideal, forkserver", _median("W4", "poqueue-forkserver", "over_ideal"), 1.10, 1.05),
    _at_most("W4 innocents lost", _worst("W4", "lost"), 0, None),
    _at_most("W4 innocents charged", _worst("W4", "charged"), 0, None),
    _at_most("W5 crashes, time over ideal, spawn", _median("W5", "poqueue", "over_ideal"), 1.5, 1.25),
    _at_most("W5 crashes, time over ideal, forkserver", _median("W5", "poqueue-forkserver", "over_ideal"), 1.5, 1.25),
    _at_most("W5 innocents lost", _worst("W5", "lost"), 0, None),
    _at_most("W5 innocents charged", _worst("W5", "charged"), 0, None),
    _at_most("W6 first result over ProcessPoolExecutor's, spawn", _over("W6-spawn", "poqueue", "ppe", "seconds"), 2.0, 1.5, "x"),
    _at_most(
        "W6 first result over ProcessPoolExecutor's, forkserver",
        _over("W6-forkserver", "poqueue", "ppe", "seconds"), 1.5, 1.2, "x",
    ),
    _at_most("W7 memory for each waiting PO", _median("W7", "poqueue", "bytes_a_task"), 1800, 1400, "bytes"),
    _at_least("W8 rate at 100,000 over that at 20,000", _growth("poqueue"), 0.95, 1.0),
    _at_most("W8 get_queue_status at 1,000,000, p99", _median("W8-1M", "queue", "status_p99_ms"), 1.0, None, "ms"),
    _at_most("W8 find_task at 1,000,000, p99", _median("W8-1M", "queue", "find_p99_ms"), 1.0, None, "ms"),
    _at_most("W8 get_performance_metrics at 1,000,000, p99", _median("W8-1M", "queue", "metrics_p99_ms"), 1.0, None, "ms"),
    _at_most("W9 add to start, p50 over ProcessPoolExecutor's", _over("W9", "poqueue", "ppe", "p50_ms"), 1.0, 0.7, "x"),
    _at_most("W9 add to start, p99 over ProcessPoolExecutor's", _over("W9", "poqueue", "ppe", "p99_ms"), 1.0, 0.7, "x"),
    _at_least("TaskQueue in process at 200,000", _median("in-process-200k", "queue", "per_s"), 60_000, 120_000, "/s"),
    _at_least("the same in lots, as workers call it", _median("in-process-200k", "queue-lots", "per_s"), 60_000, 120_000, "/s"),
    _at_most("New Orleans file, empty processor", _median("orders", "cli", "seconds"), 3.0, 1.5, "s"),
    _at_most("New Orleans file, with journal", _median("orders", "cli+journal", "seconds"), 3.0, 1.5, "s"),
    _at_most("idle run, share of one core", _median("idle", "poqueue", "percent"), 1.0, None, "%"),
)  # fmt: skip
