"""The training objective of SDXL as pure functions: noisy latents, targets, loss weights.

Letters: B batch, C channels, H W latent height and width.
"""

import torch
from torch import Tensor


def add_noise(latents: Tensor, noise: Tensor, alphas: Tensor) -> Tensor:
    """Return noisy latents [B, C, H, W]: sqrt(alpha) x0 + sqrt(1 - alpha) noise. `alphas` [B] are
    the cumulative alphas of the timesteps.
    """
    signal, spread = _signal_and_spread(alphas)
    return signal * latents + spread * noise


def training_target(latents: Tensor, noise: Tensor, alphas: Tensor, *, prediction_type: str) -> Tensor:
    """Return what the model should predict, [B, C, H, W]: the noise, or v (Salimans & Ho 2022).

    v = sqrt(alpha) noise - sqrt(1 - alpha) x0
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
    """Return min-SNR-gamma loss weights [B] (Hang et al. 2023): min(snr, gamma) / snr for epsilon,
    min(snr, gamma) / (snr + 1) for v-prediction.

    The SNR is that of the schedule in use, zero terminal SNR included. gamma 0 gives ones.
    """
    if gamma == 0:
        return torch.ones_like(alphas)
    snr = alphas / (1 - alphas)
    if prediction_type == "v_prediction":
        return snr.clamp(max=gamma) / (snr + 1)
    return (gamma / snr).clamp(max=1)  # min(snr, gamma) / snr, but defined at snr 0 too


def per_sample_loss(model_pred: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the mean squared error of each sample, [B] float32. `weights` are of positions,
    [B, 1, H, W].
    """
    errors = (model_pred.float() - target.float()).square()
    if weights is not None:
        errors = errors * weights
    return errors.mean(dim=(1, 2, 3))
