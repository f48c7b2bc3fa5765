"""Reasons of the machine to start nothing new for now: too little memory, or too little room on the disk."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from workers.process_control import own_cgroup
from workers.quantities import format_size

EASE = 0.1  # what held the run back must be over by this share of the limit before it goes on,
MIB = 1024**2
MOST_EASE_BYTES = 64 * MIB  # and no more than this: much above a large limit may never be reached
CGROUP_ROOT = Path("/sys/fs/cgroup")


def available_memory_bytes(root: Path = CGROUP_ROOT, own: str | None = None) -> int:
    """What can be had without swapping, within the limits of this process's control groups."""
    import psutil  # only here: most runs have no such limit

    group = root / (own if own is not None else own_cgroup()).strip("/")
    left = [_left_bytes(folder) for folder in (group, *group.parents) if folder.is_relative_to(root)]
    return min([int(psutil.virtual_memory().available), *(size for size in left if size is not None)])


def _left_bytes(group: Path) -> int | None:
    """What a control group may still take; None if it has no limit. Files in its cache give way."""
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        lines = (group / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):
        return None
    cached = next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
    return max(0, int(limit) - used + cached) if limit.isdecimal() else None


@dataclass(slots=True)
class MachineGuard:
    """Says what keeps new POs from starting; sizes in bytes, None or 0 for no limit.

    Args:
        memory_bytes: hold while less memory is available.
        disk_bytes: hold while less is free where `folder` is.
    """

    folder: Path
    memory_bytes: int | None = None
    disk_bytes: int | None = None
    memory_available: Callable[[], int] = available_memory_bytes
    disk_free: Callable[[Path], int] = field(default=lambda path: shutil.disk_usage(path).free)
    _short_of: set[str] = field(default_factory=set)

    def reason(self) -> str:
        """Why nothing may start; nothing if all is well."""
        reasons = []
        if self.memory_bytes:
            reasons.append(self._look("memory", self.memory_available(), self.memory_bytes, "available", "--memfree"))
        if self.disk_bytes and os.path.isdir(self.folder):
            reasons.append(self._look("disk", self.disk_free(self.folder), self.disk_bytes, "free", "--diskfree"))
        return "; ".join(reason for reason in reasons if reason)

    def _look(self, what: str, found: int, limit: int, word: str, option: str) -> str:
        ease = int(min(limit * EASE, MOST_EASE_BYTES))
        eased = limit + (ease - ease % MIB if ease > MIB else ease)  # a size that can be said shortly
        if found >= (eased if what in self._short_of else limit):
            self._short_of.discard(what)
            return ""
        self._short_of.add(what)
        return (
            f"new POs wait: {what} {word} is below {format_size(limit)} ({option}), and go on from {format_size(eased)}"
        )
