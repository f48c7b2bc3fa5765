"""The POs of the benchmarks, and what every pool's workers do with one; imported by each worker, so it imports little.

All pools run the same function on the same POs, and what it returns names its PO: a result that is lost, or that belongs
to another PO, is seen.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

HANG_S = 3600.0
BAD_EVERY = 20  # in W4 and W5 one PO of so many is bad


def make_po(number: int, work: str, prefix: str = "PO") -> dict[str, Any]:
    """A PO of about 1 KB pickled, its text made afresh as if read from a file: shared text would hide memory."""
    row = {f"column_{i:02}": f"text of row {number:07}, column {i:02}" for i in range(15)}
    return {
        "po_number": f"{prefix}{number:07}",
        "supplier": f"Supplier {number % 500:03} and Sons Ltd.",
        "amount": f"{number % 9973}.50",
        "work": work,
        "rows": [{"row": number + 2, **row}],
    }


def make_orders(count: int, work: str, prefix: str = "PO") -> list[dict[str, Any]]:
    """Good POs."""
    return [make_po(number, work, prefix) for number in range(count)]


def make_orders_with_bad(count: int, bad: str) -> list[dict[str, Any]]:
    """POs of 5 ms with one bad one in every twenty, spread evenly."""
    return [
        make_po(number, bad if is_bad(number) else "sleep_5ms", "BAD" if is_bad(number) else "PO")
        for number in range(count)
    ]


def is_bad(number: int) -> bool:
    """Which of the POs with bad ones among them are bad."""
    return number % BAD_EVERY == BAD_EVERY // 3


def paced(orders: list[dict[str, Any]], every_s: float) -> Iterator[dict[str, Any]]:
    """One PO at a time, each when it is due, with the moment at which it is handed to the pool."""
    due = time.monotonic()
    for po in orders:
        due += every_s
        time.sleep(max(0.0, due - time.monotonic()))
        po["added"] = time.monotonic()
        yield po


# ---------------------------------------------------------------------- in the worker


def perform(po: dict[str, Any], attempt: int = 1) -> dict[str, Any]:
    """What every pool runs."""
    started = time.monotonic()
    more = WORK[po["work"]](po, attempt)
    return {
        "po_number": po["po_number"],
        **(more or {}),
        **({"wait_s": started - po["added"]} if "added" in po else {}),
    }


def process(po: dict[str, Any], context: Any) -> dict[str, Any]:
    """The same as a processor of poqueue."""
    return perform(po, context.attempt)


def nothing(po: dict[str, Any]) -> None:
    """The empty processor."""


def burn(seconds: float) -> None:
    """Use this much CPU time of this thread, whatever else the machine does meanwhile."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        for _ in range(100):
            pass


def _whoami(po: dict[str, Any], attempt: int) -> dict[str, Any]:
    time.sleep(0.02)
    return {"pid": os.getpid()}


def _hang(po: dict[str, Any], attempt: int) -> None:
    """The first attempt hangs; another one, for whoever makes it, takes as long as a good PO."""
    time.sleep(HANG_S if attempt == 1 else 0.005)


def _crash(po: dict[str, Any], attempt: int) -> None:
    """The first attempt takes its worker along after the time of a good PO, by an exit or by a signal."""
    time.sleep(0.005)
    if attempt > 1:
        return
    if int(po["po_number"][3:]) // BAD_EVERY % 2:
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(3)


def _much_later(po: dict[str, Any], attempt: int) -> None:
    from workers import RetryLater

    raise RetryLater("keeps the run going", after=HANG_S)


WORK: dict[str, Callable[[dict[str, Any], int], dict[str, Any] | None]] = {
    "nothing": lambda po, attempt: None,
    "sleep_1ms": lambda po, attempt: time.sleep(0.001),
    "sleep_5ms": lambda po, attempt: time.sleep(0.005),
    "sleep_10ms": lambda po, attempt: time.sleep(0.01),
    "burn_1ms": lambda po, attempt: burn(0.001),
    "whoami": _whoami,
    "hang": _hang,
    "crash": _crash,
    "much_later": _much_later,
}
