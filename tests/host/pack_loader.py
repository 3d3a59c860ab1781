"""Loads this pack as ComfyUI loads a custom node, for the scripts that run in its interpreter."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def load_pack(folder: Path, name: str) -> ModuleType:
    """Import the folder as the module `name`."""
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
