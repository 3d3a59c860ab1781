"""The training objective of SDXL as pure functions: noise schedule, noisy latents, targets, loss
weights, size ids.

Letters: B batch, C channels, H W latent height and width, T timesteps of the schedule (1000).
"""

from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor

NUM_TIMESTEPS = 1000
# diffusers' settings of the schedule that all SDXL models share.
NOISE_SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": NUM_TIMESTEPS,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
}


def alphas_cumprod(*, zero_terminal_snr: bool) -> Tensor:
    """Cumulative alphas of SDXL's schedule, float32 [T]: scaled-linear betas from 0.00085 to 0.012.

    With zero_terminal_snr the betas are rescaled so that the last step is pure noise (Lin et al.
    2023, algorithm 1).
    """
    schedule = DDPMScheduler(**NOISE_SCHEDULE, rescale_betas_zero_snr=zero_terminal_snr)
    return schedule.alphas_cumprod


def add_noise(latents: Tensor, noise: Tensor, alphas: Tensor) -> Tensor:
    """Noisy latents [B, C, H, W]: sqrt(alpha) x0 + sqrt(1 - alpha) noise; alphas [B] are the
    cumulative ones of the timesteps.
    """
    signal, spread = _signal_and_spread(alphas)
    return signal * latents + spread * noise


def training_target(latents: Tensor, noise: Tensor, alphas: Tensor, *, prediction_type: str) -> Tensor:
    """What the model should predict, [B, C, H, W]: the noise, or v = sqrt(alpha) noise - sqrt(1 -
    alpha) x0 (Salimans & Ho 2022).
    """
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "v_prediction":
        signal, spread = _signal_and_spread(alphas)
        return signal * noise - spread * latents
    raise ValueError(f"prediction_type must be epsilon or v_prediction, got {prediction_type!r}")


def _signal_and_spread(alphas: Tensor) -> tuple[Tensor, Tensor]:
    alphas = alphas[:, None, None, None]
    return alphas.sqrt(), (1 - alphas).sqrt()


def min_snr_weights(alphas: Tensor, *, gamma: float, prediction_type: str) -> Tensor:
    """Min-SNR-gamma loss weights [B] (Hang et al. 2023): min(snr, gamma) / snr, and / (snr + 1) for
    v-prediction.

    The SNR is that of the schedule in use, zero terminal SNR included. gamma 0 gives ones.
    """
    if gamma == 0:
        return torch.ones_like(alphas)
    snr = alphas / (1 - alphas)
    if prediction_type == "v_prediction":
        return snr.clamp(max=gamma) / (snr + 1)
    return (gamma / snr).clamp(max=1)  # min(snr, gamma) / snr, also where zero terminal SNR makes snr 0


def mask_weights(mask: Tensor, *, unmasked_weight: float, normalize: bool) -> Tensor:
    """Loss weights [B, 1, H, W] of masks in 0..1: nowhere less than unmasked_weight, as in
    OneTrainer. With 0 the mask itself, as in sd-scripts.

    `normalize` divides each mask's weights by their mean: a small thing then counts as much as a
    whole picture. A mask that is black all over has no thing, and keeps unmasked_weight.
    """
    weights = mask.clamp(min=unmasked_weight)
    if normalize:
        has_thing = mask.amax(dim=(1, 2, 3), keepdim=True) > 0
        weights = torch.where(has_thing, weights / weights.mean(dim=(1, 2, 3), keepdim=True), weights)
    return weights


def per_sample_loss(model_pred: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean squared error of each sample in float32, [B]; `weights` [B, 1, H, W] of its
    positions.
    """
    errors = (model_pred.float() - target.float()).square()
    if weights is not None:
        errors = errors * weights
    return errors.mean(dim=(1, 2, 3))


def size_ids(original_hw: tuple[int, int], crop_top_left_yx: tuple[int, int], target_hw: tuple[int, int]) -> list[int]:
    """SDXL's six size conditions in pixels, in the order of add_time_ids [B, 6]."""
    return [*original_hw, *crop_top_left_yx, *target_hw]
