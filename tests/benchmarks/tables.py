"""What is printed: a table of every row, the targets with their verdicts, and a compact table for the README."""

from collections.abc import Iterable
from typing import Any

from tabulate import tabulate

from tests.benchmarks.cases import CASES
from tests.benchmarks.pools import TITLES
from tests.benchmarks.summary import Summary
from tests.benchmarks.targets import TARGETS, Target

HEADLINE = {  # by case: the figure that counts, its heading, whether more is better
    "W1": ("per_s", "/s", True),
    "W2": ("efficiency", "of ideal", True),
    "W3": ("efficiency", "of ideal", True),
    "W3b": ("efficiency", "of ideal", True),
    "W4": ("over_ideal", "times ideal", False),
    "W5": ("over_ideal", "times ideal", False),
    "W6": ("seconds", "s", False),
    "W7": ("bytes_a_task", "bytes", False),
    "W8": ("per_s", "/s", True),
    "W8-1M": ("find_p99_ms", "ms, find p99", False),
    "W9": ("p50_ms", "ms, p50", False),
    "in-process": ("per_s", "/s", True),
    "orders": ("seconds", "s", False),
    "idle": ("percent", "% of a core", False),
}
MORE = ("p99_ms", "status_p99_ms", "metrics_p99_ms", "lost", "charged", "never_ended")


def headline(case: str) -> tuple[str, str, bool]:
    """The figure of a case that counts."""
    known = case if case in HEADLINE else case.rpartition("-")[0]
    return HEADLINE[known]


def measured_table(summary: Summary) -> str:
    """Every pool on every case: median, range, and the ratio to ProcessPoolExecutor in the same rounds."""
    heads = ("workload", "pool", "median", "unit", "min..max", "of PPE", "notes")
    rows = [_row(summary, case, pool) for case, pool in _measured(summary)]
    return tabulate(
        rows, heads, disable_numparse=True, colalign=("left", "left", "right", "left", "right", "right", "left")
    )


def _measured(summary: Summary) -> Iterable[tuple[str, str]]:
    there = {(one.case, one.pool) for one in summary.measurements}
    return [(case.name, pool) for case in CASES.values() for pool in case.pools if (case.name, pool) in there]


def _row(summary: Summary, case: str, pool: str) -> tuple[str, ...]:
    figure, unit, _ = headline(case)
    value, span, title = summary.median(case, pool, figure), summary.span(case, pool, figure), TITLES[pool]
    if value is None or span is None:
        return (case, title, "-", "", "", "", f"left out: {summary.reason(case, pool)}")
    if summary.worst(case, pool, "never_ended") and not summary.worst(case, pool, "lost"):
        return (case, title, "never ends", "", "", "", _notes(summary, case, pool))
    ratio = summary.ratio(case, pool, "ppe", figure)
    is_fair = not any(summary.worst(case, one, "lost") for one in (pool, "ppe"))  # what is lost takes no time
    shown = f"{ratio:.2f}" if ratio is not None and pool != "ppe" and is_fair else ""
    return (
        case,
        title,
        number(value),
        unit,
        f"{number(span[0])}..{number(span[1])}",
        shown,
        _notes(summary, case, pool),
    )


def _notes(summary: Summary, case: str, pool: str) -> str:
    notes = []
    for figure in MORE:
        if (
            value := summary.worst(case, pool, figure)
            if not figure.endswith("_ms")
            else summary.median(case, pool, figure)
        ):
            words = figure.replace("_p99_ms", " p99").replace("_ms", "").replace("_", " ")
            notes.append(f"{words} {number(value)}" + (" ms" if figure.endswith("_ms") else ""))
    if noisy := summary.noisy_rounds(case, pool):
        notes.append(f"not quiet in {noisy} of {len(summary.values(case, pool, headline(case)[0]))}")
    if reason := summary.reason(case, pool):
        notes.append(reason)
    return ", ".join(notes)


def target_rows(summary: Summary) -> list[tuple[str, ...]]:
    """A target a row: wanted, stretch, measured, verdict."""
    return [
        (target.name, _wanted(target, target.goal), _wanted(target, target.stretch), *_judged(target, summary))
        for target in TARGETS
        if target.measured(summary) is not None
    ]


def _wanted(target: Target, value: float | None) -> str:
    if value is None:
        return ""
    sign = "≤" if target.is_at_most else "≥"
    return f"{sign} {number(value)} {target.unit}".strip()


def _judged(target: Target, summary: Summary) -> tuple[str, str]:
    value = target.measured(summary)
    assert value is not None
    return f"{number(value)} {target.unit}".strip(), target.verdict(summary)


def targets_table(summary: Summary) -> str:
    """The targets and how far they are met."""
    return tabulate(target_rows(summary), ("target", "goal", "stretch", "measured", "verdict"), disable_numparse=True)


def markdown(summary: Summary) -> str:
    """For the README: targets, and below what the peers reach on the same workloads in the same rounds."""
    targets = tabulate(
        target_rows(summary),
        ("target", "goal", "stretch", "measured", "verdict"),
        tablefmt="github",
        disable_numparse=True,
    )
    rows = [_peers_row(summary, case) for case in dict.fromkeys(case for case, _ in _measured(summary))]
    shown = [row for row in rows if row is not None]
    heads = ("workload", "poqueue", "with journal", "peers, best first", "a peer is better")
    return f"{targets}\n\n{tabulate(shown, heads, tablefmt='github', disable_numparse=True)}"


def _peers_row(summary: Summary, case: str) -> tuple[str, ...] | None:
    figure, unit, is_more_better = headline(case)
    ours = [summary.median(case, pool, figure) for pool in ("poqueue", "poqueue+journal")]
    peers = {
        pool: value
        for pool in CASES[case].pools
        if not pool.startswith("poqueue")
        and pool != "bare"
        and (value := summary.median(case, pool, figure)) is not None
    }
    if ours[0] is None or not peers:
        return None
    ordered = sorted(peers, key=lambda pool: peers[pool], reverse=is_more_better)
    better = [
        TITLES[pool]
        for pool in ordered
        if (peers[pool] > ours[0] if is_more_better else peers[pool] < ours[0]) and not _fails(summary, case, pool)
    ]
    ordered.sort(key=lambda pool: _fails(summary, case, pool))  # those that lose something come last
    told = "; ".join(f"{TITLES[pool]} {_shown(summary, case, pool, peers[pool])}" for pool in ordered)
    journal = number(ours[1]) if ours[1] is not None else ""
    return (f"{case}: {CASES[case].title} ({unit})", number(ours[0]), journal, told, ", ".join(better) or "none")


def _fails(summary: Summary, case: str, pool: str) -> bool:
    return any(summary.worst(case, pool, figure) for figure in ("lost", "never_ended"))


def _shown(summary: Summary, case: str, pool: str, value: float) -> str:
    lost = summary.worst(case, pool, "lost") or 0.0
    never = summary.worst(case, pool, "never_ended") or 0.0
    if lost:
        return f"loses {lost:.0f} innocents"
    return f"never ends ({never:.0f} POs)" if never else number(value)


def number(value: float) -> str:
    """Three figures, without an exponent."""
    if value and abs(value) < 0.01:
        return f"{value:.4f}"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def as_json(summary: Summary, about: dict[str, Any]) -> dict[str, Any]:
    """Everything: each measurement, and the verdicts."""
    heads = ("target", "goal", "stretch", "measured", "verdict")
    return {
        "about": about,
        "targets": [dict(zip(heads, row, strict=True)) for row in target_rows(summary)],
        "measurements": [one.as_dict() for one in summary.measurements],
    }
