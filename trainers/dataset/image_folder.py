"""Finds the images of a folder by name alone, with their masks and kohya's N_name subfolders. Opens
no file.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ..wording import pluralize
from .caption_files import CAPTION_EXTENSIONS, METADATA_NAME
from .image_files import EXTENSIONS, OTHER_IMAGE_EXTENSIONS
from .report import Remark

MASK_SUFFIX = "-masklabel"  # as in OneTrainer: toy-masklabel.png is the mask of toy.jpg
MASK_FOLDERS = ("mask", "masks")
MAX_REPEATS = 10_000
_REPEAT_FOLDER = re.compile(r"(\d+)_(.*)")


@dataclass(frozen=True)
class FoundImage:
    """One image by its name. `name` is its path inside the folder, with forward slashes.

    For an image in a kohya folder N_name: num_repeats is N, class_tokens is name, and repeat_folder
    is the whole folder name.
    """

    path: Path
    name: str
    mask: Path | None = None
    num_repeats: int = 1
    class_tokens: str = ""
    repeat_folder: str = ""


@dataclass(frozen=True)
class FolderContent:
    """The images, sorted by name."""

    images: list[FoundImage]
    notes: list[Remark] = field(default_factory=list)
    mask_notes: list[Remark] = field(default_factory=list)

    @property
    def folders(self) -> list[Path]:
        """Every folder that contains an image."""
        return list(dict.fromkeys(image.path.parent for image in self.images))


def list_images(folder: Path, *, recursive: bool) -> FolderContent:
    """Find the images of the folder, each with its mask.

    The mask of the image NAME is an image named NAME-masklabel, or NAME in a folder mask or masks;
    masks are never trained on. A folder without images, with subfolders named N_name, is a kohya
    folder: the subfolders are read, each image N times per epoch. Hidden files and folders are
    ignored.

    Raises:
        FileNotFoundError, NotADirectoryError, ValueError: there is no such folder, or it has no
            images.
    """
    if not folder.exists():
        raise FileNotFoundError(f"{folder}: there is no such folder. Give the folder that holds the images")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file. Give the folder that holds the images")
    content = _find_images(folder, recursive=recursive)
    if not content.images:
        raise ValueError(_explain_no_images(folder, recursive=recursive))
    return content


def list_dataset_files(folder: Path, *, recursive: bool) -> list[Path]:
    """List every file that a scan of the folder reads: images, masks, captions."""
    content = _find_images(folder, recursive=recursive)
    files = {image.path for image in content.images} | {image.mask for image in content.images if image.mask}
    files |= {image.path.with_suffix(extension) for image in content.images for extension in CAPTION_EXTENSIONS}
    files |= {place / METADATA_NAME for place in (folder, *content.folders)}
    return sorted(file for file in files if file.is_file())


def _find_images(folder: Path, *, recursive: bool) -> FolderContent:
    paths = _select_images(folder, folder.rglob("*") if recursive else folder.iterdir())
    repeat_folders = {} if any(path.parent == folder for path in paths) else _find_repeat_folders(folder)
    notes: list[Remark] = []
    if repeat_folders and recursive:
        shown = next(iter(repeat_folders)).name
        notes.append(
            Remark(
                shown,
                "recursive is on, so the number in such folder names is not used as repeats. Turn recursive off "
                "for kohya's folders",
            )
        )
        repeat_folders = {}
    elif repeat_folders:
        paths = [path for place in repeat_folders for path in _select_images(folder, place.iterdir())]
        notes += _note_kohya_folders(folder, repeat_folders, paths)
    masks = _find_masks(folder, dict.fromkeys(path.parent for path in paths))
    images = [_describe_path(path, folder, masks, repeat_folders) for path in paths]
    images = [image for image in images if image.num_repeats]
    return FolderContent(
        sorted(images, key=lambda image: _natural_sort_key(image.name)),
        notes,
        _note_orphan_masks(folder, masks, paths),
    )


def _describe_path(
    path: Path, folder: Path, masks: dict[tuple[Path, str], Path], repeat_folders: dict[Path, tuple[int, str]]
) -> FoundImage:
    name, mask = path.relative_to(folder).as_posix(), masks.get((path.parent, path.stem))
    if path.parent not in repeat_folders:
        return FoundImage(path, name, mask)
    num_repeats, class_tokens = repeat_folders[path.parent]
    return FoundImage(path, name, mask, num_repeats, class_tokens, repeat_folder=path.parent.name)


def _select_images(folder: Path, paths: Iterable[Path]) -> list[Path]:
    return [
        path
        for path in paths
        if _is_image_name(path)
        and not _is_mask(path.relative_to(folder))
        and _is_visible_file(path.relative_to(folder), folder)
    ]


def _is_image_name(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS + OTHER_IMAGE_EXTENSIONS


def _is_mask(relative_path: Path) -> bool:
    return relative_path.stem.endswith(MASK_SUFFIX) or any(
        part.lower() in MASK_FOLDERS for part in relative_path.parts[:-1]
    )


def _is_visible_file(relative_path: Path, folder: Path) -> bool:
    """True for a link to a missing file too, so that the report names it."""
    path = folder / relative_path
    return not any(part.startswith(".") for part in relative_path.parts) and (
        path.is_file() or (path.is_symlink() and not path.exists())
    )


def _find_repeat_folders(folder: Path) -> dict[Path, tuple[int, str]]:
    """Find kohya's subfolders that contain images, each with the N and the name of N_name.

    Raises:
        ValueError: N is more than MAX_REPEATS.
    """
    found = {}
    for place in sorted(folder.iterdir(), key=lambda place: _natural_sort_key(place.name)):
        meaning = parse_repeat_folder(place.name)
        if meaning and place.is_dir() and _select_images(folder, place.iterdir()):
            found[place] = meaning
            num_repeats, name = meaning
            if num_repeats > MAX_REPEATS:
                raise ValueError(
                    f"{place}: a kohya folder name starts with the repeats of its images, at most "
                    f"{MAX_REPEATS:,}. Rename it, such as 1_{name} for one repeat"
                )
    return found


def parse_repeat_folder(folder_name: str) -> tuple[int, str] | None:
    """Return the N and the name of kohya's N_name, or None for any other folder name."""
    match = _REPEAT_FOLDER.fullmatch(folder_name)
    return (int(match[1]), match[2].strip()) if match else None


