"""Reads the values of other programs' files, which write numbers and switches as texts too."""

from collections.abc import Callable
from typing import Any

Reader = Callable[[Any], Any]
# How the programs write that a setting is off or was left open.
_OFF = ("", "none", "false", "0", "0.0")


def is_off(value: Any) -> bool:
    """True for what leaves a setting off: nothing, False, 0, and those as texts."""
    if isinstance(value, str):
        return value.strip().lower() in _OFF
    return not value


def read_bool(value: Any) -> bool:
    if isinstance(value, str):
        value = {"true": True, "1": True, "false": False, "0": False, "": False}.get(value.strip().lower())
    if not isinstance(value, bool | int | float):
        raise ValueError("must be true or false")
    return bool(value)


def read_float(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError("must be a number")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError("must be a number") from None


def read_whole(value: Any) -> int:
    number = read_float(value)
    if not number.is_integer():
        raise ValueError("must be a whole number")
    return int(number)


def read_text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("must be a text")
    return value


def read_tables(value: Any) -> list[dict[str, Any]]:
    if not (isinstance(value, list) and all(isinstance(each, dict) for each in value)):
        raise ValueError("must be a list of tables")
    return value


def show(value: Any) -> str:
    """Write a value for a message: short, on one line."""
    if isinstance(value, bool):
        return str(value).lower()
    text = f"{value:g}" if isinstance(value, float) else " ".join(str(value).split())
    return "empty" if not text else text if len(text) <= 80 else text[:77] + "..."
