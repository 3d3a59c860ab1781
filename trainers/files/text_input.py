"""Text and JSON from outside, read without surprises: no endless nesting, no half characters."""

import json
import re
from typing import Any

_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


def parse_json(text: str | bytes) -> Any:
    """What json.loads gives.

    Raises:
        ValueError: it is not JSON, or nested too deeply for Python.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def require_characters(text: str, name: str) -> str:
    """The text.

    Raises:
        ValueError: it has half of a surrogate pair, which no file and no tokenizer takes.
    """
    half = _HALF_CHARACTER.search(text)
    if half:
        raise ValueError(
            f"{name} has U+{ord(half.group()):X} at position {half.start() + 1}, which is half of a character. "
            "Delete it, and write the character again"
        )
    return text
