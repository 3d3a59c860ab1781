"""How the samples of an SDXL training become optimizer steps, from its plan alone, and how often an
image is seen.
"""

import math
from collections import Counter
from dataclasses import dataclass

from ...dataset.crop_plan import CropPlan
from ...dataset.epochs import epoch_batches
from ..config import SDXLConfig


@dataclass(frozen=True)
class Schedule:
    """How the samples (uses of pictures) become optimizer steps."""

    num_samples: int  # per epoch
    num_batches: int  # per epoch
    steps_per_epoch: int
    total_steps: int
    samples_by_picture: dict[str, int]  # per epoch, by the picture's name
    regularization: frozenset[str]  # names of the pictures that only hold the model back
    num_partial_batches: int  # per epoch
    pixels_per_step: float

    @property
    def num_epochs(self) -> float:
        return self.total_steps / self.steps_per_epoch

    def times_seen(self, name: str) -> float:
        return self.samples_by_picture[name] * self.num_epochs

    @property
    def times_seen_range(self) -> tuple[float, float]:
        """Of the picture to learn that is seen least, and of the one that is seen most."""
        counts = [count for name, count in self.samples_by_picture.items() if name not in self.regularization]
        return min(counts) * self.num_epochs, max(counts) * self.num_epochs


def plan_schedule(plan: CropPlan, config: SDXLConfig) -> Schedule:
    """As the trainer counts, for one process. The plan has at least one item."""
    batches = epoch_batches(plan.items, batch_size=config.train_batch_size, seed=config.seed, epoch=1)
    steps_per_epoch = math.ceil(len(batches) / config.gradient_accumulation_steps)
    return Schedule(
        num_samples=len(plan.items),
        num_batches=len(batches),
        steps_per_epoch=steps_per_epoch,
        total_steps=config.num_train_epochs * steps_per_epoch or config.max_train_steps,
        samples_by_picture=dict(Counter(item.image.name for item in plan.items)),
        regularization=frozenset(item.image.name for item in plan.items if item.image.is_regularization),
        num_partial_batches=sum(len(batch) < config.train_batch_size for batch in batches),
        pixels_per_step=sum(math.prod(item.crop.target_hw) for item in plan.items) / steps_per_epoch,
    )
