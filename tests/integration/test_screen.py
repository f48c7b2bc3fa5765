"""What an operator sees: the live display on real terminals, plain lines elsewhere, and a reader that goes away."""

import contextlib
import json
import os
import pty
import re
import select
import shlex
import shutil
import signal
import struct
import subprocess
import tempfile
import termios
import time
import uuid
from collections.abc import Iterator, Mapping
from fcntl import ioctl
from pathlib import Path

import pytest

from tests.integration.console import (
    BEHAVE,
    DEADLINE_S,
    MARK,
    command_line,
    environment,
    outcomes,
    pids_with,
    poqueue,
    running,
    started,
    wait_until,
    write_orders,
)
from workers.orders import PROGRESS_ROWS

ESCAPE = "\x1b"
COLOUR = re.compile(r"\x1b\[(?:[0-9;]*;)?(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])[0-9;]*m")
BAR = re.compile(r"[━─]{3,}|\d+/\d+ \(\d+%\)")
WORKER = re.compile(r"^w\d+\.\d+ ")
LOG = re.compile(r"^\d\d:\d\d:\d\d (error|warning|info|debug) ")

needs_tmux = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")


class Screen:
    """A terminal of tmux with a shell's job in it."""

    def __init__(self, columns: int, rows: int, script: str, cwd: Path, env: Mapping[str, str]) -> None:
        self._folder = tempfile.mkdtemp(prefix="pq-")
        self._tmux = ["tmux", "-L", "t", "-f", os.devnull]
        self._env = {**env, "TMUX_TMPDIR": self._folder, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}
        self._env.pop("TMUX", None)
        size = ["-x", str(columns), "-y", str(rows)]
        # A shell of its own job control: Ctrl-C goes to the command's group and the shell lives on to tell the code.
        self._call("new-session", "-d", *size, "-c", str(cwd), "bash", "--norc", "--noprofile", "-c", script)

    def _call(self, *words: str) -> str:
        ended = subprocess.run(
            [*self._tmux, *words], env=self._env, capture_output=True, text=True, timeout=DEADLINE_S, check=True
        )
        return ended.stdout

    def lines(self) -> list[str]:
        """What stands on the screen and above it; lines that the terminal wrapped are whole."""
        with contextlib.suppress(subprocess.CalledProcessError):
            return [line.rstrip() for line in self._call("capture-pane", "-p", "-J", "-S", "-").splitlines()]
        return []

    def visible(self) -> list[str]:
        """What stands on the screen, row by row, without the empty rows at the end."""
        return self._call("capture-pane", "-p").rstrip().splitlines()

    def press(self, key: str) -> None:
        self._call("send-keys", key)

    def resize(self, columns: int, rows: int) -> None:
        self._call("resize-window", "-x", str(columns), "-y", str(rows))

    def close(self) -> None:
        subprocess.run(
            [*self._tmux, "kill-server"], env=self._env, capture_output=True, timeout=DEADLINE_S, check=False
        )
        shutil.rmtree(self._folder, ignore_errors=True)


@contextlib.contextmanager
def screen(columns: int, tmp_path: Path, *options: str, rows: int = 24) -> Iterator[Screen]:
    """The orders of `tmp_path` run on a terminal; at the end it shows "exit code N" and stays."""
    line = shlex.join(
        command_line(
            "run", "orders.csv", *BEHAVE, "--option", f"folder={tmp_path}", "--run-dir", "r", "-j", "2", *options
        )
    )
    mark = uuid.uuid4().hex
    shown = Screen(
        columns, rows, f"trap : INT; {line}; echo exit code $?; exec sleep 600", tmp_path, environment({MARK: mark})
    )
    try:
        yield shown
    finally:
        shown.close()
        for pid in pids_with(MARK, mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not pids_with(MARK, mark), "nothing is left of the terminal")


def has_ended(shown: Screen) -> bool:
    return any(line.startswith("exit code ") for line in shown.lines())


def shows(shown: Screen, pattern: str) -> bool:
    return re.search(pattern, "\n".join(shown.lines()), re.MULTILINE) is not None


