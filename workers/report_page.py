"""A history as one HTML page that needs nothing else: no server, no network, and for the essentials no script.

The template, styles and script stand beside this module as report_page.html, .css and .js. The page's own policy
forbids it to load anything and to run any script but those it was made with, which are named by their hashes.
"""

import base64
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from poqueue.errors import ConfigError
from poqueue.span import rate_text
from poqueue.task import TaskStatus
from workers.history import Order, Outcome, Pause, RunHistory, utc
from workers.report_figures import (
    Bucket,
    ErrorGroup,
    QueuePoint,
    SupplierCost,
    WorkerUse,
    buckets,
    costs,
    durations,
    error_groups,
    exact_sum,
    hangs,
    nice_width,
    paused_s,
    queue_points,
    shows_running,
    slowest,
    thinned,
    time_limits,
    worker_use,
)
from workers.report_words import (
    amount_text,
    balance_sentence,
    counted,
    not_added_sentence,
    outcome_sentence,
    outcome_word,
    run_name,
    seconds_text,
    share_text,
)
from workers.safe_text import safe_text

MAX_LISTED = 200  # rows of a table that grows with the number of POs
MAX_SLOWEST = 25
MAX_SUPPLIERS = 25
MAX_ERRORS = 50
MAX_MESSAGE_CHARS = 300
TABLE_BUCKETS = 24
HEADLINES = {
    "success": "all succeeded",
    "failures": "some failed",
    "incomplete": "ended early",
    "unfinished": "not ended",
}
MARKS = {"success": "✓", "failures": "✕", "incomplete": "!", "unfinished": "…"}
LEGEND: dict[Outcome, str] = {
    "completed": "completed", "retry": "failed, to be retried", "failed": "failed for good", "interrupted": "interrupted",
    "running": "still running",
}  # fmt: skip
STATUS_WORDS = {"retry_pending": "waits for a retry"}


def as_page(history: RunHistory, *, is_redacted: bool = False) -> str:
    """The page as HTML text.

    Raises:
        ConfigError: the library that draws the charts is not installed.
    """
    try:
        from jinja2 import Environment
        from markupsafe import Markup

        from workers.report_charts import draw
    except ModuleNotFoundError as error:
        hint = "install it with: pip install 'poqueue[html]'"
        raise ConfigError(f"the HTML report needs {(error.name or 'bokeh').partition('.')[0]}; {hint}") from None
    facts = _Facts.of(history)
    charts = draw(history, facts.parts, thinned(facts.points), facts.rate_unit_s) if history.attempts else None
    scripts = [charts.library, charts.script, _file("report_page.js")] if charts else [_file("report_page.js")]
    environment = Environment(autoescape=True, finalize=_visible, trim_blocks=True)
    environment.filters |= FILTERS
    template = environment.from_string(_file("report_page.html"))
    return template.render(
        **_context(history, facts, charts.left_out if charts else 0),
        is_redacted=is_redacted,
        charts=charts and {"divs": {name: Markup(div) for name, div in charts.divs.items()}},
        style=Markup(_file("report_page.css")),
        scripts=[Markup(script) for script in scripts],
        policy=_policy(scripts),
    )


def _visible(value: Any) -> Any:
    """Text from outside with control characters, marks of direction and the like as escapes; markup as it is."""
    return safe_text(value) if type(value) is str else value


def _file(name: str) -> str:
    return files("workers").joinpath(name).read_text(encoding="utf-8")


def _policy(scripts: Sequence[str]) -> str:
    """Load nothing from anywhere; run these scripts and no other. Bokeh sets styles as it draws."""
    hashes = " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


# ── what the template shows ──────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Facts:
    """Figures that several parts of the page need."""

    parts: list[Bucket]
    points: list[QueuePoint]
    use: list[WorkerUse]
    errors: list[ErrorGroup]
    span_s: float
    rate_unit_s: float

    @classmethod
    def of(cls, history: RunHistory) -> "_Facts":
        parts = buckets(history) if history.orders else []
        highest = max(((b.completed + b.failed) / (b.end - b.start) for b in parts), default=0.0)
        unit = next((unit for unit in (1.0, 60.0) if highest * unit >= 1), 3600.0)
        span = history.until - history.began_at
        return cls(parts, queue_points(history), worker_use(history), error_groups(history), span, unit)


