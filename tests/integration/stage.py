"""Running villains under a supervisor, and looking at what became of them."""

import contextlib
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from poqueue import ProcessingTask, TaskStatus
from tests.integration import villains
from workers import ProcessorSpec, Supervisor
from workers.supervisor import RunEnd

TIMEOUT_S = 1.0
GRACE_S = 2.0
SLACK_S = 4.0  # for a machine that does other things as well
DEADLINE_S = 20.0
START_METHOD = "spawn" if sys.version_info < (3, 12) else "forkserver"  # so that both are met by all that plays here


def wait_until(condition: Callable[[], Any], what: str, within_s: float = DEADLINE_S) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(0.01)


@dataclass
class Play:
    """What a run has come to."""

    folder: Path
    end: RunEnd | None = None
    tasks: dict[str, ProcessingTask] = field(default_factory=dict)
    status: dict[str, Any] = field(default_factory=dict)

    def is_completed(self, *numbers: str) -> bool:
        return all(self.tasks[number].status is TaskStatus.COMPLETED for number in numbers)

    def errors(self, number: str) -> list[str]:
        return [error["error_type"] for error in self.tasks[number].error_history]

    def history(self) -> list[dict[str, Any]]:
        return history(self.folder)

    def starts(self) -> dict[str, int]:
        """How often each PO was begun."""
        counts: dict[str, int] = defaultdict(int)
        for line in self.history():
            counts[line["po"]] += line["event"] == "start"
        return counts


def history(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines_of(folder / "history")]


def lines_of(path: Path) -> list[str]:
    with contextlib.suppress(FileNotFoundError):
        return path.read_text().splitlines()
    return []


def living(pids: Iterable[int]) -> list[int]:
    """Those that have not ended; a zombie has."""
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.append(pid)
    return found


def started_pids(folder: Path) -> list[int]:
    """What the villains have started beside their workers."""
    return [int(line) for line in lines_of(folder / "pids")]


def po(number: str, do: str, folder: Path, **more: Any) -> ProcessingTask:
    """A task whose id is its PO number."""
    options = {name: more.pop(name) for name in ("max_retries", "task_timeout", "priority") if name in more}
    return ProcessingTask(number, {"po_number": number, "do": do, "folder": str(folder), **more}, **options)


@contextlib.contextmanager
def on_stage(
    folder: Path, *tasks: ProcessingTask, target: Any = villains.process, **settings: Any
) -> Iterator[tuple[Supervisor, Play]]:
    """A started supervisor with these POs in its queue; the outcome is looked at when the block is left."""
    settings = {
        "jobs": 2, "task_timeout": TIMEOUT_S, "grace": GRACE_S, "max_retries": 0, "retry_delay": 0.05,
        "work_dir": None, "start_method": START_METHOD, **settings,
    }  # fmt: skip
    play = Play(folder)
    spec = ProcessorSpec(target, {"folder": str(folder)}, settings.pop("app_dir", None))
    with Supervisor(spec, **settings) as supervisor:
        supervisor.queue.add_tasks(list(tasks))
        yield supervisor, play
        for status in TaskStatus:
            play.tasks |= {task.task_id: task for task in supervisor.queue.get_tasks_by_status(status)}
        play.status = supervisor.queue.get_queue_status()


def perform(folder: Path, *tasks: ProcessingTask, **settings: Any) -> Play:
    """Run these POs to the end."""
    with on_stage(folder, *tasks, **settings) as (supervisor, play):
        play.end = supervisor.run()
    return play
