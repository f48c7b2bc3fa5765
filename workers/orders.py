"""Order files in: CSV and Excel workbooks become the purchase orders of a batch.

    bytes ──► table (headers, records) ──► columns (which is which) ──► rows ──► orders (one a PO)
              CSV: encoding, delimiter      by --map or by name           invalid rows stand aside, with the reason
              Excel: a child process

Row numbers are those a spreadsheet shows: the header is row 1, a blank row counts. The file is only ever read.
A file that cannot be read as a whole is an OrdersError; a row that cannot be used is an InvalidRow of the book.
"""

from __future__ import annotations

import gc
import hashlib
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

from poqueue.errors import ConfigError, OrdersError
from poqueue.payload import freeze_plain
from poqueue.task import DEFAULT_PRIORITY
from poqueue.wire import MAX_REQUEST_BYTES
from workers.amounts import as_settled, is_plain, plain_text, read_amount
from workers.order_columns import MAX_LISTED, RESERVED_NAMES, Columns, first_few
from workers.order_csv import open_csv
from workers.order_table import Cell, Table, address, as_text, is_blank, not_a_po_number
from workers.order_workbook import SUFFIXES, is_workbook, open_workbook
from workers.quantities import did_you_mean, nearest
from workers.safe_text import quoted, safe_text

Duplicates = Literal["group", "error", "first", "separate"]
Row = dict[str, Any]

MAX_PO_NUMBER_CHARS = 64
MAX_PO_BYTES = MAX_REQUEST_BYTES - 1024**2
PROGRESS_ROWS = 10_000
_GZIP = b"\x1f\x8b\x08"


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
            the order, the rest are duplicates; "separate": an order each, whose data say `number_repeats`.
        limit: only this many orders are to run; the other rows count as left out.
        reads_priority: False: a column of that name is one like any other.

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
    reads_priority: bool = True

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
            if not name.strip() or name in RESERVED_NAMES:
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
        has_decimal_comma: whether an amount has one, which tells how others are read.
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
    has_decimal_comma: bool = False
    notes: list[str] = field(default_factory=list)

    def take_in(self, orders: Sequence[dict[str, Any]]) -> None:
        """Have these of the orders beyond the limit in the run, behind the others."""
        taken = set(map(id, orders))
        self.left_out = [order for order in self.left_out if id(order) not in taken]
        self.orders += orders
        self.priorities += [DEFAULT_PRIORITY] * len(orders)


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
    table = _open_table(source, label, data)
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
    table: Table, source: OrderSource, label: str, data: bytes, on_progress: Callable[[int], None] | None
) -> OrderBook:
    try:
        columns = Columns.find(table.headers, source.mapping, label)
    except OrdersError as error:
        raise OrdersError("\n".join([str(error), *table.notes])) from None  # which may say why
    if not source.reads_priority:
        columns = replace(columns, priority=None)
    book = OrderBook(
        source.path, table.headers, columns.names, hashlib.sha256(data).hexdigest(), table.encoding, table.delimiter
    )
    book.last_row = table.header_row
    book.notes += table.notes + columns.notes
    collector = _Collector(book, columns, source, label, len(data))
    for number, cells in table.records:
        collector.add(number, cells)
        if on_progress is not None and number % PROGRESS_ROWS == 0:
            on_progress(book.row_count)
    collector.finish()
    return book


def cells_as_given(names: Sequence[str], row: Mapping[str, Any]) -> list[str]:
    """The cells of a row as the file gave them; `names` are those of its book."""
    as_given = row.get("as_given")
    if not as_given:
        return [row[name] or "" for name in names]
    return [as_given[name] if name in as_given else row[name] or "" for name in names]


def cells_for_rerun(book: OrderBook, row: Mapping[str, Any]) -> list[str]:
    """The cells as given, but for amounts that could be read otherwise without the rest of their column."""
    cells = cells_as_given(book.names, row)
    if book.has_decimal_comma and row.get("amount"):
        place = book.names.index("amount")
        cells[place] = as_settled(cells[place], row["amount"])
    return cells


# ---------------------------------------------------------------------------------------------- the file


