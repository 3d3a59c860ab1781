"""What a run writes into its LoRA's header."""

import json
from dataclasses import replace

import pytest

from tests.unit.dataset.imagined import imagine_dataset
from trainers.dataset.bucket_config import BucketConfig
from trainers.dataset.caption_variants import CaptionConfig
from trainers.training.config import TrainingConfig
from trainers.training.family import Progress
from trainers.training.metadata import lora_metadata
from trainers.training.plan import plan_training
from trainers.training.run_settings import RunSettings


@pytest.mark.parametrize(
    ("use_wildcards", "expected"),
    [(False, {"zwx": 1, "smile holding a drink": 1}), (True, {"zwx": 2, "smile": 1, "holding a drink": 1})],
)
def test_no_tag_reaches_across_the_end_of_a_line(use_wildcards, expected):
    dataset = imagine_dataset(1).with_captions(["zwx, smile\nzwx, holding a drink"])
    settings = RunSettings(
        replace(TrainingConfig(), max_train_steps=1), BucketConfig(), CaptionConfig(use_wildcards=use_wildcards)
    )
    metadata = lora_metadata(
        plan_training(dataset, settings),
        Progress("zwx", 1, 0.0),
        base_model_version="toy",
        architecture="toy/lora",
        implementation="none",
    )
    assert json.loads(metadata["ss_tag_frequency"]) == {"imagined": expected}
    assert json.loads(metadata["ss_dataset_dirs"]) == {"imagined": {"n_repeats": 1, "img_count": 1}}
