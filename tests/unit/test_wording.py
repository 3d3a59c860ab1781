"""Formatting numbers, sizes, times and long lists for messages."""

import pytest

from trainers.wording import (
    format_bytes,
    format_duration,
    format_megabytes,
    format_size,
    name_examples,
    name_first,
    pluralize,
)


@pytest.mark.parametrize(("number", "text"), [(0, "0 images"), (1, "1 image"), (2, "2 images")])
def test_a_noun_gets_its_plural(number: int, text: str) -> None:
    assert pluralize(number, "image") == text


def test_a_long_list_says_how_many_are_left() -> None:
    assert name_first("abcd", 2) == "a, b and 2 more"
    assert name_first("abc", 2, separator="; ", before_rest="; ") == "a; b; and 1 more"
    assert name_first(iter("ab"), 2) == "a, b" and name_first([], 2) == ""


def test_examples_end_with_dots_if_there_are_more() -> None:
    assert (
        name_examples("abcd") == "a, b, c, ..."
        and name_examples("abc", 2) == "a, b, ..."
        and name_examples("ab", 2) == "a, b"
    )


def test_a_size_is_width_by_height() -> None:
    assert format_size((64, 96)) == "96 x 64"


@pytest.mark.parametrize(("num_bytes", "text"), [(2**20, "1.0 MB"), (2**30 - 1, "1024.0 MB"), (1.5 * 2**30, "1.5 GB")])
def test_bytes_are_in_gigabytes_from_one_gigabyte_on(num_bytes: float, text: str) -> None:
    assert format_bytes(num_bytes) == text


def test_many_megabytes_have_a_comma() -> None:
    assert format_megabytes(2000 * 2**20) == "2,000.0 MB"


@pytest.mark.parametrize(("seconds", "text"), [(0, "1 min"), (89, "1 min"), (3540, "59 min"), (7260, "2 h 1 min")])
def test_durations_are_hours_and_minutes(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
