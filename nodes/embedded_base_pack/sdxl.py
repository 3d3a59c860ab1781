"""The embedded SDXL's sizes."""

import comfy.sd
import comfy.sdxl_clip
import comfy.supported_models
from comfy.supported_models_base import ClipTarget

TEXT = {"num_hidden_layers": 3, "eos_token_id": 49407, "max_position_embeddings": 77}
CLIP_L = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_attention_heads": 1,
    "projection_dim": 64,
    "hidden_act": "quick_gelu",
    **TEXT,
}
CLIP_G = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_attention_heads": 2,
    "projection_dim": 128,
    "hidden_act": "gelu",
    **TEXT,
}
UNET = {
    "model_channels": 64,
    "use_linear_in_transformer": True,
    "context_dim": 64 + 128,
    "adm_in_channels": 128 + 6 * 256,
    "use_temporal_attention": False,
    "transformer_depth": [1, 1, 1, 1, 1, 1],
}
VAE_WIDTH = 32
VAE = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 128,
    "in_channels": 3,
    "out_ch": 3,
    "ch": VAE_WIDTH,
    "ch_mult": [1, 1, 2, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "dropout": 0.0,
}


class EmbeddedSDXLClip(comfy.sdxl_clip.SDXLClipModel):
    def __init__(self, device="cpu", dtype=None, model_options=None):
        sizes = {"clip_l_model_config": CLIP_L, "clip_g_model_config": CLIP_G}
        super().__init__(device=device, dtype=dtype, model_options={**(model_options or {}), **sizes})


class EmbeddedSDXL(comfy.supported_models.SDXL):
    unet_config = UNET

    def clip_target(self, state_dict=None):
        return ClipTarget(comfy.sdxl_clip.SDXLTokenizer, EmbeddedSDXLClip)


def _teach_vae() -> None:
    load = comfy.sd.VAE.__init__

    def load_any_width(self, sd=None, config=None, **settings):
        weights = sd or {}
        first = weights.get("encoder.conv_in.weight")
        if config is None and first is not None and first.shape[0] == VAE_WIDTH and "quant_conv.weight" in weights:
            config = {"params": {"embed_dim": 4, "ddconfig": VAE}}
        load(self, sd=sd, config=config, **settings)

    comfy.sd.VAE.__init__ = load_any_width


def teach() -> None:
    comfy.supported_models.models.insert(0, EmbeddedSDXL)
    _teach_vae()
