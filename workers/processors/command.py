"""A program for each PO: the command line is a template, its fields come from the order.

The template is split once into arguments, as a shell would split it, and each argument is filled in: a value is never
split, never expanded and never seen by a shell. With `shell` the filled-in line goes to /bin/sh, every value quoted.
The program's output goes into the run's log; exit code 0 is success, any other fails the attempt.
"""

import errno
import io
import os
import shlex
import shutil
import string
import subprocess
from collections.abc import Iterable, Mapping
from typing import Any

from poqueue.errors import ConfigError
from workers.post_mortem import signal_name
from workers.processing import GiveUp, WorkerContext
from workers.processors.shell_quotes import FIELD_MARK, field_in_quotes
from workers.quantities import did_you_mean, nearest
from workers.safe_text import quoted

TARGET = "workers.processors.command:Command"
OPTION, SHELL_OPTION = "command", "shell"
_HOPELESS = frozenset({
    errno.EACCES, errno.EPERM, errno.ENOEXEC, errno.E2BIG, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG,
})  # fmt: skip  # at every attempt


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
            raise GiveUp(_what_is_missing(error.filename)) from None
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno not in _HOPELESS:
                raise
            raise GiveUp(f"the command cannot be started: {error}") from None
        if ended.returncode < 0:
            raise CommandFailed(f"the command was killed by {signal_name(-ended.returncode)}")
        if ended.returncode:
            raise CommandFailed(f"the command ended with exit code {ended.returncode}")
        return {"exit_code": 0}

    def _arguments(self, fields: Mapping[str, str]) -> list[str]:
        if self._is_shell:
            return _shell_arguments(self._template, fields)
        return [fill_in(argument, fields) for argument in split_template(self._template)]


def _what_is_missing(program: str) -> str:
    if shutil.which(program) is None:
        return f"there is no program {program!r}"
    return f"the command cannot be started: {program!r} is there, but the interpreter that its first line names is not"


def _shell_arguments(template: str, fields: Mapping[str, str]) -> list[str]:
    """The shell is given the values as arguments, and puts them into variables that the line names."""
    names = list(dict.fromkeys(name for _, name, _, _ in string.Formatter().parse(template) if name is not None))
    # Not "$1" in the line itself, which is another one in a function of it.
    taken = "".join(f"_poqueue_{number}=$1; shift; " for number in range(len(names)))
    line = fill_in(template, {name: f'"$_poqueue_{number}"' for number, name in enumerate(names)})
    return ["/bin/sh", "-c", taken + line, "/bin/sh", *(fields.get(name, "") for name in names)]


def check_command(template: str, names: Iterable[str], *, is_shell: bool = False) -> None:
    """Whether a template can be filled in from these fields, and its program started.

    Raises:
        ConfigError: it cannot be split, is empty, names a field that no order has, or one within quotes of a shell; or
            there is no such program.
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
    line, marks = _marked(template)
    if is_shell and (mark := field_in_quotes(line)):
        raise ConfigError(
            f"--command {template!r}: {marks[mark]} stands within quotes or arithmetic; "
            "the values are quoted already: take the quotes away"
        )
    if not is_shell:
        _check_program(parts[0])


def _check_program(word: str) -> None:
    """A program of which the order is a part shows only when it is started."""
    has_field = any(name is not None for _, name, _, _ in string.Formatter().parse(word))
    program = fill_in(word, {})
    if not has_field and shutil.which(program) is None:
        what = "is no program that can be started" if os.path.lexists(program) and "/" in program else "was not found"
        raise ConfigError(f"--command: {quoted(program)} {what}; nothing ran")


def bind_program(template: str) -> str:
    """The template with its program found from anywhere, if that is named by a path from here and without a field."""
    rest = io.StringIO(template)
    words = shlex.shlex(rest, posix=True)
    words.whitespace_split, words.commenters = True, ""
    try:
        program = words.get_token() or ""
    except ValueError:  # a quote is never closed: check_command says so
        return template
    if "/" not in program or os.path.isabs(program) or {"{", "}"} & set(program):
        return template
    bound = os.path.join(os.getcwd(), program).replace("{", "{{").replace("}", "}}")
    return f"{shlex.quote(bound)} {rest.read()}"


def split_template(template: str) -> list[str]:
    """The arguments of a template, as a shell would split it; a field is never split, whatever its name holds."""
    line, marks = _marked(template)
    doubled = {"{": "{{", "}": "}}"}
    return ["".join(marks.get(c) or doubled.get(c, c) for c in argument) for argument in shlex.split(line)]


def _marked(template: str) -> tuple[str, dict[str, str]]:
    """The template with one character that no template holds for each field, and which field each of them is."""
    found = list(string.Formatter().parse(template))
    line = "".join(text + ("" if name is None else chr(FIELD_MARK + n)) for n, (text, name, _, _) in enumerate(found))
    return line, {chr(FIELD_MARK + n): f"{{{name}}}" for n, (_, name, _, _) in enumerate(found) if name is not None}


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
    return {**fields, **ours}


def _environment(context: WorkerContext) -> dict[str, str]:
    ours = {
        "PO_NUMBER": context.po_number,
        "PO_ATTEMPT": str(context.attempt),
        "PO_OUTPUT_DIR": str(context.output_dir),
    }
    return {**os.environ, **{name: value.replace("\0", "") for name, value in ours.items()}}
