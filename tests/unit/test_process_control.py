"""Finding and ending processes: everything that belongs to a worker, and nothing else."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.integration.console import ROOT
from workers import own_process
from workers import process_control as control

LONG = "300"


def wait_until(condition: Callable[[], Any], what: str, within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(0.005)


@pytest.fixture
def start() -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Starts programs that end with the test."""
    running: list[subprocess.Popen[str]] = []

    def start_one(*words: str, **options: Any) -> "subprocess.Popen[str]":
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, **options)
        running.append(process)
        return process

    yield start_one
    for process in running:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def is_over(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def test_signals_wait_while_processes_start_and_other_threads_notice_nothing() -> None:
    mask, environ = signal.pthread_sigmask(signal.SIG_BLOCK, []), dict(os.environ)

    with pytest.raises(RuntimeError), control.quiet_start():
        assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
        assert dict(os.environ) == environ  # what another thread starts now inherits it
        raise RuntimeError

    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask


def test_members_are_found_by_descent_session_and_mark(start: Callable[..., "subprocess.Popen[str]"]) -> None:
    environ = {**os.environ, control.PROCESS_MARK: "w-1"}
    leader = start(
        "sh", "-c", f"sleep {LONG} & setsid sleep {LONG} & (setsid sleep {LONG} &) ; echo go; wait",
        env=environ, start_new_session=True,
    )  # fmt: skip
    stranger = start("sleep", LONG, env={**os.environ, control.PROCESS_MARK: "w-11"}, start_new_session=True)
    assert leader.stdout is not None and leader.stdout.readline() == "go\n"
    wait_until(lambda: len({p.pid for p in control.belongings(leader.pid, "w-1")}) == 3, "all three are found")
    found = {process.pid for process in control.belongings(leader.pid, "w-1")}

    control.kill_tree(leader.pid, "w-1")

    wait_until(lambda: all(is_over(pid) for pid in (*found, leader.pid)), "all are dead")
    assert stranger.poll() is None and stranger.pid not in found


def test_what_a_dead_leader_has_left_is_found_and_counted(start: Callable[..., "subprocess.Popen[str]"]) -> None:
    leader = start(
        "sh", "-c", f"sleep {LONG} & echo $!", env={**os.environ, control.PROCESS_MARK: "w-2"}, start_new_session=True
    )
    assert leader.stdout is not None
    left = int(leader.stdout.readline())
    leader.wait()

    assert control.kill_belongings(leader.pid, "w-2") == 1
    wait_until(lambda: is_over(left), "it is dead")
    assert control.kill_belongings(leader.pid, "w-2") == 0


def test_what_is_older_than_a_worker_is_none_of_its_own(start: Callable[..., "subprocess.Popen[str]"]) -> None:
    environ = {**os.environ, control.PROCESS_MARK: "w-4"}
    older = start("sleep", LONG, env=environ)
    wait_until(lambda: control.born(os.getpid()) < control.born(older.pid) < ticks(), "a tick later")
    leader = start("sh", "-c", f"sleep {LONG} & echo $!; wait", env=environ, start_new_session=True)
    assert leader.stdout is not None
    child = int(leader.stdout.readline())

    found = [process.pid for process in control.belongings(leader.pid, "w-4", since=control.born(leader.pid))]

    assert found == [child]
    assert control.born(0) == 0


@pytest.mark.parametrize("name", ["plain", "a b", "a\nb", "é"])
def test_whoever_maps_a_workers_mark_file_belongs_to_it(
    name: str, tmp_path: Path, start: Callable[..., "subprocess.Popen[str]"]
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "mark").write_bytes(b"\0")
    code = (
        "import mmap, sys, time\n"
        "file = open(sys.argv[1], 'r+b')\n"
        "view = mmap.mmap(file.fileno(), 1)\n"
        "print('go', flush=True)\n"
        f"time.sleep({LONG})\n"
    )
    process = start(sys.executable, "-c", code, str(folder / "mark"))
    assert process.stdout is not None and process.stdout.readline() == "go\n"

    assert [one.pid for one in control.belongings(2**22 - 1, "w-none", folder)] == [process.pid]
    assert [one.pid for one in control.marked_processes("none", tmp_path)] == [process.pid]
    assert control.belongings(2**22 - 1, "w-none", tmp_path / "other") == []


def test_whoever_has_got_a_dead_workers_pid_is_none_of_its_own(start: Callable[..., "subprocess.Popen[str]"]) -> None:
    stranger = start("sh", "-c", f"sleep {LONG} & echo go; wait", start_new_session=True)
    assert stranger.stdout is not None and stranger.stdout.readline() == "go\n"
    worker_born = control.born(stranger.pid) - 1

    assert control.belongings(stranger.pid, "w-6", since=worker_born) == []
    assert len(control.belongings(stranger.pid, "w-6", since=worker_born + 1)) == 1


def test_a_process_whose_first_thread_has_ended_lives(start: Callable[..., "subprocess.Popen[str]"]) -> None:
    code = (
        "import ctypes, threading, time\n"
        f"threading.Thread(target=time.sleep, args=({LONG},)).start()\n"
        "print('go', flush=True)\n"
        "ctypes.CDLL(None).pthread_exit(None)\n"
    )
    environ = {**os.environ, control.PROCESS_MARK: "w-7"}
    leader = start("sh", "-c", '"$0" -c "$1" & wait', sys.executable, code, env=environ, start_new_session=True)
    assert leader.stdout is not None and leader.stdout.readline() == "go\n"
    [child] = psutil.Process(leader.pid).children()
    wait_until(lambda: child.status() == psutil.STATUS_ZOMBIE, "its first thread has ended")

    assert [one.pid for one in control.belongings(leader.pid, "w-7")] == [child.pid]
    control.kill_tree(leader.pid, "w-7")

    wait_until(
        lambda: not os.path.exists(f"/proc/{child.pid}/task") or len(os.listdir(f"/proc/{child.pid}/task")) < 2,
        "it is dead",
    )


def ticks() -> int:
    """Now, as `born` counts."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))


@pytest.mark.parametrize("name", ["a) Z 1 1 (b", "c d", "(", "e\nf)"])
def test_a_process_is_found_whatever_its_name(
    name: str, tmp_path: Path, start: Callable[..., "subprocess.Popen[str]"]
) -> None:
    os.symlink(sys.executable, tmp_path / name)
    environ = {**os.environ, control.PROCESS_MARK: "w-5"}
    process = start(str(tmp_path / name), "-S", "-c", f"import time; time.sleep({LONG})", env=environ)

    wait_until(lambda: control.belongings(2**22 - 1, "w-5"), "it is found")

    assert control.born(process.pid) > control.born(os.getpid())


@pytest.mark.parametrize("mark", ["run-1", "run"])
def test_a_run_is_found_by_the_whole_of_its_mark(mark: str, start: Callable[..., "subprocess.Popen[str]"]) -> None:
    process = start("sleep", LONG, env={control.RUN_MARK: "run-1"})
    wait_until(lambda: psutil.Process(process.pid).environ().get(control.RUN_MARK) == "run-1", "it has its environment")

    assert [one.pid for one in control.marked_processes(mark)] == ([process.pid] if mark == "run-1" else [])


def test_a_process_that_is_to_be_kept_is_kept(start: Callable[..., "subprocess.Popen[str]"]) -> None:
    kept, other = (start("sleep", LONG, env={control.RUN_MARK: "run-2"}) for _ in range(2))
    wait_until(lambda: len(control.marked_processes("run-2")) == 2, "both run")

    assert control.kill_run("run-2", keep=[kept.pid]) == 1
    assert kept.poll() is None
    assert other.wait() == -signal.SIGKILL or other.returncode == 0  # somebody may have reaped it before us


def test_those_who_keep_forking_are_all_caught(start: Callable[..., "subprocess.Popen[str]"]) -> None:
    forker = (
        "import os, time\n"
        "end = time.monotonic() + 20\n"
        "while time.monotonic() < end:\n"
        "    if os.fork() == 0:\n"
        "        time.sleep(0.2)\n"
        "        os._exit(0)\n"
        "    try:\n"
        "        while os.waitpid(-1, os.WNOHANG)[0]: pass\n"
        "    except ChildProcessError: pass\n"
        "    time.sleep(0.004)\n"
    )
    leader = start(
        sys.executable, "-c", forker, env={**os.environ, control.PROCESS_MARK: "w-3"}, start_new_session=True
    )
    wait_until(lambda: len(control.belongings(leader.pid, "w-3")) > 5, "it forks")

    control.kill_tree(leader.pid, "w-3")

    leader.wait()
    assert control.belongings(leader.pid, "w-3") == []


def test_whoever_was_stopped_to_be_killed_is_killed_though_an_interrupt_comes(
    start: Callable[..., "subprocess.Popen[str]"],
) -> None:
    victim = start("sleep", LONG)
    found = iter([[psutil.Process(victim.pid)]])

    def find() -> list[psutil.Process]:
        for processes in found:
            return processes
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        control.kill_all(find, [])

    assert victim.wait(10.0) == -signal.SIGKILL


def test_a_check_while_stopped_decides_whether_it_goes_on(start: Callable[..., "subprocess.Popen[str]"]) -> None:
    process = start("sleep", LONG)
    seen = []

    def look() -> bool:
        wait_until(lambda: control.is_stopped(process.pid), "it is stopped")
        seen.append(True)
        return False

    assert not control.is_same_after_stop(process.pid, look)
    wait_until(lambda: not control.is_stopped(process.pid), "it goes on")
    assert control.is_same_after_stop(process.pid, lambda: True)
    wait_until(lambda: control.is_stopped(process.pid), "it stays stopped")
    assert seen == [True]


def test_a_process_does_not_move_while_it_is_looked_at(
    start: Callable[..., "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    """The stop must have taken effect before the look, or a PO that ends in between is charged."""
    counter = tmp_path / "counter"
    counter.write_bytes(b"\0" * 8)
    code = (
        "import mmap, struct, sys\n"
        "file = open(sys.argv[1], 'r+b')\n"
        "view = mmap.mmap(file.fileno(), 8)\n"
        "n = 0\n"
        "while True:\n"
        "    n += 1\n"
        "    struct.pack_into('Q', view, 0, n)\n"
    )
    process = start(sys.executable, "-c", code, str(counter))
    wait_until(lambda: counter.read_bytes() != b"\0" * 8, "it counts")
    looks: list[bytes] = []

    def look() -> bool:
        looks.append(counter.read_bytes())
        return True

    moved = 0
    for _ in range(200):
        control.is_same_after_stop(process.pid, look)
        wait_until(lambda: control.is_stopped(process.pid), "it is stopped")
        moved += counter.read_bytes() != looks[-1]
        os.kill(process.pid, signal.SIGCONT)

    assert moved == 0


@pytest.mark.parametrize("pid", [2**22 - 1])
def test_a_pid_of_nobody_is_no_error(pid: int) -> None:
    control.ask_for_stack(pid)
    control.terminate_tree(pid, "w-none")
    control.kill_tree(pid, "w-none")
    assert control.kill_belongings(pid, "w-none") == 0
    assert not control.is_stopped(pid)
    assert control.tree_rss_bytes(pid) == 0 and own_process.rss_bytes(pid) == 0


def test_killing_reaps_nobody_elses_child(start: Callable[..., "subprocess.Popen[str]"]) -> None:
    """A general wait would steal the exit code."""
    mine = start("sh", "-c", "exit 7")
    wait_until(lambda: is_over(mine.pid), "it has ended")
    orphan = start("sleep", LONG, env={control.RUN_MARK: "run-3"})
    wait_until(lambda: control.marked_processes("run-3"), "it runs")

    control.kill_run("run-3")

    assert mine.wait() == 7
    wait_until(lambda: is_over(orphan.pid), "it is dead")


# ── what is owned ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_owned_paths_are_removed_and_links_are_not_followed(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("x")
    link, folder, file = tmp_path / "link", tmp_path / "folder", tmp_path / "file"
    link.symlink_to(kept)
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "link").symlink_to(kept)
    file.write_text("x")

    paths = (link, folder, file, tmp_path / "none", tmp_path / "none" / "deeper")
    control.remove_owned([{"pid": None, "path": str(path)} for path in paths], time.time())

    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept"]
    assert (kept / "file").exists()


def test_an_owned_process_is_killed_but_not_an_older_one_with_its_pid(
    start: Callable[..., "subprocess.Popen[str]"],
) -> None:
    owned, innocent = start("sleep", LONG), start("sleep", LONG)

    control.remove_owned([{"pid": owned.pid}], time.time() - 5)
    control.remove_owned([{"pid": innocent.pid}, {"pid": os.getpid()}], time.time() + 60)

    assert owned.wait() == -signal.SIGKILL
    assert innocent.poll() is None


def test_an_owned_process_is_killed_but_not_a_younger_one_that_has_got_its_pid(
    start: Callable[..., "subprocess.Popen[str]"],
) -> None:
    owned, innocent = start("sleep", LONG), start("sleep", LONG)

    control.remove_owned([{"pid": owned.pid, "born": control.born(owned.pid)}], time.time() - 5)
    control.remove_owned([{"pid": innocent.pid, "born": control.born(innocent.pid) - 1}], time.time() - 5)

    assert owned.wait() == -signal.SIGKILL
    with pytest.raises(subprocess.TimeoutExpired):
        innocent.wait(0.3)


@pytest.mark.parametrize(
    "item", [{}, {"pid": "x"}, {"pid": 0}, {"pid": -1}, {"pid": 2**40}, {"path": ""}, {"path": "a\0b"}, {"path": 7}]
)
def test_odd_things_that_are_owned_are_passed_over(item: dict[str, Any], tmp_path: Path) -> None:
    """A processor may name what it likes; the supervisor must live through it."""
    after = tmp_path / "after"
    after.write_text("x")

    control.remove_owned([item, {"path": str(after)}], time.time() - 5)

    assert not after.exists()


# ── becoming a worker ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_process_that_dies_with_its_parent_does_so_in_a_c_loop(start: Callable[..., "subprocess.Popen[str]"]) -> None:
    code = (
        "import os, sys, time\n"
        "from poqueue.parent import die_with_parent\n"
        "parent = os.getpid()\n"
        "if os.fork() == 0:\n"
        "    die_with_parent()\n"
        "    print(os.getpid(), flush=True)\n"
        "    sum(range(10**11))\n"
        "time.sleep(300)\n"
    )
    parent = start(sys.executable, "-c", code, cwd=Path(__file__).parents[2])
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    try:
        parent.kill()
        wait_until(lambda: is_over(child), "the child is dead")
    finally:
        with contextlib.suppress(OSError):
            os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize(
    ("call", "is_late"),
    [
        ("parent.die_with_parent()", False),
        ("parent.die_with_parent(starter)", True),
        ("parent.die_when_closed(read_end)", True),
    ],
    ids=["its parent", "its parent, long ago", "the other end of its pipe"],
)
def test_what_ended_before_it_could_be_asked_for_is_seen(call: str, is_late: bool) -> None:
    """The kernel tells only of what ends after it was asked."""
    code = f"""
        import os, time
        from poqueue import parent
        starter, (read_end, write_end) = os.getpid(), os.pipe()
        if os.fork() == 0:
            prctl, is_late = parent.prctl, {is_late}
            def ask_late(*words):
                while os.getppid() == starter:
                    time.sleep(0.005)
                prctl(*words)
            parent.prctl = ask_late
            os.close(write_end)
            while is_late and os.getppid() == starter:
                time.sleep(0.005)
            {call}
            print("it lives on", flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=60)

    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_memory_of_a_tree_counts_its_children() -> None:
    with subprocess.Popen(["sleep", LONG]) as child:
        try:
            whole, own = control.tree_rss_bytes(os.getpid()), own_process.rss_bytes()
            assert own > 1_000_000
            assert whole > own
        finally:
            child.kill()


def test_the_kernels_count_of_kills_can_be_read() -> None:
    first = control.oom_kills()

    assert isinstance(first, int) and 0 <= first <= control.oom_kills()


def test_signals_are_held_only_in_the_thread_that_starts() -> None:
    masks: list[Any] = []
    with control.quiet_start():
        thread = threading.Thread(target=lambda: masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, [])))
    thread.start()
    thread.join()

    assert signal.SIGINT not in masks[0]


