"""The pack's entries of ComfyUI's settings panel, as web/musubi_settings.js registers them."""

import json
from pathlib import Path

import folder_paths
from comfy.cli_args import args


def settings_count() -> bool:
    """Not with --multi-user: each user has a panel then, and none of them may choose what the
    server runs.
    """
    return not args.multi_user


def musubi_settings() -> dict[str, str]:
    """`folder` and `python` of Musubi Tuner; empty where the panel is, or does not count.

    Raises:
        ValueError: the file that ComfyUI keeps its settings in cannot be read.
    """
    if not settings_count():
        return {"folder": "", "python": ""}
    values = _settings()
    return {name: str(values.get(f"LoRATrainer.Musubi.{name.title()}") or "").strip() for name in ("folder", "python")}


def _settings() -> dict[str, object]:
    folder = folder_paths.get_public_user_directory("default")
    path = Path(folder or "") / "comfy.settings.json"
    if folder is None or not path.is_file():  # nobody has opened the front end yet
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path}: ComfyUI's settings cannot be read ({error}). Repair the file, or delete it"
        ) from error
