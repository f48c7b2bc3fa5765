"""Names on disk for text from outside: short, portable, never a path."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from workers.processing import WorkerContext

_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")
SLUG_LENGTH = 40


def slug(text: str) -> str:
    """The readable part of a name: at most 40 of `A-Za-z0-9_-`, accents dropped; empty if nothing is left."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii")
    return _UNSAFE.sub("-", plain).strip("-")[:SLUG_LENGTH]


def digest(text: str) -> str:
    """Ten hex digits that tell texts apart whose slugs are equal, also where file names ignore case."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:10]


def safe_name(po_number: str) -> str:
    """A name for each PO number, whatever it holds (`../x`, blanks, nothing at all)."""
    return f"{slug(po_number) or 'po'}-{digest(po_number)}"


def folder_name(po: Mapping[str, Any], context: WorkerContext) -> str:
    """The name of a PO's folder: that of its number, with its task id behind it where other POs of the run have the same."""
    name = safe_name(str(po["po_number"]).strip())
    return f"{name}-{slug(context.task_id)}" if po.get("number_repeats") else name
