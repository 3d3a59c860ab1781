"""How many bytes a training writes, from its plan alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..dataset.crop_plan import TrainingItem
from ..training.config import TrainingConfig
from ..training.optimizer_table import find_optimizer
from ..training.plan import TrainingPlan
from ..training.schedule import Schedule
from .family_check import CacheSizes
from .memory_estimate import FLOAT32

FILE_BYTES = 1024  # overhead of a cache file
SAVED_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
NUM_STATES = 2  # that a run keeps at a time, to go on from


@dataclass(frozen=True)
class DiskUse:
    """The bytes that a run writes with an empty cache. A cache from earlier runs saves some."""

    latents_bytes: int  # with their masks
    captions_bytes: int
    lora_bytes: int  # one file
    num_checkpoints: int  # without the finished LoRA
    num_extra_loras: int = 0  # the best one by validation, and the average
    states_bytes: int = 0  # what the run needs to go on, at most; half of it stays

    @property
    def total_bytes(self) -> int:
        num_loras = 1 + self.num_checkpoints + self.num_extra_loras
        return self.latents_bytes + self.captions_bytes + self.lora_bytes * num_loras + self.states_bytes


def estimate_disk_use(plan: TrainingPlan, cache: CacheSizes, *, num_parameters: int) -> DiskUse:
    config = plan.settings.training
    num_copies = 2 if plan.settings.buckets.random_flip else 1
    latents_bytes = num_copies * _count_latents(plan.all_items, cache) + _count_masks(plan.all_items, cache)
    has_best = config.save_best and bool(plan.validation.draws)
    return DiskUse(
        latents_bytes=round(latents_bytes),
        captions_bytes=round(cache.captions_bytes),
        lora_bytes=num_parameters * SAVED_BYTES[config.save_dtype],
        num_checkpoints=len(_list_checkpoints(config, plan.schedule)),
        num_extra_loras=has_best + bool(config.ema_decay),
        states_bytes=NUM_STATES * _count_state(config, num_parameters),
    )


def _count_latents(items: Sequence[TrainingItem], cache: CacheSizes) -> float:
    crops = {(item.image.sha256, item.crop, item.colors) for item in items}
    return sum(cache.latent_bytes_per_pixel * math.prod(crop.target_hw) + FILE_BYTES for _, crop, _ in crops)


def _count_masks(items: Sequence[TrainingItem], cache: CacheSizes) -> float:
    masks = {(item.image.mask_sha256, item.crop) for item in items if item.image.mask_sha256}
    return sum(cache.mask_bytes_per_pixel * math.prod(crop.target_hw) + FILE_BYTES for _, crop in masks)


def _count_state(config: TrainingConfig, num_parameters: int) -> int:
    """Count adapters, their average and the optimizer's states."""
    per_parameter = FLOAT32 * (2 if config.ema_decay else 1) + find_optimizer(config.optimizer).state_bytes
    return round(num_parameters * per_parameter)


def _list_checkpoints(config: TrainingConfig, schedule: Schedule) -> set[tuple[str, int]]:
    """List the checkpoints by step and by epoch. The last step is the finished LoRA."""
    last = schedule.total_steps - 1
    by_step = range(1, last // config.save_every_n_steps + 1) if config.save_every_n_steps else ()
    by_epoch = (
        range(1, last // (config.save_every_n_epochs * schedule.steps_per_epoch) + 1)
        if config.save_every_n_epochs
        else ()
    )
    return {("step", number) for number in by_step} | {("epoch", number) for number in by_epoch}
