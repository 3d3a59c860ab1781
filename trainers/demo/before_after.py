"""Shows what a LoRA changed, in images and numbers: the same seeds with and without it, for prompts
with and without the trigger word.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..embedded_base.shared.scenes import fits
from ..lora.modules import list_weighted_modules
from ..lora.read import read_lora
from ..sdxl.merge import merge_lora
from ..sdxl.model.sampling import count_sampler_steps, sample_images
from ..sdxl.model.sdxl_model import SDXLModel
from ..sdxl.names import kohya_names
from .concept import TRIGGER_WORD, fidelity

NEW_PROMPTS = tuple(
    f"a {TRIGGER_WORD} on a {background} background" for background in ("white", "black", "grey", "beige")
)
OLD_PROMPTS = (
    "a red circle on a white background",
    "a blue square on a grey background",
    "a yellow star on a black background",
    "a green triangle on a beige background",
    "a purple cross on a white background",
    "an orange ring on a black background",
)
SIZE_HW = (128, 128)


@dataclass(frozen=True)
class Comparison:
    """Images uint8 [prompts * seeds, height, width, 3], prompt by prompt, new prompts first, and
    their scores.

    fidelity: 0 to 1, mean over the new prompts (concept.fidelity). old_right: share of the images
    of old prompts with the right colour, shape and background. drift: mean absolute change of the
    pixels of old prompts, 0 to 255.
    """

    before: np.ndarray
    after: np.ndarray
    fidelity_before: float
    fidelity_after: float
    old_right_before: float
    old_right_after: float
    drift: float


def compare(
    model: SDXLModel,
    lora: Path,
    *,
    num_seeds: int,
    num_steps: int = 25,
    on_step: Callable[[], object] | None = None,
) -> Comparison:
    """Sample, merge the LoRA into the model, which changes it for good, and sample again.

    `on_step` is called count_compare_steps times.
    """
    prompts, seeds = NEW_PROMPTS + OLD_PROMPTS, list(range(num_seeds))
    before = sample_images(model, prompts, seeds=seeds, size_hw=SIZE_HW, num_steps=num_steps, on_step=on_step)
    assert model.text_encoder is not None and model.text_encoder_2 is not None
    parts = {"unet": model.unet, "text_encoder": model.text_encoder, "text_encoder_2": model.text_encoder_2}
    merge_lora(read_lora(lora, kohya_names(*(list_weighted_modules(part) for part in parts.values()))), parts)
    after = sample_images(model, prompts, seeds=seeds, size_hw=SIZE_HW, num_steps=num_steps, on_step=on_step)
    return judge(before, after, num_seeds=num_seeds)


def judge(before: np.ndarray, after: np.ndarray, *, num_seeds: int) -> Comparison:
    """Score images of all prompts, new ones first, without and with a LoRA."""
    split = len(NEW_PROMPTS) * num_seeds
    return Comparison(
        before=before,
        after=after,
        fidelity_before=_mean_fidelity(before[:split]),
        fidelity_after=_mean_fidelity(after[:split]),
        old_right_before=_share_right(before[split:], num_seeds),
        old_right_after=_share_right(after[split:], num_seeds),
        drift=float(np.abs(after[split:].astype(float) - before[split:]).mean()),
    )


def count_compare_steps(num_seeds: int, *, num_steps: int = 25) -> int:
    num_images = len(NEW_PROMPTS + OLD_PROMPTS) * num_seeds
    return 2 * count_sampler_steps(num_images, num_steps=num_steps)


def _mean_fidelity(images: np.ndarray) -> float:
    return float(np.mean([fidelity(image) for image in images]))


def _share_right(images: np.ndarray, num_seeds: int) -> float:
    return float(np.mean([all(fits(image, OLD_PROMPTS[i // num_seeds])) for i, image in enumerate(images)]))


def draw_grid(comparison: Comparison, *, num_seeds: int) -> Image.Image:
    """Draw one row per prompt: without the LoRA on the left, with it on the right."""
    prompts = NEW_PROMPTS + OLD_PROMPTS
    height, width = SIZE_HW
    label, gap, head = 16, 24, 28
    image = Image.new("RGB", (2 * num_seeds * width + gap, head + len(prompts) * (height + label)), "#ffffff")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    for side, title in enumerate(("without the LoRA", "with the LoRA")):
        pen.text((side * (num_seeds * width + gap) + 4, 6), title, fill="#101828", font=font)
    for row, prompt in enumerate(prompts):
        top = head + row * (height + label)
        pen.text((4, top), prompt, fill="#475467", font=ImageFont.load_default(12))
        for side, images in enumerate((comparison.before, comparison.after)):
            strip = np.concatenate(list(images[row * num_seeds : (row + 1) * num_seeds]), axis=1)
            image.paste(Image.fromarray(strip), (side * (num_seeds * width + gap), top + label))
    return image
