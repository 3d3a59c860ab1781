"""Sample images of a running training, with the same prompts and noise every time."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from torch import Tensor

from ..training.device import move_module
from ..training.evaluation import evaluating
from ..training.host import Host
from ..training.sample_prompts import SamplePrompt
from .model.sampling import decode_latents, denoise, make_noise_scheduler
from .model.sdxl_model import SDXLModel
from .model.text import TextEmbeddings, stack_embeddings

MAX_AT_ONCE = 2  # images that are denoised together
TILE_LATENTS = 64  # 512 x 512 pixels; decoded whole in float32, 1024 x 1024 pixels take about 9 GB


class SampleDrawer(Protocol):
    """Draws with a UNet that is being trained. ComfyUI brings its own sampler."""

    def draw(
        self,
        unet: UNet2DConditionModel,
        positive: TextEmbeddings,
        negative: TextEmbeddings,
        prompt: SamplePrompt,
        *,
        size_hw: tuple[int, int],
        host: Host,
    ) -> list[Image.Image]:
        """Return an image for each seed of the prompt. This must not change weights or the global
        random numbers.

        Raises:
            Interrupted: the host cancelled.
        """
        ...


@torch.no_grad()
def draw_samples(
    drawer: SampleDrawer,
    model: SDXLModel,
    embed: Callable[[list[str]], TextEmbeddings],
    prompts: Sequence[SamplePrompt],
    *,
    usual_size_hw: tuple[int, int],
    host: Host,
    at_strength: Callable[[float], AbstractContextManager[None]],
) -> list[list[Image.Image]]:
    """Draw a row for each prompt, with one image per seed, with the model as it is, and the LoRA at
    the strength of the prompt.

    This changes neither the weights nor the random numbers of the training.

    Raises:
        Interrupted: the host cancelled.
    """
    with evaluating(model.unet, model.text_encoder, model.text_encoder_2):
        rows = []
        for prompt in prompts:
            with at_strength(prompt.strength):
                rows.append(
                    drawer.draw(
                        model.unet,
                        embed([prompt.prompt]),
                        embed([prompt.negative_prompt]),
                        prompt,
                        size_hw=prompt.size_hw or usual_size_hw,
                        host=host,
                    )
                )
        return rows


@dataclass(frozen=True)
class DDIMDrawer:
    """The trainer's own sampler, for programs that have none."""

    vae: AutoencoderKL
    prediction_type: str
    zero_terminal_snr: bool

    def draw(
        self,
        unet: UNet2DConditionModel,
        positive: TextEmbeddings,
        negative: TextEmbeddings,
        prompt: SamplePrompt,
        *,
        size_hw: tuple[int, int],
        host: Host,
    ) -> list[Image.Image]:
        latents: list[Tensor] = []
        for start in range(0, len(prompt.seeds), MAX_AT_ONCE):
            seeds = prompt.seeds[start : start + MAX_AT_ONCE]
            latents += denoise(
                unet,
                stack_embeddings([negative] * len(seeds) + [positive] * len(seeds)),
                make_noise_scheduler(self.prediction_type, zero_terminal_snr=self.zero_terminal_snr),
                seeds=seeds,
                size_hw=size_hw,
                num_steps=prompt.num_steps,
                guidance_scale=prompt.guidance_scale,
                on_step=host.check_interrupted,
            )
        return self._decode(latents, host)

    def _decode(self, latents: Sequence[Tensor], host: Host) -> list[Image.Image]:
        """One image at a time, in tiles; the VAE is on the device for as long."""
        decode_in_tiles(self.vae)
        move_module(self.vae, host.device)
        try:
            return [self._decode_image(latent, host) for latent in latents]
        finally:
            move_module(self.vae, torch.device("cpu"))
            host.release_memory()

    def _decode_image(self, latent: Tensor, host: Host) -> Image.Image:
        host.check_interrupted()
        return Image.fromarray(decode_latents(self.vae, latent[None])[0])


def decode_in_tiles(vae: AutoencoderKL) -> None:
    """Let the VAE decode larger images in tiles that overlap by a quarter. Its own tiles have the
    size of an SDXL image, so that enable_tiling alone changes nothing up to 1024 x 1024.
    """
    vae.enable_tiling()
    vae.tile_latent_min_size, vae.tile_sample_min_size = TILE_LATENTS, TILE_LATENTS * 8
