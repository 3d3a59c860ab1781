"""The error of a prediction as pure functions: squares, or losses that outliers move less.

Letters: B batch, C channels, H W height and width.
"""

import torch
from torch import Tensor

HUBER_TYPES = ("huber", "smooth_l1")  # of loss_type: those with a huber_c


def per_sample_loss(
    prediction: Tensor,
    target: Tensor,
    weights: Tensor | None = None,
    *,
    loss_type: str = "l2",
    huber_c: Tensor | None = None,
) -> Tensor:
    """Return the mean error of each sample, [B] float32. Latents may have a time axis; `weights`
    [B, 1, H, W] are of positions. `huber_c` [B]: see scheduled_huber_c.

    l2: e^2. l1: |e|. huber: 2 c (sqrt(e^2 + c^2) - c), near e^2 for small errors. smooth_l1: the
    same without the first c, near 2 |e| for large ones. Both are sd-scripts' (conditional_loss).
    """
    errors = _find_errors(prediction.float() - target.float(), loss_type, huber_c)
    if weights is not None:
        errors = errors * (weights.unsqueeze(2) if errors.ndim == 5 else weights)
    return errors.flatten(1).mean(1)


def _find_errors(difference: Tensor, loss_type: str, huber_c: Tensor | None) -> Tensor:
    if loss_type == "l2":
        return difference.square()
    if loss_type == "l1":
        return difference.abs()
    if loss_type not in HUBER_TYPES:
        raise ValueError(f"loss_type must be l2, l1, huber or smooth_l1, got {loss_type!r}")
    assert huber_c is not None
    c = huber_c.reshape(-1, *[1] * (difference.ndim - 1))
    errors = 2 * ((difference.square() + c.square()).sqrt() - c)
    return c * errors if loss_type == "huber" else errors


def scheduled_huber_c(huber_c: float, schedule: str, *, progress: Tensor, sigmas: Tensor) -> Tensor:
    """Return c of each sample, [B], from its noise: `progress` [B] is its timestep from 0 to 1,
    `sigmas` [B] the ratio of noise to signal, sqrt(1 / SNR).

    constant: huber_c. exponential: huber_c^progress, from 1 down to huber_c. snr:
    (1 - huber_c) / (1 + sigma)^2 + huber_c. As in sd-scripts.
    """
    if schedule == "constant":
        return torch.full_like(progress, huber_c)
    if schedule == "exponential":
        return huber_c**progress
    if schedule == "snr":
        return (1 - huber_c) / (1 + sigmas).square() + huber_c
    raise ValueError(f"huber_schedule must be constant, exponential or snr, got {schedule!r}")
