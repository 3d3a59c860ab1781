"""Tells from the names and shapes of weights which SDXL model they are, or why they are not one.

Names are those of diffusers and transformers (layout.py translates), text encoders without the
level "text_model.". What the weights do not show is the same in every SDXL: 64 channels per
attention head, 32 normalization groups, the activations, the scale of the latents.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...captions.clip_tokenizer import END_TOKEN, START_TOKEN
from .layout import LDM_PREFIX, PARTS, Part, ldm_to_unet

Shapes = Mapping[str, Sequence[int]]

PART_NAMES: dict[Part, str] = {
    "unet": "UNet",
    "text_encoder": "text encoder 1",
    "text_encoder_2": "text encoder 2",
    "vae": "VAE",
}
CHANNELS_PER_HEAD = 64
SIZE_ID_CHANNELS = 256
NUM_SIZE_IDS = 6
LATENT_CHANNELS = 4
SCALING_FACTOR = 0.13025
# Settings that must agree with a folder's config.json: with other values, other programs compute
# something else from the same weights.
_CONFIG_FACTS: dict[Part, tuple[str, ...]] = {
    "unet": (
        *(
            "in_channels",
            "out_channels",
            "block_out_channels",
            "layers_per_block",
            "attention_head_dim",
            "cross_attention_dim",
            "mid_block_type",
        ),
        *(
            "use_linear_projection",
            "addition_embed_type",
            "addition_time_embed_dim",
            "projection_class_embeddings_input_dim",
            "norm_num_groups",
        ),
        *("act_fn", "flip_sin_to_cos", "freq_shift", "resnet_time_scale_shift", "time_cond_proj_dim"),
    ),
    "text_encoder": (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "hidden_act",
        "layer_norm_eps",
    ),
    "text_encoder_2": (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "hidden_act",
        "layer_norm_eps",
        "projection_dim",
    ),
    "vae": (
        "block_out_channels",
        "layers_per_block",
        "latent_channels",
        "scaling_factor",
        "norm_num_groups",
        "act_fn",
        "latents_mean",
        "latents_std",
    ),
}
# Some trainers and ComfyUI save these with the text encoders, but they are not weights.
_NOT_WEIGHTS = ("position_ids", "logit_scale", "attn_mask")
_FLOAT_DTYPES = {"F64", "F32", "F16", "BF16"}

_SDXL, _BASE_MODEL = "an SDXL checkpoint", "the SDXL base model, or a fine-tune of it"
# The first pattern that matches any name in the file tells what the file is.
_OTHER_MODELS = (
    (
        r"lora_|.*\.lora_(A|B|down|up)\b|.*\.lora\.(down|up)\.|.*\.(hada_w1|lokr_w1)",
        "a LoRA",
        "the checkpoint that it was made for",
    ),
    (r"control_model\.|controlnet_|input_hint_block\.|.*zero_convs?\.", "a ControlNet", _SDXL),
    (
        r"(model\.diffusion_model\.)?double_blocks\.|(transformer\.)?single_transformer_blocks\.",
        "Flux or a relative of it",
        _SDXL,
    ),
    (r"(model\.diffusion_model\.)?joint_blocks\.", "Stable Diffusion 3", _SDXL),
    (r"cond_stage_model\.transformer\.", "Stable Diffusion 1.x", _SDXL),
    (r"cond_stage_model\.model\.", "Stable Diffusion 2.x", _SDXL),
    (r"conditioner\.embedders\.0\.model\.", "the SDXL refiner", _BASE_MODEL),
    (r"edm_mean$", "Playground v2.5, which is trained with EDM's noise levels", _BASE_MODEL),
    (
        r".*\b(scaled_fp8|comfy_quant|weight_scale|scale_weight|absmax|quant_map)$",
        "a quantized model",
        "its fp16, bf16 or fp32 file",
    ),
    (r"edm_vpred\.sigma_max$", "CosXL or a relative of it, which is trained with EDM's noise levels", _BASE_MODEL),
)
_LONE_PARTS = (
    (r"encoder\.conv_in\.|first_stage_model\.encoder\.", "a VAE alone"),
    (r"input_blocks\.0\.|down_blocks\.0\.", "a UNet alone"),
    (
        r"(text_model\.)?encoder\.layers\.0\.|transformer\.resblocks\.0\.|(conditioner\.embedders|cond_stage_model)\.",
        "a text encoder alone",
    ),
)
_WHOLE_MODEL = (
    "Choose a checkpoint with UNet, both text encoders and VAE; ComfyUI's Save Checkpoint node makes one of parts"
)


def is_weight(part: Part, name: str) -> bool:
    """Tell whether a tensor of a file is a weight of the model. SDXL's text encoder 1 has no
    projection, although some files have one.
    """
    if part == "text_encoder" and name.endswith("text_projection.weight"):
        return False
    return not (part in ("text_encoder", "text_encoder_2") and name.endswith(_NOT_WEIGHTS))


def refuse_other_checkpoints(shapes: Shapes) -> None:
    """Check from its header that a file is a complete SDXL checkpoint in the LDM layout.

    Raises:
        ValueError: the file is something else, which the message names, or a part is missing.
    """
    for pattern, name, remedy in _OTHER_MODELS:
        if _has_match(shapes, pattern):
            raise ValueError(f"this is {name}. Choose {remedy}")
    missing: list[Part] = [part for part in PARTS if not any(name.startswith(LDM_PREFIX[part]) for name in shapes)]
    if "unet" in missing:
        for pattern, name in _LONE_PARTS:
            if _has_match(shapes, pattern):
                raise ValueError(f"this is {name}. {_WHOLE_MODEL}")
        raise ValueError(f"not an SDXL model: unknown weights such as {', '.join(list(shapes)[:3]) or '(none)'}")
    ldm_shapes = {
        name.removeprefix(LDM_PREFIX["unet"]): shape
        for name, shape in shapes.items()
        if name.startswith(LDM_PREFIX["unet"])
    }
    names = ldm_to_unet(ldm_shapes)
    refuse_other_unets({names[name]: shape for name, shape in ldm_shapes.items()})
    refuse_missing_parts(missing)


def refuse_missing_parts(missing: Sequence[Part]) -> None:
    if missing:
        raise ValueError(f"it has no {' and no '.join(PART_NAMES[part] for part in missing)}. {_WHOLE_MODEL}")


def refuse_quantized(dtypes: Mapping[str, str]) -> None:
    """Refuse quantized weights. `dtypes` has safetensors' dtype name of each weight."""
    quantized = sorted(set(dtypes.values()) - _FLOAT_DTYPES)
    if quantized:
        raise ValueError(
            f"its weights are quantized ({', '.join(quantized)}), and training needs the full ones. Choose the fp16, "
            "bf16 or fp32 file of this model"
        )


