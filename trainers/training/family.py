"""What a model family brings to a training. The loop does the rest, and knows no family."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image
from torch import Tensor

from ..dataset.crop_plan import TrainingItem
from ..files.tensor_cache import TensorCache
from .adapters import AdaptedModel
from .distributed import World
from .host import Host
from .plan import TrainingPlan


@dataclass(frozen=True)
class Progress:
    """How far a run is when its LoRA is written. started_at in seconds since 1970."""

    title: str  # the file's name
    step: int
    started_at: float


class PreparedModel(Protocol):
    """A frozen base model with adapters, and everything that was computed once, as the loop uses
    it.
    """

    @property
    def adapted(self) -> AdaptedModel:
        """What is trained."""
        ...

    @property
    def precision(self) -> str:
        """In which the model computes: "no" (float32), "bf16" or "fp16"."""
        ...

    def loss_terms(self, items: Sequence[TrainingItem], step: int) -> Iterator[Tensor]:
        """Losses [B] of a micro-batch, to be added up.

        The loop runs the backward pass of each before it asks for the next, so that only one has
        its activations in memory.
        """
        ...

    def draw_samples(self) -> Image.Image:
        """Images that show what was learned so far. Changes nothing of the training."""
        ...

    def metadata(self, progress: Progress) -> dict[str, str]:
        """The header of the LoRA file."""
        ...

    def facts(self) -> dict[str, Any]:
        """What the manifest says of the base model: plain values under their names."""
        ...


class ModelFamily(Protocol):
    """A kind of base model, before it is loaded."""

    def prepare(self, plan: TrainingPlan, host: Host, *, cache: TensorCache, world: World) -> PreparedModel:
        """Load the model, encode all images and texts, and attach the adapters.

        Raises:
            ValueError: the base model or a setting cannot be used; nothing was written.
        """
        ...
