"""Frozen layers on weights that came in 8-bit floating point (fp8): they stay as they are, and are
converted for each use, which loses nothing. quantized_linear.py makes fewer bits of other weights.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from .quantized_linear import QuantizedLayer, QuantizedLinear, as_integers

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)


class _Float8Layer(QuantizedLayer):
    weight: Tensor
    _float8: torch.dtype

    def _pack(self, weight: Tensor) -> None:
        self._float8 = weight.dtype
        self.weight = as_integers(weight)

    def _unpack(self, packed: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        return packed["weight"].view(self._float8).to(dtype)


class Float8Linear(_Float8Layer, QuantizedLinear):
    """Its weight is that of the given layer, on the same memory."""


class Float8Conv2d(_Float8Layer, nn.Conv2d):
    """Likewise; make it with `of`. It computes in the dtype of its input.

    PEFT makes a layer of the same class for an adapter's matrix, which is a usual convolution.
    """

    @classmethod
    def of(cls, layer: nn.Conv2d) -> "Float8Conv2d":
        assert layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
        kernel: Any = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups)
        own = cls(layer.in_channels, layer.out_channels, *kernel, device="meta")
        own.bias = layer.bias
        own._pack(layer.weight.detach())
        return own

    def forward(self, input: Tensor) -> Tensor:
        if self.weight.is_floating_point():
            return super().forward(input)
        return _Convolution.apply(input, self)  # pyright: ignore[reportReturnType]

    def convolve(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.dequantize(input.dtype), self.bias)


class _Convolution(torch.autograd.Function):
    """A convolution that keeps neither its input nor the whole weight for the backward pass."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, layer: Float8Conv2d) -> Tensor:
        layer.save(ctx)
        ctx.input_shape = input.shape
        return layer.convolve(input)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        layer: Float8Conv2d = ctx.layer
        weight = QuantizedLayer.restore(ctx, gradient.dtype)
        geometry: Any = (layer.stride, layer.padding, layer.dilation, layer.groups)
        return conv2d_input(ctx.input_shape, weight, gradient, *geometry), None


def keep_float8(model: nn.Module) -> None:
    """Let the linear and convolution layers of the model compute on their fp8 weights. What else is
    in fp8, norms and biases, becomes bf16: it is small.
    """
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            kept = _keep(layer)
            if kept is not None:
                setattr(parent, name, kept)
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None and weight.dtype in FLOAT8:
                module._parameters[name] = nn.Parameter(weight.detach().to(torch.bfloat16), requires_grad=False)


def _keep(layer: nn.Module) -> nn.Module | None:
    if type(layer) is nn.Linear and layer.weight.dtype in FLOAT8:
        return Float8Linear(layer)
    if type(layer) is nn.Conv2d and layer.weight.dtype in FLOAT8:
        return Float8Conv2d.of(layer)
    return None
