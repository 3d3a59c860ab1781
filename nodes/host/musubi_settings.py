"""What ComfyUI's settings say of Musubi Tuner. It is only shown: every client of the server can
write them.
"""

import json
from pathlib import Path

import folder_paths

_OLD = {"LoRATrainer.Musubi.Folder": "folder", "LoRATrainer.Musubi.Python": "python"}


def find_old_settings() -> dict[str, str]:
    """Return the paths under their names in musubi.toml; nothing where ComfyUI itself would read no
    settings.
    """
    folder = folder_paths.get_public_user_directory("default")
    path = Path(folder or "") / "comfy.settings.json"
    if folder is None or not path.is_file():  # nobody has opened the front end yet
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return {}
    if not isinstance(values, dict):
        return {}
    return {name: str(values[key]).strip() for key, name in _OLD.items() if str(values.get(key) or "").strip()}
