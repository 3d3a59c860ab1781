"""Settings that follow from what the LoRA should learn and how much memory there is. Pure tables
and arithmetic: no torch, no device.

A preset decides only what the user left open; whatever was given stays as given.
"""

import math
from dataclasses import dataclass, fields
from typing import Any

from ..training.plan import RunSettings
from ..wording import GIBIBYTE
from .config import SDXLConfig


@dataclass(frozen=True)
class Goal:
    """What the LoRA should learn. `samples_per_image` is how often the training sees an image;
    `num_samples` are the limits for all images together.
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
    """What fits a GPU of that size. A batch that memory forbids is made of smaller ones
    (gradient_accumulation_steps).
    """

    resolution: int
    train_batch_size: int
    gradient_accumulation_steps: int
    gradient_checkpointing: bool
    optimizer: str

    def text(self) -> str:
        accumulation = (
            f" x {self.gradient_accumulation_steps} accumulated" if self.gradient_accumulation_steps > 1 else ""
        )
        checkpointing = "gradient checkpointing" if self.gradient_checkpointing else "no gradient checkpointing"
        return (
            f"resolution {self.resolution}, batch size {self.train_batch_size}{accumulation}, {self.optimizer}, "
            f"{checkpointing}"
        )


GOALS = {
    "person": Goal(rank=16, alpha_per_rank=1.0, learning_rate=1e-4, samples_per_image=100, num_samples=(1000, 4000)),
    "style": Goal(rank=32, alpha_per_rank=0.5, learning_rate=1e-4, samples_per_image=60, num_samples=(1500, 6000)),
    "object": Goal(rank=16, alpha_per_rank=0.5, learning_rate=1e-4, samples_per_image=80, num_samples=(800, 3000)),
}
# By memory.py's estimates (benchmarks/README.md), with a tenth to spare. Two samples to a step
# everywhere: the GPU decides the speed, not the result.
MEMORY_PRESETS = {
    "8 GB": MemoryPreset(1024, 1, 2, True, "AdamW8bit"),
    "12 GB": MemoryPreset(1024, 2, 1, True, "AdamW8bit"),
    "16 GB": MemoryPreset(1024, 2, 1, True, "AdamW"),
    "24 GB": MemoryPreset(1024, 1, 2, False, "AdamW"),
}


def choose_memory_preset(device_bytes: int) -> str:
    """The largest preset for a device of that many bytes; a card sold as 12 GB reports a little
    less.
    """
    fitting = [name for name in MEMORY_PRESETS if int(name.split()[0]) * GIBIBYTE <= device_bytes * 1.05]
    return fitting[-1] if fitting else next(iter(MEMORY_PRESETS))


def resolve(given: dict[str, Any], *, goal: str, memory: str, num_images: int) -> RunSettings[SDXLConfig]:
    """All settings, from those that were given (names of SDXLConfig, BucketConfig and
    CaptionConfig) and the two presets.

    `num_images` counts repeats: how many samples an epoch has.

    Raises:
        ValueError: a given setting is out of its range.
    """
    settings = {**_from_memory(MEMORY_PRESETS[memory], given), **_from_goal(GOALS[goal], given), **given}
    if "max_train_steps" not in given:
        samples_per_step = settings["train_batch_size"] * settings["gradient_accumulation_steps"]
        settings["max_train_steps"] = math.ceil(_num_samples(GOALS[goal], num_images) / samples_per_step)
    return RunSettings.read(SDXLConfig, settings)


def _from_memory(preset: MemoryPreset, given: dict[str, Any]) -> dict[str, Any]:
    """The preset's accumulation belongs to its own batch size, and is dropped with it."""
    accumulation = {"gradient_accumulation_steps": 1} if "train_batch_size" in given else {}
    return {**{spec.name: getattr(preset, spec.name) for spec in fields(preset)}, **accumulation}


def _from_goal(goal: Goal, given: dict[str, Any]) -> dict[str, Any]:
    rank = given.get("rank", goal.rank)
    return {"rank": rank, "alpha": rank * goal.alpha_per_rank, "learning_rate": goal.learning_rate}


def _num_samples(goal: Goal, num_images: int) -> int:
    low, high = goal.num_samples
    return min(max(goal.samples_per_image * num_images, low), high)


def describe(settings: RunSettings[SDXLConfig]) -> str:
    """The numbers that the presets and the user's settings came to, on two lines."""
    config = settings.training
    duration = f"{config.num_train_epochs} epochs" if config.num_train_epochs else f"{config.max_train_steps} steps"
    batch = f"batch size {config.train_batch_size}"
    if config.gradient_accumulation_steps > 1:
        batch += f" x {config.gradient_accumulation_steps} accumulated"
    checkpointing = "gradient checkpointing" if config.gradient_checkpointing else "no gradient checkpointing"
    return (
        f"{duration}, rank {config.rank}, alpha {config.alpha:g}, learning rate {config.learning_rate:g}, "
        f"{config.optimizer}.\n"
        f"Resolution {settings.buckets.resolution}, {batch}, {checkpointing}, seed {config.seed}."
    )
