"""One forward pass of SDXL's training: a batch in, a loss per sample out. Only this file knows how
training calls the UNet.

Letters: B batch, C channels, H W latent height and width, S tokens, E embedding width, P pooled
width, T timesteps.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from ..training.loss import HUBER_TYPES, per_sample_loss, scheduled_huber_c
from ..training.masks import mask_weights
from .objective import add_noise, snr_weights, training_target


@dataclass(frozen=True)
class Batch:
    """All inputs of a prediction and its loss, on the UNet's device."""

    latents: Tensor  # [B, C, H, W] float32, scaled
    noise: Tensor  # [B, C, H, W] float32
    timesteps: Tensor  # [B] int64
    prompt_embeds: Tensor  # [B, S, E] in the UNet's dtype
    pooled_prompt_embeds: Tensor  # [B, P] in the UNet's dtype
    add_time_ids: Tensor  # [B, 6] float32, pixels
    loss_mask: Tensor | None = None  # [B, 1, H, W] float32 in 0..1; None: no image of the batch has a mask
    loss_weights: Tensor | None = None  # [B] float32, of the images; None: all 1
    input_noise: Tensor | None = None  # [B, C, H, W] float32, what the UNet sees; None: `noise`


def select_rows(batch: Batch, rows: Sequence[int]) -> Batch:
    """Return the batch of these samples only. No indices go to the device."""
    chosen = {
        name: torch.stack([tensor[row] for row in rows]) for name, tensor in vars(batch).items() if tensor is not None
    }
    return Batch(**chosen)


@dataclass(frozen=True)
class Objective:
    """What the model predicts, on which noise schedule, what an error costs, and the weights of
    timesteps and masks.
    """

    alphas_cumprod: Tensor  # [T] float32, on the UNet's device
    prediction_type: str
    min_snr_gamma: float
    unmasked_weight: float = 1.0
    normalize_masked_loss: bool = False
    snr_weighting: str = "min_snr"
    loss_type: str = "l2"
    huber_c: float = 0.1
    huber_schedule: str = "snr"

    def as_measure(self) -> "Objective":
        """Return the plain objective, which is the same whatever is trained: the squared error, all
        timesteps alike.
        """
        return replace(self, min_snr_gamma=0.0, snr_weighting="min_snr", loss_type="l2")


def weighted_losses(unet: UNet2DConditionModel, batch: Batch, objective: Objective) -> Tensor:
    """Return the mean error of each sample, weighted by its noise level, by its mask and by the
    weight of its image; float32 [B].
    """
    alphas = objective.alphas_cumprod[batch.timesteps]
    target = training_target(batch.latents, batch.noise, alphas, prediction_type=objective.prediction_type)
    losses = _compare(predict(unet, batch, alphas), target, batch, objective, _weight_positions(batch, objective))
    return losses if batch.loss_weights is None else losses * batch.loss_weights


def distillation_losses(unet: UNet2DConditionModel, batch: Batch, target: Tensor, objective: Objective) -> Tensor:
    """Return how far the prediction is from `target` [B, C, H, W], which is made of predictions of
    the frozen base model, over whole images; weighted by the noise level, float32 [B].
    """
    alphas = objective.alphas_cumprod[batch.timesteps]
    return _compare(predict(unet, batch, alphas), target, batch, objective)


def _compare(
    model_pred: Tensor, target: Tensor, batch: Batch, objective: Objective, positions: Tensor | None = None
) -> Tensor:
    """Return the loss of each sample, [B], weighted by its noise level."""
    alphas = objective.alphas_cumprod[batch.timesteps]
    huber_c = _find_huber_c(batch, alphas, objective) if objective.loss_type in HUBER_TYPES else None
    losses = per_sample_loss(model_pred, target, positions, loss_type=objective.loss_type, huber_c=huber_c)
    return losses * snr_weights(
        alphas, objective.snr_weighting, gamma=objective.min_snr_gamma, prediction_type=objective.prediction_type
    )


def _find_huber_c(batch: Batch, alphas: Tensor, objective: Objective) -> Tensor:
    return scheduled_huber_c(
        objective.huber_c,
        objective.huber_schedule,
        progress=batch.timesteps / len(objective.alphas_cumprod),
        sigmas=((1 - alphas) / alphas).sqrt(),
    )


def _weight_positions(batch: Batch, objective: Objective) -> Tensor | None:
    if batch.loss_mask is None:
        return None
    return mask_weights(
        batch.loss_mask, unmasked_weight=objective.unmasked_weight, normalize=objective.normalize_masked_loss
    )


def predict(unet: UNet2DConditionModel, batch: Batch, alphas: Tensor) -> Tensor:
    """Return model_pred [B, C, H, W] in the UNet's dtype. `alphas` [B] are the cumulative alphas of
    the timesteps.
    """
    noise = batch.noise if batch.input_noise is None else batch.input_noise
    noisy_latents = add_noise(batch.latents, noise, alphas).to(batch.prompt_embeds.dtype)
    conditions = {"text_embeds": batch.pooled_prompt_embeds, "time_ids": batch.add_time_ids}
    return unet(noisy_latents, batch.timesteps, batch.prompt_embeds, added_cond_kwargs=conditions, return_dict=False)[0]
