"""The noise of a training step. Every draw depends only on (seed, step, item), and each has its own
random stream, so changing one option does not change the other draws.

Letters: C channels, H W latent height and width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .config import TrainingConfig
from .generators import generator_for


@dataclass(frozen=True)
class NoiseDraw:
    """The noise of one item, like its latents [C, ..., H, W]: what the model should find, and what
    is added to the latents (None: the same).
    """

    noise: Tensor
    input_noise: Tensor | None = None


def draw_noise(latents: Tensor, config: TrainingConfig, *, step: int, item: int) -> NoiseDraw:
    """Draw the noise of `item` in `step`, shaped by the settings.

    - immiscible_noise: of so many draws, the nearest to the latents (Li et al. 2024, "Immiscible
      Diffusion"; for each sample by itself in arXiv 2505.18521).
    - noise_offset: one number per channel is added (crosslabs.org, "Diffusion with Offset Noise").
    - multires_noise_iterations: coarser noise is added, as in sd-scripts.
    - ip_noise_gamma: the noise in the input is perturbed, that in the target is not (Ning et al.
      2023, "Input Perturbation Reduces Exposure Bias in Diffusion Models").
    """
    of_item = (config.seed, step, item)
    noise = _draw_nearest(latents, max(config.immiscible_noise, 1), of_item)
    if config.noise_offset:
        offset_shape = (latents.shape[0], *[1] * (latents.ndim - 1))
        noise += config.noise_offset * _draw(offset_shape, "noise_offset", of_item)
    if config.multires_noise_iterations:
        generator = generator_for(of_item[0], "multires_noise", *of_item[1:])
        noise = add_coarse_noise(
            noise, config.multires_noise_iterations, discount=config.multires_noise_discount, generator=generator
        )
    if not config.ip_noise_gamma:
        return NoiseDraw(noise)
    return NoiseDraw(noise, noise + config.ip_noise_gamma * _draw(latents.shape, "ip_noise", of_item))


def stack_noise(draws: Sequence[NoiseDraw]) -> dict[str, Tensor | None]:
    """Return the batch's noise and input_noise, [B, C, ..., H, W]."""
    input_noises = [draw.input_noise for draw in draws if draw.input_noise is not None]
    return {
        "noise": torch.stack([draw.noise for draw in draws]),
        "input_noise": torch.stack(input_noises) if input_noises else None,
    }


def _draw(shape: tuple[int, ...], purpose: str, of_item: tuple[int, int, int], *number: int) -> Tensor:
    seed, step, item = of_item
    return torch.randn(tuple(shape), generator=generator_for(seed, purpose, step, item, *number))


def _draw_nearest(latents: Tensor, num_candidates: int, of_item: tuple[int, int, int]) -> Tensor:
    """The first candidate is what is drawn without a choice."""
    candidates = [_draw(latents.shape, "noise", of_item)]
    candidates += [_draw(latents.shape, "noise", of_item, number) for number in range(1, num_candidates)]
    if num_candidates == 1:
        return candidates[0]
    return min(candidates, key=lambda noise: float((latents - noise).square().sum()))


def add_coarse_noise(noise: Tensor, iterations: int, *, discount: float, generator: torch.Generator) -> Tensor:
    """Return noise [C, ..., H, W] with coarser noise added, scaled back to a deviation of 1:
    pyramid_noise_like of sd-scripts. Each of the iterations is about 2 to 4 times as coarse as the
    one before, and counts `discount` times as much.
    """
    *others, height, width = noise.shape
    for number in range(iterations):
        ratio = (float(torch.rand((), generator=generator)) * 2 + 2) ** number
        size_hw = max(1, int(height / ratio)), max(1, int(width / ratio))
        coarse = torch.randn((*others, *size_hw), generator=generator).reshape(1, -1, *size_hw)
        fine = F.interpolate(coarse, size=(height, width), mode="bilinear")
        noise = noise + fine.reshape(noise.shape) * discount**number
        if 1 in size_hw:
            break
    return noise / noise.std()
