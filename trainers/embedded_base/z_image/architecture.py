"""The shape of the embedded Z-Image: its classes at toy width.

ComfyUI and diffusers fix most numbers: the time embedding is 256 wide and at most as wide as the
transformer, MLPs are 8/3 of the width (and in ComfyUI a multiple of 256), and Qwen3 has 128
channels per attention head.
"""

from typing import Any

import torch
from diffusers import AutoencoderKL, ZImageTransformer2DModel
from diffusers.models.transformers.transformer_z_image import TimestepEmbedder
from torch import nn
from transformers import Qwen3Config, Qwen3Model

from ..shared.token_table import draw_token_table

WIDTH, NUM_LAYERS, NUM_REFINERS, NUM_HEADS = 288, 3, 1, 6
ROPE_AXES = (12, 18, 18)  # of text, y and x; together one attention head
TIME_WIDTH = 256
TEXT_WIDTH, NUM_TEXT_LAYERS = 64, 3  # the last layer has no effect: models read the one before it
VOCABULARY_SIZE = 151936
TOKEN_TABLE_SEED = 9
LATENT_CHANNELS = 16
SCALING_FACTOR, SHIFT_FACTOR = 0.3611, 0.1159  # FLUX.1's and Z-Image's
SAMPLING_SHIFT = 3.0  # of Z-Image's noise schedule

TRANSFORMER: dict[str, Any] = {
    "dim": WIDTH,
    "n_layers": NUM_LAYERS,
    "n_refiner_layers": NUM_REFINERS,
    "n_heads": NUM_HEADS,
    "n_kv_heads": NUM_HEADS,
    "cap_feat_dim": TEXT_WIDTH,
    "axes_dims": list(ROPE_AXES),
    "in_channels": LATENT_CHANNELS,
}
TEXT_ENCODER: dict[str, Any] = {
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": TEXT_WIDTH,
    "intermediate_size": 192,
    "num_hidden_layers": NUM_TEXT_LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 128,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    "rms_norm_eps": 1e-6,
}
VAE: dict[str, Any] = {
    "block_out_channels": (32, 32, 64, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": LATENT_CHANNELS,
    "layers_per_block": 1,
    "norm_num_groups": 32,
    "scaling_factor": SCALING_FACTOR,
    "shift_factor": SHIFT_FACTOR,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}


def build_transformer() -> ZImageTransformer2DModel:
    """Build it as Lumina 2 starts: gates and answer are zero, so that each block passes its input
    on. The context refiner does so for good: all its weights are zero.
    """
    network = ZImageTransformer2DModel(**TRANSFORMER)
    # diffusers makes it 1024 wide inside; ComfyUI as wide as the transformer, if that is less
    network.t_embedder = TimestepEmbedder(TIME_WIDTH, mid_size=WIDTH)
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear) and ("adaLN_modulation" in name or name.endswith("final_layer.2-1.linear")):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    for parameter in network.context_refiner.parameters():
        nn.init.zeros_(parameter.requires_grad_(False))
    for token in (network.x_pad_token, network.cap_pad_token):
        nn.init.normal_(token, std=0.02)
    return network


def build_text_encoder() -> Qwen3Model:
    """Build it with a token table drawn from the seed."""
    encoder = Qwen3Model(Qwen3Config(**TEXT_ENCODER))
    embeddings = encoder.get_input_embeddings()
    assert isinstance(embeddings, nn.Embedding)
    embeddings.weight.data = make_token_table()
    embeddings.requires_grad_(False)
    return encoder


def make_token_table() -> torch.Tensor:
    return draw_token_table(VOCABULARY_SIZE, TEXT_WIDTH, seed=TOKEN_TABLE_SEED, std=0.5)


def build_vae() -> AutoencoderKL:
    return AutoencoderKL(**VAE)
