"""Stands in for CUDA's kernels of AdamW8bit, which need a card: bitsandbytes' own update for CPUs,
on plain versions of its two conversions. The optimizer itself, with its states, is bitsandbytes'.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from bitsandbytes.backends.cpu import ops
from torch import Tensor
from torch.nn import functional


@contextmanager
def replaced_kernels() -> Iterator[None]:
    library = torch.library.Library("bitsandbytes", "IMPL")
    for name, kernel in {
        "quantize_blockwise": _quantize,
        "dequantize_blockwise": _dequantize,
        "optimizer_update_8bit_blockwise": ops._optimizer_update_8bit_blockwise_cpu,
    }.items():
        library.impl(name, kernel, "CUDA", allow_override=True)
    try:
        yield
    finally:
        library._destroy()


def _quantize(values: Tensor, code: Tensor, blocksize: int) -> tuple[Tensor, Tensor]:
    """To the nearest value of the sorted code, relative to the largest of each block."""
    flat = values.float().flatten()
    blocks = functional.pad(flat, (0, -flat.numel() % blocksize)).view(-1, blocksize)
    largest = blocks.abs().amax(1)
    scaled = blocks / largest.clamp(min=1e-38)[:, None]
    found = torch.bucketize(scaled, (code[:-1] + code[1:]) / 2).to(torch.uint8)
    return found.flatten()[: flat.numel()].view(values.shape), largest


def _dequantize(values: Tensor, largest: Tensor, code: Tensor, blocksize: int, dtype: torch.dtype) -> Tensor:
    scales = largest[:, None].expand(-1, blocksize).flatten()[: values.numel()].view(values.shape)
    return (code[values.int()] * scales).to(dtype)
