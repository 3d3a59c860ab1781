"""Keeps drawn grids in ComfyUI's temp folder, named by everything that they show. Whoever changes
only what is chosen gets the same file again; ComfyUI empties the folder at its start and end.
"""

import hashlib
import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import folder_paths
from PIL import Image

from ...trainers.files.atomic_write import atomic_write

_FOLDER = "lora_trainer_compare"
# A name for every MODEL, CLIP and VAE object, as long as it lives. Nodes never change what they
# were given, so one object always draws the same.
_names: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


class CachedGrid:
    """The file of one grid, which may not exist yet."""

    def __init__(self, models: tuple[Any, ...], settings: Mapping[str, Any]) -> None:
        content = json.dumps({"models": [_name(model) for model in models], **settings}, sort_keys=True)
        name = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        self._path = Path(folder_paths.get_temp_directory()) / _FOLDER / f"grid_{name}.png"

    def read(self) -> Image.Image | None:
        if not self._path.is_file():
            return None
        with Image.open(self._path) as image:
            return image.convert("RGB")

    def write(self, image: Image.Image) -> None:
        with atomic_write(self._path, overwrite=True) as temporary:
            image.save(temporary, format="PNG", compress_level=1)

    def describe(self) -> dict[str, str]:
        """The file as ComfyUI's front end and /view name it."""
        return {"filename": self._path.name, "subfolder": _FOLDER, "type": "temp"}


def _name(model: Any) -> str:
    return _names.setdefault(model, uuid.uuid4().hex)
