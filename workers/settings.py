"""The settings of a run: one table, from which everything else that knows a setting's name is made.

    RunSettings (a field = a setting: how to read it, its default, flags, group, meaning)
        ├── add_arguments          the options of the command line
        ├── load_settings          (resolved.py) command line > environment POQUEUE_<KEY> > YAML file > default
        ├── render_config          (resolved.py) `poqueue config show`
        └── markdown_table         the README's table

A default is written as the text a user would give, and read by the same function.
"""

# ruff: noqa: RUF009 -- setting() is dataclasses.field() with the table's columns; ruff knows only the original

import argparse
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from workers.quantities import (
    MAX_DURATION_S,
    format_duration,
    format_size,
    nearest,
    parse_choice,
    parse_duration,
    parse_jobs,
    parse_share,
    parse_size,
    parse_switch,
    parse_whole_number,
)
from workers.setting_values import (
    HaltRule,
    Timeout,
    parse_column_map,
    parse_delimiter,
    parse_directory,
    parse_encoding,
    parse_halt,
    parse_pairs,
    parse_path,
    parse_processor,
    parse_reports,
    parse_text,
    parse_timeout,
)

ENVIRONMENT_PREFIX = "POQUEUE_"

Parse = Callable[[object, str], Any]


@dataclass(frozen=True, slots=True)
class Setting:
    """What the table says about one setting, besides its name."""

    parse: Parse
    default: str
    flags: tuple[str, ...]
    group: str
    help: str
    metavar: str
    action: str
    known_as: tuple[str, ...]
    show: Callable[[Any], Any]
    is_optional: bool
    is_cli_only: bool


def setting(
    parse: Parse,
    default: str,
    flags: str,
    group: str,
    help: str,
    *,
    metavar: str = "",
    action: str = "store",
    known_as: str = "",
    show: Callable[[Any], Any] = lambda value: value,
    cli_only: bool = False,
) -> Any:
    """A field of RunSettings.

    Args:
        parse: takes a value and the option's name; a ValueError says what is wrong.
        default: as a user would write it; "none" makes the setting optional: None unless it is given.
        flags: the command line's names, separated by blanks.
        action: argparse's word for how the flag takes values; "switch" for a flag with a --no- twin.
        known_as: names it has in other tools, for "did you mean" only.
        show: the value as a user would write it.
    """
    is_optional = default == "none"
    entry = Setting(
        parse=_or_none(parse) if is_optional else parse,
        default=default,
        flags=tuple(flags.split()),
        group=group,
        help=help,
        metavar=metavar,
        action=action,
        known_as=tuple(known_as.split()),
        show=show,
        is_optional=is_optional,
        is_cli_only=cli_only,
    )
    return field(default_factory=lambda: entry.parse(entry.default, "default"), metadata={"setting": entry})


def _or_none(parse: Parse) -> Parse:
    def parse_or_none(value: object, option: str) -> Any:
        return None if value is None or value == "none" else parse(value, option)

    return parse_or_none


# ── the table ────────────────────────────────────────────────────────────────────────────────────────────────────────

_delay = partial(parse_duration, minimum_s=0.0, maximum_s=MAX_DURATION_S)
_count = partial(parse_whole_number, minimum=1, maximum=1_000_000_000)


