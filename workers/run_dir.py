"""The folder of one run: everything the run writes is in it, for this user alone."""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from poqueue.errors import ConfigError

DEFAULT_PARENT = Path("runs")
MAX_NAME_CHARS = 40


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
        if isinstance(error, OSError):
            raise ConfigError(f"the run directory {str(path)!r} cannot be made: {error.strerror}") from None
        raise


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


def copy_of_orders(run_dir: Path, orders: Path) -> Path:
    """Keep a copy of the order file in the run directory: a run can be resumed when the file itself is gone."""
    copy = run_dir / f"orders{orders.suffix.lower()}"
    if copy.exists() and copy.samefile(orders):
        return copy  # the run goes on with its copy: there is nothing else to copy from
    copy.unlink(missing_ok=True)
    descriptor = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as out, open(orders, "rb") as source:
        shutil.copyfileobj(source, out)
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
