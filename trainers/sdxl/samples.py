"""Pictures that show what a running training has learned: the same prompt and noise every time."""

from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

from ..training.host import Host
from .model.sampling import decode_latents, denoise, noise_scheduler
from .prepare import COMPUTE_DTYPES, Run, moved

SEEDS = (0, 1)
NUM_STEPS = 20
GUIDANCE_SCALE = 5.0
TILED_FROM = 768  # pixels; a whole 1024 x 1024 picture takes the decoder more than 4 GB in float32


@dataclass(frozen=True)
class TrainingSamples:
    """Draws with the run's UNet, LoRA included. Nothing of the training changes: not the weights,
    not the random numbers.
    """

    run: Run
    prompt: str
    host: Host

    @torch.no_grad()
    def draw(self) -> Image.Image:
        """The pictures of SEEDS side by side, in the size that most pictures are trained at."""
        run, unet = self.run, self.run.model.unet
        size_hw = max(run.plan.bucket_counts, key=lambda size: run.plan.bucket_counts[size])
        embeddings = run.embed([""] * len(SEEDS) + [self.prompt] * len(SEEDS))
        scheduler = noise_scheduler(run.objective.prediction_type, zero_terminal_snr=run.zero_terminal_snr)
        was_training = unet.training
        unet.eval()  # without LoRA dropout
        with torch.autocast(self.host.device.type, COMPUTE_DTYPES[run.precision], enabled=run.precision != "no"):
            latents = denoise(
                unet,
                embeddings,
                scheduler,
                seeds=SEEDS,
                size_hw=size_hw,
                num_steps=NUM_STEPS,
                guidance_scale=GUIDANCE_SCALE,
            )
        unet.train(was_training)
        return Image.fromarray(np.concatenate(list(self._decode(latents)), axis=1))

    def _decode(self, latents: torch.Tensor) -> np.ndarray:
        vae = self.run.model.vae
        assert isinstance(vae, AutoencoderKL)
        if max(latents.shape[-2:]) * 8 >= TILED_FROM:
            vae.enable_tiling()
        moved(vae, self.host.device)
        pictures = np.concatenate([decode_latents(vae, latent[None]) for latent in latents])
        moved(vae, torch.device("cpu"))
        self.host.release_memory()
        return pictures
