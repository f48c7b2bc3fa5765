"""The default processor: one folder a PO, with its rows, totals and findings as JSON and as a page to read.

    <output_dir>/<safe name>/dossier.json    exact values, for programs
    <output_dir>/<safe name>/index.html      the same for people; needs nothing from anywhere else

The safe name is that of the PO number; of several POs with one number each has its task id behind it.

Both are written into a hidden folder that is then renamed, so no reader meets half a dossier and an attempt that was
killed leaves nothing that the next one does not clear. The bytes depend on the PO alone: a retry writes the same ones.
Nothing is synced to the disk, which would cost more than all the rest: after a power cut the newest may be empty.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Context, Decimal
from functools import lru_cache, partial
from html import escape
from pathlib import Path
from typing import Any

from workers.amounts import parse_amount, plain_text, read_amount
from workers.header_name import normal
from workers.processing import WorkerContext
from workers.processors.names import folder_name
from workers.safe_text import quoted

LISTED_FINDINGS = 5  # in the results' one cell; the dossier itself has all of them
CURRENCY_COLUMNS = frozenset(
    {"currency", "currencycode", "ccy", "curr", "währung", "waehrung", "waers", "devise", "moneda"}
)
CURRENCY_CODES = {"€": "EUR", "£": "GBP"}  # "$" and "¥" stay as they are: each is several currencies
NOT_COLUMNS = frozenset({"rows", "row_numbers", "as_given", "number_repeats"})

_CURRENCY_MARK = re.compile(r"[^\W\d_]*[^\w\s.,'’‘()+−-]|[^\W\d_]{2,}")  # "€", "US$", "kr"; not the e of 1e5
_EXACT = Context(prec=200)  # the default context would round a total to 28 digits


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a person should look at; it fails nothing."""

    kind: str
    message: str


@dataclass(frozen=True, slots=True)
class Line:
    """One row of the PO, examined. `amount` is None if there is none that can be read."""

    row_number: int
    cells: dict[str, Any]
    as_given: dict[str, Any]
    amount: Decimal | None
    currency: str
    findings: list[Finding] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Dossier:
    """What is known of a PO. `totals`: the sum of the readable amounts by currency, "" where none is named."""

    po_number: str
    lines: list[Line]
    totals: dict[str, Decimal]

    @property
    def findings(self) -> list[tuple[int, Finding]]:
        """Row number and finding, in the order of the rows."""
        return [(line.row_number, finding) for line in self.lines for finding in line.findings]


def process(po: Mapping[str, Any], context: WorkerContext) -> dict[str, Any]:
    """Write the dossier of a PO below `context.output_dir`.

    Returns:
        downloads (the two files), folder (below output_dir), rows (count), total (exact text, None if no amount can be
        read; with the currencies if there are several: "5.00 EUR; 7.00 USD") and findings (text, "" if there are none).

    Raises:
        OSError: it cannot be written. What was written before stays whole.
    """
    dossier = examine(po)
    folder = Path(context.output_dir) / folder_name(po, context)
    files = {"dossier.json": _to_json(dossier), "index.html": _to_html(dossier)}
    _publish(folder, {name: text.encode("utf-8", "backslashreplace") for name, text in files.items()})
    return {
        "downloads": [str(folder / name) for name in files],
        "folder": folder.name,
        "rows": len(dossier.lines),
        "total": _total_text(dossier.totals) or None,
        "findings": _findings_text(dossier.findings),
    }


def examine(po: Mapping[str, Any]) -> Dossier:
    """Read amounts, add them up and note what is wrong. A PO without "rows" is its own only row.

    So is one that a program has added whose "rows" are something else.
    """
    rows = [po]
    if isinstance(found := po.get("rows"), list) and found and all(isinstance(row, Mapping) for row in found):
        rows = found
    numbers = po.get("row_numbers")
    if not isinstance(numbers, list) or len(numbers) != len(rows):
        numbers = range(1, len(rows) + 1)
    seen: dict[tuple[tuple[str, str], ...], int] = {}
    lines = [_examine_row(row, number, seen) for row, number in zip(rows, numbers, strict=True)]
    return Dossier(str(po["po_number"]).strip(), lines, add_up(lines))


def _examine_row(row: Mapping[str, Any], number: int, seen: dict[tuple[tuple[str, str], ...], int]) -> Line:
    cells = {name: value for name, value in row.items() if name not in NOT_COLUMNS}
    as_given = dict(given) if isinstance(given := row.get("as_given"), Mapping) else {}
    amount = parse_amount(_text(cells.get("amount")))
    line = Line(number, cells, as_given, amount, _currency(cells, as_given, amount))
    line.findings.extend(_cell_findings(cells, amount))
    first = seen.setdefault(tuple((name, _text(value)) for name, value in cells.items()), number)
    if first != number:
        line.findings.append(Finding("duplicate_row", f"same as row {first}, counted in the total"))
    return line


