"""Sample images of a running training, with the same prompts and noise every time."""

from collections.abc import Callable, Sequence

import torch
from PIL import Image

from ..training.evaluation import evaluating
from ..training.host import Host
from ..training.sample_prompts import SamplePrompt
from .base_model import Conditions, FlowBaseModel


@torch.no_grad()
def draw_samples(
    base: FlowBaseModel,
    get_conditions: Callable[[SamplePrompt], tuple[Conditions, Conditions]],
    prompts: Sequence[SamplePrompt],
    *,
    usual_size_hw: tuple[int, int],
    host: Host,
) -> list[list[Image.Image]]:
    """Draw a row for each prompt, with one image per seed, with the model as it is, LoRA included.
    `get_conditions` returns those of the prompt and of the negative one.

    This changes neither the weights nor the random numbers of the training.

    Raises:
        Interrupted: the host cancelled.
    """
    with evaluating(base.network):
        return [
            base.draw(*get_conditions(prompt), prompt, size_hw=prompt.size_hw or usual_size_hw, host=host)
            for prompt in prompts
        ]
