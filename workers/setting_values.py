"""How the values of settings are read that are not quantities.

Each function takes a value from whatever source and the name of the option, and raises ValueError with what is wrong.
"""

import codecs
import contextlib
import io
import math
import os
import re
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

from workers.quantities import MAX_DURATION_S, format_duration, parse_duration, plain_decimal
from workers.safe_text import quoted

REPORT_FORMATS = (".json", ".csv", ".yaml")
FORMATS = ("table", "json", "csv", "yaml", "html", "trace")  # of `poqueue report`


def parse_text(value: object, option: str, *, what: str = "text") -> str:
    """Text that is not blank and holds no control characters."""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not text.strip() or any(ord(c) < 32 or ord(c) == 127 for c in text):
        raise ValueError(f"{option} must be {what}, got {quoted(value)}")
    return text


def parse_path(value: object, option: str) -> Path:
    """A path; "~" is the home directory, a relative one starts where the run is started."""
    text = parse_text(str(value) if isinstance(value, Path) else value, option, what="a path")
    return Path(os.path.expanduser(text))  # Path.expanduser raises for a user that does not exist


def place_of(path: Path) -> str:
    """Where a file of this name is written, in whatever way the way there is spelt; a link gives way to it."""
    return os.path.join(os.path.realpath(path.parent), path.name)


def parse_directory(value: object, option: str) -> Path:
    """The path of a directory that exists."""
    path = parse_path(value, option)
    if not os.path.isdir(path):  # Path.is_dir raises where a parent may not be searched
        raise ValueError(f"{option} must be a directory that exists, got {quoted(str(value))}")
    return path.absolute()


def parse_reports(value: object, option: str) -> tuple[Path, ...]:
    """Paths whose extensions name formats, from a list or from text with commas between them; "none" stands for no path."""
    paths = tuple(parse_path(item, option) for item in _items(value, option) if item != "none")
    for path in paths:
        if path.suffix.lower() not in REPORT_FORMATS:
            raise ValueError(f"{option} must end in one of {', '.join(REPORT_FORMATS)}, got {quoted(str(path))}")
    if len(set(map(place_of, paths))) < len(paths):
        raise ValueError(f"{option} names the same file twice: {', '.join(quoted(str(path)) for path in paths)}")
    return paths


def parse_processor(value: object, option: str) -> str:
    """The name of a processing function or class, module:attribute; whether it can be imported is found out later."""
    name = value.strip() if isinstance(value, str) else ""
    module, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in [*module.split("."), *attribute.split(".")]):
        raise ValueError(f"{option} must be module:attribute, such as my_package.orders:process, got {quoted(value)}")
    return name


def parse_delimiter(value: object, option: str) -> str:
    """The one character between two fields; tab, comma, semicolon and pipe may be named."""
    named = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|"}
    delimiter = named.get(value, value) if isinstance(value, str) else None
    if delimiter is None or len(delimiter) != 1 or delimiter in '"\r\n\0':
        raise ValueError(f"{option} must be one character, or tab, comma, semicolon or pipe, got {quoted(value)}")
    return delimiter


def parse_encoding(value: object, option: str) -> str:
    """The name of an encoding that Python knows and that files of text can have."""
    name = parse_text(value, option, what="an encoding")
    with contextlib.suppress(LookupError, UnicodeError):
        if _keeps_lines(name):
            return name
    raise ValueError(f"{option} must be an encoding such as utf-8, cp1252 or utf-16, got {quoted(value)}")


def _keeps_lines(encoding: str) -> bool:
    """Whether lines written one by one come back: idna and punycode are for names, and undefined for nothing."""
    lines = ["po_number,note\n", "," * 100 + "\n"]
    "".encode(encoding)  # LookupError: it makes bytes of bytes, as base64 does
    encoder = codecs.getincrementalencoder(encoding)()
    written = b"".join(encoder.encode(line) for line in lines)
    return io.TextIOWrapper(io.BytesIO(written), encoding, newline="").read() == "".join(lines)


def parse_pairs(value: object, option: str, *, pair: str = "NAME=VALUE") -> dict[str, str]:
    """Names and values, from a mapping, from a list of NAME=VALUE, or from text with commas between several."""
    if isinstance(value, Mapping):
        pairs = [(name, content) for name, content in value.items()]
    else:
        pairs = [_split_pair(item, option, pair) for item in _items(value, option)]
    found: dict[str, str] = {}
    for name, content in pairs:
        if not isinstance(name, str) or not name.strip() or not isinstance(content, str):
            raise ValueError(f"{option} must be {pair}, both text, got {quoted(name)} with the value {quoted(content)}")
        if name.strip() in found:
            raise ValueError(f"{option} gives {quoted(name.strip())} twice")
        found[name.strip()] = content
    return found


