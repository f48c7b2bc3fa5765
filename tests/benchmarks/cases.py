"""The measurements: each takes one pool, in a process of its own, and gives figures. Times in seconds."""

import gc
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import psutil

from tests.benchmarks import work
from tests.benchmarks.pools import Outcomes, Po, Pool, PoolUnavailable, open_warm
from tests.benchmarks.turns import await_turn

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data" / "new_orleans_po_invoices.csv"
JOBS = 2
HANG_TIMEOUT_S = 0.5
FAULTS_WITHIN_S = 20.0  # far above what any pool needs that ends at all
PACE_S = 0.01
POS_A_TURN, SETTLING = 30, 5  # the first ones of each turn find what was idle for longer, and are not counted
IN_TURN_WITHIN_S = 600.0  # with the turns of all others
CALLS = 1000
Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Case:
    """One workload: its size, who is measured on it, and how."""

    name: str
    title: str
    pools: tuple[str, ...]
    size: int
    measure: Callable[[str, int], Figures]
    limit_s: float = 120.0
    is_slow: bool = False  # once is enough: it takes long and hardly varies
    in_turn: tuple[str, ...] = ()  # open together, and go on for a moment each, as the machine changes within seconds


# ---------------------------------------------------------------------- throughput


def judge(outcomes: Outcomes, orders: list[Po]) -> Figures:
    """Count what became of the POs. An innocent is a good PO; `lost` are those without a result of their own."""
    bad = {po["po_number"] for po in orders if po["work"] in ("hang", "crash")}
    innocents = {po["po_number"] for po in orders} - bad
    right = {number for number, result in outcomes.results.items() if result["po_number"] == number}
    ended = outcomes.results.keys() | outcomes.errors.keys()
    return {
        "lost": float(len(innocents - right)),
        "charged": float(len(innocents & outcomes.charged)),
        "never_ended": float(sum(po["po_number"] not in ended for po in orders)),
        "bad_recovered": float(len(right & bad)),
    }


def refuse_impossible(seconds: float, ideal_s: float) -> None:
    """A pool that is faster than its work has not done it, or is measured wrongly; either way it is no figure.

    Raises:
        AssertionError: it is.
    """
    if seconds < ideal_s:
        raise AssertionError(f"{seconds:.4f} s for work that takes {ideal_s:.4f} s at least: the measurement is wrong")


def run_timed(pool: Pool, orders: list[Po], within_s: float) -> tuple[Outcomes, float]:
    """From handing in the first PO to knowing the last result."""
    gc.collect()
    started = time.monotonic()
    outcomes = pool.run(orders, within_s)
    return outcomes, outcomes.ended_at - (outcomes.started_at or started)


def throughput(pool_name: str, size: int, kind: str, task_s: float = 0.0) -> Figures:
    """Rate, and efficiency as ideal over actual time."""
    orders = work.make_orders(size, kind)
    pool = open_warm(pool_name, JOBS, 60.0, kind)
    outcomes, seconds = run_timed(pool, orders, 300.0)
    pool.close()
    refuse_impossible(seconds, size * task_s / JOBS)
    return {
        "seconds": seconds,
        "per_s": size / seconds,
        "efficiency": size * task_s / JOBS / seconds,
        **judge(outcomes, orders),
    }


def faults(pool_name: str, size: int, bad: str, bad_s: float) -> Figures:
    """Time over ideal with bad POs among good ones. poqueue tries the bad ones again: that work is in its ideal."""
    orders = work.make_orders_with_bad(size, bad)
    bad_count = sum(po["work"] == bad for po in orders)
    pool = open_warm(pool_name, JOBS, HANG_TIMEOUT_S, "sleep_5ms")
    outcomes, seconds = run_timed(pool, orders, FAULTS_WITHIN_S)
    figures = judge(outcomes, orders)
    done = size - bad_count - figures["lost"] + figures["bad_recovered"]
    ideal_s = ((size - bad_count + figures["bad_recovered"]) * 0.005 + bad_count * bad_s) / JOBS
    refuse_impossible(seconds, done * 0.005 / JOBS)
    return {"seconds": seconds, "over_ideal": seconds / ideal_s, **figures}


