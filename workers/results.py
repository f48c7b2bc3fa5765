"""Results out: what became of every row of the order file, in the run directory.

    results.csv   every row: its number, its cells, status, attempts, seconds, worker, error, the processor's fields.
                  During the run in the order of completion, with the fields as one JSON text; `finish` rewrites it
                  in the order of the file with a column for each field.
    failed.csv    the rows that failed, cells as they came: an order file of its own. Amounts that only the rest of their
                  column explains (1.234 where others say 5,50) are written so that they need no explanation
    not_run.csv   likewise the rows that never ended; only if there are any

Nothing of a finished row is kept in memory but where its line stands. Cells of results.csv that a spreadsheet would
run as a formula get a leading apostrophe; the other two files are read by programs again and are left as they are.
"""

from __future__ import annotations

import csv
import json
import mmap
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from poqueue import failpoint
from poqueue.errors import ConfigError
from poqueue.formula import guard_formula
from workers.orders import OrderBook, cells_as_given, cells_for_rerun
from workers.safe_text import safe_text
from workers.whole_file import check_output, replacement

Status = Literal["succeeded", "failed"]

RESULT_FILES = ("results.csv", "failed.csv", "not_run.csv")
MAX_FIELD_COLUMNS = 200  # a processor that names its fields after its data must not make a column of each
_PREFIX = "result_"
_OUTCOME_COLUMNS = ("status", "attempts", "seconds", "worker", "error")
_STATUSES = ("", "succeeded", "failed", "duplicate", "invalid", "not run")


@dataclass(frozen=True, slots=True)
class Accounts:
    """How many rows of the order file ended in which way."""

    rows: int
    succeeded: int
    failed: int
    duplicate: int
    invalid: int
    not_run: int

    @property
    def balances(self) -> bool:
        """Whether every input row is accounted for exactly once."""
        return self.rows == self.succeeded + self.failed + self.duplicate + self.invalid + self.not_run

    def lines(self) -> list[str]:
        """For people: one line, and a second one if rows are unaccounted for."""
        parts = f"{self.succeeded} succeeded + {self.failed} failed + {self.duplicate} duplicate"
        lines = [f"{self.rows} input rows = {parts} + {self.invalid} invalid + {self.not_run} not run"]
        if not self.balances:
            ended = self.succeeded + self.failed + self.duplicate + self.invalid + self.not_run
            lines.append(f"the accounts do not balance: {ended} outcomes for {self.rows} input rows")
        return lines

    def __str__(self) -> str:
        return "\n".join(self.lines())


