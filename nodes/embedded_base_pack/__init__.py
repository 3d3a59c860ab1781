"""A separate ComfyUI pack for the demo and the tests: teaches ComfyUI the sizes of the embedded
base model.

ComfyUI recognises a model by its exact sizes, and knows only full-size text encoders and VAEs. This
adds one more model to its list; models of other sizes load as before. Link this folder into
custom_nodes to load the embedded base.
"""

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
NODE_CLASS_MAPPINGS = {}  # ComfyUI reports a pack without it as broken


class EmbeddedBaseClip(comfy.sdxl_clip.SDXLClipModel):
    def __init__(self, device="cpu", dtype=None, model_options=None):
        sizes = {"clip_l_model_config": CLIP_L, "clip_g_model_config": CLIP_G}
        super().__init__(device=device, dtype=dtype, model_options={**(model_options or {}), **sizes})


class EmbeddedBase(comfy.supported_models.SDXL):
    unet_config = UNET

    def clip_target(self, state_dict=None):
        return ClipTarget(comfy.sdxl_clip.SDXLTokenizer, EmbeddedBaseClip)


def teach_vae_sizes() -> None:
    load = comfy.sd.VAE.__init__

    def load_any_width(self, sd=None, config=None, **settings):
        first = (sd or {}).get("encoder.conv_in.weight")
        if config is None and first is not None and first.shape == (VAE_WIDTH, 3, 3, 3):
            config = {"params": {"embed_dim": 4, "ddconfig": VAE}}
        load(self, sd=sd, config=config, **settings)

    comfy.sd.VAE.__init__ = load_any_width


comfy.supported_models.models.insert(0, EmbeddedBase)
teach_vae_sizes()
