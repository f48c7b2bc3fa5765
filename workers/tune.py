"""`poqueue tune`: what to set for these orders, from a sample of them, from a run, or from two numbers.

    ORDERS ──► a sample is run (sample.py) ────────────┐
    RUN ─────► its attempts are read (past_run.py) ────┴─► Measurement ──► Recommendation ──► tables, JSON, a configuration file
    --tasks, --duration ──► optimize_for_workload

What a sample writes is removed; what its POs have done elsewhere stays done.
"""

import argparse
import json
import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, NoReturn

from poqueue.errors import ConfigError, OrdersError
from poqueue.simulation import TYPICAL_COSTS, Costs
from poqueue.span import span_text
from poqueue.tuning import look_at_machine
from workers.advice import predict_batch, recommend, rules_of
from workers.advice_report import NOT_FOR_TUNE, NOT_WRITTEN, as_json, as_text, as_typed, as_yaml, plain_table
from workers.measurement import Measurement, measured_from_history
from workers.own_process import usable_cores
from workers.past_run import PastRun, read_past_run
from workers.processing import ProcessorSpec
from workers.progress import Progress, make_progress
from workers.quantities import MAX_DURATION_S, parse_duration, parse_jobs
from workers.resolved import Resolved, load_settings, render_config
from workers.resume import check_processor_named
from workers.run_dir import typed
from workers.run_record import read_run_record
from workers.safe_text import safe_text
from workers.sample import SampleInterruptedError, choose, measure_start, run_sample
from workers.settings import SETTINGS, RunSettings, given_settings
from workers.standard_output import put_out
from workers.whole_file import check_output

DEFAULT_SAMPLE, DEFAULT_SEED = 20, 1
SET_FOR_TWO_NUMBERS = {  # what counts beside them, by the advice's names
    "worker_count": "jobs", "task_timeout": "task_timeout", "max_retries": "max_retries", "retry_delay": "retry_delay",
    "start_method": "start_method",
}  # fmt: skip


def tune(arguments: argparse.Namespace) -> int:
    """The command; returns the exit code.

    Raises:
        ConfigError, OrdersError, ProcessorError: nothing ran; the text says what to do.
    """
    _refuse_what_does_nothing(arguments)
    if arguments.source is None:
        return _tune_workload(arguments)
    what_if = parse_what_if(arguments.what_if) if arguments.what_if else []
    if arguments.write is not None:
        check_new_file(arguments.write)
    source = Path(arguments.source)
    is_run = os.path.isdir(source)  # no error, however long the name is
    if is_run:
        measurement, priorities, resolved = _measure_run(source, arguments)
    else:
        measurement, priorities, resolved = _measure_sample(source, arguments)
    machine = look_at_machine()
    recommendation = recommend(measurement, priorities, resolved.settings, machine, what_if)
    if arguments.json:
        told = json.dumps(as_json(measurement, recommendation, len(priorities)), ensure_ascii=False, allow_nan=False)
    else:
        told = as_text(measurement, recommendation, len(priorities))
    try:
        put_out(told)
    finally:  # the file is asked for, whoever reads the rest
        if arguments.write is not None:
            limit = resolved.settings.limit  # not in the file, which is for all the orders too
            words = ["--config", typed(arguments.write), *(["--limit", str(limit)] if limit is not None else [])]
            command = _run_command(source, *words) if not is_run else None
            text = as_yaml(measurement, recommendation, resolved, len(priorities), command)
            _write_new(arguments.write, text)
            _say(f"written: {arguments.write}" + (f"; take it with: {command}" if command else ""))
    return 0


def _run_command(orders: Path, *more: str) -> str:
    """As it can be typed."""
    return shlex.join(["poqueue", "run", typed(orders), *more])


def _refuse_what_does_nothing(arguments: argparse.Namespace) -> None:
    given = vars(arguments)
    is_order_file = arguments.source is not None and not os.path.isdir(arguments.source)
    for key in ("sample", "seed"):
        if given[key] is not None and not is_order_file:
            raise ConfigError(f"--{key} is for a sample of an order file: leave it out, or name the file")
    if arguments.source is not None and (arguments.tasks is not None or arguments.duration is not None):
        raise ConfigError("--tasks and --duration stand for an order file or a run that is not there: leave them out")
    if arguments.source is None:
        for key, flag in (("what_if", "--what-if"), ("write", "--write")):
            if given[key] is not None:
                raise ConfigError(f"{flag} needs something that was measured: name an order file or a run directory")
        for key in given_settings(arguments).keys() - {*SET_FOR_TWO_NUMBERS.values(), *NOT_FOR_TUNE}:
            raise ConfigError(f"{SETTINGS[key].flags[-1]} does nothing without an order file or a run: leave it out")
    for key in NOT_FOR_TUNE:
        if key in given:
            raise ConfigError(f"{SETTINGS[key].flags[-1]} has no meaning for tune: it makes no run directory")


# ---------------------------------------------------------------------- two numbers


