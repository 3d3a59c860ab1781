"""How samples become optimizer steps: their counts, and the order of a run's steps."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from ..dataset.crop_plan import CropPlan, TrainingItem
from ..dataset.epochs import batch_epoch
from .config import TrainingConfig


@dataclass(frozen=True)
class Schedule:
    """The numbers of samples (uses of an image), batches and optimizer steps."""

    num_samples: int  # per epoch
    num_batches: int  # per epoch, each shared by all processes
    steps_per_epoch: int
    total_steps: int
    samples_by_image: dict[str, int]  # per epoch, by the image's name
    regularization: frozenset[str]  # names of the regularization images
    num_partial_batches: int  # per epoch
    samples_per_step: int  # of a step whose batches are all full
    pixels_per_step: float
    num_processes: int = 1

    @property
    def num_training_samples(self) -> int:
        """Per epoch, without regularization."""
        return sum(count for name, count in self.samples_by_image.items() if name not in self.regularization)

    @property
    def num_epochs(self) -> float:
        return self.total_steps / self.steps_per_epoch

    def times_seen(self, name: str) -> float:
        return self.samples_by_image[name] * self.num_epochs

    @property
    def times_seen_range(self) -> tuple[float, float]:
        """How often the least and the most seen image are seen, regularization left out."""
        counts = [count for name, count in self.samples_by_image.items() if name not in self.regularization]
        return min(counts) * self.num_epochs, max(counts) * self.num_epochs


def plan_schedule(crops: CropPlan, config: TrainingConfig, *, num_processes: int = 1) -> Schedule:
    """Count the steps of the loop. The crop plan must have at least one item."""
    batch_size = config.train_batch_size * num_processes
    batches = batch_epoch(crops.items, batch_size=batch_size, seed=config.seed, epoch=1)
    steps_per_epoch = math.ceil(len(batches) / config.gradient_accumulation_steps)
    return Schedule(
        num_samples=len(crops.items),
        num_batches=len(batches),
        steps_per_epoch=steps_per_epoch,
        total_steps=config.num_train_epochs * steps_per_epoch or config.max_train_steps,
        samples_by_image=dict(Counter(item.image.name for item in crops.items)),
        regularization=frozenset(item.image.name for item in crops.items if item.image.is_regularization),
        num_partial_batches=sum(len(batch) < batch_size for batch in batches),
        samples_per_step=batch_size * config.gradient_accumulation_steps,
        pixels_per_step=sum(math.prod(item.crop.target_hw) for item in crops.items) / steps_per_epoch,
        num_processes=num_processes,
    )


@dataclass(frozen=True)
class Step:
    """One optimizer step: its number and epoch, from 1, and its micro-batches."""

    number: int
    epoch: int
    micro_batches: list[list[TrainingItem]]

    @property
    def num_samples(self) -> int:
        return sum(map(len, self.micro_batches))


def iterate_steps(
    items: list[TrainingItem], config: TrainingConfig, schedule: Schedule, *, done: int = 0
) -> Iterator[Step]:
    """Yield all steps of a run, or those that are left after `done` steps. Accumulation does not
    cross epochs: the last step of an epoch may be smaller.
    """
    group_size, batch_size = config.gradient_accumulation_steps, config.train_batch_size * schedule.num_processes
    epoch = done // schedule.steps_per_epoch
    number = epoch * schedule.steps_per_epoch
    while True:
        epoch += 1
        batches = batch_epoch(items, batch_size=batch_size, seed=config.seed, epoch=epoch)
        for start in range(0, len(batches), group_size):
            if number == schedule.total_steps:
                return
            number += 1
            if number > done:
                group = batches[start : start + group_size]
                yield Step(number, epoch, [[item.in_epoch(epoch) for item in batch] for batch in group])
