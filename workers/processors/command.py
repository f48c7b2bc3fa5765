"""A program for each PO: the command line is a template, its fields come from the order.

The template is split once into arguments, as a shell would split it, and each argument is filled in: a value is never
split, never expanded and never seen by a shell. With `shell` the filled-in line goes to /bin/sh, every value quoted.
The program's output goes into the run's log; exit code 0 is success, any other fails the attempt.
"""

import os
import shlex
import string
import subprocess
from collections.abc import Iterable, Mapping
from typing import Any

from poqueue.errors import ConfigError
from workers.post_mortem import signal_name
from workers.processing import GiveUp, WorkerContext
from workers.quantities import did_you_mean, nearest

TARGET = "workers.processors.command:Command"
OPTION, SHELL_OPTION = "command", "shell"
_FIELD_MARK = 0xF0000  # a plane of Unicode for private use


class CommandFailed(Exception):
    """The program ended with another exit code than 0."""


class Command:
    """Runs the option `command` for each PO."""

    def setup(self, context: WorkerContext) -> None:
        self._template = context.options[OPTION]
        self._is_shell = context.options.get(SHELL_OPTION) == "true"

    def process(self, po: dict[str, Any], context: WorkerContext) -> dict[str, Any]:
        fields = _fields(po, context)
        try:
            ended = subprocess.run(
                self._arguments(fields), stdin=subprocess.DEVNULL, env=_environment(context), check=False
            )
        except FileNotFoundError as error:
            raise GiveUp(f"there is no program {error.filename!r}") from None
        except (PermissionError, ValueError) as error:
            raise GiveUp(f"the command cannot be started: {error}") from None
        if ended.returncode < 0:
            raise CommandFailed(f"the command was killed by {signal_name(-ended.returncode)}")
        if ended.returncode:
            raise CommandFailed(f"the command ended with exit code {ended.returncode}")
        return {"exit_code": 0}

    def _arguments(self, fields: Mapping[str, str]) -> list[str]:
        if self._is_shell:
            quoted = {name: shlex.quote(value) for name, value in fields.items()}
            return ["/bin/sh", "-c", fill_in(self._template, quoted)]
        return [fill_in(argument, fields) for argument in split_template(self._template)]


def check_command(template: str, names: Iterable[str]) -> None:
    """Whether a template can be filled in from these fields.

    Raises:
        ConfigError: it cannot be split, is empty, or names a field that no order has.
    """
    try:
        parts = split_template(template)
        fields_found = [found for found in string.Formatter().parse(template) if found[1] is not None]
    except ValueError as error:
        raise ConfigError(f"--command {template!r}: {error}") from None
    for _, name, form, conversion in fields_found:
        if form or conversion:
            raise ConfigError(f"--command {template!r}: {{{name}}} takes no format; values are filled in as they stand")
    wanted = [str(name) for _, name, _, _ in fields_found]
    if not parts:
        raise ConfigError("--command is empty")
    known = {*names, "po_number", "task_id", "attempt", "output_dir"}
    for name in wanted:
        if name not in known:
            fields = ", ".join(sorted(known))
            raise ConfigError(
                f"--command: the orders have no field {name!r}{did_you_mean(nearest(name, known))}; fields: {fields}"
            )


def split_template(template: str) -> list[str]:
    """The arguments of a template, as a shell would split it; a field is never split, whatever its name holds."""
    found = list(string.Formatter().parse(template))
    # Each field travels through the split as one character that no template holds.
    line = "".join(text + ("" if name is None else chr(_FIELD_MARK + n)) for n, (text, name, _, _) in enumerate(found))
    names = {chr(_FIELD_MARK + n): f"{{{name}}}" for n, (_, name, _, _) in enumerate(found) if name is not None}
    doubled = {"{": "{{", "}": "}}"}
    return ["".join(names.get(c) or doubled.get(c, c) for c in argument) for argument in shlex.split(line)]


def fill_in(template: str, fields: Mapping[str, str]) -> str:
    """Replace each {field} by its value; {{ and }} stand for braces."""
    parts = []
    for text, name, _, _ in string.Formatter().parse(template):
        parts.append(text)
        if name is not None:
            parts.append(fields.get(name, ""))
    return "".join(parts)


def _fields(po: Mapping[str, Any], context: WorkerContext) -> dict[str, str]:
    fields = {
        name: "" if value is None else str(value) for name, value in po.items() if not isinstance(value, list | dict)
    }
    ours = {"task_id": context.task_id, "attempt": str(context.attempt), "output_dir": str(context.output_dir)}
    return {**ours, **fields}


def _environment(context: WorkerContext) -> dict[str, str]:
    ours = {
        "PO_NUMBER": context.po_number,
        "PO_ATTEMPT": str(context.attempt),
        "PO_OUTPUT_DIR": str(context.output_dir),
    }
    return {**os.environ, **{name: value.replace("\0", "") for name, value in ours.items()}}
