"""The settings of a run: one table, from which everything else that knows a setting's name is made.

    RunSettings (a field = a setting: how to read it, its default, flags, group, meaning)
        ├── add_arguments          the options of the command line
        ├── load_settings          command line > environment POQUEUE_<KEY> > YAML file > default, each with its origin
        ├── render_config          `poqueue config show`
        └── markdown_table         the README's table

A default is written as the text a user would give, and read by the same function.
"""

# ruff: noqa: RUF009 -- setting() is dataclasses.field() with the table's columns; ruff knows only the original

import argparse
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from poqueue.errors import ConfigError
from workers.quantities import (
    MAX_DURATION_S,
    did_you_mean,
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
from workers.safe_text import quoted, safe_text

ENVIRONMENT_PREFIX = "POQUEUE_"
CONFIG_VARIABLE = "POQUEUE_CONFIG"
OUR_OWN_VARIABLES = ("POQUEUE_TEST", "POQUEUE_FAILPOINT", "POQUEUE_RUN_ID")  # beginnings of names that are no settings

MAX_FILE_BYTES = 1_000_000  # the YAML reader takes seconds for a megabyte; a configuration is a few kilobytes
MAX_ALIASES = 100
MAX_DEPTH = 50

REPORT_FORMATS = (".json", ".csv", ".yaml")

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


# ── how values are read that are not quantities ──────────────────────────────────────────────────────────────────────


def parse_text(value: object, option: str, *, what: str = "text") -> str:
    """Text that is not blank and holds no control characters."""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not text.strip() or any(ord(c) < 32 or ord(c) == 127 for c in text):
        raise ValueError(f"{option} must be {what}, got {quoted(value)}")
    return text


def parse_path(value: object, option: str) -> Path:
    """A path; "~" is the home directory, a relative one starts where the run is started."""
    text = parse_text(str(value) if isinstance(value, Path) else value, option, what="a path")
    return Path(os.path.expanduser(text))  # Path.expanduser raises for a user that does not exist


def parse_directory(value: object, option: str) -> Path:
    """The path of a directory that exists."""
    path = parse_path(value, option)
    if not os.path.isdir(path):  # Path.is_dir raises where a parent may not be searched
        raise ValueError(f"{option} must be a directory that exists, got {quoted(str(value))}")
    return path.absolute()


def parse_reports(value: object, option: str) -> tuple[Path, ...]:
    """Paths whose extensions name formats, from a list or from text with commas between them."""
    paths = tuple(parse_path(item, option) for item in _items(value, option))
    for path in paths:
        if path.suffix.lower() not in REPORT_FORMATS:
            raise ValueError(f"{option} must end in one of {', '.join(REPORT_FORMATS)}, got {quoted(str(path))}")
    if len(set(paths)) < len(paths):
        raise ValueError(f"{option} names the same file twice: {', '.join(quoted(str(path)) for path in paths)}")
    return paths


def parse_processor(value: object, option: str) -> str:
    """The name of a processing function or class, module:attribute; whether it can be imported is found out later."""
    name = value.strip() if isinstance(value, str) else ""
    module, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in [*module.split("."), *attribute.split(".")]):
        raise ValueError(f"{option} must be module:attribute, such as my_package.orders:process, got {quoted(value)}")
    return name


def parse_delimiter(value: object, option: str) -> str:
    """The one character between two fields; tab, comma, semicolon and pipe may be named."""
    named = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|"}
    delimiter = named.get(value, value) if isinstance(value, str) else None
    if delimiter is None or len(delimiter) != 1 or delimiter in '"\r\n\0':
        raise ValueError(f"{option} must be one character, or tab, comma, semicolon or pipe, got {quoted(value)}")
    return delimiter


def parse_encoding(value: object, option: str) -> str:
    """The name of a text encoding that Python knows."""
    try:
        "".encode(parse_text(value, option, what="an encoding"))
    except LookupError:
        raise ValueError(f"{option} must be an encoding such as utf-8, cp1252 or utf-16, got {quoted(value)}") from None
    return str(value)


