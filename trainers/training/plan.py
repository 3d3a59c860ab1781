"""What a run will do with a dataset, planned once, before any model is loaded. Imports no torch:
errors in settings and folders show at once.
"""

import math
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Generic

from ..dataset.crop_plan import CropPlan, TrainingItem, plan_crops
from ..dataset.dataset import Dataset
from ..dataset.report import Remark
from ..wording import name_examples, pluralize
from .held_out import Split, hold_out_images
from .presets import StepCounter, count_full_steps
from .run_settings import ConfigT, RunSettings
from .schedule import Schedule, plan_schedule
from .texts import TrainingTexts
from .validation_plan import ValidationPlan, plan_validation


@dataclass(frozen=True)
class TrainingPlan(Generic[ConfigT]):
    """The crops of every image, every text, the number of steps, and what progress is measured on.
    `dataset` and `crops` are without the images that are held out.
    """

    dataset: Dataset
    settings: RunSettings[ConfigT]
    crops: CropPlan
    schedule: Schedule
    texts: TrainingTexts
    validation: ValidationPlan = field(default_factory=ValidationPlan)

    @property
    def all_items(self) -> list[TrainingItem]:
        """The items to train on, and those that are held out: everything that is encoded."""
        return [*self.crops.items, *self.validation.held_out]


def plan_training(dataset: Dataset, settings: RunSettings[ConfigT], *, num_processes: int = 1) -> TrainingPlan[ConfigT]:
    """Plan the training. Command line, flight check, memory estimate and trainer share this plan.

    Raises:
        ValueError: no image can be trained on, the dataset is strict and one was left out, too few
            images are left with validation_share, or prior preservation has no prompt to keep.
    """
    config = settings.training
    split = hold_out_images(dataset, share=config.validation_share, seed=config.seed)
    crops = plan_crops(split.training, settings.buckets, seed=config.seed)
    schedule = plan_schedule(crops, config, num_processes=num_processes)
    crops, held_out = _plan_held_out(split, crops, settings)
    validation = plan_validation(crops.items, held_out, config, schedule)
    texts = TrainingTexts(split.training, crops.items, config, settings.captions, measured=validation.items)
    return TrainingPlan(split.training, settings, crops, schedule, texts, validation)


def make_step_counter(dataset: Dataset, *, num_processes: int = 1) -> StepCounter:
    """Return what tells how many steps draw so many samples of the training images: of an epoch
    some batches are part filled, and some samples are regularization images. Each process draws a
    batch.
    """

    def count_steps(settings: RunSettings, num_samples: int) -> int:
        config = settings.training
        try:
            split = hold_out_images(replace(dataset, strict=False), share=config.validation_share, seed=config.seed)
            crops = plan_crops(split.training, settings.buckets, seed=config.seed)
        except ValueError:  # the trainer, or the flight check, will say what is wrong
            return count_full_steps(settings, num_samples, num_processes=num_processes)
        schedule = plan_schedule(crops, config, num_processes=num_processes)
        return math.ceil(Fraction(num_samples * schedule.steps_per_epoch, schedule.num_training_samples))

    return count_steps


def _plan_held_out(
    split: Split, crops: CropPlan, settings: RunSettings[ConfigT]
) -> tuple[CropPlan, list[TrainingItem]]:
    """Return the crops to train on, whose report names the images that are held out, and the items
    of those.
    """
    if split.held_out is None:
        return crops, []
    plan = plan_crops(split.held_out, settings.buckets, seed=settings.training.seed)
    items = [replace(item, index=len(crops.items) + item.index) for item in plan.items]
    names = list(dict.fromkeys(item.image.name for item in items))
    note = Remark("validation", f"{pluralize(len(names), 'image')} held out, never trained on: {name_examples(names)}")
    report = replace(
        crops.report,
        left_out=crops.report.left_out + plan.report.left_out,
        notes=[*crops.report.notes, *plan.report.notes, note],
    )
    return replace(crops, report=report), items
