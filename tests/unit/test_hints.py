"""Processes start without what would take a tenth of that, and the named tuples made without typing are what typing makes."""

import pickle
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from poqueue.hints import NamedTuple

ROOT = Path(__file__).parents[2]
LATER = {
    "argparse",
    "copy",
    "ctypes",
    "dataclasses",
    "inspect",
    "pathlib",
    "psutil",
    "sqlite3",
    "typing",
    "urllib.parse",
}


@pytest.mark.parametrize("modules", ["workers.supervisor", "workers.worker, poqueue.server", "workers.preload"])
def test_what_every_process_loads_loads_nothing_that_only_some_need(modules: str) -> None:
    # without site, which is not ours: an editable install brings pathlib
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {modules}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True)
    assert "poqueue.task" in done.stdout
    assert set(done.stdout.split()) & LATER == set()


def test_what_a_supervisor_is_made_of_comes_when_it_starts() -> None:
    """A fork server starts meanwhile."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import workers.supervisor; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True)
    assert "workers.supervisor" in done.stdout
    assert set(done.stdout.split()) & {"json", "logging", "poqueue.client", "workers.staff", "workers.worker"} == set()


class Ours(NamedTuple):
    """A docstring."""

    task_id: str
    token: int = 0

    @property
    def double(self) -> int:
        """A property."""
        return 2 * self.token

    @classmethod
    def make(cls) -> "Ours":
        """A class method."""
        return cls("made")


class Theirs(typing.NamedTuple):
    """A docstring."""

    task_id: str
    token: int = 0


def test_named_tuples_are_as_typing_makes_them() -> None:
    for name in (
        "_fields",
        "_field_defaults",
        "__annotations__",
        "__doc__",
        "__module__",
        "__match_args__",
        "__bases__",
    ):
        assert getattr(Ours, name) == getattr(Theirs, name), name
    assert (Ours.__name__, Ours.__qualname__) == ("Ours", "Ours")
    one = Ours("a", 7)
    assert (one, repr(one), one.double, one._replace(token=1)) == (("a", 7), "Ours(task_id='a', token=7)", 14, ("a", 1))
    assert Ours.make() == Ours("made", 0)
    copied = pickle.loads(pickle.dumps(one))
    assert (copied, type(copied)) == (one, Ours)
    with pytest.raises(TypeError):
        Ours()  # type: ignore[call-arg]