def parse_pairs(value: object, option: str, *, pair: str = "NAME=VALUE") -> dict[str, str]:
    """Names and values, from a mapping, from a list of NAME=VALUE, or from text with commas between several."""
    if isinstance(value, Mapping):
        pairs = [(name, content) for name, content in value.items()]
    else:
        pairs = [_split_pair(item, option, pair) for item in _items(value, option)]
    found: dict[str, str] = {}
    for name, content in pairs:
        if not isinstance(name, str) or not name.strip() or not isinstance(content, str):
            raise ValueError(f"{option} must be {pair}, both text, got {quoted(name)} with the value {quoted(content)}")
        if name.strip() in found:
            raise ValueError(f"{option} gives {quoted(name.strip())} twice")
        found[name.strip()] = content
    return found


def parse_column_map(value: object, option: str) -> dict[str, str]:
    """Which header holds which field: field=Header,...; several lists (the flag given twice) are joined."""
    lists = value if isinstance(value, list | tuple) else [value]
    if not isinstance(value, Mapping):
        value = [part for text in lists for part in _items(text, option)]
    return parse_pairs(value, option, pair="field=Header (a header with a comma in it: write the map into a YAML file)")


def _items(value: object, option: str) -> list[object]:
    """A list as it is; text split at its commas, which is what an environment variable can hold."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, Path):
        return [value]
    if isinstance(value, list | tuple):
        return list(value)
    raise ValueError(f"{option} must be a list, got {quoted(value)}")


def _split_pair(item: object, option: str, pair: str) -> tuple[str, str]:
    name, equals, content = item.partition("=") if isinstance(item, str) else ("", "", "")
    if not equals:
        raise ValueError(f"{option} must be {pair}, got {quoted(item)}")
    return name, content


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
        "number of worker processes, 1 to 256; auto: one per usable core; 50%: that share of the cores",
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
    task_timeout: float = setting(
        partial(parse_duration, minimum_s=0.1, maximum_s=MAX_DURATION_S),
        "300s",
        "--timeout",
        "time and retries",
        "longest time for one attempt at a PO, 100ms to 7d; then its worker is killed and the PO retried",
        metavar="DURATION",
        known_as="time_limit",
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
        "which column holds which field, such as po_number=PO,supplier=Vendor,amount=Amount; "
        "fields from several sources are joined",
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
        "serve POs by their priority, 1 first to 10 last; false: in the order of the file",
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


@dataclass(frozen=True, slots=True)
class Resolved:
    """The settings of a run and where each came from.

    Attributes:
        origins: by key: "command line", "environment POQUEUE_JOBS", "configs/x.yaml line 3" or "default".
        notes: what a user should hear about the sources though nothing is wrong, such as an empty file.
    """

    settings: RunSettings
    origins: dict[str, str]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Given:
    """A value that some source gives: as it stands there, where that is, and how a message calls it."""

    value: object
    origin: str
    option: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add an option for every setting. What is not given stays out of the namespace, so that lower sources show."""
    groups: dict[str, Any] = {}
    for key, entry in SETTINGS.items():
        group = groups.get(entry.group) or groups.setdefault(entry.group, parser.add_argument_group(entry.group))
        group.add_argument(*entry.flags, dest=key, default=argparse.SUPPRESS, **_argparse_words(entry))


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


def load_settings(
    cli: Mapping[str, Any],
    config_path: Path | None,
    environ: Mapping[str, str],
    *,
    caller: str = "command line",
) -> Resolved:
    """Merge and check the sources: `cli` over the environment over the file over the defaults.

    `options` and `map` are joined name by name; of `processor` and `command` the higher source's is used.

    Args:
        cli: values by key, as argparse or a caller of the Python interface gives them; None counts as not given.
        config_path: a YAML file; None: the one that POQUEUE_CONFIG names, if any.
        environ: the environment; an empty variable counts as not set.
        caller: the origin to record for `cli`; anything but "command line" names settings by key, not by flag.

    Raises:
        ConfigError: an unknown name, a value that does not fit, or an unreadable file.
    """
    path = config_path or (Path(environ[CONFIG_VARIABLE]) if environ.get(CONFIG_VARIABLE) else None)
    from_file, notes = _read_file(path) if path else ({}, ())
    levels = [_from_caller(cli, caller), _from_environment(environ), from_file]
    read = [{key: _parse(key, given) for key, given in level.items()} for level in levels]
    _choose_processor_or_command(levels, read)

    values: dict[str, Any] = {}
    origins = dict.fromkeys(SETTINGS, "default")
    for level, parsed in zip(reversed(levels), reversed(read), strict=True):
        for key, value in parsed.items():
            joins = isinstance(value, dict) and values.get(key)
            values[key] = {**values[key], **value} if joins else value
            origins[key] = f"{level[key].origin}, over {origins[key]}" if joins else level[key].origin
    if values.get("command") is not None:
        origins["processor"] = "not used, as a command is given"
    resolved = Resolved(RunSettings(**values), origins, notes)
    _check_together(resolved)
    return resolved


