"""What a worker writes where the supervisor can read it without asking, and after the worker is dead.

One private folder a worker process:
    status   a few fields in shared memory: phase, lease token, PO, since when, time limit. Written by the worker alone.
    output   stdout, stderr and log records of the processor, with an invisible line at the end of each PO that wrote.
    stack    where the Python code is, written by faulthandler when the supervisor asks (SIGUSR1).
    kept     attempts that are over and not yet told to the queue, with reports and reports2 (kept_reports).
    owned    processes (and when each was born) and paths that are to be removed if the worker is killed, a JSON object a line,
             with the lease token of the attempt that named it, 0 for the session.
    mark     mapped by the worker alone, and so by all that it forks; never written to, it tells when the worker was started.
    boot     why the worker could not start: a line for people, and then the traceback, if there is one.
    usage    what it has used, of a worker that ended by itself;
    id       under which id it works.
"""

import contextlib
import json
import logging
import mmap
import os
import shutil
import struct
from collections.abc import Iterator
from enum import IntEnum

from poqueue.hints import Any, NamedTuple, StrPath
from poqueue.task import PlainLease, Report
from workers.clock import monotonic
from workers.kept_reports import KEPT_BYTES, KEPT_FILE, REPORT_FILES, ReportKeeper, read_kept

logger = logging.getLogger(__name__)

_STATUS = struct.Struct("<QQQddQ160s64sQ")
_PLACE_BYTES = _STATUS.size  # a struct's own attribute is looked for anew each time
_TURN_AT = 2 * _PLACE_BYTES  # behind two places there is one byte, whose last bit says which of them holds
_STATUS_BYTES = _TURN_AT + 1
_IDLE_AT = 15  # in a place: the last byte of the phase, which is a small number,
_IDLE = 1 << 56  # and so by this much larger while nothing is in hand any more
_NO_LEASE: PlainLease = ("", 0, 0, 0, 0.0, "", b"")
MAX_LINE_CHARS = 10_000
MAX_LINE_BYTES = 1_000_000
MAX_RECORD_BYTES = 990_000  # with the mark in front, it is a line that is read whole
MAX_READ_BYTES = 250_000
MAX_READ_LINES = 2_000
MAX_PENDING_LINES = 1_000
LAST_WORDS_BYTES = 1_000_000
MAX_BEHIND_BYTES = 64_000_000
FREED_AT_ONCE_BYTES = 1_048_576
_MAX_BOOT_CHARS = 8_000
_PUNCH_HOLE_KEEP_SIZE = 0x2 | 0x1  # linux/falloc.h


def private(path: str, flags: int) -> int:
    """An opener of files for this user alone, whatever the umask."""
    return os.open(path, flags, 0o600)


class Phase(IntEnum):
    """How far a worker process has come."""

    BOOTING = 0
    STANDBY = 1  # imported, and waits to be told its id
    SETTING_UP = 2
    WORKING = 3
    RECYCLING = 4  # ends by itself, to be replaced
    ENDING = 5


class Status(NamedTuple):
    """What a worker does now. `token` 0 means that it has nothing in hand; times are monotonic seconds."""

    phase: Phase
    token: int
    attempt: int
    started: float
    task_timeout: float
    output_start: int
    po_number: str
    task_id: str

    @property
    def has_begun(self) -> bool:
        """Whether the worker has ever begun a PO: from then on it tells no moment while it has none."""
        return bool(self.token) or not self.started


class Usage(NamedTuple):
    """What workers have used from their first PO to their own end; times in seconds.

    Attributes:
        cpu_s: computing, of worker and children.
        busy_s: time in attempts.
        queued_s: ready to compute, but without a core.
        max_rss_bytes: the most that a worker and one child of it have held.
    """

    cpu_s: float = 0.0
    busy_s: float = 0.0
    queued_s: float = 0.0
    max_rss_bytes: int = 0

    @classmethod
    def of_run(cls, run: dict[str, Any]) -> "Usage | None":
        """As the report of a run tells it."""
        try:
            usage = cls(**run["workers_used"])
        except (KeyError, TypeError):
            return None
        return usage if usage.busy_s > 0.0 else None

    def with_other(self, other: "Usage") -> "Usage":
        """Of both together."""
        return Usage(
            self.cpu_s + other.cpu_s, self.busy_s + other.busy_s, self.queued_s + other.queued_s,
            max(self.max_rss_bytes, other.max_rss_bytes),
        )  # fmt: skip


