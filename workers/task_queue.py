"""The queue under the contract's module path: the same class and names as in poqueue."""

from poqueue import (
    ProcessingTask,
    QueueFullError,
    TaskNotFoundError,
    TaskQueue,
    TaskResult,
    TaskStatus,
    WorkerMismatchError,
)

__all__ = [
    "ProcessingTask",
    "QueueFullError",
    "TaskNotFoundError",
    "TaskQueue",
    "TaskResult",
    "TaskStatus",
    "WorkerMismatchError",
]
