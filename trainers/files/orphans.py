"""Temporary files of atomic_write that a killed process left behind."""

import re
import time
from contextlib import suppress
from pathlib import Path

MIN_AGE_SECONDS = 24 * 60 * 60  # younger ones may still be written, also by another machine
_TEMPORARY_NAME = re.compile(r"\..+\.safetensors\.[a-z0-9_]{8}\.tmp")


def remove_orphans(folder: Path) -> int:
    """Remove what is left of `.safetensors` files in a folder, not below it, and return how many
    there were. A file that cannot be removed stays.
    """
    num_removed = 0
    for path in folder.glob(".*.tmp"):
        with suppress(OSError):  # somebody else removed it, or it is still open
            if _TEMPORARY_NAME.fullmatch(path.name) and time.time() - path.stat().st_mtime > MIN_AGE_SECONDS:
                path.unlink()
                num_removed += 1
    return num_removed
