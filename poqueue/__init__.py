"""poqueue: a queue for purchase orders with leases, retries and reports, alone or in a process of its own.

TaskQueue is fetched when it is first used: a worker process needs the records only, and starts the sooner.
"""

from poqueue.errors import (
    CallTimeoutError,
    ConfigError,
    InputError,
    JournalError,
    JournalGoneError,
    ManagerLostError,
    OrdersError,
    PoqueueError,
    ProcessorError,
    QueueError,
    QueueFullError,
    ServiceError,
    TaskNotFoundError,
    WorkerMismatchError,
)
from poqueue.hints import TYPE_CHECKING, Any
from poqueue.task import ProcessingTask, TaskResult, TaskStatus

if TYPE_CHECKING:
    from poqueue.task_queue import TaskQueue

__all__ = [
    "CallTimeoutError",
    "ConfigError",
    "InputError",
    "JournalError",
    "JournalGoneError",
    "ManagerLostError",
    "OrdersError",
    "PoqueueError",
    "ProcessingTask",
    "ProcessorError",
    "QueueError",
    "QueueFullError",
    "ServiceError",
    "TaskNotFoundError",
    "TaskQueue",
    "TaskResult",
    "TaskStatus",
    "WorkerMismatchError",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name != "TaskQueue":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from poqueue.task_queue import TaskQueue

    return TaskQueue
