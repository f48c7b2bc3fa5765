"""The quick way to JSON and back gives what the json module gives, and refuses what it refuses."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poqueue import fast_json
from poqueue.plain import MAX_INT_BITS, flat_json

TEXTS = st.text(st.characters(), max_size=20)  # surrogates too
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4), max_leaves=20
)


@given(VALUES)
def test_it_is_what_the_json_module_writes_and_reads(value: Any) -> None:
    expected = json.dumps(value, ensure_ascii=False)

    assert fast_json.encode(value) == fast_json.encode_finite(value) == expected
    assert fast_json.decode(expected.encode("utf-8", "surrogatepass")) == json.loads(expected)


@given(st.dictionaries(TEXTS, SCALARS, max_size=6))
def test_what_is_flat_is_written_likewise(value: dict[str, Any]) -> None:
    assert flat_json(value) == json.dumps(value, ensure_ascii=False)


class _Text(str):
    pass


@pytest.mark.parametrize(
    "item", [[], {}, (), b"a", math.nan, math.inf, -math.inf, 1 << MAX_INT_BITS, -1 << MAX_INT_BITS, _Text("a"), 1j]
)
def test_what_is_not_flat_or_not_plain_is_left_to_others(item: Any) -> None:
    assert flat_json({"a": 1, "b": item}) is None
    assert flat_json({"a": (1 << MAX_INT_BITS) - 1}) is not None


@pytest.mark.parametrize("key", [1, None, True, 1.5, _Text("a"), b"a"])
def test_keys_are_text(key: Any) -> None:
    assert flat_json({key: "a"}) is None


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_only_one_of_the_two_writes_what_is_no_number(number: float) -> None:
    assert fast_json.encode([number]) == json.dumps([number])
    with pytest.raises(ValueError, match="JSON compliant"):
        fast_json.encode_finite([number])


def test_what_json_does_not_hold_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="set is not JSON serializable"):
        fast_json.encode({1, 2})


@pytest.mark.parametrize("blob", [b"", b"[", b"[1] ", b" [1]", b"{x}", b"[1]]", b"nothing", b"\xff\xfe[", b'{"a": }'])
def test_anything_else_is_a_value_error(blob: bytes) -> None:
    with pytest.raises(ValueError):
        fast_json.decode(blob)
