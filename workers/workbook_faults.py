"""Cells of an XLSX sheet that have no value to read: errors, and formulas whose value was never stored.

The library that reads workbooks gives them as empty cells.
"""

from __future__ import annotations

import io
import posixpath
import re
import zipfile
from typing import Any
from xml.parsers import expat

from workers.safe_text import safe_text

# In any of them a prefix may stand before the name of an element.
_LIKELY = re.compile(rb"""\bt\s*=\s*["']e["']|<(?:\w+:)?f[\s/>]""")
# Cells as most programs write them, with an address, and with a value or nothing at all. To cut them out takes a tenth of
# the time that a parser takes for them, of which a sheet may have millions; what is not recognized here it will look at.
_SOUND = re.compile(
    rb"""(?:
        <PREFIX c [ ]r="[A-Z]++[0-9]++" (?:[ ]\w++="(?!e")[^"]*+")*+
        (?: /> | >
            (?: (?: <PREFIX f (?:[\s/][^<>]*+)?+ (?: (?<=/)> | >[^<]*+</PREFIX f> ) )?+ <PREFIX v>[^<]++</PREFIX v>
              | <PREFIX is><PREFIX t(?:\s[^<>]*+)?+>[^<]*+</PREFIX t></PREFIX is>
            )
            </PREFIX c>
        )
    )++""".replace(b"PREFIX", rb"(?:\w++:)?+"),
    re.VERBOSE,
)

MAX_ROWS, MAX_COLUMNS = 1 << 20, 1 << 14  # of a sheet, in every version of Excel

Faults = dict[int, dict[int, dict[str, str]]]  # by row from 1, by column from 0: a Cell


def find_faults(data: bytes, sheet: str) -> Faults:
    """Those of one sheet; none if the workbook is of another kind, or is built so that only its reader understands it."""
    finder = _Finder()
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            text = archive.read(_part_of(archive, sheet))
        rest = _SOUND.sub(b"", text)
        if _LIKELY.search(rest) is not None:
            finder.feed(rest)
    except (zipfile.BadZipFile, KeyError, ValueError, StopIteration, expat.ExpatError):
        return {}
    return finder.found


def _part_of(archive: zipfile.ZipFile, sheet: str) -> str:
    """The name of the part that holds a sheet."""
    sheets = _elements(archive.read("xl/workbook.xml"), "sheet")
    found = next(one for one in sheets if one.get("name") == sheet)
    key = next(value for name, value in found.items() if name.endswith(":id"))
    links = _elements(archive.read("xl/_rels/workbook.xml.rels"), "Relationship")
    return posixpath.join("xl", next(one["Target"] for one in links if one.get("Id") == key)).lstrip("/")


def _elements(text: bytes, wanted: str) -> list[dict[str, str]]:
    """The attributes of each element of this name."""
    found: list[dict[str, str]] = []

    def start(name: str, attributes: dict[str, str]) -> None:
        if name.rpartition(":")[2] == wanted:
            found.append(attributes)

    parser = expat.ParserCreate()
    parser.StartElementHandler = start
    parser.Parse(text, True)
    return found


class _Finder:
    """Goes through a sheet cell by cell."""

    def __init__(self) -> None:
        self.found: Faults = {}
        self._row = self._column = 0
        self._kind = ""
        self._is_formula = self._is_value = False
        self._value = ""

    def feed(self, text: bytes) -> None:
        parser = expat.ParserCreate()
        parser.buffer_text = True
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._read
        parser.Parse(text, True)

    def _start(self, name: str, attributes: dict[str, Any]) -> None:
        name = name.rpartition(":")[2]
        if name == "row":
            self._row = int(attributes.get("r", self._row + 1))
            self._column = -1
        elif name == "c":
            given = attributes.get("r")
            self._column = _column(given) if given else self._column + 1
            self._kind, self._value, self._is_formula = attributes.get("t", ""), "", False
        self._is_formula = self._is_formula or name == "f"
        self._is_value = name == "v"

    def _read(self, text: str) -> None:
        if self._is_value:
            self._value += text

    def _end(self, name: str) -> None:
        self._is_value = False
        if name.rpartition(":")[2] != "c" or not (1 <= self._row <= MAX_ROWS and 0 <= self._column < MAX_COLUMNS):
            return
        if self._kind == "e":
            cell = {"fault": f"is an error, {safe_text(self._value, 40)}"}
        elif self._is_formula and not self._value and self._kind != "str":  # "str": the value is an empty text
            cell = {"fault": "is a formula with no stored value"}
        else:
            return
        self.found.setdefault(self._row, {})[self._column] = cell


def _column(address: str) -> int:
    """From 0."""
    number = 0
    for letter in address.rstrip("0123456789").upper():
        number = number * 26 + ord(letter) - ord("A") + 1
    return number - 1