# ── a real terminal ──────────────────────────────────────────────────────────────────────────────────────────────────


@needs_tmux
@pytest.mark.parametrize("columns", [80, 40])
def test_the_bar_and_the_workers_stand_below_the_log(columns: int, tmp_path: Path) -> None:
    write_orders(tmp_path / "orders.csv", "F1,give-up", "F2,give-up", "O1,ok", "W1,wait", "W2,wait", "O2,ok")
    with screen(columns, tmp_path) as shown:
        wait_until(lambda: shows(shown, r"^w1\.1 .*W[12]") and shows(shown, r"^w2\.1 .*W[12]"), "both workers wait")
        wait_until(lambda: shows(shown, r"3/6 \(50%\)"), "three POs are through")
        lines, visible = shown.lines(), shown.visible()
        (tmp_path / "go").touch()
        wait_until(lambda: has_ended(shown), "it has ended")
        final = shown.lines()

    logs = [number for number, line in enumerate(lines) if LOG.match(line)]
    bars = [number for number, line in enumerate(lines) if BAR.search(line)]
    workers = [number for number, line in enumerate(lines) if WORKER.match(line)]
    assert len(logs) == 2 and len(bars) == 1 and len(workers) == 2
    assert max(logs) < bars[0] < min(workers)
    assert all("GiveUp: there is no such order" in lines[number] for number in logs)
    assert "2 failed" in lines[bars[0]]
    assert all(re.search(r"0:0\d( of |/)5:00", lines[number]) for number in workers)
    assert all(len(row) <= columns for row in visible)
    # At the end one bar is left, nobody's line, and the table below it.
    assert [line for line in final if WORKER.match(line)] == []
    assert len([line for line in final if re.search(r"6/6 \(100%\)", line)]) == 1
    assert len([line for line in final if LOG.match(line)]) == 2
    assert any(line.startswith("outcome") for line in final)
    assert "exit code 1" in final


@pytest.mark.once
@needs_tmux
def test_many_log_lines_pass_above_the_bar_and_none_is_torn(tmp_path: Path) -> None:
    count = 120
    write_orders(tmp_path / "orders.csv", *(f"F{number:03},give-up" for number in range(count)), "W,wait")
    with screen(80, tmp_path, rows=12) as shown:
        wait_until(lambda: shows(shown, r"^w\d\.1 +W "), "the last one is under way")
        during = shown.lines()
        (tmp_path / "go").touch()
        wait_until(lambda: has_ended(shown), "it has ended")
        final = shown.lines()

    assert len([line for line in during if BAR.search(line)]) == 1
    whole = [line for line in final if LOG.match(line)]
    assert len(whole) == count
    assert all(line.endswith("GiveUp: there is no such order") for line in whole)
    assert len([line for line in final if BAR.search(line)]) == 1


@pytest.mark.once
@needs_tmux
def test_the_counts_of_a_status_that_is_watched_stay_on_a_short_terminal(tmp_path: Path) -> None:
    write_orders(tmp_path / "orders.csv", *(f"W{number},wait" for number in range(6)))
    words = ["run", "orders.csv", *BEHAVE, "--option", f"folder={tmp_path}", "--run-dir", "r", "-j", "6"]
    with started(*words, cwd=tmp_path) as run:
        trail = tmp_path / "trail"
        wait_until(lambda: trail.exists() and trail.read_text().count("begin") == 6, "all wait")
        watch = Screen(
            80, 9, shlex.join(command_line("status", "r", "--watch")), tmp_path, environment({MARK: run.mark})
        )
        try:
            wait_until(lambda: re.search(r"\n0 of 6 POs(.*\n)+…$", "\n".join(watch.visible())), "the counts stay")
        finally:
            (tmp_path / "go").touch()
            run.wait().check(0)
            watch.close()


