"""The flight check: what a training will do with a dataset and what it will cost, found out before
any model is loaded.

Pictures are read once, for their thumbnails and fingerprints. flight_report.py says what was found,
flight_check_picture.py draws it.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from PIL import Image

from ...config import check_ranges, param
from ...dataset.buckets import BucketConfig, CropPlan, Size, plan_crops, shown_size
from ...dataset.caption_variants import CaptionConfig, caption_variants, flat_caption
from ...dataset.dataset import Dataset, DatasetReport, TrainingImage, counted, with_trigger_word
from ...dataset.image_files import OTHER_PICTURE_EXTENSIONS
from ...dataset.image_folder import Finding
from ...dataset.near_duplicates import Fingerprint, fingerprint, near_duplicates
from ..config import SDXLConfig
from .cost import Schedule, disk_use, plan_schedule
from .earlier_runs import latest_run_like
from .report import LEVELS, CheckFinding, Cost, FlightReport, PictureUse, size_text

THUMBNAIL_SIZE = 256
NUM_THREADS = 4  # decoders run beside each other; a picture of 100 megapixels takes 400 MB
FEW_PICTURES = 5
LARGE_LOSS = 0.25  # share of the area that is cut away
VISIBLE_ENLARGEMENT = 1.05
SMALL_SHARE = 0.6  # of the area that the resolution asks for
MAX_CHUNKS = 3
SELDOM, OFTEN = 20, 400  # times seen; presets.py aims at 60 to 100
# What decides the speed of a step, beside the pictures' sizes.
SPEED_SETTINGS = (
    *(
        "train_batch_size",
        "gradient_accumulation_steps",
        "gradient_checkpointing",
        "optimizer",
        "train_text_encoders",
        "target_modules",
        "rank",
    ),
    "prior_loss_weight",
)


@dataclass(frozen=True)
class FlightCheckConfig:
    """When the check refuses, and what it leaves out."""

    stop_at: str = param(
        "error",
        "Refuse to go on at findings of this level: error, warning (and errors), or never.",
        choices=("error", "warning", "never"),
    )
    find_near_duplicates: bool = param(
        True, "Look for pictures that are resized, recompressed or slightly cropped copies of others.", advanced=True
    )

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class Surroundings:
    """The machine: the precision that it computes in, its GPU's memory where that is known, and
    where the run will write.
    """

    precision: str = "bf16"
    device_bytes: int | None = None
    output_folder: Path = Path("output")


def check_flight(
    dataset: Dataset,
    config: SDXLConfig,
    buckets: BucketConfig,
    check: FlightCheckConfig,
    surroundings: Surroundings,
    *,
    captions: CaptionConfig | None = None,
    check_interrupted: Callable[[], None] = lambda: None,
    on_progress: Callable[[int, int, str], None] = lambda *_: None,
) -> FlightReport:
    """Plan the training as the trainer does, look at every picture, and judge both. A dataset with
    nothing to train on is a finding.

    Raises:
        RuntimeError: a picture's file has changed since the folder was scanned.
        ModuleNotFoundError: near-duplicates are looked for, and ImageHash is not installed.
    """
    plan, failure = _plan(dataset, buckets, seed=config.seed)
    uses = _uses(plan)
    looks = _look_at_all(dataset.images, check, check_interrupted, on_progress)
    captions = captions or CaptionConfig()
    texts, no_texts = _texts(dataset, plan, config, captions)
    cost = _cost(plan, config, buckets, surroundings, texts) if uses else Cost()
    learned = [image for image in dataset.images if not image.is_regularization]
    duplicate_groups = _duplicate_groups(learned, looks)
    findings = [
        *failure,
        *no_texts,
        *_left_out_findings(dataset, plan),
        *_picture_findings(uses, buckets),
        *_duplicate_findings(duplicate_groups),
        *_mask_findings(dataset.images, looks),
        *_length_findings(dataset.images, captions, seed=config.seed),
        *_trigger_findings([(image, dataset.trigger_word_of(image)) for image in learned if image.caption]),
        *_same_caption_finding(learned),
        *_number_findings(learned, cost.schedule, config),
        *_machine_findings(cost, surroundings),
    ]
    findings += _plan_notes(plan, findings)
    left_out = {finding.name for finding in plan.report.left_out}
    return FlightReport(
        name=dataset.folder_name,
        stop_at=check.stop_at,
        uses=uses,
        num_pictures=sum(image.name not in left_out for image in learned),
        num_regularization=sum(image.name not in left_out for image in dataset.images if image.is_regularization),
        num_left_out=len(left_out),
        summary=dataset.report.summary,
        num_masks=sum(look.mask_share is not None for look in looks.values()),
        cost=cost,
        findings=sorted(findings, key=lambda finding: -LEVELS.index(finding.level)),
        duplicate_groups=duplicate_groups,
        thumbnails={name: look.thumbnail for name, look in looks.items()},
    )


def _plan(dataset: Dataset, buckets: BucketConfig, *, seed: int) -> tuple[CropPlan, list[CheckFinding]]:
    """The trainer's plan; where it would raise, what it would say as a finding, and as far as
    possible the plan without `strict`.
    """
    try:
        return plan_crops(dataset, buckets, seed=seed), []
    except ValueError as error:
        failure = [CheckFinding("error", "refused_by_trainer", f"the trainer would stop: {error}")]
    if dataset.strict:
        plan, _ = _plan(replace(dataset, strict=False), buckets, seed=seed)
        return plan, failure
    return CropPlan([], DatasetReport(0, dataset.report.left_out, dataset.report.notes), {}), failure


def _uses(plan: CropPlan) -> list[PictureUse]:
    """A random crop differs in every repeat: the first stands for all."""
    uses: dict[tuple[str, Size], PictureUse] = {}
    for item in plan.items:
        key = item.image.name, item.crop.target_hw
        known = uses.get(key)
        uses[key] = replace(known, num_samples=known.num_samples + 1) if known else PictureUse(item.image, item.crop, 1)
    return list(uses.values())


# ---- the pictures ----


@dataclass(frozen=True)
class _Look:
    thumbnail: Image.Image
    fingerprint: Fingerprint | None
    mask_share: float | None  # that is learned; None: there is no mask


def _look_at_all(
    images: Sequence[TrainingImage],
    check: FlightCheckConfig,
    check_interrupted: Callable[[], None],
    on_progress: Callable[[int, int, str], None],
) -> dict[str, _Look]:
    pool = ThreadPoolExecutor(NUM_THREADS)
    try:
        looks = {}
        for image, look in zip(images, pool.map(partial(_look_at, check=check), images), strict=True):
            check_interrupted()
            looks[image.name] = look
            on_progress(len(looks), len(images), image.name)
        return looks
    finally:
        pool.shutdown(cancel_futures=True)


def _look_at(image: TrainingImage, *, check: FlightCheckConfig) -> _Look:
    thumbnail = image.read_thumbnail(THUMBNAIL_SIZE)
    mask = image.read_mask()
    mask_share = (
        None
        if mask is None
        else sum(value * count for value, count in enumerate(mask.histogram())) / (255 * mask.width * mask.height)
    )
    return _Look(thumbnail, fingerprint(thumbnail) if check.find_near_duplicates else None, mask_share)


def _left_out_findings(dataset: Dataset, plan: CropPlan) -> Iterator[CheckFinding]:
    """Those that the scan could not use, those without a caption, and those that are too small."""
    passed_over = [finding for finding in dataset.report.left_out if _is_harmless(finding)]
    unusable = [finding for finding in dataset.report.left_out if not _is_harmless(finding)]
    if unusable:
        yield CheckFinding(
            "error",
            "unusable",
            f"{counted(len(unusable), 'picture')} cannot be used. Repair or replace what is damaged, or remove it",
            unusable,
        )
    if passed_over:
        yield CheckFinding("warning", "left_out", f"{counted(len(passed_over), 'picture')} left out", passed_over)
    captionless = {image.name for image in dataset.images if not image.caption}
    if captionless:
        message = (
            f"{counted(len(captionless), 'picture')} without a caption, and so left out. Write captions, "
            "connect Florence2Caption, or set trigger_word"
        )
        yield CheckFinding("error", "no_caption", message, [Finding(name, "") for name in sorted(captionless)])
    known = {finding.name for finding in dataset.report.left_out} | captionless
    too_small = [finding for finding in plan.report.left_out if finding.name not in known]
    if too_small:
        yield CheckFinding(
            "warning", "too_small", f"{counted(len(too_small), 'picture')} left out as too small", too_small
        )


def _is_harmless(finding: Finding) -> bool:
    """Another picture stands for it, or it is of a format that was never meant for training."""
    return (
        finding.reason.startswith("it is the same file as")
        or Path(finding.name).suffix.lower() in OTHER_PICTURE_EXTENSIONS
    )


def _picture_findings(uses: Sequence[PictureUse], buckets: BucketConfig) -> Iterator[CheckFinding]:
    cut = sorted((use for use in uses if use.lost_share >= LARGE_LOSS), key=lambda use: -use.lost_share)
    if cut:
        remedy = (
            "Cut them yourself, where it matters least"
            if buckets.resize_mode == "bucket"
            else "Set resize_mode to bucket, or cut them yourself"
        )
        message = f"{counted(len(cut), 'picture')} cropped by {LARGE_LOSS:.0%} or more. {remedy}"
        yield CheckFinding("warning", "heavy_crop", message, [Finding(use.image.name, _crop_text(use)) for use in cut])
    enlarged = sorted((use for use in uses if use.enlargement > VISIBLE_ENLARGEMENT), key=lambda use: -use.enlargement)
    if enlarged:
        reasons = [
            Finding(use.image.name, f"{shown_size(use.crop.original_hw)} is enlarged {use.enlargement:.1f} times")
            for use in enlarged
        ]
        message = (
            f"{counted(len(enlarged), 'picture')} enlarged, which teaches blur. Use larger pictures, or turn "
            "bucket_no_upscale on"
        )
        yield CheckFinding("warning", "enlarged", message, reasons)
    asked_area = SMALL_SHARE * min(buckets.resolutions) ** 2
    small = [use for use in uses if _area(use.crop.original_hw) < asked_area and use not in enlarged]
    if small:
        reasons = [
            Finding(use.image.name, f"at {shown_size(use.crop.target_hw)}, from {shown_size(use.crop.original_hw)}")
            for use in small
        ]
        yield CheckFinding(
            "note",
            "small",
            f"{counted(len(small), 'picture')} trained far below resolution {min(buckets.resolutions)}, being no "
            "larger",
            reasons,
        )


def _crop_text(use: PictureUse) -> str:
    return (
        f"{use.lost_share:.0%} of {shown_size(use.crop.original_hw)} is cut away for {shown_size(use.crop.target_hw)}"
    )


def _area(size: Size) -> int:
    return size[0] * size[1]


def _duplicate_groups(images: Sequence[TrainingImage], looks: dict[str, _Look]) -> list[list[str]]:
    """Not among regularization pictures: they may look alike."""
    fingerprints = {
        image.name: look.fingerprint for image in images if (look := looks[image.name]).fingerprint is not None
    }
    names = list(fingerprints)
    return [[names[position] for position in group] for group in near_duplicates(list(fingerprints.values()))]


def _duplicate_findings(groups: Sequence[Sequence[str]]) -> Iterator[CheckFinding]:
    if groups:
        reasons = [Finding(first, f"looks like {', '.join(others)}") for first, *others in groups]
        message = (
            f"{counted(len(groups), 'group')} of near-duplicates, each learned as if it were one picture with "
            "repeats. Keep the best of each"
        )
        yield CheckFinding("warning", "near_duplicates", message, reasons)


def _mask_findings(images: Sequence[TrainingImage], looks: dict[str, _Look]) -> Iterator[CheckFinding]:
    empty = [Finding(image.name, "") for image in images if looks[image.name].mask_share == 0]
    if empty:
        message = (
            f"the masks of {counted(len(empty), 'picture')} are all black: there is nothing to learn in them. "
            "White is learned: are they inverted?"
        )
        yield CheckFinding("error", "empty_mask", message, empty)


# ---- captions ----


def _texts(
    dataset: Dataset, plan: CropPlan, config: SDXLConfig, captions: CaptionConfig
) -> tuple[list[str], list[CheckFinding]]:
    """All texts that the trainer will encode; or its complaint about them."""
    from ..texts import TrainingTexts  # imports torch

    if not plan.items:
        return [], []
    try:
        return TrainingTexts(dataset, plan.items, config, captions).all(), []
    except ValueError as error:
        return [], [CheckFinding("error", "refused_by_trainer", f"the trainer would stop: {error}")]


def _num_chunks(num_tokens: int) -> int:
    from ...captions.clip_tokenizer import TOKENS_PER_CHUNK

    return max(1, -(-num_tokens // TOKENS_PER_CHUNK))


def _length_findings(images: Sequence[TrainingImage], captions: CaptionConfig, *, seed: int) -> Iterator[CheckFinding]:
    """By the longest variant of each caption."""
    from ...captions.clip_tokenizer import TOKENS_PER_CHUNK, token_ids

    variants = {image.name: caption_variants(image.caption, captions, seed=seed, key=image.sha256) for image in images}
    num_tokens = {name: max(map(len, token_ids(list(texts)))) for name, texts in variants.items()}
    limit = MAX_CHUNKS * TOKENS_PER_CHUNK
    overlong = [_length_of(name, count) for name, count in num_tokens.items() if count > limit]
    if overlong:
        advice = "Other programs cut such prompts off, and what is said last has little effect. Shorten them"
        yield CheckFinding(
            "warning",
            "overlong_caption",
            f"{counted(len(overlong), 'caption')} of more than {limit} tokens. {advice}",
            overlong,
        )
    long = [_length_of(name, count) for name, count in num_tokens.items() if TOKENS_PER_CHUNK < count <= limit]
    if long:
        message = (
            f"{counted(len(long), 'caption')} of more than {TOKENS_PER_CHUNK} tokens, learned in chunks of "
            "which the first counts most"
        )
        yield CheckFinding("note", "long_caption", message, long)


def _length_of(name: str, num_tokens: int) -> Finding:
    return Finding(name, f"{num_tokens} tokens, {_num_chunks(num_tokens)} chunks")


def _same_caption_finding(images: Sequence[TrainingImage]) -> Iterator[CheckFinding]:
    captions = {image.caption for image in images if image.caption}
    if len(images) > 1 and len(captions) == 1:
        yield CheckFinding("note", "same_caption", f"all captions are the same: {flat_caption(captions.pop())}")


def _trigger_findings(pairs: Sequence[tuple[TrainingImage, str]]) -> Iterator[CheckFinding]:
    """Of captioned pictures, each with its trigger word."""
    if pairs and not any(trigger_word for _, trigger_word in pairs):
        yield CheckFinding(
            "note",
            "no_trigger_word",
            "no trigger_word is set: right for a style, but a person or an object needs a word that calls it",
        )
    alone = [Finding(image.name, "") for image, trigger_word in pairs if image.caption == trigger_word]
    if alone:
        meaning = "it will come to mean all that these pictures show. Write captions, or connect Florence2Caption"
        yield CheckFinding(
            "warning",
            "trigger_word_alone",
            f"{counted(len(alone), 'caption')} of the trigger word alone: {meaning}",
            alone,
        )
    without = [
        Finding(image.name, f"no {word} in: {image.caption}")
        for image, word in pairs
        if with_trigger_word(image.caption, word) != image.caption
    ]
    if without:
        yield CheckFinding(
            "warning",
            "trigger_word_missing",
            f"{counted(len(without), 'caption')} without the trigger word. Add it",
            without,
        )


def _plan_notes(plan: CropPlan, findings: Sequence[CheckFinding]) -> Iterator[CheckFinding]:
    """What the scan and the plan remarked, but for pictures of which it was said already."""
    said = ("no_caption", "trigger_word_alone", "heavy_crop")
    known = {picture.name for finding in findings if finding.kind in said for picture in finding.pictures}
    notes = [note for note in plan.report.notes if note.name not in known]
    if notes:
        yield CheckFinding("note", "remarks", "remarks on single pictures and folders", notes)


# ---- steps and the machine ----


def _number_findings(
    images: Sequence[TrainingImage], schedule: Schedule | None, config: SDXLConfig
) -> Iterator[CheckFinding]:
    if schedule is None:
        return
    if len(images) < FEW_PICTURES:
        yield CheckFinding(
            "warning",
            "few_pictures",
            f"{counted(len(images), 'picture')} only, learned by heart rather than understood. 10 to 200 are usual",
        )
    low, high = schedule.times_seen_range
    if low < 1:
        needed = schedule.steps_per_epoch
        yield CheckFinding(
            "warning",
            "not_all_seen",
            f"{schedule.total_steps} steps do not reach every picture: an epoch has {needed}. Set max_train_steps "
            "higher",
        )
    elif low < SELDOM:
        message = (
            f"a picture is seen only {low:.0f} times, where 60 to 100 are usual. Raise max_train_steps, "
            "unless the pictures are alike"
        )
        yield CheckFinding("warning", "seldom_seen", message)
    if high > OFTEN:
        message = (
            f"a picture is seen {high:.0f} times, where 60 to 100 are usual: it may be learned by heart. "
            "Lower max_train_steps or num_repeats"
        )
        yield CheckFinding("warning", "often_seen", message)
    if schedule.num_partial_batches:
        message = (
            f"{schedule.num_partial_batches} of {schedule.num_batches} batches per epoch have fewer than "
            f"{config.train_batch_size} pictures"
        )
        yield CheckFinding("note", "partial_batches", f"{message}, since a batch has one size")


def _cost(
    plan: CropPlan, config: SDXLConfig, buckets: BucketConfig, surroundings: Surroundings, texts: Sequence[str]
) -> Cost:
    # diffusers takes seconds to import: not before it is needed
    from ...captions.clip_tokenizer import token_ids
    from ..model.standard_unet import standard_unet
    from .activations import FLOAT32
    from .memory import OPTIMIZER_BYTES, estimate_memory

    schedule = plan_schedule(plan, config)
    largest_hw = max(plan.bucket_counts, key=lambda size: size[0] * size[1])
    memory = estimate_memory(standard_unet(), config, size_hw=largest_hw, precision=surroundings.precision)
    num_parameters = round(memory.adapters_bytes / (2 * FLOAT32 + OPTIMIZER_BYTES[config.optimizer]))
    num_chunks = [_num_chunks(len(ids)) for ids in token_ids(list(texts))]
    disk = disk_use(
        plan,
        config,
        schedule,
        chunks_by_text=num_chunks,
        random_flip=buckets.random_flip,
        num_parameters=num_parameters,
    )
    resolutions = {"resolution": buckets.resolution, "extra_resolutions": buckets.extra_resolutions}
    settings = {"training": {name: getattr(config, name) for name in SPEED_SETTINGS}, "buckets": resolutions}
    earlier_run = latest_run_like(surroundings.output_folder / "runs", settings, precision=surroundings.precision)
    return Cost(schedule, memory.text(), memory.total_bytes, disk, earlier_run)


def _machine_findings(cost: Cost, surroundings: Surroundings) -> Iterator[CheckFinding]:
    if cost.memory_bytes is None or cost.disk is None:
        return
    if surroundings.device_bytes is not None and cost.memory_bytes > surroundings.device_bytes:
        has, needs = size_text(surroundings.device_bytes), size_text(cost.memory_bytes)
        message = (
            f"the training needs about {needs} of memory, and the GPU has {has}. Lower train_batch_size or "
            "resolution, or turn gradient_checkpointing on"
        )
        yield CheckFinding("error", "memory", message)
    free_bytes = shutil.disk_usage(_existing(surroundings.output_folder)).free
    if cost.disk.total_bytes > free_bytes:
        message = (
            f"the run writes {size_text(cost.disk.total_bytes)}, and {surroundings.output_folder} has "
            f"{size_text(free_bytes)} free."
        )
        message += " Make room, or keep fewer checkpoints"
        yield CheckFinding("error", "disk", message)


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    return next(parent for parent in (folder, *folder.parents) if parent.exists())
