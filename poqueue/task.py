"""The records that travel: tasks, results, and what a worker and the queue say to each other."""

from collections.abc import Callable, Sequence
from enum import Enum

from poqueue.hints import TYPE_CHECKING, Any, ClassVar, NamedTuple

DEFAULT_PRIORITY = 5
LEASE_AHEAD_S = 0.060  # how much work a worker may hold ahead,
MAX_LEASES = 128  # and how many leases at most
instance = tuple.__new__  # instance(Lease, (...)) is Lease(...) in a third of its time; for what is made for each PO


class TaskStatus(Enum):
    """Where a task is; exactly the five states of the contract."""

    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    RETRY_PENDING = "retry_pending"

    __hash__ = object.__hash__  # members are singletons; the default hashes their names, in Python, at every look-up


# what is looked at for each PO: through its class, Python 3.11 takes five times as long to find a member
PENDING, PROCESSING, COMPLETED = TaskStatus.PENDING, TaskStatus.PROCESSING, TaskStatus.COMPLETED


class Fields:
    """What the decorator of dataclasses would give; to import that takes a sixth of a worker's start."""

    __slots__ = ()
    _fields: ClassVar[tuple[str, ...]]
    __match_args__: ClassVar[tuple[str, ...]]
    __hash__ = None  # type: ignore[assignment]

    def __init_subclass__(cls) -> None:
        cls.__match_args__ = cls._fields  # type: ignore[misc]  # but here it is what a decorator would do

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return [getattr(self, name) for name in self._fields] == [getattr(other, name) for name in self._fields]

    def __repr__(self) -> str:
        told = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._fields)
        return f"{type(self).__name__}({told})"


_NONE_GIVEN: Any = object()
UNOPENED: Any = object()  # in the place of what is there as bytes only


class TaskResult(Fields):
    """What processing a PO brought.

    Attributes:
        success: False ends the task as FAILED, without a retry.
        downloads: what was fetched or written, as plain data (paths, names, dicts).
        processing_time: seconds.
        error_message: why it failed, if it did.
        data: further fields of the processor's own, plain data.
    """

    _fields = ("success", "downloads", "processing_time", "error_message", "data")
    __slots__ = _fields

    def __init__(
        self,
        success: bool,
        downloads: list[Any] = _NONE_GIVEN,
        processing_time: float = 0.0,
        error_message: str | None = None,
        data: dict[str, Any] = _NONE_GIVEN,
    ) -> None:
        self.success = success
        self.downloads = [] if downloads is _NONE_GIVEN else downloads
        self.processing_time = processing_time
        self.error_message = error_message
        self.data = {} if data is _NONE_GIVEN else data


class ProcessingTask(Fields):
    """A PO to process, and what has become of it.

    A caller gives `po_data` (with a non-blank `po_number`) and, if it likes, `task_id` and its own `max_retries`,
    `retry_delay` (seconds) and `task_timeout` (seconds); None takes the queue's. Tasks of one `group` (a supplier, say)
    are expected to take alike, which an adaptive time limit goes by. The rest is the queue's to fill in.
    Every instance that the queue hands out is a copy; its `po_data` and `result` are opened when they are first looked at,
    and raise then if they cannot be opened in this process. Times are UTC seconds since the epoch.
    """

    _fields = (
        "task_id", "po_data", "priority", "status", "attempt", "retry_count", "max_retries", "retry_delay", "task_timeout",
        "worker_id", "created_at", "assigned_at", "completed_at", "result", "error_history", "interruptions", "group",
    )  # fmt: skip
    # no fields: equal tasks may differ in them
    _hidden = ("_held_po_data", "_held_result", "_frozen_po_data", "_frozen_result")
    __slots__ = (*(name for name in _fields if name not in ("po_data", "result")), *_hidden)
    po_data: dict[str, Any]
    result: TaskResult | None
    _held_po_data: Any  # UNOPENED as long as nobody has looked at it;
    _held_result: Any
    _frozen_po_data: list[Any]  # then its bytes are here, and, once that was looked at, what they are opened
    _frozen_result: list[Any]

    def __init__(
        self,
        task_id: str = "",
        po_data: dict[str, Any] = _NONE_GIVEN,
        priority: int = DEFAULT_PRIORITY,
        status: TaskStatus = TaskStatus.PENDING,
        attempt: int = 0,
        retry_count: int = 0,
        max_retries: int | None = None,
        retry_delay: float | None = None,
        task_timeout: float | None = None,
        worker_id: str | None = None,
        created_at: float | None = None,
        assigned_at: float | None = None,
        completed_at: float | None = None,
        result: TaskResult | None = None,
        error_history: list[dict[str, Any]] = _NONE_GIVEN,
        interruptions: int = 0,
        group: str = "",
    ) -> None:
        self.task_id = task_id
        data = {} if po_data is _NONE_GIVEN else po_data
        if type(self) is ProcessingTask:
            self._held_po_data, self._held_result = data, result
        else:  # a program's own class may have something else in the place of these properties
            self.po_data, self.result = data, result
        self.priority = priority
        self.status = status
        self.attempt = attempt
        self.retry_count = retry_count
        self.max_retries = max_retries
        self.retry_delay = retry_delay
        self.task_timeout = task_timeout
        self.worker_id = worker_id
        self.created_at = created_at
        self.assigned_at = assigned_at
        self.completed_at = completed_at
        self.error_history = [] if error_history is _NONE_GIVEN else error_history
        self.interruptions = interruptions
        self.group = group

    @property
    def po_number(self) -> str:
        """The PO number as the queue compares it: stripped text."""
        return str(self.po_data.get("po_number", "")).strip()

    if not TYPE_CHECKING:  # for a type checker there are the fields, and nothing else
        # properties, for a __getattr__ would make Python 3.11 look for every other field the long way
        @property
        def po_data(self) -> Any:
            """The PO: a dict with at least `po_number`."""
            if self._held_po_data is UNOPENED:
                from poqueue.payload import thaw

                self._held_po_data = _opened(self._frozen_po_data, thaw)
            return self._held_po_data

        @po_data.setter
        def po_data(self, value: Any) -> None:
            self._held_po_data = value

        @property
        def result(self) -> Any:
            """What its last attempt brought, if it has ended with a result."""
            if self._held_result is UNOPENED:
                from poqueue.payload import thaw_result

                self._held_result = _opened(self._frozen_result, thaw_result)
            return self._held_result

        @result.setter
        def result(self, value: Any) -> None:
            self._held_result = value

        def __getstate__(self) -> tuple[Any, dict[str, Any]]:
            """What is pickled and copied: po_data and result opened, and not their bytes beside them."""
            data, result = self.po_data, self.result
            others, slots = object.__getstate__(self)
            shown = {name: value for name, value in slots.items() if name not in self._hidden}
            return others, {**shown, "po_data": data, "result": result}


