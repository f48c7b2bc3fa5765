"""Advice as people, programs and the next run read it: tables, JSON, a configuration file."""

import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from poqueue.simulation import Prediction
from poqueue.span import span_text
from workers.advice import WORTH_IT, Recommendation, WhatIf
from workers.measurement import Measurement, percentile
from workers.quantities import megabytes
from workers.resolved import Resolved
from workers.safe_text import safe_text
from workers.settings import SETTINGS

NOT_FOR_TUNE = ("check", "run_dir", "report", "results")
NOT_WRITTEN = (*NOT_FOR_TUNE, "limit", "progress", "quiet", "verbose", "log_format")


def as_text(measurement: Measurement, advice: Recommendation, pos: int) -> str:
    """The advice for people."""
    rows = [
        (item.key, as_typed(item.key, item.now), as_typed(item.key, item.advice), item.why) for item in advice.items
    ]
    parts = [
        f"measured: {measurement.source}; {measurement.attempts:,} attempts",
        plain_table(_measured_rows(measurement), ("measured", "value"), [None, 90]),
        plain_table(rows, ("setting", "now", "advice", "why"), [None, None, None, 76]),
        f"all {pos:,} POs: as set now {_predicted(advice.now)}; as advised {_predicted(advice.advised)}",
    ]
    if advice.now.is_heavy_tailed:
        parts[-1] += (
            "\nfew attempts take much of the time: a sample easily misses the longest ones, so the range reaches beyond "
            "what was seen; a larger --sample narrows it"
        )
    if advice.what_if:
        parts.append(_what_if_table(advice.what_if))
        if advice.stops_paying_at is not None:
            parts.append(f"it stops paying at {advice.stops_paying_at} workers: more save less than {WORTH_IT - 1:.0%}")
        elif measurement.cpu_share is None:
            parts.append("the time is that of work which only waits; the range reaches to work which only computes")
    if measurement.note:
        parts.append(measurement.note)
    return "\n\n".join(parts)


def _measured_rows(measurement: Measurement) -> list[tuple[str, str]]:
    seconds = measurement.seconds
    spread = [f"p{percent} {span_text(percentile(seconds, percent))}" for percent in (50, 95, 99)]
    failed = sum(measurement.failures.values())
    kinds = ", ".join(f"{count} x {safe_text(kind, 60)}" for kind, count in list(measurement.failures.items())[:5])
    rows = [("time of an attempt", ", ".join([*spread, f"longest {span_text(seconds[-1])}"]))]
    if measurement.cpu_share is not None:
        verb = {"waits": "the work waits", "computes": "the work computes", "both": "the work does both"}
        rows.append(("computing", f"{measurement.cpu_share:.0%} of that: {verb[measurement.kind]}"))
    if measurement.rss_bytes is not None:
        rows.append(("memory of a worker", megabytes(measurement.rss_bytes)))
    rows.append(("failed attempts", f"{failed} of {measurement.attempts}" + (f": {kinds}" if kinds else "")))
    if measurement.retried:
        rows.append(("retried POs", f"{measurement.retried}, of which {measurement.recovered} ended well"))
    return rows


def _what_if_table(table: Sequence[WhatIf]) -> str:
    rows = [
        (
            row.jobs, span_text(row.prediction.seconds),
            f"{span_text(row.prediction.low_s)} to {span_text(row.prediction.high_s)}",
            megabytes(row.memory_bytes), f"{row.prediction.run.busy_share:.0%}", f"{row.prediction.run.cpu_share:.0%}",
        )
        for row in table
    ]  # fmt: skip
    return plain_table(rows, ("jobs", "time", "range", "memory", "workers busy", "cores busy"), None)


def plain_table(rows: Sequence[Sequence[Any]], headers: Sequence[str], widths: list[int | None] | None) -> str:
    from tabulate import tabulate

    return tabulate(rows, headers=headers, tablefmt="simple", maxcolwidths=widths, disable_numparse=True)


