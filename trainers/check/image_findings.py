"""Findings on images: left out, cropped, enlarged, small, alike, or with an all-black mask."""

from collections.abc import Callable, Iterator, Sequence

from ..dataset.bucket_config import BucketConfig
from ..dataset.bucket_sizes import Size
from ..dataset.crop_plan import CropPlan, is_cut_to_subject
from ..dataset.dataset import Dataset
from ..dataset.image import TrainingImage
from ..dataset.near_duplicates import group_near_duplicates
from ..dataset.report import CAPTION_NODE, Remark, RemarkKind
from ..wording import format_size, pluralize
from .check_finding import CheckFinding
from .image_looks import ImageLook
from .report import ImageUse

# Another image is the same file, or it was never meant for training.
HARMLESS = (RemarkKind.SAME_FILE, RemarkKind.OTHER_FORMAT, RemarkKind.OUTSIDE_KOHYAS_FOLDERS)
LARGE_LOSS = 0.25  # share of the area that is cut away
VISIBLE_ENLARGEMENT = 1.05
SMALL_SHARE = 0.6  # of the area that the resolution asks for


def judge_left_out(dataset: Dataset, plan: CropPlan) -> Iterator[CheckFinding]:
    """Report images that the scan could not use, have no caption, or are too small."""
    harmless = [remark for remark in dataset.report.left_out if remark.kind in HARMLESS]
    unusable = [remark for remark in dataset.report.left_out if remark.kind not in HARMLESS]
    if unusable:
        yield CheckFinding(
            "error",
            "unusable",
            f"{pluralize(len(unusable), 'image')} cannot be used. Repair, replace or remove each",
            unusable,
        )
    if harmless:
        yield CheckFinding("warning", "left_out", f"{pluralize(len(harmless), 'image')} left out", harmless)
    captionless = {image.name for image in dataset.images if not image.caption}
    if captionless:
        message = (
            f"{pluralize(len(captionless), 'image')} left out: no caption. Write captions, "
            f"connect {CAPTION_NODE}, or set trigger_word"
        )
        yield CheckFinding("error", "no_caption", message, [Remark(name, "") for name in sorted(captionless)])
    too_small = [remark for remark in plan.report.left_out if remark.kind is RemarkKind.TOO_SMALL]
    if too_small:
        yield CheckFinding(
            "warning", "too_small", f"{pluralize(len(too_small), 'image')} left out as too small", too_small
        )


def judge_crops(uses: Sequence[ImageUse], buckets: BucketConfig) -> Iterator[CheckFinding]:
    unwanted = [use for use in uses if not is_cut_to_subject(use.image, buckets)]
    cut = sorted((use for use in unwanted if use.lost_share >= LARGE_LOSS), key=lambda use: -use.lost_share)
    if cut:
        remedy = (
            "Crop them yourself where it matters least"
            if buckets.resize_mode == "bucket"
            else "Set resize_mode to bucket, or crop them yourself"
        )
        message = f"{pluralize(len(cut), 'image')} cropped by {LARGE_LOSS:.0%} or more. {remedy}"
        yield CheckFinding(
            "warning", "heavy_crop", message, [Remark(use.image.name, _describe_crop(use)) for use in cut]
        )
    enlarged = sorted((use for use in uses if use.enlargement > VISIBLE_ENLARGEMENT), key=lambda use: -use.enlargement)
    if enlarged:
        reasons = [
            Remark(use.image.name, f"{format_size(use.crop.original_hw)} is enlarged {use.enlargement:.1f} times")
            for use in enlarged
        ]
        message = (
            f"{pluralize(len(enlarged), 'image')} enlarged, which teaches blur. Use larger images, or turn "
            "bucket_no_upscale on"
        )
        yield CheckFinding("warning", "enlarged", message, reasons)
    asked_area = SMALL_SHARE * min(buckets.resolutions) ** 2
    small = [use for use in uses if _area(use.crop.original_hw) < asked_area and use not in enlarged]
    if small:
        reasons = [
            Remark(use.image.name, f"at {format_size(use.crop.target_hw)}, from {format_size(use.crop.original_hw)}")
            for use in small
        ]
        yield CheckFinding(
            "note",
            "small",
            f"{pluralize(len(small), 'image')} trained far below resolution {min(buckets.resolutions)}: the files "
            "are too small",
            reasons,
        )


def describe_changes(buckets: BucketConfig) -> list[str]:
    """Say how images are cropped to subjects, and how many changed copies are trained."""
    crops = [f"Cropped to subjects: crop_to_subject {buckets.crop_to_subject}"] * (buckets.crop_to_subject != "off")
    if not buckets.has_variants:
        return crops
    limits = [f"color_aug {buckets.color_aug:g}"] * bool(buckets.color_aug)
    limits += [f"rotation_aug {buckets.rotation_aug:g}"] * bool(buckets.rotation_aug)
    number = buckets.num_augmented_variants
    return [*crops, f"Changed copies: {number} of each image ({', '.join(limits)}); epochs take turns"]


def _describe_crop(use: ImageUse) -> str:
    return (
        f"{use.lost_share:.0%} of {format_size(use.crop.original_hw)} is cut away for {format_size(use.crop.target_hw)}"
    )


def _area(size: Size) -> int:
    return size[0] * size[1]


def group_duplicates(
    images: Sequence[TrainingImage], looks: dict[str, ImageLook], *, check_interrupted: Callable[[], None]
) -> list[list[str]]:
    """Group near-duplicates. Do not pass regularization images: they may look alike."""
    fingerprints = {
        image.name: look.fingerprint for image in images if (look := looks[image.name]).fingerprint is not None
    }
    names = list(fingerprints)
    groups = group_near_duplicates(list(fingerprints.values()), check_interrupted=check_interrupted)
    return [[names[position] for position in group] for group in groups]


def judge_duplicates(groups: Sequence[Sequence[str]]) -> Iterator[CheckFinding]:
    if groups:
        reasons = [Remark(first, f"looks like {', '.join(others)}") for first, *others in groups]
        message = (
            f"{pluralize(len(groups), 'group')} of near-duplicates, each learned like one image with repeats. "
            "Keep the best of each"
        )
        yield CheckFinding("warning", "near_duplicates", message, reasons)


def judge_masks(images: Sequence[TrainingImage], looks: dict[str, ImageLook]) -> Iterator[CheckFinding]:
    empty = [Remark(image.name, "") for image in images if looks[image.name].mask_share == 0]
    if empty:
        message = (
            f"the masks of {pluralize(len(empty), 'image')} are all black, so nothing is learned. "
            "White areas are learned: are the masks inverted?"
        )
        yield CheckFinding("error", "empty_mask", message, empty)


def gather_remarks(plan: CropPlan, findings: Sequence[CheckFinding]) -> Iterator[CheckFinding]:
    """Gather the notes of the scan and the plan, except on images that a finding already names."""
    same_kinds = ("no_caption", "trigger_word_alone", "heavy_crop")
    known = {image.name for finding in findings if finding.kind in same_kinds for image in finding.images}
    notes = [note for note in plan.report.notes if note.name not in known]
    if notes:
        yield CheckFinding("note", "remarks", "remarks on single images and folders", notes)