def _tune_workload(arguments: argparse.Namespace) -> int:
    """Advice as optimize_for_workload gives it."""
    from poqueue import TaskQueue

    if arguments.tasks is None or arguments.duration is None:
        raise ConfigError("name an order file, a run directory, or --tasks N and --duration D")
    resolved = _resolve(given_settings(arguments), arguments)
    settings = resolved.settings
    shown = {key: value for key, value, _ in render_config(resolved)}
    now = {name: shown[key] for name, key in SET_FOR_TWO_NUMBERS.items()}
    queue = TaskQueue(
        settings.max_retries,
        settings.retry_delay,
        settings.task_timeout.seconds,
        max_retry_delay=settings.max_retry_delay,
    )
    try:
        duration_s = parse_duration(arguments.duration, "--duration")
        advice = queue.optimize_for_workload(arguments.tasks, duration_s, settings.jobs)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if advice["task_timeout"] > MAX_DURATION_S:
        advice["task_timeout"] = MAX_DURATION_S
        advice["reasons"]["task_timeout"] += f"; a run takes {as_typed('task_timeout', MAX_DURATION_S)} at most"
    if arguments.json:
        put_out(json.dumps({**advice, "now": now}))
        return 0
    reasons = advice.pop("reasons")
    rows = [(key, now.get(key, ""), _value_text(key, value), reasons.get(key, "")) for key, value in advice.items()]
    put_out(plain_table(rows, ("setting", "now", "advice", "why"), [None, None, 28, 66]))
    return 0


def _value_text(key: str, value: Any) -> str:
    if key in SET_FOR_TWO_NUMBERS:
        return as_typed(SET_FOR_TWO_NUMBERS[key], value)
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_value_text(name, item)}" for name, item in value.items())
    if isinstance(value, list):
        return " to ".join(_value_text(key, item) for item in value)
    if isinstance(value, float):
        return f"{value:.1%}" if key.endswith("_share") else span_text(value)
    return f"{value // 1_000_000} MB" if key.endswith("_bytes") else str(value)  # as the reasons have it


# ---------------------------------------------------------------------- a sample


_Measured = tuple[Measurement, list[int], Resolved]


def _measure_sample(source: Path, arguments: argparse.Namespace) -> _Measured:
    """Run a sample of an order file."""
    from workers.batch import Batch, processor_spec

    resolved = _resolve(given_settings(arguments), arguments)
    settings = resolved.settings
    progress = make_progress(sys.stderr, enabled=settings.progress, quiet=settings.quiet)
    book = Batch(source, resolved, progress=progress, is_whole_program=True).check()
    if not book.orders:
        raise OrdersError(f"{source}: holds no PO that can be run; {_run_command(source, '--check')} lists the rows")
    places = choose(
        book.orders, _sample_size(arguments.sample), Random(DEFAULT_SEED if arguments.seed is None else arguments.seed)
    )
    jobs = min(settings.jobs, usable_cores(), len(places))
    _say(
        f"running {len(places)} of {len(book.orders)} POs for real on {jobs} workers; "
        f"an attempt may take up to {span_text(settings.task_timeout.seconds)} (--timeout)"
    )
    progress.start()
    try:
        sample = run_sample(
            [book.orders[n] for n in places], [book.priorities[n] for n in places], settings, processor_spec(settings),
            progress, jobs=jobs,
        )  # fmt: skip
        forkserver = _measure_forkserver(settings, processor_spec(settings), progress, jobs)
    except SampleInterruptedError as error:
        _leave_interrupted(error.args[0])
    finally:
        progress.close()
    measurement = measured_from_history(sample.attempts)
    name = f"{len(places):,} of {len(book.orders):,} POs of {source.name}, run on {jobs} workers in {span_text(sample.seconds)}"
    repeated = len(book.orders) - len({order["po_number"] for order in book.orders})
    measurement = replace(
        measurement, source=name, costs=sample.costs, jobs=jobs, repeated=repeated, note=_repeated_text(repeated)
    )
    if forkserver is not None:
        measurement = replace(measurement, forkserver_costs=sample.costs.with_start_of(forkserver))
    return measurement, book.priorities, resolved


def _repeated_text(repeated: int) -> str:
    """What a prediction that looks at no numbers leaves out."""
    if not repeated:
        return ""
    return (
        f"{repeated:,} POs have the number of another one (--duplicates separate): there are never two of one number at once, "
        "which the prediction leaves out; so the number of workers stays, if they fit into the memory"
    )


def _measure_forkserver(settings: RunSettings, spec: ProcessorSpec, progress: Progress, jobs: int) -> Costs | None:
    """What it would take to start the workers from a forkserver, where they are not told to start in another way."""
    if settings.start_method != "spawn":
        return None
    _say(f"starting {jobs} workers once more, by forkserver and without a PO, to see how long that takes")
    return measure_start(settings, spec, progress, jobs=jobs, start_method="forkserver")


def _sample_size(value: int | None) -> int:
    if value is None:
        return DEFAULT_SAMPLE
    if value < 1:
        raise ConfigError(f"--sample must be a whole number of POs, 1 or more, got {value}")
    return value


