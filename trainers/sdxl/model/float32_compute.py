"""Runs a frozen model in float32 and keeps its weights as they are: each layer is converted only
during its own call.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def float32_compute(model: nn.Module) -> Iterator[None]:
    """Inside the block every layer of `model` computes in float32, as ComfyUI runs text encoders.

    The numbers are those of `model.float()`, but at most one layer has a second copy of its weights
    in memory. float32 weights are not copied at all.
    """
    own_weights: dict[nn.Parameter, Tensor] = {}
    hooks = [hook for layer in model.modules() if not list(layer.children()) for hook in _add_hooks(layer, own_weights)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        _restore(own_weights)  # a layer whose call failed is still converted


def _add_hooks(layer: nn.Module, own_weights: dict[nn.Parameter, Tensor]) -> list[Any]:
    if isinstance(layer, nn.Embedding):  # a look-up computes nothing: convert the rows, not the table
        return [layer.register_forward_hook(lambda _layer, _inputs, output: output.float())]

    def convert(called: nn.Module, _inputs: object) -> None:
        for parameter in called.parameters(recurse=False):
            if parameter.dtype != torch.float32:
                own_weights[parameter] = parameter.data
                parameter.data = parameter.data.float()

    return [layer.register_forward_pre_hook(convert), layer.register_forward_hook(lambda *_: _restore(own_weights))]


def _restore(own_weights: dict[nn.Parameter, Tensor]) -> None:
    while own_weights:
        parameter, weight = own_weights.popitem()
        parameter.data = weight
