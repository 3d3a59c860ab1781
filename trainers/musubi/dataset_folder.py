"""A dataset as files for Musubi Tuner: numbered images and captions in the run's folder, and cache
folders named by a hash of their content.

The images are numbered because Musubi names its caches by an image's stem: a.png and a.jpg would
share one, and so would the a.png of two folders.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..dataset.caption_marks import has_alternatives
from ..dataset.caption_variants import flatten_caption
from ..dataset.control_images import FAMILIES_WITH, match_names
from ..dataset.dataset import Dataset
from ..dataset.image import TrainingImage, require_unchanged
from ..dataset.image_files import MAX_PIXELS
from ..dataset.image_guards import has_large_description
from ..dataset.report import NO_CAPTION, Remark, format_remarks, require_usable
from ..files.atomic_write import atomic_write
from ..wording import name_examples, pluralize
from .config import MusubiConfig, Recipe
from .dataset_toml import Table, format_path, write_toml

CAPTION_EXTENSION = ".txt"
_COMPLETE = "complete.json"
# Formats that Musubi reads as we do. It ignores EXIF orientation and transparency, and truncates
# 16-bit images.
_LINKABLE_FORMATS = {"PNG": ".png", "JPEG": ".jpg", "MPO": ".jpg", "WEBP": ".webp", "BMP": ".bmp"}
_ORIENTATION_TAG = 0x0112


@dataclass(frozen=True)
class StagedFile:
    """An image and its name in the run's folder. It is a link, or a new file if Musubi would read
    the original differently.
    """

    image: TrainingImage
    name: str
    is_link: bool


@dataclass(frozen=True)
class StagedImage:
    file: StagedFile
    caption: str
    controls: tuple[StagedFile, ...] = ()


@dataclass(frozen=True)
class StagedGroup:
    """The images with the same number of repeats. They share a folder, since Musubi sets repeats by
    folder.
    """

    folder: Path
    num_repeats: int
    images: tuple[StagedImage, ...]

    @property
    def control_folder(self) -> Path | None:
        return (
            self.folder.with_name(f"{self.folder.name}-control")
            if any(image.controls for image in self.images)
            else None
        )


@dataclass(frozen=True)
class CacheFolder:
    """The cache folder of one [[datasets]], and how many images it must hold; 0: unknown
    (videos).
    """

    path: Path
    num_images: int


@dataclass(frozen=True)
class StagedDataset:
    """The files to write, planned but not yet written. A user's own dataset.toml has no groups: its
    images stay where they are.

    `cache_root` is the folder of exactly this dataset, these settings and these model files.
    `caches` are inside it, unless a user's own dataset.toml sets other folders.
    """

    groups: tuple[StagedGroup, ...]
    caches: tuple[CacheFolder, ...]
    cache_root: Path
    toml_text: str
    num_images: int
    num_items: int
    notices: tuple[str, ...] = ()

    @property
    def has_control(self) -> bool:
        return any(group.control_folder for group in self.groups)

    def write(self, *, check_interrupted: Callable[[], None] = lambda: None) -> None:
        """Link or copy the images and write their captions.

        Raises:
            RuntimeError: an image has changed since it was checked.
        """
        for group in self.groups:
            group.folder.mkdir(parents=True, exist_ok=True)
            for image in group.images:
                check_interrupted()
                _write_image(image.file, group.folder)
                caption_file = (group.folder / image.file.name).with_suffix(CAPTION_EXTENSION)
                caption_file.write_text(image.caption, encoding="utf-8")
                for control in image.controls:
                    assert group.control_folder is not None
                    group.control_folder.mkdir(exist_ok=True)
                    _write_image(control, group.control_folder)

    def caches_are_complete(self) -> bool:
        """Return whether both caches were finished for exactly this dataset and are still whole."""
        try:
            marked = json.loads((self.cache_root / _COMPLETE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return bool(self.caches) and marked == self._expected_counts() == [
            list(_count_caches(cache.path)) for cache in self.caches
        ]

    def confirm_caches(self) -> None:
        """Count what both cache scripts wrote. Mark complete caches, so that later runs of the same
        dataset use them.

        Raises:
            RuntimeError: there are too few or too many images. Musubi skips images without an
                error.
        """
        for cache in self.caches:
            latents, texts = _count_caches(cache.path)
            if cache.num_images and (latents, texts) != (cache.num_images, cache.num_images):
                raise RuntimeError(
                    f"{cache.path}: Musubi Tuner cached {latents} latents and {texts} captions of "
                    f"{pluralize(cache.num_images, 'image')}. "
                    "Its log says which are missing. Delete this folder and start again"
                )
        if all(cache.num_images for cache in self.caches):
            with atomic_write(self.cache_root / _COMPLETE, overwrite=True) as temporary:
                temporary.write_text(json.dumps(self._expected_counts()), encoding="utf-8")

    def _expected_counts(self) -> list[list[int]]:
        return [[cache.num_images, cache.num_images] for cache in self.caches]


def _count_caches(folder: Path) -> tuple[int, int]:
    """Return the numbers of cached latents and of cached text encoder outputs."""
    names = [path.name for path in folder.glob("*.safetensors")] if folder.is_dir() else []
    num_texts = sum(name.endswith("_te.safetensors") for name in names)
    return len(names) - num_texts, num_texts


def _write_image(file: StagedFile, folder: Path) -> None:
    target = folder / file.name
    target.unlink(missing_ok=True)
    if not file.is_link:
        file.image.read().save(target, format="PNG", compress_level=1)
        return
    require_unchanged(file.image.path, file.image.sha256)
    try:
        os.link(file.image.path, target)
    except OSError:  # another drive, or a file system without hard links
        shutil.copyfile(file.image.path, target)


def stage(
    dataset: Dataset,
    control: Dataset | None,
    folder: Path,
    *,
    recipe: Recipe,
    cache_root: Path,
    cache_facts: Mapping[str, Any],
) -> StagedDataset:
    """Plan names, captions, control images and caches, without writing anything.

    `cache_facts` is everything besides the dataset that decides what the caches hold. The hash of
    both names the cache folder.

    Raises:
        ValueError: no image has a caption, or an image has no control image or too many.
    """
    config = recipe.config
    images, captions, notices = _select_usable(dataset, recipe)
    controls = _find_controls(images, control, recipe)
    staged = [
        _stage_image(image, f"{number:04}", captions[image.name], controls[image.name])
        for number, image in enumerate(images, start=1)
    ]
    groups = _group_by_repeats(staged, dataset.num_repeats, folder)
    cache = cache_root / _hash_dataset(groups, config, cache_facts)
    tables, caches = _build_tables(groups, config, cache)
    return StagedDataset(
        groups,
        caches,
        cache,
        write_toml(_build_general_table(config), tables),
        num_images=len(images) * len(config.resolutions),
        num_items=sum(group.num_repeats * len(group.images) for group in groups) * len(config.resolutions),
        notices=(
            *notices,
            *_describe_alternatives(captions),
            *_describe_ignored(images),
            *_describe_unused_controls(control, controls),
        ),
    )


def _select_usable(dataset: Dataset, recipe: Recipe) -> tuple[list[TrainingImage], dict[str, str], list[str]]:
    """Return the images that have a caption and are large enough, the captions by name, and a
    notice for each other image.
    """
    learned = [image for image in dataset.images if not image.is_validation]
    captions = {image.name: _choose_caption(image, dataset, recipe.config) for image in learned}
    reasons = {image.name: _find_reason_to_skip(image, captions[image.name], recipe) for image in learned}
    left_out = [Remark(name, reason) for name, reason in reasons.items() if reason]
    images = [image for image in learned if not reasons[image.name]]
    require_usable(len(images), left_out, folder=dataset.folder_name, strict=dataset.strict)
    return images, captions, [f"left out: {line}" for line in format_remarks(left_out)]


def _choose_caption(image: TrainingImage, dataset: Dataset, config: MusubiConfig) -> str:
    is_trigger = config.caption_source == "trigger_word"
    return dataset.get_trigger_word(image) if is_trigger else flatten_caption(image.caption)


def _find_reason_to_skip(image: TrainingImage, caption: str, recipe: Recipe) -> str:
    step = recipe.architecture.resolution_step
    if recipe.config.bucket_no_upscale and min(image.size_hw) < step:  # Musubi would scale it to nothing
        return (
            f"its sides must be at least {step} pixels, got {image.size_hw[1]} x {image.size_hw[0]}. Use a "
            "larger image, or turn off bucket_no_upscale"
        )
    if caption:
        return ""
    if recipe.config.caption_source == "trigger_word":
        return (
            "caption_source is trigger_word, but it has no trigger word. Set trigger_word, or set caption_source "
            "to captions"
        )
    return NO_CAPTION


def _group_by_repeats(images: list[StagedImage], dataset_repeats: int, folder: Path) -> tuple[StagedGroup, ...]:
    by_repeats: dict[int, list[StagedImage]] = {}
    for image in images:
        by_repeats.setdefault(image.file.image.num_repeats * dataset_repeats, []).append(image)
    return tuple(
        StagedGroup(folder / f"{index}-repeats-{repeats}", repeats, tuple(by_repeats[repeats]))
        for index, repeats in enumerate(sorted(by_repeats), start=1)
    )


def _describe_ignored(images: Sequence[TrainingImage]) -> list[str]:
    """Return a notice for each feature of these images that Musubi Tuner does not have."""
    features = {
        "masks": sum(bool(image.mask_sha256) for image in images),
        "loss_weight": sum(image.loss_weight != 1 for image in images),
        "is_regularization": sum(image.is_regularization for image in images),
    }
    remarks = {
        "masks": "the whole image is learned",
        "loss_weight": "all images count the same",
        "is_regularization": "they are learned like all others, with their own repeats",
    }
    return [
        f"Musubi Tuner has no {name} ({pluralize(number, 'image')}): {remarks[name]}"
        for name, number in features.items()
        if number
    ]


def _stage_image(image: TrainingImage, stem: str, caption: str, controls: list[TrainingImage]) -> StagedImage:
    staged_controls = tuple(_stage_file(control, f"{stem}_{number}") for number, control in enumerate(controls))
    return StagedImage(_stage_file(image, stem), caption, staged_controls)


def _stage_file(image: TrainingImage, stem: str) -> StagedFile:
    suffix = _find_link_suffix(image)
    return StagedFile(image, stem + (suffix or ".png"), is_link=bool(suffix))


def _find_link_suffix(image: TrainingImage) -> str:
    """Return the suffix of the file's real format; "" if it must be written as a new file."""
    if image.has_alpha or image.size_hw[0] * image.size_hw[1] > MAX_PIXELS:
        return ""
    require_unchanged(image.path, image.sha256)
    if has_large_description(image.path):
        return ""
    with Image.open(image.path) as opened:
        is_plain = opened.mode in ("RGB", "L") and opened.getexif().get(_ORIENTATION_TAG, 1) == 1
        return _LINKABLE_FORMATS.get(opened.format or "", "") if is_plain else ""


