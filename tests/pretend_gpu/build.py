"""Builds card.cpp, once for each state of the source and each torch. Imports no torch."""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
from importlib.metadata import version
from pathlib import Path

SOURCE = Path(__file__).with_name("card.cpp")
_COMPILER = "g++"


class CannotBuild(RuntimeError):
    """The machine lacks what the pretended GPU is built with."""


def build_card() -> Path:
    """Return the library. Building it takes about half a minute.

    Raises:
        CannotBuild: there is no g++, or the platform is not Linux.
        subprocess.CalledProcessError: card.cpp does not compile with this torch.
    """
    if os.name != "posix" or shutil.which(_COMPILER) is None:
        raise CannotBuild(f"the pretended GPU is built with {_COMPILER}, which is not on the PATH (apt install g++)")
    # with the folder: a second copy of torch's libraries in one process would be another torch
    torch = f"{version('torch')} {find_torch()}"
    key = hashlib.sha256(SOURCE.read_bytes() + torch.encode()).hexdigest()[:16]
    library = _find_cache_folder() / f"card-{key}.so"
    if not library.exists():
        _compile(library)
    return library


def find_torch() -> Path:
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def _find_cache_folder() -> Path:
    """Not XDG_CACHE_HOME: the tests replace it, and would build the card in each run."""
    return Path.home() / ".cache" / "lora_trainer_tests"


def _compile(library: Path) -> None:
    library.parent.mkdir(parents=True, exist_ok=True)
    torch = find_torch()
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        built = Path(folder) / "card.so"
        flags = ["-O1", "-shared", "-fPIC", "-std=c++20", f"-I{torch / 'include'}"]
        libraries = [f"-L{torch / 'lib'}", f"-Wl,-rpath,{torch / 'lib'}", "-ltorch_cpu", "-lc10"]
        subprocess.run([_COMPILER, *flags, str(SOURCE), "-o", str(built), *libraries], check=True)
        built.replace(library)  # two processes may build it at once
