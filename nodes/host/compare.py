"""One comparison in the graph: checks everything, draws the grid or takes the one that is there,
and applies the chosen LoRA.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...trainers.compare.config import CompareConfig, parse_prompts
from ...trainers.compare.grid import lay_out_grid
from ...trainers.compare.plan import ComparePlan, plan_comparison
from ...trainers.wording import pluralize
from .contenders import Contender
from .grid_cache import CachedGrid
from .grid_drawing import GraphModels, draw_grid, fit_lora, load_fitting
from .ksampler import SamplerSettings
from .lora import patch_models
from .progress import show_text


@dataclass(frozen=True)
class Choice:
    """What goes on: the number of a LoRA in the grid (0: the last one), and its strength."""

    number: int
    strength: float


@dataclass(frozen=True)
class ComparedInGraph:
    """The outputs of the node. image: IMAGE [1, height, width, 3] in 0..1."""

    image: Tensor
    model: Any
    clip: Any
    lora: Mapping[str, Tensor]
    path: str
    text: str
    facts: dict[str, Any]
    preview: dict[str, str]


def compare_in_graph(
    models: GraphModels,
    contenders: Sequence[Contender],
    *,
    prompts: str,
    config: CompareConfig,
    sampler: SamplerSettings,
    choice: Choice,
) -> ComparedInGraph:
    """Draw the grid, unless the same one was drawn before, and apply the chosen LoRA.

    Raises:
        ValueError: an input cannot be used; nothing was drawn.
        InterruptProcessingException: the user cancelled.
    """
    _require_parts(models)
    plan = plan_comparison(
        [contender.checkpoint for contender in contenders], parse_prompts(prompts.splitlines()), config
    )
    number = plan.find_number(choice.number)
    cached = _find_cached(models, plan, contenders, sampler)
    grid = cached.read()
    is_new = grid is None
    if grid is None:
        grid = _check_and_draw(models, plan, contenders, sampler)
        cached.write(grid)
    chosen = contenders[number - 1]
    tensors = chosen.load()
    loaded = fit_lora(tensors, chosen.checkpoint.source, models)
    model, clip = patch_models(
        models.model, models.clip, loaded, strength_model=choice.strength, strength_clip=choice.strength
    )
    text = _describe(plan, number, choice, is_new=is_new)
    show_text(text)
    return ComparedInGraph(
        image=_to_tensor(grid),
        model=model,
        clip=clip,
        lora=chosen.make_graph_lora(tensors, num_modules=loaded.num_modules),
        path=str(chosen.checkpoint.path or ""),
        text=text,
        facts={**_list_facts(plan), "chosen": number, "is_new": is_new},
        preview=cached.describe(),
    )


def _require_parts(models: GraphModels) -> None:
    if models.clip is None:
        raise ValueError("clip is empty: this checkpoint has no text encoders. Connect a CLIP loader")
    if getattr(models.vae, "first_stage_model", None) is None:
        raise ValueError("vae is empty: this checkpoint has no VAE. Connect Load VAE")


def _check_and_draw(
    models: GraphModels, plan: ComparePlan, contenders: Sequence[Contender], sampler: SamplerSettings
) -> Image.Image:
    lay_out_grid(plan)  # raises if it would be too large
    show_text(f"checking {pluralize(len(contenders), 'LoRA')}")
    for contender in contenders:
        load_fitting(contender, models)
    return draw_grid(models, plan, contenders, sampler)


def _find_cached(
    models: GraphModels, plan: ComparePlan, contenders: Sequence[Contender], sampler: SamplerSettings
) -> CachedGrid:
    return CachedGrid(
        (models.model, models.clip, models.vae),
        {
            "loras": [[contender.checkpoint.name, contender.hash()] for contender in contenders],
            "columns": [asdict(column) for column in plan.columns],
            "rows": [[plan.show_prompt(row.prompt), row.prompt, row.seed] for row in plan.rows],
            "size_hw": plan.size_hw,
            "sampler": asdict(sampler),
        },
    )


def _describe(plan: ComparePlan, number: int, choice: Choice, *, is_new: bool) -> str:
    """What was drawn and what goes on; then the file behind every number."""
    state = "drawn" if is_new else "as drawn before"
    lines = [
        f"{pluralize(plan.num_images, 'image')}, {state}. Going on with {number}: "
        f"{plan.checkpoints[number - 1].name}, at strength {choice.strength:g}"
    ]
    lines += [f"{number}: {checkpoint.source}" for number, checkpoint in enumerate(plan.checkpoints, start=1)]
    return "\n".join(lines)


def _list_facts(plan: ComparePlan) -> dict[str, Any]:
    """For API clients, in the history: the LoRAs, and where in the grid each image is."""
    layout = lay_out_grid(plan)
    return {
        "loras": [
            {"number": number, "name": checkpoint.name, "path": str(checkpoint.path or "")}
            for number, checkpoint in enumerate(plan.checkpoints, start=1)
        ],
        "images": [
            {
                "lora": column.number,
                "strength": column.strength,
                "prompt": plan.write_prompt(column, row.prompt),
                "seed": str(row.seed),  # JavaScript rounds large numbers
                "box": list(layout.box(x, y)),
            }
            for x, column in enumerate(plan.columns)
            for y, row in enumerate(plan.rows)
        ],
    }


def _to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).float().div(255)[None]
