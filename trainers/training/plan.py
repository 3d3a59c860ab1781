"""What a run will do with a dataset, planned once, before any model is loaded. Imports no torch:
errors in settings and folders show at once.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from ..config import as_dict, build_config
from ..dataset.bucket_config import BucketConfig
from ..dataset.caption_variants import CaptionConfig
from ..dataset.crop_plan import CropPlan, TrainingItem, plan_crops
from ..dataset.dataset import Dataset
from ..dataset.report import Remark
from ..wording import name_examples, pluralize
from .config import TrainingConfig
from .held_out import Split, hold_out_images
from .schedule import Schedule, plan_schedule
from .texts import TrainingTexts
from .validation_plan import ValidationPlan, plan_validation

ConfigT = TypeVar("ConfigT", bound=TrainingConfig)


@dataclass(frozen=True)
class RunSettings(Generic[ConfigT]):
    """Everything that a user sets: the family's training config, the crops and the captions."""

    training: ConfigT
    buckets: BucketConfig = field(default_factory=BucketConfig)
    captions: CaptionConfig = field(default_factory=CaptionConfig)

    @classmethod
    def read(cls, config_class: type[ConfigT], settings: dict[str, Any]) -> "RunSettings[ConfigT]":
        """Read the settings from one flat mapping, such as all flags of a command."""
        kinds = (config_class, BucketConfig, CaptionConfig)
        return cls(*(build_config(kind, settings) for kind in kinds))

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return the settings by section, as in the manifest."""
        return {name: as_dict(getattr(self, name)) for name in ("training", "buckets", "captions")}


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