def _read_status(status: mmap.mmap) -> tuple[Any, ...]:
    fields = _STATUS.unpack_from(status, (status[_TURN_AT] & 1) * _PLACE_BYTES)
    return fields if fields[1] < _IDLE else (0, fields[1] - _IDLE, 0, 0.0, 0.0, fields[5], b"", b"", 0)


class WorkerWriter:
    """The worker's side."""

    def __init__(self, folder: StrPath, mark: str) -> None:
        self.folder = folder
        self._mark = mark
        with open(os.path.join(folder, "status"), "r+b") as file:
            self._map = mmap.mmap(file.fileno(), _STATUS_BYTES)
        with open(os.path.join(folder, "mark"), "r+b") as file:
            self._mark_map = mmap.mmap(file.fileno(), 1)  # forks of this process are known by it
        self._phase = Phase.BOOTING
        self._turn = 0
        self.output_fd = os.open(os.path.join(folder, "output"), os.O_WRONLY | os.O_APPEND)
        self._output_end = os.lseek(self.output_fd, 0, os.SEEK_END)
        self._output_start = -1  # where it ended when the last PO began
        self.reports = ReportKeeper(folder)

    def phase(self, phase: Phase) -> None:
        """Say how far the worker has come, with nothing in hand."""
        self._phase = phase
        self.begin(_NO_LEASE, monotonic())

    def begin(self, lease: PlainLease, started: float) -> None:
        """A PO is in hand from now on; before anything of it is opened, so that whatever happens is charged to it.

        Written into the place that does not hold, and only then, in one step, it does: this process may stop anywhere in between.
        """
        task_id, token, attempt, _, task_timeout, po_number, _ = lease
        self._turn = turn = (self._turn + 1) & 255
        _STATUS.pack_into(
            self._map, (turn & 1) * _PLACE_BYTES,
            token, self._phase, attempt, started, task_timeout, self._output_end,
            po_number.encode("utf-8", "replace"), task_id.encode("utf-8", "replace"), token,
        )  # fmt: skip
        self._output_start = self._output_end
        self._map[_TURN_AT] = turn

    def end(self, lease: PlainLease) -> None:
        """The PO is done; if it wrote output, mark where that ends."""
        if os.lseek(self.output_fd, 0, os.SEEK_END) != self._output_end:
            task_id, token, attempt, _, _, po_number, _ = lease
            mark = {"token": token, "attempt": attempt, "po_number": po_number, "task_id": task_id}
            with contextlib.suppress(OSError):  # no room: the lines count as the next PO's
                os.write(self.output_fd, f"\n{self._mark}{json.dumps(mark)}\n".encode())
            self._output_end = os.lseek(self.output_fd, 0, os.SEEK_END)

    def idle(self) -> None:
        """Nothing is in hand; no more than that is written down, unless there is output."""
        if self._output_end == self._output_start:
            self._map[(self._turn & 1) * _PLACE_BYTES + _IDLE_AT] = 1
        else:
            self.begin(_NO_LEASE, 0.0)

    def log(self, record: logging.LogRecord, text: str) -> None:
        """A log record, kept apart from plain output by its level and logger."""
        line = {"level": record.levelname, "logger": record.name, "message": text}
        encoded = json.dumps(line)
        if len(encoded) > MAX_RECORD_BYTES:
            kept = text[: MAX_RECORD_BYTES // 12]  # so many bytes a character may take
            line["message"] = f"{kept} [{len(text) - len(kept):,} characters are left out here]"
            encoded = json.dumps(line)
        os.write(self.output_fd, f"\n{self._mark}{encoded}\n".encode())

    def own(self, pid: int | None, path: str | None) -> None:
        """Name what must be removed if this worker is killed: in the PO that is in hand, or else while the session lasts."""
        from workers.process_control import born  # only here: few processors name anything

        token = _read_status(self._map)[0]  # whoever asks: it may be a fork
        owned = {
            "token": token, "pid": pid, "born": born(pid) if pid else None, "path": os.path.abspath(path) if path else None,
        }  # fmt: skip
        with open(os.path.join(self.folder, "owned"), "a", encoding="utf-8", opener=private) as file:
            file.write(json.dumps(owned) + "\n")

    def boot_failed(self, reason: str) -> None:
        """Say why the worker could not start."""
        text = reason[:_MAX_BOOT_CHARS].encode(errors="backslashreplace")
        with open(os.path.join(self.folder, "boot"), "wb", opener=private) as file:
            file.write(text)

    def used(self, usage: Usage) -> None:
        """The worker ends by itself; this is worth no failure."""
        with (
            contextlib.suppress(OSError),
            open(os.path.join(self.folder, "usage"), "w", encoding="utf-8", opener=private) as file,
        ):
            json.dump(usage, file)


class OutputLine(NamedTuple):
    """A line that a processor wrote, and whose it is; `level` is that of a log record."""

    text: str
    level: str
    logger: str
    po_number: str
    task_id: str
    attempt: int


class WorkerReader:
    """The supervisor's side; makes the folder and removes it. After an OSError there may be part of it."""

    def __init__(self, folder: StrPath) -> None:
        self.folder = folder
        os.mkdir(folder, 0o700)
        self._make_files()
        self.mark = f"\x1e{os.urandom(8).hex()} "  # begins the lines that are ours among a processor's output
        self._begin()

    def _make_files(self) -> None:
        """What the worker needs to start: whoever starts it can wait for room on the disk, it cannot."""
        for name in ("output", *REPORT_FILES, "stack"):
            os.close(os.open(os.path.join(self.folder, name), os.O_WRONLY | os.O_CREAT, 0o600))
        with open(os.path.join(self.folder, "mark"), "wb", opener=private) as file:
            file.write(b"\0")
        with open(os.path.join(self.folder, KEPT_FILE), "wb", opener=private) as file:
            file.write(bytes(KEPT_BYTES))  # not a hole: to touch one while the disk is full is a SIGBUS
        with open(os.path.join(self.folder, "status"), "w+b", opener=private) as file:
            file.write(bytes(_STATUS_BYTES))
            file.flush()
            self._map = mmap.mmap(file.fileno(), _STATUS_BYTES)

    @classmethod
    def of_dead(cls, folder: StrPath) -> "WorkerReader":
        """The files of a worker that an earlier supervisor has started."""
        files = cls.__new__(cls)
        files.folder = folder
        with open(os.path.join(folder, "status"), "rb") as file:
            files._map = mmap.mmap(file.fileno(), _STATUS_BYTES, access=mmap.ACCESS_READ)
        files.mark = ""
        files._begin()
        return files

    def _begin(self) -> None:
        self._output_fd = -1
        self._read_to = 0
        self._freed_to = 0
        self._rest = b""
        self._pending: list[tuple[str, str, str]] = []  # lines whose PO is not known yet: text, level, logger

    def status(self) -> Status:
        """What the worker does now. One that died while it wrote has not begun the PO that it was about to name."""
        for _ in range(1000):
            turn = self._map[_TURN_AT]
            first, phase, attempt, started, limit, output, po_number, task_id, last = _read_status(self._map)
            if first == last and self._map[_TURN_AT] == turn:
                break  # else it has written twice meanwhile, so it is alive and the next look is as good
        return Status(
            Phase(phase), first, attempt, started, limit, output,
            po_number.rstrip(b"\0").decode(errors="replace"), task_id.rstrip(b"\0").decode(errors="replace"),
        )  # fmt: skip

    def stack(self) -> str:
        """What faulthandler wrote so far."""
        return self._text("stack")

    def boot_failure(self) -> str:
        """Why the worker could not start, or nothing."""
        return self._text("boot")

    def usage(self) -> Usage | None:
        """What the worker has used, if it ended by itself."""
        try:
            return Usage._make(json.loads(self._text("usage")))
        except (ValueError, TypeError):  # it did not, or there was no room
            return None

    def owned(self) -> list[dict[str, Any]]:
        """What is to be removed of a worker that was killed: its session's things, and those of the attempt that it was in.

        What an attempt has named is its own once its report is kept. Older files do not say who named it.
        """
        named = []
        for line in self._text("owned").splitlines():
            with contextlib.suppress(ValueError):  # it was killed while it wrote
                named.append(json.loads(line))
        if not named:
            return []
        holds = {0, self.status().token} - {report.token for report in self.untold_reports()}
        return [one for one in named if one.pop("token", 0) in holds]

    def name(self, worker_id: str) -> None:
        """Note under which id it works, for whoever finds the folder; this is worth no failure."""
        path = os.path.join(self.folder, "id")
        with contextlib.suppress(OSError), open(path, "w", encoding="utf-8", opener=private) as file:
            file.write(worker_id)

    def worker_id(self) -> str:
        """Under which id it works or has worked; empty if under none."""
        return self._text("id")

    def untold_reports(self) -> list[Report]:
        """What the worker has finished and perhaps not told."""
        return read_kept(self.folder)

    def output(self, is_dead: bool = False) -> list[OutputLine]:
        """The lines written since the last call whose PO is known; of a dead worker, all to the last.

        What is written between two POs counts as the next one's; if that is much, as nobody's, and its PO number is empty.
        A flood is not kept: what is 64 MB behind, or 1 MB before the end of a dead worker, is left out, and a line says so.
        """
        if not (is_dead or self._pending or self._has_more()):
            return []  # as nearly always
        return list(self._lines(is_dead))

    def _has_more(self) -> bool:
        return self._output_fd < 0 or os.fstat(self._output_fd).st_size != self._read_to

    def _lines(self, is_dead: bool) -> Iterator[OutputLine]:
        while True:
            status = self.status()
            data = self._read_new(is_dead)
            is_end = is_dead and not data
            lines = (self._rest + data).split(b"\n")
            self._rest = b"" if is_end else lines.pop()[:MAX_LINE_BYTES]  # a line is cut, however long it is
            for raw in lines:
                yield from self._take_line(raw)
            if self._pending and (is_end or (status.token and self._pending_is_of(status))):
                yield from self._attributed(status.po_number, status.task_id, status.attempt)
            elif len(self._pending) > MAX_PENDING_LINES and self._pending_is_nobodys():
                yield from self._attributed("", "", 0)
            if is_end or not is_dead:
                return

    def _take_line(self, raw: bytes) -> list[OutputLine]:
        mark = self._as_mark(raw)
        if mark is None:
            if raw:
                self._pending.append((raw[:MAX_LINE_CHARS].decode(errors="replace").rstrip("\r"), "", ""))
            return []
        if "token" in mark:
            return self._attributed(str(mark["po_number"]), str(mark["task_id"]), int(mark["attempt"]))
        self._pending.append((str(mark["message"]), str(mark["level"]), str(mark["logger"])))
        return []

    def remove(self) -> None:
        """Let go of the folder, and remove it."""
        self.let_go()
        shutil.rmtree(self.folder, ignore_errors=True)

    def let_go(self) -> None:
        """The files stay."""
        if self._output_fd >= 0:
            os.close(self._output_fd)
            self._output_fd = -1
        self._map.close()

    def _pending_is_of(self, status: Status) -> bool:
        """No end of an earlier PO is still to come: everything up to the current one's start has been read."""
        return self.status().token == status.token and self._read_to >= status.output_start

    def _pending_is_nobodys(self) -> bool:
        """No PO is in hand, and none has an end that is still to come."""
        status = self.status()
        return not status.token and self._read_to >= status.output_start

    def _attributed(self, po_number: str, task_id: str, attempt: int) -> list[OutputLine]:
        lines = [OutputLine(text, level, name, po_number, task_id, attempt) for text, level, name in self._pending]
        self._pending = []
        return lines

    def _read_new(self, is_dead: bool) -> bytes:
        """The next piece; small enough not to keep the supervisor from its other workers."""
        if self._output_fd < 0:
            try:
                self._output_fd = os.open(os.path.join(self.folder, "output"), os.O_RDWR)
            except FileNotFoundError:
                return b""
        behind = os.fstat(self._output_fd).st_size - self._read_to
        if behind > (LAST_WORDS_BYTES if is_dead else MAX_BEHIND_BYTES):
            self._pending.append((f"[{behind - LAST_WORDS_BYTES:,} bytes of output are left out here]", "", ""))
            self._read_to += behind - LAST_WORDS_BYTES
            self._rest = b""
        data = os.pread(self._output_fd, MAX_READ_BYTES, self._read_to)
        if data.count(b"\n") > MAX_READ_LINES:
            data = b"\n".join(data.split(b"\n", MAX_READ_LINES)[:-1]) + b"\n"
        self._read_to += len(data)
        if self._read_to - self._freed_to >= FREED_AT_ONCE_BYTES:
            _free_room(self._output_fd, self._read_to)
            self._freed_to = self._read_to
        return data

    def _text(self, name: str) -> str:
        return self._bytes(name).decode(errors="replace")

    def _bytes(self, name: str) -> bytes:
        try:
            with open(os.path.join(self.folder, name), "rb") as file:
                return file.read()
        except FileNotFoundError:
            return b""

    def _as_mark(self, raw: bytes) -> dict[str, Any] | None:
        """One of the lines that begin with this worker's own mark, which no other text does."""
        if not raw.startswith(self.mark.encode()):
            return None
        try:
            mark: dict[str, Any] = json.loads(raw[len(self.mark) :])
        except ValueError:  # the worker died while it wrote
            return None
        return mark


def _free_room(fd: int, size_bytes: int) -> None:
    """Give the room of a file's beginning back to the disk, where the file system can; the file's size stays, and the rest."""
    import ctypes  # only here: few workers write so much

    allocate = ctypes.CDLL(None).fallocate
    allocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)
    allocate(fd, _PUNCH_HOLE_KEEP_SIZE, 0, size_bytes)
