"""A worker without a process, over files of its own, and a keeper without a manager: a test says what they do."""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from poqueue import TaskQueue
from poqueue.errors import JournalError
from poqueue.task import Report
from workers.queue_keeper import QueueKeeper
from workers.worker_files import Phase, Status, Usage, WorkerReader, WorkerWriter
from workers.worker_process import Kill, WorkerProcess

NO_PID = 2**22 + 1  # above all that Linux gives


class StandIn(WorkerProcess):
    """`now` is what it does; `code` is its exit code, once it is dead."""

    def __init__(self, folder: Path, worker_id: str = "w1.1", slot: int = 1) -> None:
        self.files = WorkerReader(os.fspath(folder))
        self.worker_id, self.slot = worker_id, slot
        self.kill: Kill | None = None
        self.overdue = ""
        self.is_retiring = False
        self.relieved = (0, 0.0)
        self.started = 0.0
        self.pid = NO_PID
        self._family = (NO_PID, "stand-in", os.fspath(folder), 0)
        self._orders: Any = SimpleNamespace(send=lambda worker_id: None)
        self.code: int | None = None
        self.does(Phase.BOOTING)

    def does(self, phase: Phase, token: int = 0, started: float = 0.0, limit_s: float = 0.0) -> None:
        self.now = Status(phase, token, 1 if token else 0, started, limit_s, 0, "A" if token else "", "")

    def leaves(self, *reports: Report, usage: Usage | None = None) -> None:
        """What it writes into its files."""
        writer = WorkerWriter(self.files.folder, self.files.mark)
        for report in reports:
            writer.reports.keep(report)
        if usage is not None:
            writer.used(usage)
        os.close(writer.output_fd)
        writer.reports.close()

    def status(self) -> Status:
        return self.now

    @property
    def exit_code(self) -> int | None:
        return self.code

    def is_dead(self) -> bool:
        return self.code is not None

    def bury(self) -> None:
        pass

    def forget(self, *, keep_files: bool = False) -> None:
        self.files.remove()


class Keeper(QueueKeeper):
    """Asks a queue of this process; while it is `full`, nothing can be written down."""

    def __init__(self, **settings: Any) -> None:
        self.held = TaskQueue(**settings)
        self.asked: list[str] = []
        self.full = False

    def ask(self, name: str, *args: Any, **kwargs: Any) -> Any:
        self.asked.append(name)
        if self.full and name != "get_leases":
            raise JournalError("the disk is full")
        answer: Callable[..., Any] = getattr(self.held, name)
        return answer(*args, **kwargs)

    def report_for(self, worker_id: str, reports: list[Report]) -> None:
        if reports:
            self.ask("exchange", worker_id, reports, 0)
