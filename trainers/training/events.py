"""What a trainer reports while it runs. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from PIL import Image

Request = Literal["finish", "pause"]  # of the user, to a running training


@dataclass(frozen=True)
class StageStarted:
    """A stage began: "loading", "caching", "training" or "saving". `total` is its number of steps
    (0: unknown).
    """

    stage: str
    total: int = 0


@dataclass(frozen=True)
class StageProgress:
    """`step` of `total` in a stage other than training. `detail` names what it works on."""

    stage: str
    step: int
    total: int
    detail: str = ""


@dataclass(frozen=True)
class StepDone:
    """One optimizer step. Times are in seconds; memory is the device's peak in bytes, on a CPU the
    process's. An unknown learning rate is NaN, unknown memory is 0.
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
    """Sample images drawn with the LoRA of `step`, side by side."""

    image: Image.Image
    path: Path
    step: int


@dataclass(frozen=True)
class Validated:
    """The loss on fixed draws after `step` steps; `first_loss` is the first of the run. `kind` is
    "held-out" for images that are not trained on, else "stable loss".
    """

    step: int
    loss: float
    ema_loss: float | None  # of the moving average; None: there is none
    kind: str
    first_loss: float

    def text(self) -> str:
        name = "validation loss" if self.kind == "held-out" else self.kind
        average = "" if self.ema_loss is None else f", {self.ema_loss / self.first_loss:.1%} with the average"
        return f"step {self.step}: {name} {self.loss:.4f}, {self.loss / self.first_loss:.1%} of the first{average}"


@dataclass(frozen=True)
class ImageCaptioned:
    """Image `step` of `total`, scaled down for a preview, and its new caption."""

    image: Image.Image
    name: str
    caption: str
    step: int
    total: int


@dataclass(frozen=True)
class Notice:
    """A message for the user that does not stop the run."""

    message: str


@dataclass(frozen=True)
class RunDescribed(Notice):
    """What the presets came to, and the memory that there is for the run, in bytes."""

    memory_budget_bytes: int = 0


Event = StageStarted | StageProgress | StepDone | Validated | CheckpointSaved | SamplesDrawn | ImageCaptioned | Notice


class Interrupted(BaseException):
    """The user cancelled. A BaseException, like the host's: no `except Exception` may swallow
    it.
    """


class Paused(Interrupted):
    """The user paused. The state of the last step is saved; the same request goes on from it."""
