"""What a worker runs: finding a processing function, and running one attempt of a PO.

A processor is a function `process(po)` or `process(po, context)`, or a class with `process` and, if it likes,
`setup(context)` and `teardown()`: one instance a worker process. It returns a dict, a TaskResult or None, and raises to
fail the attempt. Whatever it returns or raises is reduced to plain data here, in the worker, so that nothing of it can
harm the manager.
"""

import copyreg
import importlib
import math
import os
import sys
import traceback
from _thread import get_ident
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from pickle import PicklingError
from types import FunctionType

from poqueue.config import MAX_TIMEOUT_S
from poqueue.errors import ProcessorError
from poqueue.hints import TYPE_CHECKING, Any, NoReturn, StrPath
from poqueue.payload import FrozenResult, freeze_flat_success, freeze_plain_result, freeze_success, is_duration, thaw
from poqueue.plain import NotPlainError, plain, plain_details
from poqueue.task import Fields, PlainLease, PlainSuccess, Report, TaskResult
from workers.clock import monotonic_ns
from workers.processor_fit import check_fit, positional_count
from workers.signals import Interrupt, Termination

if TYPE_CHECKING:  # else where it is used
    from pathlib import Path

MAX_RESULT_BYTES = 10_000_000
MAX_MESSAGE_CHARS = 8_000
MAX_TRACEBACK_CHARS = 64_000
_importing: set[int] = set()  # threads
_Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]


class GiveUp(Exception):
    """Raised by a processor: this PO cannot succeed; fail it at once, without a retry."""


class RetryLater(Exception):
    """Raised by a processor: try this PO again after a given delay, a server's Retry-After for instance.

    Args:
        message: why.
        after: seconds; the queue's longest retry delay is the limit.
    """

    def __init__(self, message: str = "", *, after: float) -> None:
        super().__init__(message or f"asked to be tried again after {after} s")
        self.after = max(float(after), 0.0)  # NaN stays NaN, and is no delay

    def __reduce__(self) -> tuple[Any, ...]:
        """So that it comes out of a process pool: made again without a call of __init__, which wants `after` by name."""
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]  # it is there


class Terminated(BaseException):
    """Raised in a worker by SIGTERM: the supervisor ends this process; `finally` and `teardown` still run."""


class TaskDataError(Exception):
    """The PO's data cannot be opened in the worker."""


class WorkerContext(Fields):
    """What a processor may know of its worker and its PO.

    Attributes:
        worker_id: this worker's id; never used twice in a run.
        po_number, task_id: the PO in hand.
        attempt: which attempt this is, from 1; above 1 an earlier one may have had effects.
        max_attempts: the attempt after which the PO ends as failed.
        output_dir: the run's folder for what processors write.
        options: the options given for the processor, as text.
    """

    _fields = ("worker_id", "output_dir", "options", "po_number", "task_id", "attempt", "max_attempts", "owner")
    __slots__ = ("_output_dir", *(name for name in _fields if name != "output_dir"))

    def __init__(
        self,
        worker_id: str,
        output_dir: StrPath,
        options: dict[str, str] | None = None,
        po_number: str = "",
        task_id: str = "",
        attempt: int = 0,
        max_attempts: int = 0,
        owner: Callable[[int | None, str | None], None] | None = None,
    ) -> None:
        self.worker_id = worker_id
        self.output_dir = output_dir
        self.options = {} if options is None else options
        self.po_number = po_number
        self.task_id = task_id
        self.attempt = attempt
        self.max_attempts = max_attempts
        self.owner = owner

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(getattr(self, name) for name in self._fields if name != "owner")

    def __copy__(self) -> "WorkerContext":
        return type(self)(*(getattr(self, name) for name in self._fields))

    @property
    def output_dir(self) -> "Path":
        """The run's folder for what processors write."""
        from pathlib import Path  # only here: not every processor writes

        return Path(self._output_dir)

    @output_dir.setter
    def output_dir(self, folder: StrPath) -> None:
        self._output_dir = folder

    def own(self, *, pid: int | None = None, path: _Path | None = None) -> None:
        """Name a process or a path (file or folder) that the supervisor must remove if this worker dies or is killed.

        What is named in `setup` counts until the worker ends by itself, what is named in a PO until that attempt has ended
        by itself: a file that was finished stays, whatever becomes of the worker. Children of the worker need no naming:
        they die with it. A worker that ends by itself cleans up in `teardown`.

        Only the worker itself can: the copy of a context that a pool is given does nothing here.
        """
        if self.owner is not None:
            self.owner(pid, os.fsdecode(path) if path is not None else None)


