"""What the flight check asks of a model family: what only the family knows of settings, captions
and cost.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from ..dataset.image import TrainingImage
from ..training.config import TrainingConfig
from ..training.plan import TrainingPlan
from .check_finding import CheckFinding
from .memory_estimate import MemoryEstimate

ConfigT = TypeVar("ConfigT", bound=TrainingConfig)


@dataclass(frozen=True)
class CacheSizes:
    """What the cache takes for an image and for the texts, in bytes."""

    latent_bytes_per_pixel: float
    mask_bytes_per_pixel: float
    captions_bytes: float  # of all texts


@dataclass(frozen=True)
class FamilyCost:
    memory: MemoryEstimate
    num_parameters: int  # that are trained
    cache: CacheSizes
    notes: tuple[str, ...] = ()  # on the estimate, such as how it was made


class FamilyCheck(Protocol[ConfigT]):
    """`precision` is that which the model computes in. Runs whose manifest says the same of
    `base_model` are as fast, if their speed settings are the same too.
    """

    @property
    def title(self) -> str:
        """The model, as users call it."""
        ...

    @property
    def precision(self) -> str: ...

    @property
    def base_model(self) -> dict[str, str | None]: ...

    @property
    def speed_settings(self) -> tuple[str, ...]:
        """The settings that decide the speed of a step, apart from image sizes."""
        ...

    def check_settings(self, config: ConfigT) -> None:
        """
        Raises:
            ValueError, ImportError: the trainer would refuse them.
        """
        ...

    def check_plan(self, plan: TrainingPlan[ConfigT]) -> None:
        """
        Raises:
            ValueError: the trainer would refuse it.
        """
        ...

    def judge_model(self) -> Iterator[CheckFinding]:
        """Report what the user should know of the model."""
        ...

    def judge_lengths(self, texts: Iterable[tuple[TrainingImage, Sequence[str]]]) -> Iterator[CheckFinding]:
        """Report captions that are too long, by the longest variant of each."""
        ...

    def estimate(self, plan: TrainingPlan[ConfigT]) -> FamilyCost: ...