def _context(history: RunHistory, facts: _Facts, left_out: int) -> dict[str, Any]:
    from poqueue import __version__

    kills = [attempt for attempt in history.attempts if attempt.is_kill]
    failures = [order for order in history.orders if order.status == TaskStatus.FAILED.value]
    word = outcome_word(history)
    limits = time_limits(history)
    return {
        "history": history,
        "run": history.run,
        "version": __version__,
        "name": run_name(history),
        "word": word,
        "headline": HEADLINES[word],
        "mark": MARKS[word],
        "sentence": outcome_sentence(history),
        "balance": balance_sentence(history),
        "facts": _run_facts(history),
        "contents": _contents(history),
        "cards": _cards(history, facts),
        "commands": _commands(history),
        "accounts": _accounts(history),
        "legend": _legend(history, len(kills)),
        "summaries": _summaries(history, facts, len(kills), left_out),
        "pauses": [_pause_row(pause, history.until) for pause in history.pauses],
        "kills": kills[-MAX_LISTED:],
        "kill_count": len(kills),
        "table_buckets": buckets(history, TABLE_BUCKETS) if history.orders else [],
        "table_width": seconds_text(nice_width(facts.span_s, TABLE_BUCKETS)),
        "durations": durations(history),
        "limits": limits[:MAX_SUPPLIERS],
        "more_limits": _more(len(limits) - MAX_SUPPLIERS, "other suppliers, with fewer completions each"),
        "workers": facts.use,
        "errors": facts.errors[:MAX_ERRORS],
        "more_errors": _more(len(facts.errors) - MAX_ERRORS, "other kinds of error, each rarer than these"),
        "hangs": hangs(history)[:MAX_ERRORS],
        "failures": failures[:MAX_LISTED],
        "failure_count": len(failures),
        "slowest": slowest(history, MAX_SLOWEST),
        "costs": _cost_groups(history),
        "settings": _settings(history.run),
    }


def _run_facts(history: RunHistory) -> list[tuple[str, str]]:
    run = history.run
    began = f"{utc(history.began_at):%Y-%m-%d %H:%M:%S} UTC" if history.began_at else ""
    facts = [
        ("Began", began),
        ("Lasted", seconds_text(history.until - history.began_at)),
        ("Orders", str(run.get("orders") or "")),
        ("Processor", str(run.get("processor") or "")),
        ("Run directory", str(run.get("run_dir") or "")),
    ]
    return [(term, value) for term, value in facts if value]


def _contents(history: RunHistory) -> list[tuple[str, str]]:
    contents = [("outcome", "Outcome"), ("timeline-title", "Timeline")]
    if history.attempts:
        contents += [("throughput-title", "Throughput"), ("queue-title", "Queue"), ("durations-title", "Durations")]
        contents += [("workers", "Workers")]
    contents += [("errors", "Errors")]
    if any(order.attempts for order in history.orders):
        contents += [("slowest", "Slowest")]
    if any(order.supplier or order.charges for order in history.orders):
        contents += [("costs", "Cost")]
    return contents + ([("settings", "Settings")] if history.run.get("settings") else [])


def _cards(history: RunHistory, facts: _Facts) -> list[dict[str, str]]:
    counts = history.counts
    left = counts["total"] - counts["completed"] - counts["failed"]
    rate = (counts["completed"] + counts["failed"]) / facts.span_s if facts.span_s > 0 else 0.0
    cards = [
        ("completed", f"{counts['completed']:,}", "POs succeeded"),
        ("failed", f"{counts['failed']:,}", "POs failed"),
        ("interrupted", f"{left:,}", "POs not run"),
        ("retry", f"{counts['retries']:,}", "retries"),
        ("kill", f"{counts['kills']:,}", "workers killed or lost"),
        ("", seconds_text(facts.span_s), "first start to last end"),
        ("", rate_text(rate), "on average"),
        ("", share_text(_mean_use(facts.use)), "utilisation of workers"),
    ]
    return [{"kind": kind, "number": number, "what": what} for kind, number, what in cards]


def _commands(history: RunHistory) -> list[tuple[str, str, str]]:
    found = [("again", "Run the failures again", history.again), ("rest", "Go on with the rest", history.rest)]
    return [(id, title, command) for id, title, command in found if command]


