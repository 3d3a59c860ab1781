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
TILED_FROM = 768  # pixels; untiled, decoding 1024 x 1024 takes more than 4 GB in float32


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
            )
    finally:
        model.unet.train(was_training)
    return Image.fromarray(np.concatenate(list(_decode(model, latents, host)), axis=1))


def _decode(model: SDXLModel, latents: torch.Tensor, host: Host) -> np.ndarray:
    vae = model.vae
    assert isinstance(vae, AutoencoderKL)
    if max(latents.shape[-2:]) * 8 >= TILED_FROM:
        vae.enable_tiling()
    move_module(vae, host.device)
    images = np.concatenate([decode_latents(vae, latent[None]) for latent in latents])
    move_module(vae, torch.device("cpu"))
    host.release_memory()
    return images
