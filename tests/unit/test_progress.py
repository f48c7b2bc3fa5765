"""The displays: what they say, and that no terminal, reader or text can harm the run."""

import io
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import pytest

from workers.outlet import MAX_LINE_CHARS, Outlet
from workers.progress import (
    LiveProgress,
    PlainProgress,
    SilentProgress,
    Snapshot,
    WorkerView,
    bar_line,
    clock_text,
    make_progress,
    memory_text,
    plain_line,
    screen_lines,
)

ROOT = Path(__file__).parents[2]
EVIL = "PO-1\x1b[2J\n\u202e[bold]:smile:"
SAFE = "PO-1\\x1b[2J\\n\\u202e[bold]:smile:"


def snapshot(**changes: Any) -> Snapshot:
    usual = Snapshot(
        phase="running",
        total=500,
        succeeded=118,
        failed=3,
        retrying=2,
        running=2,
        pending=375,
        rate_per_s=4.1,
        eta_s=92.4,
        elapsed_s=29.9,
        workers=workers(2),
    )
    return replace(usual, **changes)


def workers(count: int, **changes: Any) -> tuple[WorkerView, ...]:
    view = WorkerView("", "running", "PO-4711", attempt=2, elapsed_s=12.0, timeout_s=90.0, rss_bytes=85 * 1024**2)
    return tuple(replace(view, **{"worker_id": f"w{number}.1", **changes}) for number in range(1, count + 1))


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal:
    """A pseudo terminal: the side a program writes to, and all that it wrote."""

    def __init__(self, columns: int, rows: int) -> None:
        self._master, slave = pty.openpty()
        os.set_blocking(self._master, False)
        self.stream: TextIO = os.fdopen(slave, "w", encoding="utf-8")
        self.resize(columns, rows)

    def resize(self, columns: int, rows: int) -> None:
        import fcntl
        import struct
        import termios

        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def read(self) -> str:
        chunks = []
        with suppress(BlockingIOError, OSError):
            while select.select([self._master], [], [], 0)[0]:
                chunks.append(os.read(self._master, 65536))
        return b"".join(chunks).decode()

    def hang_up(self) -> None:
        if self._master >= 0:
            os.close(self._master)
        self._master = -1

    def close(self) -> None:
        with suppress(OSError):
            self.stream.close()
        self.hang_up()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Terminal]]:
    monkeypatch.setenv("TERM", "xterm-256color")
    for variable in ("NO_COLOR", "FORCE_COLOR", "COLORTERM", "COLUMNS", "LINES"):
        monkeypatch.delenv(variable, raising=False)
    opened: list[Terminal] = []

    def open_terminal(columns: int = 80, rows: int = 24) -> Terminal:
        opened.append(Terminal(columns, rows))
        return opened[-1]

    yield open_terminal
    for one in opened:
        one.close()


@contextmanager
def pipe() -> Iterator[tuple[int, TextIO]]:
    reading, writing = os.pipe()
    stream = os.fdopen(writing, "w", encoding="utf-8")
    try:
        yield reading, stream
    finally:
        with suppress(OSError):
            stream.close()
        with suppress(OSError):
            os.close(reading)


def live(one: Terminal, clock: Callable[[], float] = time.monotonic) -> LiveProgress:
    progress = LiveProgress(one.stream, interval_s=0.0, clock=clock)
    progress.start()
    return progress


class Screen:
    """What is seen on a terminal after the bytes of `output`: the few codes that a live display uses, obeyed."""

    def __init__(self, output: str) -> None:
        self.lines: list[str] = [""]
        self.row = 0
        position = 0
        while position < len(output):
            position = self._obey(output, position)

    def _obey(self, output: str, position: int) -> int:
        character = output[position]
        if character == "\x1b":
            assert output[position + 1] == "[", "an escape that is no CSI"
            end = next(i for i in range(position + 2, len(output)) if output[i].isalpha())
            self._control(output[position + 2 : end], output[end])
            return end + 1
        if character == "\n":
            self.row += 1
            self.lines += [""] * (self.row + 1 - len(self.lines))
        elif character != "\r":
            self.lines[self.row] += character
        return position + 1

    def _control(self, parameter: str, letter: str) -> None:
        if letter == "A":
            self.row = max(self.row - int(parameter or 1), 0)
        elif letter == "K":
            self.lines[self.row] = ""
        else:
            assert letter in "mhl", f"unexpected code {letter}"

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.lines).rstrip("\n")


