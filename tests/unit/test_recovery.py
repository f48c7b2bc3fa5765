"""What is done about a run's earlier life before it goes on."""

import os
from pathlib import Path

import psutil
import pytest

from poqueue.errors import ConfigError
from poqueue.service import MADE_PREFIX, SOCKET_NAME
from workers import recovery
from workers.recovery import end_old_run, remove_scraps
from workers.results import RESULT_FILES
from workers.run_control import CONTROL_NAME, LOCK_NAME, ControlFile, RunLock
from workers.run_record import RECORD_NAME, REPORT_NAME

NOBODY = 2**22 + 1  # above the largest pid there is


def test_no_run_goes_on_beside_processes_of_its_own_that_cannot_be_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[object] = []
    monkeypatch.setattr(recovery, "WAIT_S", 0.0)
    monkeypatch.setattr(recovery, "_old_processes", lambda *old: [psutil.Process()])
    monkeypatch.setattr(recovery.control, "kill_all", lambda *words: killed.append(words))

    with pytest.raises(ConfigError, match=rf"still alive and cannot be ended: {os.getpid()}$"):
        end_old_run(tmp_path, ControlFile("/tmp/x/socket", "00" * 32, "r", NOBODY, NOBODY, 0.0))

    assert killed


def test_what_a_dead_supervisor_was_still_writing_goes_and_nothing_else(tmp_path: Path) -> None:
    written = (*RESULT_FILES, RECORD_NAME, REPORT_NAME, CONTROL_NAME, "orders")
    kept = {*written, ".hidden", "orders.csv"} - {CONTROL_NAME}
    for name in (*kept, CONTROL_NAME, *(f".{name}.x1y2z3" for name in written)):
        (tmp_path / name).touch()

    remove_scraps(tmp_path, None)

    assert set(os.listdir(tmp_path)) == kept


def test_a_run_directory_with_the_name_of_a_sockets_folder_is_none(tmp_path: Path) -> None:
    run_dir = tmp_path / f"{MADE_PREFIX}run"
    run_dir.mkdir(mode=0o700)
    (run_dir / SOCKET_NAME).touch()

    remove_scraps(run_dir, None)

    assert (run_dir / SOCKET_NAME).exists()


def test_a_lock_names_its_holder_whoever_had_it_before(tmp_path: Path) -> None:
    (tmp_path / LOCK_NAME).write_text("99999999999")  # of one that was killed
    lock = RunLock(tmp_path)

    lock.acquire()

    assert (tmp_path / LOCK_NAME).read_text() == str(os.getpid())
    lock.release()
