"""The folder of one run: everything the run writes is in it, for this user alone."""

import os
import re
import shutil
from datetime import datetime
from pathlib import Path

from poqueue.errors import ConfigError

DEFAULT_PARENT = Path("runs")
MAX_NAME_CHARS = 40


def make_run_dir(chosen: Path | None, orders: Path) -> Path:
    """Make the folder (mode 0700): the chosen one, or runs/<date>-<name of the orders file>.

    Raises:
        ConfigError: it cannot be made, or holds an earlier run.
    """
    path = chosen if chosen is not None else _free_name(orders)
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=chosen is not None)
        if any(path.iterdir()):
            raise ConfigError(f"the run directory {str(path)!r} is not empty; name another one with --run-dir")
        path.chmod(0o700)
        (path / "output").mkdir(mode=0o700)
    except OSError as error:
        raise ConfigError(f"the run directory {str(path)!r} cannot be made: {error.strerror}") from None
    return path.resolve()


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
