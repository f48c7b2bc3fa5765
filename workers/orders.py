"""Order files in: CSV and Excel workbooks become the purchase orders of a batch.

    bytes ──► table (headers, records) ──► columns (which is which) ──► rows ──► orders (one a PO)
              CSV: encoding, delimiter      by --map or by name           invalid rows stand aside, with the reason
              Excel: a child process

Row numbers are those a spreadsheet shows: the header is row 1, a blank row counts. The file is only ever read.
A file that cannot be read as a whole is an OrdersError; a row that cannot be used is an InvalidRow of the book.
"""

from __future__ import annotations

import codecs
import csv
import gc
import hashlib
import importlib.util
import io
import json
import os
import re
import shlex
import signal
import stat
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import islice
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, cast, get_args

from poqueue.errors import ConfigError, OrdersError
from workers.amounts import is_plain, plain_text, read_amount
from workers.quantities import did_you_mean, nearest
from workers.safe_text import quoted, safe_text

Duplicates = Literal["group", "error", "first", "separate"]
Cell = str | float | bool | list[str]  # list: the ISO text of a date or time, which JSON has no type for
Row = dict[str, Any]
Records = Generator[tuple[int, Sequence[Cell]], None, None]  # with row numbers, blank rows included

DEFAULT_PRIORITY = 5
MAX_PO_NUMBER_CHARS = 64
MAX_LISTED = 20  # rows or POs that one message shows
PROGRESS_ROWS = 10_000

KNOWN_FIELDS = ("po_number", "supplier", "amount", "priority")
_RESERVED_NAMES = ("rows", "row_numbers", "as_given")  # what an order's data holds beside its columns
# Only proposed, never taken: the wrong column as the PO number would cost a whole batch.
_ALIASES = ("po", "pono", "ponr", "purchaseorder", "purchaseordernumber", "ordernumber", "orderno", "order", "transno")

_DELIMITERS = {",": ",", ";": ";", "tab": "\t", "|": "|"}
_SNIFFED_LINES = 200
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_WORKBOOK_SUFFIXES = (".xlsx", ".xlsm", ".xlsb", ".xls", ".ods")
_EXACT_INTEGERS = 10**15  # Excel keeps 15 digits; a longer number has lost its last ones already
MAX_EXPANDED_BYTES = 1024**3
MAX_RATIO = 100
_HARMLESS_BYTES = 32 * 1024**2  # a workbook this small may be packed as tightly as it likes
MAX_MEMBERS = 1000
MAX_WORKBOOK_MEMORY_BYTES = 4 * 1024**3
_WORKBOOK_SILENCE_S = 120.0
_SENT_ROWS = 1000


@dataclass(frozen=True, slots=True)
class OrderSource:
    """Which file to read, and how.

    Args:
        path: the order file.
        mapping: field name -> header of its column, as given with --map.
        sheet: name or 1-based number of the sheet. None: the only visible one with data.
        delimiter: one character, or "tab". None: found out.
        encoding: None: UTF-8, or what a byte-order mark says, or else cp1252 with a note.
        duplicates: what several rows of one PO are. "group": one order; "error": refused; "first": the first row is
            the order, the rest are duplicates; "separate": an order each.
        limit: only this many orders are to run; the other rows count as left out.

    Raises:
        ConfigError: a value out of range.
    """

    path: Path
    mapping: dict[str, str] = field(default_factory=dict)
    sheet: str | None = None
    delimiter: str | None = None
    encoding: str | None = None
    duplicates: Duplicates = "group"
    limit: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))
        self._check_delimiter()
        if self.duplicates not in get_args(Duplicates):
            hint = did_you_mean(nearest(self.duplicates, get_args(Duplicates)))
            expected = ", ".join(get_args(Duplicates))
            raise ConfigError(f"duplicates must be one of {expected}, got {quoted(self.duplicates)}{hint}")
        if self.limit is not None and (isinstance(self.limit, bool) or self.limit < 1):
            raise ConfigError(f"limit must be a whole number from 1, got {quoted(self.limit)}")
        for name in self.mapping:
            if not name.strip() or name in _RESERVED_NAMES:
                raise ConfigError(f"map: {quoted(name)} cannot be the name of a field")

    def _check_delimiter(self) -> None:
        if self.delimiter is None:
            return
        character = {"tab": "\t", "\\t": "\t"}.get(self.delimiter, self.delimiter)
        if len(character) != 1 or character in '"\r\n\0 ':
            raise ConfigError(f'delimiter must be one character such as , ; | or "tab", got {quoted(self.delimiter)}')
        object.__setattr__(self, "delimiter", character)


