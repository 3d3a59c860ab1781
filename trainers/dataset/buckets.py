"""How pictures are cropped and batched: aspect-ratio buckets, square crops, repeats, the order of
an epoch. Sizes are (height, width) in pixels.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from ..config import check_ranges, param
from ..files.atomic_write import atomic_write
from ..wording import pluralize
from .dataset import NO_CAPTION, Dataset, DatasetReport, TrainingImage, require_usable
from .image_folder import Remark, RemarkKind

Size = tuple[int, int]

SMALL_LOSS = 0.04  # share of a picture's area; the buckets cost ordinary photos as much (4032 x 3024: 3.6 %)
LARGE_LOSS = 0.25  # from here on the report says so


@dataclass(frozen=True)
class BucketConfig:
    """What sizes the pictures are trained at."""

    resolution: int = param(
        1024,
        "Pictures are trained at about resolution x resolution pixels; 1024 for SDXL. A multiple of 64.",
        min=64,
        max=4096,
    )
    resize_mode: str = param(
        "bucket",
        "bucket keeps each picture's shape as well as possible; center_crop and random_crop cut squares, "
        "random_crop elsewhere in every repeat.",
        choices=("bucket", "center_crop", "random_crop"),
    )
    random_flip: bool = param(
        False, "Mirror pictures at random, left and right. Not for faces, text or anything with sides."
    )
    bucket_no_upscale: bool = param(
        True, "Never enlarge a picture: small ones get smaller sizes, and too small ones are left out.", advanced=True
    )
    bucket_reso_steps: int = param(
        64, "Bucket sides are multiples of this. A multiple of 8.", min=8, max=256, advanced=True
    )
    min_bucket_reso: int = param(
        256, "Shortest bucket side, or half of resolution where that is less.", min=8, max=4096, advanced=True
    )
    max_bucket_reso: int = param(2048, "Longest bucket side.", min=64, max=8192, advanced=True)
    extra_resolutions: str = param(
        "",
        "Every picture is trained at these resolutions too, such as: 768, 512. Each adds as many samples.",
        advanced=True,
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        for name, step in (("resolution", 64), ("bucket_reso_steps", 8)):
            value = getattr(self, name)
            if value % step:
                raise ValueError(
                    f"{name} must be a multiple of {step}, got {value}. The nearest are {value - value % step} and "
                    f"{value - value % step + step}"
                )
        if self.bucket_reso_steps > self.resolution:
            raise ValueError(
                f"bucket_reso_steps must not be above resolution {self.resolution}, got {self.bucket_reso_steps}"
            )
        if self.max_bucket_reso < self.resolution:
            raise ValueError(
                f"max_bucket_reso must not be below resolution {self.resolution}, got {self.max_bucket_reso}"
            )
        self._require_extra_resolutions()

    @property
    def resolutions(self) -> tuple[int, ...]:
        """The resolution and the extra ones."""
        return (self.resolution, *(int(part) for part in self.extra_resolutions.split(",") if part.strip()))

    def at(self, resolution: int) -> "BucketConfig":
        """The same with one resolution only."""
        return replace(self, resolution=resolution, extra_resolutions="")

    def _require_extra_resolutions(self) -> None:
        try:
            resolutions = self.resolutions
        except ValueError:
            raise ValueError(
                "extra_resolutions must be numbers with commas between, such as 768, 512; got "
                f"{self.extra_resolutions!r}"
            ) from None
        for extra in resolutions[1:]:
            if resolutions.count(extra) > 1:
                raise ValueError(
                    f"extra_resolutions must differ from one another and from resolution {self.resolution}, got "
                    f"{self.extra_resolutions!r}"
                )
            try:
                self.at(extra)
            except ValueError as error:
                raise ValueError(f"extra_resolutions has {extra}: {error}") from None

    @property
    def shortest_side(self) -> int:
        """The shortest bucket side in force, a multiple of bucket_reso_steps."""
        step = self.bucket_reso_steps
        return max(step, -(-min(self.min_bucket_reso, self.resolution // 2) // step) * step)

    @property
    def longest_side(self) -> int:
        """The longest bucket side in force, a multiple of bucket_reso_steps."""
        longest = min(self.max_bucket_reso, self.resolution**2 // self.shortest_side)
        return longest - longest % self.bucket_reso_steps


@dataclass(frozen=True)
class Crop:
    """Scale the original to `resized_hw`, then cut `target_hw` at `top_left_yx`."""

    original_hw: Size
    resized_hw: Size
    top_left_yx: tuple[int, int]
    target_hw: Size


@dataclass(frozen=True)
class TrainingItem:
    """One use of a picture per epoch: `index` counts them all, `repeat` those of this picture at
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
    """Decide the crop of every repeat of every picture, at every resolution.

    A picture is used num_repeats times (its own times the dataset's) at each resolution that it is
    large enough for. Of regularization pictures as many samples are used as there are training
    samples at that resolution, as sd-scripts does, so that the size of their folder does not decide
    how strongly they hold the model back; what they weigh is loss_weight's business. Where
    sd-scripts takes the first pictures of a folder that is too large, these are taken evenly;
    repeats keep their ratio.

    Raises:
        ValueError: no picture has a caption and is large enough, or one is not and the dataset is
            strict, or there is nothing but regularization pictures.
    """
    left_out = [Remark(image.name, NO_CAPTION, RemarkKind.NO_CAPTION) for image in dataset.images if not image.caption]
    captioned = [image for image in dataset.images if image.caption]
    items: list[TrainingItem] = []
    notes: list[Remark] = []
    targets: dict[int, dict[Size, Size | None]] = {}
    for resolution in config.resolutions:
        at_resolution = config.at(resolution)
        targets[resolution] = _targets(captioned, at_resolution)
        usable = [image for image in captioned if targets[resolution][image.size_hw]]
        for image, num_uses in _uses_per_epoch(usable, dataset.num_repeats):
            target_hw = targets[resolution][image.size_hw]
            assert target_hw is not None
            notes += _cropping_notes(image, target_hw, at_resolution)
            for repeat in range(num_uses):
                crop = make_crop(
                    image.size_hw, target_hw, offset=_offset(config.resize_mode, seed, image.sha256, repeat)
                )
                items.append(TrainingItem(len(items), image, repeat, crop))
    too_small, small_notes = _size_findings(captioned, targets, config)
    left_out += too_small
    num_kept = len(dataset.images) - len(left_out)
    require_usable(num_kept, left_out, folder=dataset.folder_name, strict=dataset.strict)
    if all(item.image.is_regularization for item in items):
        raise ValueError(
            f"{dataset.folder_name}: nothing but regularization pictures. Join a dataset of what is to be learned"
        )
    report = _plan_report(
        dataset, items, num_kept, left_out, small_notes + notes + _balance_notes(captioned, items, dataset.num_repeats)
    )
    return CropPlan(items, report, dict(Counter(item.crop.target_hw for item in items)))


