"""What every test with processes must leave behind: nothing."""

import contextlib
import gc
import os
import shutil
import signal
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from multiprocessing import forkserver, util
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, settings

from workers.process_control import helper_pids

MARK = "POQUEUE_TEST_MARK"
GONE_WITHIN_S = 5.0
FORKSERVER_FDS = 6  # what this process keeps open for its fork server, once

# How long an example takes is the machine's business, which may stand still in any of them.
settings.register_profile(
    "untimed",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize="CI" in os.environ,
    database=None,
)
settings.load_profile("untimed")

# What a shell starts with & ignores INT and QUIT, and what nohup starts HUP; the commands under test would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)


@pytest.fixture
def nothing_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """After the test: no child, no marked process, no file in the temporary folder, no descriptor, no thread more.

    Gives the mark that every process of the test has in its environment.
    """
    util.get_temp_dir()  # multiprocessing keeps one for the life of this process; it is not to be ours
    folder = Path(tempfile.mkdtemp(prefix="pq-"))
    mark = uuid.uuid4().hex
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setenv(MARK, mark)
    threads = set(threading.enumerate())
    had_forkserver = forkserver._forkserver._forkserver_pid is not None  # type: ignore[attr-defined]
    _warm_up()
    fds = _open_fds()

    yield mark

    gc.collect()  # what an exception of the test has held
    more_fds = 0 if had_forkserver else FORKSERVER_FDS
    complaints = _wait_for_nothing(lambda: _leftovers(mark, folder, threads, fds + more_fds))
    _clear_away(mark)
    shutil.rmtree(folder, ignore_errors=True)
    assert not complaints, "left behind: " + "; ".join(complaints)


def _warm_up() -> None:
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()
    psutil.Process().children()


def _wait_for_nothing(look: "object") -> list[str]:
    deadline = time.monotonic() + GONE_WITHIN_S
    while (complaints := look()) and time.monotonic() < deadline:  # type: ignore[operator]
        time.sleep(0.02)
    return complaints  # type: ignore[no-any-return]


def _leftovers(mark: str, folder: Path, threads: set[threading.Thread], fds: int) -> list[str]:
    complaints = [f"child {_shown(pid)}" for pid in _children()]
    complaints += [f"process {_shown(pid)}" for pid in marked(mark)]
    complaints += [f"file {path.name}" for path in folder.iterdir()]
    complaints += [f"thread {thread.name}" for thread in threading.enumerate() if thread not in threads]
    if _open_fds() > fds:
        complaints.append(f"{_open_fds() - fds} descriptors: {_shown_fds()}")
    return complaints


def _children() -> list[int]:
    """Of this process, and of multiprocessing's fork server: what that has started carries the mark of an earlier test."""
    helpers = helper_pids()
    found = []
    for child in psutil.Process().children():
        if child.pid not in helpers:
            found.append(child.pid)
            continue
        with contextlib.suppress(psutil.Error):
            found += [one.pid for one in child.children(recursive=True)]
    return found


def marked(mark: str) -> list[int]:
    """Every living process with the test's mark in its environment, but for this one and multiprocessing's helpers.

    What the fork server has started carries the mark of the test that has started the server.
    """
    spared = {os.getpid(), *helper_pids()}
    marks = {f"{MARK}={mark}".encode()}
    for pid in helper_pids():
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            marks |= {word for word in words if word.startswith(f"{MARK}=".encode())}
    found = []
    for pid in psutil.pids():
        if pid not in spared:
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                if not marks.isdisjoint(words):
                    found.append(pid)
    return found


def _shown(pid: int) -> str:
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        return f"{pid} ({process.status()}: {' '.join(process.cmdline())[:80]})"
    return str(pid)


def _open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def _shown_fds() -> str:
    shown = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            shown.append(f"{fd}={os.readlink(f'/proc/self/fd/{fd}')}")
    return " ".join(shown)


def _clear_away(mark: str) -> None:
    """A test that failed must not disturb the next."""
    for pid in marked(mark) + _children():
        with contextlib.suppress(OSError):
            os.kill(pid, 9)
        with contextlib.suppress(OSError):
            os.waitpid(pid, 0)


def pytest_collection_finish() -> None:
    """What was collected stays: hundreds of tests look for cycles (nothing_left), and need not look through it each time."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(hookwrapper=True)
def pytest_report_to_serializable() -> Iterator[None]:
    """What a test logs may hold lone surrogates, which cannot be sent from a parallel test process to the one that reports."""
    outcome: Any = yield  # type: ignore[misc]
    outcome.force_result(_sendable(outcome.get_result()))


def _sendable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {key: _sendable(item) for key, item in value.items()}
    return type(value)(map(_sendable, value)) if type(value) in (list, tuple) else value