def render_config(resolved: Resolved) -> list[tuple[str, Any, str]]:
    """(key, value, origin) of every setting, the value in JSON's types and as a YAML file takes it back."""
    return [
        (key, entry.show(getattr(resolved.settings, key)), resolved.origins[key]) for key, entry in SETTINGS.items()
    ]


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


# ── the sources ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _from_caller(cli: Mapping[str, Any], caller: str) -> dict[str, _Given]:
    given = {}
    for key, value in cli.items():
        if key not in SETTINGS:
            raise ConfigError(f"unknown setting {quoted(key)}{did_you_mean(nearest_setting(key))}")
        option = SETTINGS[key].flags[-1] if caller == "command line" else key
        if value is not None:
            given[key] = _Given(value, caller, option)
    return given


def _from_environment(environ: Mapping[str, str]) -> dict[str, _Given]:
    keys = {environment_name(key): key for key, entry in SETTINGS.items() if not entry.is_cli_only}
    given = {}
    for name, text in environ.items():
        if not name.startswith(ENVIRONMENT_PREFIX) or name == CONFIG_VARIABLE or name.startswith(OUR_OWN_VARIABLES):
            continue
        if name not in keys:
            key = nearest_setting(name.removeprefix(ENVIRONMENT_PREFIX))
            hint = did_you_mean(key and environment_name(key))
            raise ConfigError(f"unknown environment variable {safe_text(name, 80)}{hint}; correct or unset it")
        if text.strip():
            given[keys[name]] = _Given(text, f"environment {name}", f"environment variable {name}")
    return given


def _read_file(path: Path) -> tuple[dict[str, _Given], tuple[str, ...]]:
    shown = safe_text(str(path))
    entries = _read_yaml(_read_text(path, shown), shown)
    given = {}
    for key, (value, line) in entries.items():
        if key not in SETTINGS:
            raise ConfigError(f"{shown}:{line}: unknown key {safe_text(key, 80)}{did_you_mean(nearest_setting(key))}")
        if SETTINGS[key].is_cli_only:
            flag = SETTINGS[key].flags[-1]
            raise ConfigError(f"{shown}:{line}: {key} can only be given on the command line, as {flag}")
        if value is None and not SETTINGS[key].is_optional:
            raise ConfigError(f"{shown}:{line}: {key} has no value; give one, or remove the line to use the default")
        given[key] = _Given(value, f"{shown} line {line}", f"{shown}:{line}: {key}")
    return given, () if entries else (f"{shown} sets nothing: every setting has its default",)


def _parse(key: str, given: _Given) -> Any:
    try:
        return SETTINGS[key].parse(given.value, given.option)
    except ValueError as error:
        raise ConfigError(str(error)) from None


# ── checks of several settings ───────────────────────────────────────────────────────────────────────────────────────


def _choose_processor_or_command(levels: Sequence[dict[str, _Given]], read: Sequence[dict[str, Any]]) -> None:
    """Let the highest source that gives one of the two decide, and take the other away from all below."""
    for index, parsed in enumerate(read):
        named = [key for key in ("processor", "command") if parsed.get(key) is not None]
        if len(named) == 2:
            where = " and ".join(levels[index][key].option for key in named)
            raise ConfigError(f"{where} are both given, but a PO is processed by one of them: remove one")
        if named:
            for below in read[index + 1 :]:
                for other in ("command", "shell") if named == ["processor"] else ("processor",):
                    below.pop(other, None)
            return


def _check_together(resolved: Resolved) -> None:
    settings = resolved.settings
    if settings.retry_delay > settings.max_retry_delay:
        delay = f"retry_delay ({format_duration(settings.retry_delay)}, {resolved.origins['retry_delay']})"
        most = f"max_retry_delay ({format_duration(settings.max_retry_delay)}, {resolved.origins['max_retry_delay']})"
        raise ConfigError(f"{delay} must not be longer than {most}")
    if settings.results in settings.report:
        raise ConfigError(f"results and report name the same file: {quoted(str(settings.results))}")
    if settings.shell and settings.command is None:
        raise ConfigError(f"shell ({resolved.origins['shell']}) needs a command (--command); a processor has no shell")


