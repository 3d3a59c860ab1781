"""One forward pass of SDXL's training: a batch in, a loss per sample out. The only code that knows
how the UNet is called.

Letters: B batch, C channels, H W latent height and width, S tokens, E embedding width, P pooled
width, T timesteps.
"""

from dataclasses import dataclass

from diffusers import UNet2DConditionModel
from torch import Tensor

from .objective import add_noise, mask_weights, min_snr_weights, per_sample_loss, training_target


@dataclass(frozen=True)
class Batch:
    """Everything that goes into a prediction, on the UNet's device."""

    latents: Tensor  # [B, C, H, W] float32, scaled
    noise: Tensor  # [B, C, H, W] float32
    timesteps: Tensor  # [B] int64
    prompt_embeds: Tensor  # [B, S, E] in the UNet's dtype
    pooled_prompt_embeds: Tensor  # [B, P] in the UNet's dtype
    add_time_ids: Tensor  # [B, 6] float32, pixels
    loss_mask: Tensor | None = None  # [B, 1, H, W] float32 in 0..1; None: no image of the batch has a mask
    loss_weights: Tensor | None = None  # [B] float32, of the images; None: all 1


@dataclass(frozen=True)
class Objective:
    """What is predicted, on which noise schedule, and how timesteps and masks are weighted."""

    alphas_cumprod: Tensor  # [T] float32, on the UNet's device
    prediction_type: str
    min_snr_gamma: float
    unmasked_weight: float = 1.0
    normalize_masked_loss: bool = False


def weighted_losses(unet: UNet2DConditionModel, batch: Batch, objective: Objective) -> Tensor:
    """Mean squared error of each sample, weighted by min-SNR, its mask and its image's weight;
    float32 [B].
    """
    alphas = objective.alphas_cumprod[batch.timesteps]
    target = training_target(batch.latents, batch.noise, alphas, prediction_type=objective.prediction_type)
    losses = _timestep_weighted(
        per_sample_loss(predict(unet, batch, alphas), target, _position_weights(batch, objective)), alphas, objective
    )
    return losses if batch.loss_weights is None else losses * batch.loss_weights


def prior_losses(unet: UNet2DConditionModel, batch: Batch, base_pred: Tensor, objective: Objective) -> Tensor:
    """How far the prediction is from base_pred [B, C, H, W], the frozen base model's own, in whole
    images; min-SNR-weighted, float32 [B].
    """
    alphas = objective.alphas_cumprod[batch.timesteps]
    return _timestep_weighted(per_sample_loss(predict(unet, batch, alphas), base_pred), alphas, objective)


def _timestep_weighted(losses: Tensor, alphas: Tensor, objective: Objective) -> Tensor:
    return losses * min_snr_weights(alphas, gamma=objective.min_snr_gamma, prediction_type=objective.prediction_type)


def _position_weights(batch: Batch, objective: Objective) -> Tensor | None:
    if batch.loss_mask is None:
        return None
    return mask_weights(
        batch.loss_mask, unmasked_weight=objective.unmasked_weight, normalize=objective.normalize_masked_loss
    )


def predict(unet: UNet2DConditionModel, batch: Batch, alphas: Tensor) -> Tensor:
    """model_pred [B, C, H, W] in the UNet's dtype; alphas [B] are the cumulative ones of the
    timesteps.
    """
    noisy_latents = add_noise(batch.latents, batch.noise, alphas).to(batch.prompt_embeds.dtype)
    conditions = {"text_embeds": batch.pooled_prompt_embeds, "time_ids": batch.add_time_ids}
    return unet(noisy_latents, batch.timesteps, batch.prompt_embeds, added_cond_kwargs=conditions, return_dict=False)[0]
