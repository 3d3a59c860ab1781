"""JSON files that another process writes, or that anybody may have changed: read within bounds, and
each field only if it has the right type.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...files.text_input import parse_json

MAX_FILE_BYTES = 4 * 2**20
MAX_TEXT_CHARACTERS = 4_000
MAX_TEXTS = 50
MAX_WHOLE = 2**53 - 1  # the largest integer that a browser reads exactly


def read_object(path: Path, notes: list[str]) -> dict[str, Any]:
    """Return the object in the file, or {} if there is none. Why it cannot be read goes to
    `notes`.
    """
    try:
        with open(path, "rb") as stream:
            content = stream.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        notes.append(f"{path.name} cannot be read: {error.strerror}")
        return {}
    if len(content) > MAX_FILE_BYTES:
        notes.append(f"{path.name} has more than {MAX_FILE_BYTES >> 20} MB and was not read")
        return {}
    try:
        entries = parse_json(content)
    except ValueError as error:  # also bytes that are no text
        notes.append(f"{path.name} cannot be read: {error}")
        return {}
    if not isinstance(entries, dict):
        notes.append(f"{path.name} has no object in it")
        return {}
    return entries


def get_text(entries: Mapping[str, Any], name: str) -> str:
    value = entries.get(name)
    return value[:MAX_TEXT_CHARACTERS] if isinstance(value, str) else ""


def get_texts(entries: Mapping[str, Any], name: str) -> list[str]:
    """Return the last texts of the list."""
    values = entries.get(name)
    texts = [value for value in values if isinstance(value, str)] if isinstance(values, list) else []
    return [text[:MAX_TEXT_CHARACTERS] for text in texts[-MAX_TEXTS:]]


def get_number(entries: Mapping[str, Any], name: str) -> float | None:
    """Return the number if it is finite: Python also writes and reads NaN, which is no JSON."""
    value = entries.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) <= MAX_WHOLE and math.isfinite(value) else None


def get_whole(entries: Mapping[str, Any], name: str) -> int:
    """Return the number without its fraction, 0 if there is none."""
    return max(0, int(get_number(entries, name) or 0))


def get_object(entries: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = entries.get(name)
    return value if isinstance(value, dict) else {}