@pytest.mark.parametrize(
    ("name", "is_shadowed"),
    [
        ("pickle.py", True),
        ("hmac.py", True),
        ("typing.py", True),
        ("workers/__init__.py", True),
        ("orders.csv", False),
        ("json/x", False),
    ],
)
def test_the_fork_server_preloads_nothing_where_a_file_has_the_name_of_a_module(
    name: str, is_shadowed: bool, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.touch()

    assert control._is_shadowed(tmp_path) is is_shadowed
    assert not control._is_shadowed(Path(control.__file__).parents[1])


@contextlib.contextmanager
def late_tracker(monkeypatch: pytest.MonkeyPatch, cores: int) -> Iterator[int]:
    """A resource tracker that has not read yet what it was sent: the end at which it will."""
    reads, sends = os.pipe()
    monkeypatch.setattr(control.resource_tracker, "ensure_running", lambda: os.write(sends, b"PROBE"))
    monkeypatch.setattr(control.resource_tracker, "getfd", lambda: sends)
    monkeypatch.setattr(control, "usable_cores", lambda: cores)
    yield reads
    os.close(reads)
    os.close(sends)


def test_with_two_cores_the_helpers_have_them_until_the_tracker_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "HELPERS_START_S", 60.0)
    naps = list[float]()
    with late_tracker(monkeypatch, cores=2) as reads:

        def nap(seconds: float) -> None:
            naps.append(seconds)
            if len(naps) == 3:
                os.read(reads, 100)

        monkeypatch.setattr(control.time, "sleep", nap)
        control.leave_cores_to_helpers()

    assert len(naps) == 3


