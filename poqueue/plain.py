"""Reducing any value to plain JSON types: strictly (results) or at any price (error details)."""

import math
import sys
from collections.abc import Callable
from enum import Enum
from json.encoder import encode_basestring

from poqueue.hints import Any, NoReturn
from poqueue.task import Fields

MAX_DEPTH = 50
MAX_DETAIL_CHARS = 64_000
MAX_INT_BITS = 13_287  # 4,000 digits; Python makes no text of an int of more than 4,300
_TEXT = frozenset({str})
_SCALARS = frozenset({str, int, bool, type(None)})
_KEYS = (str, int, float, type(None))


class NotPlainError(ValueError):
    """A value has no plain form; the text says where and of which type it is."""


def plain(value: Any) -> Any:
    """Reduce a value to dict, list, str, int, finite float, bool and None.

    Converted: tuple, set and frozenset (to lists), Decimal and UUID (text), date and time (ISO text), Path (text), Enum
    (its value), dataclass (dict), whatever offers numpy's `item()`. Text must be valid Unicode,
    and an int has up to 4,000 digits.

    Raises:
        NotPlainError: anything else, NaN and infinity, two keys with the same text, depth over 50 or a cycle.
    """
    return _reduce(value, "result", 0, _refuse)


def flat_json(value: dict[Any, Any]) -> str | None:
    """A dict of scalars under text, as fast_json.encode_finite writes it; None if it is none.

    Half the time of a look at all it holds and of the encoder. Text that is no valid Unicode passes, as there.
    """
    told = []
    for key, item in value.items():
        kind = type(item)
        if type(key) is not str:
            return None
        if kind is str:
            text = encode_basestring(item)
        elif kind is int and item.bit_length() <= MAX_INT_BITS:
            text = str(item)
        elif kind is float and math.isfinite(item):
            text = repr(item)
        elif item is None:
            text = "null"
        elif kind is bool:
            text = "true" if item else "false"
        else:
            return None
        told.append(f"{encode_basestring(key)}: {text}")
    return f"{{{', '.join(told)}}}"


def plain_details(details: dict[Any, Any]) -> dict[str, Any]:
    """Reduce details of an error; what has no plain form becomes its repr, cut to 64,000 characters.

    If they have none as a whole, since their keys have none, they are the one detail "details".
    """
    reduced = _reduce(details, "details", 0, _describe)
    return reduced if isinstance(reduced, dict) else {"details": reduced}


def _reduce(value: Any, where: str, depth: int, otherwise: Callable[[Any, str, str], Any]) -> Any:
    kind = type(value)
    if kind is str:
        return value if value.isascii() else _checked_text(value, where, otherwise)
    if kind is int:
        return value if value.bit_length() <= MAX_INT_BITS else otherwise(value, where, "of more than 4,000 digits")
    if kind in _SCALARS:
        return value
    if kind is float:
        return value if math.isfinite(value) else otherwise(value, where, "not a finite number")
    if depth >= MAX_DEPTH:
        return otherwise(value, where, f"nested deeper than {MAX_DEPTH}, or in a cycle")
    if kind is dict:
        return _reduce_dict(value, where, depth, otherwise)
    if isinstance(value, list | tuple):
        return [_reduce(item, f"{where}[{i}]", depth + 1, otherwise) for i, item in enumerate(value)]
    return _convert(value, where, depth, otherwise)


def _reduce_dict(value: dict[Any, Any], where: str, depth: int, otherwise: Callable[[Any, str, str], Any]) -> Any:
    if _is_simple(value):
        return value.copy()  # nearly all of them: no place needs to be named
    reduced: dict[str, Any] = {}
    for key, item in value.items():
        if type(key) is str and _is_plain_already(item) and key.isascii() and key not in reduced:
            reduced[key] = item
            continue
        if not isinstance(key, _KEYS) and not _is_a(key, "decimal", "Decimal"):
            return otherwise(value, where, f"with a key of type {type(key).__name__}")
        if type(key) is int and key.bit_length() > MAX_INT_BITS:
            return otherwise(value, where, "with a key of more than 4,000 digits")
        text = str(key)
        if text in reduced:
            return otherwise(value, where, f"with two keys that read {text!r}")
        reduced[_checked_text(text, where, otherwise)] = _reduce(item, f"{where}[{text!r}]", depth + 1, otherwise)
    return reduced