# ---------------------------------------------------------------------- latency, memory, start


def add_to_start(pool_name: str, size: int) -> Figures:
    """One PO every 10 ms on an idle pool: from handing it in to its first line in the worker, in milliseconds."""
    orders = work.make_orders(size, "nothing")
    pool = open_warm(pool_name, JOBS, 60.0, "nothing")
    outcomes = pool.run(_in_turns(orders), IN_TURN_WITHIN_S)
    figures = judge(outcomes, orders)
    settling = min(SETTLING, size // 2)
    counted = [po["po_number"] for place, po in enumerate(orders) if place % POS_A_TURN >= settling]
    waits_ms = [outcomes.results[number]["wait_s"] * 1000.0 for number in counted if number in outcomes.results]
    pool.close()
    return {"p50_ms": median(waits_ms), "p99_ms": quantiles(waits_ms, n=100)[98], **figures}


def _in_turns(orders: list[Po]) -> Iterator[Po]:
    for start in range(0, len(orders), POS_A_TURN):
        await_turn()
        yield from work.paced(orders[start : start + POS_A_TURN], PACE_S)
        time.sleep(PACE_S)  # as after any other PO: its start and end are no other pool's noise


def first_result(pool_name: str, size: int, method: str) -> Figures:
    """A whole fresh process with one PO, to its first result: the median of so many, as each takes only a moment."""
    command = [sys.executable, "-m", "tests.benchmarks.first", pool_name, method]
    seconds = []
    for _ in range(size):
        started = time.monotonic()
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=60, cwd=ROOT)
        seconds.append(float(done.stdout.split()[0]) - started)
    return {"seconds": median(seconds)}


def held_memory(pool_name: str, size: int) -> Figures:
    """Bytes for each PO that waits, in the caller's process and all its children; POs are made afresh and kept by nobody."""
    pool = open_warm(pool_name, JOBS, 3600.0, "nothing")
    before = _memory_bytes()
    pool.hold(work.make_po(number, "nothing") for number in range(size))
    time.sleep(0.5)
    return {"bytes_a_task": (_memory_bytes() - before) / size}


def _memory_bytes() -> int:
    gc.collect()
    me = psutil.Process()
    return sum(process.memory_full_info().uss for process in (me, *me.children(recursive=True)))


# ---------------------------------------------------------------------- the queue alone


def queue_rate(pool_name: str, size: int) -> Figures:
    """TaskQueue in this process: add all, then lease and complete each; a call each, or in lots as the pool's processes do."""
    from poqueue import TaskQueue

    queue = TaskQueue()
    orders = work.make_orders(size, "nothing")
    add, complete = (_add_each, _complete_each) if pool_name == "queue" else (_add_in_lots, _complete_in_lots)
    gc.collect()
    started = time.monotonic()
    add(queue, orders)
    added = time.monotonic()
    complete(queue)
    ended = time.monotonic()
    done = queue.get_queue_status()["completed_tasks"]
    figures = {"per_s": size / (ended - started), "adds_per_s": size / (added - started), "lost": float(size - done)}
    figures["leases_and_ends_per_s"] = size / (ended - added)
    return figures


def _add_each(queue: Any, orders: list[Po]) -> None:
    from poqueue import ProcessingTask

    for po in orders:
        queue.add_task(ProcessingTask(po_data=po))


def _complete_each(queue: Any) -> None:
    from poqueue import TaskResult

    while (task := queue.get_next_task("w1")) is not None:
        queue.complete_task(task.task_id, "w1", TaskResult(success=True))


def _add_in_lots(queue: Any, orders: list[Po]) -> None:
    from poqueue import ProcessingTask
    from workers.feeder import ADD_AT_ONCE

    for start in range(0, len(orders), ADD_AT_ONCE):
        queue.add_tasks([ProcessingTask(po_data=po) for po in orders[start : start + ADD_AT_ONCE]])


def _complete_in_lots(queue: Any) -> None:
    from poqueue.payload import freeze_success
    from poqueue.task import MAX_LEASES, Success

    reports: list[Any] = []
    turn = 1
    while leases := queue.exchange("w1", reports, MAX_LEASES, turn=turn).leases:
        reports = [Success(lease.task_id, lease.token, 0.001, freeze_success([], 1_000_000, {})) for lease in leases]
        turn += 1


