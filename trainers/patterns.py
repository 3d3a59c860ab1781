"""Regular expressions that users write: whether Python can read them, and matching with an end."""

import json
import re
import subprocess
import sys
from collections.abc import Sequence

MAX_MATCH_SECONDS = 20  # usually a tenth of a second
_MATCH = """
import json, re, sys
patterns, names = json.load(sys.stdin)
print(json.dumps([[name for name in names if re.fullmatch(pattern, name)] for pattern in patterns]))
"""


def find_syntax_error(pattern: str) -> str:
    """Say why Python cannot read the expression; "" if it can."""
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        return str(error)
    return ""


def match_in_time(pattern: str, names: Sequence[str], *, setting: str) -> list[str]:
    """List the names that the expression matches as a whole.

    Raises:
        ValueError: it took too long; the message names the setting.
    """
    return match_each_in_time([pattern], names, setting=setting)[0]


def match_each_in_time(patterns: Sequence[str], names: Sequence[str], *, setting: str) -> list[list[str]]:
    """List the names that each expression matches as a whole. They run in a process of their own:
    nothing can end an expression such as (a+)+$ in this one.

    Raises:
        ValueError: they took too long; the message names the setting.
    """
    try:
        matched = subprocess.run(
            [sys.executable, "-I", "-c", _MATCH],
            input=json.dumps([patterns, names]),
            capture_output=True,
            text=True,
            timeout=MAX_MATCH_SECONDS,
            check=True,
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError(
            f"{setting}: {' and '.join(map(repr, patterns))} took more than {MAX_MATCH_SECONDS} seconds to match. "
            r"Write it without nested repetitions, as in .*\.attn2\.to_(k|v)"
        ) from error
    return json.loads(matched.stdout)
