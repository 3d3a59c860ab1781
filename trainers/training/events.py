"""What every trainer shares: the events it reports and the result it hands over. Imports no torch
at run time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from ..dataset.dataset import Dataset
    from .host import Host


@dataclass(frozen=True)
class StageStarted:
    """A stage began: "loading", "caching", "training" or "saving"; total counts its steps (0:
    unknown).
    """

    stage: str
    total: int = 0


@dataclass(frozen=True)
class StageProgress:
    """`step` of `total` in a stage other than training, and what is being worked on."""

    stage: str
    step: int
    total: int
    detail: str = ""


@dataclass(frozen=True)
class StepDone:
    """One optimizer step. Times in seconds, memory in bytes (the device's peak; the process's on a
    CPU). Not known: learning rate NaN, memory 0.
    """

    step: int
    total: int
    epoch: int
    loss: float
    average_loss: float
    learning_rate: float
    steps_per_second: float
    eta_seconds: float
    memory_bytes: int


@dataclass(frozen=True)
class CheckpointSaved:
    path: Path
    step: int


@dataclass(frozen=True)
class SamplesDrawn:
    """Pictures that the LoRA as of `step` draws, side by side."""

    picture: Image.Image
    path: Path
    step: int


@dataclass(frozen=True)
class PictureCaptioned:
    """Picture `step` of `total`: scaled down for a preview, and what the model says of it."""

    picture: Image.Image
    name: str
    caption: str
    step: int
    total: int


@dataclass(frozen=True)
class Notice:
    """Something that the user should know and that does not stop the run."""

    message: str


Event = StageStarted | StageProgress | StepDone | CheckpointSaved | SamplesDrawn | PictureCaptioned | Notice


class Interrupted(BaseException):
    """The user cancelled. A BaseException, as the host's own: an `except Exception` must not
    swallow it.
    """


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


class LoraTrainer(Protocol):
    def train(self, dataset: Dataset, host: Host) -> TrainedLora: ...
