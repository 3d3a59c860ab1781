"""Lets a model run on the meta device, where tensors have shapes but no data, with the memory that
it would have on a GPU.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.autograd import graph
from torch.nn import functional

META = torch.device("meta")


@contextmanager
def running_without_data() -> Iterator[None]:
    """Inside the block, attention and dropout keep what CUDA's kernels keep, and autograd tells
    tensors without data apart.
    """
    with ExitStack() as stack:
        # torch 2.13 tells tensors apart by the address of their data, which these do not have
        stack.enter_context(_replaced(graph, "_get_tid", lambda tensor: (id(tensor), *_identify(tensor))))
        stack.enter_context(_replaced(graph, "_get_sid", _identify))
        stack.enter_context(_replaced(torch, "autocast", _Autocast))
        # not a TorchFunctionMode, which is off in the backward pass, where blocks run again
        for name, replacement in _CUDA_KERNELS.items():
            stack.enter_context(_replaced(functional, name, _on_meta(replacement, getattr(functional, name))))
        yield


@contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def _on_meta(replacement: Callable[..., Tensor], usual: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a function that leaves tensors with data, also those of other threads, to the usual
    one.
    """

    @wraps(usual)
    def choose(values: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return (replacement if values.is_meta else usual)(values, *args, **kwargs)

    return choose


def _identify(tensor: Tensor) -> tuple[int, int]:
    return tensor.untyped_storage()._cdata, tensor._version


class _Autocast(torch.autocast):
    """torch knows no autocast for the meta device."""

    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__("cpu" if device_type == META.type else device_type, *args, **kwargs)


def _attend(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
    return _FlashAttention.apply(query, key, value)


class _FlashAttention(torch.autograd.Function):
    """Keeps query, key, value, output and one number per query and head, as CUDA's kernels do."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """All [batch, heads, positions, width]. In memory, the output's positions come first."""
        batch, heads, positions, _ = query.shape
        output = query.new_empty(batch, positions, heads, value.shape[3]).transpose(1, 2)
        sums = query.new_empty(batch, heads, positions, dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, sums)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        query, key, value, _, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _normalize(values: Tensor, shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    return _FusedRmsNorm.apply(values, weight)


class _FusedRmsNorm(torch.autograd.Function):
    """Keeps its input and one number per row, as CUDA's kernel does. torch has no such kernel for
    the meta device, and its plain version keeps several times as much.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor | None) -> Tensor:
        """values: [..., width]"""
        ctx.save_for_backward(values, weight, values.new_empty(*values.shape[:-1], 1, dtype=torch.float32))
        return torch.empty_like(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        values, _, _ = ctx.saved_tensors
        return torch.empty_like(values), None


def _drop(values: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Keeps a mask of one byte per value."""
    return torch.native_dropout(values, p, training)[0] if p and training else values


_CUDA_KERNELS = {"scaled_dot_product_attention": _attend, "rms_norm": _normalize, "dropout": _drop}
