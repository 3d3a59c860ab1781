"""Settings that need less memory than the given ones, the least harmful first."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from ..dataset.bucket_sizes import Size
from ..training.config import AUTO_BLOCKS, MAX_BLOCKS, TrainingConfig
from ..wording import format_gigabytes
from .family_check import ConfigT
from .memory_estimate import MemoryEstimate


def smaller_settings(
    config: ConfigT,
    size_hw: Size,
    estimate: Callable[[ConfigT, Size], MemoryEstimate],
    *,
    works: Callable[[str], bool],
) -> list[tuple[str, MemoryEstimate]]:
    """List settings that need less memory, the least harmful first. Each comes with the estimate
    for it and all before it together.

    `estimate` gets a config and the size of its largest bucket, and resolves mixed_precision
    itself. `works` tells whether an optimizer can be used on this machine.
    """
    steps = []
    for description, changes, resolution in _propose_changes(config, works):
        if resolution and size_hw[0] * size_hw[1] <= resolution**2:
            continue
        config, size_hw = replace(config, **changes), _scale_size(size_hw, resolution) if resolution else size_hw
        steps.append((description, estimate(config, size_hw)))
    return steps


def suggest_next(smaller: Sequence[tuple[str, MemoryEstimate]]) -> str:
    """Return a sentence with the first of the settings that smaller_settings found."""
    if not smaller:
        return "Every setting is at its smallest: close other programs that use the GPU, or use one with more memory"
    return "Next, try " + ", then ".join(
        f"{setting} (about {format_gigabytes(less.total_bytes)})" for setting, less in smaller[:3]
    )


def _propose_changes(config: TrainingConfig, works: Callable[[str], bool]) -> Iterator[tuple[str, dict[str, Any], int]]:
    """Yield (description, fields to change, new resolution or 0)."""
    if config.sample_every_n_steps:
        yield "sample_every_n_steps 0", {"sample_every_n_steps": 0}, 0
    if config.mixed_precision == "no":
        yield "mixed_precision auto", {"mixed_precision": "auto"}, 0
    if not config.gradient_checkpointing:
        yield "gradient_checkpointing on", {"gradient_checkpointing": True}, 0
    if config.train_batch_size > 1:
        num_passes = min(config.gradient_accumulation_steps * config.train_batch_size, 1024)
        changes = {"train_batch_size": 1, "gradient_accumulation_steps": num_passes}
        yield f"train_batch_size 1 with gradient_accumulation_steps {num_passes}", changes, 0
    if AUTO_BLOCKS < config.blocks_to_swap < MAX_BLOCKS:
        yield f"blocks_to_swap {MAX_BLOCKS}, which is all", {"blocks_to_swap": MAX_BLOCKS}, 0
    if config.optimizer == "AdamW" and works("AdamW8bit"):
        yield "optimizer AdamW8bit", {"optimizer": "AdamW8bit"}, 0
    if config.optimizer == "Prodigy" and works("AdamW8bit"):
        yield "optimizer AdamW8bit with learning_rate 1e-4", {"optimizer": "AdamW8bit", "learning_rate": 1e-4}, 0
    if getattr(config, "train_text_encoders", False):  # only SDXL has it
        yield "train_text_encoders off", {"train_text_encoders": False}, 0
    yield "resolution 768", {}, 768
    yield "resolution 512", {}, 512
    if config.rank > 8:
        yield "rank 8", {"rank": 8}, 0


def _scale_size(size_hw: Size, resolution: int) -> Size:
    scale = resolution / (size_hw[0] * size_hw[1]) ** 0.5
    return round(size_hw[0] * scale / 8) * 8, round(size_hw[1] * scale / 8) * 8
