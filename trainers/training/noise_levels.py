"""Draws the noise level of a sample: how often each is trained."""

import math

import torch

from .config import TrainingConfig
from .generators import generator_for

_MAX_ATTEMPTS = 10_000


def draw_level(
    config: TrainingConfig, sampling: str, *, step: int, item: int, between: tuple[float, float] = (0.0, 1.0)
) -> float:
    """Draw a level in 0..1, before any shift, until it is between these. It depends only on (seed,
    step, item).

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


def _draw_one(config: TrainingConfig, sampling: str, *parts: int) -> float:
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


def sample_level(sampling: str, uniform: float, normal: float, *, scale: float, mean: float, std: float) -> float:
    """Return a noise level in 0..1, before any shift, from one uniform and one normal draw.

    uniform: the draw itself. sigmoid: 1 / (1 + exp(-scale * normal)). logit_normal (Esser et al.
    2024): the same with mean and std.
    """
    if sampling == "uniform":
        return uniform
    if sampling == "sigmoid":
        return _sigmoid(scale * normal)
    if sampling == "logit_normal":
        return _sigmoid(mean + std * normal)
    raise ValueError(f"timestep_sampling must be uniform, sigmoid or logit_normal, got {sampling!r}")


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))