# ── the choice ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_terminal_gets_a_live_display_and_anything_else_plain_lines(
    terminal: Callable[..., Terminal], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = terminal()

    assert isinstance(make_progress(one.stream, enabled=True, quiet=False), LiveProgress)
    assert isinstance(make_progress(io.StringIO(), enabled=True, quiet=False), PlainProgress)
    assert isinstance(make_progress(one.stream, enabled=False, quiet=False), SilentProgress)
    assert isinstance(make_progress(one.stream, enabled=True, quiet=True), SilentProgress)
    assert isinstance(make_progress(None, enabled=True, quiet=False), SilentProgress)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(make_progress(one.stream, enabled=True, quiet=False), PlainProgress)


def test_a_silent_display_shows_log_lines_only() -> None:
    stream = io.StringIO()
    progress = make_progress(stream, enabled=False, quiet=False)

    progress.start()
    progress.update(snapshot())
    progress.log(EVIL)
    progress.close()

    assert stream.getvalue() == SAFE + "\n"


def test_without_a_stream_nothing_happens() -> None:
    progress = make_progress(None, enabled=True, quiet=False)

    progress.start()
    progress.update(snapshot())
    progress.log("lost")
    progress.close()


# ── plain ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_plain_line_says_everything_without_escape_codes() -> None:
    line = plain_line(snapshot(note=EVIL))

    assert line == (
        "running 121/500 (24%), 118 ok, 3 failed, 2 retrying, 2 running, 4.1/s, elapsed 0:29, ETA 1:32, " + SAFE
    )
    assert "ETA" not in plain_line(snapshot(eta_s=None))
    assert plain_line(Snapshot("reading", total=1, elapsed_s=2)) == "reading, 1 row so far, 0:02"
    assert plain_line(Snapshot("running")).startswith("running 0/0, 0 ok")


def test_plain_lines_come_first_at_once_then_at_intervals_and_last_at_the_end() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = PlainProgress(stream, interval_s=5.0, clock=clock)

    progress.start()
    for done in range(12):
        progress.update(snapshot(succeeded=done, failed=0))
        clock.now += 1.0
    progress.close()
    progress.close()

    assert [line.split()[1] for line in stream.getvalue().splitlines()] == ["0/500", "5/500", "10/500", "11/500"]


def test_a_new_phase_is_said_at_once_and_nothing_is_said_twice() -> None:
    stream = io.StringIO()
    progress = PlainProgress(stream, interval_s=5.0, clock=Clock())

    progress.update(snapshot())
    progress.update(snapshot())
    progress.update(snapshot(phase="draining"))
    progress.close()

    assert [line.split()[0] for line in stream.getvalue().splitlines()] == ["running", "draining"]


def test_a_log_line_stays_one_line() -> None:
    stream = io.StringIO()

    PlainProgress(stream).log(EVIL)

    assert stream.getvalue() == SAFE + "\n"


def test_a_line_beyond_measure_is_cut() -> None:
    with pipe() as (reading, stream):
        progress = PlainProgress(stream)
        progress.log("x" * 10 * MAX_LINE_CHARS)
        progress.close()

        assert len(os.read(reading, 1 << 20).decode()) == MAX_LINE_CHARS + 1


def test_a_stream_that_cannot_spell_a_character_gets_an_escape() -> None:
    content = io.BytesIO()
    stream = io.TextIOWrapper(content, encoding="ascii")

    PlainProgress(stream).log("発注 …")

    assert content.getvalue() == b"\\u767a\\u6ce8 \\u2026\n"


# ── readers that are gone, or do not read ────────────────────────────────────────────────────────────────────────────


def test_a_broken_pipe_never_breaks_the_run() -> None:
    with pipe() as (reading, stream):
        progress = make_progress(stream, enabled=True, quiet=False, interval_s=0.0)
        progress.start()
        progress.update(snapshot())
        os.close(reading)

        for done in range(3):
            progress.update(snapshot(succeeded=done))
            progress.log("nobody reads this")
        progress.close()
        stream.write("not even an error at the end")
        stream.flush()


