"""What people write for durations, sizes, shares, counts and switches, read into numbers.

Each `parse_*` takes the value (text from a command line, a file or the environment, or a Python value) and the name
of the option it was given for, and returns the quantity. What it cannot read is a ValueError that names the option,
the value and what is accepted. True and False are never numbers, NaN and infinity never quantities.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

from workers.own_process import usable_cores
from workers.safe_text import quoted

MAX_JOBS = 256
MAX_DURATION_S = 7 * 86400.0
MAX_SIZE_BYTES = 1024**5

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}

_NUMBER = r"([0-9]+(?:\.[0-9]+)?|\.[0-9]+)"  # [0-9], as \d also takes the digits of every other script
_DURATION = re.compile(_NUMBER + r" ?(ms|s|m|h|d|)")
_SIZE = re.compile(_NUMBER + r" ?([KMGT]|)(?:i?B)?", re.IGNORECASE)
_SHARE = re.compile(_NUMBER + r" ?(%|)")
_WHOLE_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,18})")  # no leading zero: YAML 1.1 and C read 012 as ten
_SWITCH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def parse_duration(value: object, option: str, *, minimum_s: float = 0.0, maximum_s: float = MAX_DURATION_S) -> float:
    """Seconds, from "90s", "500ms", "2m", "1.5h", "1d" or a plain number of seconds."""
    seconds = _measure(value, _DURATION, {"": 1.0, **_SECONDS})
    if seconds is None or not minimum_s <= seconds <= maximum_s:
        span = f"{format_duration(minimum_s)} to {format_duration(maximum_s)}"
        raise _refusal(option, f"a duration from {span}, such as 90s, 500ms, 2m, 1h, 1d or a number of seconds", value)
    return seconds


def parse_size(value: object, option: str, *, minimum_bytes: int = 1, maximum_bytes: int = MAX_SIZE_BYTES) -> int:
    """Bytes, from "500M", "2G", "1.5GiB" or a plain number of bytes; K, M, G and T are powers of 1024."""
    size = _measure(value, _SIZE, {"": 1, **_BYTES})
    if size is None or not minimum_bytes <= size <= maximum_bytes:
        span = f"{format_size(minimum_bytes)} to {format_size(maximum_bytes)}"
        raise _refusal(option, f"a size from {span}, such as 500M, 2G or a number of bytes", value)
    return int(size)


def parse_jobs(value: object, option: str, *, cores: int | None = None) -> int:
    """How many workers, from "4", "auto" (one a core) or "50%" of the cores (at least one).

    Args:
        cores: what "auto" and percentages refer to. None: the cores that this process may use.
    """
    jobs = _count_jobs(value, cores)
    if jobs is None or not 1 <= jobs <= MAX_JOBS:
        raise _refusal(option, f"a whole number 1 to {MAX_JOBS}, auto, or a share of the cores such as 50%", value)
    return jobs


def parse_share(value: object, option: str) -> float:
    """A share from 0 to 1, from "10%" or "0.1"."""
    share = _measure(value, _SHARE, {"": 1.0, "%": 0.01})
    if share is None or not 0.0 <= share <= 1.0:
        raise _refusal(option, "a share from 0 to 1 or from 0% to 100%", value)
    return share


def parse_whole_number(value: object, option: str, *, minimum: int, maximum: int) -> int:
    """A whole number in a range, from text or an int."""
    number = _whole_number(value)
    if number is None or not minimum <= number <= maximum:
        raise _refusal(option, f"a whole number {minimum} to {maximum}", value)
    return number


def parse_switch(value: object, option: str) -> bool:
    """True or False, from a bool or one of true/false, yes/no, on/off, 1/0 in any case."""
    if isinstance(value, bool):
        return value
    switch = _SWITCH.get(value.strip().lower()) if isinstance(value, str) else None
    if switch is None:
        raise _refusal(option, "true or false (also yes/no, on/off, 1/0)", value)
    return switch


def parse_choice(value: object, option: str, *, choices: Sequence[str]) -> str:
    """One of a few words, spelled exactly."""
    if isinstance(value, str) and value in choices:
        return value
    hint = did_you_mean(nearest(value, choices)) if isinstance(value, str) else ""
    raise ValueError(f"{option} must be one of {', '.join(choices)}, got {quoted(value)}{hint}")


def format_duration(seconds: float) -> str:
    """Seconds as `parse_duration` reads them back, in the largest unit that keeps the number whole."""
    for unit in ("d", "h", "m", "s"):
        count = int(seconds / _SECONDS[unit])
        if count and count * _SECONDS[unit] == seconds:
            return f"{count}{unit}"
    milliseconds = round(seconds * 1000)
    if 0 < milliseconds < 1000 and milliseconds / 1000 == seconds:
        return f"{milliseconds}ms"
    return f"{plain_decimal(seconds)}s"


def format_size(size_bytes: int) -> str:
    """Bytes as `parse_size` reads them back, in the largest unit that keeps the number whole."""
    for unit, unit_bytes in reversed(_BYTES.items()):
        if size_bytes >= unit_bytes and size_bytes % unit_bytes == 0:
            return f"{size_bytes // unit_bytes}{unit}"
    return str(size_bytes)


def nearest(name: str, known: Iterable[str], *, likeness: float = 0.6) -> str | None:
    """The known name that an unknown one most likely stands for; None if none is near. `likeness`: up to 1, the same."""
    import difflib

    close = difflib.get_close_matches(name, list(known), n=1, cutoff=likeness)
    return close[0] if close else None


def did_you_mean(name: str | None) -> str:
    """The end of a message about an unknown name, if there is a name to propose."""
    return f" (did you mean {name}?)" if name else ""


def _measure(value: object, pattern: re.Pattern[str], units: Mapping[str, float]) -> float | None:
    """The number times its unit; None if the value is not one, so that each caller words its own refusal."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if abs(value) < 1e18 else None  # also refuses NaN, infinity and ints beyond any float
    match = pattern.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        return None
    factor = units[match[2] if match[2] in units else match[2].upper()]
    # Dividing by 1000 is exact where multiplying by 0.001 rounds twice: 1700 * 0.001 is not 1.7.
    return float(match[1]) / round(1 / factor) if factor < 1 else float(match[1]) * factor


def _count_jobs(value: object, cores: int | None) -> int | None:
    if not isinstance(value, str) or not value.strip().endswith(("auto", "%")):
        return _whole_number(value)
    available = cores or usable_cores()
    if value.strip() == "auto":
        return min(available, MAX_JOBS)
    share = _measure(value, _SHARE, {"%": 0.01})
    return max(1, round(min(available * share, MAX_JOBS + 1))) if share else None


def _whole_number(value: object) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _WHOLE_NUMBER.fullmatch(value.strip()) if isinstance(value, str) else None
    return int(match[0]) if match else None


def plain_decimal(number: float, factor: int = 1) -> str:
    """The number, times the factor, with all its digits and no exponent, so that it can be read back exactly."""
    from decimal import Decimal  # only here: every worker process imports this module

    return f"{(Decimal(repr(number)) * factor).normalize():f}"


def _refusal(option: str, accepted: str, value: object) -> ValueError:
    return ValueError(f"{option} must be {accepted}, got {quoted(value)}")


def megabytes(size_bytes: int) -> str:
    """Bytes for people."""
    return f"{size_bytes / 1024**2:,.0f} MB"
