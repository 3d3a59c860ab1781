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


def snr_weights(alphas: Tensor, weighting: str, *, gamma: float, prediction_type: str) -> Tensor:
    """Return loss weights [B] by the signal-to-noise ratio. min_snr and soft_min_snr with gamma 0
    give ones.
    """
    if weighting == "debiased":
        return debiased_weights(alphas, prediction_type=prediction_type)
    if weighting not in ("min_snr", "soft_min_snr"):
        raise ValueError(f"snr_weighting must be min_snr, soft_min_snr or debiased, got {weighting!r}")
    if gamma == 0:
        return torch.ones_like(alphas)
    weigh = min_snr_weights if weighting == "min_snr" else soft_min_snr_weights
    return weigh(alphas, gamma=gamma, prediction_type=prediction_type)


def min_snr_weights(alphas: Tensor, *, gamma: float, prediction_type: str) -> Tensor:
    """Return min-SNR-gamma loss weights [B] (Hang et al. 2023): min(snr, gamma) / snr for epsilon,
    min(snr, gamma) / (snr + 1) for v-prediction.

    The SNR is that of the schedule in use, zero terminal SNR included.
    """
    snr = _find_snr(alphas)
    if prediction_type == "v_prediction":
        return snr.clamp(max=gamma) / (snr + 1)
    return (gamma / snr).clamp(max=1)  # min(snr, gamma) / snr, but defined at snr 0 too


def soft_min_snr_weights(alphas: Tensor, *, gamma: float, prediction_type: str) -> Tensor:
    """Return soft-min-SNR loss weights [B] (Crowson et al. 2024, "Hourglass Diffusion
    Transformers"): 1 / (1 / snr + 1 / gamma) for the clean image, which is gamma / (snr + gamma)
    for epsilon, and snr / (snr + 1) times as much for v-prediction.
    """
    snr = _find_snr(alphas)
    weights = gamma / (snr + gamma)
    return weights * snr / (snr + 1) if prediction_type == "v_prediction" else weights


def debiased_weights(alphas: Tensor, *, prediction_type: str) -> Tensor:
    """Return the loss weights [B] of debiased estimation (Yu et al. 2023), as sd-scripts has them:
    1 / sqrt(snr) for epsilon, 1 / (snr + 1) for v-prediction. The SNR counts as 1000 at most.
    """
    snr = _find_snr(alphas).clamp(max=1000)
    return 1 / (snr + 1) if prediction_type == "v_prediction" else snr.rsqrt()


def _find_snr(alphas: Tensor) -> Tensor:
    return alphas / (1 - alphas)
