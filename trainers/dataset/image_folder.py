"""Finds the images of a folder by name alone, with their masks and kohya's N_name subfolders. Opens
no file.
"""

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..wording import make_printable, pluralize
from .caption_files import METADATA_NAMES, list_caption_files, note_unused_files
from .folder_walk import WalkedFolder, walk_folder
from .image_files import EXTENSIONS, OTHER_IMAGE_EXTENSIONS
from .report import Remark, RemarkKind

MASK_SUFFIX = "-masklabel"  # as in OneTrainer: toy-masklabel.png is the mask of toy.jpg
MASK_FOLDERS = ("mask", "masks")
MAX_REPEATS = 10_000
# kohya's project folder: img/10_zwx dog and reg/1_dog next to model and log
IMAGE_FOLDERS = ("img", "image", "images")
REGULARIZATION_FOLDERS = ("reg", "regularization")
MAX_SEARCHED_FOLDERS = 2000  # for kohya's folders, when recursive is off
MAX_NAMED_FOLDERS = 10
_REPEAT_FOLDER = re.compile(r"(\d+)_(.*)")


@dataclass(frozen=True)
class FoundImage:
    """One image by its name. `name` is its path inside the folder, with forward slashes.

    For an image in a kohya folder N_name: num_repeats is N, class_tokens is name, repeat_folder is
    the whole folder name, and is_regularization says whether it is below a folder reg.
    """

    path: Path
    name: str
    mask: Path | None = None
    num_repeats: int = 1
    class_tokens: str = ""
    repeat_folder: str = ""
    is_regularization: bool = False


@dataclass(frozen=True)
class FolderContent:
    """The images, sorted by name. left_out: images that are not read, as they are outside of
    kohya's folders. files: the names of all files in the folder and where its images are.
    """

    images: list[FoundImage]
    notes: list[Remark] = field(default_factory=list)
    mask_notes: list[Remark] = field(default_factory=list)
    left_out: list[Remark] = field(default_factory=list)
    files: dict[Path, list[str]] = field(default_factory=dict)

    @property
    def folders(self) -> list[Path]:
        """Every folder that contains an image."""
        return list(dict.fromkeys(image.path.parent for image in self.images))


@dataclass(frozen=True)
class _RepeatFolder:
    """One of kohya's N_name folders."""

    num_repeats: int
    class_tokens: str
    is_regularization: bool


def list_images(
    folder: Path,
    *,
    recursive: bool,
    without: Path | None = None,
    check_interrupted: Callable[[], None] = lambda: None,
) -> FolderContent:
    """Find the images of the folder, each with its mask. A folder `without` is passed over, such as
    one of control images.

    The mask of the image NAME is an image named NAME-masklabel, or NAME in a folder mask or masks;
    masks are never trained on. Hidden files and folders and those of the system are ignored.

    It is a kohya folder if it has subfolders named N_name, if it has them in img or reg (kohya's
    project folder), or if it has no images itself and they are anywhere below. Then only images in
    N_name folders are read, each N times per epoch.

    Raises:
        FileNotFoundError, NotADirectoryError, ValueError: there is no such folder, or it has no
            images.
    """
    if without is not None and folder.resolve().is_relative_to(without.resolve()):
        raise ValueError(f"control_images: {without} is the folder of the images or above it. Give another one")
    if not folder.exists():
        raise FileNotFoundError(f"{folder}: there is no such folder. Give the folder that holds the images")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file. Give the folder that holds the images")
    walked = _walk(folder, recursive=recursive, check_interrupted=check_interrupted)
    walked = walked if without is None else _pass_over(walked, without.resolve())
    content = _find_images(folder, walked, recursive=recursive)
    if not content.images:
        raise ValueError(_explain_no_images(folder, walked, recursive=recursive))
    return content


@dataclass(frozen=True)
class DatasetFiles:
    """read: every file that a scan of the folder reads: images, masks, captions. remarks: what its
    report says about other files and folders.
    """

    read: list[Path]
    remarks: list[Remark]


