"""Durations, rates and utilisation, each kept in a few numbers however long the queue lives."""

from collections import deque
from collections.abc import Sequence
from math import floor, inf, log2

MINUTE_S = 60.0
HOUR_S = 3600.0
MOMENT_S = 0.01
BUCKETS = 8  # of durations, in each octave
LEAST_BUCKET = -20 * BUCKETS  # a millionth of a second, and less


class RateWindow:
    """Counts events of the last `span_s` seconds, in 600 buckets."""

    BUCKETS = 600

    def __init__(self, span_s: float) -> None:
        self._bucket_s = span_s / self.BUCKETS
        self._buckets: deque[list[int]] = deque()
        self._total = 0

    def add(self, now: float, count: int) -> None:
        """So many events, at this moment."""
        bucket = floor(now / self._bucket_s)  # what is read from a journal may have been before the clock's 0
        if self._buckets and self._buckets[-1][0] == bucket:
            self._buckets[-1][1] += count
        else:
            self._buckets.append([bucket, count])
            self._expire(bucket)
        self._total += count

    def count(self, now: float) -> int:
        """Events of the last `span_s` seconds."""
        self._expire(floor(now / self._bucket_s))
        return self._total

    def _expire(self, bucket: int) -> None:
        while self._buckets and self._buckets[0][0] <= bucket - self.BUCKETS:
            self._total -= self._buckets.popleft()[1]


class _WorkerTime:
    __slots__ = ("busy_s", "first", "last")

    def __init__(self, first: float) -> None:
        self.first = self.last = first
        self.busy_s = 0.0


