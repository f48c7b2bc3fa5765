"""Durations, sizes, shares, counts and switches as people write them."""

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.own_process import usable_cores
from workers.quantities import (
    did_you_mean,
    format_duration,
    format_size,
    nearest,
    parse_choice,
    parse_duration,
    parse_jobs,
    parse_share,
    parse_size,
    parse_switch,
    parse_whole_number,
)

NO_QUANTITIES: list[object] = [
    True,
    False,
    None,
    "",
    " ",
    "x",
    "nan",
    "inf",
    math.nan,
    math.inf,
    -1,
    "-1",
    "1_000",
    "٣",
    [],
    "1e400",
]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90.0),
        ("500ms", 0.5),
        ("1700ms", 1.7),
        ("2m", 120.0),
        ("1h", 3600.0),
        ("1.5h", 5400.0),
        ("1d", 86400.0),
        (".5", 0.5),
        (" 5 s ", 5.0),
        ("90", 90.0),
        (90, 90.0),
        (0.25, 0.25),
        ("0", 0.0),
    ],
)
def test_a_duration_is_a_number_with_a_unit_or_of_seconds(text: object, seconds: float) -> None:
    assert parse_duration(text, "--timeout") == seconds


@pytest.mark.parametrize("value", [*NO_QUANTITIES, "5 parsecs", "5M", "12:30:45", "1e3", "1h30m", "8d", 1e308, 10**400])
def test_what_is_no_duration_is_refused_by_name_and_value(value: object) -> None:
    with pytest.raises(ValueError, match=r"^--timeout must be a duration from 0s to 7d, such as 90s, .*, got "):
        parse_duration(value, "--timeout")


def test_a_duration_out_of_range_is_told_the_range() -> None:
    with pytest.raises(ValueError, match=r"from 100ms to 1m, .*, got '99ms'$"):
        parse_duration("99ms", "--timeout", minimum_s=0.1, maximum_s=60.0)


@pytest.mark.parametrize(
    ("text", "size"),
    [("500M", 500 * 1024**2), ("2G", 2 * 1024**3), ("1024", 1024), (7, 7), ("1.5GiB", 3 * 1024**3 // 2), ("1kb", 1024)],
)
def test_a_size_is_a_number_with_a_binary_unit_or_of_bytes(text: object, size: int) -> None:
    assert parse_size(text, "--memfree") == size


@pytest.mark.parametrize("value", [*NO_QUANTITIES, "0", "5Q", "M", "2000T", 10**400])
def test_what_is_no_size_is_refused_by_name_and_value(value: object) -> None:
    with pytest.raises(ValueError, match=r"^--memfree must be a size from 1 to 1024T, such as 500M, .*, got "):
        parse_size(value, "--memfree")


@pytest.mark.parametrize(
    ("text", "jobs"),
    [("4", 4), (4, 4), ("auto", 8), ("50%", 4), ("1%", 1), ("100%", 8), ("200%", 16), ("12.5%", 1), (256, 256)],
)
def test_jobs_are_counted_or_taken_from_the_cores(text: object, jobs: int) -> None:
    assert parse_jobs(text, "--jobs", cores=8) == jobs


@pytest.mark.parametrize(
    "value", [*NO_QUANTITIES, 0, "0", "0%", 1.5, "1.5", "4.0", "012", 10**6, "257", "99999%", "xauto", "-5%"]
)
def test_what_counts_no_jobs_is_refused_by_name_and_value(value: object) -> None:
    with pytest.raises(ValueError, match=r"^--jobs must be a whole number 1 to 256, auto, or a share .*, got "):
        parse_jobs(value, "--jobs", cores=8)


def test_a_number_too_long_to_be_shown_is_refused_all_the_same() -> None:
    with pytest.raises(ValueError, match=r"got <int>$"):
        parse_jobs(10**5000, "--jobs")


def test_auto_never_asks_for_more_jobs_than_are_allowed() -> None:
    assert parse_jobs("auto", "--jobs", cores=1000) == 256
    assert parse_jobs("auto", "--jobs") == usable_cores() >= 1


@pytest.mark.parametrize(("text", "share"), [("10%", 0.1), ("0.1", 0.1), (0, 0.0), (1, 1.0), ("100 %", 1.0)])
def test_a_share_is_a_percentage_or_a_fraction(text: object, share: float) -> None:
    assert parse_share(text, "--jitter") == share


@pytest.mark.parametrize("value", [*NO_QUANTITIES, "101%", 1.01, "50s"])
def test_what_is_no_share_is_refused_by_name_and_value(value: object) -> None:
    with pytest.raises(ValueError, match=r"^--jitter must be a share from 0 to 1 or from 0% to 100%, got "):
        parse_share(value, "--jitter")


@pytest.mark.parametrize("value", [*NO_QUANTITIES, 1.0, "01", "4.0", 10**9, "9" * 5000])
def test_what_is_no_whole_number_in_range_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"^--retries must be a whole number 0 to 1000, got "):
        parse_whole_number(value, "--retries", minimum=0, maximum=1000)


def test_a_whole_number_comes_from_text_or_an_int() -> None:
    assert parse_whole_number(" 3 ", "--retries", minimum=0, maximum=9) == 3
    assert parse_whole_number(0, "--retries", minimum=0, maximum=9) == 0


def test_a_switch_understands_the_usual_words() -> None:
    assert [parse_switch(word, "--shell") for word in (True, "true", "YES", "on", "1")] == [True] * 5
    assert [parse_switch(word, "--shell") for word in (False, "false", "No", "off", "0")] == [False] * 5


@pytest.mark.parametrize("value", ["", "maybe", 1, 0, None, 1.0])
def test_what_is_no_switch_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"^--shell must be true or false .*, got "):
        parse_switch(value, "--shell")