def _find_controls(
    images: list[TrainingImage], control: Dataset | None, recipe: Recipe
) -> dict[str, list[TrainingImage]]:
    """Return the control images of each image: its own, or those of the second dataset.

    Raises:
        ValueError: the architecture takes none or needs some, both kinds are given, or an image has
            none or too many.
    """
    architecture, found = recipe.architecture, {image.name: list(image.control_images) for image in images}
    if control is None and not any(found.values()):
        if architecture.control_images == "required":
            raise ValueError(
                f"{architecture.title} needs control images: set control_images of the dataset to their folder, or "
                "connect a second dataset whose images have the same names as the first"
            )
        return found
    if architecture.control_images == "none":
        raise ValueError(f"{architecture.title} takes no control images. Leave them out, or choose {FAMILIES_WITH}")
    if control is not None:
        found = _match_controls(found, control)
    _require_counts(found, control, recipe)
    return found


def _match_controls(own: Mapping[str, list[TrainingImage]], control: Dataset) -> dict[str, list[TrainingImage]]:
    if any(own.values()):
        raise ValueError(
            "control is connected, and the images have control images of their own. Disconnect control, or leave "
            "control_images of the dataset empty"
        )
    by_name = {image.name: image for image in control.images}
    return {name: [by_name[each] for each in found] for name, found in match_names(own, by_name).items()}


