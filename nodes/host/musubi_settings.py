"""Reads the pack's entries in ComfyUI's settings panel, which web/musubi_settings.js registers."""

import json
from pathlib import Path

import folder_paths
from comfy.cli_args import args


def settings_panel_applies() -> bool:
    """Return whether the panel applies. With --multi-user each user has a panel, and none of them
    may choose what the server runs.
    """
    return not args.multi_user


def read_musubi_settings() -> dict[str, str]:
    """Read `folder` and `python` of Musubi Tuner; empty if they are not set or the panel does not
    apply.

    Raises:
        ValueError: ComfyUI's settings file cannot be read.
    """
    if not settings_panel_applies():
        return {"folder": "", "python": ""}
    values = _read_settings()
    return {name: str(values.get(f"LoRATrainer.Musubi.{name.title()}") or "").strip() for name in ("folder", "python")}


def _read_settings() -> dict[str, object]:
    folder = folder_paths.get_public_user_directory("default")
    path = Path(folder or "") / "comfy.settings.json"
    if folder is None or not path.is_file():  # nobody has opened the front end yet
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: ComfyUI's settings cannot be read ({error}). Repair or delete the file") from error