def parse_column_map(value: object, option: str) -> dict[str, str]:
    """Which header holds which field: field=Header,...; several lists (the flag given twice) are joined."""
    lists = value if isinstance(value, list | tuple) else [value]
    if not isinstance(value, Mapping):
        value = [part for text in lists for part in _items(text, option, r"(?<!\\),")]
        value = [part.replace(r"\,", ",") if isinstance(part, str) else part for part in value]
    return parse_pairs(value, option, pair=r"field=Header (a comma in a header is written as \,)")


def _items(value: object, option: str, comma: str = ",") -> list[object]:
    """A list as it is; text split at its commas, which is what an environment variable can hold."""
    if isinstance(value, str):
        return [part.strip() for part in re.split(comma, value) if part.strip()]
    if isinstance(value, Path):
        return [value]
    if isinstance(value, list | tuple):
        return list(value)
    raise ValueError(f"{option} must be a list, got {quoted(value)}")


def _split_pair(item: object, option: str, pair: str) -> tuple[str, str]:
    name, equals, content = item.partition("=") if isinstance(item, str) else ("", "", "")
    if not equals:
        raise ValueError(f"{option} must be {pair}, got {quoted(item)}")
    return name, content


class HaltRule(NamedTuple):
    """When to stop early: `why` is "" (never), "failed", "succeeded" or "done"."""

    why: str = ""
    is_now: bool = False
    number: int = 0
    percent: float = 0.0

    def __str__(self) -> str:
        if not self.why:
            return "never"
        amount = f"{plain_decimal(self.percent)}%" if self.percent else str(self.number)
        return f"{'now' if self.is_now else 'soon'},{_HALT_WORDS[self.why]}={amount}"

    def limit(self, total: int) -> int:
        """The number of POs, of so many in the run, at which it strikes; a share is rounded up."""
        return max(1, math.ceil(total * self.percent / 100.0 - 1e-9)) if self.percent else self.number


_HALT_WORDS = {"failed": "fail", "succeeded": "success", "done": "done"}
_HALT_FORM = "never, or soon|now,fail|success|done=NUMBER or PERCENT%, such as soon,fail=5%"


def parse_halt(value: object, option: str) -> HaltRule:
    """When to stop early, in GNU parallel's words."""
    if isinstance(value, HaltRule):
        return value
    text = value.replace(" ", "") if isinstance(value, str) else ""
    if text == "never":
        return HaltRule()
    found = re.fullmatch(r"(soon|now),(fail|success|done)=(?:(\d+)|(\d+(?:\.\d+)?)%)", text)
    number, percent = (int(found[3] or 0), float(found[4] or 0)) if found else (0, 0.0)
    if found is None or not (1 <= number <= 1_000_000_000 or 0 < percent <= 100):
        raise ValueError(f"{option} must be {_HALT_FORM}, got {quoted(value)}")
    why = next(key for key, word in _HALT_WORDS.items() if word == found[2])
    return HaltRule(why, found[1] == "now", number, percent)


class Timeout(NamedTuple):
    """How long an attempt may take: `seconds`, or less, if it is `share` times the running median (0: it is not)."""

    seconds: float
    share: float = 0.0

    def __str__(self) -> str:
        most = format_duration(self.seconds)
        return f"{plain_decimal(self.share, 100)}%,{most}" if self.share else most


DEFAULT_TIMEOUT_S = 300.0


def parse_timeout(value: object, option: str) -> Timeout:
    """A duration, or a share of the running median above 100%, with the most that it may come to if that is not 300s."""
    if isinstance(value, Timeout):
        return value
    share, comma, most = str(value).partition(",") if isinstance(value, str) else ("", "", "")
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", share)
    if found is None:
        return Timeout(parse_duration(value, option, minimum_s=0.1, maximum_s=MAX_DURATION_S))
    if not 100.0 < float(found[1]) <= 100_000.0:
        raise ValueError(f"{option} in percent must be above 100% (of the median), up to 100000%, got {quoted(value)}")
    seconds = parse_duration(most, option, minimum_s=0.1, maximum_s=MAX_DURATION_S) if comma else DEFAULT_TIMEOUT_S
    return Timeout(seconds, float(Decimal(found[1]) / 100))
