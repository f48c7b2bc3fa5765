"""The pools that are compared, each behind the same few methods, each used as its own documentation has it.

A pool is opened, warmed up (workers started, imports done, every worker seen) and only then measured; its clock stops when
the result of the last PO is known to the caller. `OPENERS` holds every pool by name; one whose package is missing cannot be
opened and is left out of the tables with that reason.
"""

import importlib
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any, Protocol

from tests.benchmarks.work import make_orders, perform

START = "fork"  # the peers' quickest method, and until Python 3.13 their default on Linux
Po = dict[str, Any]


class PoolUnavailable(Exception):
    """This pool cannot be measured here; the text says why."""


@dataclass(slots=True)
class Outcomes:
    """What became of the POs as their caller knows it. A PO in neither `results` nor `errors` never ended for it."""

    results: dict[str, Po] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    charged: set[str] = field(default_factory=set)  # POs that an attempt was taken from
    started_at: float = 0.0  # where the pool knows it better than whoever called it
    ended_at: float = 0.0

    def end(self) -> "Outcomes":
        """The last one is known now."""
        self.ended_at = time.monotonic()
        return self


class Pool(Protocol):
    """What the workloads need of a pool."""

    def warm(self, orders: list[Po]) -> list[Po]:
        """Run POs before the clock starts; gives their results."""

    def run(self, orders: Iterable[Po], within_s: float) -> Outcomes:
        """Hand the POs in as they come, and wait for all results, but no longer than that."""

    def hold(self, orders: Iterable[Po]) -> None:
        """Hand POs in that no worker begins, as long as the pool lives."""

    def close(self) -> None:
        """End the workers."""


Opener = Callable[[int, float], Pool]  # number of workers, seconds that an attempt may take


def warm_up(pool: Pool, jobs: int, work: str) -> None:
    """Until each worker has been seen at work, then some of the work itself: imports and adaptive batches settle."""
    pids: set[int] = set()
    deadline = time.monotonic() + 60.0
    batch = 0
    while len(pids) < jobs:
        batch += 1
        pids |= {result["pid"] for result in pool.warm(make_orders(2 * jobs, "whoami", f"WHO{batch}-"))}
        if time.monotonic() > deadline:
            raise PoolUnavailable(f"only {len(pids)} of {jobs} workers were seen at work")
    pool.warm(make_orders(100, work, "WARM"))
    time.sleep(0.1)


# ---------------------------------------------------------------------- pools of futures


class FuturePool:
    """Any pool that gives a future for a PO."""

    def __init__(self, submit: Callable[[Po], Any], close: Callable[[], None], jobs: int) -> None:
        self._submit, self.close, self._jobs = submit, close, jobs

    def warm(self, orders: list[Po]) -> list[Po]:
        return list(self.run(orders, 60.0).results.values())

    def run(self, orders: Iterable[Po], within_s: float) -> Outcomes:
        deadline = time.monotonic() + within_s
        outcomes = Outcomes()
        submitted: list[tuple[str, Any]] = []
        for po in orders:
            try:
                submitted.append((po["po_number"], self._submit(po)))
            except Exception as error:  # a pool that broke takes no more; what this costs is what is measured
                outcomes.errors[po["po_number"]] = type(error).__name__
        for po_number, future in submitted:
            try:
                outcomes.results[po_number] = future.result(timeout=max(0.0, deadline - time.monotonic()))
            except (TimeoutError, futures.TimeoutError, multiprocessing.TimeoutError) as error:
                if future.done():  # the task's own timeout, and not that of waiting for it
                    outcomes.errors[po_number] = type(error).__name__
            except (Exception, futures.CancelledError) as error:
                outcomes.errors[po_number] = type(error).__name__
        return outcomes.end()

    def hold(self, orders: Iterable[Po]) -> None:
        held = [self._submit(po) for po in make_orders(self._jobs, "hang", "HELD")]
        held += [self._submit(po) for po in orders]
        self._held = held


def open_executor(jobs: int, timeout_s: float) -> Pool:
    pool = futures.ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context(START))
    return FuturePool(lambda po: pool.submit(perform, po), lambda: pool.shutdown(cancel_futures=True), jobs)


