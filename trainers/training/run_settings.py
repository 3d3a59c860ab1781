"""Everything that a user sets for a training. Imports no torch."""

from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from ..config import as_dict, build_config
from ..dataset.bucket_config import BucketConfig
from ..dataset.caption_variants import CaptionConfig
from .config import TrainingConfig

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
