"""The names in our LoRA files, compared with ComfyUI's own key map in a real checkout."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from trainers.lora.modules import list_weighted_modules
from trainers.sdxl.names import kohya_names

SDXL_UNET: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
# Runs in the checkout: builds the real SDXL on the meta device and prints the LoRA names that
# ComfyUI knows for its weights.
PRINT_KEY_MAP = """
import json
from pathlib import Path
from types import SimpleNamespace

import comfy.lora
import comfy.ops
from comfy.clip_model import CLIPTextModel
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

SDXL = dict(
    image_size=32, in_channels=4, out_channels=4, model_channels=320,
    num_res_blocks=[2, 2, 2], channel_mult=[1, 2, 4], num_head_channels=64,
    transformer_depth=[0, 0, 2, 2, 10, 10], transformer_depth_middle=10,
    transformer_depth_output=[0, 0, 0, 2, 2, 2, 10, 10, 10],
    use_spatial_transformer=True, use_linear_in_transformer=True,
    context_dim=2048, num_classes="sequential", adm_in_channels=2816,
)
on_meta = dict(dtype=torch.float16, device="meta", operations=comfy.ops.disable_weight_init)


def encoder_weights(name, config_name):
    config = json.loads((Path(comfy.lora.__file__).parent / config_name).read_text())
    return {f"{name}.transformer.{key}": None for key in CLIPTextModel(config, **on_meta).state_dict()}


unet_weights = {f"diffusion_model.{key}": None for key in UNetModel(**SDXL, **on_meta).state_dict()}
clip_weights = {
    **encoder_weights("clip_l", "sd1_clip_config.json"),
    **encoder_weights("clip_g", "clip_config_bigg.json"),
}
model = SimpleNamespace(state_dict=lambda: unet_weights, model_config=SimpleNamespace(unet_config=SDXL))
clip = SimpleNamespace(state_dict=lambda: clip_weights)
key_map = comfy.lora.model_lora_keys_clip(clip, comfy.lora.model_lora_keys_unet(model, {}))
print("KEY_MAP" + json.dumps(key_map))
"""


@pytest.fixture(scope="module")
def key_map(run_in_comfyui: Callable[..., str]) -> dict[str, str]:
    """Return ComfyUI's map from LoRA names to weights for SDXL."""
    (line,) = [line for line in run_in_comfyui(PRINT_KEY_MAP).splitlines() if line.startswith("KEY_MAP")]
    return json.loads(line.removeprefix("KEY_MAP"))


def test_comfyui_maps_the_name_of_every_module_of_the_real_sdxl_to_the_same_weight(key_map):
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SDXL_UNET)
        te1 = CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12))
        te2 = CLIPTextModelWithProjection(
            CLIPTextConfig(hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20)
        )
    names = kohya_names(list_weighted_modules(unet), list_weighted_modules(te1), list_weighted_modules(te2))
    layers = {
        key: name for key, name in names.items() if key[0] == "unet" or ".self_attn." in key[1] or ".mlp." in key[1]
    }
    assert len(layers) == len(list_weighted_modules(unet)) + 72 + 192
    unknown = [name for name in layers.values() if name not in key_map]
    assert unknown == []

    # ComfyUI also knows diffusers' names, through its own table: both names must lead to the same
    # weight.
    for (component, path), name in layers.items():
        assert key_map[name] == key_map[_make_diffusers_name(component, path)], name


def _make_diffusers_name(component: str, path: str) -> str:
    return f"lora_unet_{path.replace('.', '_')}" if component == "unet" else f"{component}.text_model.{path}"
