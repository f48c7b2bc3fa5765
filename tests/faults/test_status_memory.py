"""What the supervisor reads of a worker that the machine has stopped at any moment, in the middle of a write as well."""

import contextlib
import multiprocessing
import os
import random
import signal
from pathlib import Path

import pytest

from poqueue.task import Lease
from workers.worker_files import Phase, Status, WorkerReader, WorkerWriter

pytestmark = pytest.mark.usefixtures("nothing_left")


def write_for_ever(folder: str, mark: str) -> None:
    writer = WorkerWriter(Path(folder), mark)
    writer.phase(Phase.WORKING)
    number = 0
    while True:
        number += 1
        writer.begin(Lease(f"t{number}", number, number, 1, float(number), f"P{number}", b""), float(number))
        if number % 2:
            writer.idle()


def is_whole(status: Status) -> bool:
    number = status.token
    if not number:
        return status[:5] == (Phase.WORKING, 0, 0, 0.0, 0.0) and (status.po_number, status.task_id) == ("", "")
    numbers = (number, number, float(number), float(number), f"P{number}", f"t{number}")
    return status.phase is Phase.WORKING and (
        status.token, status.attempt, status.started, status.task_timeout, status.po_number, status.task_id
    ) == numbers  # fmt: skip


def test_a_status_is_whole_wherever_its_writer_was_stopped(tmp_path: Path) -> None:
    """A worker that was preempted half-way was read as one that boots since 1970, and killed."""
    files = WorkerReader(tmp_path / "process")
    child = multiprocessing.get_context("spawn").Process(target=write_for_ever, args=(str(files.folder), files.mark))
    child.start()
    try:
        while files.status().token < 1000:
            assert child.is_alive()
        torn = []
        for _ in range(300):
            os.kill(child.pid or 0, signal.SIGSTOP)
            before = files.status()
            if not is_whole(before):
                torn.append(before)
            os.kill(child.pid or 0, signal.SIGCONT)
            spin = random.randrange(2000)
            while spin:
                spin -= 1
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid or 0, signal.SIGKILL)
        child.join()
        child.close()
        files.remove()

    assert torn == []