# ── YAML ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _read_text(path: Path, shown: str) -> str:
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ConfigError(f"configuration is a directory, not a file: {shown}")
        if not stat.S_ISREG(mode):  # reading a FIFO would wait for ever
            raise ConfigError(f"configuration is not a regular file: {shown}")
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"configuration not found: {shown}") from None
    except OSError as error:
        raise ConfigError(f"configuration cannot be read: {shown}: {error.strerror}") from None
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"configuration is larger than {MAX_FILE_BYTES} bytes: {shown}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"configuration is not UTF-8 at byte {error.start}: {shown}") from None


def _read_yaml(text: str, shown: str) -> dict[str, tuple[object, int]]:
    """Keys with their values and lines. Nothing is constructed: a scalar is the text that stands there, or None.

    So `no`, `012`, `1e3` and `12:30` reach the reader of the key as they were written, not as what YAML 1.1 makes
    of them, and no tag can ask for an object.
    """
    import yaml  # not needed by a worker, nor without a file

    try:
        _check_events(yaml.parse(text, Loader=yaml.SafeLoader), shown)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{shown}:{mark.line + 1}:{mark.column + 1}" if mark else shown
        hint = "; indent with blanks, not tabs" if "'\\t'" in str(error.problem) else ""
        raise ConfigError(f"{place}: not valid YAML: {safe_text(str(error.problem), 200)}{hint}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{shown}:{line}: character {quoted(text[error.position])} is not allowed in YAML") from None
    if root is None or _is_null(root):
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{shown}:{_line(root)}: a configuration is made of lines 'key: value'")
    return {key: (_plain(value, shown, key), line) for key, (value, line) in _entries(root, shown).items()}


def _check_events(events: Any, shown: str) -> None:
    """Refuse what could make reading it dear or dangerous, before any of it is read."""
    import yaml

    depth = aliases = documents = 0
    for event in events:
        line = event.start_mark.line + 1
        documents += isinstance(event, yaml.DocumentStartEvent)
        aliases += isinstance(event, yaml.AliasEvent)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if documents > 1:
            raise ConfigError(f"{shown}:{line}: a second document begins here; a configuration has one")
        if aliases > MAX_ALIASES:
            raise ConfigError(f"{shown}:{line}: too many aliases (limit {MAX_ALIASES})")
        if depth > MAX_DEPTH:
            raise ConfigError(f"{shown}:{line}: nested too deep (limit {MAX_DEPTH})")
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise ConfigError(f"{shown}:{line}: tag {quoted(tag)} is not allowed; write a plain value")


def _entries(mapping: Any, shown: str) -> dict[str, tuple[Any, int]]:
    """The nodes of a mapping by key, with the line of the key; YAML itself would let the last of two equal keys win."""
    found: dict[str, tuple[Any, int]] = {}
    for key, value in mapping.value:
        if not isinstance(key.value, str):
            raise ConfigError(f"{shown}:{_line(key)}: a key must be a name, not a list or a mapping")
        if key.value in found:
            lines = f"{found[key.value][1]} and {_line(key)}"
            raise ConfigError(f"{shown}:{_line(key)}: duplicate key {safe_text(key.value, 80)}, lines {lines}")
        found[key.value] = (value, _line(key))
    return found


def _plain(node: Any, shown: str, key: str) -> object:
    """Text, None, a list of text, or a mapping of text to text; the deepest that any setting is."""
    if isinstance(node.value, str):
        return _scalar(node, shown, key)
    if node.id == "sequence":
        return [_scalar(item, shown, key) for item in node.value]
    return {name: _scalar(value, shown, f"{key}.{name}") for name, (value, _) in _entries(node, shown).items()}


def _scalar(node: Any, shown: str, key: str) -> str | None:
    if not isinstance(node.value, str):
        raise ConfigError(f"{shown}:{_line(node)}: {safe_text(key, 80)} must be text, not a list or a mapping")
    return None if _is_null(node) else node.value


def _is_null(node: Any) -> bool:
    return bool(node.tag == "tag:yaml.org,2002:null")


def _line(node: Any) -> int:
    return int(node.start_mark.line) + 1
