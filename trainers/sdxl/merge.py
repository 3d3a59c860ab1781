"""Merges a LoRA into the weights of an SDXL model, for sampling."""

import torch
from torch import nn

from ..lora.modules import LoraModule, ModuleKey
from .names import module_key


@torch.no_grad()
def merge_lora(modules: dict[ModuleKey, LoraModule], parts: dict[str, nn.Module], *, strength: float = 1.0) -> None:
    """Add a LoRA to the weights: W + strength * alpha / rank * up @ down. For sampling only: do not
    train the merged model.
    """
    layers = {
        module_key(component, name): layer for component, part in parts.items() for name, layer in part.named_modules()
    }
    for key, module in modules.items():
        layer = layers[key]
        assert isinstance(layer, (nn.Linear, nn.Conv2d))
        delta = module.up.float().flatten(1) @ module.down.float().flatten(1)
        layer.weight += (strength * module.alpha / module.rank * delta).reshape(layer.weight.shape).to(layer.weight)