@dataclass(frozen=True, slots=True)
class RunSettings:
    """How a batch is run; durations in seconds, sizes in bytes. `load_settings` makes one whose values were checked."""

    processor: str = setting(
        parse_processor,
        "workers.processors.dossier:process",
        "-p --processor",
        "processing",
        "processing function or class of one PO, as module:attribute",
        metavar="MODULE:ATTR",
        known_as="app function task",
    )
    command: str | None = setting(
        partial(parse_text, what="a command line"),
        "none",
        "--command",
        "processing",
        "a program to run for each PO instead of a processor, such as 'tool {po_number} {url}'; no shell is involved",
        metavar="COMMAND",
        known_as="cmd exec",
    )
    shell: bool = setting(
        parse_switch, "false", "--shell", "processing", "let a shell read the command", action="switch"
    )
    options: dict[str, str] = setting(
        parse_pairs,
        "",
        "--option",
        "processing",
        "an option of the processor; repeatable; names from several sources are joined",
        metavar="NAME=VALUE",
        action="append",
        known_as="opts params",
    )
    app_dir: Path | None = setting(
        parse_directory,
        "none",
        "--app-dir",
        "processing",
        "directory from which the processor's module may be imported, besides the installed packages",
        metavar="DIR",
        known_as="pythonpath",
        show=lambda path: path and str(path),
    )
    jobs: int = setting(
        parse_jobs,
        "auto",
        "-j --jobs",
        "workers",
        "number of worker processes, 1 to 256; auto: one per usable core; 50%: that share of the cores; no more than POs",
        metavar="N",
        known_as="workers concurrency max_workers processes num_workers",
    )
    start_method: str = setting(
        partial(parse_choice, choices=("spawn", "forkserver", "fork")),
        "spawn",
        "--start-method",
        "workers",
        "how worker processes are started: spawn, forkserver or fork",
        metavar="METHOD",
    )
    max_tasks_per_worker: int | None = setting(
        _count,
        "none",
        "--max-tasks-per-worker",
        "workers",
        "replace a worker after this many POs; none: never",
        metavar="N",
        known_as="max_tasks_per_child maxtasksperchild",
    )
    max_memory_per_worker: int | None = setting(
        partial(parse_size, minimum_bytes=1024**2),
        "none",
        "--max-memory-per-worker",
        "workers",
        "replace a worker that holds more memory than this after a PO (500M, 2G; 1M = 1024 * 1024 bytes); none: never",
        metavar="SIZE",
        known_as="max_memory_per_child",
        show=lambda size: size and format_size(size),
    )
    task_timeout: Timeout = setting(
        parse_timeout,
        "300s",
        "--timeout",
        "time and retries",
        "longest time for one attempt at a PO, 100ms to 7d; then its worker is killed and the PO retried. 200%: that share of "
        "the running median, by supplier where enough of its POs have completed, up to 300s or, as in 200%,10m, another most",
        metavar="DURATION",
        known_as="time_limit",
        show=str,
    )
    timeout_floor: float = setting(
        partial(parse_duration, minimum_s=0.1, maximum_s=MAX_DURATION_S),
        "1s",
        "--timeout-floor",
        "time and retries",
        "least time that a timeout in percent comes to, 100ms to 7d",
        metavar="DURATION",
        show=format_duration,
    )
    max_retries: int = setting(
        partial(parse_whole_number, minimum=0, maximum=1000),
        "3",
        "--retries",
        "time and retries",
        "retries after a failed first attempt, 0 to 1000; 3 retries are 4 attempts",
        metavar="N",
        known_as="max_attempts",
    )
    retry_delay: float = setting(
        _delay,
        "5s",
        "--retry-delay",
        "time and retries",
        "wait before the first retry, 0s to 7d; it doubles with each further retry",
        metavar="DURATION",
        known_as="backoff",
        show=format_duration,
    )
    max_retry_delay: float = setting(
        _delay,
        "1h",
        "--max-retry-delay",
        "time and retries",
        "longest wait before a retry, 0s to 7d; not below the retry delay",
        metavar="DURATION",
        known_as="max_backoff",
        show=format_duration,
    )
    jitter: float = setting(
        parse_share,
        "0",
        "--jitter",
        "time and retries",
        "lengthen each wait before a retry by a random share of up to this, 0 to 1 or 0% to 100%",
        metavar="SHARE",
    )
    start_delay: float = setting(
        _delay,
        "0s",
        "--delay",
        "time and retries",
        "least time between the starts of two POs, 0s to 7d",
        metavar="DURATION",
        known_as="rate_limit",
        show=format_duration,
    )
    halt: HaltRule = setting(
        parse_halt,
        "never",
        "--halt",
        "time and retries",
        "stop early: soon,fail=5% starts no PO any more once 5% of all have failed, now,fail=3 also stops those that run; "
        "fail, success or done, as a number or a share of the run's POs; the run can be resumed",
        metavar="WHEN,WHY=N",
        known_as="fail_fast max_failures",
        show=str,
    )
    memfree: int | None = setting(
        partial(parse_size, minimum_bytes=1),
        "none",
        "--memfree",
        "workers",
        "start no new PO while less memory than this is available (500M, 2G); none: whatever there is",
        metavar="SIZE",
        known_as="min_memory",
        show=lambda size: size and format_size(size),
    )
    diskfree: int = setting(
        partial(parse_size, minimum_bytes=0),
        "64M",
        "--diskfree",
        "workers",
        "start no new PO while less than this is free where the run directory is; 0: until the disk is full",
        metavar="SIZE",
        known_as="min_disk",
        show=format_size,
    )
    grace: float = setting(
        _delay,
        "2s",
        "--grace",
        "time and retries",
        "how long a worker that is told to end (TERM) may take before it is killed, 0s to 7d",
        metavar="DURATION",
        known_as="kill_after",
        show=format_duration,
    )
    stop_grace: float = setting(
        _delay,
        "30s",
        "--stop-grace",
        "time and retries",
        "how long running POs may go on after the first Ctrl-C, 0s to 7d",
        metavar="DURATION",
        known_as="shutdown_timeout graceful_timeout",
        show=format_duration,
    )
    map: dict[str, str] = setting(
        parse_column_map,
        "",
        "--map",
        "input",
        r"which column holds which field, such as po_number=PO,supplier=Vendor,amount=Amount; \, is a comma of a header; "
        "fields from several sources are joined; amount= takes one out",
        metavar="FIELD=HEADER,...",
        action="append",
        known_as="columns mapping",
    )
    sheet: str | None = setting(
        partial(parse_text, what="the name of a sheet"),
        "none",
        "--sheet",
        "input",
        "sheet of a workbook that holds the orders; none: its only one",
        metavar="NAME",
    )
    delimiter: str | None = setting(
        parse_delimiter,
        "none",
        "--delimiter",
        "input",
        "character between the fields of a CSV file, or tab, comma, semicolon, pipe; none: found out",
        metavar="CHAR",
        known_as="separator sep",
        show=lambda delimiter: "tab" if delimiter == "\t" else delimiter,
    )
    encoding: str | None = setting(
        parse_encoding,
        "none",
        "--encoding",
        "input",
        "text encoding of a CSV file, such as cp1252; none: UTF-8 or what its first bytes say",
        metavar="NAME",
        known_as="charset",
    )
    limit: int | None = setting(
        _count,
        "none",
        "--limit",
        "input",
        "run no more than this many POs, the first of the file; none: all",
        metavar="N",
        known_as="max_tasks",
    )
    duplicates: str = setting(
        partial(parse_choice, choices=("group", "error", "first", "separate")),
        "group",
        "--duplicates",
        "input",
        "rows with the same PO number: group (one PO of all its rows), error (refuse the file), "
        "first (skip the later ones), separate (a PO of its own each)",
        metavar="POLICY",
    )
    priority: bool = setting(
        parse_switch,
        "true",
        "--priority",
        "input",
        "serve POs by their priority, 1 first to 10 last; false: in the order of the file, whatever that column holds",
        action="switch",
        known_as="enable_priority",
    )
    check: bool = setting(
        parse_switch,
        "false",
        "--check",
        "input",
        "read the orders and report on them; run nothing",
        action="store_true",
        known_as="dry_run",
        cli_only=True,
    )
    run_dir: Path | None = setting(
        parse_path,
        "none",
        "--run-dir",
        "output",
        "directory of everything the run writes; none: runs/<date>-<name of the orders file>",
        metavar="DIR",
        known_as="output output_dir",
        show=lambda path: path and str(path),
    )
    report: tuple[Path, ...] = setting(
        parse_reports,
        "",
        "--report",
        "output",
        "write the report to this file as well, in the format of its extension: .json, .csv or .yaml; repeatable",
        metavar="FILE",
        action="append",
        known_as="reports",
        show=lambda paths: [str(path) for path in paths],
    )
    results: Path | None = setting(
        parse_path,
        "none",
        "--results",
        "output",
        "write the table of results (CSV) to this file as well",
        metavar="FILE",
        known_as="output_file",
        show=lambda path: path and str(path),
    )
    journal: bool = setting(
        parse_switch,
        "true",
        "--journal",
        "output",
        "write every change down before it counts, so that the run can be resumed after any end; without it, it cannot",
        action="switch",
    )
    durability: str = setting(
        partial(parse_choice, choices=("normal", "full")),
        "normal",
        "--durability",
        "output",
        "what the journal survives: normal, the end of any process; full, also a loss of power, which costs a flush of the "
        "disk for every few POs",
        metavar="LEVEL",
    )
    progress: bool = setting(
        parse_switch,
        "true",
        "--progress",
        "screen",
        "show progress: live on a terminal, a plain line every few seconds elsewhere",
        action="switch",
    )
    quiet: bool = setting(
        parse_switch, "false", "-q --quiet", "screen", "show warnings and errors only", action="switch"
    )
    verbose: int = setting(
        partial(parse_whole_number, minimum=0, maximum=9),
        "0",
        "-v --verbose",
        "screen",
        "show more of what happens: once for the life of the processes, twice for each PO",
        action="count",
        known_as="verbosity log_level",
    )
    log_format: str = setting(
        partial(parse_choice, choices=("text", "json")),
        "text",
        "--log-format",
        "screen",
        "log lines as text or as json, one object a line",
        metavar="FORMAT",
    )