def test_a_closed_stream_never_breaks_the_run_and_its_number_is_left_to_others(tmp_path: Path) -> None:
    stream = (tmp_path / "err").open("w")
    number = stream.fileno()
    progress = PlainProgress(stream, interval_s=0.0)
    progress.update(snapshot())
    stream.close()
    with (tmp_path / "journal").open("w") as journal:
        assert journal.fileno() == number

        progress.update(snapshot(succeeded=1))
        progress.close()
        journal.write("kept")

    assert (tmp_path / "journal").read_text() == "kept"


def test_a_full_disk_under_stderr_leaves_the_exit_code_alone() -> None:
    code = (
        "import sys; from workers.progress import *; p = make_progress(sys.stderr, enabled=True, quiet=False);"
        "p.start(); p.update(Snapshot('running')); p.log('x'); p.close(); sys.exit(7)"
    )
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-c", code], check=False, stderr=full, timeout=60, cwd=ROOT)
    assert done.returncode == 7


def test_a_reader_that_stopped_reading_is_not_waited_for_and_gets_what_was_kept() -> None:
    with pipe() as (reading, stream):
        progress = PlainProgress(stream, interval_s=0.0)
        for number in range(900):
            progress.log(f"{number} " + "x" * 500)  # seven times what a pipe holds
        progress.update(snapshot())

        received = b""
        while b"\n899 " not in received:
            received += os.read(reading, 1 << 20)
            progress.log("more")
        progress.close()

        assert all(f"{number} ".encode() in received for number in range(900))
        assert os.get_blocking(stream.fileno()), "the flag of those who share the pipe was changed"


def test_what_a_pipe_takes_in_part_arrives_whole() -> None:
    with pipe() as (reading, stream):
        outlet, text, received = Outlet(stream), "".join(f"{number}\n" for number in range(100_000)), b""
        outlet.write(text)

        while not outlet.is_ready():
            received += os.read(reading, 5_000)
        os.set_blocking(reading, False)
        received += os.read(reading, 1 << 20)

    assert received.decode() == text


def test_a_stopped_terminal_is_not_waited_for(terminal: Callable[..., Terminal]) -> None:
    one = terminal(columns=200)
    progress = live(one)

    for number in range(3000):
        progress.update(snapshot(succeeded=number % 300, workers=workers(20)))
        progress.log(f"line {number}")
    progress.log("the last line")

    output, deadline = one.read(), time.monotonic() + 30
    while "the last line" not in output and time.monotonic() < deadline:
        progress.update(snapshot())
        output += one.read()
    assert "the last line" in output
    one.hang_up()
    progress.close()


def test_a_terminal_that_is_gone_never_breaks_the_run(terminal: Callable[..., Terminal]) -> None:
    one = terminal()
    progress = live(one)
    progress.update(snapshot())

    one.hang_up()
    progress.update(snapshot(succeeded=200))
    progress.log("nobody reads this")
    progress.close()


def test_an_outlet_without_a_terminal_or_whose_terminal_tells_none_has_a_usual_size(
    terminal: Callable[..., Terminal],
) -> None:
    assert Outlet(io.StringIO()).size() == (80, 24)
    assert not Outlet(None).isatty()
    assert Outlet(terminal(columns=0, rows=0).stream).size() == (80, 24)  # as over a serial line
    assert Outlet(terminal(columns=0, rows=50).stream).size() == (80, 50)


# ── live ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_live_display_shows_a_bar_a_note_and_a_line_for_each_worker(terminal: Callable[..., Terminal]) -> None:
    one = terminal(columns=100)
    progress = live(one)

    progress.update(snapshot(succeeded=0))
    progress.update(snapshot(note="2 more workers are starting"))

    bar, *rest = Screen(one.read()).text.splitlines()
    assert bar.lstrip("━─") == "  121/500 (24%)  118 ok  3 failed  2 retrying  4.1/s  ETA 1:32  elapsed 0:29"
    assert bar.count("━") == 24 * len(bar.rstrip().partition(" ")[0]) // 100
    assert rest == [
        "2 more workers are starting",
        "w1.1  PO-4711  attempt 2  0:12 of 1:30  85M",
        "w2.1  PO-4711  attempt 2  0:12 of 1:30  85M",
    ]
    progress.close()