class Metrics:
    """What the queue measures about itself. Times are monotonic seconds."""

    def __init__(self) -> None:
        self.first_dispatch: float | None = None
        self._paced_from: float | None = None  # the first dispatch since tasks could be started last,
        self._ended_before = 0  # and how many had ended by then
        self.dispatches = 0
        self.tasks_started = 0
        self.tasks_retried = 0
        self.retries_ended = 0
        self.retries_succeeded = 0
        self.retries_needed = 0  # the most that a task which then ended well has used
        self.retried_in_vain = 0  # tasks that failed for good after a retry or more
        self.waited_s = 0.0
        self.durations = 0
        self.failures = 0
        self.duration_sum_s = 0.0
        self.duration_max_s = 0.0
        self._histogram: dict[int, int] = {}  # durations, by buckets that are an eighth of an octave wide (9 %)
        self._minute = RateWindow(MINUTE_S)
        self._hour = RateWindow(HOUR_S)
        self._failed_minute = RateWindow(MINUTE_S)
        self._latest = -inf  # completions of about one moment, not in the windows yet
        self._latest_count = 0
        self._workers: dict[str, _WorkerTime] = {}
        self._gone: dict[str, _WorkerTime] = {}

    def dispatched(self, worker_id: str, count: int, started: int, waited_s: float, now: float) -> None:
        """Leases were handed out: how many, how many of them first attempts, and how long their tasks had been ready together."""
        if self._paced_from is None:
            self._paced_from, self._ended_before = now, self.durations + self.failures
            if self.first_dispatch is None:
                self.first_dispatch = now
        self.dispatches += count
        self.tasks_started += started
        self.waited_s += waited_s
        if worker_id not in self._workers:
            self._workers[worker_id] = self._come(worker_id, now)

    def _come(self, worker_id: str, now: float) -> _WorkerTime:
        """A worker's first lease; or it has outlived the queue before, and goes on."""
        worker = self._gone.pop(worker_id, None)
        if worker is None:
            return _WorkerTime(now)
        worker.first += now - worker.last
        return worker

    def left(self, worker_id: str, now: float) -> None:
        """A worker gets no lease any more: its time ends, or will once it has ended what it has."""
        worker = self._workers.pop(worker_id, None) or self._gone.get(worker_id)
        if worker is not None:
            worker.last = now
            self._gone[worker_id] = worker

    def undone(self, attempt: int, waited_s: float) -> None:
        """A lease was given back before its task, which had been ready for so long, began."""
        self.dispatches -= 1
        self.waited_s -= max(0.0, waited_s)
        self.tasks_started -= attempt == 1

    def worked(self, worker_id: str, busy_s: float, now: float) -> None:
        """Attempts of a worker ended, after so many seconds of work together."""
        worker = self._workers.get(worker_id) or self._gone.get(worker_id)
        if worker is not None:
            worker.busy_s += busy_s
            worker.last = now

    def retry_ended(self, retries: int, *, succeeded: bool) -> None:
        """An attempt after the first one, a task's retry of this number, succeeded or failed."""
        self.retries_ended += 1
        self.retries_succeeded += succeeded
        if succeeded and retries > self.retries_needed:
            self.retries_needed = retries

    def completed(self, worker_id: str, busy_s: float, durations: Sequence[float], now: float) -> None:
        """Tasks of a worker ended well: so many seconds it worked on them together, and so long they took, as each says."""
        worker = self._workers.get(worker_id) or self._gone.get(worker_id)
        if worker is not None:
            worker.busy_s += busy_s
            worker.last = now
        histogram = self._histogram
        for seconds in durations:
            self.duration_sum_s += seconds
            if seconds > self.duration_max_s:  # noqa: PLR1730  (a call takes longer)
                self.duration_max_s = seconds
            # a processor may state any number, infinity too: it counts as nothing then
            bucket = floor(log2(seconds) * BUCKETS) if 1e-6 < seconds < 1e12 else LEAST_BUCKET
            histogram[bucket] = histogram[bucket] + 1 if bucket in histogram else 1
        self.durations += len(durations)
        if now - self._latest > MOMENT_S:
            self._count_latest()
            self._latest = now
        self._latest_count += len(durations)

    def failed(self, now: float) -> None:
        """A task's last attempt failed."""
        self.failures += 1
        self._failed_minute.add(now, 1)

    def _count_latest(self) -> None:
        if self._latest_count:
            self._minute.add(self._latest, self._latest_count)
            self._hour.add(self._latest, self._latest_count)
            self._latest_count = 0

    def throughput(self, now: float, window_s: float = MINUTE_S) -> float:
        """Completions per second over the last minute or hour, or since the first dispatch if that is shorter."""
        if self.first_dispatch is None:
            return 0.0
        self._count_latest()
        window = self._minute if window_s == MINUTE_S else self._hour
        elapsed_s = min(window_s, now - self.first_dispatch)
        return window.count(now) / max(elapsed_s, 1e-3)

    def pace(self, now: float) -> float:
        """Tasks that ended, well or not, per second of the last minute, without the time in which nothing could be started."""
        if self._paced_from is None:
            return 0.0
        elapsed_s = now - self._paced_from
        if elapsed_s >= MINUTE_S:
            return self.throughput(now) + self._failed_minute.count(now) / MINUTE_S
        if elapsed_s < self.average_duration_s():  # what has ended since began before
            return 0.0
        return (self.durations + self.failures - self._ended_before) / max(elapsed_s, 1e-3)

    def taken_up(self) -> None:
        """All this was in another queue's time: nobody knows how long its workers stayed after what they did last."""
        self.stood_still()
        self._gone |= self._workers
        self._workers = {}

    def stood_still(self) -> None:
        """For a while no task could be started: from the next one on the pace counts anew."""
        self._paced_from = None

    def duration_buckets(self) -> tuple[tuple[float, int], ...]:
        """How many durations were about how long: (middle of the bucket in seconds, count), the shortest first."""
        return tuple((2.0 ** ((bucket + 0.5) / BUCKETS), n) for bucket, n in sorted(self._histogram.items()))

    def average_duration_s(self) -> float:
        """Seconds of work a completed task took, on average."""
        return self.duration_sum_s / self.durations if self.durations else 0.0

    def average_wait_s(self) -> float:
        """Seconds between ready and leased, on average over all leases."""
        return self.waited_s / self.dispatches if self.dispatches else 0.0

    def utilization(self, now: float, held_since: dict[str, float]) -> dict[str, float]:
        """For each worker the share 0..1 of its time, since its first lease and until it was gone, that it had work.

        Args:
            held_since: when each worker that holds leases now got the first of them; those held ahead overlap.
        """
        gone = self._gone.copy()  # a signal handler may let a worker go meanwhile
        there = self._workers | {worker_id: worker for worker_id, worker in gone.items() if worker_id in held_since}
        shares = {worker_id: _share(worker, worker.last, None) for worker_id, worker in gone.items()}
        return shares | {
            worker_id: _share(worker, now, held_since.get(worker_id)) for worker_id, worker in there.items()
        }


def _share(worker: _WorkerTime, until: float, held_since: float | None) -> float:
    elapsed_s = until - worker.first
    if elapsed_s <= 0.0:
        return 0.0 if held_since is None else 1.0
    running_s = 0.0 if held_since is None else until - held_since
    return min(1.0, max(0.0, worker.busy_s + running_s) / elapsed_s)


def percentage(part: int, whole: int) -> float:
    """`part` of `whole` in percent, 0 where there is nothing."""
    return 100.0 * part / whole if whole else 0.0
