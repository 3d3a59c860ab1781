"""Merges a LoRA into the weights of an SDXL model, for sampling."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from ..lora.modules import AdapterModule, ModuleKey
from .names import module_key


@torch.no_grad()
def merge_lora(
    modules: Mapping[ModuleKey, AdapterModule], parts: Mapping[str, nn.Module], *, strength: float = 1.0
) -> None:
    """Merge a LoRA of any kind into the weights. For sampling only: do not train the merged
    model.
    """
    layers = find_layers(modules, parts)
    for key, module in modules.items():
        weight = layers[key].weight
        weight.copy_(module.merge_into(weight, strength))


@contextmanager
def merged_lora(
    modules: Mapping[ModuleKey, AdapterModule], parts: Mapping[str, nn.Module], *, strength: float
) -> Iterator[None]:
    """Inside the block the LoRA is in the weights; afterwards they are bit for bit as before.

    The weights that it changes have a copy in main memory meanwhile.
    """
    layers = find_layers(modules, parts)
    originals = {key: layer.weight.detach().to("cpu", copy=True) for key, layer in layers.items()}
    try:
        merge_lora(modules, parts, strength=strength)
        yield
    finally:
        with torch.no_grad():
            for key, weight in originals.items():
                layers[key].weight.copy_(weight)


def find_layers(
    modules: Mapping[ModuleKey, AdapterModule], parts: Mapping[str, nn.Module]
) -> dict[ModuleKey, nn.Linear | nn.Conv2d]:
    """The layer of each module.

    Raises:
        ValueError: a module is for a layer of another kind or size.
    """
    layers = {
        module_key(component, name): layer for component, part in parts.items() for name, layer in part.named_modules()
    }
    return {key: _require_size(" ".join(key), module, layers[key]) for key, module in modules.items()}


def _require_size(name: str, module: AdapterModule, layer: nn.Module) -> nn.Linear | nn.Conv2d:
    if not isinstance(layer, (nn.Linear, nn.Conv2d)):
        raise ValueError(f"{name} is neither a linear nor a convolution layer, and the LoRA changes it")
    if module.size != (layer.weight.shape[0], layer.weight[0].numel()):
        raise ValueError(
            f"{name}: the LoRA has {module.size[1]} inputs and {module.size[0]} outputs, the model "
            f"{layer.weight[0].numel()} and {layer.weight.shape[0]}; the LoRA belongs to another base model"
        )
    return layer
