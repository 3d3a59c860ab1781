"""MODELs of ComfyUI's own classes at the sizes of published models, without data, on the meta
device. It runs in ComfyUI's interpreter.

The sizes are those that comfy.model_detection reads from the published files.
"""

import comfy.model_patcher
import comfy.supported_models
import torch
from tiny_models import COSMOS, CPU, FLUX, FLUX_2, LUMINA_2, VIDEO, WAN, Z_IMAGE, FakeClip, Spec, anima_extras

HALF = torch.bfloat16
HEADS_OF_128 = {"num_heads": 24, "hidden_size": 3072}

FULL_SPECS = {
    "Z-Image": Spec(
        "ZImage",
        Z_IMAGE
        | {"dim": 3840, "cap_feat_dim": 2560, "n_layers": 30, "n_heads": 30, "n_kv_heads": 30}
        | {"axes_dims": [32, 48, 48]},
        {"width": 2560, "template": 8, "mask": True},
    ),
    "FLUX.2 klein 4B": Spec(
        "Flux2",
        FLUX_2
        | HEADS_OF_128
        | {"context_in_dim": 7680, "depth": 5, "depth_single_blocks": 20}
        | {"axes_dim": [32, 32, 32, 32]},
        {"width": 7680, "template": 12, "padded_to": 512, "mask": True},
        channels=128,
        downscale=16,
    ),
    "Anima": Spec(
        "Anima",
        COSMOS
        | {"image_model": "anima", "model_channels": 2048, "crossattn_emb_channels": 1024}
        | {"adaln_lora_dim": 256, "num_blocks": 28, "num_heads": 16},
        {"width": 1024, "mask": True, "extras": anima_extras},
        **VIDEO,
    ),
    "Qwen-Image": Spec(
        "QwenImage",
        {"image_model": "qwen_image", "in_channels": 64, "num_layers": 60},
        {"width": 3584, "template": 5},
        **VIDEO,
    ),
    "FLUX.1": Spec(
        "Flux",
        FLUX
        | HEADS_OF_128
        | {"vec_in_dim": 768, "context_in_dim": 4096, "depth": 19, "depth_single_blocks": 38}
        | {"axes_dim": [16, 56, 56]},
        {"width": 4096, "pooled": 768, "padded_to": 256},
    ),
    "Lumina 2": Spec(
        "Lumina2",
        LUMINA_2
        | {"dim": 2304, "cap_feat_dim": 2304, "n_layers": 26, "n_heads": 24, "n_kv_heads": 8}
        | {"axes_dims": [32, 32, 32]},
        {"width": 2304, "template": 1, "mask": True},
    ),
    "Wan 2.1 1.3B": Spec(
        "WAN21_T2V",
        WAN | {"dim": 1536, "ffn_dim": 8960, "freq_dim": 256, "text_dim": 4096, "num_heads": 12, "num_layers": 30},
        {"width": 4096, "padded_to": 512},
        **VIDEO,
    ),
}


def build_hollow(spec: Spec) -> comfy.model_patcher.ModelPatcher:
    config = getattr(comfy.supported_models, spec.config)(dict(spec.unet_config))
    config.unet_config.update(spec.unet_config)
    config.set_inference_dtype(HALF, None)
    with torch.inference_mode():
        model = config.get_model({}, "", device="meta")
    return comfy.model_patcher.ModelPatcher(model, CPU, CPU)


def make_clip(spec: Spec) -> FakeClip:
    return FakeClip(**spec.clip)