def _leave_interrupted(number: int) -> NoReturn:
    _say("poqueue: interrupted; a part of a sample gives no advice")
    raise SystemExit(128 + number)


def _resolve(given: dict[str, Any], arguments: argparse.Namespace) -> Resolved:
    return _with_notes(load_settings(given, arguments.config, os.environ))


def _with_notes(resolved: Resolved) -> Resolved:
    for note in resolved.notes:
        _say(note)
    return resolved


# ---------------------------------------------------------------------- a run


def _measure_run(run_dir: Path, arguments: argparse.Namespace) -> _Measured:
    """Learn from what a run has written; nothing is run."""
    past = read_past_run(run_dir)
    kept = {key: value for key, value in past.settings.items() if key not in NOT_WRITTEN}
    resolved = _with_notes(load_settings(given_settings(arguments), arguments.config, {}, recorded=kept))
    if arguments.write is not None:  # or else it would be taken with the default processor
        check_processor_named(read_run_record(run_dir), resolved)
    at_once = min(past.jobs, len(past.priorities))
    measurement = replace(measured_from_history(past.attempts), source=past.source, jobs=at_once, note=past.note)
    note = "\n".join(filter(None, (past.note, _repeated_text(past.repeated))))
    measurement = replace(measurement, costs=_fitted(measurement.costs, past), repeated=past.repeated, note=note)
    if not past.seconds:
        return measurement, past.priorities, resolved
    as_it_ran = load_settings({}, None, {}, recorded={**kept, "app_dir": None})  # that one need not exist any more
    rules = rules_of(as_it_ran.settings, usable_cores(), jobs=past.jobs)
    replayed = predict_batch(measurement, past.priorities, rules, runs=0)
    fitted = ["its start and end"]
    fitted += ["the time between two attempts"] if past.gap_s is not None else []
    fitted += ["the replacement of workers"] if past.replaced_s is not None else []
    fit = (
        f"the run took {span_text(past.seconds)}; the simulation takes {span_text(replayed.seconds)}; "
        f"fitted to the run: {', '.join(fitted)}"
    )
    measurement = replace(measurement, note="\n".join(filter(None, (note, fit))))
    return measurement, past.priorities, resolved


def _fitted(costs: Costs, past: PastRun) -> Costs:
    """With what the run tells of its attempts' gaps, of what lay before and behind all of them, and of replaced workers."""
    if past.gap_s is not None:
        cpu_s = min(costs.dispatch_cpu_s, costs.dispatch_cpu_s * past.gap_s / costs.dispatch_s)
        costs = replace(costs, dispatch_s=past.gap_s, dispatch_cpu_s=cpu_s)
    if past.seconds:
        costs = _with_outside(costs, past)
    if past.replaced_s is None:
        return costs
    boot_s = max(0.0, past.replaced_s - costs.leave_s)
    share = min(1.0, TYPICAL_COSTS.boot_s / boot_s) if boot_s else 0.0  # the rest of it is a setup that waits
    return replace(costs, boot_s=boot_s, boot_cpu_share=share)


def _with_outside(costs: Costs, past: PastRun) -> Costs:
    pos = len(past.priorities)
    leaving_s = costs.end_s + costs.report_s * pos + costs.leave_s * min(past.jobs, pos)
    usual_s = max(costs.start_s, costs.boot_s) + leaving_s
    if past.outside_s > usual_s:
        return replace(costs, end_s=costs.end_s + past.outside_s - usual_s)
    share = past.outside_s / usual_s
    return replace(
        costs, start_s=share * costs.start_s, boot_s=share * costs.boot_s, end_s=share * costs.end_s,
        report_s=share * costs.report_s, leave_s=share * costs.leave_s,
    )  # fmt: skip


def parse_what_if(text: str) -> list[int]:
    """Numbers of workers, from "jobs=2,4,8".

    Raises:
        ConfigError: anything else.
    """
    key, equals, values = text.partition("=")
    if not equals or key.strip() not in ("jobs", "workers"):
        raise ConfigError(f"--what-if must be written jobs=2,4,8, got {safe_text(text, 80)!r}")
    try:
        return sorted({parse_jobs(value.strip(), "--what-if jobs") for value in values.split(",")})
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _say(text: str) -> None:
    """To people on stderr; nobody has to listen."""
    try:
        print(safe_text(text), file=sys.stderr, flush=True)
    except (OSError, ValueError):
        return


def check_new_file(path: Path) -> None:
    """Before anything runs: a file that is there is not written over.

    Raises:
        ConfigError: it exists, or cannot be made.
    """
    if os.path.lexists(path):
        raise ConfigError(
            f"--write: {path} exists, and may hold settings of yours: name a new file, or remove it first"
        )
    check_output(path)


def _write_new(path: Path, text: str) -> None:
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        check_new_file(path)
    except OSError as error:
        raise ConfigError(f"--write: {path} cannot be written: {error.strerror}") from None