def _describe_alternatives(captions: Mapping[str, str]) -> list[str]:
    found = [name for name, caption in captions.items() if has_alternatives(caption)]
    return (
        [f"{name_examples(found)}: {{a|b}} in a caption is trained as it is: Musubi Tuner chooses none"]
        if found
        else []
    )


def _describe_unused_controls(control: Dataset | None, controls: Mapping[str, list[TrainingImage]]) -> list[str]:
    """Return a notice if control images belong to no image that is trained."""
    used = {image.name for images in controls.values() for image in images}
    unused = [image.name for image in (control.images if control else []) if image.name not in used]
    if not unused:
        return []
    shown = name_examples(unused, 5)
    return [f"{pluralize(len(unused), 'control image')} of no image that is trained, not used: {shown}"]


def _require_counts(found: dict[str, list[TrainingImage]], control: Dataset | None, recipe: Recipe) -> None:
    limit = recipe.architecture.find_control_limit(recipe.options)
    without = [name for name, images in found.items() if not images]
    if without:
        raise ValueError(
            f"{control.folder_name if control else 'control_images'}: no control image for "
            f"{pluralize(len(without), 'image')}: {name_examples(without, 5)}. Give each control image the name of "
            "its image. Of identical control images in a second dataset only one is kept, unless keep_duplicates is on"
        )
    too_many = [name for name, images in found.items() if limit and len(images) > limit]
    if too_many:
        raise ValueError(
            f"{too_many[0]} has {len(found[too_many[0]])} control images, but {recipe.architecture.title} takes "
            f"{limit} per image here. Remove the others"
        )


