"""Finds Musubi Tuner and the Python that runs it. Both come from the machine's owner, through
settings or the environment, never from a workflow.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACK = Path(__file__).parents[2]
SOURCES = Path("src", "musubi_tuner")
HOW_TO_INSTALL = (
    "Install it with: git clone https://github.com/kohya-ss/musubi-tuner; cd musubi-tuner; python -m venv .venv; "
    "then torch for your GPU and "
    "`pip install -e .` in that .venv, as its README says"
)
_MARK = SOURCES / "zimage_train_network.py"
_INTERPRETERS = (".venv/bin/python", "venv/bin/python", ".venv/Scripts/python.exe", "venv/Scripts/python.exe")


class NoMusubi(ValueError):
    """Musubi Tuner or its Python was not found. The message says where we looked, and how to get
    it.
    """


@dataclass(frozen=True)
class Installation:
    """`folder` is the checkout and `python` the interpreter with its packages, both absolute.
    `version` is that of its pyproject.toml.
    """

    folder: Path
    python: Path
    version: str

    @property
    def sources(self) -> Path:
        return self.folder / SOURCES


def find_installation(*, folder: str = "", python: str = "") -> Installation:
    """Find the folder (the given one, else MUSUBI_TUNER_DIR, else the usual places) and its
    interpreter (likewise, with MUSUBI_PYTHON).

    Raises:
        NoMusubi: one of them does not exist. We never fall back from one that is given or set.
    """
    found = find_folder(folder)
    return Installation(found, find_python(found, python), read_version(found))


def find_folder(given: str = "") -> Path:
    """Raises NoMusubi."""
    for origin, text in (("", given), ("MUSUBI_TUNER_DIR: ", os.environ.get("MUSUBI_TUNER_DIR", ""))):
        if text.strip():
            return _require_checkout(Path(text.strip()).expanduser(), origin)
    places = list(list_usual_places())
    found = next((place for place in places if (place / _MARK).is_file()), None)
    if found is None:
        raise NoMusubi(
            f"Musubi Tuner was not found in {', '.join(map(str, places))}. Set its folder, or "
            f"MUSUBI_TUNER_DIR. {HOW_TO_INSTALL}"
        )
    return found.absolute()


def list_usual_places() -> Iterator[Path]:
    """Yield the folders inside and next to ComfyUI, if this pack is in its custom_nodes, then the
    home folder.
    """
    if PACK.parent.name == "custom_nodes":
        yield PACK.parents[1] / "musubi-tuner"
        yield PACK.parents[2] / "musubi-tuner"
    yield Path.home() / "musubi-tuner"


def find_python(folder: Path, given: str = "") -> Path:
    """Find the interpreter; raises NoMusubi. The path keeps its links: a virtual environment's
    interpreter is a link, and finds its packages by the place of that link.
    """
    for origin, text in (("", given), ("MUSUBI_PYTHON: ", os.environ.get("MUSUBI_PYTHON", ""))):
        if text.strip():
            python = Path(text.strip()).expanduser().absolute()
            if not python.is_file():
                raise NoMusubi(
                    f"{origin}{python}: there is no such file. Give the Python that has Musubi Tuner's packages, "
                    f"such as {folder / _INTERPRETERS[0]}"
                )
            return python
    found = next((folder / name for name in _INTERPRETERS if (folder / name).is_file()), None)
    if found is None:
        raise NoMusubi(
            f"{folder} has no Python in .venv or venv. Set the Python that has its packages, or "
            f"MUSUBI_PYTHON. {HOW_TO_INSTALL}"
        )
    return found


def read_version(folder: Path) -> str:
    try:
        text = (folder / "pyproject.toml").read_text(encoding="utf-8")
    except OSError:
        return "of an unknown version"
    match = re.search(r'^version\s*=\s*"([^"]+)"', text, re.MULTILINE)
    return match[1] if match else "of an unknown version"


def _require_checkout(folder: Path, origin: str) -> Path:
    if not folder.is_dir():
        raise NoMusubi(f"{origin}{folder}: there is no such folder. {HOW_TO_INSTALL}")
    if not (folder / _MARK).is_file():
        raise NoMusubi(
            f"{origin}{folder} is not a Musubi Tuner that trains Z-Image: it has no {_MARK.as_posix()}. "
            f"{HOW_TO_INSTALL}"
        )
    return folder.absolute()
