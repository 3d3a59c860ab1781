"""One forward pass of SDXL's training: a batch in, a loss per sample out. The only code that knows how the UNet is called.

Letters: B batch, C channels, H W latent height and width, S tokens, E embedding width, P pooled width, T timesteps.
"""

from dataclasses import dataclass

from diffusers import UNet2DConditionModel
from torch import Tensor

from .objective import add_noise, min_snr_weights, per_sample_loss, training_target


@dataclass(frozen=True)
class Batch:
    """Everything that goes into a prediction, on the UNet's device."""

    latents: Tensor  # [B, C, H, W] float32, scaled
    noise: Tensor  # [B, C, H, W] float32
    timesteps: Tensor  # [B] int64
    prompt_embeds: Tensor  # [B, S, E] in the UNet's dtype
    pooled_prompt_embeds: Tensor  # [B, P] in the UNet's dtype
    add_time_ids: Tensor  # [B, 6] float32, pixels


@dataclass(frozen=True)
class Objective:
    """What is predicted, on which noise schedule, and how timesteps are weighted."""

    alphas_cumprod: Tensor  # [T] float32, on the UNet's device
    prediction_type: str
    min_snr_gamma: float


def weighted_losses(unet: UNet2DConditionModel, batch: Batch, objective: Objective) -> Tensor:
    """Min-SNR-weighted mean squared error of each sample, float32 [B]."""
    alphas = objective.alphas_cumprod[batch.timesteps]
    target = training_target(batch.latents, batch.noise, alphas, prediction_type=objective.prediction_type)
    losses = per_sample_loss(predict(unet, batch, alphas), target)
    return losses * min_snr_weights(alphas, gamma=objective.min_snr_gamma, prediction_type=objective.prediction_type)


def predict(unet: UNet2DConditionModel, batch: Batch, alphas: Tensor) -> Tensor:
    """model_pred [B, C, H, W] in the UNet's dtype."""
    noisy_latents = add_noise(batch.latents, batch.noise, alphas).to(batch.prompt_embeds.dtype)
    conditions = {"text_embeds": batch.pooled_prompt_embeds, "time_ids": batch.add_time_ids}
    return unet(noisy_latents, batch.timesteps, batch.prompt_embeds, added_cond_kwargs=conditions, return_dict=False)[0]
