"""Plans the crops of an epoch: repeats, resolutions, changed copies, and as many regularization
samples as training samples.
"""

from collections import Counter
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..wording import format_size, pluralize
from .augmentation import ColorChange, draw_augmentations
from .bucket_config import BucketConfig
from .bucket_sizes import Size, choose_target, list_bucket_sizes, measure_lost_share
from .crop import Crop, choose_offset, make_crop, move_to_subject, rotate_crop
from .dataset import Dataset
from .image import TrainingImage
from .report import NO_CAPTION, DatasetReport, Remark, RemarkKind, require_usable
from .subject_crop import choose_window

LARGE_LOSS = 0.25  # share of the area; the report names images that lose this much or more


@dataclass(frozen=True)
class TrainingItem:
    """One use of an image in an epoch. `index` counts all items, `repeat` the uses of this image at
    one resolution. `variants` are the same with other crops and colours; epochs take turns.
    """

    index: int
    image: TrainingImage
    repeat: int
    crop: Crop
    colors: ColorChange | None = None
    variants: tuple["TrainingItem", ...] = ()

    def in_epoch(self, epoch: int) -> "TrainingItem":
        """Return the item or its variant, as it is used in this epoch, from 1. Items begin with
        different ones, so every epoch has some of each.
        """
        choices = (self, *self.variants)
        return choices[(self.index + epoch - 1) % len(choices)]

    def describe_pixels(self) -> dict[str, Any]:
        """Everything that decides the cropped pixels, for keys of what is computed from them."""
        image, crop = self.image, self.crop
        return {
            "image": image.sha256,
            "alpha_background": image.alpha_background if image.has_alpha else None,
            "resized_hw": crop.resized_hw,
            "top_left_yx": crop.top_left_yx,
            "target_hw": crop.target_hw,
            # nothing without them: caches of earlier versions serve
            **({"angle": crop.angle} if crop.angle else {}),
            **({"colors": asdict(self.colors)} if self.colors else {}),
        }


@dataclass(frozen=True)
class CropPlan:
    """The crops of an epoch. bucket_counts: samples per epoch by (height, width)."""

    items: list[TrainingItem]
    report: DatasetReport
    bucket_counts: dict[Size, int]

    @property
    def variants(self) -> list[TrainingItem]:
        """The items, and all their variants."""
        return [each for item in self.items for each in (item, *item.variants)]

    @property
    def largest_hw(self) -> Size:
        """The size with the most pixels."""
        return max(self.bucket_counts, key=lambda size: size[0] * size[1])


def plan_crops(dataset: Dataset, config: BucketConfig, *, seed: int) -> CropPlan:
    """Decide the crop of every repeat of every image, at every resolution.

    An image is used num_repeats times (its own times the dataset's) at each resolution that it is
    large enough for. Regularization images are used as often as all training images together at
    that resolution, as in sd-scripts, so their influence does not depend on the size of their
    folder; loss_weight sets it. From a folder with too many, sd-scripts takes the first images; we
    take them evenly. Repeats keep their ratio.

    Raises:
        ValueError: no image has a caption and is large enough, or the dataset is strict and an
            image is left out, or all images are regularization images, or an image to change has
            control images.
    """
    left_out = [Remark(image.name, NO_CAPTION, RemarkKind.NO_CAPTION) for image in dataset.images if not image.caption]
    captioned = [image for image in dataset.images if image.caption]
    targets = {
        resolution: _choose_targets(captioned, config.with_resolution(resolution)) for resolution in config.resolutions
    }
    items: list[TrainingItem] = []
    notes: list[Remark] = []
    for resolution in config.resolutions:
        sized = [(image, target) for image in captioned if (target := targets[resolution][image.name])]
        uses = _count_uses([image for image, _ in sized], dataset.num_repeats)
        at_resolution = config.with_resolution(resolution)
        for (image, target_hw), num_uses in zip(sized, uses, strict=True):
            notes += _note_large_loss(image, target_hw, config)
            for repeat in range(num_uses):
                offset = choose_offset(config.resize_mode, seed, image.sha256, repeat)
                item = TrainingItem(len(items), image, repeat, _crop(image, target_hw, at_resolution, offset))
                items.append(replace(item, variants=_make_variants(item, config, seed)))
    too_small, small_notes = _check_sizes(captioned, targets, config)
    left_out += too_small
    num_kept = len(dataset.images) - len(left_out)
    require_usable(num_kept, left_out, folder=dataset.folder_name, strict=dataset.strict)
    if all(item.image.is_regularization for item in items):
        raise ValueError(f"{dataset.folder_name}: nothing but regularization images. Join a dataset of your subject")
    notes += _note_missing_subjects(captioned, config) + _note_balance(captioned, items, dataset.num_repeats)
    report = _build_report(dataset, items, num_kept, left_out, small_notes + notes)
    return CropPlan(items, report, dict(Counter(item.crop.target_hw for item in items)))