def _cell_findings(cells: Mapping[str, Any], amount: Decimal | None) -> Iterable[Finding]:
    if "supplier" in cells and not _text(cells["supplier"]):
        yield Finding("missing_supplier", "no supplier")
    if "amount" not in cells:
        return
    text = _text(cells["amount"])
    if not text:
        yield Finding("missing_amount", "no amount")
    elif amount is None:
        yield Finding("unreadable_amount", f"amount {quoted(text)} is not a number")
    elif amount < 0:
        yield Finding("negative_amount", f"negative amount {plain_text(amount)}")


def _currency(cells: Mapping[str, Any], as_given: Mapping[str, Any], amount: Decimal | None) -> str:
    for name, value in cells.items():
        if _is_currency_column(name) and _text(value):
            return _currency_code(_text(value))
    # The mark of "5.742,00 €" is gone from the amount; without it euros and dollars would be added up.
    for raw in map(_text, as_given.values()):
        reading = read_amount(raw)
        mark = _CURRENCY_MARK.search(raw)
        if reading and mark and amount in (reading.value, reading.with_comma):
            return _currency_code(mark.group())
    return ""


@lru_cache(maxsize=1024)  # every row has the same columns
def _is_currency_column(name: str) -> bool:
    return normal(name) in CURRENCY_COLUMNS


def _currency_code(text: str) -> str:
    return CURRENCY_CODES.get(text, text.upper())


def add_up(lines: Iterable[Line]) -> dict[str, Decimal]:
    """The exact sum of the amounts that can be read, by currency."""
    totals: dict[str, Decimal] = {}
    for line in lines:
        if line.amount is not None:
            totals[line.currency] = _EXACT.add(totals.get(line.currency, Decimal(0)), line.amount)
    return totals


def _text(value: object) -> str:
    return "" if value is None else str(value).strip()


def _total_text(totals: Mapping[str, Decimal]) -> str:
    if len(totals) == 1:
        return plain_text(next(iter(totals.values())))
    return "; ".join(f"{plain_text(total)} {currency}".rstrip() for currency, total in totals.items())


def _findings_text(findings: list[tuple[int, Finding]]) -> str:
    listed = [f"row {number}: {finding.message}" for number, finding in findings[:LISTED_FINDINGS]]
    if len(findings) > LISTED_FINDINGS:
        listed.append(f"and {len(findings) - LISTED_FINDINGS} more")
    return "; ".join(listed)


def _publish(folder: Path, files: Mapping[str, bytes]) -> None:
    # Two attempts of one PO never overlap, so a fixed name is safe, and a killed attempt's is found again.
    draft = folder.with_name(f".{folder.name}.part")
    _make_empty(draft)
    try:
        for name, content in files.items():
            with open(draft / name, "xb", opener=partial(os.open, mode=0o600)) as file:
                file.write(content)
        _move(draft, folder, files)
    except BaseException:
        _remove(draft)
        raise


def _make_empty(draft: Path) -> None:
    make: Callable[[], None] = partial(os.mkdir, draft, 0o700)
    try:
        make()
    except FileExistsError:
        _remove(draft)
        make()
    except FileNotFoundError:
        os.makedirs(draft.parent, 0o700, exist_ok=True)
        make()


def _move(draft: Path, folder: Path, names: Iterable[str]) -> None:
    try:
        os.rename(draft, folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        # Written by an attempt that was killed before its report: exchange file by file, so that it is never missing.
        for name in names:
            os.replace(draft / name, folder / name)
        os.rmdir(draft)


def _remove(draft: Path) -> None:
    import shutil

    shutil.rmtree(draft, ignore_errors=True)


def _to_json(dossier: Dossier) -> str:
    document = {
        "po_number": dossier.po_number,
        "totals": [
            {"currency": currency or None, "total": plain_text(total)} for currency, total in dossier.totals.items()
        ],
        "findings": [
            {"row_number": number, "kind": finding.kind, "message": finding.message}
            for number, finding in dossier.findings
        ],
        "rows": [_row_document(line) for line in dossier.lines],
    }
    return json.dumps(document, ensure_ascii=False, indent=1, default=str) + "\n"


def _row_document(line: Line) -> dict[str, Any]:
    return {
        "row_number": line.row_number,
        "amount": None if line.amount is None else plain_text(line.amount),
        "currency": line.currency or None,
        "cells": line.cells,
        "as_given": line.as_given,
    }


_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #59626d; --line: #d5dae0; --page: #fff; --head: #f3f5f7;
  --warn: #9a3b00; --mark: #fff4e5 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ed; --soft: #9aa4af; --line: #3a424b; --page: #15181c; --head: #1f242a;
    --warn: #ffb374; --mark: #33261a }
}
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 75rem;
  margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem; margin: 0 }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
