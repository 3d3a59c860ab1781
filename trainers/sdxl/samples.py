"""Sample images of a running training, with the same prompts and noise every time."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from diffusers import AutoencoderKL
from PIL import Image

from ..training.device import move_module
from ..training.evaluation import evaluating
from ..training.host import Host
from ..training.sample_prompts import SamplePrompt
from .model.sampling import decode_latents, denoise, make_noise_scheduler
from .model.sdxl_model import SDXLModel
from .model.text import TextEmbeddings

MAX_AT_ONCE = 2  # images that are denoised together
TILE_LATENTS = 64  # 512 x 512 pixels; decoded whole in float32, 1024 x 1024 pixels take about 9 GB


@torch.no_grad()
def draw_samples(
    model: SDXLModel,
    embed: Callable[[list[str]], TextEmbeddings],
    prompts: Sequence[SamplePrompt],
    *,
    usual_size_hw: tuple[int, int],
    prediction_type: str,
    zero_terminal_snr: bool,
    host: Host,
    at_strength: Callable[[float], AbstractContextManager[None]],
) -> list[list[Image.Image]]:
    """Draw a row for each prompt, with one image per seed, with the model as it is, and the LoRA at
    the strength of the prompt.

    This changes neither the weights nor the random numbers of the training.

    Raises:
        Interrupted: the host cancelled.
    """
    scheduler = make_noise_scheduler(prediction_type, zero_terminal_snr=zero_terminal_snr)
    rows: list[list[torch.Tensor]] = []
    with evaluating(model.unet, model.text_encoder, model.text_encoder_2):
        for prompt in prompts:
            rows.append([])
            for start in range(0, len(prompt.seeds), MAX_AT_ONCE):
                seeds = prompt.seeds[start : start + MAX_AT_ONCE]
                with at_strength(prompt.strength):
                    rows[-1] += denoise(
                        model.unet,
                        embed([prompt.negative_prompt] * len(seeds) + [prompt.prompt] * len(seeds)),
                        scheduler,
                        seeds=seeds,
                        size_hw=prompt.size_hw or usual_size_hw,
                        num_steps=prompt.num_steps,
                        guidance_scale=prompt.guidance_scale,
                        on_step=host.check_interrupted,
                    )
    return _decode(model, rows, host)


def _decode(model: SDXLModel, rows: list[list[torch.Tensor]], host: Host) -> list[list[Image.Image]]:
    """One image at a time, in tiles; the VAE is on the device for as long."""
    vae = model.vae
    assert isinstance(vae, AutoencoderKL)
    decode_in_tiles(vae)
    move_module(vae, host.device)
    try:
        return [[_decode_image(vae, latent, host) for latent in row] for row in rows]
    finally:
        move_module(vae, torch.device("cpu"))
        host.release_memory()


def _decode_image(vae: AutoencoderKL, latent: torch.Tensor, host: Host) -> Image.Image:
    host.check_interrupted()
    return Image.fromarray(decode_latents(vae, latent[None])[0])


def decode_in_tiles(vae: AutoencoderKL) -> None:
    """Let the VAE decode larger images in tiles that overlap by a quarter. Its own tiles have the
    size of an SDXL image, so that enable_tiling alone changes nothing up to 1024 x 1024.
    """
    vae.enable_tiling()
    vae.tile_latent_min_size, vae.tile_sample_min_size = TILE_LATENTS, TILE_LATENTS * 8
