"""Files that are there whole or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import BinaryIO

from poqueue.errors import ConfigError

_KEPT_CHARS = 40  # of a name, in what its temporary one begins with
_MAX_LINKS = 40  # as the kernel follows
_NO_PLACES = (Path("/dev"), Path("/proc"))
_MEMORY = Path("/dev/shm")  # where files may be


def check_output(path: Path) -> None:
    """Before anything runs: a file that the user named, and that cannot be written whole, is told now.

    A link to a file is replaced, and the file that it points to stays what it is.

    Raises:
        ConfigError: with what is in the way.
    """
    _refuse_unreachable(path)
    if path.is_dir():
        raise ConfigError(f"{str(path)!r} is a directory; name a file")
    if path.exists() and not path.is_file():
        raise ConfigError(f"{str(path)!r} is not a regular file but a pipe or device; name a file")
    if not path.parent.is_dir():
        raise ConfigError(f"{str(path)!r}: there is no directory {str(path.parent)!r}")
    _refuse_stand_in(path)
    if not os.access(path.parent, os.W_OK):
        raise ConfigError(f"{str(path)!r}: the directory cannot be written to")


def _refuse_unreachable(path: Path) -> None:
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:  # such as a name that is too long, or a link that points to itself
        raise ConfigError(f"{str(path)!r} cannot be written: {error.strerror}") from None


def _refuse_stand_in(path: Path) -> None:
    """A name such as /dev/stdout stands for what is open, be it a file: another file would take the place of the name."""
    step = path
    for _ in range(_MAX_LINKS):
        step = Path(os.path.realpath(step.parent), step.name)
        if not step.is_relative_to(_MEMORY) and any(step.is_relative_to(place) for place in _NO_PLACES):
            raise ConfigError(f"{str(path)!r} leads to {str(step)!r}, where no file can be; name a file elsewhere")
        if not step.is_symlink():
            return
        step = step.parent / os.readlink(step)


def temporary_prefix(path: Path) -> str:
    """How the names begin of what is to take the place of a file; such a name fits where the file's own does."""
    return f".{path.name[:_KEPT_CHARS]}."


@contextlib.contextmanager
def replacement(path: Path) -> Generator[BinaryIO, None, None]:
    """A new file for this user alone; it takes the place of another once it is safely written, or leaves no trace."""
    descriptor, temporary = tempfile.mkstemp(prefix=temporary_prefix(path), dir=path.parent)  # 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    with contextlib.suppress(
        OSError
    ):  # it has taken its place; not every system keeps folders safe, nor lets everybody ask
        _keep_safe(path.parent)


def _keep_safe(folder: Path) -> None:
    """From a loss of power: the names in it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(text: str | Iterable[str], path: Path) -> None:
    """Write a text as such a replacement.

    Args:
        text: the whole of it, or pieces.
    """
    with replacement(path) as file:
        for piece in [text] if isinstance(text, str) else text:
            file.write(
                piece.encode("utf-8", "backslashreplace")
            )  # errors may hold lone surrogates, which have no UTF-8 form
