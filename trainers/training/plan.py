"""What a run will do with a dataset, planned once, before any model is loaded. Imports no torch:
errors in settings and folders show at once.
"""

from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from ..config import as_dict, build_config
from ..dataset.bucket_config import BucketConfig
from ..dataset.caption_variants import CaptionConfig
from ..dataset.crop_plan import CropPlan, plan_crops
from ..dataset.dataset import Dataset
from .config import TrainingConfig
from .schedule import Schedule, plan_schedule
from .texts import TrainingTexts

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
    """The crops of every image, every text, and the number of steps."""

    dataset: Dataset
    settings: RunSettings[ConfigT]
    crops: CropPlan
    schedule: Schedule
    texts: TrainingTexts


def plan_training(dataset: Dataset, settings: RunSettings[ConfigT], *, num_processes: int = 1) -> TrainingPlan[ConfigT]:
    """Plan the training. Command line, flight check, memory estimate and trainer share this plan.

    Raises:
        ValueError: no image can be trained on, the dataset is strict and one was left out, or prior
            preservation has no prompt to keep.
    """
    config = settings.training
    crops = plan_crops(dataset, settings.buckets, seed=config.seed)
    schedule = plan_schedule(crops, config, num_processes=num_processes)
    return TrainingPlan(
        dataset, settings, crops, schedule, TrainingTexts(dataset, crops.items, config, settings.captions)
    )
