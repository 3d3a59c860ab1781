"""Frozen linear layers with weights of 8 or 4 bits, for a base model that does not fit otherwise.
They compute in the dtype of their input: the weight is brought back for each use, in forward and
backward, and never kept.

Letters: O outputs, I inputs.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..packages import pip_install
from ..wording import format_bytes, pluralize

FP8 = torch.float8_e4m3fn
NF4_BLOCK = 64  # weights that share a scale; bitsandbytes' default
MIN_VALUES = 4096  # smaller layers stay as they are: they save nothing
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by their bytes


class QuantizedLayer(ABC):
    """A layer whose `weight` has fewer bits.

    Weight and scales are parameters of integer types: so they follow to a device, and keep their
    bits where the model is converted to another dtype.
    """

    @abstractmethod
    def _pack(self, weight: Tensor) -> None:
        """Keep the weight in fewer bits, with its scales."""

    @abstractmethod
    def _unpack(self, packed: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        """Return the weight in its own shape. `packed` are the layer's parameters by name."""

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        return self._unpack(self.packed, dtype)

    @property
    def packed(self) -> dict[str, Tensor]:
        """The parameters, without the bias."""
        return {name: each for name, each in self._parameters.items() if name != "bias"}  # pyright: ignore[reportAttributeAccessIssue]

    def save(self, ctx: Any) -> None:
        """Let autograd keep the packed weight, as it keeps the weights of other layers: a streamed
        block has its own on the device only while it runs, and with checkpointing the backward pass
        gets those of the recomputation.
        """
        ctx.layer, ctx.names = self, list(self.packed)
        ctx.save_for_backward(*self.packed.values())

    @staticmethod
    def restore(ctx: Any, dtype: torch.dtype) -> Tensor:
        return ctx.layer._unpack(dict(zip(ctx.names, ctx.saved_tensors, strict=True)), dtype)


class QuantizedLinear(nn.Linear, QuantizedLayer):
    """PEFT takes it for any other linear layer. Its weight is [O, I]."""

    def __init__(self, layer: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bias = layer.bias
        self._pack(layer.weight.detach())

    def forward(self, input: Tensor) -> Tensor:
        return _Product.apply(input, self, self.bias)  # pyright: ignore[reportReturnType]


class _Product(torch.autograd.Function):
    """input @ weight.T + bias, without keeping the weight in full for the backward pass."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, layer: QuantizedLinear, bias: Tensor | None) -> Tensor:
        layer.save(ctx)
        return functional.linear(input, layer.dequantize(input.dtype), bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return gradient @ QuantizedLayer.restore(ctx, gradient.dtype), None, None


class ScaledLinear(QuantizedLinear):
    """One byte per weight, and a float32 scale for each output."""

    packed_dtype: torch.dtype
    largest: float

    def _pack(self, weight: Tensor) -> None:
        scale = weight.float().abs().amax(1, keepdim=True).clamp(min=1e-12) / self.largest
        scaled = weight.float() / scale
        packed = (scaled if self.packed_dtype.is_floating_point else scaled.round()).to(self.packed_dtype)
        self.weight, self.scale = as_integers(packed), as_integers(scale)

    def _unpack(self, packed: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        return (packed["weight"].view(self.packed_dtype).float() * packed["scale"].view(torch.float32)).to(dtype)


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
        self.weight, self.scale = as_integers(packed), as_integers(state.absmax)
        self.levels = as_integers(state.code)

    def _unpack(self, packed: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        from bitsandbytes.functional import QuantState, dequantize_4bit

        state = QuantState(
            packed["scale"].view(torch.float32),
            shape=torch.Size((self.out_features, self.in_features)),
            code=packed["levels"].view(torch.float32),
            blocksize=NF4_BLOCK,
            quant_type="nf4",
            dtype=dtype,
        )
        return dequantize_4bit(packed["weight"].view(torch.uint8), state)


def as_integers(tensor: Tensor) -> nn.Parameter:
    """Return the same memory as a parameter of integers of that size."""
    return nn.Parameter(tensor.view(_INTEGERS[tensor.element_size()]), requires_grad=False)


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


def describe_quantized(model: nn.Module) -> tuple[str, ...]:
    """Return a line for the user on the layers that came with fewer bits, or none."""
    layers = [module for module in model.modules() if isinstance(module, QuantizedLayer)]
    if not layers:
        return ()
    sizes = [each.nbytes for layer in layers for each in layer.packed.values()]
    text = f"{pluralize(len(layers), 'layer')} of the base model stay in the bits that it is loaded in"
    return (f"{text}: {format_bytes(sum(sizes))}",)


def _require_bitsandbytes() -> None:
    try:
        import bitsandbytes  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"base_dtype nf4 needs the package bitsandbytes: {pip_install('bitsandbytes')}, or choose fp8"
        ) from error
