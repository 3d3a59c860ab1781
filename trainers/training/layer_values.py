"""Values that differ between layers, as users write them: "mid_block=8, .*ff.*=4"."""

import re
from collections.abc import Sequence

from ..patterns import find_syntax_error, match_each_in_time

_EXAMPLE = "up_blocks.0=32, mid_block=8, .*ff.*=4"


def read_layer_values(text: str, *, setting: str) -> dict[str, float]:
    """Read pairs of a regular expression and a value above 0, with commas or new lines between
    them. "" has none.

    Raises:
        ValueError: a pair cannot be read, or has an expression that is invalid or came before.
    """
    values: dict[str, float] = {}
    for pair in filter(None, map(str.strip, re.split(r"[,\n](?![^{]*\})", text))):  # not at that of x{1,2}
        pattern, _, written = (part.strip() for part in pair.rpartition("="))
        value = _read_number(written)
        if not pattern or value is None:
            raise ValueError(
                f"{setting}: {pair!r} is no pair of an expression for names and a value above 0. Write pairs such as "
                f"{_EXAMPLE}"
            )
        if wrong := find_syntax_error(_search(pattern)):
            raise ValueError(f"{setting}: {pattern!r} is no regular expression ({wrong})")
        if pattern in values:
            raise ValueError(f"{setting}: {pattern!r} has two values. Delete one")
        values[pattern] = value
    return values


def _read_number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if 0 < number < float("inf") else None


def find_layer_values(text: str, names: Sequence[str], *, setting: str) -> dict[str, float]:
    """Return the values of those layers that have one. An expression matches any part of a name;
    where several match, the first one counts, as in sd-scripts and PEFT.

    Raises:
        ValueError: as read_layer_values; or an expression matches none of the names, or only such
            that came before.
    """
    values = read_layer_values(text, setting=setting)
    if not values:
        return {}
    found: dict[str, float] = {}
    matches = match_each_in_time(list(map(_search, values)), names, setting=setting)
    for (pattern, value), matched in zip(values.items(), matches, strict=True):
        new = [name for name in matched if name not in found]
        if not new:
            problem = (
                "only layers that have a value by an earlier expression" if matched else "no layer that is trained"
            )
            advice = "Put it before that one" if matched else f"Trained are {len(names)}, such as {names[0]}"
            raise ValueError(f"{setting}: {pattern!r} matches {problem}. {advice}")
        found.update(dict.fromkeys(new, value))
    return found


def _search(pattern: str) -> str:
    return f".*(?:{pattern}).*"
