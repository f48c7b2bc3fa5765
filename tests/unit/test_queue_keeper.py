"""The supervisor's hold on the events: what has come is handed on, whatever happens to the next request."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from poqueue import ProcessingTask
from poqueue.errors import CallTimeoutError, ManagerLostError
from poqueue.packing import unpack_events
from poqueue.service import QueueService
from poqueue.task import Event
from tests.integration.stage import wait_until
from workers.queue_keeper import QueueKeeper


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[QueueKeeper]:
    keeper = QueueKeeper(QueueService(journal=tmp_path / "journal"), lambda: None, lambda: None, brings_data=True)
    keeper.open()
    yield keeper
    keeper.close()


def test_events_that_have_come_are_not_lost_with_the_next_request(
    keeper: QueueKeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = keeper._begin_reading
    found: list[Event] = []
    requests = 0

    def begin_or_fail() -> Any:
        nonlocal requests
        requests += 1
        if requests % 2 == 0:  # the first asks for the events, the second comes with their answer
            raise ManagerLostError("no answer")
        return begin()

    def has_come(number: int) -> bool:
        found.extend(unpack_events(keeper.take_events()))
        return len(found) == number

    monkeypatch.setattr(keeper, "_begin_reading", begin_or_fail)
    for number in range(1, 4):
        keeper.queue.add_task(ProcessingTask(f"t{number}", {"po_number": f"{number}"}))
        assert keeper.queue.cancel_task(f"t{number}") == "cancelled"
        wait_until(lambda: has_come(2 * number), "the events of one more")  # noqa: B023  (called at once)

    assert requests >= 4
    assert [event.kind for event in found] == ["failed", "empty"] * 3
    assert [event.sequence for event in found] == [1, 2, 3, 4, 5, 6]


def test_a_manager_that_hangs_is_lost_though_nobody_asks_it_anything_but_for_its_events(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("poqueue.client.OVERDUE_S", 1.0)
    keeper = QueueKeeper(QueueService(), lambda: None, lambda: None, brings_data=True)
    with contextlib.closing(keeper):
        keeper.open()
        keeper.take_events()
        os.kill(keeper.service.pid, signal.SIGSTOP)

        with pytest.raises(CallTimeoutError):
            wait_until(keeper.take_events, "it is found out")