def _mean_use(use: Sequence[WorkerUse]) -> float:
    return math.fsum(worker.utilisation for worker in use) / len(use) if use else 0.0


def _accounts(history: RunHistory) -> list[tuple[str, str, str]]:
    counts, rows = history.counts, history.accounts
    left = counts["total"] - counts["completed"] - counts["failed"]
    return [
        ("Succeeded", f"{counts['completed']:,}", f"{rows['succeeded']:,}"),
        ("Failed", f"{counts['failed']:,}", f"{rows['failed']:,}"),
        ("Not run", f"{left:,}", f"{rows['not_run']:,}"),
        ("Duplicate", "–", f"{rows['duplicate']:,}"),
        ("Invalid", "–", f"{rows['invalid']:,}"),
        ("Total", f"{counts['total']:,}", f"{rows['rows']:,}"),
    ]


def _legend(history: RunHistory, kills: int) -> list[tuple[str, str, str]]:
    found: list[tuple[str, str, int]] = [
        (kind, what, sum(attempt.outcome == kind for attempt in history.attempts)) for kind, what in LEGEND.items()
    ]
    found += [("kill", "worker killed or lost", kills), ("pause", "paused or not running", len(history.pauses))]
    return [(kind, what, f"{count:,}") for kind, what, count in found if count]


def _pause_row(pause: Pause, until: float) -> dict[str, str]:
    return {
        "began": _clock(pause.began_at),
        "ended": _clock(pause.ended_at) if pause.ended_at is not None else "still paused",
        "lasted": seconds_text((pause.ended_at or until) - pause.began_at),
        "reason": pause.reason or "asked for",
    }


def _settings(run: dict[str, Any]) -> list[tuple[str, str, str]]:
    found = run.get("settings")
    if not isinstance(found, dict):
        return []
    rows = [(key, entry) if isinstance(entry, dict) else (key, {"value": entry}) for key, entry in found.items()]
    return [(key, _value_text(entry.get("value")), str(entry.get("from", ""))) for key, entry in rows]


def _value_text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={item}" for key, item in value.items()) or "empty"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "empty"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _more(count: int, what: str) -> str:
    return f"And {count:,} {what}." if count > 0 else ""


# ── charts in words ──────────────────────────────────────────────────────────────────────────────────────────────────


def _summaries(history: RunHistory, facts: _Facts, kills: int, left_out: int) -> dict[str, str]:
    return {
        "timeline": _timeline_summary(history, facts, kills, left_out),
        "throughput": _throughput_summary(facts),
        "queue": _queue_summary(facts),
        "durations": _durations_summary(history),
        "workers": _workers_summary(facts),
        "errors": _errors_summary(history, facts),
        "costs": _costs_summary(history),
    }


def _timeline_summary(history: RunHistory, facts: _Facts, kills: int, left_out: int) -> str:
    counts = history.counts
    parts = [
        f"{counted(counts['attempts'], 'attempt')} on {counted(len(facts.use), 'worker')} in {seconds_text(facts.span_s)}",
        f"{counted(counts['retries'], 'attempt')} retried",
        f"{counted(kills, 'worker')} killed or lost",
    ]
    if history.pauses:
        stood = seconds_text(paused_s(history.pauses, history.until))
        together = " together" if len(history.pauses) > 1 else ""
        parts.append(f"{counted(len(history.pauses), 'pause')} of {stood}{together}")
    rest = f" {left_out:,} short attempts that completed are left out of the drawing." if left_out else ""
    return f"{'; '.join(parts)}. Times are UTC.{rest}"


def _throughput_summary(facts: _Facts) -> str:
    if not facts.parts:
        return "No PO ended."
    best = max(facts.parts, key=lambda part: part.completed + part.failed)
    rate = (best.completed + best.failed) / (best.end - best.start)
    width = seconds_text(best.end - best.start)
    return (
        f"POs that ended, in stretches of {width}; blue completed, red failed. "
        f"Highest: {rate_text(rate)}, at {_clock(best.start)}."
    )


def _queue_summary(facts: _Facts) -> str:
    if not facts.points:
        return "No PO was added."
    highest = max(facts.points, key=lambda point: point.waiting)
    last = facts.points[-1]
    running = max(point.running for point in facts.points)
    dashed = " (dashed line)" if shows_running(facts.points) else ""
    return (
        f"POs that wait for a worker or for their retry; up to {running:,} were worked on at a time{dashed}. "
        f"Longest queue: {highest.waiting:,}, at {_clock(highest.at)}; at the end {last.waiting:,} waited."
    )


