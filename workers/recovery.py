"""After a crash: what the old run's processes have left behind, ended, read and told to the queue.

The journal knows every lease. What its worker made of it stands in the worker's files: what was finished and not told
counts, what was in hand was interrupted, and what was only held ahead was never begun.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from poqueue.errors import ConfigError
from poqueue.service import MADE_PREFIX, remove_made
from poqueue.task import Report
from poqueue.wire import check_private
from workers import process_control as control
from workers.results import RESULT_FILES
from workers.run_control import CONTROL_NAME, ControlFile
from workers.run_record import RECORD_NAME, REPORT_NAME
from workers.worker_files import WorkerReader

if TYPE_CHECKING:  # most runs take up none, and start the sooner
    import psutil

WAIT_S = 5.0
WORK_PREFIX = "work."
START_TOLERANCE_S = 0.02  # both times come from the same counter of the kernel; only the rounding differs


@dataclass(slots=True)
class LeftBehind:
    """What dead workers knew: reports by lease token, the tokens of what was in hand, and their ids."""

    reports: dict[int, Report] = field(default_factory=dict)
    begun: set[int] = field(default_factory=set)
    worker_ids: list[str] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)

    def remove(self) -> None:
        """Once the queue knows it all."""
        for folder in self.folders:
            shutil.rmtree(folder, ignore_errors=True)


def next_work_dir(run_dir: Path) -> Path:
    """A new name for the folder of the workers' files."""
    numbers = [int(path.name.removeprefix(WORK_PREFIX)) for path in _work_dirs(run_dir)]
    return run_dir / f"{WORK_PREFIX}{max(numbers, default=0) + 1}"


def remove_scraps(run_dir: Path, control_file: ControlFile | None) -> None:
    """Files that a dead supervisor was still writing, each under a name of its own before it takes the real one, and the
    way to its queue, which is gone.
    """
    folder = Path(control_file.address).parent if control_file is not None else run_dir
    if folder.name.startswith(MADE_PREFIX) and not folder.is_relative_to(run_dir):
        with contextlib.suppress(OSError, ValueError):  # it is gone, or another one by now
            check_private(folder)
            remove_made(folder)
    for name in (*RESULT_FILES, RECORD_NAME, REPORT_NAME, CONTROL_NAME, "orders"):
        for path in run_dir.glob(f".{name}.*"):
            path.unlink(missing_ok=True)
    (run_dir / CONTROL_NAME).unlink(missing_ok=True)


def end_old_run(run_dir: Path, control_file: ControlFile | None) -> None:
    """See to it that no process of the run's earlier life is left: wait a little, then end them.

    They are known by the run's mark, which nothing else carries, and the manager by its pid and the time it was started.

    Raises:
        ConfigError: one cannot be ended, or they are a live run's, of whose directory this one is a copy.
    """
    if control_file is None:
        return
    pid = control_file.pid
    if pid != os.getpid() and control.lives(pid, control_file.born):  # it has no lock here: that is ours by now
        raise ConfigError(f"{run_dir} is a copy of a run that pid {pid} is still at: wait for its end, or stop it")
    folders = _work_dirs(run_dir) or [None]  # type: ignore[list-item]
    deadline = time.monotonic() + WAIT_S
    while (left := _old_processes(control_file, folders)) and time.monotonic() < deadline:
        time.sleep(0.05)
    if not left:
        return
    control.kill_all(lambda: _old_processes(control_file, folders), [])
    left = _old_processes(control_file, folders)
    if left:
        pids = ", ".join(str(process.pid) for process in left)
        raise ConfigError(f"processes of this run are still alive and cannot be ended: {pids}")


def read_left_behind(run_dir: Path) -> LeftBehind:
    """Read the files of workers that are dead, and remove what they had named to be removed."""
    found = LeftBehind(folders=_work_dirs(run_dir))
    for folder in found.folders:
        for process_folder in sorted(folder.glob("process-*")):
            with contextlib.suppress(OSError, ValueError):  # it died before its files were complete, so it had nothing
                _read_worker(process_folder, found)
    return found


def _read_worker(folder: Path, found: LeftBehind) -> None:
    files = WorkerReader.of_dead(folder)
    found.worker_ids.append(files.worker_id())
    reports = files.untold_reports()
    found.reports |= {report.token: report for report in reports}
    token = files.status().token
    if token and token not in found.reports:
        found.begun.add(token)
    control.remove_owned(files.owned(), (folder / "mark").stat().st_ctime)
    files.let_go()


def _work_dirs(run_dir: Path) -> list[Path]:
    found = [p for p in run_dir.glob(f"{WORK_PREFIX}*") if p.name.removeprefix(WORK_PREFIX).isdecimal() and p.is_dir()]
    return sorted(found, key=lambda path: int(path.name.removeprefix(WORK_PREFIX)))


def _old_processes(old: ControlFile, folders: list[Path]) -> "list[psutil.Process]":
    found = {process.pid: process for folder in folders for process in control.marked_processes(old.run_id, folder)}
    found |= {process.pid: process for process in _known(old)}
    return list(found.values())


def _known(old: ControlFile) -> "Iterator[psutil.Process]":
    import psutil

    with contextlib.suppress(psutil.Error):
        process = psutil.Process(old.manager_pid)
        is_same = abs(control.started_at(old.manager_pid) - old.manager_started) < START_TOLERANCE_S
        if is_same and process.status() != psutil.STATUS_ZOMBIE:
            yield process
