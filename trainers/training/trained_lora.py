"""The result of a training."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TrainedLora:
    """A finished LoRA: contiguous CPU tensors by kohya names, its metadata, losses and files."""

    state_dict: dict[str, Tensor]
    metadata: dict[str, str]
    losses: list[float]
    steps: int
    path: Path | None = None
    checkpoints: list[Path] = field(default_factory=list)
    finished_early: bool = False  # the user asked for the LoRA so far, or early_stop ended the run
    was_loaded: bool = False  # the same run was finished before, and nothing was trained
    ema_path: Path | None = None
    best_path: Path | None = None  # the best step by validation, if there is one and save_best is on
    embedding_path: Path | None = None  # the new tokens, if some were trained
