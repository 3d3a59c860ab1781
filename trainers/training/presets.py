"""Presets for what the LoRA should learn and for how much memory the GPU has. Only tables and
arithmetic: no torch, no device.

A preset only fills what the user left open. A setting that was given stays as it is.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from ..wording import GIBIBYTE
from .config import AUTO_BLOCKS
from .run_settings import ConfigT, RunSettings

StepCounter = Callable[[RunSettings, int], int]


@dataclass(frozen=True)
class Goal:
    """What the LoRA should learn. Training sees each image `samples_per_image` times, but all
    images together within the limits of `num_samples`.
    """

    rank: int
    alpha_per_rank: float
    learning_rate: float
    samples_per_image: int
    num_samples: tuple[int, int]

    def text(self) -> str:
        low, high = self.num_samples
        return (
            f"rank {self.rank}, learning rate {self.learning_rate:g}, {self.samples_per_image} samples per "
            f"image ({low} to {high} in total)"
        )


@dataclass(frozen=True)
class MemoryPreset:
    """What fits a GPU of that size. A batch that does not fit is accumulated from smaller ones
    (gradient_accumulation_steps).
    """

    resolution: int
    train_batch_size: int
    gradient_accumulation_steps: int
    gradient_checkpointing: bool
    optimizer: str
    blocks_to_swap: int = AUTO_BLOCKS

    def text(self) -> str:
        accumulation = (
            f" x {self.gradient_accumulation_steps} accumulated" if self.gradient_accumulation_steps > 1 else ""
        )
        checkpointing = "gradient checkpointing" if self.gradient_checkpointing else "no gradient checkpointing"
        swapped = "" if self.blocks_to_swap == AUTO_BLOCKS else f", {self.blocks_to_swap} blocks in main memory"
        return (
            f"resolution {self.resolution}, batch size {self.train_batch_size}{accumulation}, {self.optimizer}, "
            f"{checkpointing}{swapped}"
        )


GOALS = {
    "person": Goal(rank=16, alpha_per_rank=1.0, learning_rate=1e-4, samples_per_image=100, num_samples=(1000, 4000)),
    "style": Goal(rank=32, alpha_per_rank=0.5, learning_rate=1e-4, samples_per_image=60, num_samples=(1500, 6000)),
    "object": Goal(rank=16, alpha_per_rank=0.5, learning_rate=1e-4, samples_per_image=80, num_samples=(800, 3000)),
}
# By the estimates of sdxl/memory.py (benchmarks/README.md), with a tenth to spare. A step
# has two samples everywhere: the GPU decides the speed, not the result. Blocks are SDXL's.
MEMORY_PRESETS = {
    "4 GB": MemoryPreset(1024, 1, 2, True, "AdamW8bit", blocks_to_swap=70),
    "6 GB": MemoryPreset(1024, 1, 2, True, "AdamW8bit", blocks_to_swap=36),
    "8 GB": MemoryPreset(1024, 1, 2, True, "AdamW8bit"),
    "12 GB": MemoryPreset(1024, 2, 1, True, "AdamW8bit"),
    "16 GB": MemoryPreset(1024, 1, 2, False, "AdamW"),
    "24 GB": MemoryPreset(1024, 2, 1, False, "AdamW"),
}


def get_device_bytes(memory: str) -> int:
    """Return the memory of the GPUs that a preset is for."""
    return int(memory.split()[0]) * GIBIBYTE


def choose_memory_preset(device_bytes: int) -> str:
    """Return the largest preset that fits the device. A card sold as 12 GB may report 5 % less."""
    fitting = [name for name in MEMORY_PRESETS if get_device_bytes(name) <= device_bytes * 1.05]
    return fitting[-1] if fitting else next(iter(MEMORY_PRESETS))


def resolve(
    config_class: type[ConfigT],
    given: dict[str, Any],
    *,
    goal: str | None,
    memory: str | None,
    num_images: int,
    count_steps: StepCounter | None = None,
) -> RunSettings[ConfigT]:
    """Fill the settings that were not given (of the config, BucketConfig and CaptionConfig) from
    the two presets; without a preset they keep their defaults.

    `num_images` includes repeats and what validation_share will hold out: it is the number of
    samples per epoch without it. `count_steps` tells how many steps draw a number of samples of the
    training images; without it all batches are full.

    Raises:
        ValueError: a given setting is out of its range.
    """
    if given.get("blocks_to_swap") == AUTO_BLOCKS:  # which is also its value where nobody chose
        given = {name: value for name, value in given.items() if name != "blocks_to_swap"}
    settings = {**choose(given, goal=goal, memory=memory), **given}
    if goal and "max_train_steps" not in given:
        open_settings = RunSettings.read(config_class, settings)
        num_trained = num_images - round(open_settings.training.validation_share * num_images)
        num_samples = _count_samples(GOALS[goal], num_trained)
        settings["max_train_steps"] = (count_steps or count_full_steps)(open_settings, num_samples)
    return RunSettings.read(config_class, settings)


def choose(given: dict[str, Any], *, goal: str | None, memory: str | None) -> dict[str, Any]:
    """Return what the two presets choose next to the given settings: all but max_train_steps, which
    depends on the dataset.
    """
    from_memory = _apply_memory_preset(MEMORY_PRESETS[memory], given) if memory else {}
    from_goal = _apply_goal(GOALS[goal], given) if goal else {}
    return {**from_memory, **from_goal}


def _apply_memory_preset(preset: MemoryPreset, given: dict[str, Any]) -> dict[str, Any]:
    """Return the preset's settings. Its accumulation belongs to its batch size: a given batch size
    drops it.
    """
    accumulation = {"gradient_accumulation_steps": 1} if "train_batch_size" in given else {}
    return {**{spec.name: getattr(preset, spec.name) for spec in fields(preset)}, **accumulation}


def _apply_goal(goal: Goal, given: dict[str, Any]) -> dict[str, Any]:
    rank = given.get("rank", goal.rank)
    return {"rank": rank, "alpha": rank * goal.alpha_per_rank, "learning_rate": goal.learning_rate}


def count_full_steps(settings: RunSettings, num_samples: int, *, num_processes: int = 1) -> int:
    """Return how many steps draw so many samples if all batches are full."""
    config = settings.training
    return math.ceil(num_samples / (config.train_batch_size * config.gradient_accumulation_steps * num_processes))


def _count_samples(goal: Goal, num_images: int) -> int:
    low, high = goal.num_samples
    return min(max(goal.samples_per_image * num_images, low), high)


def describe(settings: RunSettings) -> str:
    """Describe the main settings on two lines."""
    config = settings.training
    duration = f"{config.num_train_epochs} epochs" if config.num_train_epochs else f"{config.max_train_steps} steps"
    batch = f"batch size {config.train_batch_size}"
    if config.gradient_accumulation_steps > 1:
        batch += f" x {config.gradient_accumulation_steps} accumulated"
    checkpointing = "gradient checkpointing" if config.gradient_checkpointing else "no gradient checkpointing"
    swapped = f", {config.blocks_to_swap} blocks in main memory" if config.blocks_to_swap > 0 else ""
    return (
        f"{duration}, rank {config.rank}, alpha {config.alpha:g}, learning rate {config.learning_rate:g}, "
        f"{config.optimizer}.\n"
        f"Resolution {settings.buckets.resolution}, {batch}, {checkpointing}{swapped}, seed {config.seed}."
    )
