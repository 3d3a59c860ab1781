"""Which layers of SDXL get a LoRA."""

import re

from torch import nn

from ..patterns import find_syntax_error, match_in_time

_ATTENTION = r"attn[12]\.(to_q|to_k|to_v|to_out\.0)"
UNET_PRESETS = {
    "attention": rf".*\.transformer_blocks\.\d+\.{_ATTENTION}",
    "attention_mlp": r".*attentions\.\d+\.(proj_in|proj_out|"
    rf"transformer_blocks\.\d+\.({_ATTENTION}|ff\.net\.(0\.proj|2)))",
    # B-LoRA (Frenkel et al. 2024): the blocks that its paper calls W4 and W5
    "b-lora": rf"up_blocks\.0\.attentions\.[01]\.transformer_blocks\.\d+\.{_ATTENTION}",
    "b-lora-content": rf"up_blocks\.0\.attentions\.0\.transformer_blocks\.\d+\.{_ATTENTION}",
    "b-lora-style": rf"up_blocks\.0\.attentions\.1\.transformer_blocks\.\d+\.{_ATTENTION}",
}
# sd-scripts' choice with conv_dim: everything in these blocks, the projection of the timestep too
_CONVOLUTIONS = r".*\.(resnets\.\d+\.(conv1|conv2|conv_shortcut|time_emb_proj)|(down|up)samplers\.\d+\.conv)"
_TEXT_ENCODER_MODULES = r"(.*\.)?layers\.(\d+)\.(self_attn\.(q_proj|k_proj|v_proj|out_proj)|mlp\.(fc1|fc2))"


def find_unet_targets(unet: nn.Module, target_modules: str, *, with_convolutions: bool = False) -> list[str]:
    """List the full names of the UNet's layers that a preset or a regular expression chooses, and
    with_convolutions those of its convolution blocks.

    Raises:
        ValueError: the expression is invalid, or matches no linear or convolution layer.
    """
    pattern = UNET_PRESETS.get(target_modules, target_modules)
    if wrong := find_syntax_error(pattern):
        raise ValueError(
            f"target_modules: {target_modules!r} is neither {', '.join(UNET_PRESETS)} nor a regular expression "
            f"({wrong})"
        )
    names = [name for name, module in unet.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    if target_modules in UNET_PRESETS:
        chosen = [name for name in names if re.fullmatch(pattern, name)]
    else:
        chosen = match_in_time(pattern, names, setting="target_modules")
    if not chosen:
        raise ValueError(
            f"target_modules: {target_modules!r} matches no linear or convolution layer of the UNet. Use "
            rf"{', '.join(UNET_PRESETS)}, or an expression for whole names such as .*\.attn2\.to_(k|v)"
        )
    if not with_convolutions:
        return chosen
    wanted = {*chosen, *(name for name in names if re.fullmatch(_CONVOLUTIONS, name))}
    return [name for name in names if name in wanted]


def find_text_encoder_targets(text_encoder: nn.Module, *, uses_last_layer: bool) -> list[str]:
    """List the attention and MLP layers of a CLIP text encoder.

    SDXL uses the penultimate hidden states, so the last layer of the first encoder never gets a
    gradient (uses_last_layer=False). That of the second does, through the pooled embedding.
    """
    found = [
        (name, re.fullmatch(_TEXT_ENCODER_MODULES, name))
        for name, module in text_encoder.named_modules()
        if isinstance(module, nn.Linear)
    ]
    matches = [(name, int(match.group(2))) for name, match in found if match]
    last = max(layer for _, layer in matches)
    return [name for name, layer in matches if uses_last_layer or layer < last]