class ResultsWriter:
    """Writes the result files of one run; not thread-safe.

    Args:
        run_dir: an existing directory without these files in it.
        book: the orders of the run.
        results_path: where `finish` writes another copy of results.csv, over what is there.

    Raises:
        ConfigError: results_path cannot be that file.
        OSError: also from every method; with the path of the file that could not be written.

    Attributes:
        written: the files that are in their final shape.
    """

    def __init__(self, run_dir: Path, book: OrderBook, results_path: Path | None = None) -> None:
        if results_path is not None:
            _check_results_path(results_path, book)
        self._book = book
        self._run_dir = run_dir
        self._results_path = results_path
        self._status = bytearray(book.last_row + 1)  # by row number: an index into _STATUSES
        self._fields: dict[str, None] = {}
        self.written: set[Path] = set()
        self._has_more_fields = False
        columns = _columns(book.headers, [*_OUTCOME_COLUMNS, "result"])
        self._results = _RowFile(run_dir / "results.csv", _guarded(columns), book.last_row)
        self._failed = _RowFile(run_dir / "failed.csv", book.headers, book.last_row)
        self._write_known()

    def outcome(
        self,
        po_data: dict[str, Any],
        *,
        status: Status,
        attempts: int,
        seconds: float,
        worker: str,
        error: str = "",
        data: dict[str, Any] | None = None,
    ) -> None:
        """Note how an order ended, for each of its rows. Told again for the same order, the last word counts.

        Args:
            po_data: the order, as the book had it.
            attempts: how many it took.
            seconds: of the last attempt.
            data: the processor's fields, of plain JSON types.
        """
        fields = data or {}
        self._note_fields(fields)
        result = json.dumps(fields, ensure_ascii=False, default=str) if fields else ""
        told = [status, str(attempts), f"{seconds:.3f}", guard_formula(worker), guard_formula(error)]
        self._note(po_data["row_numbers"], status)
        for number, row in zip(po_data["row_numbers"], po_data["rows"], strict=True):
            cells = cells_as_given(self._book.names, row)
            self._write(number, cells, told, result)
            if status == "failed":
                self._failed.write(number, cells_for_rerun(self._book, row))

    def flush(self) -> None:
        """Hand what is written so far to the system, so that the end of this process cannot lose it."""
        self._results.flush()
        self._failed.flush()

    def finish(self, not_run: Iterable[dict[str, Any]] = ()) -> Accounts:
        """Write what never ran, put the files in their final shape, and balance the accounts.

        Args:
            not_run: the orders (po_data) that did not end; those beyond the book's limit are known already.
        """
        self._write_not_run(self._note_not_run(not_run))
        failed = _STATUSES.index("failed")
        self._replace(self._failed, self._failed.path, (n for n in self._numbers() if self._status[n] == failed))
        unwritten: OSError | None = None
        if self._results_path is not None:  # before the run's own file, which is the source until then
            try:
                self._replace(self._results, self._results_path, self._numbers(), *self._final_columns())
            except OSError as error:  # the run's own file is not to suffer from it
                unwritten = error
        self._replace(self._results, self._results.path, self._numbers(), *self._final_columns())
        if unwritten is not None:
            raise unwritten
        return self.accounts()

    def close(self) -> None:
        """Close the files; harmless when repeated."""
        for file in (self._results, self._failed):
            file.close()

    def close_anyhow(self) -> None:
        """Close them though there is no room for what was not written yet."""
        for file in (self._results, self._failed):
            with suppress(OSError):
                file.close()

    def _write_known(self) -> None:
        """Rows whose fate the loader has decided."""
        for invalid in self._book.invalid:
            reason = f"{invalid.column}: {invalid.reason}" if invalid.column else invalid.reason
            self._note([invalid.row], "invalid")
            self._write(invalid.row, self._fitted(invalid.cells), ["invalid", "0", "", "", guard_formula(reason)])
        for duplicate in self._book.duplicate_rows:
            reason = f"same PO number as row {duplicate.first_row}"
            self._note([duplicate.row], "duplicate")
            self._write(duplicate.row, self._fitted(duplicate.cells), ["duplicate", "0", "", "", reason])
        self.flush()

    def _fitted(self, cells: Sequence[str]) -> list[str]:
        """As many cells as there are columns; surplus ones join the last, so that nothing is lost or shifted."""
        width = len(self._book.headers)
        padded = [*cells, *[""] * (width - len(cells))]
        return padded if len(padded) == width else [*padded[: width - 1], " | ".join(padded[width - 1 :])]

    def _write(self, number: int, cells: Sequence[str], told: list[str], result: str = "") -> None:
        self._results.write(number, [str(number), *_guarded(cells), *told], result)

    def _note(self, numbers: Iterable[int], status: str) -> None:
        """Before anything of it is written: the accounts hold though there is no room for the files."""
        for number in numbers:
            self._status[number] = _STATUSES.index(status)

    def _note_not_run(self, not_run: Iterable[dict[str, Any]]) -> list[tuple[int, dict[str, Any]]]:
        """The rows of these orders, and of those beyond the limit, of which nothing else is known."""
        found = [
            (number, row)
            for order in (*self._book.left_out, *not_run)
            for number, row in zip(order["row_numbers"], order["rows"], strict=True)
            if not self._status[number]
        ]
        self._note((number for number, _ in found), "not run")
        return found

    def _write_not_run(self, rows: Sequence[tuple[int, dict[str, Any]]]) -> None:
        if not rows:
            return
        file = _RowFile(self._run_dir / "not_run.csv", self._book.headers, self._book.last_row)
        code = _STATUSES.index("not run")
        try:
            for number, row in rows:
                file.write(number, cells_for_rerun(self._book, row))
                self._write(number, cells_as_given(self._book.names, row), ["not run", "0", "", "", ""])
            self._replace(file, file.path, (number for number in self._numbers() if self._status[number] == code))
            file.close()
        except OSError:  # there may be no room for it, and what is not whole would be taken for it
            file.remove()
            raise

    def _replace(self, file: _RowFile, target: Path, numbers: Iterable[int], *shape: Any) -> None:
        file.replace(target, numbers, *shape)
        self.written.add(target)

    def _numbers(self) -> Iterator[int]:
        """The rows with an outcome, in the order of the file."""
        return (number for number, status in enumerate(self._status) if status)

    def _note_fields(self, fields: dict[str, Any]) -> None:
        for name in fields:
            if name in self._fields:
                continue
            if len(self._fields) < MAX_FIELD_COLUMNS:
                self._fields[name] = None
            else:
                self._has_more_fields = True

    def _final_columns(self) -> tuple[list[str], Callable[[str], list[str]]]:
        """The header of the final results.csv, and what makes its last cells from the last one of a line of the run."""
        names = list(self._fields)
        more = ["result"] if self._has_more_fields else []
        header = _columns(self._book.headers, [*_OUTCOME_COLUMNS, *names, *more])

        def fields_of(result: str) -> list[str]:
            fields: dict[str, Any] = json.loads(result) if result else {}
            values = [_field_text(fields.pop(name, None)) for name in names]
            if more:
                values.append(json.dumps(fields, ensure_ascii=False) if fields else "")
            return values

        return _guarded(header), fields_of

    def accounts(self, not_run: Iterable[dict[str, Any]] = ()) -> Accounts:
        """The accounts without the files, as far as outcomes were told; `not_run` as in `finish`."""
        self._note_not_run(not_run)
        counts = {status: self._status.count(code) for code, status in enumerate(_STATUSES)}
        return Accounts(
            rows=self._book.row_count,
            succeeded=counts["succeeded"],
            failed=counts["failed"],
            duplicate=counts["duplicate"],
            invalid=counts["invalid"],
            not_run=counts["not run"],
        )


