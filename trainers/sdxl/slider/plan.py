"""What a slider's training will do, planned before any model is loaded. Its images are drawn by the
base model, so that there are no files. Imports no torch.
"""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

from ...dataset.crop import Crop
from ...dataset.crop_plan import CropPlan, TrainingItem
from ...dataset.dataset import Dataset
from ...dataset.image import TrainingImage
from ...dataset.report import DatasetReport
from ...training.plan import TrainingPlan
from ...training.run_settings import RunSettings
from ...training.schedule import plan_schedule
from ...training.seeds import derive_seed
from ...training.texts import TrainingTexts
from .config import SliderConfig, SliderPrompts

SOURCE = "drawn by the base model"
STRENGTHS = (-2.0, -1.0, 0.0, 1.0, 2.0)  # of the sample images


def plan_slider(settings: RunSettings[SliderConfig], *, num_processes: int = 1) -> TrainingPlan[SliderConfig]:
    """Plan the training: its items are drawings, all squares of the resolution.

    Raises:
        ValueError: a sample prompt is wrong.
    """
    config, resolution = settings.training, settings.buckets.resolution
    size_hw = (resolution, resolution)
    crop = Crop(size_hw, size_hw, (0, 0), size_hw)
    items = [
        TrainingItem(index, _describe_drawing(config, index, size_hw), 0, crop) for index in range(config.num_drawings)
    ]
    report = DatasetReport(len(items), buckets={size_hw: len(items)}, summary=[SOURCE])
    dataset = Dataset([item.image for item in items], 1, "", report, SOURCE)
    crops = CropPlan(items, report, {size_hw: len(items)})
    all_prompts = [text for prompts in config.prompts for text in prompts.all]
    texts = TrainingTexts(dataset, items, config, settings.captions, also=all_prompts)
    texts.samples = tuple(replace(sample, strength=strength) for sample in texts.samples for strength in STRENGTHS)
    return TrainingPlan(dataset, settings, crops, plan_schedule(crops, config, num_processes=num_processes), texts)


def find_prompts(config: SliderConfig, index: int) -> SliderPrompts:
    """Return the prompts that a drawing is trained with: its attribute's."""
    return config.prompts[index % len(config.prompts)]


def find_drawn_prompt(config: SliderConfig, index: int) -> str:
    """Return the prompt that a drawing shows. With and without the slider, sampling comes through
    images of all three, so that each attribute has drawings of all three.
    """
    round_number, attribute_number = divmod(index, len(config.prompts))
    return find_prompts(config, index).all[(round_number + attribute_number) % 3]


def find_drawing_seed(config: SliderConfig, index: int) -> int:
    return derive_seed(config.seed, "drawing", index)


def _describe_drawing(config: SliderConfig, index: int, size_hw: tuple[int, int]) -> TrainingImage:
    """Its hash stands for its content: what the base model is asked for. It has no file."""
    facts = [find_drawn_prompt(config, index), find_drawing_seed(config, index)]
    return TrainingImage(
        name=f"drawing {index + 1}",
        path=Path(),
        sha256=hashlib.sha256(json.dumps(facts).encode()).hexdigest(),
        size_hw=size_hw,
        caption=find_prompts(config, index).target,
        has_alpha=False,
    )