def _choose_targets(images: list[TrainingImage], config: BucketConfig) -> dict[str, Size | None]:
    """By the images' names."""
    buckets = list_bucket_sizes(config)
    windows = {image.name: _choose_window(image, config) for image in images}
    targets = {size: choose_target(size, config, buckets) for size in set(windows.values())}
    return {name: targets[window] for name, window in windows.items()}


def _choose_window(image: TrainingImage, config: BucketConfig) -> Size:
    return choose_window(image.size_hw, image.subject_box, config)


def _crop(image: TrainingImage, target_hw: Size, config: BucketConfig, offset: tuple[float, float]) -> Crop:
    if config.crop_to_subject == "off" or image.subject_box is None:
        return make_crop(image.size_hw, target_hw, offset=offset)
    crop = make_crop(image.size_hw, target_hw, window_hw=_choose_window(image, config))
    return move_to_subject(crop, image.subject_box, offset=offset)


def _make_variants(item: TrainingItem, config: BucketConfig, seed: int) -> tuple[TrainingItem, ...]:
    if config.has_variants and item.image.control_images:
        raise ValueError(
            f"{item.image.name}: color_aug and rotation_aug do not change control images, so the model would learn to "
            "turn and recolour. Set both to 0"
        )
    return tuple(
        replace(item, crop=rotate_crop(item.crop, drawn.angle) if drawn.angle else item.crop, colors=drawn.colors)
        for drawn in draw_augmentations(config, seed=seed, sha256=item.image.sha256)
    )


def _count_uses(images: list[TrainingImage], num_repeats: int) -> list[int]:
    """Count the uses of each image. Regularization images share as many samples as the others have,
    in proportion to their repeats.
    """
    num_training = sum(image.num_repeats for image in images if not image.is_regularization) * num_repeats
    num_regularization = sum(image.num_repeats for image in images if image.is_regularization)
    uses: list[int] = []
    so_far = 0
    for image in images:
        if not image.is_regularization:
            uses.append(image.num_repeats * num_repeats)
            continue
        before, so_far = so_far, so_far + image.num_repeats
        uses.append(so_far * num_training // num_regularization - before * num_training // num_regularization)
    return uses


def _check_sizes(
    images: list[TrainingImage], targets: dict[int, dict[str, Size | None]], config: BucketConfig
) -> tuple[list[Remark], list[Remark]]:
    """List the images that are too small for every resolution, and those too small for some."""
    left_out, notes = [], []
    for image in images:
        too_large = [resolution for resolution in config.resolutions if targets[resolution][image.name] is None]
        if len(too_large) == len(config.resolutions):
            reason = _explain_too_small(image.size_hw, config.with_resolution(min(config.resolutions)))
            left_out.append(Remark(image.name, reason, RemarkKind.TOO_SMALL))
        elif too_large:
            shown = ", ".join(map(str, too_large))
            notes.append(
                Remark(
                    image.name,
                    f"{format_size(image.size_hw)} pixels are too small for resolution {shown}; it is trained only at "
                    "the others",
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
    """Remark on a bucket that cuts off much. A square or the subject is what the user asked for."""
    lost = measure_lost_share(image.size_hw, target_hw)
    if config.resize_mode != "bucket" or is_cut_to_subject(image, config) or lost < LARGE_LOSS:
        return []
    return [
        Remark(
            image.name,
            f"{lost:.0%} of it is cut off: no bucket is close to the shape of {format_size(image.size_hw)}; the "
            f"closest is {format_size(target_hw)}",
        )
    ]


def _note_balance(images: list[TrainingImage], items: list[TrainingItem], num_repeats: int) -> list[Remark]:
    """Say how many regularization images an epoch uses, and how often."""
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
            "images would use them too"
        )
    return [Remark("regularization", text)]


def is_cut_to_subject(image: TrainingImage, config: BucketConfig) -> bool:
    return config.crop_to_subject == "zoom" and image.subject_box is not None


def _note_missing_subjects(images: list[TrainingImage], config: BucketConfig) -> list[Remark]:
    if config.crop_to_subject == "off":
        return []
    reason = f"no mask with white in it, so crop_to_subject {config.crop_to_subject} does not change its crop"
    return [Remark(image.name, reason, RemarkKind.NO_SUBJECT) for image in images if image.subject_box is None]


def _build_report(
    dataset: Dataset, items: list[TrainingItem], num_kept: int, left_out: list[Remark], notes: list[Remark]
) -> DatasetReport:
    scan = dataset.report
    scan_notes = [note for note in scan.notes if note.kind is not RemarkKind.NO_CAPTION]
    num_images = Counter(item.crop.target_hw for item in items if item.repeat == 0)
    return DatasetReport(num_kept, scan.left_out + left_out, scan_notes + notes, dict(num_images), scan.summary)
