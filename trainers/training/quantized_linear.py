"""Frozen linear layers with weights of 8 or 4 bits, for a base model that does not fit otherwise.
They compute in the dtype of their input: the weight is brought back for each use, in forward and
backward, and never kept.

Letters: O outputs, I inputs.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..packages import pip_install

FP8 = torch.float8_e4m3fn
NF4_BLOCK = 64  # weights that share a scale; bitsandbytes' default
MIN_VALUES = 4096  # smaller layers stay as they are: they save nothing


class QuantizedLinear(nn.Linear, ABC):
    """A linear layer whose `weight` has fewer bits. PEFT takes it for any other linear layer.

    Weight and scales are parameters of integer types: so they follow to a device, and keep their
    bits where the model is converted to another dtype.
    """

    def __init__(self, layer: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bias = layer.bias
        self._pack(layer.weight.detach())

    @abstractmethod
    def _pack(self, weight: Tensor) -> None:
        """Keep the weight [O, I] in fewer bits, with its scales."""

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

    def _pack(self, weight: Tensor) -> None:
        scale = weight.float().abs().amax(1, keepdim=True).clamp(min=1e-12) / self.largest
        scaled = weight.float() / scale
        packed = (scaled if self.packed_dtype.is_floating_point else scaled.round()).to(self.packed_dtype)
        self.weight, self.scale = _as_integers(packed, torch.int8), _as_integers(scale, torch.int32)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        return (self.weight.view(self.packed_dtype).float() * self.scale.view(torch.float32)).to(dtype)


class FP8Linear(ScaledLinear):
    packed_dtype, largest = FP8, torch.finfo(FP8).max


class Int8Linear(ScaledLinear):
    packed_dtype, largest = torch.int8, 127.0


class NF4Linear(QuantizedLinear):
    """4 bits per weight, by bitsandbytes (Dettmers et al. 2023)."""

    def _pack(self, weight: Tensor) -> None:
        from bitsandbytes.functional import quantize_4bit

        packed, state = quantize_4bit(weight.contiguous(), blocksize=NF4_BLOCK, quant_type="nf4")
        assert state.code is not None
        self.weight, self.scale = _as_integers(packed, torch.uint8), _as_integers(state.absmax, torch.int32)
        self.levels = _as_integers(state.code, torch.int32)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        from bitsandbytes.functional import QuantState, dequantize_4bit

        state = QuantState(
            self.scale.view(torch.float32),
            shape=torch.Size((self.out_features, self.in_features)),
            code=self.levels.view(torch.float32),
            blocksize=NF4_BLOCK,
            quant_type="nf4",
            dtype=dtype,
        )
        return dequantize_4bit(self.weight, state)


def _as_integers(tensor: Tensor, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(tensor.view(dtype), requires_grad=False)


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