class ProcessorSpec(Fields):
    """What is to process the POs: `target` is "module:attribute", or a function or class that can be pickled.

    Attributes:
        options: handed to the processor in `context.options`.
        app_dir: folder put first on sys.path to import from.
    """

    _fields = ("target", "options", "app_dir")
    __slots__ = _fields

    def __init__(self, target: Any, options: dict[str, str] | None = None, app_dir: str | None = None) -> None:
        self.target = target
        self.options = {} if options is None else options
        self.app_dir = app_dir

    @property
    def name(self) -> str:
        """The target as a person would write it."""
        if isinstance(self.target, str):
            return self.target
        return f"{getattr(self.target, '__module__', '?')}:{getattr(self.target, '__qualname__', repr(self.target))}"


class Processor:
    """A processing function or an instance of a processing class, behind one face: `process(po, context)` processes one PO."""

    def __init__(self, target: Any) -> None:
        instance: Any = target() if isinstance(target, type) else target
        process: Any = getattr(instance, "process", instance) if type(instance) is not FunctionType else instance
        self.process: Callable[[dict[str, Any], WorkerContext], Any] = (
            process if positional_count(process) >= 2 else lambda po, context: process(po)
        )
        self._setup = getattr(instance, "setup", None) if process is not instance else None
        self._teardown = getattr(instance, "teardown", None) if process is not instance else None

    def setup(self, context: WorkerContext) -> None:
        """Open the session; once a worker."""
        if self._setup is not None:
            self._setup(context)

    def teardown(self) -> None:
        """Close the session."""
        if self._teardown is not None:
            self._teardown()


# ---------------------------------------------------------------------- finding


def load_target(spec: ProcessorSpec) -> Any:
    """Import the target and check that it fits; called in every worker, and once before any worker starts.

    Raises:
        ProcessorError: with one message that says what is wrong and what to do.
    """
    target = _import_target(spec) if isinstance(spec.target, str) else spec.target
    check_fit(target, spec.name)
    return target


def is_importing() -> bool:
    """Whether it is the import of a processor that leads here: what it starts, every worker would start."""
    return get_ident() in _importing


def check_constructible(target: Any, name: str) -> None:
    """A class is constructed as each worker does it; its session is opened only there.

    Raises:
        ProcessorError: it cannot be.
    """
    try:
        Processor(target)
    except BaseException as error:  # a class may raise anything
        raise ProcessorError(
            f"processor {name!r}: constructing it failed: {in_a_line(error)}{_place_of(error)}"
        ) from error


def check_importable(target: Any, start_method: str = "spawn") -> None:
    """A function or class given as an object must be importable by name in a worker.

    Raises:
        ProcessorError: a lambda, a local function, an attribute of __main__ without a file, or what cannot be pickled for
            a worker that is no fork.
    """
    module, name = getattr(target, "__module__", None), getattr(target, "__qualname__", "")
    if module is None or "<" in name:
        raise ProcessorError(
            f"processor {name or target!r}: workers are processes of their own and import it by name; "
            "define it at the top level of a module (no lambda, no local function)"
        )
    if module == "__main__" and not hasattr(sys.modules["__main__"], "__file__"):
        raise ProcessorError(
            f"processor {name}: workers are processes of their own and cannot import what was typed in or came by -c; "
            "put it into a file, and name it as module:attribute"
        )
    if start_method == "fork":
        return
    try:
        ForkingPickler.dumps(target)
    except (PicklingError, AttributeError, TypeError) as error:
        raise ProcessorError(
            f"processor {ProcessorSpec(target).name}: workers are processes of their own, and it cannot be pickled for them "
            f"({error}); name it as module:attribute"
        ) from error