def queue_latency(pool_name: str, size: int) -> Figures:
    """The time of single calls, in milliseconds, with this many tasks in the queue, of which one in fifty is done."""
    from poqueue import TaskQueue
    from poqueue.service import QueueService

    if pool_name == "queue":
        return _latencies(TaskQueue(), size)
    with QueueService() as service:
        return _latencies(service.client(), size)


def _latencies(queue: Any, size: int) -> Figures:
    from poqueue import ProcessingTask, TaskResult

    for start in range(0, size, 1000):
        numbers = range(start, min(start + 1000, size))
        queue.add_tasks([ProcessingTask(f"t{n}", work.make_po(n, "nothing")) for n in numbers])
    for _ in range(size // 50):
        task = queue.get_next_task("w1")
        queue.complete_task(task.task_id, "w1", TaskResult(success=True))
    wanted = [(n * 7919) % size for n in range(CALLS)]
    figures = _call_times("status", [queue.get_queue_status] * CALLS)
    figures |= _call_times("metrics", [queue.get_performance_metrics] * CALLS)
    figures |= _call_times("find", [_finder(queue, work.make_po(n, "nothing")["po_number"]) for n in wanted])
    return figures


def _finder(queue: Any, po_number: str) -> Callable[[], None]:
    def find() -> None:
        found = queue.find_task(po_number)
        if found is None or found.po_number != po_number:
            raise AssertionError(f"{po_number} was not found")

    return find


def _call_times(name: str, calls: list[Callable[[], Any]]) -> Figures:
    times_ms = []
    for call in calls:
        started = time.perf_counter()
        call()
        times_ms.append((time.perf_counter() - started) * 1000.0)
    return {f"{name}_p50_ms": median(times_ms), f"{name}_p99_ms": quantiles(times_ms, n=100)[98]}


# ---------------------------------------------------------------------- whole runs


def order_file(pool_name: str, size: int) -> Figures:
    """`poqueue run` on a real file of 12,728 rows with the empty processor: from the start of the program to its end."""
    if not DATA.is_file():
        raise PoolUnavailable(f"{DATA.name} is not here")
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder, "run")
        command = [
            sys.executable, "-m", "workers", "run", str(DATA), "--map", "po_number=PO,supplier=Vendor,amount=Amount",
            "-j", str(JOBS), "-p", "tests.benchmarks.work:nothing", "--app-dir", str(ROOT), "--run-dir", str(run_dir),
            "--limit", str(size), *(["--no-journal"] if pool_name == "cli" and _has_journal() else []),
        ]  # fmt: skip
        started = time.monotonic()
        done = subprocess.run(command, cwd=ROOT, timeout=100, check=False, capture_output=True, text=True)
        seconds = time.monotonic() - started
        if done.returncode:
            raise RuntimeError(f"poqueue run ended with {done.returncode}: {done.stderr.strip()[-200:]}")
        accounts = json.loads((run_dir / "report.json").read_text())["accounts"]
    beyond_limit = accounts["not_run"] if size < CASES["orders"].size else 0
    return {"seconds": seconds, "lost": float(accounts["rows"] - accounts["succeeded"] - beyond_limit)}


def idle_share(pool_name: str, size: int) -> Figures:
    """A paused run with four workers: the share of one core that all its processes take over five seconds, in percent."""
    from tests.benchmarks.pools import OPENERS
    from tests.benchmarks.poqueue_pool import PoqueuePool

    pool = OPENERS[pool_name](4, 60.0)
    assert isinstance(pool, PoqueuePool)
    pool.warm(work.make_orders(100, "nothing", "WARM"))
    pool.hold(work.make_orders(100, "nothing"))
    figures: Figures = {}

    def look() -> None:
        time.sleep(1.0)
        before, started = _cpu_s(), time.monotonic()
        time.sleep(5.0)
        figures["percent"] = (_cpu_s() - before) / (time.monotonic() - started) * 100.0
        pool.supervisor.queue.clear_queue()

    threading.Thread(target=look, daemon=True).start()
    pool.supervisor.run()
    pool.close()
    return figures


