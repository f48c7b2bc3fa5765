"""The settings of one run, merged from their sources, each value with where it came from.

command line > environment POQUEUE_<KEY> > YAML file > what a run that goes on was started with > default
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from poqueue.errors import ConfigError
from workers.config_file import read_config_file
from workers.quantities import did_you_mean, format_duration
from workers.safe_text import quoted, safe_text
from workers.setting_values import place_of
from workers.settings import ENVIRONMENT_PREFIX, SETTINGS, RunSettings, environment_name, nearest_setting

CONFIG_VARIABLE = "POQUEUE_CONFIG"
OUR_OWN_VARIABLES = ("POQUEUE_TEST", "POQUEUE_FAILPOINT", "POQUEUE_RUN_ID")  # beginnings of names that are no settings


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


def load_settings(
    cli: Mapping[str, Any],
    config_path: Path | None,
    environ: Mapping[str, str],
    *,
    caller: str = "command line",
    recorded: Mapping[str, Any] | None = None,
) -> Resolved:
    """Merge and check the sources: `cli` over the environment over the file over `recorded` over the defaults.

    `options` and `map` are joined name by name, and a field with an empty header leaves the map; of `processor` and
    `command` the higher source's is used.

    Args:
        cli: values by key, as argparse or a caller of the Python interface gives them; None counts as not given.
        config_path: a YAML file; None: the one that POQUEUE_CONFIG names, if any.
        environ: the environment; an empty variable counts as not set.
        caller: the origin to record for `cli`; anything but "command line" names settings by key, not by flag.
        recorded: what the run was started with, of one that goes on, by key.

    Raises:
        ConfigError: an unknown name, a value that does not fit, or an unreadable file.
    """
    path = config_path or (Path(environ[CONFIG_VARIABLE]) if environ.get(CONFIG_VARIABLE) else None)
    from_file, notes = _read_file(path) if path else ({}, ())
    levels = [_from_caller(cli, caller), _from_environment(environ), from_file]
    read = [_parse_all(level) for level in levels]
    levels.append(_from_record(recorded or {}, read))
    read.append(_parse_all(levels[-1]))
    _choose_processor_or_command(levels, read)

    values: dict[str, Any] = {}
    origins = dict.fromkeys(SETTINGS, "default")
    for level, parsed in zip(reversed(levels), reversed(read), strict=True):
        for key, value in parsed.items():
            joins = isinstance(value, dict) and values.get(key)
            values[key] = {**values[key], **value} if joins else value
            origins[key] = f"{level[key].origin}, over {origins[key]}" if joins else level[key].origin
    values["map"] = {field: header for field, header in values.get("map", {}).items() if header}
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


def _from_record(recorded: Mapping[str, Any], above: Sequence[dict[str, Any]]) -> dict[str, _Given]:
    """What is needed of it: a directory, say, that another one has replaced need not exist any more."""
    works = [(key, one[key]) for one in above for key in ("processor", "command") if one.get(key) is not None]
    is_another = bool(works) and works[0] not in recorded.items()  # which has options of its own
    is_needed = {
        key: (key == "map" or not is_another) if isinstance(value, dict) else not any(key in one for one in above)
        for key, value in recorded.items()
    }
    return _from_caller({key: value for key, value in recorded.items() if is_needed[key]}, "run.json")


def _from_environment(environ: Mapping[str, str]) -> dict[str, _Given]:
    keys = {environment_name(key): key for key, entry in SETTINGS.items() if not entry.is_cli_only}
    given = {}
    for name, text in environ.items():
        if not name.startswith(ENVIRONMENT_PREFIX) or name == CONFIG_VARIABLE or name.startswith(OUR_OWN_VARIABLES):
            continue
        if name not in keys:
            key = nearest_setting(name.removeprefix(ENVIRONMENT_PREFIX))
            if key is not None and SETTINGS[key].is_cli_only:
                hint = f": {key} can only be given on the command line, as {SETTINGS[key].flags[-1]}"
                raise ConfigError(f"environment variable {safe_text(name, 80)}{hint}; unset it")
            hint = did_you_mean(key and environment_name(key))
            raise ConfigError(f"unknown environment variable {safe_text(name, 80)}{hint}; correct or unset it")
        if text.strip(" \r\n"):  # a tab may be a delimiter
            given[keys[name]] = _Given(text, f"environment {name}", f"environment variable {name}")
    return given


def _read_file(path: Path) -> tuple[dict[str, _Given], tuple[str, ...]]:
    shown = safe_text(str(path))
    entries = read_config_file(path)
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


def _parse_all(level: Mapping[str, _Given]) -> dict[str, Any]:
    return {key: _parse(key, given) for key, given in level.items()}


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
    if settings.results is not None and place_of(settings.results) in map(place_of, settings.report):
        raise ConfigError(f"results and report name the same file: {quoted(str(settings.results))}")
    if settings.shell and settings.command is None:
        raise ConfigError(f"shell ({resolved.origins['shell']}) needs a command (--command); a processor has no shell")
