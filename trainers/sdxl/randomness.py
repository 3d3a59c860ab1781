"""The random numbers of an SDXL training step.

Every draw depends only on (seed, step, item), so caching, batch size and process count cannot
change it, and a resumed run draws what an uninterrupted one would.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..training.generators import generator_for
from ..training.noise import NoiseDraw, draw_noise
from ..training.noise_levels import draw_level
from .config import SDXLConfig
from .model.noise_schedule import NUM_TIMESTEPS


@dataclass(frozen=True)
class ItemDraw:
    """The draws of one item in one step. Each has its own random stream, so changing one option
    does not change the other draws.
    """

    latents: Tensor  # [C, H, W], mirrored if `flip`
    timestep: int
    noise: NoiseDraw
    flip: bool


def draw_item(config: SDXLConfig, latents: Tensor, *, step: int, item: int, flip: bool = False) -> ItemDraw:
    """Draw timestep and noise of `item` in `step`. The latents [C, H, W] are mirrored already."""
    timestep = draw_timestep(config, step=step, item=item)
    return ItemDraw(latents, timestep, draw_noise(latents, config, step=step, item=item), flip)


def draw_timestep(config: SDXLConfig, *, step: int, item: int) -> int:
    """Draw a timestep from min_timestep up to, but not including, max_timestep."""
    low, high = config.timesteps
    if config.timestep_sampling in ("auto", "uniform"):
        return int(torch.randint(low, high, (), generator=generator_for(config.seed, "timestep", step, item)))
    between = low / NUM_TIMESTEPS, high / NUM_TIMESTEPS
    level = draw_level(config, config.timestep_sampling, step=step, item=item, between=between)
    return min(int(level * NUM_TIMESTEPS), high - 1)