def _import_target(spec: ProcessorSpec) -> Any:
    path = spec.target
    module_name, colon, attribute = path.partition(":")
    if not colon or not module_name.strip() or not attribute.strip() or ":" in attribute:
        raise ProcessorError(
            f"processor {path!r} must be written module:attribute, for instance my_site.orders:process"
        )
    if spec.app_dir is not None and spec.app_dir not in sys.path:
        sys.path.insert(0, spec.app_dir)
    _importing.add(get_ident())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise ProcessorError(
                f"processor {path!r}: there is no module {error.name!r} on the import path; "
                "install it, or name the folder it is in with --app-dir DIR"
            ) from None
        raise ProcessorError(f"processor {path!r}: importing {module_name} failed: {in_a_line(error)}") from error
    except (Interrupt, Termination):
        raise  # that came from outside
    except SystemExit as error:
        raise ProcessorError(
            f"processor {path!r}: importing {module_name} ended the process (exit {error.code})"
        ) from None
    except BaseException as error:  # a module may raise anything while it is imported
        raise ProcessorError(
            f"processor {path!r}: importing {module_name} failed: {in_a_line(error)}{_place_of(error)}"
        ) from error
    finally:
        _importing.discard(get_ident())
    target: Any = module
    for part in attribute.split("."):
        if not _has(target, part, path):
            from workers.quantities import did_you_mean, nearest

            hint = did_you_mean(nearest(part, [name for name in dir(target) if not name.startswith("_")]))
            raise ProcessorError(f"processor {path!r}: {module_name} has no attribute {attribute!r}{hint}")
        target = getattr(target, part)
    return target


def _has(target: Any, name: str, path: str) -> bool:
    try:
        return hasattr(target, name)
    except Exception as error:  # a module may have a __getattr__ of its own
        raise ProcessorError(f"processor {path!r}: looking up {name!r} failed: {in_a_line(error)}") from error


