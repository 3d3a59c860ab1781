"""Copies a LoRA file to where ComfyUI's loaders list it."""

import shutil
from pathlib import Path

from ...trainers.files.atomic_write import atomic_write
from ...trainers.files.hashes import file_sha256
from ...trainers.files.names import save_under_free_name


def copy_to_loras_folder(source: Path, *, folder: Path) -> str:
    """Return its name there. A file of its name with its content is taken as it is; where another
    one has the name, -2, -3 and so on is added.

    Raises:
        OSError: the disk is full, or a file cannot be read or written.
    """
    path = folder / source.name
    if not _is_same(path, source):
        path, _ = save_under_free_name(path, lambda free: _copy(source, free))
    return path.relative_to(folder).as_posix()


def _is_same(path: Path, other: Path) -> bool:
    if not path.is_file() or path.stat().st_size != other.stat().st_size:
        return False
    return file_sha256(path) == file_sha256(other)


def _copy(source: Path, path: Path) -> None:
    with atomic_write(path) as temporary:
        shutil.copyfile(source, temporary)
