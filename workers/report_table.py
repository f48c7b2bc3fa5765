"""A history as tables for a terminal."""

from collections.abc import Iterator, Sequence
from typing import Any

from workers.amounts import plain_text
from workers.history import RunHistory
from workers.report_figures import costs, durations, error_groups, hangs, slowest, time_limits, worker_use
from workers.report_words import not_added_sentence, outcome_sentence, seconds_text, share_text
from workers.safe_text import safe_text

LISTED = 10
MAX_CHARS = 70


def as_table(history: RunHistory) -> str:
    """What an operator asks first, most urgent first; nothing in it can steer the terminal."""
    parts = [outcome_sentence(history), _outcome(history), *_sections(history)]
    if history.again:
        parts.append(f"run the failures again: {safe_text(history.again)}")
    if history.rest:
        parts.append(f"go on with the rest: {safe_text(history.rest)}")
    return "\n\n".join(part for part in parts if part) + "\n"


def _outcome(history: RunHistory) -> str:
    accounts, counts = history.accounts, history.counts
    not_run = counts["pending"] + counts["retry_pending"] + counts["processing"]
    rows = [
        ("succeeded", counts["completed"], accounts["succeeded"]),
        ("failed", counts["failed"], accounts["failed"]),
        ("not run", not_run, accounts["not_run"]),
        ("duplicate", "", accounts["duplicate"]),
        ("invalid", "", accounts["invalid"]),
        ("total", counts["total"], accounts["rows"]),
    ]
    return _table(("outcome", "POs", "rows"), rows)


def _sections(history: RunHistory) -> Iterator[str]:
    errors = [(g.count, g.pos, g.error_type, g.text, g.samples[0].po_number) for g in error_groups(history)]
    yield _listed("errors", ("count", "POs", "type", "message", "such as PO"), errors)
    hung = [(hang.count, hang.place, hang.samples[0].po_number) for hang in hangs(history)]
    yield _listed("where killed POs hung", ("count", "place", "such as PO"), hung)
    slow = [(o.po_number, o.status, o.attempts, seconds_text(o.seconds)) for o in slowest(history, LISTED)]
    yield _listed("slowest POs", ("PO", "status", "attempts", "time"), slow)
    spread = [
        (d.outcome, d.attempts, *map(seconds_text, (d.median, d.p90, d.p99, d.longest))) for d in durations(history)
    ]
    yield _listed("durations of attempts", ("outcome", "attempts", "median", "90 %", "99 %", "longest"), spread)
    limits = [
        (limit.supplier or "(all others)", limit.completions, seconds_text(limit.median_s), seconds_text(limit.limit_s))
        for limit in time_limits(history)
    ]
    yield _listed("time limits by the running median", ("supplier", "completions", "median", "limit"), limits)
    used = [
        (w.slot, w.processes, w.attempts, w.retries, w.failed, w.kills, share_text(w.utilisation))
        for w in worker_use(history)
    ]
    yield _listed("workers", ("worker", "processes", "attempts", "retries", "failed", "kills", "busy"), used)
    paid = [(c.supplier or "(none)", c.currency, c.pos, plain_text(c.total)) for c in costs(history)]
    yield _listed("cost by supplier", ("supplier", "currency", "POs", "amount"), paid)
    yield not_added_sentence(history)


def _listed(title: str, headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    if not rows:
        return ""
    more = f"\n… and {len(rows) - LISTED:,} more" if len(rows) > LISTED else ""
    return f"{title}\n{_table(headers, rows[:LISTED])}{more}"


def _table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    from tabulate import tabulate

    shown = [[safe_text(cell, MAX_CHARS) if isinstance(cell, str) else f"{cell:,}" for cell in row] for row in rows]
    sides = ["right" if isinstance(cell, int) else "left" for cell in rows[0]]
    return tabulate(shown, headers=headers, tablefmt="simple", disable_numparse=True, colalign=sides)