def _is_simple(value: dict[Any, Any]) -> bool:
    """Whether it holds text, whole numbers, truth values and None only, under text, all the text is valid Unicode, and no
    number too long.
    """
    if not (_TEXT.issuperset(map(type, value)) and _SCALARS.issuperset(map(type, value.values()))):
        return False
    for item in value.values():
        if type(item) is int and item.bit_length() > MAX_INT_BITS:
            return False
    try:
        "".join([*value, *[item for item in value.values() if type(item) is str]]).encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_plain_already(item: Any) -> bool:
    kind = type(item)
    if kind is int:
        return bool(item.bit_length() <= MAX_INT_BITS)
    return bool(item.isascii()) if kind is str else kind in _SCALARS


def _convert(value: Any, where: str, depth: int, otherwise: Callable[[Any, str, str], Any]) -> Any:
    try:
        if isinstance(value, Enum):
            return _reduce(value.value, where, depth + 1, otherwise)
        if _is_a(value, "decimal", "Decimal"):
            return str(value) if value.is_finite() else otherwise(value, where, "not a finite number")
        if _is_a(value, "datetime", "date", "time"):
            return value.isoformat()
        if _is_a(value, "pathlib", "PurePath") or _is_a(value, "uuid", "UUID"):
            return _checked_text(str(value), where, otherwise)
        if isinstance(value, str | int | float):  # subclasses: keep the value, drop the class
            base = next(b for b in (str, int, float) if isinstance(value, b))
            return _reduce(base(value), where, depth + 1, otherwise)
        if isinstance(value, dict):
            return _reduce_dict(dict(value), where, depth, otherwise)
        if isinstance(value, set | frozenset):
            return _reduce(sorted(value, key=repr), where, depth, otherwise)
        if isinstance(value, Fields):
            return _reduce({name: getattr(value, name) for name in value._fields}, where, depth + 1, otherwise)
        if _is_dataclass(value):
            fields = {field.name: getattr(value, field.name) for field in sys.modules["dataclasses"].fields(value)}
            return _reduce(fields, where, depth + 1, otherwise)
        if callable(getattr(value, "item", None)) and hasattr(value, "dtype"):
            return _reduce(value.item(), where, depth + 1, otherwise)
    except NotPlainError:
        raise
    except BaseException as error:  # a foreign class may raise anything from anywhere
        if _is_ours_to_pass(error):
            raise
        return otherwise(value, where, f"which failed to convert ({type(error).__name__})")
    return otherwise(value, where, "which has no plain form")


def _is_a(value: Any, module: str, *names: str) -> bool:
    """Whether it is an instance of one of these classes, which it cannot be before somebody has imported their module."""
    kinds = (getattr(sys.modules.get(module), name, None) for name in names)
    return any(kind is not None and isinstance(value, kind) for kind in kinds)


def _is_dataclass(value: Any) -> bool:
    known = sys.modules.get("dataclasses")  # if nobody has imported it, nobody has made one
    return known is not None and known.is_dataclass(value) and not isinstance(value, type)


def _checked_text(text: str, where: str, otherwise: Callable[[Any, str, str], Any]) -> Any:
    try:
        text.encode()
    except UnicodeEncodeError:
        return otherwise(text, where, "not valid Unicode")
    return text


def _is_ours_to_pass(error: BaseException) -> bool:
    """Only what a foreign class can raise is caught: an end that was asked for from outside goes on."""
    return not isinstance(error, Exception | SystemExit | GeneratorExit)


def _refuse(value: Any, where: str, why: str) -> NoReturn:
    raise NotPlainError(f"{where} is a {type(value).__name__} {why}; return str, int, float, bool, None, list or dict")


def _describe(value: Any, where: str, why: str) -> str:
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    try:
        text = repr(value)
    except BaseException as error:  # its __repr__ may raise anything
        if _is_ours_to_pass(error):
            raise
        text = f"<{type(value).__name__}>"
    return text[:MAX_DETAIL_CHARS].encode(errors="backslashreplace").decode()
