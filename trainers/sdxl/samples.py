"""Sample images of a running training, with the same prompt and noise every time."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

from ..training.device import move_module
from ..training.host import Host
from .model.sampling import decode_latents, denoise, make_noise_scheduler
from .model.sdxl_model import SDXLModel
from .model.text import TextEmbeddings

SEEDS = (0, 1)
NUM_STEPS = 20
GUIDANCE_SCALE = 5.0
TILE_LATENTS = 64  # 512 x 512 pixels; decoded whole in float32, 1024 x 1024 pixels take about 9 GB


@torch.no_grad()
def draw_samples(
    model: SDXLModel,
    embed: Callable[[list[str]], TextEmbeddings],
    *,
    prompt: str,
    size_hw: tuple[int, int],
    prediction_type: str,
    zero_terminal_snr: bool,
    autocast: AbstractContextManager,
    host: Host,
) -> Image.Image:
    """Draw one image per seed of SEEDS, side by side, with the model as it is, LoRA included.

    This changes neither the weights nor the random numbers of the training.

    Raises:
        Interrupted: the host cancelled.
    """
    embeddings = embed([""] * len(SEEDS) + [prompt] * len(SEEDS))
    scheduler = make_noise_scheduler(prediction_type, zero_terminal_snr=zero_terminal_snr)
    was_training = model.unet.training
    model.unet.eval()  # without LoRA dropout
    try:
        with autocast:
            latents = denoise(
                model.unet,
                embeddings,
                scheduler,
                seeds=SEEDS,
                size_hw=size_hw,
                num_steps=NUM_STEPS,
                guidance_scale=GUIDANCE_SCALE,
                on_step=host.check_interrupted,
            )
    finally:
        model.unet.train(was_training)
    return Image.fromarray(np.concatenate(list(_decode(model, latents, host)), axis=1))


def _decode(model: SDXLModel, latents: torch.Tensor, host: Host) -> np.ndarray:
    vae = model.vae
    assert isinstance(vae, AutoencoderKL)
    decode_in_tiles(vae)
    move_module(vae, host.device)
    images = []
    try:
        for latent in latents:
            host.check_interrupted()
            images.append(decode_latents(vae, latent[None]))
    finally:
        move_module(vae, torch.device("cpu"))
        host.release_memory()
    return np.concatenate(images)


def decode_in_tiles(vae: AutoencoderKL) -> None:
    """Let the VAE decode larger images in tiles that overlap by a quarter. Its own tiles have the
    size of an SDXL image, so that enable_tiling alone changes nothing up to 1024 x 1024.
    """
    vae.enable_tiling()
    vae.tile_latent_min_size, vae.tile_sample_min_size = TILE_LATENTS, TILE_LATENTS * 8
