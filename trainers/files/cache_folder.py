"""Where the caches of all runs are when no folder is given; others decide what is in them."""

import os
from pathlib import Path


def default_cache_folder() -> Path:
    """$XDG_CACHE_HOME/lora-trainer, or ~/.cache/lora-trainer."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lora-trainer"
