"""Draws the images of a comparison with the graph's MODEL, CLIP and VAE, by ComfyUI's own sampler.
One LoRA at a time is loaded and patched.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management
from PIL import Image
from torch import Tensor

from ...trainers.compare.grid import CompareGrid
from ...trainers.compare.plan import Column, ComparePlan
from .contenders import Contender
from .drawing_progress import DrawingProgress
from .ksampler import SamplerSettings, decode, sample
from .lora import LoadedLora, load_lora, patch_models


@dataclass(frozen=True)
class GraphModels:
    model: Any
    clip: Any
    vae: Any


def load_fitting(contender: Contender, models: GraphModels) -> LoadedLora:
    """Load a LoRA as patches of these models.

    Raises:
        ValueError: it cannot be read, or none of its tensors fits.
    """
    return fit_lora(contender.load(), contender.checkpoint.source, models)


def fit_lora(tensors: Mapping[str, Tensor], source: str, models: GraphModels) -> LoadedLora:
    """The LoRA as patches of these models.

    Raises:
        ValueError: none of its tensors fits.
    """
    loaded = load_lora(tensors, models.model, models.clip)
    if not loaded.patches:
        raise ValueError(
            f"{source}: none of its {len(tensors)} tensors fits this MODEL or CLIP. Compare LoRAs of the kind of model "
            "that is connected"
        )
    return loaded


def draw_grid(
    models: GraphModels, plan: ComparePlan, contenders: Sequence[Contender], settings: SamplerSettings
) -> Image.Image:
    """Draw column by column. Nothing is kept if it is cancelled.

    Raises:
        InterruptProcessingException: the user cancelled.
    """
    grid = CompareGrid(plan)
    progress = DrawingProgress(num_images=plan.num_images, num_steps=plan.num_steps)
    texts = _Texts()
    num_rows = len(plan.rows)
    for index, (column, patched, changes_text) in enumerate(_patch_columns(models, plan, contenders)):
        conditionings = texts.encode(plan, column, patched.clip, settings.negative_prompt, changes_text=changes_text)
        latents = [
            sample(
                patched.model,
                conditionings[plan.write_prompt(column, row.prompt)],
                conditionings[settings.negative_prompt],
                settings,
                seed=row.seed,
                size_hw=plan.size_hw,
                callback=progress.count_steps(index * num_rows + number, plan.describe_column(column)),
            )
            for number, row in enumerate(plan.rows)
        ]
        for number, latent in enumerate(latents):
            grid.put(index, number, decode(models.vae, latent))
            progress.show(grid.image, num_drawn=(index + 1) * num_rows)
    return grid.image


def _patch_columns(
    models: GraphModels, plan: ComparePlan, contenders: Sequence[Contender]
) -> Iterator[tuple[Column, GraphModels, bool]]:
    """Yield each column with its models, and whether its LoRA changes the CLIP."""
    number, loaded = 0, None
    for column in plan.columns:
        if column.number != number:
            number, loaded = column.number, load_fitting(contenders[column.number - 1], models)
        if loaded is None:
            yield column, models, False
            continue
        strength = column.strength
        model, clip = patch_models(models.model, models.clip, loaded, strength_model=strength, strength_clip=strength)
        yield column, GraphModels(model, clip, models.vae), loaded.changes_text


class _Texts:
    """Encodes every text once for each CLIP; LoRAs without text encoders use the base's."""

    def __init__(self) -> None:
        self._of_base: dict[str, Any] = {}

    def encode(
        self, plan: ComparePlan, column: Column, clip: Any, negative_prompt: str, *, changes_text: bool
    ) -> dict[str, Any]:
        encoded = {} if changes_text else self._of_base
        for text in _list_texts(plan, column, negative_prompt):
            if text not in encoded:
                comfy.model_management.throw_exception_if_processing_interrupted()
                encoded[text] = clip.encode_from_tokens_scheduled(clip.tokenize(text))
        return encoded


def _list_texts(plan: ComparePlan, column: Column, negative_prompt: str) -> Iterable[str]:
    return [*(plan.write_prompt(column, row.prompt) for row in plan.rows), negative_prompt]
