"""The training objective as pure functions: which noise levels are trained, how much each counts.

A noise level `sigma` is in 0..1, 1 is pure noise. Letters: B batch.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

MIN_SNR_GAMMA = 5.0
_BELL_FLOOR = math.exp(-0.5)
_BELL_MEAN = math.sqrt(math.pi / 2) * math.erf(math.sqrt(0.5)) - _BELL_FLOOR


def shift_level(level: float, shift: float) -> float:
    """Return shift * t / (1 + (shift - 1) * t) (Esser et al. 2024): above 1, more noise."""
    return shift * level / (1 + (shift - 1) * level)


def find_shift_by_size(size_hw: tuple[int, int]) -> float:
    """Return the shift of an image of that many pixels by Flux's rule: exp(mu), where mu grows with
    the number of 16 x 16 tokens from 0.5 at 256 to 1.15 at 4096.
    """
    tokens = size_hw[0] * size_hw[1] / 16**2
    return math.exp(0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256))


def find_levels(to_timestep: Callable[[float], float], timesteps: tuple[int, int]) -> tuple[float, float]:
    """Return the noise levels, before any shift, of the lowest and the highest timestep.
    `to_timestep` grows with the level.
    """
    lowest, highest = timesteps
    return (
        0.0 if lowest <= to_timestep(0.0) else _find_level(to_timestep, lowest),
        1.0 if highest >= to_timestep(1.0) else _find_level(to_timestep, highest),
    )


def _find_level(to_timestep: Callable[[float], float], timestep: int) -> float:
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if to_timestep(middle) < timestep else (low, middle)
    return (low + high) / 2


def loss_weights(levels: Tensor, weighting: str) -> Tensor:
    """Return the weight of each sample's loss, [B] like `levels`.

    min_snr: min(SNR, 5) * sigma^2 with SNR = ((1 - sigma) / sigma)^2, the Min-SNR weight of the
    clean image (Hang et al. 2023) for a model that predicts velocity. bell: a bell over sigma that
    is 0 at both ends, with mean 1.
    """
    if weighting == "none":
        return torch.ones_like(levels)
    if weighting == "min_snr":
        return torch.minimum((1 - levels).square(), MIN_SNR_GAMMA * levels.square())
    if weighting == "bell":
        return ((-2 * (levels - 0.5).square()).exp() - _BELL_FLOOR) / _BELL_MEAN
    raise ValueError(f"loss_weighting must be none, min_snr or bell, got {weighting!r}")