h1, td, li, dd { overflow-wrap: anywhere; unicode-bidi: isolate; white-space: pre-line }
dl { display: flex; flex-wrap: wrap; gap: 1rem 3rem; margin: 1rem 0 }
dt { color: var(--soft); font-size: .85rem }
dd { margin: 0; font-weight: 600 }
.scroll { overflow-x: auto }
table { border-collapse: collapse; width: 100% }
th, td { text-align: start; vertical-align: top; padding: .4rem .7rem; border-bottom: 1px solid var(--line) }
td { min-width: 5rem }
thead th { background: var(--head); font-size: .85rem; color: var(--soft) }
.number { text-align: end; white-space: nowrap; overflow-wrap: normal; font-variant-numeric: tabular-nums }
.look { background: var(--mark) }
.look th::after { content: " \\26A0"; color: var(--warn) }
li a { color: var(--warn) }
@media print {
  :root { color-scheme: light; --ink: #000; --soft: #444; --line: #999; --page: #fff; --head: #eee;
    --warn: #000; --mark: #fff }
  body { font-size: 10pt; margin: 0; max-width: none; padding: 0 }
  .scroll { overflow: visible }
  tr { break-inside: avoid }
  thead { display: table-header-group }
  li a { color: inherit; text-decoration: none }
}
"""
_HEAD = (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
    # Cells come from outside: should one ever slip past escape(), a browser still runs and loads nothing.
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
    f"<style>{_STYLE}</style>\n"
)


def _to_html(dossier: Dossier) -> str:
    title = escape(dossier.po_number)
    head = f"{_HEAD}<title>{title}</title>\n</head>\n<body>\n<h1>{title}</h1>\n"
    return head + _summary_html(dossier) + _findings_html(dossier) + _table_html(dossier) + "</body>\n</html>\n"


def _summary_html(dossier: Dossier) -> str:
    suppliers = dict.fromkeys(filter(None, (_text(line.cells.get("supplier")) for line in dossier.lines)))
    totals = "; ".join(f"{total:,f} {currency}".rstrip() for currency, total in dossier.totals.items())
    facts = {
        "Supplier": "; ".join(suppliers) or "none",
        "Rows": str(len(dossier.lines)),
        "Total": totals or "no amount can be read",
        "Findings": str(len(dossier.findings)),
    }
    items = (f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    return f"<dl>{''.join(items)}</dl>\n"


def _findings_html(dossier: Dossier) -> str:
    if not dossier.findings:
        return ""
    items = (f'<li><a href="#row{n}">Row {n}</a>: {escape(finding.message)}</li>' for n, finding in dossier.findings)
    return f"<h2>Findings</h2>\n<ul>{''.join(items)}</ul>\n"


def _table_html(dossier: Dossier) -> str:
    columns = list(dict.fromkeys(name for line in dossier.lines for name in line.cells if name != "po_number"))
    has_as_given = any(line.as_given for line in dossier.lines)
    head = [f'<th scope="col"{_number_class(name)}>{escape(name)}</th>' for name in ["Row", *columns]]
    if has_as_given:
        head.append('<th scope="col">As given</th>')
    rows = "\n".join(_row_html(line, columns, has_as_given) for line in dossier.lines)
    return (
        f'<h2>Rows</h2>\n<div class="scroll"><table>\n<thead><tr>{"".join(head)}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody>\n</table></div>\n"
    )


def _number_class(column: str) -> str:
    return ' class="number"' if column == "amount" else ""


def _row_html(line: Line, columns: Iterable[str], has_as_given: bool) -> str:
    cells = "".join(f"<td{_number_class(name)}>{_cell_html(line, name)}</td>" for name in columns)
    if has_as_given:
        cells += f"<td>{escape('; '.join(f'{name}: {_text(raw)}' for name, raw in line.as_given.items()))}</td>"
    look = ' class="look"' if line.findings else ""
    return f'<tr id="row{line.row_number}"{look}><th scope="row">{line.row_number}</th>{cells}</tr>'


def _cell_html(line: Line, name: str) -> str:
    if name == "amount" and line.amount is not None:
        return f"{line.amount:,f}"
    return escape(_text(line.cells.get(name)))