def test_log_lines_stand_above_the_bar_and_never_in_it(terminal: Callable[..., Terminal]) -> None:
    one = terminal(columns=60)
    progress = live(one)
    progress.update(snapshot(workers=workers(1)))

    progress.log("first " + "x" * 100)
    progress.update(snapshot(succeeded=119, workers=workers(1)))
    progress.log(EVIL)

    lines = Screen(one.read()).text.splitlines()
    assert lines[:2] == ["first " + "x" * 100, SAFE]
    assert "122/500" in lines[2]
    assert lines[3:] == ["w1.1  PO-4711  attempt 2  0:12 of 1:30  85M"]
    progress.close()


def test_the_last_bar_stays_and_the_cursor_comes_back_below_it(terminal: Callable[..., Terminal]) -> None:
    one = terminal()
    progress = live(one)
    progress.update(snapshot())
    progress.update(snapshot(phase="done", succeeded=497, retrying=0, eta_s=None, workers=workers(2)))

    progress.close()
    progress.close()
    progress.log("after the end")

    output = one.read()
    assert output.rindex("\x1b[?25h") > output.rindex("\x1b[?25l")
    lines = Screen(output).text.splitlines()
    assert [line.lstrip("━ ") for line in lines] == [
        "500/500 (100%)  497 ok  3 failed  0 retrying  4.1/s  elapsed 0:29",
        "after the end",
    ]


def test_a_live_display_draws_no_more_often_than_its_interval(terminal: Callable[..., Terminal]) -> None:
    one, clock = terminal(), Clock()
    progress = LiveProgress(one.stream, interval_s=1.0, clock=clock)
    progress.start()
    progress.update(snapshot(succeeded=1))

    progress.update(snapshot(succeeded=2))
    clock.now += 1.0
    progress.update(snapshot(succeeded=3))

    output = one.read()
    assert ("1 ok" in output, "2 ok" in output, "3 ok" in output) == (True, False, True)
    progress.close()


def test_a_live_display_draws_a_new_phase_at_once(terminal: Callable[..., Terminal]) -> None:
    one = terminal()
    progress = LiveProgress(one.stream, interval_s=1.0, clock=Clock())
    progress.start()
    progress.update(snapshot(phase="draining"))

    progress.update(snapshot(phase="writing"))

    assert "writing" in one.read()
    progress.close()


def test_text_of_orders_cannot_steer_the_terminal(terminal: Callable[..., Terminal]) -> None:
    one = terminal(columns=120)
    progress = live(one)

    progress.update(snapshot(note=EVIL, workers=workers(1, po_number=EVIL, state=EVIL, worker_id=EVIL)))

    output = one.read()
    assert "\x1b[2J" not in output
    assert "\u202e" not in output
    assert SAFE in output
    progress.close()


@pytest.mark.parametrize(("value", "is_coloured"), [("1", False), ("", True)])
def test_no_color_is_honoured(
    terminal: Callable[..., Terminal], monkeypatch: pytest.MonkeyPatch, value: str, is_coloured: bool
) -> None:
    one = terminal()
    monkeypatch.setenv("NO_COLOR", value)
    progress = live(one)

    progress.update(snapshot())

    assert ("\x1b[32m" in one.read()) is is_coloured
    progress.close()


def test_a_resized_terminal_is_drawn_in_its_new_size(terminal: Callable[..., Terminal]) -> None:
    one = terminal(columns=100, rows=24)
    progress = live(one)
    progress.update(snapshot())
    one.read()

    one.resize(60, 5)
    progress.update(snapshot(workers=workers(8)))

    lines = one.read().splitlines()
    assert any("… and 6 more" in line for line in lines)
    progress.close()


def test_the_real_streams_are_left_alone(terminal: Callable[..., Terminal]) -> None:
    before = sys.stdout, sys.stderr
    progress = live(terminal())

    assert (sys.stdout, sys.stderr) == before

    progress.close()


