"""A batch of witnesses (witness.py) on the real command line, killed and resumed at will, and its history checked at the end."""

import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from poqueue.journal import JOURNAL_NAME
from tests.faults.history import ENDED, Facts, Line, check, read_facts, read_lines, read_results, read_rows
from tests.integration.console import (
    MARK,
    Ended,
    Running,
    command_line,
    pids_with,
    read_csv,
    running,
    started,
    state,
    wait_until,
)

HOST_ONLY = ("worker", "seconds", "attempts")  # columns of results.csv that differ from run to run
DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
NEW_ORLEANS = DATA / "new_orleans_po_invoices.csv"
NEW_ORLEANS_WORDS = ("--map", "po_number=PO,supplier=Vendor,amount=Amount")


class Batch:
    """An order file in a folder, and the run directory `r` beside it.

    Args:
        orders: an order file elsewhere; `rows` ("P1,fail_once") make one in the folder.
        words: further arguments of `poqueue run`.
    """

    def __init__(
        self,
        folder: Path,
        *rows: str,
        orders: Path | None = None,
        column: str = "po_number",
        jobs: int = 2,
        seconds: float = 0.002,
        words: tuple[str, ...] = (),
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.run_dir, self.history = folder, folder / "r", folder / "history"
        self.orders = orders or folder / "orders.csv"
        if orders is None:
            self.write(*rows)
        self.column, self.jobs = column, jobs
        self.words = (
            "run", str(self.orders), "-p", "tests.faults.witness:process", "--option", f"history={self.history}",
            "--option", f"seconds={seconds}", "--run-dir", str(self.run_dir), "-j", str(jobs), *words,
        )  # fmt: skip
        self.kills = 0
        self.keeps_dir = False
        self.deaths: dict[int, float] = {}

    def write(self, *rows: str, header: str = "po_number,do") -> None:
        """Make the order file, or another one in its place."""
        self.orders.write_text("".join(f"{line}\n" for line in (header, *rows)))

    # --- running it

    @contextlib.contextmanager
    def start(self, *more: str, env: Mapping[str, str] | None = None) -> Iterator[Running]:
        """The run, under way."""
        with started(*self.words, *more, cwd=self.folder, env=env) as run:
            yield run

    @contextlib.contextmanager
    def resume(self, *more: str, env: Mapping[str, str] | None = None) -> Iterator[Running]:
        """The run going on; anew if it had not come as far as a journal."""
        if not self._has_journal():
            self._clear_run_dir()
            with self.start(*more, env=env) as run:
                yield run
            return
        with started("run", "--resume", str(self.run_dir), *more, cwd=self.folder, env=env) as run:
            yield run

    def _has_journal(self) -> bool:
        """With its tables in it: what a kill has left without them is refused, as one that has lost them would be."""
        main = self.run_dir / JOURNAL_NAME
        sizes = [path.stat().st_size if path.exists() else 0 for path in (main, Path(f"{main}-wal"))]
        return sizes[0] > 0 and (sizes[0] > 4096 or sizes[1] > 0)

    def _clear_run_dir(self) -> None:
        if self.keeps_dir:  # it is a mount point
            for path in self.run_dir.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        else:
            shutil.rmtree(self.run_dir, ignore_errors=True)

    def finish(self, *more: str, code: int = 0) -> Ended:
        """Resume it to its end."""
        with self.resume(*more) as run:
            return run.wait().check(code)

    def poqueue(self, *words: str, env: Mapping[str, str] | None = None) -> Ended:
        """Another command, in the same folder."""
        with running(command_line(*words), cwd=self.folder, env=env) as run:
            return run.wait()

    def kill_group(self, run: Running) -> None:
        """kill -9 of the terminal's whole process group."""
        self._note_deaths()
        with contextlib.suppress(ProcessLookupError):
            run.send_group(signal.SIGKILL)
        run.process.wait()

    def kill_everything(self, run: Running, but: Collection[int] = ()) -> None:
        """kill -9 of every process of the run, as fast as one can."""
        self._note_deaths()
        for pid in pids_with(MARK, run.mark):
            if pid not in but:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        run.process.wait()

    def _note_deaths(self) -> None:
        """Whoever works now has lived at least until now."""
        self.kills += 1
        now = time.monotonic()
        self.deaths |= {pid: now for pid in {line.pid for line in self.lines()} if state(pid) not in ("", "Z")}

    # --- looking at it

    def lines(self) -> list[Line]:
        """What the POs have witnessed so far."""
        return read_lines(self.history)

    def begun(self) -> list[str]:
        """The POs that have been begun, in order."""
        return [line.po for line in self.lines() if line.event == "begin"]

    def line_count(self) -> int:
        """How many lines there are; cheap."""
        try:
            return self.history.read_bytes().count(b"\n")
        except FileNotFoundError:
            return 0

    def wait_begun(self, count: int, run: Running | None = None) -> None:
        """Until so many executions have begun, or the run has ended."""
        wait_until(
            lambda: (self.line_count() >= count and len(self.begun()) >= count)
            or (run is not None and run.process.poll() is not None),
            f"{count} executions have begun",
            30.0,
        )  # fmt: skip

    def control(self) -> dict[str, Any]:
        """control.json; waited for."""
        wait_until((self.run_dir / "control.json").exists, "the control file is there")
        found: dict[str, Any] = json.loads((self.run_dir / "control.json").read_text())
        return found

    def manager_pid(self) -> int:
        """Of the live run."""
        return int(self.control()["manager_pid"])

    def report(self) -> dict[str, Any]:
        """report.json."""
        parsed: dict[str, Any] = json.loads((self.run_dir / "report.json").read_text())
        return parsed

    def results(self) -> list[dict[str, str]]:
        """results.csv without what differs from run to run."""
        rows = read_csv(self.run_dir / "results.csv")
        return [{key: value for key, value in row.items() if key not in HOST_ONLY} for row in rows]

    def statuses(self) -> dict[str, str]:
        """Status by PO number."""
        return dict(read_rows(self.run_dir, self.column))

    def facts(self) -> Facts:
        """The journal of the run, which must have ended."""
        return read_facts(self.run_dir / JOURNAL_NAME)

    def check(self, expected: set[str] | None = None) -> Facts:
        """The history is clean; `expected` are the input's PO numbers if it is not the order file as it is now."""
        if expected is None:
            expected = {row[self.column] for row in read_csv(self.orders)}
        facts = self.facts()
        results, rows = read_results(self.run_dir), read_rows(self.run_dir, self.column)
        violations = check(expected, self.lines(), results, facts, deaths=self.deaths)
        assert not violations, "\n".join(map(str, violations))
        assert set(results) == {row for row in rows if row[1] not in ("invalid", "duplicate")}
        accounts = self.report()["accounts"]
        statuses = [row["status"] for row in read_csv(self.run_dir / "results.csv")]
        assert accounts["rows"] == len(statuses)
        assert all(accounts[name] == statuses.count(name) for name in ENDED)
        names = {path.name for path in self.run_dir.iterdir()}
        assert not {name for name in names if name.startswith((".", "work."))} and "control.json" not in names, names
        return facts
