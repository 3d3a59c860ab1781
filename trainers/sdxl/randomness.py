"""The random numbers of an SDXL training step.

Every draw depends only on (seed, step, item), so caching, batch size and process count cannot
change it, and a resumed run draws what an uninterrupted one would.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..training.generators import draw_noise, generator_for
from ..training.seeds import happens


@dataclass(frozen=True)
class ItemDraw:
    """The draws of one item in one step. Each has its own random stream, so changing one option
    does not change the other draws.
    """

    timestep: int
    noise: Tensor  # [C, H, W], noise offset included
    flip: bool


def draw_item(
    *,
    seed: int,
    step: int,
    item: int,
    latent_shape: tuple[int, ...],
    num_timesteps: int,
    noise_offset: float = 0.0,
    random_flip: bool = False,
) -> ItemDraw:
    """Draw timestep (uniform), noise and flip of `item` in `step`."""
    noise = draw_noise(latent_shape, seed=seed, step=step, item=item, noise_offset=noise_offset)
    timestep = torch.randint(0, num_timesteps, (), generator=generator_for(seed, "timestep", step, item))
    return ItemDraw(int(timestep), noise, random_flip and happens(0.5, seed, "flip", step, item))