def _targets(images: list[TrainingImage], config: BucketConfig) -> dict[Size, Size | None]:
    buckets = bucket_sizes(config)
    return {size: choose_target(size, config, buckets) for size in {image.size_hw for image in images}}


def _uses_per_epoch(images: list[TrainingImage], num_repeats: int) -> list[tuple[TrainingImage, int]]:
    """How often each picture is used. Regularization pictures share as many samples as the others
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


def _size_findings(
    images: list[TrainingImage], targets: dict[int, dict[Size, Size | None]], config: BucketConfig
) -> tuple[list[Remark], list[Remark]]:
    """Pictures that are too small for every resolution, and those that are for some."""
    left_out, notes = [], []
    for image in images:
        too_large = [resolution for resolution in config.resolutions if targets[resolution][image.size_hw] is None]
        if len(too_large) == len(config.resolutions):
            reason = _why_too_small(image.size_hw, config.at(min(config.resolutions)))
            left_out.append(Remark(image.name, reason, RemarkKind.TOO_SMALL))
        elif too_large:
            shown = ", ".join(map(str, too_large))
            notes.append(
                Remark(
                    image.name,
                    f"{shown_size(image.size_hw)} pixels are too small for resolution {shown}; it is trained at the "
                    "others only",
                )
            )
    return left_out, notes


def _balance_notes(images: list[TrainingImage], items: list[TrainingItem], num_repeats: int) -> list[Remark]:
    """How regularization pictures came to be as many as the others."""
    regularization = [image for image in images if image.is_regularization]
    if not regularization:
        return []
    num_samples = sum(item.image.is_regularization for item in items)
    num_used = len({item.image.name for item in items if item.image.is_regularization})
    text = (
        f"{pluralize(num_used, 'picture')} make {pluralize(num_samples, 'sample')} per epoch, as many as the "
        "training pictures"
    )
    if num_used < len(regularization):
        text += (
            f"; the other {len(regularization) - num_used} are not needed. More repeats of the training "
            "pictures would use them"
        )
    return [Remark("regularization", text)]


def _plan_report(
    dataset: Dataset, items: list[TrainingItem], num_kept: int, left_out: list[Remark], notes: list[Remark]
) -> DatasetReport:
    scan = dataset.report
    scan_notes = [note for note in scan.notes if note.kind is not RemarkKind.NO_CAPTION]
    num_pictures = Counter(item.crop.target_hw for item in items if item.repeat == 0)
    return DatasetReport(num_kept, scan.left_out + left_out, scan_notes + notes, dict(num_pictures), scan.summary)


def bucket_sizes(config: BucketConfig) -> list[Size]:
    """All sizes of multiples of bucket_reso_steps whose area is at most resolution squared, each
    side with its largest partner.

    The list of sd-scripts' make_bucket_resolutions. For resolution 1024 and steps of 64 it has all
    sizes that SDXL was trained at.
    """
    step, area = config.bucket_reso_steps, config.resolution**2
    sizes: set[Size] = set()
    for side in range(config.shortest_side, config.longest_side + 1, step):
        partner = min(area // side // step * step, config.longest_side)
        sizes |= {(side, partner), (partner, side)}
    return sorted(sizes)


def choose_target(size_hw: Size, config: BucketConfig, buckets: list[Size]) -> Size | None:
    """The size at which a picture is trained; None: it would have to be enlarged.

    In bucket mode that is the bucket of the nearest shape, which is also the one that cuts away
    least. Where the picture does not cover it, and must not be enlarged, it is the largest size in
    steps inside the picture that cuts away at most 4 %, or else the one that cuts away least.
    (sd-scripts rounds both sides down there and loses 6 % of 1023 x 1025.)
    """
    if config.resize_mode != "bucket":
        square = (config.resolution, config.resolution)
        return square if not config.bucket_no_upscale or _covers(size_hw, square) else None
    nearest = min(
        buckets, key=lambda bucket: (bucket != size_hw, _lost_share(size_hw, bucket), -bucket[0] * bucket[1], bucket)
    )
    if not config.bucket_no_upscale or _covers(size_hw, nearest):
        return nearest
    return _largest_inside(size_hw, config)


def _largest_inside(size_hw: Size, config: BucketConfig) -> Size | None:
    step, shortest = config.bucket_reso_steps, config.shortest_side
    heights, widths = (range(shortest, min(side, config.longest_side) + 1, step) for side in size_hw)
    inside = [(height, width) for height in heights for width in widths if height * width <= config.resolution**2]
    return min(
        inside, key=lambda size: (max(_lost_share(size_hw, size), SMALL_LOSS), -size[0] * size[1], size), default=None
    )


def make_crop(original_hw: Size, target_hw: Size, *, offset: tuple[float, float] = (0.5, 0.5)) -> Crop:
    """Scale, keeping the shape, until the target is just covered; cut at `offset`, a share of the
    surplus (0.5: the centre).
    """
    scale = max(target / original for target, original in zip(target_hw, original_hw, strict=True))
    resized = tuple(
        max(target, round(original * scale)) for target, original in zip(target_hw, original_hw, strict=True)
    )
    top, left = (int((size - target) * share) for size, target, share in zip(resized, target_hw, offset, strict=True))
    return Crop(original_hw, (resized[0], resized[1]), (top, left), target_hw)


def read_crop(item: TrainingItem) -> Image.Image:
    """The item's picture as it is trained: RGB of exactly target_hw."""
    crop = item.crop
    image = item.image.read()
    resized_height, resized_width = crop.resized_hw
    if image.size != (resized_width, resized_height):
        image = image.resize((resized_width, resized_height), Image.Resampling.LANCZOS)
    return image.crop(_box(crop))


