"""poqueue as one of the pools: a Supervisor with timeouts, retries, metrics, events, results and progress on.

It is used as `poqueue run` uses it: the supervisor's loop adds the tasks and hands on an event for each PO that ends, and
its result is opened there. The clock stops with the last of these. As from any other pool here, the result comes without
the PO itself (`poqueue run` asks for both, and writes them to results.csv: workload "orders").
"""

import inspect
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from poqueue import ProcessingTask
from poqueue.payload import thaw_result
from poqueue.task import Event
from tests.benchmarks.pools import Outcomes, Po, PoolUnavailable
from tests.benchmarks.work import make_po
from workers.feeder import ADD_AT_ONCE
from workers.supervisor import Supervisor

PROCESSOR = "tests.benchmarks.work:process"
KEEPER = "KEEPER"
POLL_S = 0.005


def has_journal_setting() -> bool:
    """Whether this poqueue can keep a journal."""
    return "journal" in inspect.signature(Supervisor).parameters


def _tasks(orders: Iterable[Po]) -> Iterator[ProcessingTask]:
    return (ProcessingTask(task_id=po["po_number"], po_data=po) for po in orders)


class PoqueuePool:
    """One run of a Supervisor, and so good for one `run`."""

    def __init__(
        self, jobs: int, timeout_s: float, *, has_journal: bool = False, start_method: str = "spawn", retries: int = 3
    ) -> None:
        if has_journal and not has_journal_setting():
            raise PoolUnavailable("this poqueue has no journal yet")
        self._folder = tempfile.TemporaryDirectory(prefix="poqueue-bench-")
        settings: dict[str, Any] = {"journal": Path(self._folder.name, "journal.sqlite")} if has_journal else {}
        self.supervisor = Supervisor(
            PROCESSOR, jobs=jobs, start_method=start_method, task_timeout=timeout_s, max_retries=retries, retry_delay=0.0,
            on_event=self._take, events_bring_data=False, on_show=lambda snapshot: None, **settings,
        )  # fmt: skip
        self._outcomes = Outcomes()
        self._expected: int | None = None  # how many POs are to end, if that is known
        self._not_measured = {KEEPER}  # POs before the clock, whose events come while it runs
        self.supervisor.start()

    # --- before the clock

    def warm(self, orders: list[Po]) -> list[Po]:
        """Workers lease by themselves: the supervisor's loop is not needed for it, and is begun only once."""
        queue = self.supervisor.queue
        wanted = queue.get_queue_status()["completed_tasks"] + len(orders)
        self._not_measured |= {po["po_number"] for po in orders}
        self._add(orders)
        deadline = time.monotonic() + 60.0
        while queue.get_queue_status()["completed_tasks"] < wanted:
            if time.monotonic() > deadline:
                raise PoolUnavailable("the warm-up did not end")
            time.sleep(POLL_S)
        found = [queue.find_task(task_id=po["po_number"]) for po in orders]
        return [task.result.data for task in found if task is not None and task.result is not None]

    def hold(self, orders: Iterable[Po]) -> None:
        self.supervisor.queue.pause_queue()
        self._add(orders)

    # --- while the clock runs

    def run(self, orders: Iterable[Po], within_s: float) -> Outcomes:
        """A list is run as a batch is; anything else is added by a thread while the supervisor's loop turns."""
        self._outcomes = Outcomes()
        alarm = threading.Timer(within_s, self._give_up)
        alarm.daemon = True
        alarm.start()
        if isinstance(orders, list):
            self._expected = len(orders)
            self._outcomes.started_at = time.monotonic()
            self.supervisor.feed(_tasks(orders))
            self.supervisor.run()
        else:
            self._keep_going()
            threading.Thread(target=self._feed, args=(orders,), daemon=True).start()
            self.supervisor.run()
        alarm.cancel()
        return self._outcomes if self._outcomes.ended_at else self._outcomes.end()

    def _add(self, orders: Iterable[Po]) -> None:
        tasks = _tasks(orders)
        while lot := list(islice(tasks, ADD_AT_ONCE)):
            self.supervisor.add_tasks(lot)

    def _keep_going(self) -> None:
        """A run ends when nothing is left: a PO that waits for a far retry keeps an idle one alive."""
        queue = self.supervisor.queue
        queue.add_task(ProcessingTask(task_id=KEEPER, po_data=make_po(0, "much_later", KEEPER)))
        while not queue.get_queue_status()["retry_tasks"]:
            time.sleep(POLL_S)

    def _feed(self, orders: Iterable[Po]) -> None:
        add_tasks, expected = self.supervisor.add_tasks, set()
        for po in orders:
            add_tasks([ProcessingTask(po["po_number"], po)])  # at once, as the others' submit is called
            expected.add(po["po_number"])
        self._outcomes.end()
        while not expected <= self._outcomes.results.keys() | self._outcomes.errors.keys():
            time.sleep(POLL_S)  # until the alarm at the latest: this thread ends with its process
        self._outcomes.end()
        self.supervisor.queue.clear_queue()

    def _take(self, event: Event) -> None:
        record, outcomes = event.task, self._outcomes
        if record is None or (number := record.task_id) in self._not_measured:
            return
        kind = event.kind
        if kind == "completed":
            assert record.result is not None
            outcomes.results[number] = thaw_result(record.result).data
        elif kind == "failed":
            outcomes.errors[number] = event.error
        elif kind == "retry":
            outcomes.charged.add(number)
        if len(outcomes.results) + len(outcomes.errors) == self._expected and not outcomes.ended_at:
            outcomes.end()

    def _give_up(self) -> None:
        for _ in range(3):
            self.supervisor.stop()

    def close(self) -> None:
        self.supervisor.close()
        self._folder.cleanup()
