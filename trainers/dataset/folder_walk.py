"""Lists the files of a folder and its subfolders, by name alone. Which of them count is decided
elsewhere.
"""

import os
import stat
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

# where systems and network drives keep thumbnails and deleted files
SYSTEM_FOLDERS = frozenset(
    {
        "@eadir",
        "@recycle",
        "@recently-snapshot",
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "recycler",
        "recycled",
        "system volume information",
        "lost+found",
        "network trash folder",
        "temporary items",
        "__macosx",
    }
)
ENTRIES_BETWEEN_CHECKS = 1000


@dataclass(frozen=True)
class WalkedFolder:
    """files: the names of the visible files of every folder, the given folder first.

    linked, system, unreadable: subfolders that were not read, because they are links, folders of
    the system, or closed to this user. is_complete: False if there were too many subfolders.
    """

    files: dict[Path, list[str]]
    linked: list[Path] = field(default_factory=list)
    system: list[Path] = field(default_factory=list)
    unreadable: list[Path] = field(default_factory=list)
    is_complete: bool = True


def walk_folder(
    folder: Path,
    *,
    max_folders: int | None = None,
    reads_link: Callable[[str], bool] = lambda _: False,
    check_interrupted: Callable[[], None] = lambda: None,
) -> WalkedFolder:
    """List the files of the folder and its subfolders, nearest first. Hidden ones are ignored.

    A link to a folder is not followed, as it may lead back; one whose name `reads_link` accepts is
    read, but not its subfolders.
    """
    walked = WalkedFolder({})
    remaining = deque([folder])
    is_complete = True
    while remaining:
        place = remaining.popleft()
        if max_folders is not None and len(walked.files) >= max_folders:
            is_complete = False
            break
        try:
            files, subfolders = _list_entries(place, check_interrupted)
        except PermissionError:
            if place == folder:
                raise
            walked.unreadable.append(place)
            continue
        walked.files[place] = files
        if place != folder and _is_link(place):
            continue
        for subfolder in subfolders:
            if subfolder.name.lower() in SYSTEM_FOLDERS:
                walked.system.append(subfolder)
            elif _is_link(subfolder) and not reads_link(subfolder.name):
                walked.linked.append(subfolder)
            else:
                remaining.append(subfolder)
    return WalkedFolder(walked.files, walked.linked, walked.system, walked.unreadable, is_complete)


def _list_entries(place: Path, check_interrupted: Callable[[], None]) -> tuple[list[str], list[Path]]:
    """Return visible files and folders, sorted. A link to a missing file counts as a file, so that
    the report names it.
    """
    files, folders = [], []
    with os.scandir(place) as entries:
        for count, entry in enumerate(entries):
            if count % ENTRIES_BETWEEN_CHECKS == 0:
                check_interrupted()
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                folders.append(entry.name)
            elif entry.is_file() or entry.is_symlink():
                files.append(entry.name)
    return sorted(files), [place / name for name in sorted(folders)]


def _is_link(folder: Path) -> bool:
    """True for symbolic links, and for Windows' junctions."""
    status = folder.lstat()
    is_junction = getattr(status, "st_reparse_tag", 0) == getattr(stat, "IO_REPARSE_TAG_MOUNT_POINT", None)
    return stat.S_ISLNK(status.st_mode) or is_junction