def _note_kohya_folders(folder: Path, repeat_folders: dict[Path, tuple[int, str]], paths: list[Path]) -> list[Remark]:
    notes = []
    for place, (num_repeats, class_tokens) in repeat_folders.items():
        num_images = sum(path.parent == place for path in paths)
        meaning = f"kohya's folder: {num_images} x {num_repeats} repeats" + (
            f", {class_tokens!r} for images without a caption" if class_tokens else ""
        )
        notes.append(
            Remark(place.name, meaning if num_repeats else "kohya's folder of 0 repeats: its images are ignored")
        )
    others = [
        place
        for place in folder.iterdir()
        if place.is_dir() and place not in repeat_folders and not place.name.startswith(".")
    ]
    unread = sorted(place.name for place in others if _select_images(folder, place.iterdir()))
    return notes + [
        Remark(name, "ignored: its name is not N_name like those of the folders next to it (kohya's folders)")
        for name in unread
    ]


def _find_masks(folder: Path, places: Iterable[Path]) -> dict[tuple[Path, str], Path]:
    """Find masks, by the folder and name of their image. A mask is next to the image, in a folder
    mask next to it, or at the same relative path in <folder>/mask.
    """
    masks: dict[tuple[Path, str], Path] = {}
    for place in places:
        for file in _list_images(place):
            if file.stem.endswith(MASK_SUFFIX):
                masks.setdefault((place, file.stem.removesuffix(MASK_SUFFIX)), file)
        mirrored = [mask_folder / place.relative_to(folder) for mask_folder in _list_mask_folders(folder)]
        for mask_folder in dict.fromkeys([*_list_mask_folders(place), *mirrored]):
            for file in _list_images(mask_folder):
                masks.setdefault((place, file.stem.removesuffix(MASK_SUFFIX)), file)
    return masks


def _list_mask_folders(place: Path) -> list[Path]:
    return sorted(entry for entry in place.iterdir() if entry.name.lower() in MASK_FOLDERS and entry.is_dir())


def _list_images(place: Path) -> list[Path]:
    if not place.is_dir():
        return []
    return sorted(file for file in place.iterdir() if _is_image_name(file) and _is_visible_file(Path(file.name), place))


def _note_orphan_masks(folder: Path, masks: dict[tuple[Path, str], Path], paths: list[Path]) -> list[Remark]:
    images = {(path.parent, path.stem) for path in paths}
    orphans = sorted(mask.relative_to(folder).as_posix() for key, mask in masks.items() if key not in images)
    return [Remark(name, "its name marks it as a mask, but it belongs to no image") for name in orphans]


def _explain_no_images(folder: Path, *, recursive: bool) -> str:
    files = [
        path
        for path in (folder.rglob("*") if recursive else folder.iterdir())
        if _is_visible_file(path.relative_to(folder), folder)
    ]
    content = f"it has {pluralize(len(files), 'file')} of other kinds" if files else "it is empty"
    has_subfolders = not recursive and any(path.is_dir() for path in folder.iterdir())
    hint = " It has subfolders; turn on recursive to use them." if has_subfolders else ""
    return f"{folder}: no images, {content}. Images are {', '.join(EXTENSIONS)}.{hint}"


def _natural_sort_key(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sort 2.png before 10.png, ignoring case."""
    parts = re.split(r"(\d+)", name.lower())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts], name
