"""Which crops of which images an epoch has: repeats, resolutions, and as many regularization images
as others.
"""

from collections import Counter
from dataclasses import dataclass

from ..wording import format_size, pluralize
from .bucket_config import BucketConfig
from .bucket_sizes import Size, choose_target, list_bucket_sizes, measure_lost_share
from .crop import Crop, choose_offset, make_crop
from .dataset import Dataset
from .image import TrainingImage
from .report import NO_CAPTION, DatasetReport, Remark, RemarkKind, require_usable

LARGE_LOSS = 0.25  # from here on the report says so


@dataclass(frozen=True)
class TrainingItem:
    """One use of an image per epoch: `index` counts them all, `repeat` those of this image at
    one resolution.
    """

    index: int
    image: TrainingImage
    repeat: int
    crop: Crop


@dataclass(frozen=True)
class CropPlan:
    items: list[TrainingItem]
    report: DatasetReport
    bucket_counts: dict[Size, int]


def plan_crops(dataset: Dataset, config: BucketConfig, *, seed: int) -> CropPlan:
    """Decide the crop of every repeat of every image, at every resolution.

    An image is used num_repeats times (its own times the dataset's) at each resolution that it is
    large enough for. Of regularization images as many samples are used as there are training
    samples at that resolution, as sd-scripts does, so that the size of their folder does not decide
    how strongly they hold the model back; what they weigh is loss_weight's business. Where
    sd-scripts takes the first images of a folder that is too large, these are taken evenly;
    repeats keep their ratio.

    Raises:
        ValueError: no image has a caption and is large enough, or one is not and the dataset is
            strict, or there is nothing but regularization images.
    """
    left_out = [Remark(image.name, NO_CAPTION, RemarkKind.NO_CAPTION) for image in dataset.images if not image.caption]
    captioned = [image for image in dataset.images if image.caption]
    items: list[TrainingItem] = []
    notes: list[Remark] = []
    targets: dict[int, dict[Size, Size | None]] = {}
    for resolution in config.resolutions:
        at_resolution = config.at(resolution)
        targets[resolution] = _choose_targets(captioned, at_resolution)
        usable = [image for image in captioned if targets[resolution][image.size_hw]]
        for image, num_uses in _count_uses(usable, dataset.num_repeats):
            target_hw = targets[resolution][image.size_hw]
            assert target_hw is not None
            notes += _note_large_loss(image, target_hw, at_resolution)
            for repeat in range(num_uses):
                crop = make_crop(
                    image.size_hw, target_hw, offset=choose_offset(config.resize_mode, seed, image.sha256, repeat)
                )
                items.append(TrainingItem(len(items), image, repeat, crop))
    too_small, small_notes = _check_sizes(captioned, targets, config)
    left_out += too_small
    num_kept = len(dataset.images) - len(left_out)
    require_usable(num_kept, left_out, folder=dataset.folder_name, strict=dataset.strict)
    if all(item.image.is_regularization for item in items):
        raise ValueError(
            f"{dataset.folder_name}: nothing but regularization images. Join a dataset of what is to be learned"
        )
    report = _build_report(
        dataset, items, num_kept, left_out, small_notes + notes + _note_balance(captioned, items, dataset.num_repeats)
    )
    return CropPlan(items, report, dict(Counter(item.crop.target_hw for item in items)))


def _choose_targets(images: list[TrainingImage], config: BucketConfig) -> dict[Size, Size | None]:
    buckets = list_bucket_sizes(config)
    return {size: choose_target(size, config, buckets) for size in {image.size_hw for image in images}}


def _count_uses(images: list[TrainingImage], num_repeats: int) -> list[tuple[TrainingImage, int]]:
    """How often each image is used. Regularization images share as many samples as the others
    have, in the ratio of their repeats.
    """
    num_training = sum(image.num_repeats for image in images if not image.is_regularization) * num_repeats
    num_regularization = sum(image.num_repeats for image in images if image.is_regularization)
    uses: list[tuple[TrainingImage, int]] = []
    so_far = 0
    for image in images:
        if not image.is_regularization:
            uses.append((image, image.num_repeats * num_repeats))
            continue
        before, so_far = so_far, so_far + image.num_repeats
        uses.append((image, so_far * num_training // num_regularization - before * num_training // num_regularization))
    return uses


def _check_sizes(
    images: list[TrainingImage], targets: dict[int, dict[Size, Size | None]], config: BucketConfig
) -> tuple[list[Remark], list[Remark]]:
    """Images that are too small for every resolution, and those that are for some."""
    left_out, notes = [], []
    for image in images:
        too_large = [resolution for resolution in config.resolutions if targets[resolution][image.size_hw] is None]
        if len(too_large) == len(config.resolutions):
            reason = _explain_too_small(image.size_hw, config.at(min(config.resolutions)))
            left_out.append(Remark(image.name, reason, RemarkKind.TOO_SMALL))
        elif too_large:
            shown = ", ".join(map(str, too_large))
            notes.append(
                Remark(
                    image.name,
                    f"{format_size(image.size_hw)} pixels are too small for resolution {shown}; it is trained at the "
                    "others only",
                )
            )
    return left_out, notes


def _explain_too_small(size_hw: Size, config: BucketConfig) -> str:
    required = config.shortest_side if config.resize_mode == "bucket" else config.resolution
    return (
        f"{format_size(size_hw)} pixels are too small, both sides must have {required} or more. Use a larger "
        "image, or turn off bucket_no_upscale"
    )


def _note_large_loss(image: TrainingImage, target_hw: Size, config: BucketConfig) -> list[Remark]:
    """A square crop was asked for; that a bucket cuts off much is a surprise."""
    lost = measure_lost_share(image.size_hw, target_hw)
    if config.resize_mode != "bucket" or lost < LARGE_LOSS:
        return []
    return [
        Remark(
            image.name,
            f"{lost:.0%} of it is cut off: no bucket is near the shape of {format_size(image.size_hw)}, "
            f"{format_size(target_hw)} is nearest",
        )
    ]


def _note_balance(images: list[TrainingImage], items: list[TrainingItem], num_repeats: int) -> list[Remark]:
    """How regularization images came to be as many as the others."""
    regularization = [image for image in images if image.is_regularization]
    if not regularization:
        return []
    num_samples = sum(item.image.is_regularization for item in items)
    num_used = len({item.image.name for item in items if item.image.is_regularization})
    text = (
        f"{pluralize(num_used, 'image')} make {pluralize(num_samples, 'sample')} per epoch, as many as the "
        "training images"
    )
    if num_used < len(regularization):
        text += (
            f"; the other {len(regularization) - num_used} are not needed. More repeats of the training "
            "images would use them"
        )
    return [Remark("regularization", text)]


def _build_report(
    dataset: Dataset, items: list[TrainingItem], num_kept: int, left_out: list[Remark], notes: list[Remark]
) -> DatasetReport:
    scan = dataset.report
    scan_notes = [note for note in scan.notes if note.kind is not RemarkKind.NO_CAPTION]
    num_images = Counter(item.crop.target_hw for item in items if item.repeat == 0)
    return DatasetReport(num_kept, scan.left_out + left_out, scan_notes + notes, dict(num_images), scan.summary)