def in_a_line(error: BaseException) -> str:
    """Its type and the first line of its message; "…" stands for others."""
    text = "".join(traceback.format_exception_only(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if isinstance(error, SyntaxError):  # the place comes before it, and is told in another way
        return lines[-1]
    told = lines.pop(0)
    if told.endswith(":") and lines:  # the message begins with the end of a line
        told += f" {lines.pop(0)}"
    return f"{told} …" if lines else told


def _place_of(error: BaseException) -> str:
    if isinstance(error, SyntaxError) and error.filename:  # it was raised by the compiler
        return f" ({error.filename}, line {error.lineno})"
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename and f.filename != __file__
    ]
    return f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""


# ---------------------------------------------------------------------- one attempt


def run_attempt(processor: Processor, lease: PlainLease, context: WorkerContext) -> Report | PlainSuccess:
    """Run one attempt and say how it ended. Only Terminated passes through.

    A processor may raise anything, SystemExit and KeyboardInterrupt included: that is a failed attempt, not the end of
    the worker.
    """
    task_id, token, context.attempt, context.max_attempts, _, context.po_number, payload = lease
    context.task_id = task_id
    po = None
    begin = monotonic_ns()
    try:
        po = thaw(payload)
        value = processor.process(po, context)
        took_ns = monotonic_ns() - begin
        if type(value) is not dict and isinstance(value, TaskResult):  # which looks further than the type
            return Report(task_id, token, took_ns / 1e9, _freeze_result(value, took_ns / 1e9))
        return task_id, token, took_ns / 1e9, _freeze_value(value, took_ns)
    except Terminated:
        raise
    except BaseException as error:  # the border: nothing a processor raises goes further
        seconds = (monotonic_ns() - begin) / 1e9
        return _report_of(error if po is not None else _not_opened(error), lease, seconds)


def describe_exception(error: BaseException) -> dict[str, Any]:
    """An exception as plain data: type, message (8,000 characters) and traceback (64,000)."""
    described = {
        "error_type": type(error).__name__,
        "message": _shown_by(lambda: str(error), "its message cannot be shown")[:MAX_MESSAGE_CHARS],
        "traceback": _shown_by(lambda: "".join(traceback.format_exception(error)), "its traceback cannot be shown")[
            -MAX_TRACEBACK_CHARS:
        ],
    }
    return plain_details(described)


def _shown_by(show: Callable[[], str], otherwise: str) -> str:
    """A __str__ or __repr__ of a processor's own may raise anything."""
    try:
        return show()
    except Terminated:
        raise
    except BaseException as fault:
        return f"({otherwise}: {type(fault).__name__})"


def _report_of(error: BaseException, lease: PlainLease, seconds: float) -> Report:
    details = describe_exception(error) | {"seconds": round(seconds, 3)}
    if isinstance(error, NotPlainError):
        details["error_type"] = "ResultNotSerializable"
    after_s = asked_s(error) if isinstance(error, RetryLater) else None
    return Report(lease[0], lease[1], seconds, None, details, after_s, isinstance(error, GiveUp))


def asked_s(error: RetryLater) -> float | None:
    """A delay that the queue takes; None, and so its own, for what is none."""
    try:
        after_s = float(error.after)
    except (AttributeError, TypeError, ValueError, OverflowError):  # a subclass may set what it likes, or nothing
        return None
    return None if math.isnan(after_s) else min(max(0.0, after_s), MAX_TIMEOUT_S)


def _not_opened(error: BaseException) -> BaseException:
    if not isinstance(error, Exception):
        return error
    described = TaskDataError(f"the PO's data cannot be opened here: {type(error).__name__}: {error}")
    described.__cause__ = error
    return described


class ResultTooLarge(Exception):
    """The processor returned more than a result may hold."""


def _as_list(downloads: Any) -> list[Any]:
    if isinstance(downloads, list):
        return downloads
    return [] if downloads is None else [downloads]


def _seconds_of(result: TaskResult, measured: float) -> float:
    """The time that the processor states, if it is one, or else what was measured."""
    stated = plain(result.processing_time)
    return float(stated) if is_duration(stated) and stated > 0 else measured


def _freeze_result(result: TaskResult, seconds: float) -> FrozenResult:
    """A processor's own result, reduced to plain data."""
    message = None if result.error_message is None else _encodable(str(result.error_message)[:MAX_MESSAGE_CHARS])
    downloads, data = _as_list(plain(result.downloads)), plain(result.data) or {}
    if not isinstance(data, dict):
        raise NotPlainError(f"the result's data is a {type(data).__name__}; a dict is needed")
    frozen = freeze_plain_result(
        TaskResult(bool(result.success), downloads, _seconds_of(result, seconds), message, data)
    )
    if len(frozen.payload) > MAX_RESULT_BYTES:
        _refuse_size(frozen.payload)
    return frozen


def _encodable(message: str) -> str:
    """A message is for people: it is no reason to lose what it tells of."""
    return message.encode(errors="backslashreplace").decode()[:MAX_MESSAGE_CHARS]


def _freeze_value(value: Any, took_ns: int) -> bytes:
    """Anything else that a processor returned, as the result of a success."""
    payload: bytes | None = None
    if type(value) is dict and "downloads" not in value:  # nearly always
        payload = freeze_flat_success(took_ns, value)
    if payload is None:
        payload = _freeze_plain(value, took_ns)
    if len(payload) > MAX_RESULT_BYTES:
        _refuse_size(payload)
    return payload


def _freeze_plain(value: Any, took_ns: int) -> bytes:
    if value is None:
        return freeze_success([], took_ns, {})
    if not isinstance(value, dict):
        raise NotPlainError(f"the processor returned a {type(value).__name__}; return a dict, a TaskResult or None")
    fields = plain(value)
    return freeze_success(_as_list(fields.pop("downloads", None)), took_ns, fields)


def _refuse_size(payload: bytes) -> NoReturn:
    raise ResultTooLarge(f"the result takes {len(payload):,} bytes; at most {MAX_RESULT_BYTES:,} are kept")
