"""Draws images with an SDXL model in memory, adapters included: for the demo, samples and quality
tests.

Letters: B images, H W latent height and width.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from .noise_schedule import NOISE_SCHEDULE
from .sdxl_model import SDXLModel
from .size_ids import size_ids
from .text import TextEmbeddings, encode_captions


@torch.no_grad()
def sample_images(
    model: SDXLModel,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int],
    size_hw: tuple[int, int],
    num_steps: int = 25,
    guidance_scale: float = 4.0,
    batch_size: int = 16,
    on_step: Callable[[], object] | None = None,
) -> np.ndarray:
    """Draw images, uint8 [len(prompts) * len(seeds), height, width, 3], prompt by prompt. A seed
    gives every prompt the same noise.

    DDIM (Song et al. 2020) with trailing timesteps, which zero-terminal-SNR models need, and
    classifier-free guidance against "". On a CPU this converts the model to float32 for good.
    `on_step` is called after each of count_sampler_steps.
    """
    use_float32_on_cpu(model)
    prompts_and_seeds = [(prompt, seed) for prompt in prompts for seed in seeds]
    chunks = [prompts_and_seeds[start : start + batch_size] for start in range(0, len(prompts_and_seeds), batch_size)]
    return np.concatenate(
        [_sample_chunk(model, chunk, size_hw, num_steps, guidance_scale, on_step) for chunk in chunks]
    )


def count_sampler_steps(num_images: int, *, num_steps: int = 25, batch_size: int = 16) -> int:
    """Return the number of UNet calls of sample_images, for a progress bar."""
    return math.ceil(num_images / batch_size) * num_steps


def use_float32_on_cpu(model: SDXLModel) -> None:
    """Convert the parts on a CPU to float32. In float16, without half-precision instructions, a
    UNet is 17 times slower and a VAE 93 times.
    """
    for part in (model.unet, model.text_encoder, model.text_encoder_2, model.vae):
        if part is not None and part.device.type == "cpu":
            nn.Module.float(part)


def _sample_chunk(
    model: SDXLModel,
    prompts_and_seeds: list[tuple[str, int]],
    size_hw: tuple[int, int],
    num_steps: int,
    guidance_scale: float,
    on_step: Callable[[], object] | None,
) -> np.ndarray:
    vae = model.vae
    assert vae is not None and model.text_encoder is not None and model.text_encoder_2 is not None
    captions = [""] * len(prompts_and_seeds) + [prompt for prompt, _ in prompts_and_seeds]
    embeddings = encode_captions(model.text_encoder, model.text_encoder_2, captions)
    seeds = [seed for _, seed in prompts_and_seeds]
    scheduler = make_noise_scheduler(model.prediction_type, zero_terminal_snr=model.zero_terminal_snr)
    latents = denoise(
        model.unet,
        embeddings,
        scheduler,
        seeds=seeds,
        size_hw=size_hw,
        num_steps=num_steps,
        guidance_scale=guidance_scale,
        on_step=on_step,
    )
    return decode_latents(vae, latents)


@torch.no_grad()
def denoise(
    unet: UNet2DConditionModel,
    embeddings: TextEmbeddings,
    scheduler: DDIMScheduler,
    *,
    seeds: Sequence[int],
    size_hw: tuple[int, int],
    num_steps: int,
    guidance_scale: float,
    on_step: Callable[[], object] | None = None,
) -> Tensor:
    """Draw scaled latents [B, 4, H, W] float32, one per seed. `embeddings` has 2 B captions: the
    negative ones first. `on_step` is called after every step; what it raises ends the drawing.
    """
    norm = unet.conv_norm_out
    assert norm is not None
    device, dtype = norm.weight.device, norm.weight.dtype  # a norm's weight is never quantized
    ids = torch.tensor([size_ids(size_hw, (0, 0), size_hw)] * (2 * len(seeds)), dtype=torch.float32, device=device)
    prompt_embeds = embeddings.prompt_embeds.to(device, dtype)
    conditions = {"text_embeds": embeddings.pooled_prompt_embeds.to(device, dtype), "time_ids": ids}
    scheduler.set_timesteps(num_steps)
    latents = torch.stack([_draw_noise(seed, size_hw) for seed in seeds]).to(device)
    for timestep in scheduler.timesteps:
        doubled = torch.cat([latents, latents]).to(dtype)
        prediction = unet(doubled, timestep, prompt_embeds, added_cond_kwargs=conditions, return_dict=False)[0].float()
        unconditional, conditional = prediction.chunk(2)
        guided = unconditional + guidance_scale * (conditional - unconditional)
        latents = scheduler.step(guided, int(timestep), latents, return_dict=False)[0]
        if on_step is not None:
            on_step()
    return latents


def decode_latents(vae: AutoencoderKL, latents: Tensor) -> np.ndarray:
    """Decode scaled latents [B, 4, H, W] to uint8 images [B, 8H, 8W, 3]."""
    pixel_values = decode_means(vae, (latents / vae.config["scaling_factor"]).to(vae.dtype))
    return ((pixel_values.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def decode_means(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Decode unscaled latents [B, 4, H, W] to pixel values [B, 3, 8H, 8W], about -1..1."""
    return vae.decode(latents, return_dict=False)[0]  # pyright: ignore[reportArgumentType]  # typed FloatTensor, but any works


def make_noise_scheduler(prediction_type: str, *, zero_terminal_snr: bool) -> DDIMScheduler:
    return DDIMScheduler(
        **NOISE_SCHEDULE,
        clip_sample=False,
        set_alpha_to_one=False,
        timestep_spacing="trailing",
        prediction_type=prediction_type,  # pyright: ignore[reportArgumentType]  # diffusers checks it
        rescale_betas_zero_snr=zero_terminal_snr,
    )


def _draw_noise(seed: int, size_hw: tuple[int, int]) -> Tensor:
    return torch.randn((4, size_hw[0] // 8, size_hw[1] // 8), generator=torch.Generator().manual_seed(seed))