def _durations_summary(history: RunHistory) -> str:
    found = {row.outcome: row for row in durations(history)}
    if "completed" not in found:
        return "No attempt completed."
    row = found["completed"]
    median, p95, longest = (seconds_text(value) for value in (row.median, row.p95, row.longest))
    return (
        f"Attempts by duration, on a logarithmic scale; blue completed, red failed or retried. "
        f"Half of the completed ones took at most {median}, 95 % at most {p95}, the longest {longest}."
    )


def _workers_summary(facts: _Facts) -> str:
    if not facts.use:
        return ""
    low, high = (pick(facts.use, key=lambda use: use.utilisation) for pick in (min, max))
    text = f"On average {share_text(_mean_use(facts.use))} of the time was worked"
    if low.slot == high.slot:
        return f"{text}."
    return f"{text}: from {share_text(low.utilisation)} ({low.slot}) to {share_text(high.utilisation)} ({high.slot})."


def _errors_summary(history: RunHistory, facts: _Facts) -> str:
    count = sum(group.count for group in facts.errors)
    tasks = {attempt.task_id for attempt in history.attempts if attempt.outcome in ("failed", "retry")}
    kinds = counted(len(facts.errors), "kind")
    return f"{counted(count, 'failed attempt')} of {kinds}, of {counted(len(tasks), 'PO')}."


def _costs_summary(history: RunHistory) -> str:
    known = sum(bool(order.charges) for order in history.orders)
    if not known:
        return "No PO has an amount that can be read; --map amount=COLUMN names the column that holds it."
    text = f"Amounts of {counted(known, 'PO')}, added up exactly; currencies are kept apart."
    return f"{text} {not_added_sentence(history)}".rstrip()


# ── costs ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _CostGroup:
    """The suppliers of one currency: the largest, the rest as one, and all."""

    currency: str
    rows: list[SupplierCost]
    more: SupplierCost | None
    all: SupplierCost
    suppliers: int

    def share(self, row: SupplierCost) -> float:
        """The row's total, as a share of the largest."""
        largest = max(abs(other.total) for other in self.rows)
        return float(abs(row.total) / largest) if largest else 0.0


def _cost_groups(history: RunHistory) -> list[_CostGroup]:
    by_currency: dict[str, list[SupplierCost]] = {}
    for row in costs(history):
        by_currency.setdefault(row.currency, []).append(row)
    orders: dict[str, list[Order]] = {currency: [] for currency in by_currency}
    for order in history.orders:
        for currency in {charge.currency for charge in order.charges}:
            orders[currency].append(order)
    return [_cost_group(currency, rows, orders[currency]) for currency, rows in by_currency.items()]


def _cost_group(currency: str, rows: list[SupplierCost], orders: Sequence[Order]) -> _CostGroup:
    shown, rest = rows[:MAX_SUPPLIERS], rows[MAX_SUPPLIERS:]
    more = _together(f"{len(rest):,} others", rest, orders) if rest else None
    return _CostGroup(currency, shown, more, _together("all", rows, orders), len(rows))


def _together(name: str, rows: Sequence[SupplierCost], orders: Sequence[Order]) -> SupplierCost:
    """Of these suppliers; a PO that has rows of several of them is counted once."""
    total, completed, failed = (
        exact_sum(getattr(row, part) for row in rows) for part in ("total", "completed", "failed")
    )
    whom = {(row.supplier, row.currency) for row in rows}
    pos = sum(any(charge[:2] in whom for charge in order.charges) for order in orders)
    return SupplierCost(name, rows[0].currency, pos, total, completed, failed)


# ── how values read ──────────────────────────────────────────────────────────────────────────────────────────────────


def _clock(at: float) -> str:
    return f"{utc(at):%Y-%m-%d %H:%M:%S}"


FILTERS: dict[str, Callable[[Any], str]] = {
    "clock": _clock,
    "seconds": seconds_text,
    "share": share_text,
    "amount": amount_text,
    "count": "{:,}".format,
    "status": lambda status: STATUS_WORDS.get(status, status),
    "brief": lambda text: safe_text(text, MAX_MESSAGE_CHARS),
}
