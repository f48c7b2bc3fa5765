"""A processor round a processor: runs the user's own, and writes down what each attempt took.

It runs in the workers of a sample (workers/sample.py). Its lines go into a file of the worker's own, not into results:
an attempt that raises, or whose worker is told to end, has none.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from poqueue.task import TaskResult
from workers.clock import monotonic
from workers.own_process import cpu_seconds, most_rss_bytes, queued_seconds
from workers.processing import GiveUp, Processor, ProcessorSpec, RetryLater, WorkerContext, asked_s, load_target

TARGET = "workers.measuring:Measuring"
TARGET_OPTION, APP_DIR_OPTION, FOLDER_OPTION = "tune.processor", "tune.app_dir", "tune.folder"
WARM_UP_OPTION = "tune.warm_up"
WARM_UP_S = 1.5


@dataclass(frozen=True, slots=True)
class Measure:
    """What one attempt took in its worker; `attempt` 0 is the worker's setup.

    Attributes:
        begun, ended: monotonic seconds.
        cpu_s: computing, of the worker and the children that it has waited for.
        queued_s: ready to compute, but without a core.
        gap_s, gap_cpu_s: time and computing since its worker's attempt before, 0 if there was none; of a setup what the
            worker's imports took, with a core at hand.
        max_rss_bytes: the most that the worker or one child of it has held so far.
        is_final: it failed, and no further attempt could help.
        retry_after_s: the delay it asked for.
    """

    task_id: str
    attempt: int
    pid: int
    begun: float
    ended: float
    cpu_s: float
    queued_s: float = 0.0
    gap_s: float = 0.0
    gap_cpu_s: float = 0.0
    max_rss_bytes: int = 0
    is_final: bool = False
    retry_after_s: float | None = None


def measured_spec(spec: ProcessorSpec, folder: Path, *, warms_up: bool = False) -> ProcessorSpec:
    """The processor that measures this one into files in `folder`.

    Args:
        warms_up: the first workers keep their cores busy for a while before their first PO: those that were idle compute
            slower at first, on some machines by a third, and a batch is longer than a sample.
    """
    ours: dict[str, Any] = {TARGET_OPTION: spec.target, FOLDER_OPTION: str(folder)}
    if spec.app_dir is not None:
        ours[APP_DIR_OPTION] = spec.app_dir
    if warms_up:
        ours[WARM_UP_OPTION] = WARM_UP_S
    return ProcessorSpec(TARGET, {**spec.options, **ours}, spec.app_dir)


def read_measures(folder: Path) -> Iterator[Measure]:
    """What the workers have written so far; a line that a kill cut short is left out."""
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_bytes().splitlines():
            with contextlib.suppress(ValueError, TypeError):
                yield Measure(**json.loads(line))


def alone_seconds(taken_s: float, cpu_s: float, queued_s: float) -> float:
    """How long what took `taken_s` takes with a core at hand whenever it wants one.

    The simulation lets those that compute wait for a core; the wait of one that wakes up from waiting is its own.
    """
    undisturbed_s = max(taken_s - queued_s, 1e-9)
    share = min(1.0, cpu_s / undisturbed_s)
    return max(cpu_s if cpu_s < taken_s else 0.0, taken_s - share * queued_s)


class Measuring:
    """Processor class of the sample's workers."""

    def setup(self, context: WorkerContext) -> None:
        """Import and set up the processor itself."""
        options = context.options
        spec = ProcessorSpec(options.pop(TARGET_OPTION), options, options.pop(APP_DIR_OPTION, None))
        folder = Path(options.pop(FOLDER_OPTION))
        warm_up_s = float(options.pop(WARM_UP_OPTION, 0.0))
        self._pid = os.getpid()
        self._file = open(folder / f"{self._pid}.jsonl", "ab", buffering=0)  # noqa: SIM115  (for the worker's life)
        imports_s = cpu_seconds() + self._load(spec)
        begun, cpu_s, queued_s = monotonic(), cpu_seconds(), queued_seconds()
        self._processor.setup(context)
        self._write(
            Measure(
                "", 0, self._pid, begun, monotonic(), cpu_seconds() - cpu_s, queued_seconds() - queued_s, imports_s, cpu_s,
                most_rss_bytes(),
            )
        )  # fmt: skip
        _warm_up(folder / "warm", warm_up_s)
        self._left: tuple[float, float] | None = None  # when, and with how much computing, the attempt before was over

    def process(self, po: dict[str, Any], context: WorkerContext) -> Any:
        """One attempt, measured however it ends."""
        begun, cpu_s, queued_s = monotonic(), cpu_seconds(), queued_seconds()
        left, left_cpu_s = self._left or (begun, cpu_s)
        is_final, retry_after_s = False, None
        try:
            value = self._processor.process(po, context)
            is_final = isinstance(value, TaskResult) and not value.success
            return value
        except GiveUp:
            is_final = True
            raise
        except RetryLater as error:
            retry_after_s = asked_s(error)
            raise
        finally:
            if os.getpid() == self._pid:  # not in a copy that the processor has forked
                ended, ended_cpu_s = monotonic(), cpu_seconds()
                self._write(
                    Measure(
                        context.task_id, context.attempt, self._pid, begun, ended, ended_cpu_s - cpu_s,
                        queued_seconds() - queued_s, begun - left, cpu_s - left_cpu_s, most_rss_bytes(), is_final, retry_after_s,
                    )
                )  # fmt: skip
                self._left = (monotonic(), cpu_seconds())

    def _load(self, spec: ProcessorSpec) -> float:
        """Import the processor; returns how long that takes with a core at hand, seconds."""
        begun, queued_s = monotonic(), queued_seconds()
        self._processor = Processor(load_target(spec))
        return monotonic() - begun - (queued_seconds() - queued_s)

    def teardown(self) -> None:
        """Close the processor's session."""
        self._processor.teardown()
        self._file.close()

    def _write(self, measure: Measure) -> None:
        self._file.write(json.dumps(asdict(measure)).encode() + b"\n")


def _warm_up(mark: Path, seconds: float) -> None:
    """Compute for a while, if no worker has done so yet."""
    deadline = monotonic() + (0.0 if mark.exists() else seconds)
    while monotonic() < deadline:
        pass
    mark.touch()
