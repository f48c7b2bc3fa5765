"""A worker's loop in this process, over a queue that a thread of it serves: what it asks for, and what it shows meanwhile."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from poqueue import TaskStatus
from poqueue.client import PendingCall
from poqueue.payload import thaw_task
from tests.unit.test_hand_off import House, task
from workers import worker as worker_module
from workers.kept_reports import ReportKeeper
from workers.processing import ProcessorSpec
from workers.worker import UNLIMITED_S, Worker, WorkerSettings
from workers.worker_files import Phase, Status, Usage, WorkerReader, WorkerWriter

LARGE = 2**60


def process(po: dict[str, Any]) -> dict[str, Any]:
    return {}


class Life:
    """One worker from its login to its end, which `settings` must bring about.

    Attributes:
        waited: its status at each question for whose answer it waited.
        ahead: its status at each that it asked while it worked.
    """

    def __init__(self, folder: Path, house: House, **settings: Any) -> None:
        self._reader = WorkerReader(os.fspath(folder / "process-1"))
        self._writer = WorkerWriter(self._reader.folder, self._reader.mark)
        self._client = house.client()
        self.waited: list[Status] = []
        self.ahead: list[Status] = []
        files, spec = os.fspath(self._reader.folder), ProcessorSpec(process)
        given = WorkerSettings("", b"", files, os.fspath(folder), spec, {}, self._reader.mark, os.getpid(), **settings)
        streams: Any = SimpleNamespace(restore=lambda: None)
        self._worker = Worker(given, self._writer, streams)

    def begins(self, monkeypatch: pytest.MonkeyPatch) -> None:
        exchange, begin_exchange = self._client.exchange_packed, self._client.begin_exchange

        def look_and_ask(*args: Any) -> Any:
            self.waited.append(self._reader.status())
            return exchange(*args)

        def look_and_ask_ahead(*args: Any) -> PendingCall:
            self.ahead.append(self._reader.status())
            return begin_exchange(*args)

        monkeypatch.setattr(self._client, "exchange_packed", look_and_ask)
        monkeypatch.setattr(self._client, "begin_exchange", look_and_ask_ahead)
        monkeypatch.setattr(worker_module, "_connect_patiently", lambda settings, line: self._client)
        for name in ("_look_round", "_tidy_up"):  # of the process, which is the test's
            monkeypatch.setattr(Worker, name, lambda worker: None)
        self._worker.run("w1.1")

    @property
    def phase(self) -> Phase:
        return self._reader.status().phase

    @property
    def usage(self) -> Usage | None:
        return self._reader.usage()

    def close(self) -> None:
        os.close(self._writer.output_fd)
        self._writer.reports.close()
        self._reader.remove()


@pytest.fixture
def house() -> Iterator[House]:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, closing(House(folder)) as house:
        yield house


@pytest.fixture
def live(house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Life]]:
    """Lives among so many POs."""
    with ExitStack() as lives:

        def live(count: int, **settings: Any) -> Life:
            house.queue.add_tasks([task(f"P{number}") for number in range(count)])
            life = lives.enter_context(closing(Life(tmp_path, house, **settings)))
            life.begins(monkeypatch)
            return life

        yield live


def completed(house: House) -> int:
    return int(house.queue.get_queue_status()["completed_tasks"])


def test_it_processes_as_many_as_it_may_though_it_holds_some_ahead(house: House, live: Callable[..., Life]) -> None:
    life = live(1000, max_tasks=300)

    assert life.ahead, "it has asked for none ahead: the test asks nothing"
    assert completed(house) == 300 and life.phase is Phase.RECYCLING


def test_nobodys_time_runs_while_it_asks_ahead(live: Callable[..., Life]) -> None:
    life = live(100, max_tasks=100)

    assert life.ahead and {status.token for status in life.ahead} == {0}


def test_with_a_limit_of_its_memory_it_holds_none_ahead(house: House, live: Callable[..., Life]) -> None:
    life = live(100, max_tasks=100, max_memory_bytes=LARGE)

    assert not life.ahead and completed(house) == 100


def test_it_does_one_po_though_its_session_holds_more_memory_than_it_may(
    house: House, live: Callable[..., Life]
) -> None:
    live(3, max_memory_bytes=1)

    assert completed(house) == 1


def test_a_po_that_cannot_be_kept_stays_in_hand_without_a_limit_until_the_queue_knows_of_it(
    house: House, live: Callable[..., Life], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ReportKeeper, "keep", lambda keeper, report: False)

    life = live(1, max_tasks=1)

    first, unkept, last = life.waited
    assert (unkept.po_number, unkept.task_timeout) == ("P0", UNLIMITED_S) and unkept.token
    assert not first.token and not last.token and completed(house) == 1


def test_its_time_in_attempts_is_that_of_all_of_them(house: House, live: Callable[..., Life]) -> None:
    life = live(40, max_tasks=40)

    records: list[Any] = house.queue.get_tasks_by_status(TaskStatus.COMPLETED)
    results = [thaw_task(record).result for record in records]
    times = [result.processing_time for result in results if result is not None]
    assert len(times) == 40
    assert life.usage is not None and life.usage.busy_s == pytest.approx(sum(times))
