"""poqueue: a queue for purchase orders with leases, retries and reports, alone or in a process of its own."""

from poqueue.errors import (
    CallTimeoutError,
    ConfigError,
    InputError,
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
from poqueue.task import ProcessingTask, TaskResult, TaskStatus
from poqueue.task_queue import TaskQueue

__all__ = [
    "CallTimeoutError",
    "ConfigError",
    "InputError",
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
