"""Queues for the contract's tests, here and through the manager; and the check that no rule goes untested."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, settings

from poqueue import TaskQueue
from poqueue.service import QueueService
from tests.contract.scene import Clock

HERE = Path(__file__).parent
RULES = {f"R{number}" for number in range(1, 29)}
PART_1 = "Part 1"

settings.register_profile("no-shrinking", phases=[Phase.generate])  # a mutant has to be caught, not explained

MakeQueue = Callable[..., TaskQueue]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "contract(*rules): the rules of the TaskQueue contract that a test keeps")
    config.addinivalue_line("filterwarnings", "ignore:.*multi-threaded, use of fork:DeprecationWarning")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Every test here names its rules, and every rule has a test (asked only when the whole folder is collected)."""
    here = [item for item in items if HERE in item.path.parents]
    nameless = [item.nodeid for item in here if not rules_of(item)]
    unknown = sorted({rule for item in here for rule in rules_of(item)} - RULES - {PART_1})
    if nameless or unknown:
        raise pytest.UsageError(f"tests without a rule: {nameless}; rules that do not exist: {unknown}")

    is_whole = {item.path for item in here} >= set(HERE.glob("test_*.py"))
    untested = RULES - {rule for item in here for rule in rules_of(item)}
    if is_whole and untested:
        raise pytest.UsageError(f"rules of the contract without a test: {sorted(untested)}")


def rules_of(item: pytest.Item) -> set[str]:
    return {rule for marker in item.iter_markers("contract") for rule in marker.args}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["local", "manager"])
def make_queue(request: pytest.FixtureRequest, clock: Clock) -> Iterator[MakeQueue]:
    """A queue on the test's clock: the object itself, or a client of a manager process that owns it."""
    with ExitStack() as services:

        def make(**options: Any) -> TaskQueue:
            options = {"clock": clock, "wall_clock": clock.wall, **options}
            if request.param == "local":
                return TaskQueue(**options)
            service = services.enter_context(QueueService(start_method="fork", **options))
            client: TaskQueue = service.client()
            return client

        yield make


@pytest.fixture
def queue(make_queue: MakeQueue) -> TaskQueue:
    """A queue with the contract's defaults."""
    return make_queue()