@pytest.mark.once
@needs_tmux
def test_the_display_follows_the_size_of_the_terminal(tmp_path: Path) -> None:
    write_orders(tmp_path / "orders.csv", "W1,wait", "W2,wait", "O,ok")
    with screen(100, tmp_path) as shown:
        wait_until(lambda: shows(shown, r"^w2\.1 .*attempt 1"), "both workers wait, in words")
        shown.resize(40, 15)
        wait_until(lambda: shows(shown, r"^w2\.1 .*#1 "), "the workers' lines are short")
        shown.resize(100, 24)
        wait_until(lambda: shows(shown, r"^w2\.1 .*attempt 1"), "they are long again")
        (tmp_path / "go").touch()
        wait_until(lambda: has_ended(shown), "it has ended")
        assert shows(shown, "^exit code 0$")


@needs_tmux
def test_ctrl_c_on_a_terminal_says_what_it_does_and_what_a_second_one_would(tmp_path: Path) -> None:
    write_orders(tmp_path / "orders.csv", "W1,wait", "W2,wait", "O,ok")
    with screen(80, tmp_path) as shown:
        wait_until(lambda: shows(shown, r"^w1\.1 .*W[12]") and shows(shown, r"^w2\.1 .*W[12]"), "both workers wait")
        shown.press("C-c")
        wait_until(lambda: shows(shown, "no new PO starts") and shows(shown, "a second one stops them"), "it is told")
        wait_until(lambda: shows(shown, "draining"), "the bar says so too")
        shown.press("C-c")
        wait_until(lambda: has_ended(shown), "it has ended")
        final = shown.lines()

    assert "exit code 130" in final
    assert any(line.startswith("go on with the rest: poqueue run --resume r") for line in final)
    assert not any("Traceback" in line for line in final)
    assert set(outcomes(tmp_path / "r").values()) == {"not run"}


