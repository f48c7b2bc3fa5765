"""The folder of one run: everything the run writes is in it, for this user alone."""

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from poqueue.errors import ConfigError, JournalError, OrdersError
from workers.whole_file import replacement

DEFAULT_PARENT = Path("runs")
MAX_NAME_CHARS = 40
_COPIED_BYTES = 1024**2  # at once


@contextlib.contextmanager
def new_run_dir(chosen: Path | None, orders: Path) -> Iterator[Path]:
    """Make the folder (mode 0700): the chosen one, or runs/<date>-<name of the orders file>.

    If what is done in it within the `with` fails, nothing stays of what was made.

    Raises:
        ConfigError: it cannot be made, or holds an earlier run.
    """
    path = chosen if chosen is not None else _free_name(orders)
    missing = [folder for folder in (path, *path.parents) if not os.path.lexists(folder)]
    is_ours = False
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=chosen is not None)
        if any(path.iterdir()):
            raise ConfigError(f"the run directory {str(path)!r} is not empty; name another one with --run-dir")
        path.chmod(0o700)
        (path / "output").mkdir(mode=0o700)
        is_ours = True  # nobody else can have made it
        yield path.resolve()
    except BaseException as error:
        _remove(path if is_ours else None, missing)
        if isinstance(error, OSError | JournalError):
            reason = error.strerror if isinstance(error, OSError) else error
            raise ConfigError(f"the run directory {str(path)!r} cannot be made: {reason}") from None
        raise


@contextlib.contextmanager
def going_on(run_dir: Path) -> Iterator[None]:
    """What is done within the `with` to go on with a run: if the system refuses it, the disk is full perhaps.

    Raises:
        ConfigError: the system refuses something.
    """
    try:
        yield
    except OSError as error:
        raise ConfigError(f"the run {str(run_dir)!r} cannot go on: {error.strerror}") from None


def _remove(filled: Path | None, made: list[Path]) -> None:
    """Take away what is in the one, and then the others, the innermost first, unless something else is in them."""
    for entry in filled.iterdir() if filled is not None else ():
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        for folder in made:
            folder.rmdir()


def copy_of_orders(run_dir: Path, orders: Path, sha256: str) -> Path:
    """Keep a copy of the order file in the run directory: a run can be resumed when the file itself is gone.

    Args:
        sha256: of what was read of the file, in hex.

    Raises:
        OrdersError: that is not in the file any more; an earlier copy stays.
    """
    copy = run_dir / f"orders{orders.suffix.lower()}"
    if copy.exists() and orders.exists() and copy.samefile(orders):
        return copy  # the run goes on with its copy: there is nothing else to copy from
    try:
        source = open(orders, "rb")  # noqa: SIM115  (closed below)
    except OSError as error:
        raise OrdersError(f"{orders}: cannot be read a second time: {error.strerror}; nothing ran") from None
    digest = hashlib.sha256()
    with source, replacement(copy) as out:
        while part := source.read(_COPIED_BYTES):
            digest.update(part)
            out.write(part)
        if digest.hexdigest() != sha256:
            raise OrdersError(f"{orders}: has changed since it was read; nothing ran: start again when it is complete")
    return copy


def typed(path: Path) -> str:
    """A path as short as it can be typed here; never like an option."""
    try:
        relative = os.path.relpath(path)
    except FileNotFoundError:  # there is no "here" any more
        return str(path)
    if relative.startswith(".."):
        return str(path)
    return f"./{relative}" if relative.startswith("-") else relative


def _free_name(orders: Path) -> Path:
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", orders.stem)[:MAX_NAME_CHARS].strip("-.") or "orders"
    name = f"{datetime.now():%Y-%m-%d-%H%M%S}-{stem}"
    path = DEFAULT_PARENT / name
    number = 1
    while os.path.lexists(path):
        number += 1
        path = DEFAULT_PARENT / f"{name}-{number}"
    return path
