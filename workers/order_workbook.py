"""An order file that is a workbook (XLSX, XLS, ODS), read by a child process with a memory limit.

A workbook whose only cells are the first and the last one makes the parser ask for half a terabyte and abort, and a
size stated in a zip may be a lie; in such a child either is only an error.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from itertools import count, islice
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from poqueue.errors import OrdersError
from poqueue.parent import die_with_parent
from workers.header_name import normal
from workers.order_columns import MAX_LISTED
from workers.order_table import Cell, Records, Table, address, as_text, is_blank
from workers.process_control import quiet_start
from workers.quantities import did_you_mean, nearest
from workers.safe_text import quoted, safe_text
from workers.workbook_faults import Faults, find_faults

if TYPE_CHECKING:
    import zipfile

_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
SUFFIXES = (".xlsx", ".xlsm", ".xlsb", ".xls", ".ods")
MAX_EXPANDED_BYTES = 1024**3
MAX_RATIO = 100
_HARMLESS_BYTES = 32 * 1024**2  # a workbook this small may be packed as tightly as it likes
MAX_MEMBERS = 1000
MAX_WORKBOOK_MEMORY_BYTES = 4 * 1024**3
_WORKBOOK_SILENCE_S = 120.0
_SENT_ROWS = 1000


def is_workbook(data: bytes) -> bool:
    """By content, not by name: workbooks are called .csv often enough."""
    return data.startswith((*_ZIP, _OLE))


def open_workbook(label: str, data: bytes, sheet: str | None) -> Table:
    """The table in a sheet of a workbook.

    Args:
        label: how messages call the file.
        sheet: name or 1-based number. None: the only visible one with data.

    Raises:
        OrdersError: here or while the records are read; the text says why and what to do.
    """
    if data.startswith(_ZIP):
        _check_zip(label, data)
    elif "EncryptedPackage".encode("utf-16-le") in data:
        raise OrdersError(f"{label}: is protected with a password; save it without one")
    if importlib.util.find_spec("python_calamine") is None:
        raise OrdersError(f"{label}: reading a workbook needs one more package: pip install 'poqueue[excel]'")
    records = _child_records(label, data, sheet)
    for number, cells in records:
        if not is_blank(cells):
            notes = _header_notes(label, number, cells)
            return Table([as_text(cell) for cell in cells], number, records, notes=notes)
    raise OrdersError(f"{label}: the sheet is empty; expected a header row with a column for po_number")


def _header_notes(label: str, number: int, cells: Sequence[Cell]) -> list[str]:
    faults = [f"{address(place, number)} {cell['fault']}" for place, cell in enumerate(cells) if isinstance(cell, dict)]
    more = f"; headers without a value: {len(faults)}" if len(faults) > 1 else ""
    return [f"{label}: header cell {faults[0]}{more}"] if faults else []


def _check_zip(label: str, data: bytes) -> None:
    """Refuse what is no workbook or would burst, before any of it is unpacked."""
    import zipfile

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
    """The rows of a sheet, read by a child process that ends with the generator."""
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_send_sheet, args=(sender, data, label, sheet), daemon=True)
    with quiet_start():
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

    die_with_parent()
    # The other held signals stay so: only the parent decides. This one is how multiprocessing ends a child at exit.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
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
        name = _choose_sheet(workbook, visible or workbook.sheet_names, label, sheet)
        faults = find_faults(data, name)
        found = workbook.get_sheet_by_name(name)
        # iter_rows begins at row 1 in any case, but at the first column that is used.
        margin: list[Cell] = [""] * (found.start or (0, 0))[1]
        rows = _with_faults((margin + [_as_cell(value) for value in row] for row in found.iter_rows()), faults)
        while batch := list(islice(rows, _SENT_ROWS)):
            yield {"rows": batch}
    except calamine.PasswordError:
        raise OrdersError(f"{label}: is protected with a password; save it without one") from None
    except calamine.CalamineError as error:
        raise OrdersError(f"{label}: is not a workbook that can be read: {safe_text(str(error), 200)}") from None


def _with_faults(rows: Iterator[list[Cell]], faults: Faults) -> Iterator[list[Cell]]:
    """The rows with those cells in their places, also below and right of what else the sheet holds."""
    last, width = max(faults, default=0), 0
    for number in count(1):
        cells = next(rows, None)
        if cells is None and number > last:
            return
        cells = cells if cells is not None else [""] * width
        width = len(cells)
        for place, cell in faults.get(number, {}).items():
            cells += [""] * (place + 1 - len(cells))
            cells[place] = cell
        yield cells


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
    alike = [name for name in names if normal(name) == normal(sheet)]
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
