"""Recognizes files of kinds that are not read, and those for another base model, by the names of
their tensors.
"""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

_OTHER_KINDS = (
    (r"\.lora_magnitude_vector(\.|$)", "a DoRA in PEFT's names"),
    (r"\.hada_t[12]$", "a LoHa with Tucker decomposition (hada_t1)"),
    (r"\.lokr_t[12]$", "a LoKr with Tucker decomposition (lokr_t2)"),
    (r"\.lora_mid\.", "a LoCon with Tucker decomposition (lora_mid)"),
    (r"\.b?oft_", "an OFT"),
    (r"\.[ab][12]\.weight$", "a GLoRA"),
    (r"\.on_input$", "an IA3"),
    (r"\.lora_[AB](\.\w+)?\.bias$", "a LoRA with biases"),
    (r"\.(diff|diff_b|set_weight|w_norm|b_norm|reshape_weight)$", "a LoRA mixed with whole weight differences (.diff)"),
    (r"^(string_to_param|emb_params|clip_[lg]$)", "a textual inversion embedding"),
)


def refuse_other_kinds(tensors: Mapping[str, Tensor], label: str) -> None:
    """Raise ValueError if the tensors belong to another kind of adapter, and name the kind."""
    kind, found = find_other_kind(tensors)
    if kind:
        raise ValueError(
            f"{label}: this file is {kind} ({found}); what is read is LoRA, and DoRA, LoHa and LoKr in LyCORIS' names"
        )


def find_other_kind(names: Iterable[str]) -> tuple[str, str]:
    """Return the kind of adapter that is no plain LoRA, such as "a LoHa", and the name that tells;
    both are empty if there is none.
    """
    names = list(names)
    for pattern, kind in _OTHER_KINDS:
        found = next((name for name in names if re.search(pattern, name)), None)
        if found:
            return kind, found
    return "", ""


_ARCHITECTURES = (
    (r"(lora_prior_unet|prior_te)", "Stable Cascade"),
    (r"(double_blocks|single_blocks|single_transformer_blocks)", "Flux or HunyuanVideo"),
    (r"(joint_blocks|context_block|transformer_blocks.*add_[qkv]_proj)", "SD 3 or Qwen-Image"),
    (r"(img_mod|txt_mod|img_mlp)", "Qwen-Image"),
    (r"(adaLN_modulation|adaln_modulation|feed_forward)", "Lumina or Z-Image"),
    (r"blocks[._]\d+[._](self_attn|cross_attn|ffn)", "Wan"),
)
_CROSS_ATTENTION_WIDTHS = {768: "SD 1.x", 1024: "SD 2.x", 1280: "the SDXL refiner", 2048: "SDXL of another layout"}


def looks_like_another_model(names: Iterable[str]) -> bool:
    """Tell from tensors' names alone that a LoRA is for another architecture than SDXL."""
    return any(re.search(pattern, name) for name in names for pattern, _ in _ARCHITECTURES)


def guess_base_model(tensors: Mapping[str, Tensor]) -> str:
    """Return a sentence for an error that guesses the base model of a LoRA."""
    for pattern, architecture in _ARCHITECTURES:
        if any(re.search(pattern, name) for name in tensors):
            return f"It looks like a LoRA for {architecture}"
    width = next(
        (
            tensor.shape[-1]
            for name, tensor in tensors.items()
            if tensor.ndim == 2
            and "attn2" in name
            and ("to_k" in name or "to.k" in name)
            and ("down" in name or "lora_A" in name)
        ),
        0,
    )
    return f"It looks like a LoRA for {_CROSS_ATTENTION_WIDTHS.get(width, 'another model')}"