class _RowFile:
    """A CSV file that grows by one line a row and knows where the line of each row stands."""

    def __init__(self, path: Path, header: Sequence[str], last_row: int) -> None:
        self.path = path
        self._header = header
        self._starts = array("Q", bytes(8 * (last_row + 1)))
        self._ends = array("Q", bytes(8 * (last_row + 1)))
        self._lasts = array("Q", bytes(8 * (last_row + 1)))  # where the comma before the last cell stands
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file: BinaryIO = os.fdopen(os.open(path, flags, 0o600), "w+b")
        line = _csv_line(header)
        self._size_bytes = len(line)
        with _naming(path):
            self._file.write(line)

    def write(self, number: int, cells: Sequence[str], last: str | None = None) -> None:
        """Add the line of a row; it takes the place of an earlier one of the same row. `last` is one more cell."""
        line = _csv_line(cells)
        kept = len(line) - 1
        if last is not None:
            line = line[:-1] + _more_cells([last])
        try:  # and no `with`: this is done for each PO
            self._file.write(line)
        except OSError as error:
            raise _named(error, self.path) from None
        self._starts[number] = self._size_bytes
        self._lasts[number] = self._size_bytes + kept
        self._size_bytes += len(line)
        self._ends[number] = self._size_bytes

    def flush(self) -> None:
        with _naming(self.path):
            self._file.flush()

    def replace(
        self,
        target: Path,
        numbers: Iterable[int],
        header: Sequence[str] | None = None,
        cells_of: Callable[[str], list[str]] | None = None,
    ) -> None:
        """Write the lines of these rows in this order to `target`, whole or not at all.

        With `cells_of` the last cell of each gives way to what that makes of its text.
        """
        self.flush()
        with _naming(target), replacement(target) as out, self._mapped() as lines:
            out.write(_csv_line(header or self._header))
            starts, lasts, ends = self._starts, self._lasts, self._ends
            if cells_of is None:
                out.writelines(lines[starts[n] : ends[n]] for n in numbers)
            else:
                out.writelines(
                    lines[starts[n] : lasts[n]] + _more_cells(cells_of(_cell_text(lines[lasts[n] + 1 : ends[n] - 1])))
                    for n in numbers
                )
            failpoint.hit("results.before_replace")

    def close(self) -> None:
        with _naming(self.path):
            self._file.close()

    def remove(self) -> None:
        """Close it, and leave no trace."""
        with suppress(OSError):
            self._file.close()
        self.path.unlink(missing_ok=True)

    def _mapped(self) -> mmap.mmap:
        return mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)  # never empty: there is a header


class _Line:
    """Lets a csv.writer return its line: writerow hands back what `write` does."""

    def write(self, text: str) -> bytes:
        # Error texts may hold lone surrogates, which have no UTF-8 form.
        return text.removesuffix("\r\n").encode("utf-8", "backslashreplace") + b"\n"


# Told "\n", the writers before Python 3.13 leave a cell with a lone CR unquoted.
_write_row = csv.writer(_Line(), lineterminator="\r\n").writerow


def _csv_line(cells: Sequence[str]) -> bytes:
    line: bytes = _write_row(cells)
    return line


def _more_cells(cells: Sequence[str]) -> bytes:
    """The end of a line that has cells before these."""
    return _csv_line(("", *cells)) if cells else b"\n"


def _cell_text(cell: bytes) -> str:
    """What a cell of one of our lines says."""
    text = cell.decode()
    return text[1:-1].replace('""', '"') if text.startswith('"') else text


def _guarded(cells: Iterable[str]) -> list[str]:
    return [cell if cell.isalnum() else guard_formula(cell) for cell in cells]  # letters and digits are no formula


def _field_text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return guard_formula(value)
    return json.dumps(value, ensure_ascii=False)


def _columns(headers: list[str], names: Iterable[str]) -> list[str]:
    """The row's number, the headers and then `names`, prefixed where a column of that name is there already."""
    own: list[str] = []
    for name in ("row", *names):
        free = name
        while free in headers or free in own:
            free = _PREFIX + free
        own.append(free)
    return [own[0], *headers, *own[1:]]


def _check_results_path(path: Path, book: OrderBook) -> None:
    check_output(path)
    if path.exists() and book.path.exists() and path.samefile(book.path):
        raise ConfigError(f"results: {safe_text(str(path))} is the order file itself; name another file")


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the file in an error of the system: a full disk alone does not say which, nor does a temporary name."""
    try:
        yield
    except OSError as error:
        raise _named(error, path) from None


def _named(error: OSError, path: Path) -> OSError:
    return OSError(error.errno, error.strerror, str(path))
