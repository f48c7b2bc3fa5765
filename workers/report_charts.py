"""The charts of the report page: drawn by Bokeh on canvases, from data that travels in the page.

Colours are those that stand out on white and on near-black alike; what is text or grid takes the page's colours in the
browser (report_page.js), so that one page serves light, dark and paper.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from bokeh.embed import components
from bokeh.model import Model
from bokeh.models import (
    BoxZoomTool,
    ColumnDataSource,
    DatetimeTicker,
    DatetimeTickFormatter,
    FixedTicker,
    HoverTool,
    NumeralTickFormatter,
    Range1d,
    WheelZoomTool,
)
from bokeh.models.annotations import BoxAnnotation
from bokeh.plotting import figure
from bokeh.resources import Resources

from workers.history import Attempt, Outcome, RunHistory
from workers.report_figures import Bucket, QueuePoint, shows_running, slot_order
from workers.report_words import seconds_text
from workers.safe_text import safe_text

COLOURS: dict[Outcome, str] = {
    "completed": "#3b82c4", "retry": "#c77700", "failed": "#d13c4b", "interrupted": "#808890", "running": "#8e6bbf",
}  # fmt: skip
KILL_COLOUR = "#14171a"
PAUSE_COLOUR = "#808890"
WAITING_COLOUR = "#c77700"
RUNNING_COLOUR = "#3b82c4"
MAX_BARS = 50_000  # beyond it, those that went wrong and the longest are drawn
MAX_LANE_LABELS = 32
MANY_KILLS = 100
BINS = 48
DECADES_S = tuple(base * 10.0**power for power in range(-6, 7) for base in (1, 3))


@dataclass(frozen=True, slots=True)
class Charts:
    """What the page needs: a place for each chart by its name, the script that fills them, and the library.

    Attributes:
        left_out: attempts that are not on the timeline, as it would hold too many.
    """

    divs: dict[str, str]
    script: str
    library: str
    left_out: int


def draw(history: RunHistory, parts: Sequence[Bucket], points: Sequence[QueuePoint], rate_unit_s: float) -> Charts:
    """All charts of a history that has at least one attempt.

    Args:
        parts, points: the run in stretches, and the changes of the queue that are to be drawn.
        rate_unit_s: throughput is POs in this many seconds.
    """
    span = _time_range(history)
    shown = _shown(history.attempts)
    charts: dict[str, Model] = {
        "timeline": _timeline(history, shown, span),
        "throughput": _throughput(history, parts, rate_unit_s, span),
        "queue": _queue(history, points, span),
        "durations": _durations(history.attempts),
    }
    script, divs = components(charts)
    resources = Resources(mode="inline", components=["bokeh", "bokeh-gl"], log_level="warn")
    return Charts(divs, _bare(script), "\n".join(resources.js_raw), len(history.attempts) - len(shown))


def _bare(script: str) -> str:
    """The script without its tags: the page writes its own."""
    return script.partition(">")[2].rpartition("</script>")[0]


# ── over time ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _time_range(history: RunHistory) -> Range1d:
    start, end = history.began_at * 1e3, max(history.until, history.began_at + 1e-3) * 1e3
    margin = (end - start) * 0.005
    limits = (start - margin, end + margin)
    return Range1d(start=limits[0], end=limits[1], bounds=limits, min_interval=1.0)


def _over_time(name: str, height: int, span: Range1d, **more: Any) -> figure:
    chart = figure(
        name=name, height=height, x_range=span, x_axis_type="datetime", sizing_mode="stretch_width", min_border_left=72,
        toolbar_location=None, tools=[], **more,
    )  # fmt: skip
    box, wheel = BoxZoomTool(dimensions="width"), WheelZoomTool(dimensions="width", modifiers={"ctrl": True})
    chart.add_tools(box, wheel)
    chart.toolbar.active_drag, chart.toolbar.active_scroll = box, wheel
    chart.xaxis.formatter = DatetimeTickFormatter(
        microseconds="%H:%M:%S.%3N", milliseconds="%H:%M:%S.%3N", seconds="%H:%M:%S", minsec="%H:%M:%S", minutes="%H:%M",
        hourmin="%H:%M", hours="%H:%M", days="%m-%d",
    )  # fmt: skip
    chart.xaxis.ticker = DatetimeTicker(desired_num_ticks=4)  # more do not fit on a telephone
    return _plain(chart)


def _plain(chart: figure) -> figure:
    """The page's background shows through; the browser's script sets the colours of text and grid."""
    chart.background_fill_alpha = chart.border_fill_alpha = 0.0
    chart.outline_line_color = None
    chart.axis.minor_tick_line_color = None
    chart.axis.axis_label_text_font_style = "normal"
    chart.xgrid.grid_line_color = None
    return chart


def _add_pauses(chart: figure, history: RunHistory) -> None:
    for pause in history.pauses:
        end = pause.ended_at if pause.ended_at is not None else history.until
        chart.add_layout(
            BoxAnnotation(
                left=pause.began_at * 1e3, right=end * 1e3, fill_color=PAUSE_COLOUR, fill_alpha=0.25, line_color=PAUSE_COLOUR,
                line_alpha=0.6, level="underlay", name="pause",
            )
        )  # fmt: skip


def _shown(attempts: Sequence[Attempt]) -> Sequence[Attempt]:
    if len(attempts) <= MAX_BARS:
        return attempts
    ranked = sorted(attempts, key=lambda attempt: (attempt.outcome == "completed", -attempt.seconds))
    return ranked[:MAX_BARS]


def _timeline(history: RunHistory, attempts: Sequence[Attempt], span: Range1d) -> figure:
    slots = sorted({attempt.slot for attempt in history.attempts}, key=slot_order)
    lanes = {slot: number for number, slot in enumerate(slots)}
    height = min(max(26 * len(slots), 90), 900) + 60
    chart = _over_time(
        "timeline", height, span, y_range=Range1d(start=len(slots) - 0.5, end=-0.5), output_backend="webgl"
    )
    chart.yaxis.ticker = FixedTicker(ticks=list(range(0, len(slots), math.ceil(len(slots) / MAX_LANE_LABELS))))
    chart.yaxis.major_label_overrides = {lane: safe_text(slot, 12) for slot, lane in lanes.items()}
    chart.ygrid.grid_line_color = None
    _add_pauses(chart, history)
    by_outcome = defaultdict(list)
    for attempt in attempts:
        by_outcome[attempt.outcome].append(attempt)
    for outcome in ("completed", "running", "interrupted", "retry", "failed"):  # what went wrong comes last, on top
        _add_bars(chart, outcome, by_outcome[outcome], lanes, history.until)
    _add_kills(chart, [attempt for attempt in attempts if attempt.is_kill], lanes)
    return chart


def _add_bars(chart: figure, outcome: Outcome, attempts: list[Attempt], lanes: dict[str, int], until: float) -> None:
    if not attempts:
        return
    source = ColumnDataSource(
        {
            "left": np.array([a.started_at for a in attempts]) * 1e3,
            "right": np.array([until if a.ended_at is None else a.ended_at for a in attempts]) * 1e3,
            "lane": np.array([lanes[a.slot] for a in attempts], dtype=np.int32),
            "po": [safe_text(a.po_number, 64) for a in attempts],
            "worker": [safe_text(a.worker_id, 24) for a in attempts],
            "attempt": np.array([a.attempt for a in attempts], dtype=np.int32),
            "took": [seconds_text(a.seconds) for a in attempts],
            **({"error": [safe_text(a.error_type, 40) for a in attempts]} if outcome in ("retry", "failed") else {}),
        }
    )
    # An outline keeps a failure visible that is shorter than a pixel; on those that are many it would hide the rest.
    line_colour = COLOURS[outcome] if outcome == "failed" else None
    bars = chart.hbar(
        y="lane", left="left", right="right", height=0.72, source=source, fill_color=COLOURS[outcome],
        line_color=line_colour, line_width=0.5, name=outcome,
    )  # fmt: skip
    error = "<br>@error" if "error" in source.data else ""
    tip = f"PO <b>@po</b>, attempt @attempt<br>{outcome}, @took, on @worker{error}"
    chart.add_tools(HoverTool(renderers=[bars], tooltips=_tip(tip), limit=3))


def _tip(text: str) -> str:
    """A template of Bokeh's, which escapes the values that it puts in; its own table of names is too pale to read."""
    return f'<div style="color: #14171a; font-size: 13px; line-height: 1.4">{text}</div>'


