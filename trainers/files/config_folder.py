"""Where the files are that only the computer's user writes; others decide what is in them."""

import os
import sys
from pathlib import Path


def default_config_folder() -> Path:
    """%APPDATA%/lora-trainer on Windows; elsewhere $XDG_CONFIG_HOME/lora-trainer, or
    ~/.config/lora-trainer.

    Not in the pack's folder, which a reinstallation deletes, and not in ComfyUI's user folder,
    where clients of the server write.
    """
    variable = "APPDATA" if sys.platform == "win32" else "XDG_CONFIG_HOME"
    return Path(os.environ.get(variable) or Path.home() / ".config").absolute() / "lora-trainer"