def on_terminal(words: list[str], cwd: Path, env: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Exit code, and what was written to a terminal of 80 by 24 that is stderr."""
    leader, follower = pty.openpty()
    ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    variables = environment({"TERM": "xterm-256color", **(env or {})})
    process = subprocess.Popen(
        words, cwd=cwd, env=variables, stdin=subprocess.DEVNULL, stderr=follower, start_new_session=True,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(follower)
    said = b""
    deadline = time.monotonic() + DEADLINE_S
    try:
        while time.monotonic() < deadline:
            if select.select([leader], [], [], 0.1)[0]:
                try:
                    said += os.read(leader, 65536)
                except OSError:  # nobody has the other end open any more
                    break
        return process.wait(DEADLINE_S), said.decode()
    finally:
        process.kill()
        process.wait()
        os.close(leader)


@pytest.mark.once
@pytest.mark.parametrize(
    ("env", "options", "is_live", "has_colour"),
    [
        ({}, [], True, True),
        ({"NO_COLOR": "1"}, [], True, False),
        ({"TERM": "dumb"}, [], False, False),
        ({}, ["--no-progress"], False, False),
        ({}, ["-q"], False, False),
    ],
    ids=["terminal", "NO_COLOR", "dumb", "--no-progress", "-q"],
)
def test_colour_and_movement_only_where_they_are_wanted(
    env: dict[str, str], options: list[str], is_live: bool, has_colour: bool, tmp_path: Path
) -> None:
    write_orders(tmp_path / "orders.csv", "A,ok", "B,give-up")

    code, said = on_terminal(command_line("run", "orders.csv", *BEHAVE, "-j", "1", *options), tmp_path, env)

    assert code == 1
    assert (ESCAPE in said) is is_live
    assert (COLOUR.search(said) is not None) is has_colour
    assert "GiveUp: there is no such order" in said
    assert said.count("\x1b[?25l") == said.count("\x1b[?25h")  # the cursor is shown again


def test_what_a_po_contains_cannot_steer_the_terminal(tmp_path: Path) -> None:
    write_orders(tmp_path / "orders.csv", '"\x1b]0;owned\x07\x1b[2J,evil",give-up')

    _, said = on_terminal(command_line("run", "orders.csv", *BEHAVE, "-j", "1", "-vv"), tmp_path, {"NO_COLOR": "1"})

    assert "\x1b]0" not in said and "\x1b[2J" not in said and "\x07" not in said


@pytest.mark.once
def test_what_a_run_says_at_its_end_cannot_steer_the_terminal_either(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text(
        "class Evil:\n"
        "    def setup(self, context):\n        raise ValueError('no login: \\x1b]0;owned\\x07\\x1b[2J')\n\n"
        "    def process(self, po):\n        return {}\n"
    )
    write_orders(tmp_path / "orders.csv", "A,ok")
    empty = write_orders(tmp_path / "empty \x1b[2J.csv")

    ended = poqueue("run", "orders.csv", "-p", "evil:Evil", "--app-dir", ".", "-j", "1", cwd=tmp_path).check(4)
    nothing = poqueue("run", empty.name, cwd=tmp_path).check(5)

    assert r"no login: \x1b]0;owned\x07\x1b[2J" in ended.err and r"empty \x1b[2J.csv" in nothing.err
    assert ESCAPE not in ended.err + nothing.err
    assert re.search(r"^not run +1 +1\n", ended.err, re.MULTILINE)


# ── no terminal ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.once
def test_elsewhere_there_are_plain_lines_without_escape_codes(tmp_path: Path) -> None:
    write_orders(tmp_path / "orders.csv", "A,ok", "B,give-up")

    ended = poqueue("run", "orders.csv", *BEHAVE, cwd=tmp_path, env={"FORCE_COLOR": "1", "TERM": "xterm"}).check(1)

    assert ESCAPE not in ended.err and "\r" not in ended.err
    assert re.search(r"^running [0-2]/2 \(\d+%\)", ended.err, re.MULTILINE)
    assert re.search(r"^done 2/2 \(100%\), 1 ok, 1 failed", ended.err, re.MULTILINE)


@pytest.mark.once
def test_a_run_of_many_pos_is_done_when_it_is_also_written_down(tmp_path: Path) -> None:
    write_orders(tmp_path / "orders.csv", "A,give-up", *(f"P{number},ok" for number in range(PROGRESS_ROWS)))

    ended = poqueue("run", "orders.csv", *BEHAVE, "--halt", "now,fail=1", "-j", "1", cwd=tmp_path).check(4)

    lines = [line for line in ended.err.splitlines() if line.startswith(("writing ", "done "))]
    assert [line.split()[0] for line in lines] == ["writing", "done"]
    assert lines[0].endswith("the results and the report are being written")


def test_progress_can_be_left_out(tmp_path: Path) -> None:
    write_orders(tmp_path / "orders.csv", "A,ok", "B,give-up")

    ended = poqueue("run", "orders.csv", *BEHAVE, "--no-progress", cwd=tmp_path).check(1)

    assert "running" not in ended.err and "done" not in ended.err
    assert "failed for good" in ended.err and "2 input rows" in ended.err


@pytest.mark.once
@pytest.mark.parametrize(
    "pipe",
    [
        "2>&1 >/dev/null | head -1",
        "2>&1 | head -c 1",
        "2>&1 | true",
        "--json | true",
        "2>&-",
        ">&-",
        ">&- 2>&-",
        "<&- >&- 2>&-",
        "2>/dev/full",
        "--json >/dev/full",
    ],
)
def test_a_reader_that_goes_away_harms_nothing(pipe: str, tmp_path: Path) -> None:
    write_orders(tmp_path / "orders.csv", *(f"P{number},{'give-up' if number % 2 else 'ok'}" for number in range(40)))
    words = shlex.join(command_line("run", "orders.csv", *BEHAVE, "--run-dir", "r", "-j", "2"))

    with running(["bash", "-c", f"{words} {pipe}; echo ${{PIPESTATUS[0]}} > code"], cwd=tmp_path) as run:
        ended = run.wait()

    ended.check_quiet()
    assert "BrokenPipe" not in ended.err and "Exception ignored" not in ended.err
    assert json.loads((tmp_path / "r" / "report.json").read_text())["accounts"]["rows"] == 40
    assert set(outcomes(tmp_path / "r").values()) == {"succeeded", "failed"}
    assert int((tmp_path / "code").read_text()) == 1
