"""What every section works with: the device, the folder, the sizes, the two base models."""

import gc
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from benchmarks.random_sdxl import random_weights
from trainers.comfyui.find import Installation
from trainers.embedded_base import write_embedded_checkpoint
from trainers.sdxl.config import SDXLConfig
from trainers.sdxl.model.sdxl_model import SDXLModel, build_model, load_model
from trainers.training.device import count_memory_bytes, usual_precision

LoadModel = Callable[[], SDXLModel]
STREAMING = "blocks_to_swap"  # the setting of a trainer that can stream weights


@dataclass(frozen=True)
class Sizes:
    """Width and height in pixels; `square` is what a preset trains at, `upright` has its area."""

    small: int
    square: int
    upright: tuple[int, int]
    bucket_reso_steps: int


FULL_SIZES = Sizes(small=512, square=1024, upright=(832, 1216), bucket_reso_steps=64)
TINY_SIZES = Sizes(small=64, square=64, upright=(64, 96), bucket_reso_steps=32)


class Bench:
    """`total_bytes` is the device's memory, None where it is not known. With `is_tiny` the embedded
    base takes the place of the full-size model, at tiny sizes.
    """

    def __init__(
        self,
        device: torch.device,
        out: Path,
        *,
        is_tiny: bool,
        comfyui: Installation | None = None,
        no_comfyui: str = "",
    ) -> None:
        self.device = device
        self.out = out
        self.is_tiny = is_tiny
        self.comfyui = comfyui
        self.no_comfyui = no_comfyui
        self.sizes = TINY_SIZES if is_tiny else FULL_SIZES
        self.total_bytes = count_memory_bytes(device)

    @property
    def has_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def half(self) -> str:
        """What mixed_precision auto chooses on this card; bf16 where that is float32."""
        usual = usual_precision(self.device)
        return "bf16" if usual == "no" else usual

    @cached_property
    def tiny_file(self) -> Path:
        path = self.out / "models" / "embedded_base.safetensors"
        path.unlink(missing_ok=True)
        write_embedded_checkpoint(path)
        return path

    def load_tiny(self) -> SDXLModel:
        return load_model(self.tiny_file)

    def load_full(self) -> SDXLModel:
        """Build the full-size model on its weights in main memory, or the tiny one in its place."""
        if self.is_tiny:
            return self.load_tiny()
        return build_model({part: dict(weights) for part, weights in self.full_weights.items()}, name="random")

    @cached_property
    def full_weights(self) -> dict[Any, dict[str, torch.Tensor]]:
        """Random weights of all parts in bf16, drawn on the device, kept in main memory."""
        return random_weights(device=self.device)

    def synchronize(self) -> None:
        if self.has_cuda:
            torch.cuda.synchronize(self.device)

    def allocated_bytes(self) -> int:
        return torch.cuda.memory_allocated(self.device) if self.has_cuda else 0

    def free(self) -> None:
        """Give back the memory of what is no longer used."""
        gc.collect()
        if self.has_cuda:
            torch.cuda.empty_cache()


def can_stream() -> bool:
    """Tell whether the trainer can keep weights in main memory while it trains."""
    return any(field.name == STREAMING for field in fields(SDXLConfig))


def resident() -> dict[str, int]:
    """Return the settings that keep all weights on the device."""
    return {STREAMING: 0} if can_stream() else {}
