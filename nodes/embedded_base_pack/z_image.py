"""The embedded Z-Image's sizes."""

import comfy.sd
import comfy.supported_models

WIDTH, TEXT_WIDTH, VAE_WIDTH = 288, 64, 32
DETECTED = {"image_model": "lumina2", "dim": WIDTH}
TRANSFORMER = {
    "n_heads": 6,
    "n_kv_heads": 6,
    "n_refiner_layers": 1,
    "axes_dims": [12, 18, 18],
    "axes_lens": [1536, 512, 512],
    "rope_theta": 256.0,
    "ffn_dim_multiplier": 8.0 / 3.0,
    "z_image_modulation": True,
    "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
}
TEXT_ENCODER = {
    "hidden_size": TEXT_WIDTH,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
VAE = {
    "double_z": True,
    "z_channels": 16,
    "resolution": 128,
    "in_channels": 3,
    "out_ch": 3,
    "ch": VAE_WIDTH,
    "ch_mult": [1, 1, 2, 1],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "dropout": 0.0,
}


class ZImage(comfy.supported_models.ZImage):
    """It has the name of ComfyUI's class: by that, nodes know a Z-Image."""

    unet_config = DETECTED
    unet_extra_config = TRANSFORMER


def teach() -> None:
    comfy.supported_models.models.insert(0, ZImage)
    _teach_text_encoder()
    _teach_vae()


def _teach_text_encoder() -> None:
    """ComfyUI tells text encoders apart by their width, and has one set of sizes for each."""
    detect, load = comfy.sd.detect_te_model, comfy.sd.load_text_encoder_state_dicts

    def detect_small_too(weights):
        return comfy.sd.TEModel.QWEN3_4B if _is_small(weights) else detect(weights)

    def load_small_too(state_dicts, *arguments, **settings):
        if any(_is_small(weights) for weights in state_dicts):
            sizes = {"qwen3_4b_model_config": TEXT_ENCODER}
            settings["model_options"] = {**settings.get("model_options", {}), **sizes}
        return load(state_dicts, *arguments, **settings)

    comfy.sd.detect_te_model = detect_small_too
    comfy.sd.load_text_encoder_state_dicts = load_small_too


def _is_small(weights) -> bool:
    norm = weights.get("model.layers.0.self_attn.q_norm.weight")
    width = weights.get("model.layers.0.post_attention_layernorm.weight")
    return norm is not None and width is not None and width.shape[0] == TEXT_WIDTH


def _teach_vae() -> None:
    load, build = comfy.sd.VAE.__init__, comfy.sd.AutoencodingEngine

    def build_small(*, encoder_config, decoder_config, **settings):
        sizes = {"encoder_config": encoder_config, "decoder_config": decoder_config}
        return build(**{name: {**config, "params": VAE} for name, config in sizes.items()}, **settings)

    def load_small_too(self, sd=None, config=None, **settings):
        """ComfyUI reads most sizes of such a VAE from the file, but not all."""
        weights = sd or {}
        first = weights.get("encoder.conv_in.weight")
        is_small = first is not None and first.shape[0] == VAE_WIDTH and "quant_conv.weight" not in weights
        comfy.sd.AutoencodingEngine = build_small if is_small else build
        try:
            load(self, sd=sd, config=config, **settings)
        finally:
            comfy.sd.AutoencodingEngine = build

    comfy.sd.VAE.__init__ = load_small_too
