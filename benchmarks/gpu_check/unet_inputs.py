"""Constant inputs for a UNet, and the loss on them: what a bare training loop needs.

Letters: B batch, H W latent height and width.
"""

from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.nn.functional import mse_loss

NUM_TOKENS = 77


@dataclass(frozen=True)
class ConstantBatch:
    noisy_latents: Tensor  # [B, 4, H, W]
    noise: Tensor  # [B, 4, H, W]
    timesteps: Tensor  # [B]
    prompt_embeds: Tensor  # [B, 77, width]
    conditions: dict[str, Tensor]

    def predict(self, unet: UNet2DConditionModel) -> Tensor:
        return unet(
            self.noisy_latents,
            self.timesteps,
            self.prompt_embeds,
            added_cond_kwargs=self.conditions,
            return_dict=False,
        )[0]

    def compute_loss(self, unet: UNet2DConditionModel) -> Tensor:
        return mse_loss(self.predict(unet).float(), self.noise.float())


def make_batch(
    unet: UNet2DConditionModel, *, size_wh: tuple[int, int], batch_size: int, dtype: torch.dtype
) -> ConstantBatch:
    """Draw inputs on the UNet's device, for images of `size_wh` pixels."""
    width, height = size_wh
    pooled_width = unet.config["projection_class_embeddings_input_dim"] - 6 * unet.config["addition_time_embed_dim"]
    with torch.device(unet.device):
        return ConstantBatch(
            noisy_latents=torch.randn(batch_size, 4, height // 8, width // 8, dtype=dtype),
            noise=torch.randn(batch_size, 4, height // 8, width // 8, dtype=dtype),
            timesteps=torch.full((batch_size,), 500),
            prompt_embeds=torch.randn(batch_size, NUM_TOKENS, unet.config["cross_attention_dim"], dtype=dtype),
            conditions={
                "text_embeds": torch.randn(batch_size, pooled_width, dtype=dtype),
                "time_ids": torch.tensor([[height, width, 0, 0, height, width]] * batch_size, dtype=torch.float32),
            },
        )