def list_dataset_files(
    folder: Path, *, recursive: bool, check_interrupted: Callable[[], None] = lambda: None
) -> DatasetFiles:
    """List what the dataset of a folder depends on. Opens no file."""
    walked = _walk(folder, recursive=recursive, check_interrupted=check_interrupted)
    content = _find_images(folder, walked, recursive=recursive)
    files = {image.path for image in content.images} | {image.mask for image in content.images if image.mask}
    files |= {file for image in content.images for file in list_caption_files(image.path)}
    files |= {place / name for place in (folder, *content.folders) for name in METADATA_NAMES}
    unused = [Remark(path.as_posix(), reason) for path, reason in note_unused_files(content.files)]
    return DatasetFiles(
        sorted(file for file in files if file.is_file()),
        [*content.left_out, *content.notes, *content.mask_notes, *unused],
    )


def _pass_over(walked: WalkedFolder, folder: Path) -> WalkedFolder:
    files = {place: names for place, names in walked.files.items() if not place.resolve().is_relative_to(folder)}
    return replace(walked, files=files)


def _walk(folder: Path, *, recursive: bool, check_interrupted: Callable[[], None]) -> WalkedFolder:
    return walk_folder(
        folder,
        max_folders=None if recursive else MAX_SEARCHED_FOLDERS,
        reads_link=lambda name: parse_repeat_folder(name) is not None,
        check_interrupted=check_interrupted,
    )


def _find_images(folder: Path, walked: WalkedFolder, *, recursive: bool) -> FolderContent:
    images_by_folder = _select_images(folder, walked)
    repeat_folders = _find_repeat_folders(folder, images_by_folder, recursive=recursive)
    notes: list[Remark] = []
    left_out: list[Remark] = []
    if repeat_folders:
        places = list(repeat_folders)
        notes += _note_repeat_folders(folder, repeat_folders, images_by_folder)
        left_out += _leave_out_strays(folder, images_by_folder)
        if recursive:
            notes.append(Remark(folder.name, "recursive is on, but this is kohya's project folder: it is read as such"))
    elif recursive:
        places = list(images_by_folder)
        notes += _note_unused_repeats(images_by_folder)
    else:
        places = [folder]
    notes += _note_unread(folder, images_by_folder, places, is_kohyas=bool(repeat_folders))
    notes += _note_skipped(folder, walked, recursive=recursive)
    paths = [path for place in places for path in images_by_folder.get(place, [])]
    masks = _find_masks(folder, dict.fromkeys(path.parent for path in paths))
    left_out += [
        Remark(path.relative_to(folder).as_posix(), "its name is not UTF-8. Rename it", RemarkKind.UNUSABLE)
        for path in paths
        if not _is_utf8(path, folder)
    ]
    images = [_describe_path(path, folder, masks, repeat_folders) for path in paths if _is_utf8(path, folder)]
    images = [image for image in images if image.num_repeats]
    return FolderContent(
        sorted(images, key=lambda image: _natural_sort_key(image.name)),
        notes,
        _note_orphan_masks(folder, masks, paths),
        left_out,
        {place: walked.files[place] for place in dict.fromkeys([folder, *(path.parent for path in paths)])},
    )


def _is_utf8(path: Path, folder: Path) -> bool:
    """Caches, reports and headers hold the name inside the folder."""
    name = path.relative_to(folder).as_posix()
    return make_printable(name) == name


def _describe_path(
    path: Path, folder: Path, masks: dict[tuple[Path, str], Path], repeat_folders: dict[Path, _RepeatFolder]
) -> FoundImage:
    name, mask = path.relative_to(folder).as_posix(), masks.get((path.parent, path.stem))
    place = repeat_folders.get(path.parent)
    if place is None:
        return FoundImage(path, name, mask)
    return FoundImage(
        path,
        name,
        mask,
        place.num_repeats,
        place.class_tokens,
        repeat_folder=path.parent.name,
        is_regularization=place.is_regularization,
    )


