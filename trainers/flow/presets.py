"""What a flow training takes for settings that were left open: from its family, the goal and the
memory. Only tables and arithmetic: no torch, no device.
"""

import math
from collections.abc import Callable
from typing import Any

from ..check.memory_estimate import MemoryEstimate
from ..dataset.bucket_config import BucketConfig
from ..training.config import AUTO_BLOCKS
from ..training.presets import MEMORY_PRESETS, StepCounter, get_device_bytes, resolve
from ..training.run_settings import RunSettings
from ..wording import format_gigabytes
from .config import FlowConfig
from .families import FlowFamilyRow

LOWER_RESOLUTIONS = (768, 512)
_SPARE = 0.1  # as in the presets of SDXL: for the screen, and for what the estimate does not know


def resolve_flow(
    given: dict[str, Any],
    family: FlowFamilyRow,
    *,
    goal: str,
    memory: str,
    num_images: int,
    count_steps: StepCounter | None = None,
) -> RunSettings[FlowConfig]:
    """Fill the settings that were not given. `num_images` and `count_steps` are resolve's.

    Raises:
        ValueError: a given setting is out of its range, or does not suit the family.
    """
    settings = {**_choose_by_family(family), **_choose_by_memory(memory, family, given), **given}
    settings["timestep_sampling"] = _choose_sampling(given, family)
    settings["discrete_flow_shift"] = given.get("discrete_flow_shift") or family.discrete_flow_shift or 0.0
    settings["min_timestep"] = given.get("min_timestep") or family.timesteps[0]
    settings["max_timestep"] = given.get("max_timestep") or family.timesteps[1]
    settings["bucket_reso_steps"] = _choose_bucket_steps(given, family)
    return resolve(FlowConfig, settings, goal=goal, memory=memory, num_images=num_images, count_steps=count_steps)


def _choose_by_family(family: FlowFamilyRow) -> dict[str, Any]:
    return {"rank": family.rank, "learning_rate": family.learning_rate}


def _choose_by_memory(memory: str, family: FlowFamilyRow, given: dict[str, Any]) -> dict[str, Any]:
    """These models are larger than SDXL, for which the presets are made: gradient checkpointing
    is always on, and the preset's batch is accumulated from single images. As many of their blocks
    stay in main memory as the memory needs. choose_resolution lowers the resolution if even that
    is not enough.
    """
    preset = MEMORY_PRESETS[memory]
    per_step = preset.train_batch_size * preset.gradient_accumulation_steps
    return {
        "resolution": min(preset.resolution, family.resolution),
        "train_batch_size": 1,
        "gradient_accumulation_steps": 1 if "train_batch_size" in given else per_step,
        "gradient_checkpointing": True,
        "blocks_to_swap": AUTO_BLOCKS,
    }


def choose_resolution(
    highest: int, estimate: Callable[[int], MemoryEstimate], device_bytes: int
) -> tuple[int, MemoryEstimate]:
    """Return the highest resolution at which a training fits the device, with a tenth to spare, or
    the lowest one, and the estimate for it. `estimate` gets a resolution; a rough one tells too
    little to lower it.
    """
    resolution, found = highest, estimate(highest)
    for lower in LOWER_RESOLUTIONS:
        if found.is_rough or _fits(found, device_bytes):
            break
        if lower < resolution:
            resolution, found = lower, estimate(lower)
    return resolution, found


def describe_need(needed: MemoryEstimate, resolution: int, family: FlowFamilyRow, device_bytes: int) -> str:
    """Return a sentence on what fits, if the training does not; else ""."""
    if _fits(needed, device_bytes):
        return ""
    fitting = [name for name in MEMORY_PRESETS if _fits(needed, get_device_bytes(name))]
    smallest = f"the smallest memory that fits is {fitting[0]}" if fitting else "no preset of memory fits"
    certainty = "very roughly" if needed.is_rough else "about"
    return (
        f"{family.name} needs {certainty} {format_gigabytes(needed.total_bytes)} at {resolution} pixels, with the "
        f"weights of its blocks in main memory, which is too much for {format_gigabytes(device_bytes)}: {smallest}"
    )


def _fits(needed: MemoryEstimate, device_bytes: int) -> bool:
    return needed.total_bytes <= (1 - _SPARE) * device_bytes


def _choose_sampling(given: dict[str, Any], family: FlowFamilyRow) -> str:
    sampling = given.get("timestep_sampling", "auto")
    return family.timestep_sampling if sampling == "auto" else sampling


def _choose_bucket_steps(given: dict[str, Any], family: FlowFamilyRow) -> int:
    """The sides of images must be multiples of the family's step."""
    usual, step = BucketConfig.bucket_reso_steps, family.resolution_step
    steps = given.get("bucket_reso_steps", usual)
    if steps == usual:
        return math.lcm(usual, step)
    if steps % step:
        raise ValueError(
            f"bucket_reso_steps must be a multiple of {step} for {family.name}, got {steps}. Leave it at {usual}, or "
            f"set {math.lcm(steps, step)}"
        )
    return steps
