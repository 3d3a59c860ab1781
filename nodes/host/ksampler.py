"""Draws images as ComfyUI's KSampler and VAE Decode do, and names its samplers and schedulers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import torch
from PIL import Image
from torch import Tensor

PIXELS_PER_LATENT = 8  # of an empty latent; ComfyUI converts it for models with another number


@dataclass(frozen=True)
class SamplerSettings:
    """As in ComfyUI's KSampler, with denoise 1."""

    steps: int
    cfg: float
    sampler_name: str
    scheduler: str
    negative_prompt: str


def list_samplers() -> list[str]:
    return list(comfy.samplers.KSampler.SAMPLERS)


def list_schedulers() -> list[str]:
    return list(comfy.samplers.KSampler.SCHEDULERS)


def sample(
    model: Any,
    positive: Any,
    negative: Any,
    settings: SamplerSettings,
    *,
    seed: int,
    size_hw: tuple[int, int],
    callback: Callable[..., None],
) -> Tensor:
    """Return the latents of one image: what KSampler does with an Empty Latent Image. It seeds
    torch's global generator.
    """
    height, width = (side // PIXELS_PER_LATENT for side in size_hw)
    latent = torch.zeros(
        (1, 4, height, width),
        device=comfy.model_management.intermediate_device(),
        dtype=comfy.model_management.intermediate_dtype(),
    )
    latent = comfy.sample.fix_empty_latent_channels(model, latent, PIXELS_PER_LATENT, None)
    return comfy.sample.sample(
        model,
        comfy.sample.prepare_noise(latent, seed),
        settings.steps,
        settings.cfg,
        settings.sampler_name,
        settings.scheduler,
        positive,
        negative,
        latent,
        callback=callback,
        disable_pbar=True,
        seed=seed,
    )


def decode(vae: Any, latent: Tensor) -> Image.Image:
    """Decode one image; of a video its first frame. ComfyUI decodes in tiles if memory runs out."""
    images = vae.decode(latent)  # [B, height, width, 3], of videos [B, frames, height, width, 3]
    pixels = images.reshape(-1, *images.shape[-3:])[0, ..., :3]
    # cut off, not rounded, as Save Image does
    return Image.fromarray((255.0 * pixels.float()).clamp(0, 255).to(torch.uint8).cpu().numpy())
