"""What a trainer reports while it runs. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image


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
    """Images that the LoRA as of `step` draws, side by side."""

    image: Image.Image
    path: Path
    step: int


@dataclass(frozen=True)
class ImageCaptioned:
    """Image `step` of `total`: scaled down for a preview, and what the model says of it."""

    image: Image.Image
    name: str
    caption: str
    step: int
    total: int


@dataclass(frozen=True)
class Notice:
    """Something that the user should know and that does not stop the run."""

    message: str


Event = StageStarted | StageProgress | StepDone | CheckpointSaved | SamplesDrawn | ImageCaptioned | Notice


class Interrupted(BaseException):
    """The user cancelled. A BaseException, as the host's own: an `except Exception` must not
    swallow it.
    """
