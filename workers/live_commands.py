"""Commands that act on a live run from another terminal, and the list of runs. Heavy imports are inside: see cli."""

import argparse
import json
import os
import shutil
import sys
import time
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poqueue.errors import ConfigError, InputError, ManagerLostError, PoqueueError
from poqueue.span import rate_text
from workers.quantities import MAX_JOBS, format_duration
from workers.run_dir import DEFAULT_PARENT
from workers.safe_text import quoted, safe_text
from workers.standard_output import put_out

if TYPE_CHECKING:
    from collections.abc import Callable

    from poqueue.client import QueueClient
    from poqueue.task import ProcessingTask

WATCH_S = 1.0


def add_live_commands(commands: Any) -> None:
    """Add their parsers."""
    for name, function, help in (
        ("status", _status, "show where a live run stands and what each worker does"),
        ("pause", _pause, "start no PO from now on; running ones go on"),
        ("resume", _resume, "start POs again after a pause"),
        ("drain", _drain, "start no PO any more, let the running ones end, and end the run"),
        ("stop", _stop, "as Ctrl-C: running POs may end within the grace time; a second stop stops them"),
        ("scale", _scale, "work with another number of workers"),
        ("cancel", _cancel, "end one PO as failed; if it runs, its worker is killed"),
    ):
        parser = commands.add_parser(name, help=help, description=function.__doc__)
        if name == "scale":
            parser.add_argument("jobs", metavar="N", type=int, help=f"number of workers, 1 to {MAX_JOBS}")
        if name == "cancel":
            parser.add_argument("po_number", metavar="PO", help="the PO's number")
        parser.add_argument(
            "run", metavar="RUN", nargs="?", help="run directory, or its name below runs/; the newest live one"
        )
        parser.add_argument("--json", action="store_true", help="print as JSON")
        if name == "status":
            parser.add_argument("--watch", action="store_true", help="again every second, until the run ends")
        parser.set_defaults(command_function=function)
    parser = commands.add_parser("runs", help="list run directories", description=_runs.__doc__)
    parser.add_argument(
        "--dir", metavar="DIR", type=Path, default=DEFAULT_PARENT, help="where they are (default: runs)"
    )
    parser.add_argument("--json", action="store_true", help="print as JSON")
    parser.set_defaults(command_function=_runs)


def _status(arguments: argparse.Namespace) -> int:
    """Counts, workers, what each does and for how long, and when it will be done."""
    from workers.run_control import ends

    run_dir, has_shown = _run_of(arguments), False
    while True:
        try:
            status = _ask(run_dir, lambda queue: _look(run_dir, queue))
        except PoqueueError:
            if not has_shown:
                raise
            if ends(run_dir):
                print(f"{run_dir} has ended", file=sys.stderr)
                return 0
            print(f"{run_dir} does not answer", file=sys.stderr)
            continue
        text = json.dumps(status) if arguments.json else _status_text(status)
        if arguments.watch and sys.stdout.isatty():
            text = "\033[H\033[2J" + (text if arguments.json else _fitted(text, *shutil.get_terminal_size()))
        put_out(text)
        if not arguments.watch:
            return 0
        has_shown = True
        time.sleep(WATCH_S)


def _look(run_dir: Path, queue: "QueueClient") -> dict[str, Any]:
    """The queue's counts, and what the supervisor has left to be seen, which may be older."""
    from workers.run_record import read_run_record

    status, view = queue.get_queue_status(), queue.get_view()
    pos = read_run_record(run_dir).counted.get("pos")
    if view is not None and pos is not None:
        known = status["total_tasks"] - status["cleared_tasks"]
        view = {**view, "to_add": max(0, min(view.get("to_add", 0), pos - known))}
    return {**status, "run": str(run_dir), "view": view}


def _status_text(status: dict[str, Any]) -> str:
    from tabulate import tabulate

    view = status["view"] or {"workers": (), "elapsed_s": 0.0, "jobs": 0, "phase": "starting", "note": ""}
    to_add = view.get("to_add", 0)
    total = status["total_tasks"] - status["cleared_tasks"] + to_add
    done = status["completed_tasks"] + status["failed_tasks"]
    left = None if to_add else status["estimated_completion"]
    eta = "not known yet" if left is None else f"{format_duration(round(left))} to go"
    lines = [
        f"{status['run']}: {view['phase']}",
        f"{done} of {total} POs: {status['completed_tasks']} succeeded, {status['failed_tasks']} failed, "
        f"{status['processing_tasks']} running, {status['retry_tasks']} retrying, {status['pending_tasks'] + to_add} waiting",
        f"{rate_text(status['throughput'])}, {eta}, running for {format_duration(round(view['elapsed_s']))}",
    ]
    lines += [safe_text(text) for text in dict.fromkeys((view["note"], status["reason"])) if text]
    rows = [
        (
            worker["worker_id"],
            worker["state"],
            safe_text(worker["po_number"]),
            worker["attempt"] or "",
            f"{max(0.0, worker['elapsed_s']):.1f} of {worker['timeout_s']:g} s" if worker["po_number"] else "",
            f"{worker['rss_bytes'] / 2**20:.0f}M",
        )
        for worker in view["workers"]
    ]
    headers = ("worker", "state", "PO", "attempt", "for", "memory")
    return "\n".join([*lines, "", tabulate(rows, headers=headers, tablefmt="simple", disable_numparse=True)])


