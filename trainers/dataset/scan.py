"""Checks a folder of images and captions, file by file. image_folder.py finds the files."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..wording import name_examples
from .caption_files import StoredCaption, note_unused_files, read_caption_files, read_metadata
from .caption_marks import find_foreign_marks
from .config import DatasetConfig
from .control_images import FoundControls, find_control_images, read_control_images, require_control_images
from .crop import is_same_shape
from .dataset import Dataset
from .image import TrainingImage
from .image_files import EXTENSIONS, UnreadFormat, UnusableImage, image_sha256, inspect_image, read_alpha, read_grey
from .image_folder import FolderContent, FoundImage, list_images
from .report import NO_CAPTION, DatasetReport, Remark, RemarkKind, require_usable
from .subject_crop import find_subject
from .summary import summarize_special
from .trigger_word import add_trigger_word_to_each_line


def scan_folder(
    config: DatasetConfig,
    *,
    name: str = "",
    check_interrupted: Callable[[], None] = lambda: None,
    on_progress: Callable[[int, int, str], None] = lambda *_: None,
) -> Dataset:
    """Check every image of the folder, in the order of their names; write nothing.

    The report names every file that is left out: empty, damaged, animated or huge files, images
    with such a mask or control image, files of other image formats, and copies of another image.
    With `strict`, a left-out file is an error. Images without a caption stay, so that a captioner
    can add one; plan_crops leaves them out. Hidden files and folders are ignored. `name` is the
    user's name for the folder, if it differs from the folder's own.

    Raises:
        FileNotFoundError, NotADirectoryError, ValueError: there is no such folder, or it has no
            usable image, or an image has no control image.
    """
    folder = Path(config.images).expanduser()
    control_folder = Path(config.control_images).expanduser() if config.control_images else None
    content = list_images(
        folder, recursive=config.recursive, without=control_folder, check_interrupted=check_interrupted
    )
    names = [found.name for found in content.images]
    controls = (
        find_control_images(control_folder, names, recursive=config.recursive) if control_folder else FoundControls()
    )
    captions, notes = _read_captions(folder, content, check_interrupted)
    images: list[TrainingImage] = []
    left_out = list(content.left_out)
    for count, found in enumerate(content.images, start=1):
        check_interrupted()
        on_progress(count, len(content.images), found.name)
        try:
            image, image_notes = _scan_image(found, config, captions.get(found.path, StoredCaption()))
            image = _attach_controls(image, controls)
        except UnusableImage as error:
            kind = RemarkKind.OTHER_FORMAT if isinstance(error, UnreadFormat) else RemarkKind.UNUSABLE
            left_out.append(Remark(found.name, str(error), kind))
            continue
        images.append(image)
        notes += image_notes
    copies = [] if config.keep_duplicates else _find_copies(images)
    images, left_out = _drop_named(images, copies), left_out + copies
    notes = content.notes + _drop_named(notes, copies) + (content.mask_notes if config.mask_source == "files" else [])
    notes += controls.notes
    if control_folder:
        require_control_images(images, str(control_folder))
    require_usable(len(images), left_out, folder=str(folder), strict=config.strict)
    name = name or folder.resolve().name
    report = DatasetReport(len(images), left_out, notes, summary=summarize_special(name, images, config.num_repeats))
    return Dataset(images, config.num_repeats, " ".join(config.trigger_word.split()), report, name, config.strict)


def _scan_image(found: FoundImage, config: DatasetConfig, stored: StoredCaption) -> tuple[TrainingImage, list[Remark]]:
    """Return the image and the remarks about it. Raises UnusableImage."""
    path = found.path
    if path.suffix.lower() not in EXTENSIONS:
        raise UnreadFormat(f"{path.suffix} files are not read. Convert it to one of {', '.join(EXTENSIONS)}")
    sha256 = image_sha256(path)
    facts = inspect_image(path)
    if stored.error:
        raise UnusableImage(stored.error)
    caption, notes = _find_caption(found, config, stored)
    image = TrainingImage(
        found.name,
        path,
        sha256,
        facts.size_hw,
        caption,
        facts.has_alpha,
        config.alpha_background,
        num_repeats=found.num_repeats,
        loss_weight=config.loss_weight,
        is_regularization=config.is_regularization or found.is_regularization,
        subset=found.repeat_folder,
        is_validation=config.is_validation,
    )
    if config.mask_source == "files" and found.mask is not None:
        return _attach_mask(image, found.mask, notes)
    if config.mask_source == "alpha" and facts.has_alpha:
        alpha = read_alpha(path)
        box = find_subject(alpha, facts.size_hw) if alpha else None
        return replace(image, mask_sha256=sha256, subject_box=box), notes
    return image, notes


def _attach_mask(image: TrainingImage, mask: Path, notes: list[Remark]) -> tuple[TrainingImage, list[Remark]]:
    """Return the image with its mask, and the remarks extended. Raises UnusableImage if the mask is
    unusable: without the mask, training would learn the whole image.
    """
    place = f"{mask.parent.name}/{mask.name}" if mask.parent != image.path.parent else mask.name
    try:
        if mask.suffix.lower() not in EXTENSIONS:
            raise UnusableImage(f"{mask.suffix} files are not read. Convert it to one of {', '.join(EXTENSIONS)}")
        sha256 = image_sha256(mask)
        (height, width), (mask_height, mask_width) = image.size_hw, inspect_image(mask).size_hw
        pixels = read_grey(mask)
    except UnusableImage as error:
        raise UnusableImage(f"its mask {place} cannot be used: {error}") from error
    if not is_same_shape((mask_height, mask_width), image.size_hw):
        reason = (
            f"its mask {place} has a different shape ({mask_width} x {mask_height}, the image {width} x {height}) "
            "and is stretched to fit"
        )
        notes = [*notes, Remark(image.name, reason)]
    if not pixels.getbbox():
        notes = [*notes, Remark(image.name, f"its mask {place} is black all over: nothing of the image is learned")]
    box = find_subject(pixels, image.size_hw)
    return replace(image, mask_path=mask, mask_sha256=sha256, subject_box=box), notes


def _attach_controls(image: TrainingImage, controls: FoundControls) -> TrainingImage:
    """Raises UnusableImage if one is unusable: without it, training would learn another task."""
    found = controls.by_image.get(image.name, [])
    return replace(image, control_images=read_control_images(found, alpha_background=image.alpha_background))


def _find_caption(found: FoundImage, config: DatasetConfig, stored: StoredCaption) -> tuple[str, list[Remark]]:
    """Return the caption and remarks about it. Sources in order: the stored caption, the fallback
    caption, the name of kohya's folder, the trigger word alone.

    Fallback caption and trigger word describe the subject, so kohya's regularization images get
    neither.
    """
    trigger_word = "" if found.is_regularization else " ".join(config.trigger_word.split())
    caption, notes = stored.text, [Remark(found.name, reason) for reason in stored.notes]
    if marks := find_foreign_marks(caption):
        reason = (
            f"its caption has {name_examples(marks)}, which other programs replace. Here it is trained as it is: "
            "replace or remove it"
        )
        notes.append(Remark(found.name, reason))
    if not caption:
        fallback = "" if found.is_regularization else " ".join(config.fallback_caption.split())
        caption = fallback or found.class_tokens
        origin = (
            "the fallback caption" if fallback else f"the folder's {caption!r}" if caption else "the trigger word alone"
        )
        notes += [_note_missing_caption(found.name, origin if caption or trigger_word else "")]
    return add_trigger_word_to_each_line(caption, trigger_word) or trigger_word, notes


def _note_missing_caption(name: str, stand_in: str) -> Remark:
    if not stand_in:
        return Remark(name, NO_CAPTION, RemarkKind.NO_CAPTION)
    return Remark(name, f"no caption file, or an empty one; {stand_in} is used", RemarkKind.STAND_IN_CAPTION)


def _read_captions(
    folder: Path, content: FolderContent, check_interrupted: Callable[[], None]
) -> tuple[dict[Path, StoredCaption], list[Remark]]:
    """Return the stored caption of each image, and remarks on the files. A caption file comes
    before metadata.jsonl, and that before CSV files.
    """
    paths = [image.path for image in content.images]
    nearest_first = sorted({*content.folders, folder}, key=lambda place: (-len(place.parts), place))
    of_all, problems = read_metadata(nearest_first, paths, check_interrupted=check_interrupted)
    captions = {path: StoredCaption(text) for path, text in of_all.items()}
    for path, stored in read_caption_files(paths, check_interrupted=check_interrupted).items():
        if stored.text or stored.error:
            captions[path] = stored
    remarks = problems + note_unused_files(content.files)
    return captions, [Remark(path.relative_to(folder).as_posix(), reason) for path, reason in remarks]


def _find_copies(images: list[TrainingImage]) -> list[Remark]:
    """List the images that repeat the bytes of another, control images included. Of each set, the
    first image with a caption is kept.
    """
    first: dict[tuple[str, ...], TrainingImage] = {}
    for image in sorted(images, key=lambda image: not image.caption):
        first.setdefault(image.content, image)
    return [
        Remark(image.name, f"it is the same file as {first[image.content].name}", RemarkKind.SAME_FILE)
        for image in images
        if first[image.content] is not image
    ]


def _drop_named(named: list[Any], remarks: list[Remark]) -> list[Any]:
    names = {remark.name for remark in remarks}
    return [each for each in named if each.name not in names]
