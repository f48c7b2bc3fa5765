"""Log lines: JSON in the run's log file, one object a line; text or JSON on the screen. Set up only by the batch.

A record may be about many POs at once: its attribute `each` then holds the ID_FIELDS of each, which become a line each.
"""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from poqueue import fast_json
from poqueue.hints import Any, StrPath
from workers.safe_text import safe_text

ID_FIELDS = ("run", "worker_id", "po_number", "task_id", "attempt")
OUTPUT_LOGGER = "workers.output"
PART_CHARS = 1000  # of a record of many lines: the buffer of a file holds 8192 bytes, and a character takes up to 6
LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)
_ROOTS = ("poqueue", "workers")
_lock = threading.Lock()  # for what follows
_active: "list[RunLogging]" = []  # each in its `with`
_undo = contextlib.ExitStack()  # leaves the loggers as the program has them


def _utc(moment: float) -> str:
    """As datetime.isoformat does it, to the millisecond."""
    seconds, micros = divmod(round(moment * 1e6), 1_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{micros // 1000:03d}+00:00"


class JsonFormatter(logging.Formatter):
    """One JSON object a line, always with the same keys first."""

    def __init__(self, run: str) -> None:
        super().__init__()
        self._run = run

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _utc(record.created),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "run": self._run,
        }
        more: dict[str, Any] = {}
        if record.exc_info:
            more["traceback"] = self.formatException(record.exc_info)
        for name in ("stack", "traceback"):
            if getattr(record, name, None):
                more[name] = getattr(record, name)
        head = fast_json.encode_any(line)
        lines = [_joined(head, _ids(ids) | more) for ids in _each(record)]
        return "\n".join(lines).encode(errors="backslashreplace").decode()


def _each(record: logging.LogRecord) -> list[Mapping[str, Any]]:
    each: list[Mapping[str, Any]] | None = getattr(record, "each", None)
    return [record.__dict__] if each is None else each


def _ids(ids: Mapping[str, Any]) -> dict[str, Any]:
    return {name: ids[name] for name in ID_FIELDS[1:] if ids.get(name) not in (None, "", 0)}


def _joined(head: str, more: dict[str, Any]) -> str:
    """Two JSON objects in one; the first is not empty."""
    return f"{head[:-1]}, {fast_json.encode_any(more)[1:]}" if more else head


class TextFormatter(logging.Formatter):
    """One line for people; nothing a PO contains can break out of it."""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        lines = []
        for ids in _each(record):
            told = [str(ids.get(name) or "") for name in ("worker_id", "po_number")]
            where = " ".join(f"[{part}]" for part in told if part)
            text = f"{clock} {record.levelname.lower():7} {where + ' ' if where else ''}{record.getMessage()}"
            lines.append(safe_text(text))
        return "\n".join(lines)


class _ShowHandler(logging.Handler):
    def __init__(self, show: Callable[[str], None]) -> None:
        super().__init__()
        self._show = show

    def emit(self, record: logging.LogRecord) -> None:
        try:
            for line in self.format(record).split("\n"):
                self._show(line)
        except Exception:
            self.handleError(record)


class _LogFile(logging.FileHandler):
    """What there is no room for on the disk is not logged; that it is full is told by others, on the screen."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write its lines, a few at a time: what a full disk does not take is whole lines, as long as a buffer holds them."""
        stream = self.stream
        if stream is None:
            return
        with contextlib.suppress(Exception):
            for part in _parts(self.format(record)):
                with contextlib.suppress(OSError):
                    stream.write(part)
                    stream.flush()

    def handleError(self, record: logging.LogRecord) -> None:
        """Nothing: the standard way would show a traceback."""

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


def _parts(text: str) -> Iterator[str]:
    part = ""
    for line in text.split("\n"):
        if part and len(part) + len(line) > PART_CHARS:
            yield part
            part = ""
        part += f"{line}\n"
    yield part


class ShieldedLogger(logging.LoggerAdapter[logging.Logger]):
    """Writes lines of a run, which no filter, handler or record factory of the embedding program can break off."""

    def __init__(self, name: str) -> None:
        super().__init__(logging.getLogger(name))

    def log(
        self, level: int, msg: object, *args: object, extra: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """As Logger.log, but for what it raises."""
        if not self.isEnabledFor(level):
            return
        with contextlib.suppress(Exception):
            try:
                self.logger.log(level, msg, *args, extra=extra, stacklevel=2, **kwargs)
            except KeyError:  # the factory of the program sets attributes of the same names
                self._log_over(level, msg, args, extra or {})

    def _log_over(self, level: int, msg: object, args: tuple[Any, ...], extra: Mapping[str, Any]) -> None:
        record = self.logger.makeRecord(self.logger.name, level, "", 0, msg, args, None)
        record.__dict__.update(extra)
        self.logger.handle(record)


def log_each(
    logger: logging.Logger | ShieldedLogger, level: int, message: str, each: Sequence[Mapping[str, Any]]
) -> None:
    """A line for each of these POs: by one record for the run's log, by a record each for handlers of the program's own."""
    if _active:
        logger.log(level, message, extra={"each": each})
        return
    for ids in each:
        logger.log(level, message, extra=dict(ids))


def _forget_runs() -> None:
    """A fork, a worker for instance, is no part of the runs of its program."""
    global _lock
    _lock = threading.Lock()  # whoever held it is not here
    for run in list(_active):
        run._end()


os.register_at_fork(after_in_child=_forget_runs)


class RunLogging:
    """The loggers of poqueue and workers, written to a file and shown, for the time of one run.

    Args:
        path: the log file; appended to.
        run: the run's name, on every line of the file.
        show: takes a line for the screen.
        verbosity: 0 warnings, 1 the life of processes, 2 every PO and its output.
        as_json: the lines shown are JSON too.
    """

    def __init__(self, path: StrPath, run: str, show: Callable[[str], None], *, verbosity: int, as_json: bool) -> None:
        self._file = _LogFile(path, encoding="utf-8", delay=False)
        os.chmod(path, 0o600)
        self._file.setFormatter(JsonFormatter(run))
        self._screen = _ShowHandler(show)
        self._screen.setFormatter(JsonFormatter(run) if as_json else TextFormatter())
        self._screen.setLevel(LEVELS[min(verbosity, len(LEVELS) - 1)])
        self._thread = 0
        for handler in (self._file, self._screen):
            handler.addFilter(self._is_ours)

    def __enter__(self) -> "RunLogging":
        self._thread = threading.get_ident()
        with _lock:
            if not _active:
                _take_over(_undo)
            _active.append(self)
            for one in map(logging.getLogger, _ROOTS):
                one.addHandler(self._file)
                one.addHandler(self._screen)
        return self

    def __exit__(self, *exc_info: object) -> None:
        with _lock:
            self._end()
        self._file.close()

    def _end(self) -> None:
        for one in map(logging.getLogger, _ROOTS):
            one.removeHandler(self._file)
            one.removeHandler(self._screen)
        _active.remove(self)
        if not _active:
            _undo.close()

    def _is_ours(self, record: logging.LogRecord) -> bool:
        """Runs at the same time have a thread each."""
        return len(_active) < 2 or threading.get_ident() == self._thread


def _take_over(undo: contextlib.ExitStack) -> None:
    """Have our loggers tell everything, and to nobody but runs."""
    for one in map(logging.getLogger, _ROOTS):
        undo.callback(one.setLevel, one.level)
        undo.callback(setattr, one, "propagate", one.propagate)
        one.setLevel(logging.DEBUG)
        one.propagate = False
    for name, found in list(logging.root.manager.loggerDict.items()):
        # dictConfig and fileConfig disable whatever logger is there, without being told to
        if name.partition(".")[0] in _ROOTS and isinstance(found, logging.Logger) and found.disabled:
            undo.callback(setattr, found, "disabled", True)
            found.disabled = False