def _fitted(text: str, columns: int, rows: int) -> str:
    """As many lines as such a terminal shows at once: the counts come first, the workers may not all have a place."""
    lines = text.split("\n")
    ends = list(accumulate(len(line) // columns + 1 for line in lines))  # a long line is wrapped
    if ends[-1] < rows:
        return text
    return "\n".join([*lines[: bisect_right(ends, rows - 2)], "…"])


def _pause(arguments: argparse.Namespace) -> int:
    """Start no PO from now on; running ones go on. A paused run stays paused when it is resumed after a crash."""
    return _tell(arguments, lambda queue: queue.pause_queue(), "paused: no PO starts; running ones go on")


def _resume(arguments: argparse.Namespace) -> int:
    """Start POs again after a pause."""
    return _tell(arguments, lambda queue: queue.resume_queue(), "resumed")


def _drain(arguments: argparse.Namespace) -> int:
    """Start no PO any more, let the running ones end, and end the run, which can be resumed."""
    return _order(arguments, "drain", said="draining: running POs may end")


def _stop(arguments: argparse.Namespace) -> int:
    """As Ctrl-C: running POs may end within the grace time; a second stop gives them back, a third kills at once."""
    return _order(arguments, "stop", said="stopping")


def _scale(arguments: argparse.Namespace) -> int:
    """Work with another number of workers; a worker that is one too many ends after its PO."""
    jobs = arguments.jobs
    if not 1 <= jobs <= MAX_JOBS:
        raise ConfigError(f"N must be a whole number from 1 to {MAX_JOBS}, got {jobs}; to stop for a while, use pause")
    return _order(arguments, "scale", jobs, said=f"{jobs} workers from now on")


def _cancel(arguments: argparse.Namespace) -> int:
    """End one PO as failed ("Cancelled"); if it runs, its worker is killed. `poqueue retry` runs it again."""

    def find_and_cancel(queue: "QueueClient") -> "tuple[ProcessingTask, str]":
        task = queue.find_task(po_number=arguments.po_number)
        if task is None:
            raise ConfigError(f"the run has no PO {safe_text(arguments.po_number, 80)}")
        return task, queue.cancel_task(task.task_id)

    task, outcome = _ask(_run_of(arguments), find_and_cancel)
    said = {
        "cancelled": "cancelled",
        "stopping": "it runs: its worker is being killed",
        "finished": f"it has ended already: {task.status.value}",
    }[outcome]
    put_out(json.dumps({"po_number": task.po_number, "outcome": outcome}) if arguments.json else said)
    return 0 if outcome != "finished" else 1


def _run_of(arguments: argparse.Namespace) -> Path:
    """The run that is meant."""
    from workers.run_record import find_run

    return find_run(arguments.run, must_be_live=arguments.run is None)


def _ask(run_dir: Path, call: "Callable[[QueueClient], Any]", *, may_repeat: bool = True) -> Any:
    """What the queue of a live run answers; if its manager is lost meanwhile, the next one's."""
    from workers.run_control import ends, not_running, reach

    try:
        return call(reach(run_dir))
    except InputError:
        raise
    except PoqueueError as error:
        if ends(run_dir):  # that is all that the error comes of
            raise not_running(run_dir) from None
        if not isinstance(error, ManagerLostError):
            raise
    if not may_repeat:
        raise ConfigError(f"{run_dir} has lost its manager just now and may not have heard this; see what status says")
    return call(reach(run_dir))


def _order(arguments: argparse.Namespace, word: str, value: Any = None, *, said: str) -> int:
    from workers.run_control import order

    is_step = word == "stop"  # the second one says more than the first
    return _tell(arguments, lambda queue: queue.post_notice(order(word, value)), said, may_repeat=not is_step)


def _tell(
    arguments: argparse.Namespace, what: "Callable[[QueueClient], None]", said: str, *, may_repeat: bool = True
) -> int:
    run_dir = _run_of(arguments)
    _ask(run_dir, what, may_repeat=may_repeat)
    put_out(json.dumps({"run": str(run_dir), "said": said}) if arguments.json else f"{run_dir.name}: {said}")
    return 0


def _runs(arguments: argparse.Namespace) -> int:
    """List run directories, oldest first: state, what became of the rows, and the order file."""
    from workers.run_record import describe_run, list_run_dirs

    if arguments.dir != DEFAULT_PARENT and not os.path.isdir(arguments.dir):
        raise ConfigError(f"--dir must be a directory that exists, got {quoted(str(arguments.dir))}")
    lines = []
    for run_dir in list_run_dirs(arguments.dir):
        try:
            lines.append(describe_run(run_dir))
        except ConfigError as error:
            lines.append({"run": run_dir.name, "state": f"unreadable: {error}"})
    if arguments.json:
        put_out(json.dumps(lines))
        return 0
    from tabulate import tabulate

    columns = ("run", "state", "begun_at", "rows", "succeeded", "failed", "not_run", "orders")
    rows = [[safe_text(str(line.get(column, ""))) for column in columns] for line in lines]
    headers = [column.replace("_", " ") for column in columns]
    put_out(tabulate(rows, headers=headers, tablefmt="simple", disable_numparse=True))
    return 0
