"""A processor that bears witness: one line when an attempt begins and one when it ends, appended where no kill can take it back."""

import json
import os
import time
from typing import Any

from workers.processing import WorkerContext


def process(po: dict[str, Any], context: WorkerContext) -> dict[str, Any]:
    """Work for `options["seconds"]`, and note begin and end in the file `options["history"]`."""
    options = context.options
    note(options["history"], "begin", po["po_number"], context.attempt)
    time.sleep(float(options.get("seconds", "0.002")))
    note(options["history"], "end", po["po_number"], context.attempt)
    return {"answer": f"done {po['po_number']}"}


def note(path: str, event: str, po_number: str, attempt: int) -> None:
    """Append a line in one write; CLOCK_MONOTONIC is the same for every process of the machine."""
    line = json.dumps([event, po_number, attempt, os.getpid(), time.monotonic()]) + "\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)
