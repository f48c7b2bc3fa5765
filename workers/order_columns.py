"""Which column of an order file holds which field: by --map, or by the name of the header."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from poqueue.errors import OrdersError
from workers.header_name import normal
from workers.quantities import did_you_mean, nearest
from workers.safe_text import quoted, safe_text

MAX_LISTED = 20  # headers, rows or POs that one message shows

KNOWN_FIELDS = ("po_number", "supplier", "amount", "priority")
RESERVED_NAMES = ("rows", "row_numbers", "as_given", "number_repeats")  # what an order's data holds beside its columns
# Only proposed, never taken: the wrong column as the PO number would cost a whole batch.
_ALIASES = ("po", "pono", "ponr", "purchaseorder", "purchaseordernumber", "ordernumber", "orderno", "order", "transno")


@dataclass(frozen=True, slots=True)
class Columns:
    """Which column holds which field."""

    names: list[str]
    po_number: int
    supplier: int | None
    amount: int | None
    priority: int | None
    notes: list[str]

    @classmethod
    def find(cls, headers: list[str], mapping: Mapping[str, str], label: str) -> Columns:
        """Match mapped fields and known ones to the headers, and give every column a name of its own."""
        places = {name: _mapped_place(headers, name, header, label) for name, header in mapping.items()}
        _refuse_shared_places(places, headers, label)
        found = {name: matches(headers, name) for name in KNOWN_FIELDS if name not in mapping}
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
                f"{label}: columns {first_few(from_one(free))} could all be {name}, so none is; "
                f"choose with --map {name}=HEADER"
                for name, free in unclear.items()
            ]
            + _likely_slips(mapping, label),
        )


def matches(headers: Sequence[str], wanted: str) -> list[int]:
    """The columns whose header is `wanted`: exactly, or else without case, blanks, dots, dashes and underscores."""
    exact = [place for place, header in enumerate(headers) if header == wanted]
    return exact or [place for place, header in enumerate(headers) if normal(header) == normal(wanted) != ""]


def _mapped_place(headers: list[str], name: str, header: str, label: str) -> int:
    # The second try is for columns without a header of their own: "column_1", "Date_2".
    found = matches(headers, header) or matches(_unique_names(headers, {}), header)
    if len(found) == 1:
        return found[0]
    if found:
        columns = first_few(from_one(found))
        raise OrdersError(f"{label}: column {quoted(header)} for {name} appears more than once (columns {columns})")
    hint = did_you_mean(nearest(header, headers))
    raise OrdersError(f"{label}: no column {quoted(header)} for {name}{hint}; columns found: {_listed(headers)}")


def _refuse_shared_places(places: Mapping[str, int], headers: list[str], label: str) -> None:
    for place, count in Counter(places.values()).items():
        if count > 1:
            names = " and ".join(name for name in places if places[name] == place)
            raise OrdersError(f"{label}: --map gives column {quoted(headers[place])} to {names}; a column has one name")


def _likely_slips(mapping: Mapping[str, str], label: str) -> list[str]:
    """A field may have any name, but one that is nearly one of ours is likely to mean that."""
    ours = [name for name in (*KNOWN_FIELDS, "currency") if name not in mapping]
    meant = {name: nearest(name, ours, likeness=0.8) for name in mapping if name not in KNOWN_FIELDS}
    return [
        f"{label}: --map gives column {quoted(mapping[name])} to {safe_text(name, 80)}{did_you_mean(near)}"
        for name, near in meant.items()
        if near
    ]


def _missing_po_number(headers: list[str], mapping: Mapping[str, str], unclear: list[int], label: str) -> str:
    if unclear:
        columns = first_few(from_one(unclear))
        return f"{label}: columns {columns} could all be po_number; choose with --map po_number=HEADER"
    likely = [header for name, header in mapping.items() if nearest(name, ["po_number"])]
    likely += [header for header in headers if normal(header).strip("#") in _ALIASES]
    likely += [header for header in headers if nearest(normal(header), ["ponumber"])]
    missing = f"{label}: no column for po_number; columns found: {_listed(headers)}; needed: po_number"
    if not likely:
        return f"{missing}; name it: --map po_number=HEADER"
    pair = "po_number=" + safe_text(likely[0], 80).replace(",", r"\,")
    return missing + did_you_mean(f"--map {shlex.quote(pair)}")


def _listed(headers: list[str]) -> str:
    more = f" and {len(headers) - MAX_LISTED} more" if len(headers) > MAX_LISTED else ""
    return ", ".join(quoted(header, 40) for header in headers[:MAX_LISTED]) + more


def _unique_names(headers: Sequence[str], given: Mapping[int, str]) -> list[str]:
    """A name for each column: the given one, else its header, numbered where that is taken or missing."""
    taken = {*given.values(), *RESERVED_NAMES}
    repeats: Counter[str] = Counter()
    names: list[str] = []
    for place, header in enumerate(headers):
        name = given.get(place) or _free_name(header.strip() or f"column_{place + 1}", taken, repeats)
        taken.add(name)
        names.append(name)
    return names


def _free_name(name: str, taken: set[str], repeats: Counter[str]) -> str:
    free = name
    while free in taken:
        repeats[name] += 1
        free = f"{name}_{repeats[name] + 1}"
    return free


def from_one(places: Iterable[int]) -> list[int]:
    return [place + 1 for place in places]


def first_few(numbers: Sequence[int]) -> str:
    more = f" and {len(numbers) - MAX_LISTED} more" if len(numbers) > MAX_LISTED else ""
    return ", ".join(str(number) for number in numbers[:MAX_LISTED]) + more
