"""What the start and the end of workers take, by start method: `python -m tests.benchmarks.starts`.

The figures behind poqueue.simulation.TYPICAL_BY_START. Each start is that of a fresh program, as a forkserver that is there
already costs nothing more; of several the shortest counts, as whatever else the machine does only makes them longer.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

METHODS = ("spawn", "forkserver", "fork")
JOBS = (1, 8)
ROUNDS = 3
ROOT = Path(__file__).resolve().parents[2]


def start(method: str, jobs: int) -> dict[str, float]:
    """Start workers with the ready processor, wait until all work, and end them; seconds."""
    from poqueue.simulation import TYPICAL_BY_START, ahead_of
    from workers.measuring import measured_spec, read_measures
    from workers.own_process import usable_cores
    from workers.processing import ProcessorSpec
    from workers.supervisor import Supervisor

    with tempfile.TemporaryDirectory(prefix="poqueue-bench-") as name:
        folder = Path(name)
        (folder / "measures").mkdir()
        spec = measured_spec(ProcessorSpec("workers.processors.dossier:process"), folder / "measures")
        journal = folder / "journal.sqlite"
        supervisor = Supervisor(spec, jobs=jobs, start_method=method, work_dir=folder / "work", journal=journal)
        moments = [time.monotonic()]
        supervisor.start_queue(prepares_workers=True)
        moments.append(time.monotonic())
        supervisor.start_workers()
        moments.append(time.monotonic())
        while len(boots := list(read_measures(folder / "measures"))) < jobs:
            time.sleep(0.01)
        moments.append(time.monotonic())
        supervisor.run()
        supervisor.close()
        moments.append(time.monotonic())
    ahead = ahead_of(jobs, usable_cores(), leaves_core=TYPICAL_BY_START[method].leaves_core)
    return {
        "start_s": moments[1] - moments[0],
        "spawn_s": (moments[2] - moments[1]) / max(1, jobs - ahead),
        "boot_s": statistics.median(boot.gap_s for boot in boots),
        "boot_cpu_s": statistics.median(boot.gap_cpu_s for boot in boots),
        "all_end_s": moments[4] - moments[3],
    }


def measured(method: str) -> dict[str, Any]:
    """The shortest of several, and by the difference between few and many workers what each takes at the end."""
    few, many = ({key: min(one[key] for one in runs) for key in runs[0]} for runs in (_runs(method, n) for n in JOBS))
    leave_s = (many["all_end_s"] - few["all_end_s"]) / (JOBS[1] - JOBS[0])
    return {
        "start method": method, **{key: f"{few[key]:.3f}" for key in ("start_s", "boot_s", "boot_cpu_s")},
        "spawn_s": f"{many['spawn_s']:.3f}",
        "end_s": f"{few['all_end_s'] - leave_s:.3f}", "leave_s": f"{leave_s:.3f}",
    }  # fmt: skip


def _runs(method: str, jobs: int) -> list[dict[str, float]]:
    words = [sys.executable, "-m", "tests.benchmarks.starts", method, str(jobs)]
    return [
        json.loads(subprocess.run(words, check=True, cwd=ROOT, stdout=subprocess.PIPE).stdout) for _ in range(ROUNDS)
    ]


def main() -> int:
    from tabulate import tabulate

    if len(sys.argv) == 3:
        print(json.dumps(start(sys.argv[1], int(sys.argv[2]))))
        return 0
    print(tabulate([measured(method) for method in METHODS], headers="keys", tablefmt="simple", disable_numparse=True))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
