"""Trying a processor once, in a short-lived process, before any worker starts: one clear message instead of many.

It is imported, and a class constructed, as workers do it; no session is opened.
"""

import os
import tempfile
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from poqueue.errors import ConfigError, ProcessorError
from poqueue.parent import gone_folder, has_ended, join
from poqueue.script_guard import NO_GUARD, NO_GUARD_EXIT
from workers import process_control as control
from workers.own_process import Adoption, become_worker
from workers.processing import ProcessorSpec, check_constructible, check_importable, load_target

TIME_LIMIT_S = 120.0  # as a worker has for it
SHIPPED = "workers.processors."
_OUTPUT_LINES = 10


class ProcessorCheck:
    """Begins at once; `finish` waits for the answer, so that the orders can be read meanwhile."""

    def __init__(self, spec: ProcessorSpec, start_method: str = "spawn") -> None:
        self._spec = spec
        self._process: Any = None
        self._since = 0
        self._adoption = Adoption()
        is_known = _is_known(spec, start_method)
        self._adoption.hold()
        if is_known:
            return
        self._output = tempfile.TemporaryFile(prefix="poqueue-check-")  # noqa: SIM115  (closed by close)
        path = f"/proc/{os.getpid()}/fd/{self._output.fileno()}"  # it has no name of its own, which a kill -9 would leave behind
        is_fork = start_method == "fork" and not isinstance(spec.target, str)  # which need not be importable anew
        context: Any = get_context("fork" if is_fork else "spawn")
        self._answers, answer = context.Pipe(duplex=False)
        self._id = f"check-{os.getpid()}-{os.urandom(4).hex()}"
        marks = {control.RUN_MARK: self._id, control.PROCESS_MARK: self._id}
        self._process = context.Process(target=_check, args=(spec, spec.name, answer, path, marks))
        try:
            with control.quiet_start():
                self._process.start()
            self._since = control.born(self._process.pid)
        except FileNotFoundError as error:
            self.close()
            if gone := gone_folder():
                raise ConfigError(f"no process can be started: the current folder is gone: {gone}") from error
            raise
        except BaseException:  # a Ctrl-C too: the process is ours to end
            self.close()
            raise
        finally:
            answer.close()

    def finish(self) -> None:
        """Wait for the answer.

        Raises:
            ProcessorError: the processor cannot be imported or does not fit.
        """
        if self._process is None:
            return
        try:
            if not self._answers.poll(TIME_LIMIT_S):
                raise ProcessorError(
                    f"processor {self._spec.name!r}: importing or constructing it took longer than {TIME_LIMIT_S:g} s"
                    f"{self._said()}"
                )
            try:
                message = self._answers.recv()
            except EOFError:
                join(self._process)
                if self._process.exitcode == NO_GUARD_EXIT:
                    raise ConfigError(NO_GUARD) from None
                raise ProcessorError(
                    f"processor {self._spec.name!r}: importing or constructing it ended the process "
                    f"(exit code {self._process.exitcode}){self._said()}"
                ) from None
            if message:
                raise ProcessorError(message + self._said())
        finally:
            self.close()

    def close(self) -> None:
        """End the process, if it still runs, and all that it has started; harmless when repeated."""
        if self._process is not None:
            if self._process.pid is not None:
                self._end(self._process.pid)
            self._process.close()
            self._process = None
            self._answers.close()
            self._output.close()
        self._adoption.let_go()

    def _end(self, pid: int) -> None:
        if not has_ended(self._process):
            control.kill_tree(pid, self._id, None, self._since)
        join(self._process)
        control.kill_belongings(pid, self._id, None, self._since)
        if not control.has_parents_of_others():  # of a supervisor in this process, whose orphans these might be
            control.kill_orphans()

    def _said(self) -> str:
        self._output.seek(0)
        lines = self._output.read().decode(errors="replace").strip().splitlines()[-_OUTPUT_LINES:]
        return "".join(f"\n  | {line}" for line in lines)


def _is_known(spec: ProcessorSpec, start_method: str) -> bool:
    """Without a process: what is ours, and what the program has imported, unless it is a class that is to be constructed.

    Raises:
        ProcessorError: it does not fit.
    """
    if isinstance(spec.target, str) and not spec.target.startswith(SHIPPED):
        return False
    load_target(spec)
    if isinstance(spec.target, str):
        return True
    check_importable(spec.target, start_method)
    return not isinstance(spec.target, type)


def _check(
    spec: ProcessorSpec, name: str, answer: "Connection[str, str]", output_path: str, marks: dict[str, str]
) -> None:
    become_worker(marks, dies_with_starter=True)  # a module may start processes while it is imported
    try:
        output = os.open(output_path, os.O_WRONLY | os.O_APPEND)
    except FileNotFoundError:  # nobody waits for the answer any more
        os._exit(0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    try:
        check_constructible(load_target(spec), name)  # __main__ is another one here
    except ProcessorError as error:
        answer.send(str(error))
    else:
        answer.send("")
