"""How far a run is, shown on stderr: live on a terminal, a plain line every few seconds elsewhere.

The supervisor hands over a Snapshot as often as it likes; when to draw is decided here. Nothing here starts a thread
(a fork would copy its locks), waits for a reader (a stopped terminal would stop the killing of hung workers), or fails
because nobody reads any more.
"""

import os
import textwrap
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TextIO, runtime_checkable

from workers.outlet import HeldLines, Outlet
from workers.safe_text import safe_text

if TYPE_CHECKING:
    from rich.text import Text

LIVE_INTERVAL_S = 0.1
PLAIN_INTERVAL_S = 5.0

_MAX_BAR_COLUMNS = 40
_MIN_BAR_COLUMNS = 6
_WIDE_COLUMNS = 60
_MAX_NOTE_LINES = 3


@dataclass(frozen=True, slots=True)
class WorkerView:
    """What one worker does: state is starting, idle, running or stopping."""

    worker_id: str
    state: str
    po_number: str = ""
    attempt: int = 0
    elapsed_s: float = 0.0
    timeout_s: float = 0.0
    rss_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Where the run stands: phase is reading, running, draining, stopping, paused, writing or done.

    Attributes:
        total: POs of the run; while reading, the rows read so far.
        retrying: POs that wait for a retry; they count as work that remains.
        to_add: how many of the pending ones the queue is still to be given.
        eta_s: None as long as it is not known.
        note: a sentence for the user, shown as long as it is there.
    """

    phase: str
    total: int = 0
    succeeded: int = 0
    failed: int = 0
    retrying: int = 0
    running: int = 0
    pending: int = 0
    to_add: int = 0
    rate_per_s: float = 0.0
    eta_s: float | None = None
    elapsed_s: float = 0.0
    workers: tuple[WorkerView, ...] = ()
    note: str = ""

    @property
    def done(self) -> int:
        """POs that are through, well or badly."""
        return self.succeeded + self.failed


@runtime_checkable
class Progress(Protocol):
    """A display; all of them may be told the same things."""

    def start(self) -> None:
        """Take over the stream."""

    def update(self, snapshot: Snapshot) -> None:
        """Show where the run stands, now or when it is time to."""

    def log(self, line: str) -> None:
        """Show a line that stays."""

    def close(self) -> None:
        """Show the last snapshot and give the stream back; harmless if repeated."""


def make_progress(
    stream: TextIO | None, *, enabled: bool = True, quiet: bool = False, interval_s: float | None = None
) -> Progress:
    """The display that fits a stream: live on a terminal, plain elsewhere, log lines only if not wanted.

    Args:
        stream: stderr; None if the process was started without one.
        enabled: False for --no-progress.
        quiet: True for -q.
        interval_s: shortest time between two drawings. None: LIVE_INTERVAL_S or PLAIN_INTERVAL_S.
    """
    outlet = Outlet(stream)
    if quiet or not enabled or stream is None:
        return SilentProgress(outlet)
    if outlet.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown"):
        return LiveProgress(outlet, interval_s=LIVE_INTERVAL_S if interval_s is None else interval_s)
    return PlainProgress(outlet, interval_s=PLAIN_INTERVAL_S if interval_s is None else interval_s)


class SilentProgress:
    """No progress; log lines are passed on, as what is worth one is decided by the log's level."""

    def __init__(self, stream: "TextIO | Outlet | None") -> None:
        outlet = _outlet(stream)
        self._lines = HeldLines(outlet, outlet.write_lines)

    def start(self) -> None:
        """Nothing to take over."""

    def update(self, snapshot: Snapshot) -> None:
        """Only what had to wait for the reader."""
        self._lines.catch_up()

    def log(self, line: str) -> None:
        """Show a line that stays."""
        self._lines.put(line)

    def close(self) -> None:
        """Show what still waits."""
        self._lines.close()