def open_pebble(jobs: int, timeout_s: float) -> Pool:
    pebble: Any = importlib.import_module("pebble")  # the peers are optional, and mostly without types

    pool = pebble.ProcessPool(max_workers=jobs, context=multiprocessing.get_context(START))

    def close() -> None:
        pool.stop()
        pool.join()

    return FuturePool(lambda po: pool.schedule(perform, args=(po,), timeout=timeout_s), close, jobs)


def open_loky(jobs: int, timeout_s: float) -> Pool:
    loky: Any = importlib.import_module("loky")

    pool = loky.ProcessPoolExecutor(jobs)
    return FuturePool(lambda po: pool.submit(perform, po), lambda: pool.shutdown(kill_workers=True), jobs)


class _ReadyResult:
    """multiprocessing's AsyncResult with a future's words."""

    __slots__ = ("_result",)

    def __init__(self, result: Any) -> None:
        self._result = result

    def result(self, timeout: float) -> Any:
        return self._result.get(timeout)

    def done(self) -> bool:
        return bool(self._result.ready())


def open_mpire(jobs: int, timeout_s: float) -> Pool:
    mpire: Any = importlib.import_module("mpire")

    pool = mpire.WorkerPool(n_jobs=jobs, start_method=START)

    def submit(po: Po) -> _ReadyResult:
        return _ReadyResult(pool.apply_async(perform, (po,), task_timeout=timeout_s))

    return FuturePool(submit, pool.terminate, jobs)


# ---------------------------------------------------------------------- pools of streams


class StreamPool:
    """Any pool that takes an iterable and gives results as they come."""

    def __init__(self, stream: Callable[[Iterable[Po], float], Iterator[Po]], close: Callable[[], None]) -> None:
        self._stream, self.close = stream, close

    def warm(self, orders: list[Po]) -> list[Po]:
        return list(self._stream(orders, 60.0))

    def run(self, orders: Iterable[Po], within_s: float) -> Outcomes:
        outcomes = Outcomes()
        handed_in: list[str] = []

        def noted() -> Iterator[Po]:
            for po in orders:
                handed_in.append(po["po_number"])
                yield po

        try:
            for result in self._stream(noted(), within_s):
                outcomes.results[result["po_number"]] = result
        except TimeoutError:
            pass  # what is missing never ended
        except Exception as error:
            outcomes.errors = {n: type(error).__name__ for n in handed_in if n not in outcomes.results}
        return outcomes.end()

    def hold(self, orders: Iterable[Po]) -> None:
        raise PoolUnavailable("takes a stream, and holds no tasks")


class MultiprocessingPool(FuturePool):
    """multiprocessing.Pool: a stream to run POs, task by task to hold them."""

    def __init__(self, pool: Any, jobs: int, chunk: int) -> None:
        super().__init__(lambda po: _ReadyResult(pool.apply_async(perform, (po,))), pool.terminate, jobs)
        self._pool, self._chunk = pool, chunk

    def run(self, orders: Iterable[Po], within_s: float) -> Outcomes:
        outcomes = Outcomes()
        for result in self._results(orders, time.monotonic() + within_s):
            outcomes.results[result["po_number"]] = result
        return outcomes.end()

    def _results(self, orders: Iterable[Po], deadline: float) -> Iterator[Po]:
        """It waits for ever for a task that was lost with its worker, so there is a deadline; chunks know of none."""
        stream = self._pool.imap_unordered(perform, orders, chunksize=self._chunk)
        if self._chunk > 1:
            yield from stream
            return
        while True:
            try:
                yield stream.next(timeout=max(0.0, deadline - time.monotonic()))
            except (StopIteration, multiprocessing.TimeoutError):
                return


def open_pool(jobs: int, chunk: int) -> Pool:
    return MultiprocessingPool(multiprocessing.get_context(START).Pool(jobs), jobs, chunk)


def open_joblib(jobs: int, timeout_s: float) -> Pool:
    joblib: Any = importlib.import_module("joblib")

    parallel = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered")
    parallel.__enter__()

    def stream(orders: Iterable[Po], within_s: float) -> Iterator[Po]:
        results: Iterator[Po] = parallel(joblib.delayed(perform)(po) for po in orders)
        return results

    return StreamPool(stream, lambda: parallel.__exit__(None, None, None))