def refuse_other_unets(shapes: Shapes) -> None:
    """Check that a UNet is SDXL's text-to-image UNet, of any depth."""
    in_channels, text_width = _get_shape(shapes, "conv_in.weight")[1], _read_cross_attention_dim(shapes)
    if "add_embedding.linear_1.weight" not in shapes:
        name = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x"}.get(text_width, "an unknown architecture")
        raise ValueError(f"its UNet is that of {name}: it takes no pooled text and no image sizes. Choose {_SDXL}")
    if _get_shape(shapes, "add_embedding.linear_1.weight")[1] == 2560 and text_width == 1280:
        raise ValueError(f"this is the SDXL refiner. Choose {_BASE_MODEL}")
    if in_channels != LATENT_CHANNELS:
        kind = {9: "an inpainting model", 8: "an instruct-pix2pix model"}.get(in_channels, "not a text-to-image model")
        raise ValueError(
            f"this is {kind}: its UNet takes {in_channels} channels, not {LATENT_CHANNELS}. Choose the "
            "text-to-image model that it was made from"
        )


def unet_config(shapes: Shapes) -> dict[str, Any]:
    """Infer the arguments of diffusers' UNet2DConditionModel."""
    refuse_other_unets(shapes)
    down, up = _read_levels(shapes, "down_blocks"), _read_levels(shapes, "up_blocks")
    if [level.num_resnets for level in up] != [level.num_resnets + 1 for level in reversed(down)]:
        raise ValueError("not an SDXL model: the up blocks of its UNet must have one resnet more than the down blocks")
    mid_block_type, mid_depth = _read_mid_block(shapes)
    down_depths = [level.depth_config(default=1) for level in down[:-1]] + [
        down[-1].depth_config(default=mid_depth or 1)
    ]
    up_depths = [level.depth_config(default=1) for level in up]
    first_depth = down_depths[-1][0] if isinstance(down_depths[-1], tuple) else down_depths[-1]
    if mid_depth not in (None, first_depth):
        raise ValueError(
            f"diffusers cannot build this UNet: {mid_depth} transformer blocks in the middle, {first_depth} before it"
        )
    is_symmetric = up_depths == down_depths[::-1] and all(isinstance(depth, int) for depth in up_depths)
    return {
        "in_channels": LATENT_CHANNELS,
        "out_channels": _get_shape(shapes, "conv_out.weight")[0],
        "block_out_channels": tuple(level.width for level in down),
        "layers_per_block": _one_or_all([level.num_resnets for level in down]),
        "down_block_types": tuple("CrossAttnDownBlock2D" if level.depths else "DownBlock2D" for level in down),
        "mid_block_type": mid_block_type,
        "up_block_types": tuple("CrossAttnUpBlock2D" if level.depths else "UpBlock2D" for level in up),
        "transformer_layers_per_block": tuple(down_depths),
        "reverse_transformer_layers_per_block": None if is_symmetric else tuple(up_depths),
        # Here diffusers calls the number of heads "attention_head_dim".
        "attention_head_dim": tuple(max(1, level.width // CHANNELS_PER_HEAD) for level in down),
        "use_linear_projection": _uses_linear_projection(shapes),
        "cross_attention_dim": _read_cross_attention_dim(shapes),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": SIZE_ID_CHANNELS,
        "projection_class_embeddings_input_dim": _get_shape(shapes, "add_embedding.linear_1.weight")[1],
    }


def text_encoder_config(shapes: Shapes, part: Part) -> dict[str, Any]:
    """Infer the arguments of transformers' CLIPTextConfig: like CLIP-L for text encoder 1, like
    OpenCLIP-G for text encoder 2.
    """
    vocabulary_size, width = _get_shape(shapes, "embeddings.token_embedding.weight")
    if width % CHANNELS_PER_HEAD:
        raise ValueError(f"{PART_NAMES[part]} is {width} wide, which is not a multiple of {CHANNELS_PER_HEAD}")
    return {
        "vocab_size": vocabulary_size,
        "hidden_size": width,
        "intermediate_size": _get_shape(shapes, "encoder.layers.0.mlp.fc1.weight")[0],
        "num_hidden_layers": _count(shapes, "encoder.layers."),
        "num_attention_heads": width // CHANNELS_PER_HEAD,
        "max_position_embeddings": _get_shape(shapes, "embeddings.position_embedding.weight")[0],
        "hidden_act": "quick_gelu" if part == "text_encoder" else "gelu",
        "projection_dim": width if part == "text_encoder" else _get_shape(shapes, "text_projection.weight")[0],
        "bos_token_id": START_TOKEN,
        "eos_token_id": END_TOKEN,
        "pad_token_id": END_TOKEN if part == "text_encoder" else 0,
    }


def vae_config(shapes: Shapes) -> dict[str, Any]:
    """Infer the arguments of diffusers' AutoencoderKL."""
    latent_channels = _get_shape(shapes, "decoder.conv_in.weight")[1]
    if latent_channels != LATENT_CHANNELS:
        raise ValueError(f"its VAE has {latent_channels} latent channels, not {LATENT_CHANNELS}: it is not SDXL's")
    down, up = _read_levels(shapes, "encoder.down_blocks"), _read_levels(shapes, "decoder.up_blocks")
    num_resnets = {level.num_resnets for level in down} | {level.num_resnets - 1 for level in up}
    if len(num_resnets) != 1:
        raise ValueError("its VAE has a different number of layers at each level: it is not SDXL's")
    return {
        "block_out_channels": tuple(level.width for level in down),
        "down_block_types": ("DownEncoderBlock2D",) * len(down),
        "up_block_types": ("UpDecoderBlock2D",) * len(up),
        "layers_per_block": num_resnets.pop(),
        "latent_channels": latent_channels,
        "scaling_factor": SCALING_FACTOR,
        "norm_num_groups": 32,
        "sample_size": 1024,
    }


def check_text_widths(
    unet: Mapping[str, Any], text_encoder: Mapping[str, Any], text_encoder_2: Mapping[str, Any]
) -> None:
    """Check that the UNet fits the text encoders: it reads the states of both, concatenated, and
    the pooled output of the second together with the size ids.
    """
    width = text_encoder["hidden_size"] + text_encoder_2["hidden_size"]
    if unet["cross_attention_dim"] != width:
        raise ValueError(
            f"the UNet reads text of width {unet['cross_attention_dim']}, but the text encoders give {width}: they "
            "belong to another model"
        )
    pooled_width = unet["projection_class_embeddings_input_dim"] - NUM_SIZE_IDS * SIZE_ID_CHANNELS
    if pooled_width != text_encoder_2["projection_dim"]:
        raise ValueError(
            f"the UNet reads pooled text of width {pooled_width}, but text encoder 2 gives "
            f"{text_encoder_2['projection_dim']}"
        )


def check_config(stated: dict[str, Any], config: Any, part: Part) -> None:
    """Check a folder's config.json against the config that was inferred from its weights."""
    for setting in _CONFIG_FACTS[part]:
        if setting in stated and not _agree(stated[setting], getattr(config, setting)):
            values = f"{setting} {stated[setting]}, but an SDXL model with these weights has {getattr(config, setting)}"
            raise ValueError(
                f"{part}/config.json says {values}. Correct the file if it is wrong; otherwise this model is not SDXL"
            )


@dataclass(frozen=True)
class _Level:
    """One resolution of a UNet or VAE. `depths` has the number of transformer blocks after each
    resnet, and is empty without attention.
    """

    width: int
    num_resnets: int
    depths: tuple[int, ...]

    def depth_config(self, *, default: int) -> int | tuple[int, ...]:
        return _one_or_all(self.depths) if self.depths else default


def _read_levels(shapes: Shapes, blocks: str) -> list[_Level]:
    return [_read_level(shapes, f"{blocks}.{index}") for index in range(_count(shapes, f"{blocks}."))]


def _read_level(shapes: Shapes, block: str) -> _Level:
    width, num_resnets = _get_shape(shapes, f"{block}.resnets.0.conv1.weight")[0], _count(shapes, f"{block}.resnets.")
    num_attentions = _count(shapes, f"{block}.attentions.")
    if num_attentions not in (0, num_resnets):
        raise ValueError(
            f"diffusers cannot build this UNet: {block} has {num_resnets} resnets, but attention after "
            f"{num_attentions} of them"
        )
    if num_attentions and width % CHANNELS_PER_HEAD:
        raise ValueError(
            f"not an SDXL model: {block} has attention over {width} channels, not a multiple of {CHANNELS_PER_HEAD}"
        )
    return _Level(
        width,
        num_resnets,
        tuple(_count(shapes, f"{block}.attentions.{index}.transformer_blocks.") for index in range(num_attentions)),
    )


def _read_mid_block(shapes: Shapes) -> tuple[str | None, int | None]:
    """Return diffusers' type of the middle block, and its number of transformer blocks if it has
    attention.
    """
    match _count(shapes, "mid_block.resnets."), _count(shapes, "mid_block.attentions."):
        case 2, 1:
            return "UNetMidBlock2DCrossAttn", _count(shapes, "mid_block.attentions.0.transformer_blocks.")
        case 1, 0:
            return "UNetMidBlock2D", None
        case 0, 0:
            return None, None
        case num_resnets, num_attentions:
            raise ValueError(
                f"diffusers cannot build this UNet: {num_resnets} resnets and {num_attentions} attentions in the middle"
            )


def _read_cross_attention_dim(shapes: Shapes) -> int:
    return next((shape[1] for name, shape in shapes.items() if name.endswith("attn2.to_k.weight")), 0)


def _uses_linear_projection(shapes: Shapes) -> bool:
    """Tell SDXL's transformers, which begin with a linear layer [C, C], from those of SD 1.x, which
    begin with a 1x1 convolution [C, C, 1, 1].
    """
    return any(name.endswith("proj_in.weight") and len(shape) == 2 for name, shape in shapes.items())


def _agree(stated: Any, built: Any) -> bool:
    """Compare two values. A single number equals a list of that number."""
    if isinstance(stated, list | tuple) or isinstance(built, list | tuple):
        num_values = max(len(value) for value in (stated, built) if isinstance(value, list | tuple))
        stated, built = (
            list(value) if isinstance(value, list | tuple) else [value] * num_values for value in (stated, built)
        )
    return stated == built


def _one_or_all(values: Sequence[int]) -> int | tuple[int, ...]:
    return values[0] if len(set(values)) == 1 else tuple(values)


def _get_shape(shapes: Shapes, name: str) -> Sequence[int]:
    if name not in shapes:
        raise ValueError(f"not an SDXL model: {name} is missing")
    return shapes[name]


def _count(shapes: Shapes, prefix: str) -> int:
    """Count the different names that follow `prefix`."""
    return len({name[len(prefix) :].partition(".")[0] for name in shapes if name.startswith(prefix)})


def _has_match(names: Shapes, pattern: str) -> bool:
    compiled = re.compile(pattern)
    return any(compiled.match(name) for name in names)
