"""The first steps of the manager process, and what it and its owner know of each other; it imports little before it needs it."""

import gc
from collections.abc import Callable
from multiprocessing.connection import Connection

from poqueue.hints import Any, NamedTuple
from poqueue.parent import await_first_word

CANNOT_HOST_EXIT = 65


class Hosting(NamedTuple):
    """What the manager process is started with.

    Attributes:
        settings: keyword arguments of TaskQueue.
        hold: why the queue starts no task before its owner has called hold_queue; empty to start at once.
        on_orphan: called when the owner has died, before the process ends.
    """

    address: str
    key: bytes
    settings: dict[str, Any]
    hold: str
    owner_pid: int
    log_path: str | None
    on_orphan: Callable[[], None] | None


def host(hosting: Hosting | None, owner: "Connection[Any, Any]", *lines: "Connection[Any, Any]") -> None:
    """The body of the manager process, which may be told later what it is to host; over each of `lines` comes a client."""
    gc.set_threshold(50_000, 20, 20)  # nothing here makes cycles: a look in a long while is enough
    from poqueue.server import serve  # there, and not in its owner

    if hosting is None:
        import poqueue.journal  # noqa: F401  (as most will need it; there is time)

        hosting = await_first_word(owner)
        assert hosting is not None
    serve(hosting, owner, lines)


def reason_path(address: str) -> str:
    """Where a manager process that cannot open its queue says why."""
    return f"{address}.reason"
