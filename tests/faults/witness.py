"""A processor that bears witness: a line when an attempt begins and one when it ends, appended where no kill can take it back.

    ["begin", po, attempt, pid, monotonic]      then "end", or "fail" if the attempt ends by raising, or nothing if it is killed
    ["overlap", po, attempt, pid, monotonic]    it began while the process of an earlier attempt at the same PO still lived

What a PO does stands in its column `do`; a PO without one works for `options["seconds"]`. Whatever is to happen once is
remembered in files beside the history, so that it happens once however often everything is killed.
"""

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from workers.processing import WorkerContext

HANG_S = 1000.0


def process(po: dict[str, Any], context: WorkerContext) -> dict[str, Any]:
    """Work, and note begin and end in the file `options["history"]`."""
    history, number = context.options["history"], po["po_number"]
    claim = _claim(history, number, context.attempt)
    note(history, "begin", number, context.attempt)
    try:
        _act(str(po.get("do") or ""), po, context, Path(history).parent)
    except Exception:
        _release(claim)
        note(history, "fail", number, context.attempt)
        raise
    _release(claim)
    note(history, "end", number, context.attempt)
    return {"answer": f"done {number}"}


def note(path: str, event: str, po_number: str, attempt: int) -> None:
    """Append a line in one write; CLOCK_MONOTONIC is the same for every process of the machine."""
    line = json.dumps([event, po_number, attempt, os.getpid(), time.monotonic()]) + "\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def _act(do: str, po: dict[str, Any], context: WorkerContext, folder: Path) -> None:
    number = po["po_number"]
    word = do
    if word in ("fail_once", "hang_once", "die_once", "browser_once") and not _is_first(folder / f"{word}.{number}"):
        word = ""
    if word in ("fail", "fail_once"):
        raise RuntimeError("as it was told to")
    if word == "hang_once":
        time.sleep(HANG_S)
    elif word == "die_once":
        os.kill(os.getpid(), 9)
    elif word == "wait":
        while not (folder / "go").exists():
            time.sleep(0.005)
    elif word == "browser_once":
        with open(folder / "browsers", "a") as file:
            child = subprocess.Popen(["sleep", "900"], start_new_session=True)
            file.write(f"{child.pid}\n")
        time.sleep(HANG_S)
    else:
        time.sleep(float(word or context.options.get("seconds", "0.002")))


def _is_first(path: Path) -> bool:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        return False
    return True


# ── no two live executions of one PO ─────────────────────────────────────────────────────────────────────────────────


def _claim(history: str, number: str, attempt: int) -> Path:
    """Say that this process has the PO; whoever finds another's claim looks whether that one still lives."""
    folder = Path(f"{history}.claims")
    folder.mkdir(exist_ok=True)
    path = folder / number.replace("/", "_")
    try:
        other = int(path.read_text() or "0")
    except FileNotFoundError:
        other = 0
    if other and other != os.getpid() and _is_alive(other):
        note(history, "overlap", number, attempt)
    path.write_text(str(os.getpid()))
    return path


def _release(claim: Path) -> None:
    claim.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False