# ---------------------------------------------------------------------- no pool at all


class BareFork:
    """Two loops without a queue: what the machine gives, and so the measure of efficiency.

    The POs are dealt out before the clock starts; the loops are forked then, and wait for a word to begin. Their results
    stay with them: what is known is that each loop has come to its end.
    """

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs

    def warm(self, orders: list[Po]) -> list[Po]:
        return [{**perform(po), "pid": number} for number, po in enumerate(orders)]  # no workers yet, so no pids either

    def run(self, orders: Iterable[Po], within_s: float) -> Outcomes:
        dealt = list(orders)
        (begin, say_begin), (end, say_end) = os.pipe(), os.pipe()
        pids = [self._fork(dealt[n :: self._jobs], begin, say_end) for n in range(self._jobs)]
        time.sleep(0.1)  # all stand and wait
        outcomes = Outcomes(started_at=time.monotonic())
        os.write(say_begin, b"." * self._jobs)
        done = sum(int.from_bytes(os.read(end, 4), "little") for _ in pids)
        outcomes.end()
        for pid in pids:
            os.waitpid(pid, 0)
        if done == len(dealt):
            outcomes.results = {po["po_number"]: {"po_number": po["po_number"]} for po in dealt}
        return outcomes

    def hold(self, orders: Iterable[Po]) -> None:
        raise PoolUnavailable("has no queue")

    def close(self) -> None:
        return None

    def _fork(self, orders: list[Po], begin: int, end: int) -> int:
        pid = os.fork()
        if pid:
            return pid
        try:
            os.read(begin, 1)
            results = [perform(po) for po in orders]
            os.write(end, len(results).to_bytes(4, "little"))
        finally:
            os._exit(0)


def _open_poqueue(**settings: Any) -> Opener:
    def opener(jobs: int, timeout_s: float) -> Pool:
        from tests.benchmarks.poqueue_pool import PoqueuePool

        return PoqueuePool(jobs, timeout_s, **settings)

    return opener


OPENERS: dict[str, Opener] = {
    "poqueue": _open_poqueue(),
    "poqueue+journal": _open_poqueue(has_journal=True),
    "poqueue-forkserver": _open_poqueue(start_method="forkserver"),
    "poqueue-fork": _open_poqueue(start_method="fork"),
    "ppe": open_executor,
    "mp-1": lambda jobs, timeout_s: open_pool(jobs, 1),
    "mp-64": lambda jobs, timeout_s: open_pool(jobs, 64),
    "pebble": open_pebble,
    "mpire": open_mpire,
    "loky": open_loky,
    "joblib": open_joblib,
    "bare": lambda jobs, timeout_s: BareFork(jobs),
}
TITLES = {
    "poqueue": "poqueue",
    "poqueue+journal": "poqueue, journal",
    "poqueue-forkserver": "poqueue, forkserver",
    "poqueue-fork": "poqueue, fork",
    "ppe": "ProcessPoolExecutor",
    "mp-1": "mp.Pool, chunk 1",
    "mp-64": "mp.Pool, chunk 64",
    "pebble": "pebble, timeout",
    "mpire": "mpire, timeout",
    "loky": "loky",
    "joblib": "joblib",
    "bare": "bare fork",
    "queue": "TaskQueue in process",
    "queue-lots": "TaskQueue in process, in lots",
    "manager": "TaskQueue by its manager",
    "cli": "poqueue run --no-journal",
    "cli+journal": "poqueue run",
}


def open_warm(name: str, jobs: int, timeout_s: float, work: str) -> Pool:
    """A pool by name, warmed up.

    Raises:
        PoolUnavailable: its package is missing, or it does not do this.
    """
    try:
        pool = OPENERS[name](jobs, timeout_s)
    except ImportError as error:
        raise PoolUnavailable(f"{error.name} is not installed (pip install 'poqueue[bench]')") from None
    warm_up(pool, jobs, work)
    return pool
