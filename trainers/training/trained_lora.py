"""What a training hands over."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TrainedLora:
    """A finished LoRA: contiguous CPU tensors under kohya names, its metadata, and how it came
    about.
    """

    state_dict: dict[str, Tensor]
    metadata: dict[str, str]
    losses: list[float]
    steps: int
    path: Path | None = None
    checkpoints: list[Path] = field(default_factory=list)