def _opened(frozen: list[Any], thaw: Callable[[bytes], Any]) -> Any:
    frozen.append(thaw(frozen[0]))
    return frozen[1]  # of threads that open it at the same time all get the first one's


class Lease(NamedTuple):
    """The right to run one attempt of a task. `token` only grows; a report counts if it matches the live lease."""

    task_id: str
    token: int
    attempt: int
    max_attempts: int
    task_timeout: float
    po_number: str
    payload: bytes


PlainLease = tuple[str, int, int, int, float, str, bytes]
"""A Lease, or as it comes over the wire: nobody reads its fields by name where there is one for each PO."""


class Report(NamedTuple):
    """How one attempt ended, as a worker tells it.

    With a `result` (frozen) it is final: COMPLETED, or FAILED by its `success`. With an `error` (plain data) the attempt
    failed: the task is retried, after `retry_after_s` seconds if the worker names them, unless `give_up` says never. With
    neither the attempt was never begun, and its lease is undone.
    """

    task_id: str
    token: int
    processing_time: float
    result: Any = None
    error: dict[str, Any] | None = None
    retry_after_s: float | None = None
    give_up: bool = False


class Success(NamedTuple):
    """A report of nearly all attempts, in short: it ended well, and its result (frozen) says so and tells the same time."""

    task_id: str
    token: int
    processing_time: float
    payload: bytes


PlainSuccess = tuple[str, int, float, bytes]
"""A Success, or as it goes over the wire; likewise."""


class Grant(NamedTuple):
    """The queue's answer to a worker: what to run next; `stop` says that there will never be more.

    `left` is how many other tasks are pending, shared out among those workers that have some in hand, rounded up.
    """

    leases: list[Lease]
    stop: bool
    left: int = 0


class TaskRecord(NamedTuple):
    """A ProcessingTask with its payload and result still frozen: what the queue hands out without opening it.

    The payload is empty where it was left out (open_events); a task made of that knows no more than its po_number.
    """

    task_id: str
    payload: bytes
    priority: int
    status: TaskStatus
    attempt: int
    retry_count: int
    max_retries: int
    retry_delay: float
    task_timeout: float
    worker_id: str | None
    created_at: float
    assigned_at: float | None
    completed_at: float | None
    result: bytes | None
    error_history: Sequence[dict[str, Any]]
    interruptions: int
    po_number: str
    group: str


class ReportParts(NamedTuple):
    """One consistent look at a queue: its tasks, unopened, its figures, and when that was (UTC seconds)."""

    records: list[TaskRecord]
    status: dict[str, Any]
    metrics: dict[str, Any]
    errors: dict[str, Any]
    configuration: dict[str, Any]
    wall_time: float


class Event(NamedTuple):
    """Something that happened in the queue, numbered without gaps.

    `kind` is "completed", "failed", "retry" (an attempt failed and the task waits), "dropped" (a running task was
    cleared; `error` is its lease's token), "cancel" (a running task is to be stopped; likewise), "empty", "full", "halted"
    (the halt policy has struck; `error` says how), "short" (the manager process cannot let anybody in for now; `error` says
    why) or "notice" (somebody posted `error`).
    """

    sequence: int
    kind: str
    task: TaskRecord | None
    error: str
