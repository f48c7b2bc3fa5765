"""The table of an order file as it comes: a header, then records of cells, whatever the format."""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from workers.amounts import plain_text

# list: the ISO text of a date or time, which JSON has no type for; dict: the fault of a cell without a value
Cell = str | float | bool | list[str] | dict[str, str]
Records = Generator[tuple[int, Sequence[Cell]], None, None]  # with row numbers, blank rows included

_SHORTENED = re.compile(r"[0-9](?:[.,][0-9]+)?E\+[0-9]{2}")  # as CSV files have what was shown, not what was there
_EXACT_INTEGERS = 10**15  # Excel keeps 15 digits; a longer number has lost its last ones already


@dataclass(slots=True)
class Table:
    """The header of one file, and what follows it."""

    headers: list[str]
    header_row: int
    records: Records
    encoding: str | None = None
    delimiter: str | None = None
    notes: list[str] = field(default_factory=list)


def is_blank(cells: Sequence[Cell]) -> bool:
    """Whether a record shows nothing; a number, date or truth value always shows."""
    return all(isinstance(cell, str) and not cell.strip() for cell in cells)


def as_text(cell: Cell) -> str:
    """A cell as a spreadsheet would export it, numbers in all their digits."""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, list):
        return cell[0]
    if isinstance(cell, dict):
        return ""
    if isinstance(cell, bool):
        return "TRUE" if cell else "FALSE"
    return str(int(cell)) if cell.is_integer() else plain_text(Decimal(repr(cell)))


def not_a_po_number(cell: Cell) -> str | None:
    """Why a cell cannot be trusted to hold the PO number that was meant."""
    if isinstance(cell, str):
        is_cut = _SHORTENED.fullmatch(cell.strip())
        return f"holds {cell.strip()}, a number that a spreadsheet has shortened" if is_cut else None
    if isinstance(cell, dict):
        return cell["fault"]
    if isinstance(cell, list):
        return f"holds the date or time {cell[0]}"
    if isinstance(cell, bool):
        return f"holds the truth value {as_text(cell)}"
    if not cell.is_integer():
        return f"holds the number {as_text(cell)}"
    return f"holds {as_text(cell)}, of which Excel keeps only 15 digits" if abs(cell) >= _EXACT_INTEGERS else None


def address(column: int, row: int) -> str:
    """A cell's name in a spreadsheet, such as B6: the column counted from 0, the row from 1."""
    letters = ""
    column += 1
    while column:
        column, digit = divmod(column - 1, 26)
        letters = chr(ord("A") + digit) + letters
    return f"{letters}{row}"
