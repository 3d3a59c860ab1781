"""The weights of a Z-Image by the names of its original files, as ComfyUI reads them, and by those
of diffusers and transformers.
"""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ...sdxl.model.layout import is_vae_attention_matrix, ldm_to_vae, vae_to_ldm
from .architecture import NUM_TEXT_LAYERS

# in diffusers, in the original file
_TRANSFORMER = (
    (r"^all_x_embedder\.2-1\.", "x_embedder."),
    (r"^all_final_layer\.2-1\.", "final_layer."),
    (r"\.attention\.to_out\.0\.", ".attention.out."),
    (r"\.attention\.norm_([qk])\.", r".attention.\1_norm."),
)
_BACK = (
    (r"^(x_embedder|final_layer)\.", r"all_\1.2-1."),
    (r"\.attention\.out\.", ".attention.to_out.0."),
    (r"\.attention\.([qk])_norm\.", r".attention.norm_\1."),
)
_QKV = ("to_q", "to_k", "to_v")  # one matrix in the original file
_LAST_LAYER = f"model.layers.{NUM_TEXT_LAYERS - 1}."
_WITHOUT_EFFECT = ("context_refiner.", _LAST_LAYER, "model.norm.")


def transformer_to_original(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    original: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if ".attention.to_q." in name:
            parts = [weights[name.replace("to_q", part)] for part in _QKV]
            original[name.replace("to_q", "qkv")] = torch.cat(parts)
        elif not re.search(r"\.attention\.to_[kv]\.", name):
            original[_rename(name, _TRANSFORMER)] = weight
    return original


def transformer_from_original(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if ".attention.qkv." in name:
            parts = zip(_QKV, weight.chunk(3), strict=True)
            found.update({name.replace("qkv", part): matrix for part, matrix in parts})
        else:
            found[_rename(name, _BACK)] = weight
    return found


def _rename(name: str, rules: Sequence[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def text_encoder_to_original(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"model.{name}": weight for name, weight in weights.items()}


def text_encoder_from_original(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("model."): weight for name, weight in weights.items()}


def without_zeros(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out what `add_zeros_to_*` fills in."""
    return {name: weight for name, weight in weights.items() if not name.startswith(_WITHOUT_EFFECT)}


def add_zeros_to_transformer(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add the context refiner, which passes its input on: all its weights are zero."""
    refiner = {
        name.replace("noise_refiner.", "context_refiner."): torch.zeros_like(weight)
        for name, weight in weights.items()
        if name.startswith("noise_refiner.") and ".adaLN_modulation." not in name
    }
    return {**weights, **refiner}


def add_zeros_to_text_encoder(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add the last layer and norm, which have no effect: Z-Image reads the states before them. They
    must be there: ComfyUI counts layers.
    """
    first = {name: weight for name, weight in weights.items() if name.startswith("model.layers.0.")}
    last = {_LAST_LAYER + name.removeprefix("model.layers.0."): weight for name, weight in first.items()}
    norm = {"model.norm.weight": first["model.layers.0.input_layernorm.weight"]}
    return {**weights, **{name: torch.zeros_like(weight) for name, weight in {**last, **norm}.items()}}


def vae_to_original(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """In the original file the attention's matrices [C, C] are 1x1 convolutions."""
    return {
        ldm: weights[name][:, :, None, None] if is_vae_attention_matrix(name) else weights[name]
        for name, ldm in vae_to_ldm(weights).items()
    }


def vae_from_original(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: weights[ldm].flatten(1) if is_vae_attention_matrix(name) else weights[ldm]
        for ldm, name in ldm_to_vae(weights).items()
    }