def _build_general_table(config: MusubiConfig) -> Table:
    return {
        "caption_extension": CAPTION_EXTENSION,
        "batch_size": config.train_batch_size,
        "enable_bucket": True,
        "bucket_no_upscale": config.bucket_no_upscale,
    }


def _build_tables(
    groups: tuple[StagedGroup, ...], config: MusubiConfig, cache: Path
) -> tuple[list[Table], tuple[CacheFolder, ...]]:
    """Return a [[datasets]] table and a cache folder for each group at each resolution."""
    tables: list[Table] = []
    caches: list[CacheFolder] = []
    for resolution in config.resolutions:
        for index, group in enumerate(groups, start=1):
            caches.append(CacheFolder(cache / f"{resolution}-{index}", len(group.images)))
            control = {"control_directory": format_path(group.control_folder)} if group.control_folder else {}
            tables.append(
                {
                    "image_directory": format_path(group.folder),
                    **control,
                    "cache_directory": format_path(caches[-1].path),
                    "resolution": [resolution, resolution],
                    "num_repeats": group.num_repeats,
                }
            )
    return tables, tuple(caches)


def _hash_dataset(groups: tuple[StagedGroup, ...], config: MusubiConfig, cache_facts: Mapping[str, Any]) -> str:
    """Hash everything that decides what the caches hold. Repeats and batch sizes do not."""
    images = [
        [
            [file.name, file.image.sha256, file.image.alpha_background if file.image.has_alpha else ""]
            for file in (image.file, *image.controls)
        ]
        + [image.caption]
        for group in groups
        for image in group.images
    ]
    group_sizes = [len(group.images) for group in groups]
    return hash_facts(
        images=images,
        groups=group_sizes,
        resolutions=config.resolutions,
        no_upscale=config.bucket_no_upscale,
        **cache_facts,
    )


def hash_facts(**facts: Any) -> str:
    """Return a folder name: the hash of all JSON values that decide what the folder holds."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