@dataclass(frozen=True, slots=True)
class InvalidRow:
    """A row that cannot be run: where, what stood there, and why it cannot be used."""

    row: int
    column: str
    value: str
    reason: str
    cells: list[str]

    def __str__(self) -> str:
        if not self.column:
            return f"row {self.row}: {self.reason}"
        return f"row {self.row}, column {quoted(self.column)}: {self.reason}, got {quoted(self.value)}"


@dataclass(frozen=True, slots=True)
class DuplicateRow:
    """A row that duplicates="first" left aside, and the row of the same PO that stands for it."""

    row: int
    po_number: str
    first_row: int
    cells: list[str]


@dataclass(slots=True)
class OrderBook:
    """What one file holds after reading.

    Every row that is not blank is in exactly one of `orders`, `left_out`, `invalid` and `duplicate_rows`.

    Attributes:
        headers: the header cells as they came.
        names: the field name of each column, all different: "po_number" for a mapped or recognised column, else the
            header; "column_1" for a blank one, "Date_2" for a repeated one.
        orders: the data of each order (po_data), in the order of their first rows.
        priorities: of each order, 1 to 10: the most urgent of its rows; 5 without such a column.
        left_out: orders beyond the limit.
        row_count: rows that are not blank.
        last_row: number of the last row, the header's if there is none.
        sha256: of the file's bytes, in hex.
        encoding, delimiter: what a CSV file was read with; None for a workbook.
    """

    path: Path
    headers: list[str]
    names: list[str]
    sha256: str
    encoding: str | None = None
    delimiter: str | None = None
    orders: list[dict[str, Any]] = field(default_factory=list)
    priorities: list[int] = field(default_factory=list)
    left_out: list[dict[str, Any]] = field(default_factory=list)
    invalid: list[InvalidRow] = field(default_factory=list)
    duplicate_rows: list[DuplicateRow] = field(default_factory=list)
    row_count: int = 0
    blank_rows: int = 0
    last_row: int = 1
    notes: list[str] = field(default_factory=list)


def read_orders(source: OrderSource, *, on_progress: Callable[[int], None] | None = None) -> OrderBook:
    """Read an order file whole.

    Args:
        source: the file and how to read it.
        on_progress: called with the number of rows read so far, every 10,000 rows.

    Raises:
        OrdersError: the file as a whole cannot be used; the text says where, why and what to do.
    """
    label = safe_text(str(source.path))
    data = _read_bytes(source.path, label)
    open_table = _open_workbook if _is_workbook(source, label, data) else _open_csv
    table = open_table(source, label, data)
    with closing(table.records), _uncollected():
        return _read_table(table, source, label, data, on_progress)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Spare the garbage collector from walking all rows again and again while they grow: it triples the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _read_table(
    table: _Table, source: OrderSource, label: str, data: bytes, on_progress: Callable[[int], None] | None
) -> OrderBook:
    columns = _Columns.find(table.headers, source.mapping, label)
    book = OrderBook(
        source.path, table.headers, columns.names, hashlib.sha256(data).hexdigest(), table.encoding, table.delimiter
    )
    book.last_row = table.header_row
    book.notes += table.notes + columns.notes
    collector = _Collector(book, columns, source, label)
    for number, cells in table.records:
        collector.add(number, cells)
        if on_progress is not None and number % PROGRESS_ROWS == 0:
            on_progress(book.row_count)
    collector.finish()
    return book


def cells_as_given(names: Sequence[str], row: Mapping[str, Any]) -> list[str]:
    """The cells of a row as the file gave them; `names` are those of its book."""
    as_given = row.get("as_given", {})
    return [as_given[name] if name in as_given else row[name] or "" for name in names]


# ---------------------------------------------------------------------------------------------- the file


@dataclass(slots=True)
class _Table:
    """The header of one file, and what follows it."""

    headers: list[str]
    header_row: int
    records: Records
    encoding: str | None = None
    delimiter: str | None = None
    notes: list[str] = field(default_factory=list)


