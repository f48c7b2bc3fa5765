"""The command line. Heavy imports are inside the commands: every worker process imports this module as its __main__."""

from __future__ import annotations

import argparse
import gc
import io
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workers.orders import OrderBook
    from workers.resolved import Resolved
    from workers.resume import Resuming

EXIT_USAGE, EXIT_ORDERS, EXIT_INTERNAL = 2, 3, 70
NOTHING_RAN = "interrupted before anything ran"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    from poqueue.errors import InputError, OrdersError, PoqueueError
    from poqueue.parent import gone_folder
    from workers.signals import Termination
    from workers.standard_output import leave_stdout

    _fill_standard_descriptors()
    _have_streams_take_any_text()
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        code: int = arguments.command_function(arguments)
        return code if _put_out() else code or EXIT_INTERNAL
    except OrdersError as error:
        return _complain(error, EXIT_ORDERS)
    except InputError as error:
        return _complain(error, EXIT_USAGE)
    except (PoqueueError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            leave_stdout()
            return 0
        if isinstance(error, FileNotFoundError) and error.filename is None and (gone := gone_folder()):
            return _complain(f"the current folder is gone: {gone}", EXIT_USAGE)
        return _complain(error, EXIT_INTERNAL)
    except KeyboardInterrupt:
        return _complain(NOTHING_RAN, 128 + signal.SIGINT)
    except Termination as end:
        return _complain(NOTHING_RAN, end.code)
    except Exception:  # the border: a fault of ours, whose 1 would say that POs have failed
        import traceback

        _say(traceback.format_exc().rstrip())
        return EXIT_INTERNAL


def _fill_standard_descriptors() -> None:
    """Started without stdin, stdout or stderr, the next file opened would take its place, and be written into."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number, so this one
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)  # print() takes None for stdout, which is for data


def _have_streams_take_any_text() -> None:
    """A character that their encoding has not, or that a path has from no encoding, is shown escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _put_out(text: str = "") -> bool:
    """To programs, at once. False: it cannot be written, and that is told; not if nobody listens any more."""
    from poqueue.errors import PoqueueError
    from workers.standard_output import put_out

    try:
        put_out(text, end="")
    except BrokenPipeError:
        return True
    except PoqueueError as error:
        _complain(error, EXIT_INTERNAL)
        return False
    return True


def _complain(error: object, code: int) -> int:
    for number, line in enumerate(str(error).splitlines() or [""]):
        _say(("poqueue: " if number == 0 else "") + line)
    return code


def _say(text: str = "") -> None:
    """To people, line by line, whatever a file or an exception had in it; nobody has to listen."""
    from workers.safe_text import safe_text

    try:
        print("\n".join(map(safe_text, text.split("\n"))), file=sys.stderr, flush=True)
    except (OSError, ValueError):
        return


# ---------------------------------------------------------------------- arguments


def _parser() -> argparse.ArgumentParser:
    from poqueue import __version__
    from workers.live_commands import add_live_commands
    from workers.setting_values import FORMATS
    from workers.settings import add_arguments

    parser = _Parser(
        prog="poqueue", description="Run a batch of purchase orders on worker processes; lose none of them."
    )
    parser.add_argument("--version", action="version", version=f"poqueue {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=_Parser)

    run = commands.add_parser("run", help="run every PO of an order file", description=_run.__doc__)
    run.add_argument(
        "orders",
        metavar="ORDERS",
        nargs="?",
        help="CSV, XLSX, XLS or ODS file; it is only read; with --resume, the run's own",
    )
    run.add_argument(
        "--resume", metavar="RUN", help="go on with an earlier run: a run directory, or its name below runs/"
    )
    _add_accept_changes(run)
    run.add_argument("--config", metavar="FILE", type=Path, help="YAML file with settings")
    run.add_argument("--json", action="store_true", help="print the outcome as JSON to stdout")
    add_arguments(run)
    run.set_defaults(command_function=_run)

    retry = commands.add_parser("retry", help="run again what failed in a run", description=_retry.__doc__)
    retry.add_argument("run", metavar="RUN", nargs="?", help="run directory, or its name below runs/; the newest one")
    _add_accept_changes(retry)
    retry.add_argument("--config", metavar="FILE", type=Path, help="YAML file with settings")
    retry.add_argument("--json", action="store_true", help="print the outcome as JSON to stdout")
    add_arguments(retry, hidden=("limit", "run_dir"))
    retry.set_defaults(command_function=_retry, orders=None)
    add_live_commands(commands)

    report = commands.add_parser(
        "report", help="show what happened in a run, live or ended", description=_report.__doc__
    )
    report.add_argument("run", metavar="RUN", nargs="?", help="run directory, or its name below runs/; the newest one")
    report.add_argument("--format", choices=FORMATS, default="table", help=f"{', '.join(FORMATS)}; default: table")
    report.add_argument("--output", metavar="FILE", type=Path, help="write to this file, whole or not at all")
    report.add_argument(
        "--redact", action="store_true", help="leave out PO numbers, suppliers, amounts and other PO data"
    )
    report.set_defaults(command_function=_report)

    tune = commands.add_parser(
        "tune", help="advice on settings, from a sample, a run or two numbers", description=_tune.__doc__
    )
    tune.add_argument(
        "source", metavar="ORDERS|RUN", nargs="?", help="an order file, of which a sample is run, or a run's directory"
    )
    tune.add_argument("--sample", type=int, metavar="N", help="how many POs of ORDERS to run (default: 20)")
    tune.add_argument("--seed", type=int, metavar="N", help="draws another sample (default: 1)")
    tune.add_argument("--what-if", metavar="jobs=N,...", help="predict these numbers of workers, such as jobs=2,4,8")
    tune.add_argument("--write", type=Path, metavar="FILE.yaml", help="write the advice as a new configuration file")
    tune.add_argument("--tasks", type=int, metavar="N", help="without ORDERS: how many POs are expected")
    tune.add_argument("--duration", metavar="DURATION", help="without ORDERS: how long one takes, such as 2.5s")
    tune.add_argument("--config", metavar="FILE", type=Path, help="YAML file with settings")
    tune.add_argument("--json", action="store_true", help="print the advice as JSON")
    add_arguments(tune)
    tune.set_defaults(command_function=_tune)

    config = commands.add_parser("config", help="where settings come from")
    shows = config.add_subparsers(required=True, metavar="show", parser_class=_Parser)
    show = shows.add_parser(
        "show", help="print each setting, its value and its origin", description=_config_show.__doc__
    )
    show.add_argument("--config", metavar="FILE", type=Path, help="YAML file with settings")
    show.add_argument("--json", action="store_true", help="print as JSON")
    add_arguments(show)
    show.set_defaults(command_function=_config_show)
    return parser


def _add_accept_changes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--accept-changes",
        action="store_true",
        help="go on though the order file or the processor is another than before",
    )


class _Parser(argparse.ArgumentParser):
    """Names of options are not to be shortened, and an unknown one gets a hint."""

    def __init__(self, **words: Any) -> None:
        super().__init__(**words, allow_abbrev=False)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Also takes the last word after an option: argparse counts it as left out once an option follows the word before."""
        found, rest = super().parse_known_args(args, namespace)
        last = next((one for one in reversed(self._actions) if not one.option_strings), None)
        is_left_out = last is not None and last.nargs == "?" and getattr(found, last.dest) is None
        if last is not None and is_left_out and len(rest) == 1 and not rest[0].startswith("-"):
            setattr(found, last.dest, rest.pop())
        return found, rest

    def _print_message(self, message: str, file: Any = None) -> None:
        """What argparse itself cannot write it drops, and says nothing."""
        if file is not sys.stdout:
            super()._print_message(message, file)
        elif not _put_out(message):
            self.exit(EXIT_INTERNAL)

    def error(self, message: str) -> Any:
        from workers.quantities import did_you_mean, nearest

        prefix = "unrecognized arguments: "
        if message.startswith(prefix):
            known = [flag for action in self._all_actions() for flag in action.option_strings]
            unknown = message.removeprefix(prefix).split()[0].split("=")[0]
            message += did_you_mean(nearest(unknown, known))
        if "invalid choice: " in message:
            wrong, _, choices = message.partition("invalid choice: ")[2].partition(" (choose from ")
            message += did_you_mean(nearest(wrong.strip("'"), [word.strip(" ')") for word in choices.split(",")]))
        self.print_usage(sys.stderr)
        self.exit(EXIT_USAGE, f"{self.prog}: {message}\n")

    def _all_actions(self) -> list[argparse.Action]:
        actions = list(self._actions)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                for parser in action.choices.values():
                    actions += parser._all_actions()
        return actions


def _resolve(arguments: argparse.Namespace) -> Resolved:
    from workers.resolved import load_settings
    from workers.settings import given_settings

    resolved = load_settings(given_settings(arguments), arguments.config, os.environ)
    for note in resolved.notes:
        _say(note)
    return resolved


# ---------------------------------------------------------------------- commands


def _run(arguments: argparse.Namespace) -> int:
    """Run every PO of an order file on worker processes and account for every row."""
    if arguments.resume is not None:
        return _go_on(arguments, arguments.resume, retry_failed=False)
    if not arguments.orders:
        raise _usage("ORDERS is empty; name a CSV or Excel file")
    if arguments.accept_changes:
        raise _usage("--accept-changes belongs to --resume")
    return _run_batch(arguments, _resolve(arguments), None)


def _retry(arguments: argparse.Namespace) -> int:
    """Run again what failed in a run that is through, in its run directory, with all its retries."""
    return _go_on(arguments, arguments.run, retry_failed=True)


def _go_on(arguments: argparse.Namespace, named: str | None, *, retry_failed: bool) -> int:
    """The settings are those that the run was started with; the command line's and those of --config go first."""
    from workers.batch import resume_settings
    from workers.resume import Resuming
    from workers.run_record import find_run, read_run_record
    from workers.settings import given_settings

    run_dir = find_run(named)
    given = given_settings(arguments)
    own_place = "cannot be given here: a run goes on in its own directory"
    all_failed = "cannot be given here: all that failed in the run is run again"
    if "run_dir" in given:
        raise _usage(f"--run-dir {own_place}")
    if retry_failed and "limit" in given:
        raise _usage(f"--limit {all_failed}")
    resolved = resume_settings(run_dir, given, arguments.config)
    settings, origins = resolved.settings, resolved.origins
    # A config may name what the run has: it may be the one that it was started with.
    if settings.run_dir is not None and os.path.realpath(settings.run_dir) != str(run_dir):
        raise _usage(f"run_dir ({origins['run_dir']}) {own_place}")
    if retry_failed and settings.limit != read_run_record(run_dir).settings.get("limit"):
        raise _usage(f"limit ({origins['limit']}) {all_failed}")
    resuming = Resuming(run_dir, arguments.accept_changes, retry_failed)
    return _run_batch(arguments, resolved, resuming)


def _run_batch(arguments: argparse.Namespace, resolved: Resolved, resuming: Resuming | None) -> int:
    from workers.batch import Batch
    from workers.progress import make_progress
    from workers.signals import Interrupt, Termination, let_interrupts_pass, raise_interrupts
    from workers.standard_output import leave_stdout

    gc.set_threshold(50_000, 20, 20)  # rows and results come by the thousand, and hold no cycles worth the looking for
    settings = resolved.settings
    progress = make_progress(sys.stderr, enabled=settings.progress, quiet=settings.quiet)
    orders = Path(arguments.orders) if arguments.orders else None
    raise_interrupts()
    batch = Batch(orders, resolved, progress=progress, resuming=resuming, is_whole_program=True)
    if settings.check:
        book = batch.check()
        to_run = len(book.orders) if resuming is None else _count_left(book, resuming)
        return _report_check(book, to_run, as_json=arguments.json)
    os.getcwd()  # without it no process can be started: it fails before anything is made
    progress.start()
    try:
        try:
            report = batch.run()
        finally:
            progress.close()
        from workers.outcome_text import outcome_json, outcome_lines

        if arguments.json:
            _put_out(f"{json.dumps(outcome_json(report))}\n")  # the code tells of the POs, heard or not
        if not settings.quiet or report.exit_code:
            for line in outcome_lines(report, arguments.config):
                _say(line)
    except (Interrupt, Termination):
        if batch.report is None:
            raise
        report = batch.report  # all has run and is written: only the telling is broken off
        leave_stdout()
    let_interrupts_pass()
    return report.exit_code


def _usage(message: str) -> Exception:
    from poqueue.errors import ConfigError

    return ConfigError(message)


def _tune(arguments: argparse.Namespace) -> int:
    """Advice on workers, timeout and retries: run a sample of ORDERS for real, or learn from the journal of a RUN, or
    say how many POs are expected and how long one takes. Nothing is changed.
    """
    from poqueue.errors import JournalError
    from workers.signals import raise_interrupts
    from workers.tune import tune

    raise_interrupts()
    try:
        return tune(arguments)
    except JournalError as error:
        raise _usage(str(error)) from None


def _report(arguments: argparse.Namespace) -> int:
    """Report on a run that has ended, crashed or goes on: for people, for programs, as a page, or for ui.perfetto.dev."""
    from poqueue.errors import JournalError
    from workers.report_files import read_history, render
    from workers.run_record import find_run, read_run_record
    from workers.signals import raise_interrupts
    from workers.whole_file import check_output, write_whole

    raise_interrupts()
    if arguments.output is not None:
        check_output(arguments.output)
    run_dir = find_run(arguments.run)
    if arguments.output is not None:
        from workers.batch import check_writable

        check_writable(arguments.output, Path(read_run_record(run_dir).orders), run_dir)
    try:
        history = read_history(run_dir, on_wait=_say)
    except JournalError as error:
        raise _usage(str(error)) from None
    text = render(history, arguments.format, redact=arguments.redact)
    if arguments.output is None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            encoding = sys.stdout.encoding if arguments.format == "table" else "utf-8"  # a document, as in a file
            sys.stdout.reconfigure(encoding=encoding, errors="backslashreplace", newline="")
        return 0 if _put_out(text) else EXIT_INTERNAL
    try:
        write_whole(text, arguments.output)
    except OSError as error:
        raise _usage(f"{str(arguments.output)!r} cannot be written: {error.strerror}") from None
    _say(f"written: {arguments.output}")
    return 0


def _config_show(arguments: argparse.Namespace) -> int:
    """Each setting, its value, and where that came from: command line over environment over file over default."""
    from workers.resolved import render_config
    from workers.standard_output import put_out

    rows = render_config(_resolve(arguments))
    if arguments.json:
        put_out(json.dumps({key: {"value": value, "from": origin} for key, value, origin in rows}))
        return 0
    from tabulate import tabulate

    shown = [(key, json.dumps(value), origin) for key, value, origin in rows]
    put_out(tabulate(shown, headers=("setting", "value", "from"), tablefmt="simple", disable_numparse=True))
    return 0


# ---------------------------------------------------------------------- --check


def _count_left(book: OrderBook, resuming: Resuming) -> int:
    """How many POs would run if the run went on with the orders that it had."""
    from poqueue.errors import JournalError
    from workers.report_files import read_history
    from workers.resume import unended
    from workers.run_record import read_run_record

    try:
        known = read_history(resuming.run_dir, on_wait=_say).orders
    except JournalError as error:
        raise _usage(str(error)) from None
    if book.sha256 != read_run_record(resuming.run_dir).orders_sha256:
        _say("note: the order file is not what the run had; what has changed in it is not counted")
    ended = Counter(order.po_number for order in known if order.status in ("completed", "failed"))
    left = sum((Counter(str(order["po_number"]) for order in book.orders) - ended).values())
    if not resuming.retry_failed:
        return left
    if left:
        raise unended(left)
    return sum(order.status == "failed" for order in known)


def _report_check(book: OrderBook, to_run: int, *, as_json: bool) -> int:
    """--check: what would run and what would not."""
    rows = len(book.invalid)
    is_told = True
    if as_json:
        invalid = [{"row": r.row, "column": r.column, "value": r.value, "reason": r.reason} for r in book.invalid]
        found = {
            "rows": book.row_count,
            "pos": len(book.orders),
            "to_run": to_run,
            "duplicate": len(book.duplicate_rows),
            "invalid": invalid,
        }
        is_told = _put_out(f"{json.dumps(found)}\n")
    else:
        for note in book.notes:
            _say(f"note: {note}")
        _list_invalid(book)
        of_all = f" of {len(book.orders)}" if to_run != len(book.orders) else ""
        _say(
            f"{book.row_count} rows: {to_run}{of_all} POs to run, {len(book.duplicate_rows)} duplicate rows, "
            f"{rows} invalid rows, {book.blank_rows} blank lines skipped"
        )
    if rows:
        return EXIT_ORDERS
    if not to_run:
        return 5
    return 0 if is_told else EXIT_INTERNAL


def _list_invalid(book: OrderBook) -> None:
    from workers.batch_run import SHOWN_ROWS
    from workers.safe_text import safe_text

    for row in book.invalid[:SHOWN_ROWS]:
        _say(safe_text(str(row)))
    if len(book.invalid) > SHOWN_ROWS:
        _say(f"… and {len(book.invalid) - SHOWN_ROWS} more invalid rows")
