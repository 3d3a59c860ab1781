"""A folder of pictures and captions, checked file by file. What lies in the folder stands in
picture_folder.py, how pictures are cropped in buckets.py.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageColor

from ..config import check_ranges, param
from ..wording import pluralize
from .caption_files import read_caption_file, read_metadata
from .caption_variants import caption_lines
from .image_files import (
    EXTENSIONS,
    MAX_PIXELS,
    UnreadFormat,
    UnusablePicture,
    inspect_picture,
    picture_sha256,
    read_alpha,
    read_grey,
    read_rgb,
)
from .image_folder import FolderContent, FoundPicture, Remark, RemarkKind, list_pictures

SMALL_SHAPE_DIFFERENCE = 0.02  # between a mask and its picture: rounding, not another crop
NO_CAPTION = (
    "it has no caption (.txt or .caption). Write one, or set fallback_caption or trigger_word, or connect "
    "Florence2Caption"
)


@dataclass(frozen=True)
class DatasetConfig:
    """Where the pictures are and what their captions become."""

    images: str = param(
        help="Folder of pictures (png, jpg, jpeg, webp, bmp, avif), each with its caption in a .txt or .caption "
        "file of the same name."
    )
    trigger_word: str = param(
        "", "Word that will call what is learned; put before every caption that does not have it yet."
    )
    fallback_caption: str = param("", "Caption of pictures that have no caption file.")
    num_repeats: int = param(1, "How often each picture is used per epoch.", min=1, max=10_000)
    recursive: bool = param(False, "Also take pictures from subfolders.", advanced=True)
    alpha_background: str = param(
        "#ffffff", "Colour behind transparent parts of a picture: a name or #rrggbb.", advanced=True
    )
    keep_duplicates: bool = param(False, "Keep pictures whose files are the same, byte for byte.", advanced=True)
    strict: bool = param(False, "Stop when any picture has to be left out.", advanced=True)
    mask_source: str = param(
        "files",
        "Where masks come from, white where it is to be learned. files: NAME-masklabel.png beside the picture, or "
        "NAME in a folder mask; "
        "alpha: the picture's transparency; off: no masks.",
        choices=("files", "alpha", "off"),
        advanced=True,
    )
    loss_weight: float = param(
        1.0,
        "What these pictures count in the loss, 0 to 10. Usually 1; 0.5 to 1 for regularization.",
        min=0.0,
        max=10.0,
        advanced=True,
    )
    is_regularization: bool = param(
        False,
        "These pictures show what is not to change: the class, such as dogs, without what is learned. As many of "
        "them are used as of the others.",
        advanced=True,
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.images.strip():  # Path("") is the current folder
            raise ValueError("images is empty. Give the folder that holds the pictures")
        try:
            ImageColor.getrgb(self.alpha_background)
        except ValueError:
            raise ValueError(
                f"alpha_background must be a colour such as white or #ffffff, got {self.alpha_background!r}"
            ) from None
        if self.is_regularization and self.trigger_word.strip():
            raise ValueError(
                f"regularization pictures must not have a trigger word, got {self.trigger_word!r}: they show the "
                "class without what is learned. "
                "Empty trigger_word; fallback_caption may name the class, such as: a dog"
            )


@dataclass(frozen=True)
class TrainingImage:
    """One picture and its caption. `name` is its path inside the folder, with forward slashes;
    `size_hw` is that of the upright original.

    `caption` is empty where there is none yet, and has several lines where its file has:
    caption_variants makes them one. `mask_sha256` is empty where there is no mask; the mask is the
    file `mask_path`, or without one the picture's own alpha channel. `trigger_word` None: the
    dataset's. `subset` is what kohya calls so, the folder that it counts with in a dataset of
    several: the joined dataset's name, or kohya's N_name (both: "toys/10_dog"); empty: the
    dataset's own. Files are read again when their pixels are needed. RuntimeError: it is not the
    file any more that was scanned.
    """

    name: str
    path: Path
    sha256: str
    size_hw: tuple[int, int]
    caption: str
    has_alpha: bool
    alpha_background: str = "#ffffff"
    num_repeats: int = 1
    loss_weight: float = 1.0
    is_regularization: bool = False
    mask_path: Path | None = None
    mask_sha256: str = ""
    trigger_word: str | None = None
    subset: str = ""

    def read(self, *, max_pixels: int | None = None) -> Image.Image:
        """RGB, upright, transparent parts over alpha_background. A JPEG of more than `max_pixels`,
        usually 100 million, comes at a fraction of `size_hw`.
        """
        _require_unchanged(self.path, self.sha256)
        return read_rgb(self.path, alpha_background=self.alpha_background, max_pixels=max_pixels)

    def read_thumbnail(self, size: int) -> Image.Image:
        """As `read`, with no side longer than `size`; of a large JPEG only as much is decoded as
        that needs.
        """
        picture = self.read(max_pixels=(4 * size) ** 2)
        picture.thumbnail((size, size), reducing_gap=2.0)
        return picture

    def read_alpha(self) -> Image.Image | None:
        """Mode "L" (255: opaque), upright; None where the file has no transparency."""
        _require_unchanged(self.path, self.sha256)
        return read_alpha(self.path)

    def read_mask(self) -> Image.Image | None:
        """Mode "L" (255: learned), upright, of `size_hw`; None where there is no mask. Beyond 100
        megapixels a mask file keeps its own size.
        """
        if not self.mask_sha256:
            return None
        if self.mask_path is None:
            return self.read_alpha()
        _require_unchanged(self.mask_path, self.mask_sha256)
        mask = read_grey(self.mask_path)
        height, width = self.size_hw
        if mask.size == (width, height) or height * width > MAX_PIXELS:
            return mask
        return mask.resize((width, height), Image.Resampling.BILINEAR)


def _require_unchanged(path: Path, sha256: str) -> None:
    """Caches name what they hold by its hash: pixels of a file that was edited meanwhile would be
    kept under the wrong name.
    """
    try:
        unchanged = picture_sha256(path) == sha256
    except UnusablePicture as error:
        raise RuntimeError(
            f"{path}: {error}; when the folder was scanned it could be read. Put it back, or start again without it"
        ) from error
    if not unchanged:
        raise RuntimeError(f"{path}: the file has changed since the folder was scanned. Start again")


@dataclass(frozen=True)
class DatasetReport:
    """What became of every picture of the folder; buckets are (height, width) with their number of
    pictures.
    """

    num_kept: int
    left_out: list[Remark] = field(default_factory=list)
    notes: list[Remark] = field(default_factory=list)
    buckets: dict[tuple[int, int], int] = field(default_factory=dict)
    # repeats, weights, masks, regularization: a line for each folder that has any
    summary: list[str] = field(default_factory=list)

    def text(self) -> str:
        lines = [f"{pluralize(self.num_kept, 'picture')} kept, {len(self.left_out)} left out"]
        lines += [f"  {line}" for line in self.summary]
        lines += [
            f"  {height} x {width} (height x width): {count}" for (height, width), count in sorted(self.buckets.items())
        ]
        lines += _section("Left out", self.left_out) + _section("Notes", self.notes)
        return "\n".join(lines) + "\n"

    def to_dict(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "buckets": {f"{height}x{width}": count for (height, width), count in self.buckets.items()},
        }


def _section(title: str, remarks: list[Remark]) -> list[str]:
    return [f"{title}:", *(f"  {remark.name}: {remark.reason}" for remark in remarks)] if remarks else []


@dataclass(frozen=True)
class Dataset:
    """The pictures that can be used, and what became of the others. Each is used num_repeats times
    its own num_repeats per epoch.
    """

    images: list[TrainingImage]
    num_repeats: int
    trigger_word: str
    report: DatasetReport
    folder_name: str
    strict: bool = False

    @property
    def num_training_samples(self) -> int:
        """Pictures times their repeats: samples per epoch at one resolution, regularization not
        counted.
        """
        return sum(image.num_repeats for image in self.images if not image.is_regularization) * self.num_repeats

    def trigger_word_of(self, image: TrainingImage) -> str:
        """Regularization pictures have none: they show the class without what is learned."""
        if image.is_regularization:
            return ""
        return self.trigger_word if image.trigger_word is None else image.trigger_word

    def with_captions(self, captions: Sequence[str]) -> "Dataset":
        """The dataset with one caption per picture, in order; the trigger word is put in front
        where it is missing. "" stays "".

        Raises:
            ValueError: there are not as many captions as pictures.
        """
        if len(captions) != len(self.images):
            raise ValueError(
                f"{self.folder_name}: {pluralize(len(self.images), 'picture')}, but "
                f"{pluralize(len(captions), 'caption')}. Give one caption per picture, in "
                "the same order; pictures that the report leaves out have none"
            )
        images = [
            replace(image, caption=_finished(text, self.trigger_word_of(image)))
            for image, text in zip(self.images, captions, strict=True)
        ]
        changed = {new.name for old, new in zip(self.images, images, strict=True) if old.caption != new.caption}
        notes = [
            note for note in self.report.notes if not (note.name in changed and note.kind.is_about_missing_caption)
        ]
        return replace(self, images=images, report=replace(self.report, notes=notes))


def join_datasets(datasets: Sequence[Dataset]) -> Dataset:
    """One dataset of several, each picture with its own repeats, weight and trigger word; its name
    gets the folder's name in front.

    Raises:
        ValueError: there is none.
    """
    if not datasets:
        raise ValueError("no dataset to join. Connect at least one")
    if len(datasets) == 1:
        return datasets[0]
    named = list(zip(_distinct_names([dataset.folder_name for dataset in datasets]), datasets, strict=True))
    images = [_joined_image(image, name, dataset) for name, dataset in named for image in dataset.images]
    left_out = [
        replace(remark, name=f"{name}/{remark.name}") for name, dataset in named for remark in dataset.report.left_out
    ]
    notes = [
        replace(remark, name=f"{name}/{remark.name}") for name, dataset in named for remark in dataset.report.notes
    ]
    summary = [
        line
        for name, dataset in named
        for line in dataset.report.summary or [_described(name, dataset.images, dataset.num_repeats)]
    ]
    report = DatasetReport(len(images), left_out, notes + _found_again(images), summary=summary)
    trigger_words = dict.fromkeys(word for image in images if (word := image.trigger_word))
    return Dataset(
        images,
        1,
        ", ".join(trigger_words),
        report,
        " + ".join(name for name, _ in named),
        any(dataset.strict for dataset in datasets),
    )


def scan_folder(
    config: DatasetConfig,
    *,
    name: str = "",
    check_interrupted: Callable[[], None] = lambda: None,
    on_progress: Callable[[int, int, str], None] = lambda *_: None,
) -> Dataset:
    """Look at every picture of the folder, in the order of their names; nothing is written.

    Left out and named in the report, never replaced by another: empty, damaged, animated or huge
    files, pictures with such a mask, files of other picture formats, and copies of another picture.
    With `strict` that is an error. Pictures without any caption stay, for a captioner to come;
    plan_crops leaves them out. Hidden files and folders are passed over. `name` is what the user
    calls the folder, where that is not its own name.

    Raises:
        FileNotFoundError, NotADirectoryError, ValueError: there is no such folder, or no picture in
            it that can be used.
    """
    folder = Path(config.images).expanduser()
    content = list_pictures(folder, recursive=config.recursive)
    captions, notes = _metadata_captions(folder, content)
    images: list[TrainingImage] = []
    left_out: list[Remark] = []
    for count, found in enumerate(content.pictures, start=1):
        check_interrupted()
        on_progress(count, len(content.pictures), found.name)
        try:
            image, own_notes = _look_at(found, config, captions.get(found.path, ""))
        except UnusablePicture as error:
            kind = RemarkKind.OTHER_FORMAT if isinstance(error, UnreadFormat) else RemarkKind.UNUSABLE
            left_out.append(Remark(found.name, str(error), kind))
            continue
        images.append(image)
        notes += own_notes
    copies = [] if config.keep_duplicates else _copies(images)
    images, left_out = _without(images, copies), left_out + copies
    notes = content.notes + _without(notes, copies) + (content.mask_notes if config.mask_source == "files" else [])
    require_usable(len(images), left_out, folder=str(folder), strict=config.strict)
    name = name or folder.resolve().name
    report = DatasetReport(len(images), left_out, notes, summary=_summary(name, images, config.num_repeats))
    return Dataset(images, config.num_repeats, " ".join(config.trigger_word.split()), report, name, config.strict)


def require_usable(num_kept: int, left_out: list[Remark], *, folder: str, strict: bool) -> None:
    """Raise ValueError when nothing is left to train on, or when `strict` and something was left
    out.
    """
    if num_kept and not (strict and left_out):
        return
    shown = "; ".join(f"{remark.name}: {remark.reason}" for remark in left_out[:10])
    more = f"; and {len(left_out) - 10} more" if len(left_out) > 10 else ""
    if num_kept:
        raise ValueError(
            f"{folder}: strict is on and {pluralize(len(left_out), 'picture')} cannot be used: {shown}{more}"
        )
    raise ValueError(f"{folder}: no usable picture among {len(left_out)}: {shown}{more}")


def with_trigger_word(caption: str, trigger_word: str) -> str:
    """The trigger word in front, once: a caption that has it anywhere as a whole word stays as it
    is.
    """
    if not trigger_word or re.search(rf"(?<!\w){re.escape(trigger_word)}(?!\w)", caption, re.IGNORECASE):
        return caption
    return f"{trigger_word}, {caption}" if caption else trigger_word


def _look_at(found: FoundPicture, config: DatasetConfig, metadata_caption: str) -> tuple[TrainingImage, list[Remark]]:
    """The picture and what is to be noted about it. Raises UnusablePicture."""
    path = found.path
    if path.suffix.lower() not in EXTENSIONS:
        raise UnreadFormat(f"{path.suffix} files are not read. Convert it to one of {', '.join(EXTENSIONS)}")
    sha256 = picture_sha256(path)
    facts = inspect_picture(path)
    caption, notes = _caption_of(found, config, metadata_caption)
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
        is_regularization=config.is_regularization,
        subset=found.repeat_folder,
    )
    if config.mask_source == "files" and found.mask is not None:
        return _with_mask_file(image, found.mask, notes)
    if config.mask_source == "alpha" and facts.has_alpha:
        return replace(image, mask_sha256=sha256), notes
    return image, notes


def _with_mask_file(image: TrainingImage, mask: Path, notes: list[Remark]) -> tuple[TrainingImage, list[Remark]]:
    """A picture whose mask cannot be read is not used: without it, all of the picture would be
    learned.
    """
    place = f"{mask.parent.name}/{mask.name}" if mask.parent != image.path.parent else mask.name
    try:
        if mask.suffix.lower() not in EXTENSIONS:
            raise UnusablePicture(f"{mask.suffix} files are not read. Convert it to one of {', '.join(EXTENSIONS)}")
        sha256 = picture_sha256(mask)
        (height, width), (mask_height, mask_width) = image.size_hw, inspect_picture(mask).size_hw
        is_black = not read_grey(mask).getbbox()
    except UnusablePicture as error:
        raise UnusablePicture(f"its mask {place} cannot be used: {error}") from error
    if (
        abs(mask_width * height - mask_height * width)
        > max(mask_width * height, mask_height * width) * SMALL_SHAPE_DIFFERENCE
    ):
        reason = (
            f"its mask {place} has another shape ({mask_width} x {mask_height}, the picture {width} x {height}) and "
            "is stretched to it"
        )
        notes = [*notes, Remark(image.name, reason)]
    if is_black:
        notes = [*notes, Remark(image.name, f"its mask {place} is black all over: nothing of the picture is learned")]
    return replace(image, mask_path=mask, mask_sha256=sha256), notes


def _caption_of(found: FoundPicture, config: DatasetConfig, metadata_caption: str) -> tuple[str, list[Remark]]:
    """From the caption file, else metadata.jsonl, else the fallback caption, else the name of
    kohya's folder, else the trigger word alone; and notes.
    """
    trigger_word = " ".join(config.trigger_word.split())
    caption, reasons = read_caption_file(found.path)
    notes = [Remark(found.name, reason) for reason in reasons]
    caption = caption or metadata_caption
    if not caption:
        fallback = " ".join(config.fallback_caption.split())
        caption = fallback or found.class_tokens
        origin = (
            "the fallback caption" if fallback else f"the folder's {caption!r}" if caption else "the trigger word alone"
        )
        notes = [_note_of_missing_caption(found.name, origin if caption or trigger_word else "")]
    return _finished(caption, trigger_word) or trigger_word, notes


def _finished(caption: str, trigger_word: str) -> str:
    """The trigger word in front of each line; "" stays ""."""
    return "\n".join(with_trigger_word(line, trigger_word) for line in caption_lines(caption))


def _note_of_missing_caption(name: str, stand_in: str) -> Remark:
    if not stand_in:
        return Remark(name, NO_CAPTION, RemarkKind.NO_CAPTION)
    return Remark(name, f"no caption file, or an empty one; {stand_in} is used", RemarkKind.STAND_IN_CAPTION)


def _metadata_captions(folder: Path, content: FolderContent) -> tuple[dict[Path, str], list[Remark]]:
    nearest_first = sorted({*content.folders, folder}, key=lambda place: (-len(place.parts), place))
    captions, problems = read_metadata(nearest_first)
    return captions, [Remark(path.relative_to(folder).as_posix(), problem) for path, problem in problems]


def _copies(images: list[TrainingImage]) -> list[Remark]:
    """All pictures of the same bytes but one: the first that has a caption."""
    first: dict[str, TrainingImage] = {}
    for image in sorted(images, key=lambda image: not image.caption):
        first.setdefault(image.sha256, image)
    return [
        Remark(image.name, f"it is the same file as {first[image.sha256].name}", RemarkKind.SAME_FILE)
        for image in images
        if first[image.sha256] is not image
    ]


def _without(named: list[Any], remarks: list[Remark]) -> list[Any]:
    names = {remark.name for remark in remarks}
    return [each for each in named if each.name not in names]


def _summary(folder_name: str, images: list[TrainingImage], num_repeats: int) -> list[str]:
    """Nothing where every image is used once, whole, and counts as much as the others."""
    is_special = any(image.is_regularization for image in images) or _list_special_features(images, num_repeats)
    return [_described(folder_name, images, num_repeats)] if is_special else []


def _described(folder_name: str, images: list[TrainingImage], num_repeats: int) -> str:
    """One line: number, repeats, weight, masks of these images."""
    noun = "regularization picture" if any(image.is_regularization for image in images) else "picture"
    parts = [pluralize(len(images), noun), *_list_special_features(images, num_repeats)]
    return f"{folder_name}: {', '.join(parts)}"


def _list_special_features(images: list[TrainingImage], num_repeats: int) -> list[str]:
    num_masks = sum(bool(image.mask_sha256) for image in images)
    repeats = _range(image.num_repeats * num_repeats for image in images)
    weights = _range(image.loss_weight for image in images)
    parts = [f"{repeats} repeats each"] if repeats != "1" else []
    parts += [f"loss weight {weights}"] if weights != "1" else []
    parts += [f"{num_masks} with a mask"] if num_masks else []
    return parts


def _range(values: Iterable[float]) -> str:
    ordered = sorted(set(values))
    return f"{ordered[0]:g}" if len(ordered) == 1 else f"{ordered[0]:g} to {ordered[-1]:g}"


def _distinct_names(names: list[str]) -> list[str]:
    """The second "toys" is "toys (2)"."""
    distinct: list[str] = []
    for name in names:
        number, candidate = 1, name
        while candidate in distinct:
            number += 1
            candidate = f"{name} ({number})"
        distinct.append(candidate)
    return distinct


def _joined_image(image: TrainingImage, folder_name: str, dataset: Dataset) -> TrainingImage:
    return replace(
        image,
        name=f"{folder_name}/{image.name}",
        num_repeats=image.num_repeats * dataset.num_repeats,
        trigger_word=dataset.trigger_word_of(image),
        subset=f"{folder_name}/{image.subset}" if image.subset else folder_name,
    )


def _found_again(images: list[TrainingImage]) -> list[Remark]:
    """The same picture in two datasets may be meant, and is used in both."""
    first: dict[str, TrainingImage] = {}
    again = [(image, first[image.sha256]) for image in images if first.setdefault(image.sha256, image) is not image]
    return [Remark(image.name, f"it is the same file as {other.name}; both are used") for image, other in again]