def read_mask_crop(item: TrainingItem) -> Image.Image | None:
    """The item's mask, resized and cut as its picture: mode "L" (255: learned) of exactly
    target_hw; None where it has none.
    """
    mask = item.image.read_mask()
    if mask is None:
        return None
    height, width = item.crop.resized_hw
    if mask.size != (width, height):
        mask = mask.resize((width, height), Image.Resampling.BILINEAR)
    return mask.crop(_box(item.crop))


def _box(crop: Crop) -> tuple[int, int, int, int]:
    (top, left), (height, width) = crop.top_left_yx, crop.target_hw
    return left, top, left + width, top + height


def epoch_batches(items: list[TrainingItem], *, batch_size: int, seed: int, epoch: int) -> list[list[TrainingItem]]:
    """Every item once, in an order of this seed and epoch; a batch has one size, and the last batch
    of a size may be smaller.
    """
    by_size: dict[Size, list[TrainingItem]] = defaultdict(list)
    for item in items:
        by_size[item.crop.target_hw].append(item)
    rng = random.Random(f"{seed}/epoch/{epoch}")
    batches = []
    for size in sorted(by_size):
        shuffled = rng.sample(by_size[size], len(by_size[size]))
        batches += [shuffled[start : start + batch_size] for start in range(0, len(shuffled), batch_size)]
    rng.shuffle(batches)
    return batches


