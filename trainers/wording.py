"""Formats numbers, sizes, times and long lists for messages."""

from collections.abc import Iterable

MEBIBYTE, GIBIBYTE = 2**20, 2**30


def pluralize(number: int, noun: str) -> str:
    """Return the number with its noun, such as "1 image" or "2 images"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def name_first(entries: Iterable[str], max_named: int, *, separator: str = ", ", before_rest: str = " ") -> str:
    """Name the first entries and count the rest, such as "a.png, b.png and 3 more"."""
    named = list(entries)
    num_left = len(named) - max_named
    rest = f"{before_rest}and {num_left} more" if num_left > 0 else ""
    return separator.join(named[:max_named]) + rest


def name_examples(entries: Iterable[str], max_named: int = 3) -> str:
    """Name the first entries, with dots if there are more, such as "a.png, b.png, ..."."""
    named = list(entries)
    return ", ".join(named[:max_named]) + (", ..." if len(named) > max_named else "")


def format_size(size_hw: tuple[int, int]) -> str:
    """Return width x height, the order in which users write sizes."""
    return f"{size_hw[1]} x {size_hw[0]}"


def format_bytes(num_bytes: float) -> str:
    """Return GB from 1 GB on, else MB."""
    return format_gigabytes(num_bytes) if num_bytes >= GIBIBYTE else f"{num_bytes / MEBIBYTE:.1f} MB"


def format_megabytes(num_bytes: float) -> str:
    return f"{num_bytes / MEBIBYTE:,.1f} MB"


def format_gigabytes(num_bytes: float) -> str:
    return f"{num_bytes / GIBIBYTE:.1f} GB"


def format_duration(seconds: float) -> str:
    """Return hours and minutes, at least one minute."""
    minutes = max(1, round(seconds / 60))
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def make_printable(name: str) -> str:
    """A file name as text that can be written, whatever its bytes."""
    return name.encode("utf-8", "backslashreplace").decode()
