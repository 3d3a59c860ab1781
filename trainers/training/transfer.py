"""Moves the tensors of a batch to the device together: one copy, for which nobody waits."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

_ALIGNMENT = 256  # bytes, as CUDA's own allocations have


def move_together(value: Any, device: torch.device) -> Any:
    """Return nested lists, tuples and dicts with their CPU tensors on the device, and all else as
    it is.

    Each copy from ordinary memory lets the host wait until the device has done everything before
    it. A copy from pinned memory does not. The moved tensors share one storage.
    """
    if device.type == "cpu":
        return value
    leaves, structure = tree_flatten(value)
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.device.type == "cpu"]
    if places:
        for place, moved in zip(places, _move([leaves[place] for place in places], device), strict=True):
            leaves[place] = moved
    return tree_unflatten(leaves, structure)


def _move(tensors: list[Tensor], device: torch.device) -> list[Tensor]:
    starts, end = [], 0
    for tensor in tensors:
        starts.append(end)
        end += -(-_count_bytes(tensor) // _ALIGNMENT) * _ALIGNMENT
    # elsewhere than on CUDA a copy without waiting may read memory that is gone already
    is_pinned = device.type == "cuda"
    packed = torch.empty(end, dtype=torch.uint8, pin_memory=is_pinned)
    for start, tensor in zip(starts, tensors, strict=True):
        _view(packed, start, tensor).copy_(tensor)
    moved = packed.to(device, non_blocking=is_pinned)
    # .data: autograd counts changes by tensor, and a model may write into one of them in place
    return [_view(moved, start, tensor).data for start, tensor in zip(starts, tensors, strict=True)]


def _view(packed: Tensor, start: int, like: Tensor) -> Tensor:
    return packed[start : start + _count_bytes(like)].view(like.dtype).view(like.shape)


def _count_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
