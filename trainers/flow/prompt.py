"""What a model is told: a caption, and the control images that it sees beside it. Which prompts a
run needs.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ..dataset.control_crop import ControlCrop, crop_control_images, show_whole
from ..dataset.crop_plan import TrainingItem
from ..training.plan import TrainingPlan
from ..training.sample_prompts import SamplePrompt


@dataclass(frozen=True)
class Prompt:
    caption: str
    controls: tuple[ControlCrop, ...] = ()

    def describe_controls(self) -> list[dict[str, Any]]:
        return [control.describe_pixels() for control in self.controls]


def make_prompt(caption: str, item: TrainingItem, *, flip: bool) -> Prompt:
    """Caption dropout drops the caption, never the control images."""
    return Prompt(caption, crop_control_images(item, flip=flip))


def make_sample_prompts(sample: SamplePrompt) -> tuple[Prompt, Prompt]:
    """Return the prompt and the negative one, with whole control images."""
    controls = show_whole(sample.control_images)
    return Prompt(sample.prompt, controls), Prompt(sample.negative_prompt, controls)


def list_prompts(plan: TrainingPlan) -> list[Prompt]:
    """List every prompt that a step, a validation or a sample can need."""
    return sorted(set(_find_prompts(plan)), key=lambda prompt: (prompt.caption, str(prompt.describe_controls())))


def find_largest_prompt(plan: TrainingPlan, count_tokens: Callable[[str], int]) -> Prompt:
    """Return the prompt that takes most memory: the longest of those with most control images."""
    return max(list_prompts(plan), key=lambda prompt: (len(prompt.controls), count_tokens(prompt.caption)))


def _find_prompts(plan: TrainingPlan) -> Iterable[Prompt]:
    for item in plan.all_items:
        flips = (False, True) if plan.settings.buckets.random_flip and item.image.control_images else (False,)
        for caption in plan.texts.list_of_image(item.image):
            yield from (make_prompt(caption, item, flip=flip) for flip in flips)
    for sample in plan.texts.samples:
        yield from make_sample_prompts(sample)
