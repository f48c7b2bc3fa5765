"""Workers for a poqueue: supervisor, processing functions, batches and the command line.

The names are fetched when they are first used: a worker process needs few of them, and starts the sooner.
"""

from importlib import import_module

TYPE_CHECKING = False  # as in typing, whose import would keep a Ctrl-C from being caught for some milliseconds more
if TYPE_CHECKING:
    from workers.batch import run_batch
    from workers.batch_run import BatchReport
    from workers.processing import GiveUp, ProcessorSpec, RetryLater, WorkerContext
    from workers.staff import WorkersCannotStartError
    from workers.supervisor import Supervisor

_HOMES = {
    "BatchReport": "workers.batch_run",
    "run_batch": "workers.batch",
    "GiveUp": "workers.processing",
    "ProcessorSpec": "workers.processing",
    "RetryLater": "workers.processing",
    "WorkerContext": "workers.processing",
    "Supervisor": "workers.supervisor",
    "WorkersCannotStartError": "workers.staff",
}

__all__ = [
    "BatchReport",
    "GiveUp",
    "ProcessorSpec",
    "RetryLater",
    "Supervisor",
    "WorkerContext",
    "WorkersCannotStartError",
    "run_batch",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(import_module(_HOMES[name]), name)
    return found
