"""The UNet of SDXL base without weights, for estimating a training before any model is loaded."""

from typing import Any

import torch
from diffusers import UNet2DConditionModel

SDXL_UNET: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


def standard_unet() -> UNet2DConditionModel:
    """Build the UNet on the meta device: shapes only."""
    with torch.device("meta"):
        return UNet2DConditionModel(**SDXL_UNET)
