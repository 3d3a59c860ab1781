"""The graph's quantized weights as the trainer's layers: they stay in their bits."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from comfy.quant_ops import QuantizedTensor
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from ...trainers.training.float8_layers import FLOAT8, keep_float8
from ...trainers.training.quantized_linear import QuantizedLinear, as_integers


class GraphLinear(QuantizedLinear):
    """A linear layer with a weight in one of ComfyUI's quantized layouts, such as scaled fp8, int8
    and NVFP4. ComfyUI brings it back, as it does for sampling.
    """

    def _pack(self, weight: Tensor) -> None:
        assert isinstance(weight, QuantizedTensor)
        fields = {field.name: getattr(weight._params, field.name) for field in dataclasses.fields(weight._params)}
        tensors = {name: value for name, value in fields.items() if isinstance(value, Tensor)}
        self._layout, self._params_class = weight._layout_cls, type(weight._params)
        self._facts = {name: value for name, value in fields.items() if name not in tensors}
        self._dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
        self._packed_dtype, self.weight = weight._qdata.dtype, as_integers(weight._qdata)
        for name, tensor in tensors.items():
            self.register_parameter(name, as_integers(tensor))

    def _unpack(self, packed: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        tensors: dict[str, Any] = {name: packed[name].view(own) for name, own in self._dtypes.items()}
        params = self._params_class(**self._facts, **tensors)
        return QuantizedTensor(packed["weight"].view(self._packed_dtype), self._layout, params).dequantize().to(dtype)


def keep_quantized(unet: UNet2DConditionModel) -> None:
    """Let the UNet's layers compute on the quantized and fp8 weights that they were given."""
    for parent in list(unet.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Linear) and isinstance(layer.weight, QuantizedTensor):
                setattr(parent, name, GraphLinear(layer))
    keep_float8(unet)


def to_floats(weight: Tensor) -> Tensor:
    """Return a weight in a floating-point format that every layer can compute with."""
    if isinstance(weight, QuantizedTensor):
        return weight.dequantize()
    return weight.to(torch.bfloat16) if weight.dtype in FLOAT8 else weight
