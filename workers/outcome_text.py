"""What a command says of a run at its end: how many POs came to what, what went wrong, and how to go on."""

import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tabulate import tabulate

from poqueue.report import failed_attempts
from workers.batch_run import BatchReport
from workers.error_text import normalised
from workers.run_again import command_again
from workers.run_dir import typed
from workers.safe_text import safe_text

MOST_COMPARED = 2_000  # messages of errors: they take most of a second if they are long


def outcome_lines(report: BatchReport, config: Path | None) -> Iterator[str]:
    """For people, the most important first; `config` is the configuration file that the command was given."""
    if report.run_dir is None:
        yield report.message
        return
    accounts = report.accounts
    ran = report.tasks["succeeded"] + report.tasks["failed"] - report.resumed.get("done_before", 0)
    rate = f", {ran / report.seconds:.1f} POs/s" if ran > 0 and report.seconds else ""
    rows = [
        ("succeeded", report.tasks["succeeded"], accounts.succeeded),
        ("failed", report.tasks["failed"], accounts.failed),
        ("not run", report.tasks["not_run"], accounts.not_run),
        ("duplicate", "", accounts.duplicate),
        ("invalid", "", accounts.invalid),
        ("total", sum(report.tasks.values()), accounts.rows),
    ]
    yield ""
    yield tabulate(rows, headers=("outcome", "POs", "rows"), tablefmt="simple")
    yield ""
    yield from accounts.lines()
    yield f"{report.seconds:.1f} s{rate}"
    yield from _error_lines(report)
    if report.resumed:
        yield _resumed_text(report.resumed, is_through=not report.tasks["not_run"])
    inside = {path: path.resolve().parent == report.run_dir for path in report.files.values()}
    yield f"files in {typed(report.run_dir)}: {', '.join(path.name for path in inside if inside[path])}"
    if elsewhere := [typed(path) for path in inside if not inside[path]]:
        yield f"files elsewhere: {', '.join(elsewhere)}"
    if report.message:
        yield report.message
    yield from _ways_on(report, config)


def _error_lines(report: BatchReport) -> Iterator[str]:
    """The most frequent ones, by what they say as in the report; in full where all of them say the very same."""
    counts: Counter[tuple[str, str]] = Counter()
    first: dict[tuple[str, str], str] = {}
    for record in report.parts.records if report.parts is not None else ():
        for error in failed_attempts(record):
            said = error["error_type"], error["message"]
            counts[said] += 1
            first.setdefault(said, record.po_number)
    found: dict[tuple[str, str], Counter[str]] = {}
    for (kind, message), count in counts.most_common(MOST_COMPARED):
        alike = kind, normalised(message, first[kind, message])
        found.setdefault(alike, Counter())[message] = count
    for (kind, text), messages in sorted(found.items(), key=lambda group: -group[1].total())[:5]:
        told = text if len(messages) > 1 else next(iter(messages))
        yield safe_text(f"  {messages.total()} x {kind}: {told}", 200)
    if rest := counts.total() - sum(messages.total() for messages in found.values()):
        yield f"  … and {rest} more, whose messages were not compared"


def _resumed_text(resumed: dict[str, int], *, is_through: bool) -> str:
    again = " and ran again" if is_through else ""  # else it may be one of these that did not
    words = {
        "done_before": "had ended before",
        "interrupted": f"were running when the run was killed{again}",
        "requeued": f"had failed{again}",
        "changed": f"changed in the file{again}",
        "new": "are new in the file",
        "removed": "are in the file no longer",
        "left_out": "are left out by the limit",
    }
    told = [f"{resumed[key]} POs {text}" for key, text in words.items() if resumed[key]]
    return "resumed: " + ("; ".join(told) or "no PO had ended before")


def _ways_on(report: BatchReport, config: Path | None) -> list[str]:
    """The exact commands that run the failures again, and what is left."""
    assert report.run_dir is not None

    def again(name: str) -> str:
        settings = {key: entry["value"] for key, entry in report.head["run"]["settings"].items()}
        return command_again(report.files[name], settings, config)

    failed, rest = report.accounts.failed, report.tasks["not_run"]
    if report.is_resumable:
        run = shlex.quote(typed(report.run_dir))
        if rest:
            return [f"go on with the rest: poqueue run --resume {run}"]
        lines = [f"run the failures again: poqueue retry {run}"] if failed else []
    else:
        has_file = failed and "failed.csv" in report.files
        lines = [f"run the failures again: {again('failed.csv')}"] if has_file else []
        if rest and "not_run.csv" not in report.files:
            lines.append("this run cannot go on, and what is left of it could not be written: run the order file anew")
    if "not_run.csv" in report.files:
        lines.append(f"run the rest: {again('not_run.csv')}")
    return lines


def outcome_json(report: BatchReport) -> dict[str, Any]:
    """For programs."""
    return {
        "exit_code": report.exit_code,
        "reason": report.reason,
        "message": report.message,
        "accounts": asdict(report.accounts),
        "pos": report.tasks,
        "seconds": round(report.seconds, 3),
        "run_dir": str(report.run_dir) if report.run_dir else None,
        "resumed": report.resumed,
        "files": {name: str(path) for name, path in report.files.items()},
    }
