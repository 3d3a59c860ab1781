"""The random numbers of a training step: they depend only on (seed, step, item), so caching, batch
size and process count cannot change them, and a resumed run draws what an uninterrupted one would.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..training.generators import generator_for
from ..training.seeds import happens
from .config import FlowConfig
from .objective import sample_level

_MAX_ATTEMPTS = 10_000


@dataclass(frozen=True)
class ItemDraw:
    """`level`: the noise level in 0..1 before the shift. Each draw has its own random stream."""

    level: float
    noise: Tensor  # like the latents of one image
    flip: bool


def draw_level(
    config: FlowConfig, sampling: str, *, step: int, item: int, between: tuple[float, float] = (0.0, 1.0)
) -> float:
    """Draw until the level is between these.

    Raises:
        ValueError: it never is.
    """
    for attempt in range(_MAX_ATTEMPTS):
        level = _draw_one(config, sampling, step, item, *([attempt] if attempt else []))
        if between[0] <= level <= between[1]:
            return level
    raise ValueError(
        f"timestep_sampling {sampling} draws no timesteps between {config.timesteps[0]} and {config.timesteps[1]}. "
        "Choose uniform, or a wider range"
    )


def _draw_one(config: FlowConfig, sampling: str, *parts: int) -> float:
    uniform = torch.rand((), generator=generator_for(config.seed, "timestep", *parts))
    normal = torch.randn((), generator=generator_for(config.seed, "timestep_normal", *parts))
    return sample_level(
        sampling,
        float(uniform),
        float(normal),
        scale=config.sigmoid_scale,
        mean=config.logit_mean,
        std=config.logit_std,
    )


def draw_flip(config: FlowConfig, *, random_flip: bool, step: int, item: int) -> bool:
    return random_flip and happens(0.5, config.seed, "flip", step, item)
