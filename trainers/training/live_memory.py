"""Counts the memory of living tensors while code runs, on whatever device: also on the meta device,
where tensors have shapes but no data.
"""

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """Inside the block, counts the bytes of all living storages from their creation to their
    deletion, except those of the tensors in `leave_out`. What kernels allocate inside is not seen.
    """

    def __init__(self, *, leave_out: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.live_bytes = self.peak_bytes = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in leave_out}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(tensor)
        return result

    def take_peak(self) -> int:
        """Return the peak since the last call, in bytes, and begin again with what lives now."""
        peak, self.peak_bytes = self.peak_bytes, self.live_bytes
        return peak

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._seen:
            return
        self._seen.add(storage._cdata)
        self.live_bytes += storage.nbytes()
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        weakref.finalize(storage, self._remove, storage._cdata, storage.nbytes())

    def _remove(self, key: int, num_bytes: int) -> None:
        self._seen.discard(key)
        self.live_bytes -= num_bytes
