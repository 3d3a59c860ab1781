"""The default folder for the caches of all runs. Other modules decide its content."""

import os
from pathlib import Path


def default_cache_folder() -> Path:
    """Return $XDG_CACHE_HOME/lora-trainer, or ~/.cache/lora-trainer."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lora-trainer"
