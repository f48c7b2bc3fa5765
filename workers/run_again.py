"""The command that runs again what a run has left over, as that run did."""

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from poqueue.errors import ConfigError
from workers.resolved import load_settings, render_config
from workers.run_dir import typed
from workers.settings import SETTINGS


def command_again(rows: Path, settings: Mapping[str, Any], config: Path | None = None) -> str:
    """The command that runs a file of left-over rows as a run did, whatever the environment and `config` say.

    Args:
        rows: failed.csv or not_run.csv.
        settings: those of the run, by key.
        config: the configuration file that the run was given.
    """
    words = ["poqueue", "run", typed(rows)]
    if config is not None:
        words += ["--config", str(config)]
    bases = [_settings_here(config, os.environ), _settings_here(config, {})]  # another terminal has another environment
    # Plain CSV, whatever the first file was; all of it, and into a place of its own.
    wanted = {**settings} | dict.fromkeys(("sheet", "limit", "run_dir", "results")) | {"report": []}
    wanted["encoding"] = "utf-8" if any(base["encoding"] for base in bases) else None
    wanted["delimiter"] = "," if any(base["delimiter"] for base in bases) else None
    wanted["map"] = {**dict.fromkeys((field for base in bases for field in base["map"]), ""), **wanted["map"]}
    if wanted["command"] is not None:
        del wanted["processor"]
    for base in bases:
        if wanted["command"] is None and base["command"] is not None:
            base |= {"processor": None, "command": None, "shell": False}
    for key, value in wanted.items():
        if key != "check" and any(value != base[key] for base in bases):
            words += _as_words(next(flag for flag in SETTINGS[key].flags if flag.startswith("--")), value)
    return shlex.join(words)


def _settings_here(config: Path | None, environ: Mapping[str, str]) -> dict[str, Any]:
    """The settings that a command has which gives none."""
    try:
        resolved = load_settings({}, config, environ)
    except ConfigError:  # a run that goes on does not read the environment
        resolved = load_settings({}, None, {})
    return {key: value for key, value, _ in render_config(resolved)}


def _as_words(flag: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [flag] if value else [flag.replace("--", "--no-", 1)]
    if isinstance(value, dict):
        pairs = ["=".join(pair) for pair in value.items()]
        return [word for pair in pairs for word in (flag, pair.replace(",", r"\,") if flag == "--map" else pair)]
    if flag == "--verbose":
        return ["-" + "v" * value] if value else []
    return [flag, "none" if value in (None, []) else str(value)]
