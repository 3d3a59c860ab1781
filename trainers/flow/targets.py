"""Which layers of a network get a LoRA. A network is a stack of blocks between other layers."""

import re
from collections.abc import Mapping

from torch import nn

from ..patterns import find_syntax_error, match_in_time
from .families import FlowFamilyRow

AUTO = "auto"
# Peers leave them out: a LoRA on them changes every position alike.
_NOT_IN_BLOCKS = re.compile(r"(^|[._])(ada_?ln|mod|modulation|norm|embed|emb|gate_?linear)", re.IGNORECASE)


def list_blocks(network: nn.Module) -> dict[str, nn.Module]:
    """Return the blocks by their names: the members of every list of modules at the first level."""
    return {
        f"{name}.{number}": block
        for name, child in network.named_children()
        if isinstance(child, nn.ModuleList)
        for number, block in enumerate(child)
    }


def is_linear(module: nn.Module) -> bool:
    """Tell whether this is a linear layer, of whatever class: quantized ones are no nn.Linear."""
    sizes = getattr(module, "in_features", None), getattr(module, "out_features", None)
    return isinstance(module, nn.Linear) or (all(isinstance(size, int) for size in sizes) and hasattr(module, "weight"))


def find_targets(network: nn.Module, family: FlowFamilyRow | None, target_modules: str) -> list[str]:
    """List the names of the layers that a LoRA trains.

    Raises:
        ValueError: the expression is invalid, or matches no linear layer.
    """
    layers = {name: module for name, module in network.named_modules() if is_linear(module)}
    if target_modules == AUTO:
        chosen = _match_family(layers, family) or _find_generic(network, layers)
    else:
        chosen = _match(target_modules, layers)
    if not chosen:
        raise ValueError(
            f"target_modules: {target_modules!r} matches no linear layer of {type(network).__name__}. Use auto, or an "
            rf"expression for whole names such as {_make_example(layers)}"
        )
    return chosen


def _match_family(layers: Mapping[str, nn.Module], family: FlowFamilyRow | None) -> list[str]:
    if family is None or not family.target_modules:
        return []
    return [name for name in layers if re.fullmatch(family.target_modules, name)]


def _find_generic(network: nn.Module, layers: Mapping[str, nn.Module]) -> list[str]:
    blocks = tuple(f"{name}." for name in list_blocks(network))
    return [name for name in layers if name.startswith(blocks) and not _NOT_IN_BLOCKS.search(name)]


def _match(expression: str, layers: Mapping[str, nn.Module]) -> list[str]:
    if wrong := find_syntax_error(expression):
        raise ValueError(f"target_modules: {expression!r} is neither auto nor a regular expression ({wrong})")
    return match_in_time(expression, list(layers), setting="target_modules")


def _make_example(layers: Mapping[str, nn.Module]) -> str:
    name = next((name for name in layers if re.search(r"\.\d+\.", name)), "blocks.0.attn.qkv")
    return re.sub(r"\\\.\d+\\\.", r"\.\\d+\.", re.escape(name))
