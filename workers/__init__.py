"""Workers for a poqueue: supervisor, processing functions, batches and the command line."""

from workers.batch import BatchReport, run_batch
from workers.processing import GiveUp, ProcessorSpec, RetryLater, WorkerContext
from workers.supervisor import Supervisor, WorkersCannotStartError

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