def test_a_tracker_that_never_reads_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    with late_tracker(monkeypatch, cores=1):
        begun = time.monotonic()
        control.leave_cores_to_helpers()

        assert control.HELPERS_START_S <= time.monotonic() - begun < 100 * control.HELPERS_START_S


def test_with_more_cores_nobody_waits_for_the_tracker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control.time, "sleep", None)
    with late_tracker(monkeypatch, cores=3):
        control.leave_cores_to_helpers()


def test_the_fork_server_imports_what_only_workers_need_after_its_first_fork(tmp_path: Path) -> None:
    """Which is that of the queue's process: it need not wait for that, and finds the rest.

    No collector looks at what is imported, neither there nor in those that are forked; it goes on for what comes later, also
    when these fork in turn.
    """
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
            import gc
            import os
            import multiprocessing
            import sys

            def tell(end):
                known = [name in sys.modules for name in ("poqueue.events", "workers.worker")]
                frozen = gc.get_freeze_count()
                if child := os.fork():
                    os.waitpid(child, 0)
                else:
                    os._exit(0)
                end.send([*known, frozen > 5000, gc.isenabled(), gc.get_freeze_count() == frozen])

            if __name__ == "__main__":
                from workers.process_control import start_forkserver

                start_forkserver()
                context = multiprocessing.get_context("forkserver")
                for _ in range(2):
                    ours, theirs = context.Pipe()
                    process = context.Process(target=tell, args=(theirs,))
                    process.start()
                    print(*ours.recv())
                    process.join()
        """)
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    done = subprocess.run(
        [sys.executable, script], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )

    assert done.stdout.splitlines() == ["True False True True True", "True True True True True"], done.stderr


# ── what a process says of itself ────────────────────────────────────────────────────────────────────────────────────


def test_the_most_that_a_process_held_is_not_what_its_parent_held() -> None:
    """ru_maxrss begins with that, also of a program that is started anew."""
    large = b"x" * 300_000_000
    look = "from workers.own_process import most_rss_bytes; print(most_rss_bytes())"

    told = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True, cwd=ROOT).stdout

    assert len(large) > 2 * int(told) > 10_000_000
    assert own_process.most_rss_bytes() > len(large)


def test_nothing_is_asked_of_a_process_that_would_die_of_it() -> None:
    program = "import signal, sys; print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdin is not None
        process.stdout.readline()

        assert control.ask_for_stack(process.pid) is False

        process.stdin.close()
        assert process.wait(20.0) == 0