def _has_journal() -> bool:
    from tests.benchmarks.poqueue_pool import has_journal_setting

    return has_journal_setting()


def _cpu_s() -> float:
    me = psutil.Process()
    spent = 0.0
    for process in (me, *me.children(recursive=True)):
        times = process.cpu_times()
        spent += times.user + times.system
    return spent


# ---------------------------------------------------------------------- all of them

OURS = ("poqueue", "poqueue+journal")
PEERS = ("ppe", "mp-1", "mp-64", "pebble", "mpire", "loky", "joblib")
THROUGHPUT = (*OURS, *PEERS, "bare")
CRASHING = (*OURS, "poqueue-forkserver", "poqueue-fork", "ppe", "mp-1", "pebble", "mpire", "loky", "joblib")
IN_PROCESS = ("queue", "queue-lots")
HOLDING = (*OURS, "ppe", "mp-1", "pebble", "mpire", "loky")


def _cases() -> Iterator[Case]:
    def of_work(kind: str, task_s: float = 0.0) -> Callable[[str, int], Figures]:
        return lambda pool, size: throughput(pool, size, kind, task_s)

    def of_method(method: str) -> Callable[[str, int], Figures]:
        return lambda pool, size: first_result(pool, size, method)

    def of_bad(bad: str, bad_s: float) -> Callable[[str, int], Figures]:
        return lambda pool, size: faults(pool, size, bad, bad_s)

    yield Case("W1", "20,000 no-ops", THROUGHPUT, 20_000, of_work("nothing"))
    yield Case("W2", "4,000 sleeps of 1 ms", THROUGHPUT, 4_000, of_work("sleep_1ms", 0.001))
    yield Case("W3", "600 sleeps of 10 ms", THROUGHPUT, 600, of_work("sleep_10ms", 0.01))
    yield Case("W3b", "4,000 burns of 1 ms CPU", THROUGHPUT, 4_000, of_work("burn_1ms", 0.001))
    hanging = (*OURS, "poqueue-forkserver", "poqueue-fork", "pebble", "mpire")
    yield Case("W4", "200 of 5 ms, 10 hang, timeout 0.5 s", hanging, 200, of_bad("hang", HANG_TIMEOUT_S), 60.0)
    yield Case("W5", "200 of 5 ms, 10 crash", CRASHING, 200, of_bad("crash", 0.005), 60.0)
    for method in ("spawn", "forkserver", "fork"):
        yield Case(f"W6-{method}", f"fresh process to first result, {method}", (*OURS, "ppe"), 9, of_method(method))
    yield Case("W7", "memory for each of 200,000 waiting POs", HOLDING, 200_000, held_memory, 180.0, is_slow=True)
    for size in (2_000, 20_000, 100_000):
        yield Case(f"W8-{size // 1000}k", f"{size:,} no-ops", (*OURS, "ppe", "mp-1"), size, of_work("nothing"))
    million = 1_000_000
    yield Case("W8-1M", "calls with 1,000,000 tasks", ("queue", "manager"), million, queue_latency, 400.0, is_slow=True)
    pacing = (*OURS, "ppe", "mp-1", "pebble", "mpire", "loky")
    still = tuple(pool for pool in pacing if pool != "mpire")  # which looks round 200 times a second meanwhile
    yield Case("W9", "one PO every 10 ms, add to start", pacing, 2_040, add_to_start, 60.0, in_turn=still)
    yield Case("in-process-20k", "TaskQueue alone, add, lease, complete: 20,000", IN_PROCESS, 20_000, queue_rate)
    yield Case("in-process-200k", "TaskQueue alone, add, lease, complete: 200,000", IN_PROCESS, 200_000, queue_rate)
    yield Case(
        "orders", "New Orleans file, empty processor, file to report", ("cli", "cli+journal"), 20_000, order_file
    )
    yield Case("idle", "paused run, 4 workers", OURS, 1, idle_share, 60.0)


CASES: dict[str, Case] = {case.name: case for case in _cases()}
