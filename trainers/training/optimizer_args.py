"""Reads optimizer_args, such as "betas=(0.9,0.99) d_coef=2". Imports no torch."""

import ast
from typing import Any

_OPENING, _CLOSING, _QUOTES = "([{", ")]}", "'\""


def parse_optimizer_args(text: str) -> dict[str, Any]:
    """Read "betas=(0.9,0.99), d_coef=2" as {"betas": (0.9, 0.99), "d_coef": 2}. Values are Python
    literals and never evaluated.

    Raises:
        ValueError: a part is not name=value with a literal, or a name is given twice.
    """
    settings: dict[str, Any] = {}
    for part in split_optimizer_args(text):
        name, separator, value = (piece.strip() for piece in part.partition("="))
        try:
            if not (separator and name.isidentifier()):
                raise ValueError("no name=value")
            parsed = ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            raise ValueError(
                f"optimizer_args: cannot read {part!r}. Write name=value pairs with spaces or commas between them, "
                'such as "betas=(0.9,0.99) d_coef=2"; values are numbers, True, False, None, tuples or quoted words'
            ) from None
        if name in settings:
            raise ValueError(f"optimizer_args: {name} is given twice. Leave out one of them")
        settings[name] = parsed
    return settings


def split_optimizer_args(text: str) -> list[str]:
    """Split at the spaces and commas that are in no brackets and no quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in _QUOTES:
            quote = character
        elif character in _OPENING:
            depth += 1
        elif character in _CLOSING:
            depth -= 1
        elif depth == 0 and (character == "," or character.isspace()):
            parts.append("")
            continue
        parts[-1] += character
    return [part for part in parts if part]
