"""Folders that clients of a server can write to, and whether a path leads into one of them."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ClientFolder:
    """`name` as an error message says it, such as "ComfyUI's input folder"."""

    name: str
    path: Path


def find_client_folder(path: Path, folders: Sequence[ClientFolder]) -> ClientFolder | None:
    """Return the one of `folders` that `path` is or is below, as written or by a link anywhere in
    it; None if there is none.

    Folders are compared by what they are on the disk, so that upper and lower case, mounts and
    ".." make no difference.
    """
    places = {place for hop in _list_hops(path.absolute()) for place in _list_places(hop)}
    identities = {_identify(place) for place in places}
    return next((folder for folder in folders if _identify(folder.path) in identities), None)


def _list_hops(path: Path) -> Iterator[Path]:
    """Yield the path, and what it points to as long as that is a link."""
    seen: set[Path] = set()
    while path not in seen:
        seen.add(path)
        yield path
        if path.is_symlink():
            path = path.parent / os.readlink(path)


def _list_places(path: Path) -> Iterator[Path]:
    for ancestor in (path, *path.parents):
        resolved = Path(os.path.realpath(ancestor))
        yield resolved
        yield from resolved.parents


def _identify(path: Path) -> object:
    try:
        status = path.stat()
    except OSError:  # not there, or not ours to see: its name is all that we know
        return Path(os.path.realpath(path))
    return status.st_dev, status.st_ino
