"""Reads the nodes' schemas without ComfyUI: imports the real node files on a stand-in for the host
that records what they declare.

tests/host compares the help pages made from it with a real server.
"""

import importlib
import re
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

ROOT = Path(__file__).parents[1]
DYNAMIC_COMBO = "DYNAMIC_COMBO"
_PACK = "lora_trainer_for_docs"
_HOST_PACKAGES = ("comfy", "comfy_api", "comfy_execution", "folder_paths", "nodes", "server")


def read_schemas() -> list[SimpleNamespace]:
    """Return what every node passes to io.Schema, in the order of registration.

    An input or output has its arguments as attributes, and its type as `io_type`. It always has
    optional, advanced and tooltip.
    """
    with stand_in_host() as pack:
        extension = importlib.import_module(f"{pack}.nodes.extension")
        return [node.define_schema() for node in extension.NODES]


@contextmanager
def stand_in_host() -> Iterator[str]:
    """Make the pack importable under a name that nothing else uses. Afterwards all of its modules
    are removed.
    """
    kept = {name: module for name, module in sys.modules.items() if _is_of(_HOST_PACKAGES, name)}
    finder = _StandInFinder()
    pack = types.ModuleType(_PACK)
    pack.__path__ = [str(ROOT)]
    try:
        _forget(_HOST_PACKAGES)
        sys.meta_path.insert(0, finder)
        sys.modules[_PACK] = pack
        yield _PACK
    finally:
        sys.meta_path.remove(finder)
        _forget((*_HOST_PACKAGES, _PACK))
        sys.modules.update(kept)


def _forget(packages: tuple[str, ...]) -> None:
    for name in [name for name in sys.modules if _is_of(packages, name)]:
        del sys.modules[name]


def _is_of(packages: tuple[str, ...], module: str) -> bool:
    return module.partition(".")[0] in packages


class _StandInFinder:
    """Finds any module of the host: comfy_api.latest records, folder_paths has no files, and all
    others accept every call.
    """

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if _is_of(_HOST_PACKAGES, name) else None  # pyright: ignore

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        return _StandInModule(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        if module.__name__ == "comfy_api.latest":
            vars(module).update(io=_Io("io"), ComfyExtension=object)
        if module.__name__ == "folder_paths":
            vars(module).update(_NO_FILES)


class _StandInModule(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock(name=f"{self.__name__}.{name}")


_NO_FILES = {
    "models_dir": str(ROOT / "no_models"),
    "folder_names_and_paths": {},
    "get_output_directory": lambda: str(ROOT / "no_output"),
    "get_input_subfolders": list,
    "get_filename_list": lambda folder: [],
    "get_folder_paths": lambda folder: [],
}


class _Io(types.ModuleType):
    """comfy_api.latest.io: every type has Input and Output, which record their arguments."""

    ComfyNode = object

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Type(re.sub("(?<=[a-z])(?=[A-Z])", "_", name).upper())

    def Custom(self, io_type: str) -> "_Type":
        return _Type(io_type)

    def Schema(self, **arguments: Any) -> SimpleNamespace:
        return SimpleNamespace(**arguments)


class _Type:
    def __init__(self, io_type: str):
        self.io_type = io_type

    def Input(self, id: str, **arguments: Any) -> SimpleNamespace:
        given = {"optional": False, "advanced": None, "tooltip": "", **arguments}
        return SimpleNamespace(id=id, io_type=self.io_type, **given)

    Output = Input

    def Option(self, key: str, inputs: list[SimpleNamespace]) -> SimpleNamespace:
        return SimpleNamespace(key=key, inputs=inputs)

    def __getattr__(self, name: str) -> str:
        return name  # io.Hidden.extra_pnginfo, io.ControlAfterGenerate.fixed

    def __call__(self, *arguments: Any, **named: Any) -> None:
        raise TypeError(f"the stand-in for io.{self.io_type} only declares")
