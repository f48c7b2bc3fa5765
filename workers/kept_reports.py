"""Reports that are not yet told to the queue, kept where they outlive their worker: what is done is never done again.

    kept                in shared memory, for results that fit: two halves, each
                            8 bytes   how often the half was emptied, so that a reader sees whether it was meanwhile
                            records   length of the whole, checksum; lease token, seconds, length of the id, task id,
                                      result (JSON)
                            zeros     up to the end of the half: the next record will say its length there
    reports, reports2   files, for the rest: a line each (JSON, tab, result)

One half, and one file, is filled while what is in the other is being told. A record counts once its length stands there,
which is written last, and its checksum is right: the worker may be killed anywhere before, and after a loss of power pages of
the file may be of different moments. To keep a result that fits takes no call of the system.
"""

import json
import logging
import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from zlib import crc32

from poqueue import fast_json
from poqueue.hints import StrPath
from poqueue.payload import refreeze
from poqueue.task import PlainSuccess, Report

logger = logging.getLogger(__name__)

KEPT_FILE = "kept"
REPORT_FILES = ("reports", "reports2")
HALF_BYTES = 65_536
KEPT_BYTES = 2 * HALF_BYTES
_WORD = struct.Struct("@Q")
_HEAD = struct.Struct("@QQ")  # length, checksum of what follows
_WORD_BYTES, _HEAD_BYTES = _WORD.size, _HEAD.size  # a struct's own attribute is looked for anew each time
_NOT_OURS = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError)  # what junk raises
_FACTS = struct.Struct("@QdQ")  # token, seconds, length of the id
_ROOM = 15  # behind a record, for zero as the length of none


class ReportKeeper:
    """The worker's side."""

    def __init__(self, folder: StrPath) -> None:
        with open(os.path.join(folder, KEPT_FILE), "r+b") as file:
            self._map = mmap.mmap(file.fileno(), KEPT_BYTES)
        self._fds = [os.open(os.path.join(folder, name), os.O_WRONLY | os.O_APPEND) for name in REPORT_FILES]
        self._has_lines = [False, False]
        self._emptied = [0, 0]
        self._filled = 0  # which half is
        self._next = [_WORD_BYTES, HALF_BYTES + _WORD_BYTES]  # where the next record of each half goes,
        self._limits = (HALF_BYTES, 2 * HALF_BYTES)  # and where the half ends

    def keep(self, report: Report | PlainSuccess) -> bool:
        """An attempt is over: should this process die before it can tell the queue, the supervisor will.

        Returns:
            False if there is no room for it on the disk.
        """
        if len(report) == 4:
            task_id, token, seconds, payload = report
        elif report.result is None:
            return self._keep_line(report, None, b"")
        else:
            task_id, token, seconds, payload = *report[:3], report.result.payload
        name, half = task_id.encode("utf-8", "surrogatepass"), self._filled
        body = _FACTS.pack(token, seconds, len(name)) + name + payload
        start = self._next[half]
        end = start + _HEAD_BYTES + len(body)
        if end + _ROOM > self._limits[half]:
            told = (True, seconds, None) if len(report) == 4 else report.result[:3]
            return self._keep_line(Report(task_id, token, seconds), told, payload)
        self._map[start + _WORD_BYTES : end] = _WORD.pack(crc32(body)) + body
        _WORD.pack_into(self._map, start, end - start)
        self._next[half] = (end + 7) & -8
        return True

    @property
    def has_lines(self) -> bool:
        """Whether some of them take room on the disk."""
        return True in self._has_lines

    def telling(self) -> None:
        """The reports so far are on their way to the queue, later ones not."""
        self._filled ^= 1

    def told(self, *, all_of_them: bool = True) -> None:
        """The queue has taken all reports so far, or only those that were on their way."""
        self._empty(self._filled ^ 1)
        if all_of_them:
            self._empty(self._filled)

    def _empty(self, half: int) -> None:
        start = half * HALF_BYTES
        first = start + _WORD_BYTES
        if self._next[half] == first and not self._has_lines[half]:
            return
        self._emptied[half] += 1
        _WORD.pack_into(self._map, first, 0)
        self._map[first : self._next[half]] = bytes(self._next[half] - first)
        _WORD.pack_into(self._map, start, self._emptied[half])  # from here on it is filled anew
        self._next[half] = first
        if self._has_lines[half]:
            os.ftruncate(self._fds[half], 0)
            self._has_lines[half] = False

    def _keep_line(self, report: Report, told: tuple[object, ...] | None, payload: bytes) -> bool:
        line = fast_json.encode((*report[:3], told, *report[4:])).encode()
        data = b"%b\t%b\n" % (line, payload)  # the payload is JSON too, and so without a tab or a line end of its own
        fd = self._fds[self._filled]
        self._has_lines[self._filled] = True
        try:
            written = os.write(fd, data)
            if written == len(data):
                return True
            os.ftruncate(fd, os.fstat(fd).st_size - written)  # a part would be taken for the whole, or spoil the next
        except OSError as error:
            logger.debug("a report cannot be kept: %s", error)
        return False

    def close(self) -> None:
        """Let go; what is kept stays."""
        self._map.close()
        for fd in self._fds:
            os.close(fd)


def read_kept(folder: StrPath) -> list[Report]:
    """What a worker has finished and perhaps not told, in the order of its leases; what it died over is left out."""
    reports = []
    with suppress(FileNotFoundError), open(os.path.join(folder, KEPT_FILE), "rb") as file:
        if os.fstat(file.fileno()).st_size == KEPT_BYTES:  # else its making was not finished, and nobody was given it
            with mmap.mmap(file.fileno(), KEPT_BYTES, access=mmap.ACCESS_READ) as kept:
                halves = [_read_half(kept, start) for start in range(0, KEPT_BYTES, HALF_BYTES)]
            reports = [report for half in halves for report in _records(half)]
    for name in REPORT_FILES:
        with suppress(FileNotFoundError), open(os.path.join(folder, name), "rb") as file:
            reports += _lines(file.read())
    return sorted(reports, key=lambda report: report.token)


def _read_half(kept: mmap.mmap, start: int) -> bytes:
    """As it was at some moment: records that an emptied half is filled with anew would lie across those of before."""
    while True:
        before = kept[start : start + _WORD_BYTES]
        half = kept[start : start + HALF_BYTES]
        if kept[start : start + _WORD_BYTES] == before:
            return half


def _records(half: bytes) -> Iterator[Report]:
    start = _WORD_BYTES
    while start + _HEAD_BYTES <= HALF_BYTES:
        length, checksum = _HEAD.unpack_from(half, start)
        if not length:
            return
        body = half[start + _HEAD_BYTES : start + length]
        if crc32(body) == checksum and len(body) >= _FACTS.size:
            with suppress(*_NOT_OURS):
                token, seconds, id_length = _FACTS.unpack_from(body)
                result = _FACTS.size + id_length
                task_id = body[_FACTS.size : result].decode("utf-8", "surrogatepass")
                yield Report(task_id, token, seconds, refreeze(body[result:]))
        start = (start + length + 7) & -8


def _lines(data: bytes) -> Iterator[Report]:
    for line in data.split(b"\n")[:-1]:
        with suppress(*_NOT_OURS):
            told, _, payload = line.partition(b"\t")
            task_id, token, seconds, result, *rest = json.loads(told)
            if result is not None:
                result = refreeze(payload)
            yield Report(task_id, token, seconds, result, *rest)
