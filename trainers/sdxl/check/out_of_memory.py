"""What to change when the memory of the device has run out."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ...check.memory_estimate import MemoryEstimate
from ...check.smaller_settings import smaller_settings, suggest_next
from ...dataset.bucket_sizes import Size
from ...training.device import is_out_of_memory, resolve_precision
from ...training.optimizers import can_step
from ...training.plan import TrainingPlan
from ..config import BASE_DTYPES, SDXLConfig
from ..memory import estimate_memory
from ..model.standard_unet import standard_unet


@contextmanager
def explaining_out_of_memory(plan: TrainingPlan, device: torch.device, *, base_dtype: str = "") -> Iterator[None]:
    """Inside the block, an error for lack of memory says what to change.

    Raises:
        RuntimeError: memory ran out.
    """
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if not is_out_of_memory(error):
            raise
        raise RuntimeError(_explain(plan, device, base_dtype)) from error


def _explain(plan: TrainingPlan, device: torch.device, base_dtype: str) -> str:
    unet, config, size_hw = standard_unet(), plan.settings.training, plan.crops.largest_hw

    def estimate(changed: SDXLConfig, largest_hw: Size) -> MemoryEstimate:
        precision = resolve_precision(changed.mixed_precision, device)
        return estimate_memory(unet, changed, size_hw=largest_hw, precision=precision, base_dtype=base_dtype)

    needed = estimate(config, size_hw)
    smaller = smaller_settings(config, size_hw, estimate, works=lambda name: can_step(name, device))
    less = [(setting, found) for setting, found in smaller if found.training_bytes < needed.training_bytes]
    fewer_bits = "" if base_dtype else f". Or keep the base model in fewer bits: base_dtype {' or '.join(BASE_DTYPES)}"
    return f"the device ran out of memory. The run needs {needed.text()}. {suggest_next(less)}{fewer_bits}"
