"""Findings on the cost of a training: too few or too many steps, too little memory or disk."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..dataset.image import TrainingImage
from ..training.config import TrainingConfig
from ..training.schedule import Schedule
from ..wording import format_bytes, pluralize
from .check_finding import CheckFinding
from .cost import Cost, Surroundings

FEW_IMAGES = 5
SELDOM, OFTEN = 20, 400  # times seen; presets.py aims at 60 to 100


def judge_schedule(
    images: Sequence[TrainingImage], schedule: Schedule | None, config: TrainingConfig
) -> Iterator[CheckFinding]:
    if schedule is None:
        return
    if len(images) < FEW_IMAGES:
        yield CheckFinding(
            "warning",
            "few_pictures",
            f"only {pluralize(len(images), 'image')}: the LoRA will memorize what it sees. 10 to 200 are usual",
        )
    low, high = schedule.times_seen_range
    if low < 1:
        needed = schedule.steps_per_epoch
        yield CheckFinding(
            "warning",
            "not_all_seen",
            f"{schedule.total_steps} steps do not reach every image: an epoch has {needed}. Set max_train_steps higher",
        )
    elif low < SELDOM:
        message = (
            f"an image is seen only {low:.0f} times; 60 to 100 are usual. Raise max_train_steps, "
            "unless the images are alike"
        )
        yield CheckFinding("warning", "seldom_seen", message)
    if high > OFTEN:
        message = (
            f"an image is seen {high:.0f} times; 60 to 100 are usual. The LoRA may memorize it. "
            "Lower max_train_steps or num_repeats"
        )
        yield CheckFinding("warning", "often_seen", message)
    if schedule.num_partial_batches:
        message = (
            f"{schedule.num_partial_batches} of {schedule.num_batches} batches per epoch have fewer than "
            f"{config.train_batch_size} images"
        )
        yield CheckFinding("note", "partial_batches", f"{message}, because all images of a batch have one size")


def judge_machine(cost: Cost, surroundings: Surroundings, config: TrainingConfig) -> Iterator[CheckFinding]:
    if cost.memory_bytes is None or cost.disk is None:
        return
    if surroundings.device_bytes is not None and cost.memory_bytes > surroundings.device_bytes:
        has, needs = format_bytes(surroundings.device_bytes), format_bytes(cost.memory_bytes)
        samples_off = "Set sample_every_n_steps to 0, lower" if config.sample_every_n_steps else "Lower"
        message = (
            f"the training needs about {needs} of memory, but the GPU has {has}. {samples_off} train_batch_size or "
            "resolution, or turn gradient_checkpointing on"
        )
        yield CheckFinding("error", "memory", message)
    free_bytes = shutil.disk_usage(_find_existing_parent(surroundings.output_folder)).free
    if cost.disk.total_bytes > free_bytes:
        message = (
            f"the run writes {format_bytes(cost.disk.total_bytes)}, but {surroundings.output_folder} has "
            f"{format_bytes(free_bytes)} free. Make room, or keep fewer checkpoints"
        )
        yield CheckFinding("error", "disk", message)


def _find_existing_parent(folder: Path) -> Path:
    folder = folder.absolute()
    return next(parent for parent in (folder, *folder.parents) if parent.exists())
