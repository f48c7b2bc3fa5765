"""The queue's settings, checked as a whole before any of them is used."""

import math

from poqueue.hints import Any
from poqueue.task import Fields

MAX_TIMEOUT_S = 366 * 86400.0
MAX_RETENTION_S = 100 * MAX_TIMEOUT_S
DEFAULT_MAX_RETRY_DELAY_S = 3600.0
DEFAULT_RETENTION_S = 86400.0
DEFAULT_TIMEOUT_FLOOR_S = 1.0


class QueueConfig(Fields):
    """Settings of one queue; times in seconds. Made and changed by `checked` and `changed`, which let nothing wrong in.

    Not to be changed itself. No NamedTuple: Python 3.11 finds the fields of one the long way, and each PO takes eight.
    """

    _fields = (
        "max_retries", "retry_delay", "task_timeout", "enable_priority", "queue_size_limit", "max_retry_delay",
        "retry_jitter", "retention_s", "start_delay", "timeout_share", "timeout_floor",
    )  # fmt: skip
    __slots__ = _fields

    def __init__(
        self,
        max_retries: int = 3,
        retry_delay: float = 5.0,
        task_timeout: float = 300.0,
        enable_priority: bool = True,
        queue_size_limit: int | None = None,
        max_retry_delay: float = DEFAULT_MAX_RETRY_DELAY_S,
        retry_jitter: float = 0.0,
        retention_s: float = DEFAULT_RETENTION_S,
        start_delay: float = 0.0,
        timeout_share: float | None = None,
        timeout_floor: float = DEFAULT_TIMEOUT_FLOOR_S,
    ) -> None:
        self.max_retries = max_retries
        self.retry_delay = retry_delay
        self.task_timeout = task_timeout
        self.enable_priority = enable_priority
        self.queue_size_limit = queue_size_limit
        self.max_retry_delay = max_retry_delay
        self.retry_jitter = retry_jitter
        self.retention_s = retention_s
        self.start_delay = start_delay
        self.timeout_share = timeout_share
        self.timeout_floor = timeout_floor

    def as_dict(self) -> dict[str, Any]:
        """The settings by name."""
        return {name: getattr(self, name) for name in self._fields}

    @classmethod
    def checked(cls, *values: Any, **named: Any) -> "QueueConfig":
        """These settings.

        Raises:
            ValueError: a value is of the wrong type or out of range; the text names it in words.
        """
        config = cls(*values, **named)
        config._check()
        return config

    def changed(self, changes: dict[str, Any]) -> "QueueConfig":
        """The same with some of them changed. Errors as in checked, also for one that there is not."""
        if unknown := changes.keys() - set(self._fields):
            raise ValueError(f"unknown: {', '.join(sorted(unknown))}")
        return QueueConfig.checked(**{**self.as_dict(), **changes})

    def _check(self) -> None:
        check_max_retries(self.max_retries)
        check_seconds(self.retry_delay, "retry delay (retry_delay)", minimum=0.0)
        check_timeout(self.task_timeout)
        check_seconds(self.max_retry_delay, "retry delay limit (max_retry_delay)", minimum=0.0)
        check_seconds(self.retry_jitter, "retry jitter (retry_jitter), a share of the delay,", minimum=0.0, maximum=1.0)
        check_seconds(self.retention_s, "retention period (retention_s)", minimum=0.0, maximum=MAX_RETENTION_S)
        if self.timeout_share is not None:
            check_seconds(
                self.timeout_share, "timeout as a share of the median (timeout_share)", minimum=1.0, exclusive=True
            )
        check_seconds(self.timeout_floor, "least timeout (timeout_floor)", minimum=0.0, exclusive=True)
        check_seconds(self.start_delay, "delay between starts (start_delay)", minimum=0.0)
        if not isinstance(self.enable_priority, bool):
            raise ValueError(f"enable_priority must be True or False, got {self.enable_priority!r}")
        if self.queue_size_limit is not None:
            check_whole(self.queue_size_limit, "queue size limit (queue_size_limit)", minimum=1)


_BESIDES = ("journal", "durability", "journal_must_exist", "journal_any_version", "clock", "wall_clock")


def check_queue_settings(settings: dict[str, Any]) -> None:
    """Keyword arguments of a TaskQueue, before there is one. Errors as in QueueConfig.checked."""
    QueueConfig.checked(**{key: value for key, value in settings.items() if key not in _BESIDES})


def check_timeout(value: Any) -> None:
    """A task timeout in seconds: positive and finite."""
    check_seconds(value, "task timeout (task_timeout)", minimum=0.0, exclusive=True)


def check_delay_asked_for(value: Any) -> None:
    """A retry delay in seconds that one attempt asks for: finite; one beyond the queue's limit is cut to that."""
    check_seconds(value, "retry delay asked for (retry_after_s)", minimum=0.0, maximum=math.inf)


def check_max_retries(value: Any) -> None:
    """The number of retries after the first attempt: 0 or more."""
    check_whole(value, "retry count (max_retries)", minimum=0)


def check_whole(value: Any, name: str, *, minimum: int, maximum: int | None = None) -> None:
    """Refuse what is not a whole number in range; True and False are no numbers."""
    if type(value) is bool or not isinstance(value, int):
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    if value < minimum or (maximum is not None and value > maximum):
        span = f"{minimum} or more" if maximum is None else f"{minimum} to {maximum}"
        raise ValueError(f"{name} must be {span}, got {value!r}")


def check_seconds(
    value: Any, name: str, *, minimum: float, maximum: float = MAX_TIMEOUT_S, exclusive: bool = False
) -> None:
    """Refuse what is not a finite number in range; True and False are no numbers."""
    if type(value) is bool or not isinstance(value, int | float) or not abs(value) < math.inf:
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    if value < minimum or value > maximum or (exclusive and value == minimum):
        raise ValueError(
            f"{name} must be {'above' if exclusive else 'from'} {minimum:g}, up to {maximum:g}, got {value!r}"
        )
