"""Sample images of a running training, with the same prompts and noise every time."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..training.evaluation import evaluating
from ..training.generators import generator_for
from ..training.host import Host
from ..training.sample_prompts import SamplePrompt
from .base_model import Conditions, FlowBaseModel


@torch.no_grad()
def draw_samples(
    base: FlowBaseModel,
    get_conditions: Callable[[SamplePrompt], Sequence[Conditions]],
    prompts: Sequence[SamplePrompt],
    *,
    usual_size_hw: tuple[int, int],
    usual_shape: torch.Size,
    host: Host,
) -> list[list[Image.Image]]:
    """Draw a row for each prompt, with one image per seed, with the model as it is, LoRA included.
    `get_conditions` returns those of the prompt and of the negative one.

    This changes neither the weights nor the random numbers of the training.

    Raises:
        Interrupted: the host cancelled.
    """
    rows: list[list[Image.Image]] = []
    for prompt in prompts:
        size_hw = prompt.size_hw or usual_size_hw
        shape = _resize(usual_shape, usual_size_hw, size_hw)
        texts = get_conditions(prompt)
        rows.append([])
        for seed in prompt.seeds:
            noise = torch.randn(shape, generator=generator_for(seed, "sample"))[None].to(host.device)
            with evaluating(base.network), base.computing():
                latents = _denoise(base, noise, texts, prompt, host)
            rows[-1].append(_to_image(base.decode(latents)))
    return rows


def _resize(shape: torch.Size, old_hw: tuple[int, int], new_hw: tuple[int, int]) -> tuple[int, ...]:
    """The shape of latents for another size of the image."""
    sides = [side * new // old for side, old, new in zip(shape[-2:], old_hw, new_hw, strict=True)]
    return (*shape[:-2], *sides)


def _denoise(
    base: FlowBaseModel,
    noise: Tensor,
    texts: Sequence[Conditions],
    prompt: SamplePrompt,
    host: Host,
) -> Tensor:
    """Euler's method over evenly spaced levels of the model's own schedule, with classifier-free
    guidance.
    """
    levels = [1 - number / prompt.num_steps for number in range(prompt.num_steps)]
    sigmas = [base.shift_level(level) for level in levels] + [0.0]
    latents = base.add_noise(torch.zeros_like(noise), noise, noise.new_tensor([sigmas[0]]))
    for sigma, following in pairwise(sigmas):
        host.check_interrupted()
        at = noise.new_tensor([sigma])
        clean = base.denoised(base.predict(latents, at, texts[:1]), latents, at)
        if prompt.guidance_scale != 1:
            other = base.denoised(base.predict(latents, at, texts[1:]), latents, at)
            clean = other + prompt.guidance_scale * (clean - other)
        latents = latents + (following - sigma) * (latents - clean) / sigma
    return latents


def _to_image(pixels: Tensor) -> Image.Image:
    return Image.fromarray((pixels[0].float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy().astype(np.uint8))