def write_prepared_folder(
    plan: CropPlan, folder: Path, *, check_interrupted: Callable[[], None] = lambda: None
) -> None:
    """Write every picture as it is trained, as PNG with its caption beside it; repeats only where
    their crops differ.

    Raises:
        FileExistsError, NotADirectoryError: the folder has files already, or is one.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file. Give a new folder for the prepared pictures")
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty. Give a new folder for the prepared pictures")
    distinct: dict[tuple[str, Crop], TrainingItem] = {}
    for item in plan.items:
        distinct.setdefault((item.image.name, item.crop), item)
    digits = len(str(len(distinct)))
    for count, item in enumerate(distinct.values(), start=1):
        check_interrupted()
        # The number keeps sub/a.png and a.jpg apart; the name is cut where a file system's 255
        # bytes might not hold it.
        stem = f"{count:0{digits}}_{Path(item.image.name).stem[:50]}"
        with atomic_write(folder / f"{stem}.png") as temporary:
            read_crop(item).save(temporary, format="PNG")
        with atomic_write(folder / f"{stem}.txt") as temporary:
            temporary.write_text(item.image.caption + "\n", encoding="utf-8")


def _offset(resize_mode: str, seed: int, sha256: str, repeat: int) -> tuple[float, float]:
    if resize_mode != "random_crop":
        return 0.5, 0.5
    rng = random.Random(f"{seed}/crop/{sha256}/{repeat}")
    return rng.random(), rng.random()


def _why_too_small(size_hw: Size, config: BucketConfig) -> str:
    required = config.shortest_side if config.resize_mode == "bucket" else config.resolution
    return (
        f"{shown_size(size_hw)} pixels are too small, both sides must have {required} or more. Use a larger "
        "picture, or turn off bucket_no_upscale"
    )


def _cropping_notes(image: TrainingImage, target_hw: Size, config: BucketConfig) -> list[Remark]:
    """A square crop was asked for; that a bucket cuts off much is a surprise."""
    lost = _lost_share(image.size_hw, target_hw)
    if config.resize_mode != "bucket" or lost < LARGE_LOSS:
        return []
    return [
        Remark(
            image.name,
            f"{lost:.0%} of it is cut off: no bucket is near the shape of {shown_size(image.size_hw)}, "
            f"{shown_size(target_hw)} is nearest",
        )
    ]


def _covers(size: Size, target: Size) -> bool:
    return size[0] >= target[0] and size[1] >= target[1]


def _lost_share(size: Size, target: Size) -> float:
    """Share of the picture's area that is cut away when it is scaled to just cover the target."""
    ratio = (size[1] * target[0]) / (size[0] * target[1])
    return 1 - min(ratio, 1 / ratio)


def shown_size(size: Size) -> str:
    return f"{size[1]} x {size[0]}"
