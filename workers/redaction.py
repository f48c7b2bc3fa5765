"""A history without the data of any PO: what may be handed to somebody who must not see the orders.

Left out: PO numbers, suppliers, amounts, everything in the rows and results, folders, values of options. Of errors stay
the type, words that are ordinary and stand in no PO's data, and the places in the code, of whose names and of those of
files the parts that hold a word of any PO's data become … as well. POs are numbered.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePath
from typing import Any

from workers.error_text import name_without_data, stack_without_data, type_without_data, without_data
from workers.history import Attempt, Order, RunHistory

HIDDEN = "…"
_NAMED_RUN = ("orders_sha256", "begun_at", "seconds", "reason", "is_live")
_NAMES = frozenset({"app_dir", "run_dir", "results", "config", "processor"})
_OUR_PROCESSORS = "workers.processors."
_SECRET_SETTINGS = frozenset({"options", "command", "map", "sheet", "report"})
_FILE = re.compile(r"^((?:(?:command line|environment \w+), over )*)(?:.*/)?(.*?)( line \d+)$")  # of an origin
_WORKER_ID = re.compile(r"[a-z-]{0,12}[0-9]{1,6}(?:\.[0-9]{1,9})?")


def redacted(history: RunHistory) -> RunHistory:
    """The same history, of which nobody can tell what was ordered from whom for how much."""
    numbers = {order.task_id: number for number, order in enumerate(history.orders, 1)}
    for attempt in history.attempts:
        numbers.setdefault(attempt.task_id, len(numbers) + 1)
    workers = {attempt.worker_id for attempt in history.attempts}
    names = {name: name if _WORKER_ID.fullmatch(name) else f"worker-{n}" for n, name in enumerate(sorted(workers), 1)}
    return replace(
        history,
        run=_run(history.run, history.po_words),
        orders=tuple(_order(order, numbers, history.po_words) for order in history.orders),
        attempts=tuple(_attempt(one, numbers, names, history.po_words) for one in history.attempts),
        pauses=tuple(replace(pause, reason=_text(pause.reason, "", history.po_words)) for pause in history.pauses),
        again="",  # they name a folder, without which they are of no use
        rest="",
        po_words=frozenset(),
    )


def _order(order: Order, numbers: Mapping[str, int], words: frozenset[str]) -> Order:
    number = numbers[order.task_id]
    kind = type_without_data(order.error_type, words)
    message = _text(order.message, order.po_number, words)
    return replace(
        order, task_id=f"t{number}", po_number=f"PO {number}", supplier="", amount=None, currency="", charges=(),
        unread_rows=0, error_type=kind, message=message,
    )  # fmt: skip


def _attempt(attempt: Attempt, numbers: Mapping[str, int], names: Mapping[str, str], words: frozenset[str]) -> Attempt:
    number = numbers[attempt.task_id]
    return replace(
        attempt, task_id=f"t{number}", po_number=f"PO {number}", worker_id=names[attempt.worker_id],
        error_type=type_without_data(attempt.error_type, words),
        message=_text(attempt.message, attempt.po_number, words),
        stack=stack_without_data(attempt.stack, words),
    )  # fmt: skip


def _text(text: str, po_number: str, words: frozenset[str]) -> str:
    return without_data(text, po_number, words) if text else ""


def _run(run: Mapping[str, Any], words: frozenset[str]) -> dict[str, Any]:
    kept = {key: run[key] for key in _NAMED_RUN if key in run}
    kept |= {key: _name(run[key], words) for key in ("run_dir", "orders", "processor") if run.get(key)}
    if run.get("message"):
        kept["message"] = _text(str(run["message"]), "", words)
    if isinstance(run.get("settings"), dict):
        kept["settings"] = {key: _setting(key, entry, words) for key, entry in run["settings"].items()}
    return kept


def _setting(key: str, entry: Any, words: frozenset[str]) -> Any:
    value, origin = (entry.get("value"), entry.get("from", "")) if isinstance(entry, dict) else (entry, "")
    if key in _SECRET_SETTINGS and value:
        value = HIDDEN
    elif key in _NAMES and value:
        value = _name(value, words)
    shown = _FILE.sub(lambda found: found[1] + name_without_data(found[2], words) + found[3], str(origin))
    return {"value": value, "from": shown}


def _name(path: Any, words: frozenset[str]) -> str:
    name = PurePath(str(path)).name
    return name if name.startswith(_OUR_PROCESSORS) else name_without_data(name, words)
