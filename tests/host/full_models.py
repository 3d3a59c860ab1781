"""MODELs of ComfyUI's own classes at the sizes of published models, without data, on the meta
device. It runs in ComfyUI's interpreter.

The sizes are those that comfy.model_detection reads from the published files.
"""

import comfy.model_patcher
import comfy.supported_models
import torch
from tiny_models import (
    CHROMA,
    COSMOS,
    CPU,
    FLUX,
    FLUX_2,
    HIDREAM,
    HUNYUAN_IMAGE,
    HUNYUAN_VIDEO,
    LUMINA_2,
    SD3,
    SD_2,
    SD_15,
    VIDEO,
    WAN,
    Z_IMAGE,
    FakeClip,
    Spec,
    anima_extras,
    hidream_extras,
)

HALF = torch.bfloat16
HEADS_OF_128 = {"num_heads": 24, "hidden_size": 3072}
FLUX_1 = FLUX | HEADS_OF_128 | {"vec_in_dim": 768, "context_in_dim": 4096, "depth": 19, "depth_single_blocks": 38}
FLUX_1 |= {"axes_dim": [16, 56, 56]}
WAN_CLIP = {"width": 4096, "padded_to": 512}
UNET = {"model_channels": 320, "num_res_blocks": [2, 2, 2, 2], "channel_mult": [1, 2, 4, 4]}
UNET |= {"transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_output": [1] * 9 + [0] * 3}

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
    "FLUX.1": Spec("Flux", FLUX_1, {"width": 4096, "pooled": 768, "padded_to": 256}),
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
        WAN_CLIP,
        **VIDEO,
    ),
    "Wan 2.1 14B": Spec(
        "WAN21_T2V",
        WAN | {"dim": 5120, "ffn_dim": 13824, "freq_dim": 256, "text_dim": 4096, "num_heads": 40, "num_layers": 40},
        WAN_CLIP,
        **VIDEO,
    ),
    "Wan 2.2 5B": Spec(
        "WAN22_T2V",
        WAN
        | {"dim": 3072, "ffn_dim": 14336, "freq_dim": 256, "text_dim": 4096, "num_heads": 24, "num_layers": 30}
        | {"in_dim": 48, "out_dim": 48},
        WAN_CLIP,
        channels=48,
        downscale=16,
        **VIDEO,
    ),
    "FLUX.1 schnell": Spec(
        "FluxSchnell", FLUX_1 | {"guidance_embed": False}, {"width": 4096, "pooled": 768, "padded_to": 256}
    ),
    "FLUX.2 dev": Spec(
        "Flux2",
        FLUX_2
        | {"num_heads": 48, "hidden_size": 6144, "context_in_dim": 15360, "depth": 8, "depth_single_blocks": 48}
        | {"axes_dim": [32, 32, 32, 32], "guidance_embed": True},
        {"width": 15360, "template": 40, "mask": True},
        channels=128,
        downscale=16,
    ),
    "Chroma": Spec(
        "Chroma",
        CHROMA
        | HEADS_OF_128
        | {"context_in_dim": 4096, "depth": 19, "depth_single_blocks": 38, "axes_dim": [16, 56, 56]}
        | {"out_dim": 3072, "hidden_dim": 5120, "n_layers": 5},
        {"width": 4096, "template": 1},
    ),
    "Krea 2": Spec("Krea2", {"image_model": "krea2"}, {"width": 12 * 2560, "template": 5}, **VIDEO),
    "Cosmos-Predict2 14B": Spec(
        "CosmosT2IPredict2",
        COSMOS
        | {"model_channels": 5120, "crossattn_emb_channels": 1024, "adaln_lora_dim": 256}
        | {"num_blocks": 36, "num_heads": 40},
        {"width": 1024, "padded_to": 512, "mask": True},
        **VIDEO,
    ),
    "SD 3.5 large": Spec(
        "SD3",
        SD3
        | {"depth": 38, "adm_in_channels": 2048, "num_patches": 36864, "pos_embed_max_size": 192}
        | {"x_block_self_attn_layers": []}
        | {
            "context_embedder_config": {
                "target": "torch.nn.Linear",
                "params": {"in_features": 4096, "out_features": 2432},
            }
        },
        {"width": 4096, "pooled": 2048, "padded_to": 154},
    ),
    "HunyuanImage 2.1": Spec(
        "HunyuanImage21",
        HUNYUAN_IMAGE
        | {"hidden_size": 3584, "num_heads": 28, "context_in_dim": 3584, "depth": 20, "depth_single_blocks": 40}
        | {"axes_dim": [64, 64]},
        {"width": 3584, "template": 5, "glyphs": True},
        channels=64,
        downscale=32,
    ),
    "HunyuanVideo": Spec(
        "HunyuanVideo",
        HUNYUAN_VIDEO
        | HEADS_OF_128
        | {"context_in_dim": 4096, "vec_in_dim": 768, "depth": 20, "depth_single_blocks": 40}
        | {"axes_dim": [16, 56, 56]},
        {"width": 4096, "pooled": 768, "template": 1},
        **VIDEO,
    ),
    "ERNIE-Image": Spec(
        "ErnieImage",
        {"image_model": "ernie"},
        {"width": 3072, "template": 1, "mask": True},
        channels=128,
        downscale=16,
    ),
    "Ideogram 4": Spec(
        "Ideogram4",
        {"image_model": "ideogram4"},
        {"width": 53248, "template": 8, "mask": True},
        channels=128,
        downscale=16,
    ),
    "HiDream": Spec(
        "HiDream",
        HIDREAM
        | {"attention_head_dim": 128, "axes_dims_rope": [64, 32, 32], "caption_channels": [4096, 4096]}
        | {"llama_layers": [*range(32), *[31] * 16], "num_attention_heads": 20}
        | {"num_layers": 16, "num_single_layers": 32, "text_emb_dim": 2048},
        {"width": 4096, "pooled": 2048, "padded_to": 128, "extras": hidream_extras},
    ),
    "SD 1.5": Spec(
        "SD15",
        SD_15 | UNET | {"context_dim": 768, "num_heads": 8},
        {"width": 768, "pooled": 768, "chunk": 77},
        channels=4,
    ),
    "SD 2": Spec(
        "SD20",
        SD_2 | UNET | {"context_dim": 1024, "num_head_channels": 64},
        {"width": 1024, "pooled": 1024, "chunk": 77},
        channels=4,
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