def _read_bytes(path: Path, label: str) -> bytes:
    try:
        mode = path.stat().st_mode  # before opening: to open a pipe would wait for its writer
        if stat.S_ISDIR(mode):
            raise OrdersError(f"{label}: is a directory; name the order file in it")
        if not stat.S_ISREG(mode):
            raise OrdersError(f"{label}: is not a regular file but a pipe or device; save the orders to a file first")
        data = path.read_bytes()
    except FileNotFoundError:
        raise OrdersError(f"{label}: {_missing_text(path)}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise OrdersError(f"{label}: cannot be read: {reason}") from None
    if not data:
        raise OrdersError(f"{label}: is empty (0 bytes); expected a header row with a column for po_number")
    return data


def _missing_text(path: Path) -> str:
    if os.path.islink(path):
        return f"is a link to {safe_text(os.path.realpath(path))}, which does not exist"
    try:
        return f"no such file{did_you_mean(nearest(path.name, os.listdir(path.parent)))}"
    except OSError:
        return "no such file"


def _open_table(source: OrderSource, label: str, data: bytes) -> Table:
    if is_workbook(data):
        return open_workbook(label, data, source.sheet)
    if data.startswith(_GZIP):
        raise OrdersError(f"{label}: is compressed by gzip; unpack it first (gunzip)")
    suffix = source.path.suffix.lower()
    if suffix in SUFFIXES:
        raise OrdersError(f"{label}: is not an {suffix} workbook; if it is text, rename it to .csv")
    if source.sheet is not None:
        raise OrdersError(f"{label}: is a CSV file and has no sheets; leave out --sheet")
    return open_csv(label, data, encoding=source.encoding, delimiter=source.delimiter, mapping=source.mapping)


# ---------------------------------------------------------------------------------------------- rows


@dataclass(slots=True)
class _Group:
    """The rows that become one order."""

    rows: list[Row]
    numbers: list[int]
    priority: int


class _Collector:
    """Takes the records one by one and sorts them into a book."""

    def __init__(self, book: OrderBook, columns: Columns, source: OrderSource, label: str, size_bytes: int) -> None:
        self._book = book
        self._columns = columns
        self._source = source
        self._label = label
        self._is_workbook = book.encoding is None
        self._size_bytes = size_bytes
        fields = (columns.po_number, columns.supplier, columns.priority)
        self._stripped = [place for place in fields if place is not None]
        self._groups: list[_Group] = []
        self._values: dict[str, str] = {}
        self._by_po_number: dict[str, _Group] = {}
        self._decimal_marks: set[str] = set()
        self._ambiguous: list[tuple[int, Row]] = []
        self._faults = 0
        self._first_fault = ""

    def add(self, number: int, cells: Sequence[Cell]) -> None:
        """Sort one record in."""
        if is_blank(cells):
            self._book.blank_rows += 1
            return
        self._book.row_count += 1
        self._book.last_row = number
        texts = self._texts(number, cells) if self._is_workbook else cast("list[str]", cells)
        fault = self._fault(number, cells, texts)
        if fault is None:
            self._accept(number, cells, texts)
            return
        place, reason = fault
        column, value = ("", "") if place is None else (self._book.headers[place], texts[place])
        self._book.invalid.append(InvalidRow(number, column, value, reason, texts))

    def _texts(self, number: int, cells: Sequence[Cell]) -> list[str]:
        for place, cell in enumerate(cells):
            if isinstance(cell, dict):
                self._faults += 1
                self._first_fault = self._first_fault or f"cell {address(place, number)} {cell['fault']}"
        return [as_text(cell) for cell in cells]

    def finish(self) -> None:
        """Settle what only the whole file can tell, and lay the orders out."""
        self._settle_amounts()
        if self._source.duplicates == "error":
            self._refuse_duplicates()
        limit = len(self._groups) if self._source.limit is None else self._source.limit
        orders = [_order(group) for group in self._groups]
        if self._source.duplicates == "separate":
            _mark_repeated(orders)
        if self._is_workbook or self._at_most(self._book.row_count, self._size_bytes) > MAX_PO_BYTES:
            self._refuse_giants(orders)
        self._book.orders, self._book.left_out = orders[:limit], orders[limit:]
        self._book.priorities = [group.priority for group in self._groups[:limit]]
        if self._faults:
            more = f"; cells without a value: {self._faults}" if self._faults > 1 else ""
            self._book.notes.append(f"{self._label}: {self._first_fault}{more}")
        if self._book.row_count == 0:
            self._book.notes.append(f"{self._label}: has a header and no orders")

    def _fault(self, number: int, cells: Sequence[Cell], texts: list[str]) -> tuple[int | None, str] | None:
        """The first thing that makes a row unusable: its column (None: the row as a whole) and the reason."""
        width = len(self._book.headers)
        if len(texts) < width or not is_blank(texts[width:]):
            return None, f"has {len(texts)} cells where the header has {width}"
        if texts[:width] == self._book.headers:
            return None, "repeats the header"
        place = self._columns.po_number
        if (reason := self._po_number_fault(number, cells[place])) is not None:
            return place, reason
        place_of_priority = self._columns.priority
        if place_of_priority is not None and _priority(texts[place_of_priority]) is None:
            return place_of_priority, "priority must be a whole number 1 to 10 (--no-priority ignores the column)"
        return None

    def _po_number_fault(self, number: int, cell: Cell) -> str | None:
        text = as_text(cell).strip()
        where = f" (cell {address(self._columns.po_number, number)})" if self._is_workbook else ""
        if (kind := not_a_po_number(cell)) is not None:
            again = " and export again" if isinstance(cell, str) else ""
            advice = "enter the number itself" if isinstance(cell, dict) else f"format the column as text{again}"
            return f"po_number {kind}{where}; {advice}"
        if not text:
            is_unseen = self._source.path.suffix.lower() in (".xls", ".xlsb", ".ods")
            unseen = "; errors and formulas without a stored value read as empty" if is_unseen else ""
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
        if not isinstance(cell, str):  # a number: its dot, if it has one, is of as_text
            return
        if is_plain(text):
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
        self._book.has_decimal_comma = "," in self._decimal_marks
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

    def _refuse_giants(self, orders: list[dict[str, Any]]) -> None:
        """A PO travels in one piece; one that cannot is most likely no PO, but a whole file with one text in that column."""
        for order in orders:
            chars = sum(len(text) for row in order["rows"] for text in row.values() if isinstance(text, str))
            is_large = self._at_most(len(order["rows"]), chars) > MAX_PO_BYTES
            if is_large and (size := len(freeze_plain(order))) > MAX_PO_BYTES:
                column = self._book.headers[self._columns.po_number]
                raise OrdersError(
                    f"{self._label}: PO {quoted(order['po_number'])} (rows {first_few(order['row_numbers'])}) takes "
                    f"{size:,} bytes, and a PO may take {MAX_PO_BYTES:,}; is {quoted(column)} the column with the PO "
                    "numbers? Name another one by --map, or run each row apart by --duplicates separate"
                )

    def _at_most(self, rows: int, chars: int) -> int:
        """The bytes of one order of so many rows, with so much text in their cells: six for a character, names, marks."""
        return 2 * (6 * chars + rows * sum(6 * len(name) + 32 for name in self._columns.names))

    def _refuse_duplicates(self) -> None:
        repeated = [group for group in self._groups if len(group.rows) > 1]
        if not repeated:
            return
        lines = [
            f"\n  {quoted(group.rows[0]['po_number'])} in rows {first_few(group.numbers)}"
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


def _mark_repeated(orders: list[dict[str, Any]]) -> None:
    """Processors that name things after the PO number must know of which there are several."""
    counts = Counter(order["po_number"] for order in orders)
    for order in orders:
        if counts[order["po_number"]] > 1:
            order["number_repeats"] = True


def _priority(text: str) -> int | None:
    """1 to 10, 5 for an empty cell, None for anything else."""
    text = text.strip()
    if not text:
        return DEFAULT_PRIORITY
    whole = re.fullmatch(r"([1-9]|10)(\.0+)?", text)  # with a fraction: as programs write a column that has gaps
    return int(whole[1]) if whole else None


def _alter(row: Row, name: str, given: str, text: str | None) -> None:
    """Put a cell's clean text into a row, and keep what was given if that differs."""
    if text != given:
        row.setdefault("as_given", {})[name] = given
    else:
        row.get("as_given", {}).pop(name, None)
    row[name] = text