def _add_kills(chart: figure, kills: list[Attempt], lanes: dict[str, int]) -> None:
    if not kills:
        return
    at = np.array([kill.ended_at or kill.started_at for kill in kills]) * 1e3
    source = ColumnDataSource({"at": at, "lane": np.array([lanes[kill.slot] for kill in kills], dtype=np.int32)})
    chart.scatter(
        "at",
        "lane",
        marker="x",
        size=9 if len(kills) < MANY_KILLS else 6,
        line_width=2.5 if len(kills) < MANY_KILLS else 1.5,
        source=source,
        line_color=KILL_COLOUR,
        fill_color=None,
        name="kill",
    )


def _throughput(history: RunHistory, parts: Sequence[Bucket], rate_unit_s: float, span: Range1d) -> figure:
    chart = _over_time(
        "throughput", 220, span, y_range=_counts(b.completed + b.failed for b in _rates(parts, rate_unit_s))
    )
    _add_pauses(chart, history)
    bars = _rates(parts, rate_unit_s)
    left = np.array([part.start for part in parts]) * 1e3
    right = np.array([min(part.end, max(history.until, part.start)) for part in parts]) * 1e3
    completed = np.array([rate.completed for rate in bars])
    failed = np.array([rate.failed for rate in bars])
    for name, bottom, top in (("completed", completed * 0, completed), ("failed", completed, completed + failed)):
        source = ColumnDataSource({"left": left, "right": right, "bottom": bottom, "top": top, "rate": top - bottom})
        colour = COLOURS["completed" if name == "completed" else "failed"]
        quads = chart.quad(
            left="left",
            right="right",
            bottom="bottom",
            top="top",
            source=source,
            color=colour,
            line_color=None,
            name=name,
        )
        tip = f"{name}: @rate{{0,0.[00]}} POs/{_unit(rate_unit_s)}"
        chart.add_tools(HoverTool(renderers=[quads], tooltips=_tip(tip)))
    chart.yaxis.axis_label = f"POs/{_unit(rate_unit_s)}"
    chart.yaxis.formatter = NumeralTickFormatter(format="0,0.[00]")
    return chart


