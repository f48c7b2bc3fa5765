"""Everything at random, for as long as you like: python -m tests.faults.soak --minutes 10 --seed 1

One long-lived supervisor (a process of its own that is never killed) sees its workers and managers die; beside it, batch
after batch on the command line is killed, stopped, starved of disk and resumed. At the end, the histories must be clean, the
long-lived one no larger than it was, and nothing left behind. Exit code 1, with what was violated, otherwise.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from poqueue.journal import JOURNAL_NAME
from tests.faults.batches import Batch
from tests.integration.console import MARK, ROOT, Running, pids_with, running, state, wait_until

POS = 5000
SECONDS = 0.004
EXIT_OK = (0, 1)
NOTHING_TO_DO = 5
NO_ROOM = (
    2,
    70,
)  # the journal could not be opened, or the results not be written; the same run, resumed, has to succeed
STOPPED_S = (0.2, 3.0)
MORE_FDS, MORE_BYTES = 5, 30_000_000
WORDS = ("--retries", "3", "--retry-delay", "0.05", "--timeout", "20", "--grace", "0.3", "--diskfree", "0")

LONG_LIVED = """
import json, os, sys
from pathlib import Path
from poqueue.task import ProcessingTask
from workers import ProcessorSpec, Supervisor
folder, stop = Path(sys.argv[1]), Path(sys.argv[2])
number = 0

def add(count):
    global number
    supervisor.add_tasks([ProcessingTask(f"t{n}", {"po_number": f"L{n}"}) for n in range(number, number + count)])
    number += count

def on_show(snapshot):
    if snapshot.pending + snapshot.retrying < 1500 and not stop.exists():
        add(500)
        figures = [number, len(os.listdir("/proc/self/fd")), int(open("/proc/self/statm").read().split()[1]) * 4096]
        with open(folder / "figures", "a") as file:
            print(json.dumps(figures), file=file)

if __name__ == "__main__":
    spec = ProcessorSpec("tests.faults.witness:process", {"history": str(folder / "history"), "seconds": "0.004"})
    with Supervisor(spec, jobs=2, journal=folder / "journal.sqlite", control_dir=folder, max_retries=3, retry_delay=0.05,
                    work_dir=folder / "work.1", retention_s=5.0, on_show=on_show) as supervisor:
        add(2000)
        supervisor.run()
    (folder / "total").write_text(str(number))
