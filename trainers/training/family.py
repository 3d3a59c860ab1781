"""What a model family implements for a training. The loop does the rest and knows no family."""

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
from .validation_plan import ValidationDraw


@dataclass(frozen=True)
class Progress:
    """How far a run is when its LoRA is written. `started_at` is in seconds since 1970."""

    title: str  # the file's name
    step: int
    started_at: float


class PreparedModel(Protocol):
    """A frozen base model with adapters, and everything that was computed before the first step."""

    @property
    def adapted(self) -> AdaptedModel:
        """The adapters, which are all that is trained."""
        ...

    @property
    def precision(self) -> str:
        """The precision that the model computes in: "no" (float32), "bf16" or "fp16"."""
        ...

    def loss_terms(self, items: Sequence[TrainingItem], step: int) -> Iterator[Tensor]:
        """Yield the losses [B] of a micro-batch. Their sum is the loss.

        The loop runs the backward pass of each term before it asks for the next one, so that only
        one term has its activations in memory.
        """
        ...

    def validation_losses(self, draws: Sequence[ValidationDraw]) -> Tensor:
        """Return the mean squared errors [len(draws)] of fixed draws: without gradients, without
        dropout of the LoRA or of captions, without weights of timesteps or images. The noise
        depends on the run's seed and on the draw's index. This must not change the training.
        """
        ...

    def enable_gradient_checkpointing(self) -> bool:
        """Recompute activations in the backward pass from now on. Return False if that is so
        already.
        """
        ...

    def stream_more_weights(self) -> int:
        """Keep the frozen weights of more blocks in main memory from now on. Return of how many
        they are there; 0 if there are no more. It computes activations again too.
        """
        ...

    def draw_samples(self) -> list[list[Image.Image]]:
        """Draw what was learned so far: a row for each of the plan's sample prompts, an image for
        each of its seeds. This must not change the training.

        Raises:
            Interrupted: the host cancelled.
        """
        ...

    def metadata(self, progress: Progress) -> dict[str, str]:
        """Return the header of the LoRA file."""
        ...

    def facts(self) -> dict[str, Any]:
        """Return the manifest's entries on the base model: plain values by name."""
        ...


class ModelFamily(Protocol):
    """A kind of base model, before it is loaded."""

    def identify(self, plan: TrainingPlan, host: Host) -> dict[str, str]:
        """Load the model, and return a hash for each of its parts. `prepare` uses the model that
        was loaded.

        Raises:
            ValueError: the base model or a setting cannot be used; nothing was written.
        """
        ...

    def prepare(self, plan: TrainingPlan, host: Host, *, cache: TensorCache, world: World) -> PreparedModel:
        """Encode all images and texts, and attach the adapters.

        Raises:
            ValueError: the base model or a setting cannot be used; nothing was written.
        """
        ...
