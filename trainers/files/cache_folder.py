"""The folder of everything that is computed once for all runs. Imports no torch."""

import os
from pathlib import Path


def default_cache_folder() -> Path:
    """$XDG_CACHE_HOME/lora-trainer, or ~/.cache/lora-trainer."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lora-trainer"
