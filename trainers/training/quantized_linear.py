"""Frozen linear layers with weights of 8 or 4 bits, for a base model that does not fit otherwise.
They compute in the dtype of their input: the weight is brought back for each use, in forward and
backward, and never kept.

Letters: O outputs, I inputs.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..packages import pip_install

FP8 = torch.float8_e4m3fn
NF4_BLOCK = 64  # weights that share a scale; bitsandbytes' default
MIN_VALUES = 4096  # smaller layers stay as they are: they save nothing


class QuantizedLinear(nn.Linear, ABC):
    """A linear layer whose `weight` has fewer bits. PEFT takes it for any other linear layer."""

    def __init__(self, layer: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bias = layer.bias
        self.weight = nn.Parameter(self._pack(layer.weight.detach()), requires_grad=False)

    @abstractmethod
    def _pack(self, weight: Tensor) -> Tensor:
        """Return the weight [O, I] in fewer bits, and keep its scales."""

    @abstractmethod
    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """Return the weight [O, I]."""

    def forward(self, input: Tensor) -> Tensor:
        return _Product.apply(input, self, self.bias)  # pyright: ignore[reportReturnType]


class _Product(torch.autograd.Function):
    """input @ weight.T + bias, without keeping the weight in full for the backward pass."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, layer: QuantizedLinear, bias: Tensor | None) -> Tensor:
        ctx.layer = layer
        return functional.linear(input, layer.dequantize(input.dtype), bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return gradient @ ctx.layer.dequantize(gradient.dtype), None, None


class ScaledLinear(QuantizedLinear):
    """One byte per weight, and a float32 scale for each output."""

    packed_dtype: torch.dtype
    largest: float

    def _pack(self, weight: Tensor) -> Tensor:
        scale = weight.float().abs().amax(1, keepdim=True).clamp(min=1e-12) / self.largest
        self.register_buffer("scale", scale)
        scaled = weight.float() / scale
        return (scaled if self.packed_dtype.is_floating_point else scaled.round()).to(self.packed_dtype)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        return (self.weight.to(torch.float32) * self.scale).to(dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """Follow to a device, but to no other dtype: what `fn` takes for integers it only moves."""
        self.weight.data = fn(self.weight.data.view(torch.uint8)).view(self.packed_dtype)
        self.scale = fn(self.scale.view(torch.int32)).view(torch.float32)
        if self.bias is not None:
            self.bias.data = fn(self.bias.data)
        return self


class FP8Linear(ScaledLinear):
    packed_dtype, largest = FP8, torch.finfo(FP8).max


class Int8Linear(ScaledLinear):
    packed_dtype, largest = torch.int8, 127.0


class NF4Linear(QuantizedLinear):
    """4 bits per weight, by bitsandbytes (Dettmers et al. 2023)."""

    def _pack(self, weight: Tensor) -> Tensor:
        from bitsandbytes.functional import quantize_4bit

        packed, self._state = quantize_4bit(weight.contiguous(), blocksize=NF4_BLOCK, quant_type="nf4")
        return packed

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(self.weight, self._state).to(dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        super()._apply(fn, recurse)
        self._state.to(self.weight.device)
        return self


KINDS: dict[str, type[QuantizedLinear]] = {"fp8": FP8Linear, "int8": Int8Linear, "nf4": NF4Linear}
BYTES_PER_WEIGHT = {"fp8": 1.0, "int8": 1.0, "nf4": 0.5 + 4 / NF4_BLOCK}


def quantize_linear_layers(model: nn.Module, kind: str) -> int:
    """Replace the model's linear layers, where they lie, and return how many there were. The given
    weights themselves do not change.

    Raises:
        ModuleNotFoundError: nf4 needs bitsandbytes.
    """
    if kind == "nf4":
        _require_bitsandbytes()
    layers = list(find_quantizable(model))
    for parent, name, layer in layers:
        setattr(parent, name, KINDS[kind](layer))
    return len(layers)


def find_quantizable(model: nn.Module) -> Iterable[tuple[nn.Module, str, nn.Linear]]:
    """Yield the linear layers, each with its parent and its name there."""
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Linear and layer.weight.numel() >= MIN_VALUES:
                yield parent, name, layer


def _require_bitsandbytes() -> None:
    try:
        import bitsandbytes  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"base_dtype nf4 needs the package bitsandbytes: {pip_install('bitsandbytes')}, or choose fp8"
        ) from error
