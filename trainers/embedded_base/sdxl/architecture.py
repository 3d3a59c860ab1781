"""The shape of the embedded SDXL: SDXL's classes at toy width.

ComfyUI and diffusers fix most numbers: 32 GroupNorm groups (so every UNet and VAE width is a
multiple of 32), 64 channels per attention head, in text encoders too, and 256 channels per size id.
All three levels have transformers, so that the trainer's default targets (linear layers of
transformers) can change the image at every scale.
"""

from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from ..shared.scenes import RESOLUTION
from ..shared.token_table import draw_token_table

TEXT_WIDTH_1, TEXT_WIDTH_2 = 64, 128
NUM_TEXT_LAYERS_1, NUM_TEXT_LAYERS_2 = 3, 3  # ComfyUI takes the penultimate layer of at least three
VOCABULARY_SIZE = 49408
TOKEN_TABLE_SEED = 7
SCALING_FACTOR = 0.13025


UNET: dict[str, Any] = {
    "sample_size": RESOLUTION // 8,
    "block_out_channels": (64, 64, 128),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3,
    "up_block_types": ("CrossAttnUpBlock2D",) * 3,
    "transformer_layers_per_block": (1, 1, 1),
    "attention_head_dim": (1, 1, 2),
    "use_linear_projection": True,
    "cross_attention_dim": TEXT_WIDTH_1 + TEXT_WIDTH_2,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": TEXT_WIDTH_2 + 6 * 256,
}
VAE: dict[str, Any] = {
    "block_out_channels": (32, 32, 64, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 32,
    "sample_size": RESOLUTION,
    "scaling_factor": SCALING_FACTOR,
}


def build_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(**UNET)


def build_vae() -> AutoencoderKL:
    return AutoencoderKL(**VAE)


def build_text_encoders() -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """Build encoders like CLIP-L (quick_gelu, pads with END) and CLIP-G (gelu, pads with 0), with
    token tables drawn from the seed.
    """
    encoder_1 = CLIPTextModel(_make_text_config(TEXT_WIDTH_1, NUM_TEXT_LAYERS_1, hidden_act="quick_gelu"))
    encoder_2 = CLIPTextModelWithProjection(_make_text_config(TEXT_WIDTH_2, NUM_TEXT_LAYERS_2, hidden_act="gelu"))
    for encoder, table in zip((encoder_1, encoder_2), make_token_tables(), strict=True):
        embeddings = encoder.get_input_embeddings()
        assert isinstance(embeddings, nn.Embedding)
        embeddings.weight.data = table
        embeddings.requires_grad_(False)
    return encoder_1, encoder_2


def make_token_tables() -> tuple[torch.Tensor, torch.Tensor]:
    """Draw the token embeddings of both encoders, [49408, width]."""
    table_1, table_2 = (
        draw_token_table(VOCABULARY_SIZE, width, seed=TOKEN_TABLE_SEED + index, std=0.02)
        for index, width in enumerate((TEXT_WIDTH_1, TEXT_WIDTH_2))
    )
    return table_1, table_2


def _make_text_config(width: int, num_layers: int, *, hidden_act: str) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=num_layers,
        num_attention_heads=width // 64,
        hidden_act=hidden_act,
        projection_dim=width,
        max_position_embeddings=77,
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=49407,
    )
