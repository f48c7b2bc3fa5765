"""Importing a processor once, in a short-lived process, before any worker starts: one clear message instead of many."""

import os
import tempfile
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from poqueue.errors import ConfigError, ProcessorError
from poqueue.parent import die_with_parent
from poqueue.service import NO_GUARD, NO_GUARD_EXIT
from workers.process_control import quiet_start
from workers.processing import ProcessorSpec, check_importable, load_target

TIME_LIMIT_S = 60.0
SHIPPED = "workers.processors."
_OUTPUT_LINES = 10


class ProcessorCheck:
    """Begins at once; `finish` waits for the answer, so that the orders can be read meanwhile."""

    def __init__(self, spec: ProcessorSpec) -> None:
        self._spec = spec
        self._process: Any = None
        if not isinstance(spec.target, str) or spec.target.startswith(SHIPPED):
            load_target(spec)
            if not isinstance(spec.target, str):
                check_importable(spec.target)
            return
        self._output = tempfile.TemporaryFile(prefix="poqueue-check-")  # noqa: SIM115  (closed by close)
        path = f"/proc/{os.getpid()}/fd/{self._output.fileno()}"  # it has no name of its own, which a kill -9 would leave behind
        context = get_context("spawn")
        self._answers, answer = context.Pipe(duplex=False)
        self._process = context.Process(target=_check, args=(spec, answer, path))
        try:
            with quiet_start():
                self._process.start()
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
                    f"processor {self._spec.name!r}: importing it took longer than {TIME_LIMIT_S:g} s{self._said()}"
                )
            try:
                message = self._answers.recv()
            except EOFError:
                self._process.join()
                if self._process.exitcode == NO_GUARD_EXIT:
                    raise ConfigError(NO_GUARD) from None
                raise ProcessorError(
                    f"processor {self._spec.name!r}: importing it ended the process "
                    f"(exit code {self._process.exitcode}){self._said()}"
                ) from None
            if message:
                raise ProcessorError(message + self._said())
        finally:
            self.close()

    def close(self) -> None:
        """End the process, if it still runs."""
        if self._process is not None:
            if self._process.pid is not None:
                self._process.kill()
                self._process.join()
            self._process.close()
            self._process = None
            self._answers.close()
            self._output.close()

    def _said(self) -> str:
        self._output.seek(0)
        lines = self._output.read().decode(errors="replace").strip().splitlines()[-_OUTPUT_LINES:]
        return "".join(f"\n  | {line}" for line in lines)


def _check(spec: ProcessorSpec, answer: "Connection[str, str]", output_path: str) -> None:
    die_with_parent()
    try:
        output = os.open(output_path, os.O_WRONLY | os.O_APPEND)
    except FileNotFoundError:  # nobody waits for the answer any more
        os._exit(0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    try:
        load_target(spec)
    except ProcessorError as error:
        answer.send(str(error))
    else:
        answer.send("")
