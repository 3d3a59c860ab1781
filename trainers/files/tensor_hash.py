"""Hashes named tensors: for checksums in files, and to tell models apart."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor


class Hash(Protocol):
    """A hash of hashlib."""

    def update(self, data: memoryview | bytes, /) -> None: ...

    def hexdigest(self) -> str: ...


def hash_named_tensors(tensors: Mapping[str, Tensor], digest: Hash) -> str:
    """Add the tensors to a hash that was begun, and return it: names, shapes, dtypes and bytes, in
    the order of the names. Tensors on another device are copied one by one.

    Files on users' disks have these hashes: what goes into them must not change.
    """
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(as_bytes(tensor.detach().cpu().contiguous()))
    return digest.hexdigest()


def as_bytes(tensor: Tensor) -> memoryview:
    """Return the memory of a contiguous tensor on the CPU."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data
