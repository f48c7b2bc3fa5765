"""A history in the format that was asked for, and onto a file: whole or not at all."""

import contextlib
import csv
import io
import json
import shlex
import shutil
import sqlite3
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, is_dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from poqueue.errors import ConfigError, JournalError, QueueError, ServiceError
from poqueue.formula import guard_formula
from poqueue.journal import JOURNAL_NAME, check_file
from poqueue.report import as_yaml, iso_time
from workers.amounts import plain_text
from workers.history import Order, RunHistory, history_from_journal
from workers.redaction import redacted
from workers.report_figures import (
    costs,
    durations,
    error_groups,
    failed_attempts,
    hangs,
    slowest,
    time_limits,
    worker_use,
)
from workers.report_table import as_table
from workers.report_trace import as_trace
from workers.resume import NAME_IT
from workers.run_control import is_live, reach
from workers.run_dir import typed
from workers.run_record import REPORT_NAME, RunRecord, last_begin, read_report, read_run_record
from workers.setting_values import FORMATS

LISTED_SLOWEST = 25
TELLS_AFTER_S = 1.0
SETTLES_WITHIN_S = 20.0  # with many POs the results take a while at the end
_ORDER_COLUMNS = (
    "task_id", "po_number", "supplier", "amount", "currency", "rows", "unread_rows", "status", "priority", "attempts",
    "seconds", "created_at", "completed_at", "error_type", "message",
)  # fmt: skip
_MAX_CELL_CHARS = 32_000  # a spreadsheet takes no more


def render(history: RunHistory, format: str, *, redact: bool = False) -> str:
    """The report as text.

    Args:
        format: one of FORMATS.
        redact: leave out what belongs to POs.

    Raises:
        ConfigError: html, and the library that draws is not installed.
        ValueError: no such format.
    """
    shown = redacted(history) if redact else history
    if format == "table":
        return as_table(shown)
    if format == "json":
        return json.dumps(as_document(shown), ensure_ascii=False, allow_nan=False) + "\n"
    if format == "yaml":
        return as_yaml(as_document(shown))
    if format == "csv":
        return as_csv(shown)
    if format == "trace":
        return as_trace(shown)
    if format == "html":
        from workers.report_page import as_page  # needs the extra poqueue[html]

        return as_page(shown, is_redacted=redact)
    raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")


def read_history(run_dir: Path, on_wait: Callable[[str], None] = lambda text: None) -> RunHistory:
    """The history of a run directory, whether the run has ended, crashed or goes on.

    Args:
        on_wait: told once, if the run has no queue to ask at the moment.

    Raises:
        ConfigError: it is no run directory, or the run is still starting or ending.
        JournalError, ManagerLostError: its journal cannot be read.
    """
    begun = time.monotonic()
    has_told = False
    while True:
        live = is_live(run_dir)
        try:
            return _read_history(run_dir, live)
        except (ConfigError, ServiceError, QueueError):
            if not live or time.monotonic() - begun > SETTLES_WITHIN_S:
                raise
        if not has_told and time.monotonic() - begun > TELLS_AFTER_S:
            on_wait(f"{run_dir} is starting or ending: waiting for up to {SETTLES_WITHIN_S:g} s")
            has_told = True
        time.sleep(0.1)  # it has no manager yet, or no more: soon it goes on, or has ended


def _read_history(run_dir: Path, live: bool) -> RunHistory:
    record = read_run_record(run_dir)
    if record.settings.get("journal") is False and not (run_dir / JOURNAL_NAME).exists():
        raise JournalError(
            f"{run_dir}: the run keeps no journal, which reports are made of; what it wrote at its end is {REPORT_NAME}"
        )
    run, accounts = _told(run_dir, record, live)
    shown = shlex.quote(typed(run_dir)) + ("" if record.names_processor else f" {NAME_IT} --accept-changes")
    rest = "" if live else f"poqueue run --resume {shown}"
    with tempfile.TemporaryDirectory() as folder:  # 0700
        copy = Path(folder) / JOURNAL_NAME
        _copy_journal(run_dir, copy, live)
        try:
            with contextlib.closing(sqlite3.connect(copy)) as connection:
                return history_from_journal(
                    connection,
                    run=run,
                    accounts=accounts,
                    counted=record.counted,
                    again=f"poqueue retry {shown}",
                    rest=rest,
                )
        except (sqlite3.Error, ValueError, TypeError) as error:
            raise JournalError(f"{run_dir / JOURNAL_NAME}: the journal cannot be read: {error}") from None


