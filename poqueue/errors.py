"""Every error of poqueue, drawn once.

    PoqueueError
    ├── TaskNotFoundError       no task has this id (any more)
    ├── WorkerMismatchError     a report by somebody who does not hold the task
    ├── QueueFullError          the size limit is reached; nothing was added
    ├── QueueError              the queue itself failed; its text names the cause
    ├── JournalError            the journal cannot be opened or written; nothing was changed
    │   └── JournalGoneError    ... because its file was deleted or replaced
    ├── ServiceError            the queue lives in another process, and ...
    │   ├── ManagerLostError    ... that process is gone or hung up
    │   │   ├── ManagerCannotStartError    ... and no other can be started
    │   │   └── ManagerRefusesError    ... as soon as it was connected to
    │   └── CallTimeoutError    ... it did not answer in time
    └── InputError              what a person gave cannot be used; nothing ran
        ├── ConfigError         a setting (exit code 2)
        ├── ProcessorError      a processing function (exit code 2)
        └── OrdersError         an order file (exit code 3)

Invalid arguments are ValueErrors. Each class takes one string, so that it crosses processes whole.
"""


class PoqueueError(Exception):
    """Root of poqueue's own errors."""


class TaskNotFoundError(PoqueueError):
    """No task has this id."""


class WorkerMismatchError(PoqueueError):
    """The reporting worker does not hold the task."""


class QueueFullError(PoqueueError):
    """The queue is at its size limit; nothing was added."""


class QueueError(PoqueueError):
    """The queue failed inside; the text names the cause."""


class JournalError(PoqueueError):
    """The journal cannot be opened or written; the queue is as it was."""


class JournalGoneError(JournalError):
    """The journal's file, or the -wal file beside it, was deleted or replaced under the queue."""


class ServiceError(PoqueueError):
    """The process that owns the queue cannot be used."""


class ManagerLostError(ServiceError):
    """The manager process is gone, or its connection broke."""


class ManagerCannotStartError(ManagerLostError):
    """No manager process can be started, now or later; the text says why."""


class ManagerRefusesError(ManagerLostError):
    """The manager process is there and takes nobody on; or it has ended in just that moment."""


class CallTimeoutError(ServiceError):
    """The manager process did not answer within the call's time limit."""


class InputError(PoqueueError):
    """Something a person gave cannot be used; nothing ran."""


class ConfigError(InputError):
    """A setting is unknown, of the wrong type, or out of range."""


class ProcessorError(InputError):
    """A processing function cannot be imported or does not fit."""


class OrdersError(InputError):
    """An order file cannot be read, or holds nothing that can be run."""
