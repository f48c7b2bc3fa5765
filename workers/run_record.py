"""run.json: what a run was started with, so that it can be resumed; and finding and listing run directories."""

import contextlib
import json
import os
import stat
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from poqueue.errors import ConfigError
from poqueue.journal import JOURNAL_NAME
from workers.processors import command
from workers.quantities import did_you_mean, nearest
from workers.run_control import is_live
from workers.run_dir import DEFAULT_PARENT
from workers.safe_text import quoted
from workers.whole_file import write_whole

RECORD_NAME = "run.json"
REPORT_NAME = "report.json"
VERSION = 1


@dataclass(slots=True)
class RunRecord:
    """What a run was started with.

    Attributes:
        orders: absolute path of the order file; a copy stands in the run directory as `orders_copy`.
        settings: by key, as a configuration file would give them.
        is_edited: whether the run went on with an order file that had changed: its tasks are no longer in the file's order.
        counted: what the order file holds: pos, and rows, of which duplicate and invalid ones; empty if nobody counted.
    """

    orders: str
    orders_sha256: str
    orders_copy: str
    processor: str
    options: dict[str, str]
    settings: dict[str, Any]
    begun_at: str
    is_edited: bool = False
    resumed_at: list[str] = field(default_factory=list)
    version: int = VERSION
    counted: dict[str, int] = field(default_factory=dict)

    @property
    def names_processor(self) -> bool:
        """Whether the settings name it: not one that a program gave as an object which has no name elsewhere."""
        is_command = self.settings.get("command") is not None
        return self.processor == (command.TARGET if is_command else self.settings.get("processor"))

    def write(self, run_dir: Path) -> None:
        """Replace the file whole."""
        write_whole(json.dumps(asdict(self), ensure_ascii=False, indent=1), run_dir / RECORD_NAME)


def read_run_record(run_dir: Path) -> RunRecord:
    """What a run was started with.

    Raises:
        ConfigError: it is no run directory, or its record cannot be read.
    """
    path = run_dir / RECORD_NAME
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        record = RunRecord(**found)
    except FileNotFoundError:
        raise ConfigError(f"{run_dir} is not a run directory: it has no {RECORD_NAME}") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError):
        raise ConfigError(f"{path} is damaged, or was written by another version of poqueue") from None
    if record.version != VERSION:
        raise ConfigError(f"{path} has version {record.version}; this poqueue reads version {VERSION}")
    return record


def find_run(named: str | None, *, must_be_live: bool = False) -> Path:
    """The run directory that is meant: a path, a name below runs/, or the newest one.

    Raises:
        ConfigError: there is none.
    """
    if named is None:
        found = [run for run in list_run_dirs(DEFAULT_PARENT) if not must_be_live or is_live(run)]
        if not found:
            what = "no run is running" if must_be_live else "there is no run"
            raise ConfigError(f"{what} in {DEFAULT_PARENT}/; name the run directory")
        return found[-1]
    for path in (Path(named), DEFAULT_PARENT / named):
        if named.strip() and os.path.isdir(path):  # no error, however long the name is
            return path.resolve()
    hint = did_you_mean(nearest(Path(named).name, [run.name for run in list_run_dirs(DEFAULT_PARENT)]))
    raise ConfigError(f"there is no run {quoted(named)}{hint}")


def list_run_dirs(parent: Path) -> list[Path]:
    """The run directories in a folder, oldest first; not those that may not be read, or that go away meanwhile.

    Raises:
        ConfigError: the folder itself cannot be read.
    """
    try:
        paths = list(parent.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"{parent} cannot be read: {error.strerror}") from None
    found = []
    for path in paths:
        with contextlib.suppress(OSError):
            record = (path / RECORD_NAME).stat()
            if stat.S_ISREG(record.st_mode):
                found.append((record.st_ctime, path.name, path))
    return [path for _, _, path in sorted(found)]


def describe_run(run_dir: Path) -> dict[str, Any]:
    """One line about a run: its state is running, finished, interrupted, halted, or crashed (it ended without a report)."""
    record = read_run_record(run_dir)
    line: dict[str, Any] = {"run": run_dir.name, "begun_at": record.begun_at, "orders": record.orders}
    if is_live(run_dir):
        return {**line, "state": "running"}
    report = read_report(run_dir)
    if report is None or report["run"]["began_run"] != last_begin(record):
        had_queue = (run_dir / JOURNAL_NAME).exists() or not record.settings.get("journal", True)
        return {**line, "state": "crashed" if had_queue else "nothing ran"}
    reason = report["run"]["reason"]
    return {**line, "state": "finished" if reason in ("done", "nothing to do") else reason, **report["accounts"]}


def last_begin(record: RunRecord) -> str:
    """When the run was started or resumed last."""
    return record.resumed_at[-1] if record.resumed_at else record.begun_at


def read_report(run_dir: Path) -> dict[str, Any] | None:
    """The report that the run wrote last, if it came to that."""
    with contextlib.suppress(OSError, ValueError):
        found: dict[str, Any] = json.loads((run_dir / REPORT_NAME).read_text(encoding="utf-8"))
        return found if {"run", "accounts"} <= set(found) else None
    return None
