"""What went wrong, by type and by hour, in bounded memory."""

import time
from collections import Counter

from poqueue.hints import Any
from poqueue.plain import plain_details

MAX_TYPES = 1000
MAX_HOURS = 7 * 24
MAX_TYPE_CHARS = 200
MOST_COMMON = 10  # types that a summary names
OTHER = "(other)"
_NAMES, _TEXTS = ("error_type", "exception", "exception_type"), ("error", "error_message", "message")


class ErrorLog:
    """Counts each failed attempt once. `max_hours` is how far back the hourly trend goes."""

    def __init__(self, max_hours: int = MAX_HOURS) -> None:
        self.total = 0
        self._max_hours = max_hours
        self._by_type: Counter[str] = Counter()
        self._latest: dict[str, dict[str, Any]] = {}
        self._by_hour: dict[str, int] = {}

    def add(self, error_type: str, message: str, po_number: str, wall_time: float) -> None:
        """One failed attempt, at a UTC time in seconds."""
        if error_type not in self._by_type and len(self._by_type) >= MAX_TYPES:
            error_type = OTHER
        moment = time.gmtime(wall_time)
        self._latest[error_type] = {
            "last_message": message,
            "last_po_number": po_number,
            "last_at": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", moment),
        }
        self.total += 1
        self._by_type[error_type] += 1  # after its latest, for a signal handler may ask for both in between
        hour = time.strftime("%Y-%m-%dT%H:00Z", moment)
        self._by_hour[hour] = self._by_hour.get(hour, 0) + 1
        if len(self._by_hour) > self._max_hours:
            self.trim()

    def trim(self) -> None:
        """Forget the hours beyond the limit."""
        for hour in sorted(self._by_hour)[: -self._max_hours]:
            del self._by_hour[hour]

    def summary(self) -> dict[str, Any]:
        """Totals, the most common types with their latest message, and errors by UTC hour."""
        return {
            "total_errors": self.total,
            "unique_error_types": len(self._by_type),
            "most_common_errors": [
                {"error_type": kind, "count": count, **self._latest[kind]}
                for kind, count in self._by_type.most_common(MOST_COMMON)
            ],
            "error_trends": dict(sorted(self._by_hour.items())),
        }


def described(details: dict[str, Any]) -> dict[str, Any]:
    """Details as plain data, with their type and message found while exceptions are still exceptions.

    Raises:
        ValueError: details is no dict.
    """
    if not isinstance(details, dict):
        raise ValueError(f"error_details must be a dict, got {type(details).__name__}")
    named = {"error_type": error_type_of(details), "message": error_message_of(details)}
    texts = {
        key: error_message_of({key: details[key]}) for key in _TEXTS if isinstance(details.get(key), BaseException)
    }
    return {**plain_details({**details, **texts}), **plain_details(named)}


def error_type_of(details: dict[str, Any]) -> str:
    """The type of an error: `error_type`, else the exception's name, else the first line of its text."""
    for key in _NAMES + _TEXTS:
        named = details.get(key)
        if isinstance(named, BaseException):
            return type(named).__name__
        if key in _NAMES and isinstance(named, type):
            return named.__name__
        if key in _NAMES and isinstance(named, str) and named.strip():
            return named.strip()[:MAX_TYPE_CHARS]
    lines = error_message_of(details).strip().splitlines()
    return lines[0][:MAX_TYPE_CHARS] if lines else "unknown"


def error_message_of(details: dict[str, Any]) -> str:
    """The text of an error: `error`, `error_message` or `message`, the first that says something."""
    for key in _TEXTS:
        text = details.get(key)
        if isinstance(text, BaseException):
            return _text_of(text) or type(text).__name__
        if text is not None and _text_of(text).strip():
            return _text_of(text)
    exception = details.get("exception")
    return _text_of(exception) if isinstance(exception, BaseException) else ""


def _text_of(value: Any) -> str:
    try:
        return str(value)
    except Exception:  # a __str__ of its own may raise anything
        return type(value).__name__