def _read_bytes(path: Path, label: str) -> bytes:
    try:
        mode = path.stat().st_mode  # before opening: to open a pipe would wait for its writer
        if stat.S_ISDIR(mode):
            raise OrdersError(f"{label}: is a directory; name the order file in it")
        if not stat.S_ISREG(mode):
            raise OrdersError(f"{label}: is not a regular file but a pipe or device; save the orders to a file first")
        data = path.read_bytes()
    except FileNotFoundError:
        raise OrdersError(f"{label}: no such file{_near_file(path)}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise OrdersError(f"{label}: cannot be read: {reason}") from None
    if not data:
        raise OrdersError(f"{label}: is empty (0 bytes); expected a header row with a column for po_number")
    return data


def _near_file(path: Path) -> str:
    try:
        return did_you_mean(nearest(path.name, os.listdir(path.parent)))
    except OSError:
        return ""


def _is_workbook(source: OrderSource, label: str, data: bytes) -> bool:
    """Content decides, not the name: workbooks are called .csv often enough."""
    if data.startswith(_ZIP) or data.startswith(_OLE):
        return True
    suffix = source.path.suffix.lower()
    if suffix in _WORKBOOK_SUFFIXES:
        raise OrdersError(f"{label}: is not an {suffix} workbook; if it is text, rename it to .csv")
    if source.sheet is not None:
        raise OrdersError(f"{label}: is a CSV file and has no sheets; leave out --sheet")
    return False


# ---------------------------------------------------------------------------------------------- CSV


def _open_csv(source: OrderSource, label: str, data: bytes) -> _Table:
    text, encoding, notes = _decode(source, label, data)
    _refuse_nul(label, text)
    start = len("\ufeff".encode(encoding)) if text.startswith("\ufeff") else 0
    del text  # it may be large, and the lines below are decoded one by one

    def lines() -> Iterator[str]:
        stream = io.BytesIO(data)
        stream.seek(start)
        return io.TextIOWrapper(stream, encoding, newline="")

    hint = re.fullmatch(r"sep=(.)[\r\n]*", next(lines(), ""), re.IGNORECASE)  # Excel obeys this line and hides it
    delimiter = source.delimiter or (hint[1] if hint else _sniff_delimiter(lines(), source.mapping))
    skipped = 1 if hint else 0
    records = _records(islice(lines(), skipped, None), delimiter, label, skipped)
    for number, cells in records:
        if not _is_blank(cells):
            return _Table([_as_text(cell) for cell in cells], number, records, encoding, delimiter, notes)
    raise OrdersError(f"{label}: holds only blank lines; expected a header row with a column for po_number")


def _decode(source: OrderSource, label: str, data: bytes) -> tuple[str, str, list[str]]:
    """The text, the encoding that gave it, and what the user should know about that."""
    marked = next((name for mark, name in _BYTE_ORDER_MARKS if data.startswith(mark)), None)
    encoding = source.encoding or marked or "utf-8"
    try:
        return data.decode(encoding), encoding, []
    except LookupError:
        raise OrdersError(f"{label}: unknown encoding {quoted(encoding)}; try utf-8, cp1252 or utf-16") from None
    except UnicodeError as error:
        where = _undecodable(data, error)
        if source.encoding or marked:
            raise OrdersError(f"{label}: is not {encoding} {where}; give another --encoding") from None
    try:
        text = data.decode("cp1252")
    except UnicodeDecodeError:
        raise OrdersError(f"{label}: is not UTF-8 {where}; name its --encoding, such as latin-1 or cp850") from None
    return (
        text,
        "cp1252",
        [f"{label}: is not UTF-8 {where}, so it was read as cp1252; if that is wrong, use --encoding"],
    )


def _refuse_nul(label: str, text: str) -> None:
    position = text.find("\0")
    if position >= 0:
        raise OrdersError(
            f"{label}: NUL byte at line {_line_at(text, position)}; the file is damaged, is not text, "
            "or is UTF-16 without a byte-order mark (then use --encoding utf-16-le)"
        )


def _undecodable(data: bytes, error: UnicodeError) -> str:
    if not isinstance(error, UnicodeDecodeError) or error.start >= len(data):
        return "throughout"
    return f"at byte {error.start} (0x{data[error.start]:02x}, line {_line_at(data.decode('latin-1'), error.start)})"


def _line_at(text: str, position: int) -> int:
    return 1 + len(re.findall(r"\r\n|\r|\n", text[:position]))


def _sniff_delimiter(lines: Iterator[str], mapping: Mapping[str, str]) -> str:
    """The delimiter that makes the first rows a table: finds the PO column, then rows as wide as the header."""
    sample = list(islice(lines, _SNIFFED_LINES))

    def fitness(delimiter: str) -> tuple[bool, bool, float, int]:
        header, *rows = _sample_rows(sample, delimiter) or [[""]]
        same_width = sum(len(row) == len(header) for row in rows) / len(rows) if rows else 1.0
        has_po = bool(_matches(header, mapping.get("po_number", "po_number")))
        return has_po, len(header) > 1, same_width, len(header)

    return max(_DELIMITERS.values(), key=fitness)


def _sample_rows(sample: list[str], delimiter: str) -> list[list[str]]:
    rows: list[list[str]] = []
    with suppress(csv.Error):  # the strict reading that follows says what is wrong, and where
        rows.extend(csv.reader(sample, delimiter=delimiter))
    return [row for row in rows if not _is_blank(row)]


def _records(lines: Iterator[str], delimiter: str, label: str, skipped: int) -> Records:
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    number = line = 0
    try:
        for number, cells in enumerate(reader, 1):
            line = reader.line_num
            yield number, cells
    except csv.Error as error:
        where = f"row {number + 1} (from line {line + skipped + 1})"
        raise OrdersError(f"{label}: {where}: {_csv_fault(str(error), delimiter)}") from None


def _csv_fault(message: str, delimiter: str) -> str:
    if "unexpected end of data" in message:
        return 'the file ends inside a quoted cell; close the " that this row opens'
    if "field larger than field limit" in message:
        limit = csv.field_size_limit()
        return f'a cell is too large (limit {limit:,} characters); is a " in this row never closed?'
    if "expected after" in message:
        return f'text follows a closing "; a " inside a quoted cell is written twice (delimiter {quoted(delimiter)})'
    return message


# ---------------------------------------------------------------------------------------------- workbooks


def _open_workbook(source: OrderSource, label: str, data: bytes) -> _Table:
    if data.startswith(_ZIP):
        _check_zip(label, data)
    elif "EncryptedPackage".encode("utf-16-le") in data:
        raise OrdersError(f"{label}: is protected with a password; save it without one")
    if importlib.util.find_spec("python_calamine") is None:
        raise OrdersError(f"{label}: reading a workbook needs one more package: pip install 'poqueue[excel]'")
    records = _child_records(label, data, source.sheet)
    for number, cells in records:
        if not _is_blank(cells):
            return _Table([_as_text(cell) for cell in cells], number, records)
    raise OrdersError(f"{label}: the sheet is empty; expected a header row with a column for po_number")


def _check_zip(label: str, data: bytes) -> None:
    """Refuse what is no workbook or would burst, before any of it is unpacked."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OverflowError):
        raise OrdersError(
            f"{label}: is not a workbook, or is damaged; open it in a spreadsheet and save again"
        ) from None
    names = {member.filename for member in members}
    if not names & {"[Content_Types].xml", "content.xml"}:
        raise OrdersError(f"{label}: is a zip archive but not a workbook (.xlsx or .ods)")
    if any(member.flag_bits & 1 for member in members):
        raise OrdersError(f"{label}: is protected with a password; save it without one")
    if len(members) > MAX_MEMBERS:
        raise OrdersError(f"{label}: holds {len(members):,} parts (limit {MAX_MEMBERS:,}); refused as a zip bomb")
    expanded = sum(member.file_size for member in members)
    if expanded > min(MAX_EXPANDED_BYTES, max(_HARMLESS_BYTES, MAX_RATIO * len(data))):
        limits = f"limit {MAX_EXPANDED_BYTES:,}, and {MAX_RATIO} times its size"
        raise OrdersError(
            f"{label}: expands from {len(data):,} to {expanded:,} bytes ({limits}); refused as a zip bomb"
        )
    if _overlap(members):
        raise OrdersError(f"{label}: has parts that overlap; refused as a zip bomb")


def _overlap(members: Iterable[zipfile.ZipInfo]) -> bool:
    end = 0
    for member in sorted(members, key=lambda member: member.header_offset):
        if member.header_offset < end:
            return True
        end = member.header_offset + member.compress_size
    return False


def _child_records(label: str, data: bytes, sheet: str | None) -> Records:
    """The rows of a sheet, read by a child process.

    A workbook whose only cells are the first and the last one makes the parser ask for half a terabyte and
    abort, and a size stated in a zip may be a lie; in a child with a memory limit either is only an error.
    """
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_send_sheet, args=(sender, data, label, sheet), daemon=True)
    child.start()
    sender.close()
    number = 0
    try:
        while (message := _receive(receiver, label)) is not None:
            if "error" in message:
                raise OrdersError(message["error"])
            for cells in message["rows"]:
                number += 1
                yield number, cells
        child.join()
        if child.exitcode != 0:
            raise OrdersError(_child_fault(label, child.exitcode))
    finally:
        child.kill()
        child.join()
        receiver.close()


def _receive(receiver: Connection, label: str) -> dict[str, Any] | None:
    if not receiver.poll(_WORKBOOK_SILENCE_S):
        raise OrdersError(
            f"{label}: reading the workbook took over {_WORKBOOK_SILENCE_S:.0f} s; save it as CSV instead"
        )
    try:
        message: dict[str, Any] = json.loads(receiver.recv_bytes())
    except EOFError:
        return None
    return message


def _child_fault(label: str, exit_code: int | None) -> str:
    limit = MAX_WORKBOOK_MEMORY_BYTES // 1024**3
    return (
        f"{label}: the workbook could not be read in {limit} GiB of memory (exit code {exit_code}); "
        "a stray cell far below or right of the data makes a sheet huge: delete it, or save the sheet as CSV"
    )


def _send_sheet(sender: Connection, data: bytes, label: str, sheet: str | None) -> None:
    """The child: send the rows of a sheet in batches of JSON, or the error that stands in the way."""
    import resource

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (MAX_WORKBOOK_MEMORY_BYTES, MAX_WORKBOOK_MEMORY_BYTES))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the parser's last words are a stack trace in Rust
    try:
        for message in _sheet_messages(data, label, sheet):
            sender.send_bytes(json.dumps(message).encode())
    except OrdersError as error:
        sender.send_bytes(json.dumps({"error": str(error)}).encode())
    except MemoryError:
        os._exit(1)  # as the parser itself ends when it hits the limit
    except BaseException as error:  # the border to foreign code, whose panics are BaseExceptions
        text = f"{label}: is not a workbook that can be read: {safe_text(f'{type(error).__name__}: {error}', 200)}"
        sender.send_bytes(json.dumps({"error": text}).encode())


def _sheet_messages(data: bytes, label: str, sheet: str | None) -> Iterator[dict[str, Any]]:
    import python_calamine as calamine

    try:
        workbook = calamine.CalamineWorkbook.from_filelike(io.BytesIO(data))
        visible = [item.name for item in workbook.sheets_metadata if item.visible == calamine.SheetVisibleEnum.Visible]
        found = workbook.get_sheet_by_name(_choose_sheet(workbook, visible or workbook.sheet_names, label, sheet))
        # iter_rows begins at row 1 in any case, but at the first column that is used.
        margin: list[Cell] = [""] * (found.start or (0, 0))[1]
        rows = found.iter_rows()
        while batch := [margin + [_as_cell(value) for value in row] for row in islice(rows, _SENT_ROWS)]:
            yield {"rows": batch}
    except calamine.PasswordError:
        raise OrdersError(f"{label}: is protected with a password; save it without one") from None
    except calamine.CalamineError as error:
        raise OrdersError(f"{label}: is not a workbook that can be read: {safe_text(str(error), 200)}") from None


def _choose_sheet(workbook: Any, visible: list[str], label: str, sheet: str | None) -> str:
    if sheet is not None:
        return _named_sheet(workbook.sheet_names, label, sheet)
    if len(visible) > 1:
        visible = [name for name in visible if workbook.get_sheet_by_name(name).height > 0] or visible[:1]
    if len(visible) != 1:
        found = ", ".join(quoted(name) for name in visible[:MAX_LISTED])
        raise OrdersError(f"{label}: has {len(visible)} sheets with data: {found}; choose one with --sheet NAME")
    return visible[0]


def _named_sheet(names: list[str], label: str, sheet: str) -> str:
    if sheet in names:
        return sheet
    alike = [name for name in names if _normal(name) == _normal(sheet)]
    if len(alike) == 1:
        return alike[0]
    if sheet.isascii() and sheet.isdecimal() and 1 <= int(sheet) <= len(names):
        return names[int(sheet) - 1]
    found = ", ".join(quoted(name) for name in names[:MAX_LISTED])
    raise OrdersError(f"{label}: no sheet {quoted(sheet)}{did_you_mean(nearest(sheet, names))}; it has {found}")


def _as_cell(value: Any) -> Cell:
    if isinstance(value, str | float | bool):
        return value
    if isinstance(value, int):  # as .xls files keep them
        return float(value)
    return [value.isoformat() if hasattr(value, "isoformat") else str(value)]


def _as_text(cell: Cell) -> str:
    """A cell as a spreadsheet would export it, numbers in all their digits."""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, list):
        return cell[0]
    if isinstance(cell, bool):
        return "TRUE" if cell else "FALSE"
    return str(int(cell)) if cell.is_integer() else plain_text(Decimal(repr(cell)))


def _not_a_po_number(cell: Cell) -> str | None:
    """Why a typed cell cannot be trusted to hold the PO number that was meant."""
    if isinstance(cell, str):
        return None
    if isinstance(cell, list):
        return f"holds the date or time {cell[0]}"
    if isinstance(cell, bool):
        return f"holds the truth value {_as_text(cell)}"
    if not cell.is_integer():
        return f"holds the number {_as_text(cell)}"
    return f"holds {_as_text(cell)}, of which Excel keeps only 15 digits" if abs(cell) >= _EXACT_INTEGERS else None


def _address(column: int, row: int) -> str:
    letters = ""
    column += 1
    while column:
        column, digit = divmod(column - 1, 26)
        letters = chr(ord("A") + digit) + letters
    return f"{letters}{row}"


# ---------------------------------------------------------------------------------------------- columns


@dataclass(frozen=True, slots=True)
class _Columns:
    """Which column holds which field."""

    names: list[str]
    po_number: int
    supplier: int | None
    amount: int | None
    priority: int | None
    notes: list[str]

    @classmethod
    def find(cls, headers: list[str], mapping: Mapping[str, str], label: str) -> _Columns:
        """Match mapped fields and known ones to the headers, and give every column a name of its own."""
        places = {name: _mapped_place(headers, name, header, label) for name, header in mapping.items()}
        _refuse_shared_places(places, headers, label)
        found = {name: _matches(headers, name) for name in KNOWN_FIELDS if name not in mapping}
        mapped = set(places.values())
        unclear = {}
        for name, candidates in found.items():
            free = [place for place in candidates if place not in mapped]
            if len(free) == 1:
                places[name] = free[0]
            elif free:
                unclear[name] = free
        if "po_number" not in places:
            raise OrdersError(_missing_po_number(headers, mapping, unclear.get("po_number", []), label))
        return cls(
            names=_unique_names(headers, {place: name for name, place in places.items()}),
            po_number=places["po_number"],
            supplier=places.get("supplier"),
            amount=places.get("amount"),
            priority=places.get("priority"),
            notes=[
                f"{label}: columns {_first_few(_from_one(free))} could all be {name}, so none is; "
                f"choose with --map {name}=HEADER"
                for name, free in unclear.items()
            ],
        )


def _matches(headers: Sequence[str], wanted: str) -> list[int]:
    """The columns whose header is `wanted`: exactly, or else without case, blanks, dots, dashes and underscores."""
    exact = [place for place, header in enumerate(headers) if header == wanted]
    return exact or [place for place, header in enumerate(headers) if _normal(header) == _normal(wanted) != ""]


def _normal(text: str) -> str:
    return re.sub(r"[\s._\-\u200b\u200c\u200d\ufeff]+", "", unicodedata.normalize("NFKC", text).casefold())


def _mapped_place(headers: list[str], name: str, header: str, label: str) -> int:
    # The second try is for columns without a header of their own: "column_1", "Date_2".
    found = _matches(headers, header) or _matches(_unique_names(headers, {}), header)
    if len(found) == 1:
        return found[0]
    if found:
        columns = _first_few(_from_one(found))
        raise OrdersError(f"{label}: column {quoted(header)} for {name} appears more than once (columns {columns})")
    hint = did_you_mean(nearest(header, headers))
    raise OrdersError(f"{label}: no column {quoted(header)} for {name}{hint}; columns found: {_listed(headers)}")


def _refuse_shared_places(places: Mapping[str, int], headers: list[str], label: str) -> None:
    for place, count in Counter(places.values()).items():
        if count > 1:
            names = " and ".join(name for name in places if places[name] == place)
            raise OrdersError(f"{label}: --map gives column {quoted(headers[place])} to {names}; a column has one name")


def _missing_po_number(headers: list[str], mapping: Mapping[str, str], unclear: list[int], label: str) -> str:
    if unclear:
        columns = _first_few(_from_one(unclear))
        return f"{label}: columns {columns} could all be po_number; choose with --map po_number=HEADER"
    likely = [header for name, header in mapping.items() if nearest(name, ["po_number"])]
    likely += [header for header in headers if _normal(header).strip("#") in _ALIASES]
    likely += [header for header in headers if nearest(_normal(header), ["ponumber"])]
    hint = (
        did_you_mean(f"--map {shlex.quote('po_number=' + safe_text(likely[0], 80))}")
        if likely
        else "; name it: --map po_number=HEADER"
    )
    return f"{label}: no column for po_number; columns found: {_listed(headers)}; needed: po_number{hint}"


def _listed(headers: list[str]) -> str:
    more = f" and {len(headers) - MAX_LISTED} more" if len(headers) > MAX_LISTED else ""
    return ", ".join(quoted(header, 40) for header in headers[:MAX_LISTED]) + more


def _unique_names(headers: Sequence[str], given: Mapping[int, str]) -> list[str]:
    """A name for each column: the given one, else its header, numbered where that is taken or missing."""
    taken = {*given.values(), *_RESERVED_NAMES}
    names: list[str] = []
    for place, header in enumerate(headers):
        name = given.get(place) or _free_name(header.strip() or f"column_{place + 1}", taken)
        taken.add(name)
        names.append(name)
    return names


def _free_name(name: str, taken: set[str]) -> str:
    count = 2
    free = name
    while free in taken:
        free = f"{name}_{count}"
        count += 1
    return free


# ---------------------------------------------------------------------------------------------- rows


@dataclass(slots=True)
class _Group:
    """The rows that become one order."""

    rows: list[Row]
    numbers: list[int]
    priority: int


class _Collector:
    """Takes the records one by one and sorts them into a book."""

    def __init__(self, book: OrderBook, columns: _Columns, source: OrderSource, label: str) -> None:
        self._book = book
        self._columns = columns
        self._source = source
        self._label = label
        self._is_workbook = book.encoding is None
        fields = (columns.po_number, columns.supplier, columns.priority)
        self._stripped = [place for place in fields if place is not None]
        self._groups: list[_Group] = []
        self._values: dict[str, str] = {}
        self._by_po_number: dict[str, _Group] = {}
        self._decimal_marks: set[str] = set()
        self._ambiguous: list[tuple[int, Row]] = []

    def add(self, number: int, cells: Sequence[Cell]) -> None:
        """Sort one record in."""
        if _is_blank(cells):
            self._book.blank_rows += 1
            return
        self._book.row_count += 1
        self._book.last_row = number
        texts = [_as_text(cell) for cell in cells] if self._is_workbook else cast("list[str]", cells)
        fault = self._fault(number, cells, texts)
        if fault is None:
            self._accept(number, cells, texts)
            return
        place, reason = fault
        column, value = ("", "") if place is None else (self._book.headers[place], texts[place])
        self._book.invalid.append(InvalidRow(number, column, value, reason, texts))

    def finish(self) -> None:
        """Settle what only the whole file can tell, and lay the orders out."""
        self._settle_amounts()
        if self._source.duplicates == "error":
            self._refuse_duplicates()
        limit = len(self._groups) if self._source.limit is None else self._source.limit
        orders = [_order(group) for group in self._groups]
        self._book.orders, self._book.left_out = orders[:limit], orders[limit:]
        self._book.priorities = [group.priority for group in self._groups[:limit]]
        if self._book.row_count == 0:
            self._book.notes.append(f"{self._label}: has a header and no orders")

    def _fault(self, number: int, cells: Sequence[Cell], texts: list[str]) -> tuple[int | None, str] | None:
        """The first thing that makes a row unusable: its column (None: the row as a whole) and the reason."""
        width = len(self._book.headers)
        if len(texts) < width or not _is_blank(texts[width:]):
            return None, f"has {len(texts)} cells where the header has {width}"
        place = self._columns.po_number
        if (reason := self._po_number_fault(number, cells[place])) is not None:
            return place, reason
        place_of_priority = self._columns.priority
        if place_of_priority is not None and _priority(texts[place_of_priority]) is None:
            return place_of_priority, "priority must be a whole number 1 to 10"
        return None

    def _po_number_fault(self, number: int, cell: Cell) -> str | None:
        text = _as_text(cell).strip()
        where = f" (cell {_address(self._columns.po_number, number)})" if self._is_workbook else ""
        if (kind := _not_a_po_number(cell)) is not None:
            return f"po_number {kind}{where}; format the column as text"
        if not text:
            unseen = "; errors and formulas without a stored value read as empty" if self._is_workbook else ""
            return f"po_number is empty{where}{unseen}"
        if len(text) > MAX_PO_NUMBER_CHARS:
            return f"po_number has {len(text)} characters{where}; at most {MAX_PO_NUMBER_CHARS} are allowed"
        if not text.isprintable():
            code = next(f"U+{ord(character):04X}" for character in text if not character.isprintable())
            return f"po_number holds a character that cannot be printed, {code}{where}"
        return None

    def _accept(self, number: int, cells: Sequence[Cell], texts: list[str]) -> None:
        row = self._row(number, cells, texts)
        priority_place = self._columns.priority
        priority = DEFAULT_PRIORITY if priority_place is None else _priority(texts[priority_place]) or DEFAULT_PRIORITY
        po_number: str = row["po_number"]
        group = self._by_po_number.get(po_number)
        if group is None or self._source.duplicates == "separate":
            self._by_po_number[po_number] = group = _Group([row], [number], priority)
            self._groups.append(group)
        elif self._source.duplicates == "first":
            self._book.duplicate_rows.append(DuplicateRow(number, po_number, group.numbers[0], texts))
        else:
            group.rows.append(row)
            group.numbers.append(number)
            group.priority = min(group.priority, priority)

    def _row(self, number: int, cells: Sequence[Cell], texts: list[str]) -> Row:
        names = self._columns.names
        same = self._values.setdefault  # columns repeat their values: keep one of each
        # Not strict: blank cells may follow the last.
        row: Row = dict(zip(names, [same(text, text) or None for text in texts], strict=False))
        for place in self._stripped:
            text = texts[place]
            if (stripped := text.strip()) != text:
                _alter(row, names[place], text, stripped or None)
        amount_place = self._columns.amount
        if amount_place is not None:
            self._read_amount(number, row, cells[amount_place], texts[amount_place])
        return row

    def _read_amount(self, number: int, row: Row, cell: Cell, text: str) -> None:
        if is_plain(text) or not isinstance(cell, str):
            if "." in text:
                self._decimal_marks.add(".")
            return
        reading = read_amount(text)
        if reading is None:
            return
        if reading.decimal_mark is not None:
            self._decimal_marks.add(reading.decimal_mark)
        if reading.with_comma is not None:
            self._ambiguous.append((number, row))
        _alter(row, "amount", text, plain_text(reading.value))

    def _settle_amounts(self) -> None:
        """Read what can be read two ways as the rest of the column is written."""
        if not self._ambiguous:
            return
        mark = next(iter(self._decimal_marks)) if len(self._decimal_marks) == 1 else None
        for _, row in self._ambiguous:
            text = row.get("as_given", {}).get("amount", row["amount"])
            if (reading := read_amount(text)) is not None:
                _alter(row, "amount", text, plain_text(reading.by(mark)))
        if mark is None:
            number, row = self._ambiguous[0]
            self._book.notes.append(
                f"{self._label}: {len(self._ambiguous)} amounts, such as in row {number} (read as {row['amount']}), "
                "can be read two ways; a comma was taken to separate thousands, a dot decimals"
            )

    def _refuse_duplicates(self) -> None:
        repeated = [group for group in self._groups if len(group.rows) > 1]
        if not repeated:
            return
        lines = [
            f"\n  {quoted(group.rows[0]['po_number'])} in rows {_first_few(group.numbers)}"
            for group in repeated[:MAX_LISTED]
        ]
        more = f"\n  and {len(repeated) - MAX_LISTED} more" if len(repeated) > MAX_LISTED else ""
        raise OrdersError(
            f"{self._label}: PO numbers that appear more than once: {len(repeated)}; to run them, use --duplicates "
            f"group, first or separate{''.join(lines)}{more}"
        )


def _order(group: _Group) -> dict[str, Any]:
    order = {**group.rows[0], "rows": group.rows, "row_numbers": group.numbers}
    order.pop("as_given", None)
    return order


def _is_blank(cells: Sequence[Cell]) -> bool:
    return all(isinstance(cell, str) and not cell.strip() for cell in cells)


def _priority(text: str) -> int | None:
    """1 to 10, 5 for an empty cell, None for anything else."""
    text = text.strip()
    if not text:
        return DEFAULT_PRIORITY
    return int(text) if re.fullmatch(r"[1-9]|10", text) else None


def _alter(row: Row, name: str, given: str, text: str | None) -> None:
    """Put a cell's clean text into a row, and keep what was given if that differs."""
    if text != given:
        row.setdefault("as_given", {})[name] = given
    else:
        row.get("as_given", {}).pop(name, None)
    row[name] = text


def _from_one(places: Iterable[int]) -> list[int]:
    return [place + 1 for place in places]


def _first_few(numbers: Sequence[int]) -> str:
    more = f" and {len(numbers) - MAX_LISTED} more" if len(numbers) > MAX_LISTED else ""
    return ", ".join(str(number) for number in numbers[:MAX_LISTED]) + more
