"""A time limit that follows what attempts really take: a share of the running median, within a floor and the task's own limit.

A group (a supplier's POs, say) that has completed enough is measured by itself, the others by all together; until there
is enough to go by, the task's own limit holds. An attempt after one that the limit has cut off gets the task's own limit
too: what is killed may have been slow, not hung.
"""

from bisect import bisect_left, insort
from collections import deque

TIMEOUT_ERROR = "TaskTimeout"  # the error_type of an attempt that a limit has cut off
MIN_SAMPLES = 10
WINDOW = 501  # the latest durations that count; odd, so that the median is one of them
MAX_GROUPS = 10_000


class RunningMedian:
    """The median of the latest `WINDOW` values."""

    __slots__ = ("_latest", "_sorted")

    def __init__(self) -> None:
        self._latest: deque[float] = deque()
        self._sorted: list[float] = []

    def __len__(self) -> int:
        return len(self._sorted)

    def add(self, value: float) -> None:
        """One more value; the oldest leaves."""
        if len(self._latest) == WINDOW:
            del self._sorted[bisect_left(self._sorted, self._latest.popleft())]
        self._latest.append(value)
        insort(self._sorted, value)

    @property
    def value(self) -> float:
        """The median; of an even number of values the upper one."""
        return self._sorted[len(self._sorted) // 2]


class AdaptiveTimeout:
    """Learns durations in seconds and says how long an attempt may take.

    Args:
        share: of the median, above 1.
        floor_s: never less than this, but for a task whose own limit is lower.
    """

    def __init__(self, share: float, floor_s: float) -> None:
        self._share = share
        self._floor_s = floor_s
        self._all = RunningMedian()
        self._groups: dict[str, RunningMedian] = {}

    def note(self, group: str, duration_s: float) -> None:
        """An attempt has completed."""
        self._all.add(duration_s)
        if not group:
            return
        median = self._groups.get(group)
        if median is None:
            if len(self._groups) >= MAX_GROUPS:
                return
            median = self._groups[group] = RunningMedian()
        median.add(duration_s)

    def limit_s(self, group: str, own_s: float, *, was_cut_off: bool) -> float:
        """How long the next attempt may take; `own_s` is the task's own limit."""
        median = self._groups.get(group)
        if median is None or len(median) < MIN_SAMPLES:
            median = self._all
        if was_cut_off or len(median) < MIN_SAMPLES:
            return own_s
        return min(own_s, max(self._floor_s, self._share * median.value))

    def view(self, own_s: float) -> dict[str, dict[str, float]]:
        """For the report: completions that count, median and limit, of all ("") and of each group that goes by itself."""
        medians = {"": self._all, **self._groups}
        return {
            group: {
                "count": len(median),
                "median_s": median.value,
                "limit_s": self.limit_s(group, own_s, was_cut_off=False),
            }
            for group, median in medians.items()
            if len(median) >= MIN_SAMPLES
        }
