"""The two names of every SDXL weight: in diffusers, and in the original single-file (LDM) layout.
Names only, no tensors.

The block structure is read from the names, so that SSD-1B, Vega, KOALA and the embedded base model
work too. The functions take names of weights ("conv_in.weight") or of leaf modules ("conv_in"), but
always all of a part: the number of resnets in one block decides the name of the next.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Literal

from ...wording import name_first

Part = Literal["unet", "text_encoder", "text_encoder_2", "vae"]
PARTS: tuple[Part, ...] = ("unet", "text_encoder", "text_encoder_2", "vae")

LDM_PREFIX: dict[Part, str] = {
    "unet": "model.diffusion_model.",
    "text_encoder": "conditioner.embedders.0.transformer.",
    "text_encoder_2": "conditioner.embedders.1.model.",
    "vae": "first_stage_model.",
}

_UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_RESNET = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "conv_shortcut": "nin_shortcut"}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OLD_VAE_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_CLIP_ENDS = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
    "text_projection.weight": "text_projection",
}


def unet_to_ldm(diffusers_keys: Iterable[str]) -> dict[str, str]:
    """Map each diffusers name of a UNet to its LDM name, such as "down_blocks.1.attentions.0.norm"
    to "input_blocks.4.1.norm".

    Raises:
        ValueError: the LDM layout has no such name.
    """
    keys = list(diffusers_keys)
    num_down, num_up = (
        _count_resnets(keys, r"down_blocks\.(\d+)\.resnets\.(\d+)"),
        _count_resnets(keys, r"up_blocks\.(\d+)\.resnets\.(\d+)"),
    )
    with_attention = {level for level, _ in _find_numbers(keys, r"up_blocks\.(\d+)\.attentions\.(\d+)")}
    return _rename(keys, _unet_prefixes(num_down, num_up, [level in with_attention for level in range(len(num_up))]))


def ldm_to_unet(ldm_keys: Iterable[str]) -> dict[str, str]:
    """Invert unet_to_ldm, for names without "model.diffusion_model.".

    A level of the LDM layout ends with its downsampler ("input_blocks.N.0.op") or upsampler
    ("output_blocks.N.S.conv").
    """
    keys = list(ldm_keys)
    last_input = max((index for index, _ in _find_numbers(keys, r"input_blocks\.(\d+)\.(\d+)")), default=0)
    last_output = max((index for index, _ in _find_numbers(keys, r"output_blocks\.(\d+)\.(\d+)")), default=-1)
    downsamplers = sorted({index for index, _ in _find_numbers(keys, r"input_blocks\.(\d+)\.(0)\.op")})
    upsamplers = sorted({index for index, _ in _find_numbers(keys, r"output_blocks\.(\d+)\.(\d+)\.conv")})
    num_down = [end - start - 1 for start, end in zip([0, *downsamplers], [*downsamplers, last_input + 1], strict=True)]
    up_ends = [*upsamplers, last_output]
    num_up = [end - start for start, end in zip([-1, *upsamplers], up_ends, strict=True)]
    with_attention = {index for index, _ in _find_numbers(keys, r"output_blocks\.(\d+)\.(1)\.norm")}
    prefixes = _unet_prefixes(num_down, num_up, [end in with_attention for end in up_ends])
    return _rename(keys, {ldm: diffusers for diffusers, ldm in prefixes.items()})


def vae_to_ldm(diffusers_keys: Iterable[str]) -> dict[str, str]:
    """Map each diffusers name of a VAE to its LDM name. In LDM the attention weights [C, C] are 1x1
    convolutions [C, C, 1, 1].
    """
    keys = list(diffusers_keys)
    down = _count_resnets(keys, r"encoder\.down_blocks\.(\d+)\.resnets\.(\d+)")
    up = _count_resnets(keys, r"decoder\.up_blocks\.(\d+)\.resnets\.(\d+)")
    return _rename(keys, _vae_prefixes(down, up))


def ldm_to_vae(ldm_keys: Iterable[str]) -> dict[str, str]:
    """Invert vae_to_ldm, for names without "first_stage_model."."""
    keys = list(ldm_keys)
    down, up = (
        _count_resnets(keys, r"encoder\.down\.(\d+)\.block\.(\d+)"),
        _count_resnets(keys, r"decoder\.up\.(\d+)\.block\.(\d+)"),
    )
    prefixes = _vae_prefixes(down, up[::-1])
    return _rename(keys, {ldm: diffusers for diffusers, ldm in prefixes.items()})


def modern_vae_names(diffusers_keys: Iterable[str]) -> dict[str, str]:
    """Map each diffusers name of a VAE to its name since diffusers 0.18 ("query" became "to_q")."""
    old_name = re.compile(r"(?<=mid_block\.attentions\.0\.)(query|key|value|proj_attn)(?=\.)")
    return {key: old_name.sub(lambda match: _OLD_VAE_ATTENTION[match[0]], key) for key in diffusers_keys}


def is_vae_attention_matrix(diffusers_key: str) -> bool:
    """Tell whether a weight is [C, C] in diffusers and [C, C, 1, 1] in the LDM layout."""
    return re.search(r"mid_block\.attentions\.0\.to_(q|k|v|out\.0)\.weight$", diffusers_key) is not None


def bare_text_name(key: str) -> str:
    """Remove the level "text_model." from a text encoder's name: transformers 5 has it in only one
    of the two CLIP classes.
    """
    return key.removeprefix("text_model.")


def text_encoder_to_ldm(keys: Iterable[str]) -> dict[str, str]:
    """Map each transformers name of text encoder 1 (CLIP-L) to its LDM name: the same, but always
    with the level "text_model.".
    """
    return {key: "text_model." + bare_text_name(key) for key in keys}


def text_encoder_2_to_ldm(keys: Iterable[str]) -> dict[str, str]:
    """Map each transformers name of text encoder 2 to its OpenCLIP name.

    q_proj, k_proj and v_proj share the name in_proj, which concatenates them in this order.
    text_projection is transposed.
    """
    keys = list(keys)
    bare_names = [bare_text_name(key) for key in keys]
    open_clip = _open_clip_names(_count_layers(bare_names, r"encoder\.layers\.(\d+)()"))
    _refuse_unknown([name for name in bare_names if name not in open_clip])
    return {key: open_clip[name] for key, name in zip(keys, bare_names, strict=True)}


def ldm_to_text_encoder_2(ldm_keys: Iterable[str]) -> dict[str, list[str]]:
    """Map each OpenCLIP name of text encoder 2 to its transformers names without "text_model.":
    three for in_proj, one for any other.
    """
    keys = list(ldm_keys)
    names = defaultdict(list)
    for name, open_clip in _open_clip_names(_count_layers(keys, r"transformer\.resblocks\.(\d+)()")).items():
        names[open_clip].append(name)
    _refuse_unknown([key for key in keys if key not in names])
    return {key: names[key] for key in keys}


def _unet_prefixes(num_down: list[int], num_up: list[int], with_attention: list[bool]) -> dict[str, str]:
    """Map the module names of a UNet, diffusers -> LDM, given its resnets per level and which up
    levels have attention.
    """
    prefixes = dict(_UNET_ENDS)
    index = 1
    for level, num_resnets in enumerate(num_down):
        for layer in range(num_resnets):
            prefixes |= _nest_names(_UNET_RESNET, f"down_blocks.{level}.resnets.{layer}", f"input_blocks.{index}.0")
            prefixes[f"down_blocks.{level}.attentions.{layer}"] = f"input_blocks.{index}.1"
            index += 1
        prefixes[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{index}.0.op"
        index += 1
    for layer in range(2):
        prefixes |= _nest_names(_UNET_RESNET, f"mid_block.resnets.{layer}", f"middle_block.{2 * layer}")
    prefixes["mid_block.attentions.0"] = "middle_block.1"
    index = 0
    for level, num_resnets in enumerate(num_up):
        for layer in range(num_resnets):
            prefixes |= _nest_names(_UNET_RESNET, f"up_blocks.{level}.resnets.{layer}", f"output_blocks.{index}.0")
            if with_attention[level]:
                prefixes[f"up_blocks.{level}.attentions.{layer}"] = f"output_blocks.{index}.1"
            index += 1
        # The upsampler comes last in the block, after the resnet and any attention.
        prefixes[f"up_blocks.{level}.upsamplers.0.conv"] = (
            f"output_blocks.{index - 1}.{2 if with_attention[level] else 1}.conv"
        )
    return prefixes


def _vae_prefixes(num_down: list[int], num_up: list[int]) -> dict[str, str]:
    """Map the module names of a VAE, diffusers -> LDM. LDM numbers the decoder's levels from the
    finest, diffusers from the coarsest.
    """
    prefixes = {name: name for name in ("quant_conv", "post_quant_conv")}
    for coder in ("encoder", "decoder"):
        prefixes |= {f"{coder}.{name}": f"{coder}.{name}" for name in ("conv_in", "conv_out")}
        prefixes[f"{coder}.conv_norm_out"] = f"{coder}.norm_out"
        for layer in range(2):
            prefixes |= _nest_names(_VAE_RESNET, f"{coder}.mid_block.resnets.{layer}", f"{coder}.mid.block_{layer + 1}")
        prefixes |= _nest_names(_VAE_ATTENTION, f"{coder}.mid_block.attentions.0", f"{coder}.mid.attn_1")
    for level, num_resnets in enumerate(num_down):
        for layer in range(num_resnets):
            prefixes |= _nest_names(
                _VAE_RESNET, f"encoder.down_blocks.{level}.resnets.{layer}", f"encoder.down.{level}.block.{layer}"
            )
        prefixes[f"encoder.down_blocks.{level}.downsamplers.0.conv"] = f"encoder.down.{level}.downsample.conv"
    for level, num_resnets in enumerate(num_up):
        ldm_level = len(num_up) - 1 - level
        for layer in range(num_resnets):
            prefixes |= _nest_names(
                _VAE_RESNET, f"decoder.up_blocks.{level}.resnets.{layer}", f"decoder.up.{ldm_level}.block.{layer}"
            )
        prefixes[f"decoder.up_blocks.{level}.upsamplers.0.conv"] = f"decoder.up.{ldm_level}.upsample.conv"
    return prefixes


def _open_clip_names(num_layers: int) -> dict[str, str]:
    """Map the weight names of text encoder 2, transformers (without "text_model.") -> OpenCLIP."""
    names = dict(_CLIP_ENDS)
    for layer in range(num_layers):
        block, open_clip = f"encoder.layers.{layer}", f"transformer.resblocks.{layer}"
        for kind in ("weight", "bias"):
            names |= {f"{block}.self_attn.{matrix}_proj.{kind}": f"{open_clip}.attn.in_proj_{kind}" for matrix in "qkv"}
            names |= {f"{block}.{ours}.{kind}": f"{open_clip}.{theirs}.{kind}" for ours, theirs in _CLIP_LAYER.items()}
    return names


def _nest_names(names: dict[str, str], diffusers: str, ldm: str) -> dict[str, str]:
    return {f"{diffusers}.{ours}": f"{ldm}.{theirs}" for ours, theirs in names.items()}


def _rename(keys: list[str], prefixes: dict[str, str]) -> dict[str, str]:
    renamed = {key: _replace_prefix(key, prefixes) for key in keys}
    _refuse_unknown([key for key, name in renamed.items() if name is None])
    return {key: name for key, name in renamed.items() if name is not None}


def _replace_prefix(key: str, prefixes: dict[str, str]) -> str | None:
    """Replace the longest known prefix of a key. Prefixes end at a dot."""
    prefix = key
    while prefix:
        if prefix in prefixes:
            return prefixes[prefix] + key[len(prefix) :]
        prefix = prefix.rpartition(".")[0]
    return None


def _refuse_unknown(keys: list[str]) -> None:
    if keys:
        raise ValueError(f"not an SDXL model: SDXL has no place for {name_first(keys, 3)}")


def _find_numbers(keys: Iterable[str], pattern: str) -> set[tuple[int, int]]:
    """Return the pairs of numbers that the two groups of `pattern` match at the start of keys, up
    to a dot or the end.
    """
    compiled = re.compile(pattern + r"(?:\.|$)")
    return {(int(match[1]), int(match[2] or 0)) for key in keys if (match := compiled.match(key))}


def _count_layers(keys: Iterable[str], pattern: str) -> int:
    return 1 + max((layer for layer, _ in _find_numbers(keys, pattern)), default=-1)


def _count_resnets(keys: Iterable[str], pattern: str) -> list[int]:
    """Count the resnets of each level, from names that contain level and resnet."""
    highest: dict[int, int] = defaultdict(int)
    for level, layer in _find_numbers(keys, pattern):
        highest[level] = max(highest[level], layer + 1)
    return [highest[level] for level in range(max(highest, default=-1) + 1)]