@dataclass(frozen=True, slots=True)
class _Rate:
    completed: float
    failed: float


def _rates(parts: Sequence[Bucket], rate_unit_s: float) -> list[_Rate]:
    rates = []
    for part in parts:
        factor = rate_unit_s / (part.end - part.start)
        rates.append(_Rate(part.completed * factor, part.failed * factor))
    return rates


def _unit(rate_unit_s: float) -> str:
    return {1.0: "s", 60.0: "min", 3600.0: "h"}[rate_unit_s]


def _counts(values: Iterable[float]) -> Range1d:
    return Range1d(start=0, end=max(max(values, default=0.0) * 1.08, 1e-9))


def _queue(history: RunHistory, points: Sequence[QueuePoint], span: Range1d) -> figure:
    longest, busiest = max(point.waiting for point in points), max(point.running for point in points)
    chart = _over_time("queue", 220, span, y_range=_counts([longest, busiest]))
    _add_pauses(chart, history)
    at = np.array([max(point.at, history.began_at) for point in points] + [history.until]) * 1e3
    lines = [("waiting", WAITING_COLOUR), ("running", RUNNING_COLOUR)]
    for name, colour in lines if shows_running(points) else lines[:1]:
        values = [getattr(point, name) for point in points]
        source = ColumnDataSource({"at": at, "count": np.array(values + values[-1:], dtype=np.int32)})
        dash = "solid" if name == "waiting" else "dashed"  # not by colour alone
        chart.step(
            "at", "count", source=source, mode="after", line_color=colour, line_width=2, line_dash=dash, name=name
        )
    chart.yaxis.axis_label = "POs"
    chart.yaxis.formatter = NumeralTickFormatter(format="0,0")
    return chart


# ── durations ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _durations(attempts: Sequence[Attempt]) -> figure:
    groups = {
        "completed": [a.seconds for a in attempts if a.outcome == "completed" and a.seconds > 0],
        "failed": [a.seconds for a in attempts if a.outcome in ("failed", "retry") and a.seconds > 0],
    }
    everything = groups["completed"] + groups["failed"] or [1.0]
    low, high = min(everything) / 1.2, max(everything) * 1.2
    edges = np.logspace(math.log10(low), math.log10(high), BINS + 1)
    counts = {name: np.histogram(seconds, edges)[0] for name, seconds in groups.items()}
    chart = figure(
        name="durations", height=220, sizing_mode="stretch_width", x_axis_type="log", x_range=Range1d(start=low, end=high),
        y_range=_counts((counts["completed"] + counts["failed"]).tolist()), toolbar_location=None, tools=[],
        min_border_left=72,
    )  # fmt: skip
    bottom = np.zeros(BINS, dtype=np.int64)
    for name, colour in (("completed", COLOURS["completed"]), ("failed", COLOURS["failed"])):
        data = {"left": edges[:-1], "right": edges[1:], "bottom": bottom, "top": bottom + counts[name]}
        source = ColumnDataSource({**data, "count": counts[name]})
        quads = chart.quad(
            left="left",
            right="right",
            bottom="bottom",
            top="top",
            source=source,
            color=colour,
            line_color=None,
            name=name,
        )
        chart.add_tools(HoverTool(renderers=[quads], tooltips=_tip(f"{name}: @count{{0,0}} attempts")))
        bottom = bottom + counts[name]
    ticks = _ticks(low, high)
    chart.xaxis.ticker = FixedTicker(ticks=ticks)
    chart.xaxis.major_label_overrides = {tick: _tick_text(tick) for tick in ticks}
    chart.yaxis.axis_label = "attempts"
    chart.yaxis.formatter = NumeralTickFormatter(format="0,0")
    return _plain(chart)


def _ticks(low: float, high: float) -> list[float]:
    inside = [tick for tick in DECADES_S if low <= tick <= high]
    if len(inside) > 7:
        return [tick for tick in inside if f"{tick:e}".startswith("1")]
    return inside or [low * 1.2]


def _tick_text(seconds: float) -> str:
    return f"{seconds:g} s" if seconds >= 0.1 else f"{seconds * 1e3:g} ms"
