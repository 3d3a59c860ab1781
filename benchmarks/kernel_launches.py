"""Counts the operations of one training step of full-size SDXL, as a GPU would launch them.

    python -m benchmarks.kernel_launches

The real classes run on tensors without data. Each operation that computes something counts as one
launch; views cost nothing and are left out. At batch 1 a fast card waits for the launches.
"""

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.memory_estimate import cuda_kernels, meta_batch, meta_unet
from trainers.sdxl.config import SDXLConfig
from trainers.sdxl.model.standard_unet import SDXL_UNET
from trainers.sdxl.step import Objective, weighted_losses

CASTS = ("aten::_to_copy",)
FREE = (
    "aten::detach",
    "aten::empty",
    "aten::empty_like",
    "aten::empty_strided",
    "aten::new_empty",
    "aten::_unsafe_view",
)


class LaunchCount(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.by_name: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not _is_view(func):
            self.by_name[func._schema.name] += 1
        return func(*args, **(kwargs or {}))

    @property
    def total(self) -> int:
        return sum(self.by_name.values())

    @property
    def casts(self) -> int:
        return sum(self.by_name[name] for name in CASTS)


def _is_view(func: Any) -> bool:
    schema = func._schema
    aliases = [each.alias_info for each in schema.returns if each.alias_info is not None]
    return schema.name in FREE or (bool(aliases) and not any(alias.is_write for alias in aliases))


def count_step(
    *, precision: str, checkpointing: bool, size_hw: tuple[int, int] = (1024, 1024)
) -> tuple[LaunchCount, LaunchCount]:
    """Return the launches of the forward and of the backward pass, batch 1, without the update."""
    unet = meta_unet(SDXL_UNET, SDXLConfig(gradient_checkpointing=checkpointing), precision=precision)
    dtype = next(parameter.dtype for parameter in unet.parameters())
    batch = meta_batch(unet, size_hw=size_hw, batch_size=1, dtype=dtype)
    objective = Objective(torch.ones(1000, device="meta"), "epsilon", 5.0)
    forward, backward = LaunchCount(), LaunchCount()
    with cuda_kernels():
        with forward:
            loss = weighted_losses(unet, batch, objective).sum()
        with backward:
            loss.backward()
    return forward, backward


def main() -> None:
    print("| precision | checkpointing | forward | backward | sum | of them casts |\n|" + "---|" * 6)
    for precision in ("bf16", "no"):
        for checkpointing in (True, False):
            forward, backward = count_step(precision=precision, checkpointing=checkpointing)
            numbers = (forward.total, backward.total, forward.total + backward.total, forward.casts + backward.casts)
            row = (precision, "on" if checkpointing else "off", *(f"{number:,}" for number in numbers))
            print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