def test_a_choice_is_spelled_exactly_and_a_near_miss_is_told_so() -> None:
    assert parse_choice("fork", "--start-method", choices=("spawn", "fork")) == "fork"
    with pytest.raises(ValueError) as refusal:
        parse_choice("spwan", "--start-method", choices=("spawn", "fork"))
    assert str(refusal.value) == "--start-method must be one of spawn, fork, got 'spwan' (did you mean spawn?)"
    with pytest.raises(ValueError, match=r"got None$"):
        parse_choice(None, "--start-method", choices=("spawn", "fork"))


@pytest.mark.parametrize(
    ("parse", "value"), [(parse_duration, "9" * 10_000), (parse_size, "\x1b[2J" * 1000), (parse_jobs, "\u202e" * 500)]
)
def test_a_refusal_shows_a_value_short_and_harmless(parse: Callable[..., Any], value: str) -> None:
    with pytest.raises(ValueError) as refusal:
        parse(value, "--option")
    assert str(refusal.value).isprintable()
    assert len(str(refusal.value)) < 250


@given(st.integers(min_value=0, max_value=7 * 86_400_000))
def test_a_duration_that_is_shown_is_read_back_as_it_was(milliseconds: int) -> None:
    seconds = milliseconds / 1000
    assert parse_duration(format_duration(seconds), "x") == pytest.approx(seconds, abs=1e-9)


@given(st.integers(min_value=1, max_value=1024**5))
def test_a_size_that_is_shown_is_read_back_exactly(size: int) -> None:
    assert parse_size(format_size(size), "x") == size


def test_quantities_are_shown_in_their_largest_whole_unit() -> None:
    assert [format_duration(s) for s in (0, 0.5, 1.7, 5, 90, 300, 3600, 86400)] == [
        *("0s", "500ms", "1.7s", "5s", "90s", "5m", "1h", "1d")
    ]
    assert [format_size(b) for b in (1, 1025, 1024, 500 * 1024**2)] == ["1", "1025", "1K", "500M"]


@given(st.one_of(st.text(), st.integers(), st.floats(), st.none(), st.booleans(), st.binary()))
def test_no_value_makes_a_reader_fail_in_any_other_way(value: object) -> None:
    for parse in (parse_duration, parse_size, parse_jobs, parse_share, parse_switch):
        try:
            parse(value, "x")
        except ValueError as refusal:
            assert str(refusal).startswith("x must be ")


def test_an_unknown_name_is_given_the_nearest_known_one() -> None:
    assert nearest("wokers", ["jobs", "workers"]) == "workers"
    assert nearest("zzz", ["jobs", "workers"]) is None
    assert did_you_mean("jobs") == " (did you mean jobs?)"
    assert did_you_mean(None) == ""
