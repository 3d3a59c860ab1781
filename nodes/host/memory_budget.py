"""The device memory that a training needs, the free memory, and what to change if it is not
enough.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import comfy.model_management

from ...trainers.check.memory_estimate import CUDA_CONTEXT_BYTES, MemoryEstimate
from ...trainers.check.smaller_settings import suggest_next
from ...trainers.training.optimizers import can_step
from ...trainers.wording import format_gigabytes


@dataclass(frozen=True)
class MemoryBudget:
    """`find_smaller` returns the next settings to try, each on top of those before it, with the
    resulting estimate.

    `missing_bytes`: how much more memory the training needs than is free. ComfyUI already holds the
    CUDA context, and on a CPU the weights. `notes` follow the estimate.
    """

    estimate: MemoryEstimate
    free_bytes: int
    missing_bytes: int
    find_smaller: Callable[[], Sequence[tuple[str, MemoryEstimate]]]
    notes: Sequence[str] = ()

    @classmethod
    def of(
        cls,
        needed: MemoryEstimate,
        find_smaller: Callable[[], Sequence[tuple[str, MemoryEstimate]]],
        *,
        free_bytes: int | None = None,
        notes: Sequence[str] = (),
    ) -> "MemoryBudget":
        """Compare with what is free on ComfyUI's device; by default, now."""
        free_bytes = comfy.model_management.get_free_memory() if free_bytes is None else free_bytes
        return cls(needed, free_bytes, count_new_bytes(needed) - free_bytes, find_smaller, notes)

    @cached_property
    def smaller(self) -> list[tuple[str, MemoryEstimate]]:
        needed = self.estimate.training_bytes
        return [(setting, less) for setting, less in self.find_smaller() if less.training_bytes < needed]

    def text(self) -> str:
        """Return the estimate and, if it is more than the free memory, what to change."""
        warning = f". It may not be enough. {suggest_next(self.smaller)}" if self.missing_bytes > 0 else ""
        notes = "".join(f" {note}." for note in self.notes)
        return f"Memory: {self.estimate.text()}; {format_gigabytes(self.free_bytes)} free{warning}.{notes}"

    def remedy(self) -> str:
        """Return the message of the error when memory has run out."""
        return (
            f"The GPU ran out of memory; the run's memory is free again. The run needs {self.estimate.text()}; "
            f"{format_gigabytes(self.free_bytes)} were free. {suggest_next(self.smaller)}"
        )


def count_new_bytes(needed: MemoryEstimate) -> int:
    """Count what a training needs in addition to what ComfyUI holds already."""
    device = comfy.model_management.get_torch_device()
    has_weights = comfy.model_management.is_device_cpu(device)
    return needed.total_bytes - CUDA_CONTEXT_BYTES - (needed.weights_bytes if has_weights else 0)


def can_step_here(optimizer: str) -> bool:
    return can_step(optimizer, comfy.model_management.get_torch_device())