SETTINGS: dict[str, Setting] = {entry.name: entry.metadata["setting"] for entry in fields(RunSettings)}


def add_arguments(parser: argparse.ArgumentParser, *, hidden: Collection[str] = ()) -> None:
    """Add an option for every setting. What is not given stays out of the namespace, so that lower sources show.

    Args:
        hidden: keys that the command's help does not name; the command refuses them.
    """
    groups: dict[str, Any] = {}
    for key, entry in SETTINGS.items():
        group = groups.get(entry.group) or groups.setdefault(entry.group, parser.add_argument_group(entry.group))
        words = _argparse_words(entry) | ({"help": argparse.SUPPRESS} if key in hidden else {})
        group.add_argument(*entry.flags, dest=key, default=argparse.SUPPRESS, **words)


def _argparse_words(entry: Setting) -> dict[str, Any]:
    default = "" if entry.default in ("", "none", "false", "0") else f" (default: {entry.default})"
    words: dict[str, Any] = {"help": (entry.help + default).replace("%", "%%")}
    if entry.action == "switch":
        return words | {"action": argparse.BooleanOptionalAction}
    if entry.metavar:
        words["metavar"] = entry.metavar
    return words | {"action": entry.action}


def given_settings(namespace: argparse.Namespace) -> dict[str, Any]:
    """The settings among the arguments that were given on the command line, for `load_settings`."""
    return {key: value for key, value in vars(namespace).items() if key in SETTINGS}


def markdown_table() -> str:
    """The settings as the README shows them."""
    lines = ["| key | option | environment | default | meaning |", "|---|---|---|---|---|"]
    for key, entry in SETTINGS.items():
        option = ", ".join(f"`{flag}`" for flag in entry.flags)
        variable = "" if entry.is_cli_only else f"`{environment_name(key)}`"
        meaning = entry.help.replace("|", "\\|")
        lines.append(f"| `{key}` | {option} | {variable} | {entry.default or 'empty'} | {meaning} |")
    return "\n".join(lines) + "\n"


def nearest_setting(name: str) -> str | None:
    """The key that an unknown name most likely stands for, be it a misspelt key, a flag, or another tool's word."""
    meant = {key: key for key in SETTINGS}
    for key, entry in SETTINGS.items():
        flags = [flag.lstrip("-").replace("-", "_") for flag in entry.flags]
        meant |= {other: key for other in [*flags, *entry.known_as] if other not in SETTINGS}
    near = nearest(name.lstrip("-").lower().replace("-", "_"), meant)
    return near and meant[near]


def environment_name(key: str) -> str:
    """The variable that sets a key."""
    return ENVIRONMENT_PREFIX + key.upper()
