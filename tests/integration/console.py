"""The command line as an operator meets it: a process of its own, real signals, real files.

    ended = poqueue("run", "orders.csv", cwd=tmp_path)              # to its end
    with started("run", "orders.csv", cwd=tmp_path) as run:         # in between
        wait_until(lambda: ..., "the first PO has started")
        run.send(signal.SIGINT)
        ended = run.wait()

Every process carries a mark of its own in its environment, so that what it leaves behind is found, and ended in any case.
"""

import contextlib
import csv
import io
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[2]
APP_DIR = Path(__file__).resolve().parent
SAMPLE = ROOT / "configs" / "sample_orders.csv"
DEADLINE_S = 60.0
GONE_WITHIN_S = 5.0
MARK = "POQUEUE_TEST_MARK"
BEHAVE = ("-p", "sample_processors:behave", "--app-dir", str(APP_DIR))


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    def check(self, code: int) -> "Ended":
        """It ended with this code, and nobody was shown a traceback."""
        assert self.code == code, f"exit code {self.code}, not {code}\n{self.err}"
        self.check_quiet()
        return self

    def check_quiet(self) -> None:
        """No traceback on either stream."""
        for text in (self.out, self.err):
            assert "Traceback" not in text and "Fatal Python error" not in text, text


class Running:
    """A process under way; everything that it started can be found by its mark."""

    def __init__(self, words: Sequence[str], cwd: Path, env: Mapping[str, str] | None) -> None:
        self.mark = uuid.uuid4().hex
        self._out, self._err = _scratch(), _scratch()
        self.process = subprocess.Popen(
            list(words),
            cwd=cwd,
            env=environment(env) | {MARK: self.mark},
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=self._err,
            start_new_session=True,
        )
        self.pid = self.process.pid

    def send(self, number: int) -> None:
        """A signal to the command alone."""
        os.kill(self.pid, number)

    def send_group(self, number: int) -> None:
        """A signal to its process group, as a terminal sends it."""
        os.killpg(self.pid, number)

    def said(self, text: str, times: int = 1) -> bool:
        """Whether this stands on stderr by now."""
        return _content(self._err).count(text) >= times

    def wait(self, deadline_s: float = DEADLINE_S) -> Ended:
        """Its end, and that of everything that it had started."""
        try:
            code = self.process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it has not ended; it said:\n{_content(self._err)}") from None
        wait_until(lambda: not self.left(), f"nothing is left of {self.pid}", GONE_WITHIN_S)
        return Ended(code, _content(self._out), _content(self._err))

    def left(self) -> list[str]:
        """Processes that carry its mark."""
        return [describe(pid) for pid in pids_with(MARK, self.mark)]

    def close(self) -> None:
        """End it with everything it started."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        for pid in pids_with(MARK, self.mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._out.close()
        self._err.close()


@contextlib.contextmanager
def running(words: Sequence[str], *, cwd: Path, env: Mapping[str, str] | None = None) -> Iterator[Running]:
    """Any program, ended on the way out."""
    run = Running(words, cwd, env)
    try:
        yield run
    finally:
        run.close()


@contextlib.contextmanager
def started(*words: str, cwd: Path, env: Mapping[str, str] | None = None) -> Iterator[Running]:
    """The command line, under way."""
    with running(command_line(*words), cwd=cwd, env=env) as run:
        yield run


def poqueue(*words: str, cwd: Path, env: Mapping[str, str] | None = None) -> Ended:
    """The command line, to its end."""
    with started(*words, cwd=cwd, env=env) as run:
        return run.wait()


def python(script: Path, *, cwd: Path, env: Mapping[str, str] | None = None) -> Ended:
    """A Python script, to its end."""
    with running([sys.executable, str(script)], cwd=cwd, env=env) as run:
        return run.wait()


def command_line(*words: str) -> list[str]:
    """What is typed, with this interpreter for `poqueue`."""
    return [sys.executable, "-m", "workers", *words]


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Ours, without what would set the command up otherwise."""
    ours = {name: text for name, text in os.environ.items() if not name.startswith(("POQUEUE_", "PYTEST_"))}
    for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"):
        ours.pop(name, None)
    return {**ours, "PYTHONPATH": str(ROOT), **(more or {})}


def advised(ended: Ended, words: str) -> list[str]:
    """The arguments of the command that the end of a run advises, such as "run the rest"."""
    line = next(line for line in ended.err.splitlines() if line.startswith(f"{words}: "))
    name, *arguments = shlex.split(line.removeprefix(f"{words}: "))
    assert name == "poqueue"
    return arguments


def wait_until(condition: Callable[[], object], what: str, deadline_s: float = 20.0) -> None:
    """Until it holds; fails with `what` if it never does."""
    deadline = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {deadline_s:g} s: {what}"
        time.sleep(0.01)


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def write_orders(path: Path, *rows: str, header: str = "po_number,do") -> Path:
    """An order file of these lines."""
    path.write_text("".join(f"{line}\n" for line in (header, *rows)), encoding="utf-8")
    return path


def read_csv(path: Path) -> list[dict[str, str]]:
    """A CSV file by its header."""
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read_cells(path: Path) -> list[list[str]]:
    """A CSV file by its cells, the header first, blank rows included."""
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def outcomes(run_dir: Path) -> dict[str, str]:
    """Status by PO number, from results.csv."""
    return {row["po_number"]: row["status"] for row in read_csv(run_dir / "results.csv")}


def tree(folder: Path) -> set[str]:
    """Every path below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


# ── processes ────────────────────────────────────────────────────────────────────────────────────────────────────────


def pids_with(name: str, beginning: str) -> list[int]:
    """Living processes in whose environment the variable begins like this."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            has = f"\0{name}={beginning}".encode() in b"\0" + Path(f"/proc/{entry}/environ").read_bytes()
            if has and state(int(entry)) not in ("Z", "X"):
                found.append(int(entry))
    return found


def state(pid: int) -> str:
    """One letter, as ps shows it; nothing if the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def describe(pid: int) -> str:
    """For a failed assertion."""
    try:
        return f"{pid} {Path(f'/proc/{pid}/cmdline').read_bytes().replace(bytes(1), b' ').decode(errors='replace')}"
    except OSError:
        return str(pid)


def _scratch() -> IO[bytes]:
    return tempfile.TemporaryFile(prefix="poqueue-test-")


def _content(file: IO[bytes]) -> str:
    size = os.fstat(file.fileno()).st_size
    return io.TextIOWrapper(io.BytesIO(os.pread(file.fileno(), size, 0)), "utf-8", "replace", newline="").read()