def _select_images(folder: Path, walked: WalkedFolder) -> dict[Path, list[Path]]:
    """Return the images of every folder that has some, without masks."""
    selected = {}
    for place, names in walked.files.items():
        relative = place.relative_to(folder)
        if any(part.lower() in MASK_FOLDERS for part in relative.parts):
            continue
        images = [
            place / name
            for name in names
            if _is_image_name(name) and not os.path.splitext(name)[0].endswith(MASK_SUFFIX)
        ]
        if images:
            selected[place] = images
    return selected


def _is_image_name(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS + OTHER_IMAGE_EXTENSIONS


def _find_repeat_folders(
    folder: Path, images_by_folder: dict[Path, list[Path]], *, recursive: bool
) -> dict[Path, _RepeatFolder]:
    """Find kohya's N_name folders that contain images, in the order of their names. As kohya's
    trainer does, read only the topmost of them: none inside a folder that has some.

    Next to images of its own, only a folder's own N_name folders and those of a project folder
    count; with `recursive`, only those of a project folder.

    Raises:
        ValueError: N is more than MAX_REPEATS.
    """
    numbered = {place: meaning for place in images_by_folder if (meaning := parse_repeat_folder(place.name))}
    numbered.pop(folder, None)
    parents = {place.parent for place in numbered}
    parents = {parent for parent in parents if not any(above in parents for above in parent.parents)}
    project_folders = {
        parent
        for parent in parents
        if parent.parent == folder and parent.name.lower() in IMAGE_FOLDERS + REGULARIZATION_FOLDERS
    }
    if not project_folders and (recursive or (folder in images_by_folder and folder not in parents)):
        return {}
    found = {}
    for place in sorted(numbered, key=lambda place: _natural_sort_key(place.relative_to(folder).as_posix())):
        if place.parent not in parents:
            continue
        num_repeats, name = numbered[place]
        if num_repeats > MAX_REPEATS:
            if folder in images_by_folder:  # more likely a date than kohya's
                continue
            raise ValueError(
                f"{place}: a kohya folder name starts with the repeats of its images, at most "
                f"{MAX_REPEATS:,}. Rename it, such as 1_{name} for one repeat"
            )
        found[place] = _RepeatFolder(num_repeats, name, _is_below_regularization(place, folder))
    return found


def _is_below_regularization(place: Path, folder: Path) -> bool:
    return any(part.lower() in REGULARIZATION_FOLDERS for part in place.relative_to(folder).parts[:-1])


def parse_repeat_folder(folder_name: str) -> tuple[int, str] | None:
    """Return the N and the name of kohya's N_name, or None for any other folder name."""
    match = _REPEAT_FOLDER.fullmatch(folder_name)
    return (int(match[1]), match[2].strip()) if match else None


def _note_repeat_folders(
    folder: Path, repeat_folders: dict[Path, _RepeatFolder], images_by_folder: dict[Path, list[Path]]
) -> list[Remark]:
    notes = []
    for place, meaning in repeat_folders.items():
        reason = f"kohya's folder: {len(images_by_folder[place])} x {meaning.num_repeats} repeats"
        if meaning.class_tokens:
            reason += f", {meaning.class_tokens!r} for images without a caption"
        if meaning.is_regularization:
            reason += "; regularization images, as they are in a folder reg"
        if not meaning.num_repeats:
            reason = "kohya's folder of 0 repeats: its images are ignored"
        notes.append(Remark(place.relative_to(folder).as_posix(), reason))
    return notes


def _note_unused_repeats(images_by_folder: dict[Path, list[Path]]) -> list[Remark]:
    shown = next((place.name for place in images_by_folder if parse_repeat_folder(place.name)), None)
    if shown is None:
        return []
    reason = (
        "recursive is on, so the number in such folder names is not used as repeats. Turn recursive off "
        "for kohya's folders"
    )
    return [Remark(shown, reason)]


def _leave_out_strays(folder: Path, images_by_folder: dict[Path, list[Path]]) -> list[Remark]:
    reason = "it is next to kohya's folders, of which only those named N_name are read. Move it into one of them"
    return [Remark(path.name, reason, RemarkKind.OUTSIDE_KOHYAS_FOLDERS) for path in images_by_folder.get(folder, [])]


def _note_unread(
    folder: Path, images_by_folder: dict[Path, list[Path]], read: list[Path], *, is_kohyas: bool
) -> list[Remark]:
    """List the subfolders with images that are not read."""
    num_images: dict[str, int] = {}
    for place, images in images_by_folder.items():
        if place not in read and place != folder:
            relative = place.relative_to(folder)
            name = relative.as_posix() if is_kohyas else relative.parts[0]
            num_images[name] = num_images.get(name, 0) + len(images)
    why = (
        "of kohya's folders, only the images directly in a folder named N_name are"
        if is_kohyas
        else "turn recursive on to use the images in subfolders"
    )
    names = sorted(num_images, key=_natural_sort_key)
    notes = [
        Remark(name, f"{pluralize(num_images[name], 'image')} not read: {why}") for name in names[:MAX_NAMED_FOLDERS]
    ]
    if len(names) > MAX_NAMED_FOLDERS:
        rest = names[MAX_NAMED_FOLDERS:]
        num_rest = sum(num_images[name] for name in rest)
        notes.append(
            Remark(rest[0], f"{pluralize(num_rest, 'image')} in this and {len(rest) - 1} more folders not read: {why}")
        )
    return notes


def _note_skipped(folder: Path, walked: WalkedFolder, *, recursive: bool) -> list[Remark]:
    """List the subfolders that were not even looked into."""
    notes = [
        Remark(
            place.relative_to(folder).as_posix(),
            "a link to a folder is not followed. To use its images, load that folder too and join both",
        )
        for place in walked.linked
    ]
    notes += [
        Remark(place.relative_to(folder).as_posix(), "this folder cannot be read (Permission denied)")
        for place in walked.unreadable
    ]
    if walked.system and recursive:
        name = walked.system[0].relative_to(folder).as_posix()
        more = f" (and {pluralize(len(walked.system) - 1, 'folder')} like it)" if len(walked.system) > 1 else ""
        notes.append(Remark(name, f"not read{more}: thumbnails or deleted files that the system keeps"))
    if not walked.is_complete:
        reason = f"only its first {MAX_SEARCHED_FOLDERS:,} subfolders were searched for kohya's folders"
        notes.append(Remark(folder.name, reason))
    return notes


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
    with os.scandir(place) as entries:
        return sorted(
            place / entry.name
            for entry in entries
            if not entry.name.startswith(".")
            and _is_image_name(entry.name)
            and (entry.is_file() or (entry.is_symlink() and not entry.is_dir()))
        )


def _note_orphan_masks(folder: Path, masks: dict[tuple[Path, str], Path], paths: list[Path]) -> list[Remark]:
    images = {(path.parent, path.stem) for path in paths}
    orphans = sorted(mask.relative_to(folder).as_posix() for key, mask in masks.items() if key not in images)
    return [Remark(name, "its name marks it as a mask, but it belongs to no image") for name in orphans]


def _explain_no_images(folder: Path, walked: WalkedFolder, *, recursive: bool) -> str:
    num_files = sum(map(len, walked.files.values())) if recursive else len(walked.files[folder])
    content = f"it has {pluralize(num_files, 'file')} of other kinds" if num_files else "it is empty"
    has_subfolders = not recursive and any(path.is_dir() for path in folder.iterdir())
    hint = " It has subfolders; turn on recursive to use them." if has_subfolders else ""
    return f"{folder}: no images, {content}. Images are {', '.join(EXTENSIONS)}.{hint}"


def _natural_sort_key(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sort 2.png before 10.png, ignoring case."""
    parts = re.split(r"(\d+)", name.lower())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts], name