class PlainProgress:
    """A line at the first snapshot, at each new phase, every `interval_s` seconds, and at the end; no escape codes."""

    def __init__(
        self,
        stream: "TextIO | Outlet | None",
        *,
        interval_s: float = PLAIN_INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._outlet = _outlet(stream)
        self._lines = HeldLines(self._outlet, self._outlet.write_lines)
        self._interval_s = interval_s
        self._clock = clock
        self._latest: Snapshot | None = None
        self._shown: Snapshot | None = None
        self._due_at = 0.0

    def start(self) -> None:
        """Nothing to take over."""

    def update(self, snapshot: Snapshot) -> None:
        """Remember where the run stands; say it if it is time."""
        self._latest = snapshot
        is_new_phase = self._shown is None or self._shown.phase != snapshot.phase
        self._lines.catch_up()
        if (is_new_phase or self._clock() >= self._due_at) and self._outlet.is_ready():
            self._show(snapshot)

    def log(self, line: str) -> None:
        """Show a line that stays."""
        self._lines.put(line)

    def close(self) -> None:
        """Say where the run ended, unless that was the last thing said."""
        if self._latest is not None and self._latest != self._shown:
            self._show(self._latest)
        self._lines.close()

    def _show(self, snapshot: Snapshot) -> None:
        self._shown = snapshot
        self._due_at = self._clock() + self._interval_s
        self._lines.put(plain_line(snapshot))


class LiveProgress:
    """A bar, a note if there is one, and a line for each worker at the foot of the terminal; log lines above them."""

    def __init__(
        self,
        stream: "TextIO | Outlet | None",
        *,
        interval_s: float = LIVE_INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._outlet = _outlet(stream)
        self._interval_s = interval_s
        self._clock = clock
        self._latest: Snapshot | None = None
        self._lines = HeldLines(self._outlet, self._print, batch=20)
        self._due_at = 0.0
        self._console: Any = None
        self._live: Any = None

    def start(self) -> None:
        """Take over the foot of the terminal."""
        from rich.console import Console  # every worker process would pay for these imports
        from rich.live import Live

        if self._live is not None:
            return
        columns, rows = self._outlet.size()
        self._console = Console(
            file=self._outlet,  # type: ignore[arg-type]  # the part of a text stream that a Console uses
            force_terminal=True,
            width=columns,
            height=rows,
            markup=False,
            emoji=False,
            highlight=False,
        )
        # Not redirected: other parts of the program own sys.stdout and sys.stderr, and stdout is for data.
        self._live = Live(console=self._console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
        self._live.start()

    def update(self, snapshot: Snapshot) -> None:
        """Remember where the run stands; draw it if it is time and the terminal takes it."""
        is_new_phase = self._latest is None or self._latest.phase != snapshot.phase
        self._latest = snapshot
        is_due = is_new_phase or self._clock() >= self._due_at
        if self._live is not None and is_due and self._outlet.is_ready():
            self._due_at = self._clock() + self._interval_s
            self._lines.catch_up()
            self._draw(snapshot)

    def log(self, line: str) -> None:
        """Show a line above the bar; while the terminal is stopped, keep it for later."""
        self._lines.put(line)

    def close(self) -> None:
        """Leave the last bar behind, without the workers' lines, and the cursor below it."""
        if self._live is None:
            return
        self._lines.catch_up()
        if self._latest is not None:
            self._draw(replace(self._latest, workers=()))
        self._live.stop()
        self._live = None
        self._lines.close()

    def _draw(self, snapshot: Snapshot) -> None:
        from rich.console import Group

        columns, rows = self._outlet.size()
        self._console.size = (columns, rows)
        self._live.update(Group(*screen_lines(snapshot, columns, rows)), refresh=True)

    def _print(self, lines: list[str]) -> None:
        from rich.text import Text

        if self._live is None:
            self._outlet.write_lines(lines)
        else:  # unwrapped, so that a line can be copied whole
            self._console.print(Text("\n".join(lines)), soft_wrap=True)


# ── what is shown, as text ───────────────────────────────────────────────────────────────────────────────────────────


def plain_line(snapshot: Snapshot) -> str:
    """A snapshot as one line without escape codes."""
    if snapshot.phase == "reading":
        parts = [f"reading, {_plural_rows(snapshot.total)} so far", clock_text(snapshot.elapsed_s)]
    else:
        parts = [
            f"{safe_text(snapshot.phase)} {snapshot.done}/{snapshot.total}{_percentage(snapshot)}",
            f"{snapshot.succeeded} ok",
            f"{snapshot.failed} failed",
            f"{snapshot.retrying} retrying",
            f"{snapshot.running} running",
            f"{snapshot.rate_per_s:.1f}/s",
            f"elapsed {clock_text(snapshot.elapsed_s)}",
        ]
    if snapshot.eta_s is not None:
        parts.append(f"ETA {clock_text(snapshot.eta_s)}")
    if snapshot.note:
        parts.append(safe_text(snapshot.note))
    return ", ".join(parts)


def screen_lines(snapshot: Snapshot, columns: int, rows: int) -> "list[Text]":
    """A snapshot as lines for a terminal of that size: the bar, the note, and what fits of the workers."""
    lines = [bar_line(snapshot, columns)]
    note = textwrap.wrap(safe_text(snapshot.note), max(columns - 1, 1))[:_MAX_NOTE_LINES]
    lines += [_text(line, "bold", columns) for line in note]
    # One row stays free: a display as high as the screen scrolls, and then cannot be drawn over.
    room = max(rows - 1 - len(lines), 0)
    shown = snapshot.workers if len(snapshot.workers) <= room else snapshot.workers[: max(room - 1, 0)]
    lines += worker_lines(shown, columns)
    if len(shown) < len(snapshot.workers) and room:
        lines.append(_text(f"… and {len(snapshot.workers) - len(shown)} more", "dim", columns))
    return lines[: max(rows - 1, 1)]


def bar_line(snapshot: Snapshot, columns: int) -> "Text":
    """The bar and its numbers; what matters least gives way first where the terminal is narrow."""
    from rich.text import Text

    if snapshot.phase == "reading":
        text = f"reading  {_plural_rows(snapshot.total)}  {clock_text(snapshot.elapsed_s)}"
        return _text(text, "", columns)
    count = f"{snapshot.done}/{snapshot.total}{_percentage(snapshot)}"
    # (text, style, rank): the highest rank gives way first.
    parts = [
        ("" if snapshot.phase in ("running", "done") else safe_text(snapshot.phase), "yellow", 1),
        (count, "bold", 0),
        (f"{snapshot.succeeded} ok", "green", 3),
        (f"{snapshot.failed} failed", "red" if snapshot.failed else "", 2),
        (f"{snapshot.retrying} retrying", "yellow" if snapshot.retrying else "", 5 if snapshot.retrying else 7),
        (f"{snapshot.rate_per_s:.1f}/s", "", 6),
        ("" if snapshot.eta_s is None else f"ETA {clock_text(snapshot.eta_s)}", "cyan", 4),
        (f"elapsed {clock_text(snapshot.elapsed_s)}", "dim", 8),
    ]
    parts = [part for part in parts if part[0]]
    while len(parts) > 1 and _width(parts) > columns - 1:
        parts.remove(max(parts, key=lambda part: part[2]))
    bar_columns = min(columns - 1 - _width(parts) - 2, _MAX_BAR_COLUMNS)
    line = Text(no_wrap=True)
    if bar_columns >= _MIN_BAR_COLUMNS:
        full = min(bar_columns * snapshot.done // max(snapshot.total, 1), bar_columns)
        line.append("━" * full, "green").append("─" * (bar_columns - full), "dim").append("  ")
    line.append_text(Text("  ").join(Text(text, style) for text, style, _ in parts))
    line.truncate(max(columns - 1, 1), overflow="ellipsis")
    return line


def worker_lines(workers: Iterable[WorkerView], columns: int) -> "list[Text]":
    """A line for each worker: id, PO, attempt, elapsed of timeout, memory; the PO takes the room that is left."""
    workers = list(workers)
    is_wide = columns >= _WIDE_COLUMNS
    rows = [
        (
            safe_text(worker.worker_id),
            safe_text(worker.po_number) if worker.po_number else "",
            _state_text(worker, is_wide),
            _elapsed_text(worker, is_wide),
            memory_text(worker.rss_bytes),
        )
        for worker in workers
    ]
    widths = [max((_cells(row[column]) for row in rows), default=0) for column in range(5)]
    widths[0] = min(widths[0], 12 if is_wide else 6)
    widths[1] = max(min(widths[1], columns - 1 - 2 * 4 - widths[0] - sum(widths[2:])), 0)
    return [_worker_line(row, widths, worker, columns) for row, worker in zip(rows, workers, strict=True)]


def clock_text(seconds: float) -> str:
    """A duration as a clock shows it: 0:07, 12:30, 1:02:30, 2d 03:00."""
    minutes, second = divmod(int(max(seconds, 0.0)), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour:02}:{minute:02}"
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def memory_text(size_bytes: int) -> str:
    """Memory as a person reads it: 85M, 1.2G; nothing if it is not known."""
    if size_bytes <= 0:
        return ""
    if size_bytes >= 1000 * 1024**2:
        return f"{size_bytes / 1024**3:.1f}G"
    return f"{max(size_bytes // 1024**2, 1)}M"


def _worker_line(row: tuple[str, ...], widths: list[int], worker: WorkerView, columns: int) -> "Text":
    from rich.text import Text

    is_late = worker.timeout_s > 0 and worker.elapsed_s >= 0.8 * worker.timeout_s
    styles = ("dim", "bold", "", "yellow" if is_late else "", "dim")
    line = Text(no_wrap=True)
    for content, width, style in zip(row, widths, styles, strict=True):
        cell = Text(content, style)
        cell.truncate(width, overflow="ellipsis", pad=True)
        line.append_text(cell).append("  " if width else "")
    line.rstrip()
    line.truncate(max(columns - 1, 1), overflow="ellipsis")
    return line


def _state_text(worker: WorkerView, is_wide: bool) -> str:
    if worker.state != "running":
        return safe_text(worker.state)
    return f"attempt {worker.attempt}" if is_wide else f"#{worker.attempt}"


def _elapsed_text(worker: WorkerView, is_wide: bool) -> str:
    if not worker.po_number:
        return ""
    between = " of " if is_wide else "/"
    return clock_text(worker.elapsed_s) + (between + clock_text(worker.timeout_s) if worker.timeout_s else "")


def _text(content: str, style: str, columns: int) -> "Text":
    from rich.text import Text

    line = Text(content, style, no_wrap=True)
    line.truncate(max(columns - 1, 1), overflow="ellipsis")  # a full last column wraps on some terminals
    return line


def _width(parts: list[tuple[str, str, int]]) -> int:
    return sum(_cells(text) for text, _, _ in parts) + 2 * (len(parts) - 1)


def _cells(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)


def _percentage(snapshot: Snapshot) -> str:
    return f" ({100 * snapshot.done // snapshot.total}%)" if snapshot.total else ""


def _plural_rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"


def _outlet(stream: "TextIO | Outlet | None") -> Outlet:
    return stream if isinstance(stream, Outlet) else Outlet(stream)
