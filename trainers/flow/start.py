"""The LoRA that a flow training starts from: network_weights, checked against the model."""

from pathlib import Path

from torch import nn

from ..lora.modules import AdapterModule, ModuleKey, clone_module
from ..lora.read import read_lora
from ..training.adapter_layers import find_size
from ..training.adapter_shapes import AdapterSettings
from ..training.adapters import require_same_shapes
from .config import FlowConfig
from .lora_names import name_modules
from .targets import is_linear

Start = dict[ModuleKey, AdapterModule]


def read_start(config: FlowConfig, network: nn.Module, targets: list[str]) -> Start:
    """Read network_weights; nothing without it.

    Raises:
        ValueError: the file is not a LoRA for this model, or a run that trains these layers cannot
            go on from it.
    """
    if not config.network_weights:
        return {}
    names = name_modules(name for name, module in network.named_modules() if is_linear(module))
    adapters = AdapterSettings.of(config, targets)
    start = read_lora(Path(config.network_weights), names)
    for (component, path), module in start.items():
        size = find_size(network.get_submodule(path))
        require_same_shapes(module, size, adapters.for_name(path), names[component, path])
    return {key: clone_module(module) for key, module in start.items()}  # the file may change meanwhile
