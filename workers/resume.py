"""Going on with an earlier run: which one, and which order is which of its tasks (by PO number and content: lines move)."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from poqueue.errors import ConfigError
from poqueue.task import ProcessingTask, TaskStatus
from workers.resolved import Resolved
from workers.run_record import RunRecord

ENDED = (TaskStatus.COMPLETED, TaskStatus.FAILED)
NAME_IT = "-p MODULE:ATTR --app-dir DIR"


@dataclass(frozen=True, slots=True)
class Resuming:
    """Which run is to go on, and how: `retry_failed` runs what failed, and only a run that is through."""

    run_dir: Path
    accept_changes: bool = False
    retry_failed: bool = False


@dataclass(slots=True)
class Match:
    """Which order is which task.

    Attributes:
        task_of: index of an order -> id of its task.
        to_add: indexes of orders without a task.
        changed: how many of those have a PO number that the run knows with other content.
        to_drop: ids of tasks that are in the file no longer, or not as they were.
        removed: how many of those have a PO number that is not in the file at all.
        left_out: how many of those the limit leaves out, though they are in the file.
        kept: orders beyond the limit that have ended all the same; their indexes in `task_of` follow those of the others.
    """

    task_of: dict[int, str] = field(default_factory=dict)
    to_add: list[int] = field(default_factory=list)
    changed: int = 0
    to_drop: list[str] = field(default_factory=list)
    removed: int = 0
    left_out: int = 0
    kept: list[dict[str, Any]] = field(default_factory=list)

    @property
    def is_same(self) -> bool:
        """Whether the file holds what the run had."""
        return not self.to_add and not self.to_drop

    def __str__(self) -> str:
        new = len(self.to_add) - self.changed
        told = f"{self.changed} changed, {new} new, {self.removed} removed POs"
        return f"{told}, {self.left_out} left out by the limit" if self.left_out else told


def match_orders(
    orders: list[dict[str, Any]], tasks: Iterable[ProcessingTask], beyond: Iterable[dict[str, Any]] = ()
) -> Match:
    """Match each order with the task of the same PO number and rows, in the order of both.

    Of several equal tasks one that has succeeded is matched first: what is done is not done again.

    Args:
        beyond: the orders that the limit leaves out.
    """
    known: dict[str, list[ProcessingTask]] = defaultdict(list)
    for task in sorted(tasks, key=lambda one: one.status is not TaskStatus.COMPLETED):
        known[task.po_number].append(task)
    match = Match()
    numbers = set()
    for index, order in enumerate(orders):
        number = str(order["po_number"])
        numbers.add(number)
        candidates = known.get(number, [])
        found = _find(order, candidates)
        if found is None:
            match.to_add.append(index)
            match.changed += bool(candidates)
        else:
            candidates.remove(found)
            match.task_of[index] = found.task_id
    for order in beyond:
        number = str(order["po_number"])
        candidates = known.get(number, [])
        found = _find(order, candidates)
        if found is None:
            match.left_out += bool(candidates) and number not in numbers
        else:
            candidates.remove(found)
            if found.status in ENDED:
                match.task_of[len(orders) + len(match.kept)] = found.task_id
                match.kept.append(order)
            else:
                match.to_drop.append(found.task_id)
                match.left_out += 1
        numbers.add(number)
    left = [task for tasks in known.values() for task in tasks]
    match.to_drop += [task.task_id for task in left]
    match.removed = sum(task.po_number not in numbers for task in left)
    return match


def check_processor_named(record: RunRecord, resolved: Resolved) -> None:
    """What a program gave as an object may have no name; nothing else is run, or set for a run, in its place.

    Raises:
        ConfigError: so it is, and the settings of now name no processor either.
    """
    key = "processor" if resolved.settings.command is None else "command"
    if not record.names_processor and resolved.origins[key] in ("default", "run.json"):
        raise ConfigError(
            f"this run's POs were processed by {record.processor}, which a program gave as an object and nobody else can "
            f"import: name what is to process them, with {NAME_IT}"
        )


def unended(count: int) -> ConfigError:
    """A retry is for a run that is through."""
    return ConfigError(
        f"{count} POs of this run have not ended yet: finish it with --resume, and then retry what failed; "
        "or run failed.csv of the run directory by itself"
    )


def _find(order: dict[str, Any], candidates: Iterable[ProcessingTask]) -> ProcessingTask | None:
    content = _content(order)
    return next((task for task in candidates if _content(task.po_data) == content), None)


def _content(order: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in order.items() if key not in ("row_numbers", "number_repeats")}
