"""Finds Musubi Tuner and the Python that runs it. Both come from the machine's owner, through the
command line, the environment or a file, never from a workflow, ComfyUI's settings or an upload.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..files.client_folders import ClientFolder, find_client_folder
from .owner_file import get_owner_file, read_owner_file

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


def find_installation(
    *, folder: str = "", python: str = "", client_folders: Sequence[ClientFolder] = ()
) -> Installation:
    """Find the folder (the given one, else MUSUBI_TUNER_DIR, else that in musubi.toml, else the
    usual places) and its interpreter (likewise, with MUSUBI_PYTHON).

    Raises:
        NoMusubi: one of them does not exist, or is below one of `client_folders`. We never fall
            back from one that is given or set.
    """
    found = find_folder(folder, client_folders=client_folders)
    return Installation(found, find_python(found, python, client_folders=client_folders), read_version(found))


def find_folder(given: str = "", *, client_folders: Sequence[ClientFolder] = ()) -> Path:
    """Raises NoMusubi."""
    for origin, text in _list_given("folder", given, "MUSUBI_TUNER_DIR", client_folders):
        return _require_checkout(Path(text).expanduser(), origin, client_folders)
    places = list(list_usual_places())
    found = next((place for place in places if (place / _MARK).is_file()), None)
    if found is None:
        raise NoMusubi(
            f"Musubi Tuner was not found in {', '.join(map(str, places))}. Write its folder into {get_owner_file()}, "
            f"or set MUSUBI_TUNER_DIR. {HOW_TO_INSTALL}"
        )
    return _require_checkout(found, "", client_folders)


def _list_given(
    name: str, given: str, variable: str, client_folders: Sequence[ClientFolder]
) -> Iterator[tuple[str, str]]:
    """Yield what was chosen, the strongest first, with where it comes from. The file is read only
    where nothing is stronger.
    """
    for origin, text in (("", given), (f"{variable}: ", os.environ.get(variable, ""))):
        if text.strip():
            yield origin, text.strip()
    try:
        text = read_owner_file(client_folders)[name]
    except ValueError as error:
        raise NoMusubi(str(error)) from error
    if text:
        yield f"{name} in {get_owner_file()}: ", text


def list_usual_places() -> Iterator[Path]:
    """Yield the folders inside and next to ComfyUI, if this pack is in its custom_nodes, then the
    home folder.
    """
    if PACK.parent.name == "custom_nodes":
        yield PACK.parents[1] / "musubi-tuner"
        yield PACK.parents[2] / "musubi-tuner"
    yield Path.home() / "musubi-tuner"


def find_python(folder: Path, given: str = "", *, client_folders: Sequence[ClientFolder] = ()) -> Path:
    """Find the interpreter; raises NoMusubi. The path keeps its links: a virtual environment's
    interpreter is a link, and finds its packages by the place of that link.
    """
    for origin, text in _list_given("python", given, "MUSUBI_PYTHON", client_folders):
        python = Path(text).expanduser().absolute()
        if not python.is_file():
            raise NoMusubi(
                f"{origin}{python}: there is no such file. Give the Python that has Musubi Tuner's packages, "
                f"such as {folder / _INTERPRETERS[0]}"
            )
        _refuse_client_folder(python, origin, client_folders)
        return python
    found = next((folder / name for name in _INTERPRETERS if (folder / name).is_file()), None)
    if found is None:
        raise NoMusubi(
            f"{folder} has no Python in .venv or venv. Write the Python that has its packages into "
            f"{get_owner_file()}, or set MUSUBI_PYTHON. {HOW_TO_INSTALL}"
        )
    _refuse_client_folder(found, "", client_folders)
    return found


def read_version(folder: Path) -> str:
    try:
        text = (folder / "pyproject.toml").read_text(encoding="utf-8")
    except OSError:
        return "of an unknown version"
    match = re.search(r'^version\s*=\s*"([^"]+)"', text, re.MULTILINE)
    return match[1] if match else "of an unknown version"


def _require_checkout(folder: Path, origin: str, client_folders: Sequence[ClientFolder]) -> Path:
    if not folder.is_dir():
        raise NoMusubi(f"{origin}{folder}: there is no such folder. {HOW_TO_INSTALL}")
    if not (folder / _MARK).is_file():
        raise NoMusubi(
            f"{origin}{folder} is not a Musubi Tuner that trains Z-Image: it has no {_MARK.as_posix()}. "
            f"{HOW_TO_INSTALL}"
        )
    _refuse_client_folder(folder / _MARK, origin, client_folders)
    return folder.absolute()


def _refuse_client_folder(path: Path, origin: str, client_folders: Sequence[ClientFolder]) -> None:
    """What anybody could upload is never run, whoever names it."""
    found = find_client_folder(path, client_folders)
    if found is not None:
        raise NoMusubi(
            f"{origin}{path} is below {found.name} ({found.path}), where clients of the server can put files, so it "
            f"is never run. Move Musubi Tuner and its Python to another place, such as "
            f"{Path.home() / 'musubi-tuner'}"
        )
