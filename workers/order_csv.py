"""An order file of text: the encoding and the delimiter are found out, then it is read strictly."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import islice

from poqueue.errors import OrdersError
from workers.order_columns import matches
from workers.order_table import Records, Table, as_text, is_blank
from workers.safe_text import quoted

_DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe"}  # as --delimiter names them
_SNIFFED_LINES = 200
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def open_csv(
    label: str, data: bytes, *, encoding: str | None, delimiter: str | None, mapping: Mapping[str, str]
) -> Table:
    """The table in a CSV file's bytes.

    Args:
        label: how messages call the file.
        encoding, delimiter: as the user gave them; None: found out.
        mapping: field name -> header, from which the delimiter may be told.

    Raises:
        OrdersError: here or while the records are read; the text says where and what to do.
    """
    text, encoding, notes = _decode(encoding, label, data)
    _refuse_nul(label, text, data)
    start = len("\ufeff".encode(encoding)) if text.startswith("\ufeff") else 0
    del text  # it may be large, and the lines below are decoded one by one

    def lines() -> Iterator[str]:
        stream = io.BytesIO(data)
        stream.seek(start)
        return io.TextIOWrapper(stream, encoding, newline="")

    hint = re.fullmatch(r"sep=(.)[\r\n]*", next(lines(), ""), re.IGNORECASE)  # Excel obeys this line and hides it
    given = delimiter
    delimiter = given or (hint[1] if hint else _sniff_delimiter(lines(), mapping))
    skipped = 1 if hint else 0
    records = _records(islice(lines(), skipped, None), delimiter, label, skipped)
    for number, cells in records:
        if not is_blank(cells):
            headers = [as_text(cell) for cell in cells]
            if given and len(headers) == 1 and not matches(headers, mapping.get("po_number", "po_number")):
                _refuse_one_piece(label, headers[0], given, _sniff_delimiter(islice(lines(), skipped, None), mapping))
            return Table(headers, number, records, encoding, delimiter, notes)
    raise OrdersError(f"{label}: holds only blank lines; expected a header row with a column for po_number")


def _decode(given: str | None, label: str, data: bytes) -> tuple[str, str, list[str]]:
    """The text, the encoding that gave it, and what the user should know about that."""
    marked = next((name for mark, name in _BYTE_ORDER_MARKS if data.startswith(mark)), None)
    encoding = given or marked or "utf-8"
    try:
        _refuse_unmarked(label, encoding, data)
        return data.decode(encoding), encoding, []
    except LookupError:
        raise OrdersError(f"{label}: unknown encoding {quoted(encoding)}; try utf-8, cp1252 or utf-16") from None
    except UnicodeError as error:
        where = _undecodable(data, error)
        if given or marked:
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


def _refuse_unmarked(label: str, encoding: str, data: bytes) -> None:
    name = codecs.lookup(encoding).name
    marks = tuple(mark for mark, marked in _BYTE_ORDER_MARKS if marked == name != "utf-8")
    if not marks or data.startswith(marks):
        return
    if b"\0" not in data or data.startswith(tuple(mark for mark, _ in _BYTE_ORDER_MARKS)):
        raise OrdersError(f"{label}: is not {encoding}; leave --encoding out, and it is found out")
    raise OrdersError(
        f"{label}: has no byte-order mark, without which {encoding} cannot be read; if the file is that, "
        f"use --encoding {name}-{_byte_order(data)}"
    )


def _refuse_nul(label: str, text: str, data: bytes) -> None:
    position = text.find("\0")
    if position >= 0:
        raise OrdersError(
            f"{label}: NUL byte at line {_line_at(text, position)}; the file is damaged, is not text, "
            f"or is UTF-16 or UTF-32 without a byte-order mark (then use --encoding {_wide_encoding(data)})"
        )


def _wide_encoding(data: bytes) -> str:
    """Which one it is, if it is one of them: by where the NULs stand that most characters have."""
    head = data[:4000]
    bits = 32 if head.count(0) > len(head) / 2 else 16
    return f"utf-{bits}-{_byte_order(data)}"


def _byte_order(data: bytes) -> str:
    head = data[:4000]
    return "be" if head[::2].count(0) > head[1::2].count(0) else "le"


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
        has_po = bool(matches(header, mapping.get("po_number", "po_number")))
        return has_po, len(header) > 1, same_width, len(header)

    return max(_DELIMITERS, key=fitness)


def _refuse_one_piece(label: str, header: str, given: str, likely: str) -> None:
    """The whole header as the PO number's column is nothing to propose, as that of a misspelt one would be."""
    if likely in header and likely != given:  # else it is quoted
        raise OrdersError(
            f"{label}: the delimiter was given as {quoted(given)}, which leaves the header in one piece: "
            f"{quoted(header, 40)}; if it is {quoted(likely)}, use --delimiter {_DELIMITERS[likely]}, "
            "else name the column: --map po_number=HEADER"
        )


def _sample_rows(sample: list[str], delimiter: str) -> list[list[str]]:
    rows: list[list[str]] = []
    with suppress(csv.Error):  # the strict reading that follows says what is wrong, and where
        rows.extend(csv.reader(sample, delimiter=delimiter))
    return [row for row in rows if not is_blank(row)]


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
