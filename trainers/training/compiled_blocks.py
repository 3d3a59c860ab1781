"""Repeated blocks of a model, compiled by torch.compile one by one, with their adapters."""

from collections.abc import Iterable
from functools import wraps
from typing import Any

import torch
from torch import nn

# Blocks of one class share a graph. Each width, each second size of images, and predictions without
# gradients or adapters take another; beyond torch's own limit of 8 it would stop to compile.
MAX_GRAPHS = 64


def require_compiler(device: torch.device) -> None:
    """Raises ImportError if torch.compile lacks Triton, with which it makes kernels for GPUs."""
    from torch.utils._triton import has_triton_package  # imports Triton

    if device.type == "cuda" and not has_triton_package():
        raise ImportError(
            "torch_compile needs the package triton, which torch has on board on Linux. On Windows: pip install "
            "triton-windows. Or turn torch_compile off"
        )


def compile_blocks(model: nn.Module, blocks: Iterable[nn.Module], *, backend: str = "inductor") -> None:
    """Compile each block when it is first called. Small graphs of single blocks compile in a minute
    where the whole model takes ten, and work with gradient checkpointing.
    """
    from torch._dynamo import config  # takes seconds to import

    limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"  # torch < 2.6
    for block in blocks:
        block.compile(backend=backend)
    own_forward = model.forward

    @wraps(own_forward)
    def forward(*args: Any, **kwargs: Any) -> Any:
        with config.patch({limit: MAX_GRAPHS}):  # the rest of the process keeps its own
            return own_forward(*args, **kwargs)

    model.forward = forward


def uncompile_blocks(blocks: Iterable[nn.Module]) -> None:
    """Let blocks run as they are again."""
    for block in blocks:
        block._compiled_call_impl = None
