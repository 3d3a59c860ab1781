"""The device memory that a training needs, the free memory, and what to change if it is not
enough.
"""

from dataclasses import dataclass

import comfy.model_management
import torch

from ...trainers.dataset.bucket_sizes import Size
from ...trainers.sdxl.check.memory import CUDA_CONTEXT_BYTES, MemoryEstimate, estimate_memory
from ...trainers.sdxl.check.smaller_settings import smaller_settings
from ...trainers.sdxl.check.text_encoder_shapes import text_encoder_shapes
from ...trainers.sdxl.config import SDXLConfig
from ...trainers.sdxl.model.sdxl_model import SDXLModel
from ...trainers.training.optimizers import can_step
from ...trainers.training.plan import TrainingPlan
from ...trainers.wording import format_gigabytes
from .settings import choose_precision


@dataclass(frozen=True)
class MemoryBudget:
    """`smaller`: the next settings to try, each on top of those before it, with the resulting
    estimate.

    `missing_bytes`: how much more memory the training needs than is free. ComfyUI already holds the
    CUDA context, and on a CPU the weights.
    """

    estimate: MemoryEstimate
    free_bytes: int
    missing_bytes: int
    smaller: list[tuple[str, MemoryEstimate]]

    @classmethod
    def of(cls, base: SDXLModel, plan: TrainingPlan[SDXLConfig]) -> "MemoryBudget":
        config = plan.settings.training
        size_hw = max(plan.crops.bucket_counts, key=lambda size: size[0] * size[1])

        def estimate(changed: SDXLConfig, largest_hw: Size) -> MemoryEstimate:
            precision = (
                choose_precision(torch.float16) if changed.mixed_precision == "auto" else changed.mixed_precision
            )
            return estimate_memory(
                base.unet, changed, size_hw=largest_hw, precision=precision, text_encoders=text_encoder_shapes(base)
            )

        needed = estimate(config, size_hw)
        smaller = [
            (setting, less)
            for setting, less in smaller_settings(config, size_hw, estimate, works=_can_step_here)
            if less.training_bytes < needed.training_bytes
        ]
        free_bytes, device = comfy.model_management.get_free_memory(), comfy.model_management.get_torch_device()
        there_already = CUDA_CONTEXT_BYTES + (
            needed.weights_bytes if comfy.model_management.is_device_cpu(device) else 0
        )
        return cls(needed, free_bytes, needed.total_bytes - there_already - free_bytes, smaller)

    def text(self) -> str:
        """Return the estimate and, if it is more than the free memory, what to change."""
        warning = f". It may not be enough. {self._suggest_next()}" if self.missing_bytes > 0 else ""
        return f"Memory: {self.estimate.text()}; {format_gigabytes(self.free_bytes)} free{warning}."

    def remedy(self) -> str:
        """Return the message of the error when memory has run out."""
        return (
            f"The GPU ran out of memory; the run's memory is free again. The run needs {self.estimate.text()}; "
            f"{format_gigabytes(self.free_bytes)} were free. {self._suggest_next()}"
        )

    def _suggest_next(self) -> str:
        if not self.smaller:
            return (
                "Every setting is at its smallest: close other programs that use the GPU, or use one with more memory"
            )
        return "Next, try " + ", then ".join(
            f"{setting} (about {format_gigabytes(less.total_bytes)})" for setting, less in self.smaller[:3]
        )


def _can_step_here(optimizer: str) -> bool:
    return can_step(optimizer, comfy.model_management.get_torch_device())