def _predicted(prediction: Prediction) -> str:
    return f"{span_text(prediction.seconds)} ({span_text(prediction.low_s)} to {span_text(prediction.high_s)})"


def as_typed(key: str, value: Any) -> str:
    """A setting's value as its option takes it."""
    entry = SETTINGS[key]
    return str(entry.show(entry.parse(value, key)))


def as_json(measurement: Measurement, advice: Recommendation, pos: int) -> dict[str, Any]:
    """The advice in plain JSON types; times in seconds, sizes in bytes."""
    seconds = measurement.seconds
    return {
        "source": measurement.source,
        "note": measurement.note,
        "pos": pos,
        "measured": {
            "attempts": measurement.attempts,
            "seconds": {f"p{p}": percentile(seconds, p) for p in (50, 95, 99)} | {"longest": seconds[-1]},
            "cpu_share": measurement.cpu_share,
            "kind": measurement.kind,
            "rss_bytes": measurement.rss_bytes,
            "failures": measurement.failures,
            "retried_pos": measurement.retried,
            "recovered_pos": measurement.recovered,
            "hung_pos": list(measurement.hung),
            "jobs": measurement.jobs,
            "costs": asdict(measurement.costs),
            "forkserver_costs": asdict(measurement.forkserver_costs) if measurement.forkserver_costs else None,
        },
        "advice": {item.key: {"now": item.now, "advice": item.advice, "why": item.why} for item in advice.items},
        "would_kill": advice.would_kill,
        "predicted": {"now": _prediction_json(advice.now), "advised": _prediction_json(advice.advised)},
        "what_if": [
            {"jobs": row.jobs, "memory_bytes": row.memory_bytes, **_prediction_json(row.prediction)}
            for row in advice.what_if
        ],
        "stops_paying_at": advice.stops_paying_at,
    }


def _prediction_json(prediction: Prediction) -> dict[str, Any]:
    run = prediction.run
    return {
        "seconds": prediction.seconds,
        "range": [prediction.low_s, prediction.high_s],
        "is_heavy_tailed": prediction.is_heavy_tailed,
        "busy_share": run.busy_share,
        "cpu_share": run.cpu_share,
        "attempts": run.attempts,
        "killed": run.killed,
        "failed": run.failed,
    }


def as_yaml(measurement: Measurement, advice: Recommendation, resolved: Resolved, pos: int, command: str | None) -> str:
    """A configuration file with the advice, the reasons as comments, and what else was set for the orders."""
    import yaml

    now = datetime.now(UTC)
    head = [
        f"Advised by poqueue tune on {now:%Y-%m-%d}, measured on {measurement.source}.",
        f"Predicted for all {pos:,} POs: {_predicted(advice.advised)}; as it was set before: {_predicted(advice.now)}.",
    ]
    lines = [line for text in head for line in _comment(text)]
    lines += [f"# Take it with: {safe_text(command)}"] if command else []  # a wrapped line could not be copied
    for item in advice.items:
        lines += ["", *_comment(item.why), _yaml_line(yaml, item.key, item.advice)]
    advised = {item.key for item in advice.items}
    kept = [
        key
        for key, origin in resolved.origins.items()
        if key not in advised and key not in NOT_WRITTEN and origin != "default" and not origin.startswith("not used")
    ]
    if kept:
        lines += ["", "# As it was set when this was measured:"]
        lines += [_yaml_line(yaml, key, getattr(resolved.settings, key)) for key in kept]
    return "\n".join(lines) + "\n"


def _yaml_line(yaml: Any, key: str, value: Any) -> str:
    entry = SETTINGS[key]
    shown = {key: entry.show(entry.parse(value, key))}
    text: str = yaml.safe_dump(shown, allow_unicode=True, sort_keys=False, width=10_000)
    return text.rstrip("\n")


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(safe_text(text), 116)]