"""


class Soak:
    """One soak: its chances, its folder, and what was violated so far."""

    def __init__(self, seed: int, minutes: float) -> None:
        self.chance = random.Random(seed)
        self.end = time.monotonic() + 60 * minutes
        self.begun = time.monotonic()
        self.folder = Path(tempfile.mkdtemp(prefix="poqueue-soak-"))
        self.temporary = self.folder / "tmp"
        self.temporary.mkdir()
        self.violations: list[str] = []
        self.events = self.batches = self.executions = 0
        self.was_full = False  # the disk of the current run

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.begun:7.1f} s  {text}", flush=True)

    def is_over(self) -> bool:
        return time.monotonic() >= self.end

    def run(self) -> int:
        """Soak; the exit code."""
        environ = {"TMPDIR": str(self.temporary)}
        os.environ.update(environ)
        tempfile.tempdir = str(self.temporary)
        shared_before = set(os.listdir("/dev/shm"))
        script, stop = self.folder / "long_lived.py", self.folder / "stop"
        script.write_text(LONG_LIVED)
        long_folder = self.folder / "long"
        long_folder.mkdir(mode=0o700)
        with running([sys.executable, str(script), str(long_folder), str(stop)], cwd=ROOT) as long_lived:
            while not self.is_over():
                self.batches += 1
                with self.checked(f"batch {self.batches}"):
                    self.one_batch(long_lived)
            stop.touch()
            with self.checked("the long-lived supervisor"):
                ended = long_lived.wait(120.0)
                if ended.code:
                    raise AssertionError(f"exit code {ended.code}\n{ended.err[-3000:]}")
                self.check_long_lived(long_folder)
        left = sorted(path.name for path in self.temporary.iterdir())
        if left:
            self.violations.append(f"temporary files: {left}")
        if more := set(os.listdir("/dev/shm")) - shared_before:
            self.say(f"note: new in /dev/shm (perhaps of others): {sorted(more)}")
        self.say(
            f"{self.batches} batches of {POS} POs, {self.executions} executions, {self.events} events, "
            f"{len(self.violations)} violations"
        )
        for violation in self.violations:
            print(violation)
        if not self.violations:
            shutil.rmtree(self.folder, ignore_errors=True)
        return 1 if self.violations else 0

    @contextlib.contextmanager
    def checked(self, what: str):  # type: ignore[no-untyped-def]
        try:
            yield
        except AssertionError as error:
            self.say(f"VIOLATED: {what}: {error}")
            self.violations.append(f"{what}: {error}")

    # --- a batch

    def one_batch(self, long_lived: Running) -> None:
        kinds = {11: "fail_once", 501: "die_once", 997: "fail"}
        rows = [f"P{n},{next((kind for every, kind in kinds.items() if n % every == 1), '')}" for n in range(POS)]
        start_method = self.chance.choice(("spawn", "spawn", "fork"))
        folder = self.folder / f"batch{self.batches}"
        batch = Batch(folder, *rows, seconds=SECONDS, words=(*WORDS, "--start-method", start_method))
        is_mounted = self.mount(batch)
        self.say(f"batch {self.batches} ({start_method})")
        runs: list[Running] = []
        with contextlib.ExitStack() as stack:
            while True:
                if not (
                    batch.run_dir / JOURNAL_NAME
                ).exists():  # begun anew, in a folder that nobody writes to any more
                    wait_until(lambda: not any(pids_with(MARK, run.mark) for run in runs), "what was killed is gone")
                run = stack.enter_context(batch.resume())
                runs.append(run)
                self.was_full = False
                if self.trouble(batch, run, is_mounted, long_lived):
                    continue
                code = run.process.returncode
                if code in NO_ROOM and self.was_full:
                    self.say(f"    it ended with exit code {code}, and is resumed")
                    continue
                if code not in EXIT_OK and not (code == NOTHING_TO_DO and len(runs) > 1):  # killed after its last word
                    raise AssertionError(f"exit code {code}\n{run.wait().err[-3000:]}")
                break
            for run in runs:
                run.wait()
            batch.check()
            self.executions += len(batch.begun())
        self.unmount(batch, is_mounted)
        shutil.rmtree(folder, ignore_errors=True)

    def trouble(self, batch: Batch, run: Running, is_mounted: bool, long_lived: Running) -> bool:
        """Do things to it until it ends by itself, or was killed: True then."""
        while not self.ends_within(run, self.chance.uniform(0.1, 2.5)):
            if self.is_over() and self.chance.random() < 0.5:
                run.process.wait(300)
                return False
            self.events += 1
            faults: list[tuple[str, Callable[[], bool]]] = [
                ("kill the group", lambda: self.kill_group(batch, run)),
                ("kill everything", lambda: self.kill_everything(batch, run)),
                ("kill the supervisor", lambda: self.kill_supervisor(batch, run)),
                ("kill the manager", lambda: self.kill(self.manager(batch))),
                ("kill a worker", lambda: self.kill(self.worker(batch))),
                ("kill a worker", lambda: self.kill(self.worker(batch))),
                ("stop and continue a worker", lambda: self.stop_a_while(self.worker(batch))),
                ("stop and continue the manager", lambda: self.stop_a_while(self.manager(batch))),
                ("stop and continue the supervisor", lambda: self.stop_a_while(run.pid)),
                ("kill a process of the long-lived run", lambda: self.kill_one_of(long_lived)),
            ]
            if is_mounted:
                faults.append(("fill the disk", lambda: self.fill_disk(batch, run)))
            name, do = self.chance.choice(faults)
            self.say(f"  {name}")
            if do():
                return True
        return False

    @staticmethod
    def ends_within(run: Running, seconds: float) -> bool:
        try:
            run.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def manager(self, batch: Batch) -> int:
        with contextlib.suppress(OSError, ValueError, AssertionError, KeyError):
            if (batch.run_dir / "control.json").exists():
                return batch.manager_pid()
        return 0

    def worker(self, batch: Batch) -> int:
        pids = [pid for pid in {line.pid for line in batch.lines()[-40:]} if state(pid) not in ("", "Z")]
        return self.chance.choice(sorted(pids)) if pids else 0

    @staticmethod
    def kill(pid: int) -> bool:
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return False

    def kill_one_of(self, long_lived: Running) -> bool:
        """One of its workers or managers; not itself, nor multiprocessing's helpers."""
        found = []
        for pid in pids_with(MARK, long_lived.mark):
            with contextlib.suppress(psutil.Error):
                words = " ".join(psutil.Process(pid).cmdline())
                if pid != long_lived.pid and "resource_tracker" not in words:
                    found.append(pid)
        now = time.monotonic()
        recent = [at for at in getattr(self, "_killed_there", []) if now - at < 60]
        self._killed_there = [*recent, now]
        return self.kill(self.chance.choice(sorted(found))) if found and len(recent) < 4 else False

    @staticmethod
    def kill_group(batch: Batch, run: Running) -> bool:
        batch.kill_group(run)
        return True

    @staticmethod
    def kill_everything(batch: Batch, run: Running) -> bool:
        batch.kill_everything(run)
        return True

    @staticmethod
    def kill_supervisor(batch: Batch, run: Running) -> bool:
        batch.kills += 1
        run.send(signal.SIGKILL)
        run.process.wait()
        return True

    def stop_a_while(self, pid: int) -> bool:
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                time.sleep(self.chance.uniform(*STOPPED_S))  # what is tried here is that time passes
                os.kill(pid, signal.SIGCONT)
        return False

    # --- a small disk

    def mount(self, batch: Batch) -> bool:
        batch.run_dir.mkdir(mode=0o700)
        words = ["mount", "-t", "tmpfs", "-o", "size=24m,mode=0700", "tmpfs", str(batch.run_dir)]
        is_mounted = os.getuid() == 0 and subprocess.run(words, capture_output=True, check=False).returncode == 0
        if not is_mounted:
            batch.run_dir.rmdir()
            self.say("no small disk can be mounted here: it is never full")
        batch.keeps_dir = is_mounted
        return is_mounted

    @staticmethod
    def unmount(batch: Batch, is_mounted: bool) -> None:
        if is_mounted:
            subprocess.run(["umount", "-l", str(batch.run_dir)], check=True)

    def fill_disk(self, batch: Batch, run: Running) -> bool:
        ballast = batch.run_dir / "ballast"
        with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
            for size in (65536, 512, 1):
                with contextlib.suppress(OSError):
                    while file.write(bytes(size)):
                        pass
        self.was_full = True
        self.ends_within(run, self.chance.uniform(0.5, 2.0))
        ballast.unlink(missing_ok=True)
        return False

    # --- the long-lived one

    def check_long_lived(self, folder: Path) -> None:
        import json

        from tests.faults.history import check, read_facts, read_lines

        total = int((folder / "total").read_text())
        lines, facts = read_lines(folder / "history"), read_facts(folder / "journal.sqlite")
        found = check([f"L{n}" for n in range(total)], lines, list(facts.ends.items()), facts)
        assert not found, "\n".join(map(str, found[:20]))
        figures = [json.loads(line) for line in (folder / "figures").read_text().splitlines()]
        early, late = figures[min(2, len(figures) - 1)], figures[-1]
        self.say(
            f"long-lived supervisor: {total} POs, descriptors {early[1]} -> {late[1]}, "
            f"memory {early[2] / 1e6:.1f} -> {late[2] / 1e6:.1f} MB"
        )
        self.executions += len(lines)
        assert late[1] <= early[1] + MORE_FDS, f"descriptors: {early[1]} -> {late[1]}"
        assert late[2] <= early[2] + MORE_BYTES, f"memory: {early[2]} -> {late[2]} bytes"


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}, {arguments.minutes:g} minutes")
    return Soak(arguments.seed, arguments.minutes).run()


if __name__ == "__main__":
    sys.exit(main())
