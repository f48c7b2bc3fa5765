"""Files that are there whole or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path


def write_whole(text: str | Iterable[str], path: Path) -> None:
    """Write a file for this user alone; it takes the place of another once it is safely written, or leaves no trace.

    Args:
        text: the whole of it, or pieces.
    """
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # 0600
    try:
        # Texts of errors may hold lone surrogates, which have no UTF-8 form.
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            file.writelines([text] if isinstance(text, str) else text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