# ── what fits ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("columns", [1, 10, 20, 40, 41, 60, 80, 132, 400])
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 24])
@pytest.mark.parametrize("po_number", ["PO-1", "発注番号" * 20, "x" * 300], ids=["short", "wide", "long"])
def test_a_display_never_outgrows_the_screen(columns: int, rows: int, po_number: str) -> None:
    big = snapshot(
        total=10**6, succeeded=10**6, failed=4 * 10**5, note="a note " * 20, workers=workers(64, po_number=po_number)
    )

    for shown in (big, replace(big, note=""), replace(big, phase="reading"), replace(big, total=0)):
        lines = screen_lines(shown, columns, rows)
        assert all(line.cell_len < max(columns, 2) for line in lines)
        assert len(lines) < max(rows, 2)


def test_workers_that_do_not_fit_are_counted() -> None:
    lines = [line.plain for line in screen_lines(snapshot(workers=workers(30)), 80, 10)]

    assert len(lines) == 9
    assert lines[-2].startswith("w7.1 ")
    assert lines[-1] == "… and 23 more"
    assert len(screen_lines(snapshot(workers=workers(8)), 80, 10)) == 9


def test_a_run_is_whole_only_once_its_last_po_has_ended() -> None:
    almost = snapshot(total=200, succeeded=196)

    assert "(99%)" in bar_line(almost, 200).plain and "(99%)" in plain_line(almost)
    assert "(100%)" in bar_line(replace(almost, succeeded=197), 200).plain


def test_what_has_had_most_of_its_time_stands_out() -> None:
    lines = screen_lines(
        snapshot(workers=(*workers(1, elapsed_s=71.9), *workers(1, elapsed_s=72.0), *workers(1, timeout_s=0.0))), 80, 24
    )

    late = [[span.style for span in line.spans if span.style == "yellow"] for line in lines[1:]]
    assert late == [[], ["yellow"], []]


def test_a_bar_has_every_part_that_fits_and_the_last_column_stays_free() -> None:
    whole = bar_line(snapshot(), 400).plain.lstrip("━─").strip()

    assert bar_line(snapshot(), len(whole) + 1).plain == whole
    assert bar_line(snapshot(), len(whole)).plain.endswith(whole.removesuffix("  elapsed 0:29"))


def test_a_narrow_bar_keeps_what_matters_most() -> None:
    assert bar_line(snapshot(), 40).plain.lstrip("━─") == "  121/500 (24%)  118 ok  3 failed"
    assert bar_line(snapshot(), 20).plain == "121/500 (24%)"
    assert bar_line(snapshot(phase="draining"), 40).plain == "draining  121/500 (24%)  3 failed"


def test_a_narrow_worker_line_shortens_the_po_number_first() -> None:
    [_, line] = screen_lines(snapshot(workers=workers(1, po_number="PO-4711-2024-11-B")), 40, 24)

    assert line.plain == "w1.1  PO-4711-2024…  #2  0:12/1:30  85M"


def test_an_idle_worker_shows_its_state_and_memory_only() -> None:
    [_, line] = screen_lines(snapshot(workers=workers(1, state="idle", po_number="")), 80, 24)

    assert line.plain == "w1.1  idle  85M"


def test_no_eta_is_shown_until_it_is_known() -> None:
    assert "ETA" not in bar_line(snapshot(eta_s=None), 200).plain
    assert "ETA 0:00" in bar_line(snapshot(eta_s=0.0), 200).plain


def test_reading_shows_how_much_was_read() -> None:
    assert bar_line(Snapshot("reading", total=12_345, elapsed_s=3), 80).plain == "reading  12345 rows  0:03"


def test_clocks_and_memory_are_short() -> None:
    assert [clock_text(s) for s in (-1, 0.9, 59.9, 60, 3599, 3600, 86400 + 3 * 3600)] == [
        *("0:00", "0:00", "0:59", "1:00", "59:59", "1:00:00", "1d 03:00")
    ]
    assert [memory_text(b) for b in (0, 1, 85 * 1024**2, 1024**3, 1234 * 1024**2)] == ["", "1M", "85M", "1.0G", "1.2G"]


def test_rich_is_not_loaded_before_a_live_display_starts() -> None:
    code = (
        "import sys, io; from workers.progress import *; p = PlainProgress(io.StringIO()); p.update(Snapshot('done'));"
        "p.close(); print(any(name.partition('.')[0] == 'rich' for name in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, cwd=ROOT
    )
    assert done.stdout == "False\n"