# ── json and yaml ────────────────────────────────────────────────────────────────────────────────────────────────────


def as_document(history: RunHistory) -> dict[str, Any]:
    """The history and its figures in plain JSON types; times are ISO text in UTC, durations seconds, amounts text."""
    return {
        "run": history.run,
        "has_ended": history.has_ended,
        "began_at": iso_time(history.began_at),
        "until": iso_time(history.until),
        "accounts": history.accounts,
        "counts": history.counts,
        "again": history.again,
        "rest": history.rest,
        "durations": _records(durations(history)),
        "time_limits": _records(time_limits(history)),
        "workers": _records(worker_use(history)),
        "errors": _records(error_groups(history)),
        "hangs": _records(hangs(history)),
        "slowest": [order.task_id for order in slowest(history, LISTED_SLOWEST)],
        "suppliers": _records(costs(history)),
        "pauses": _records(history.pauses),
        "orders": _records(history.orders),
        "attempts": _records(history.attempts),
    }


def _records(items: Iterable[Any]) -> list[dict[str, Any]]:
    return [_record(item) for item in items]


def _record(item: Any) -> dict[str, Any]:
    names = [field.name for field in fields(item)] if is_dataclass(item) else item._fields
    return {name: _plain(name, getattr(item, name)) for name in names}


def _plain(name: str, value: Any) -> Any:
    if name.endswith("_at"):
        return iso_time(value)
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, Decimal):
        return plain_text(value)
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, tuple):
        return _records(value)
    return value


# ── csv ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def as_csv(history: RunHistory) -> str:
    """One row a PO, with all its errors in one cell; text that a spreadsheet would run gets a leading '."""
    errors: dict[str, list[str]] = defaultdict(list)
    workers: dict[str, str] = {}
    for attempt in history.attempts:
        workers[attempt.task_id] = attempt.worker_id
    for attempt in failed_attempts(history):
        errors[attempt.task_id].append(f"attempt {attempt.attempt}: {_error_text(attempt.error_type, attempt.message)}")
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow((*_ORDER_COLUMNS, "worker_id", "errors"))
    for order in history.orders:
        told = workers.get(order.task_id, ""), " | ".join(errors.get(order.task_id, ()))
        writer.writerow([*_cells(order), *(_cell("", text) for text in told)])
    return out.getvalue()


def _cells(order: Order) -> Iterator[Any]:
    for name in _ORDER_COLUMNS:
        yield _cell(name, getattr(order, name))


def _cell(name: str, value: Any) -> Any:
    plain = _plain(name, value)
    return guard_formula(plain[:_MAX_CELL_CHARS]) if isinstance(plain, str) else plain


def _error_text(error_type: str, message: str) -> str:
    return f"{error_type}: {message}" if error_type and message else error_type or message


# ── the run directory ────────────────────────────────────────────────────────────────────────────────────────────────


def _told(run_dir: Path, record: RunRecord, live: bool) -> tuple[dict[str, Any], dict[str, int] | None]:
    """What ran, and the accounts; from the run's report if it has come to that since it was started or resumed last."""
    report = None if live else read_report(run_dir)
    if report is not None and report["run"].get("began_run") == last_begin(record):
        return report["run"], report["accounts"]
    run = {
        "run_dir": str(run_dir),
        "orders": record.orders,
        "orders_sha256": record.orders_sha256,
        "processor": record.processor,
        "begun_at": record.begun_at,
        "settings": {key: {"value": value, "from": "run.json"} for key, value in record.settings.items()},
        "is_live": live,
    }
    return run, None


def _copy_journal(run_dir: Path, copy: Path, live: bool) -> None:
    """Copied, never opened: to open the journal of a crashed run would change it, and one of a live run is locked."""
    if live:
        with contextlib.closing(reach(run_dir)) as client:
            return client.copy_journal(str(copy))
    journal = run_dir / JOURNAL_NAME
    check_file(journal)
    try:
        shutil.copyfile(journal, copy)
        with contextlib.suppress(FileNotFoundError):  # there after a crash only
            shutil.copyfile(f"{journal}-wal", f"{copy}-wal")
    except OSError as error:
        raise JournalError(f"{journal}: the journal cannot be read: {error.strerror}") from None
