"""The device memory that a training needs, in parts, whatever the model family."""

from dataclasses import dataclass

from ..training.optimizer_table import find_optimizer
from ..wording import GIBIBYTE, format_gigabytes

FLOAT32 = 4
CUDA_CONTEXT_BYTES = 600 * 2**20  # a rule of thumb: the driver's context and the kernels of torch, cuBLAS and cuDNN
FRAGMENTATION = 0.05  # a rule of thumb: what the allocator holds without using it, and what kernels allocate


def bytes_per_parameter(optimizer: str, *, has_ema: bool = False, number_bytes: int = FLOAT32) -> float:
    """Return the bytes per adapter parameter: weight, gradient, optimizer states, average. In half
    precision, of numbers of 2 bytes, the layers have a copy and its gradient.
    """
    copies = 2 * number_bytes if number_bytes < FLOAT32 else 0
    return (3 if has_ema else 2) * FLOAT32 + copies + find_optimizer(optimizer).state_bytes


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on the device. Caching ends, and drops its models, before the training begins."""

    weights_bytes: int  # frozen
    adapters_bytes: int  # with their gradients and the optimizer's states
    activations_bytes: int
    caching_bytes: int  # for latents or for captions, whichever needs more, weights included
    samples_bytes: int = 0  # for drawing sample images, in addition to weights and adapters
    is_rough: bool = False  # the activations could not be counted

    @property
    def training_bytes(self) -> int:
        """The samples are drawn between two steps, which then hold no activations."""
        return self.weights_bytes + self.adapters_bytes + max(self.activations_bytes, self.samples_bytes)

    @property
    def overhead_bytes(self) -> int:
        return CUDA_CONTEXT_BYTES + round(FRAGMENTATION * max(self.training_bytes, self.caching_bytes))

    @property
    def total_bytes(self) -> int:
        return max(self.training_bytes, self.caching_bytes) + self.overhead_bytes

    def text(self) -> str:
        """Return one line: "about 7.1 GB: weights 4.8, adapters 0.6, activations 0.8, CUDA 0.9"."""
        certainty = "very roughly" if self.is_rough else "about"
        parts = {"weights": self.weights_bytes, "adapters": self.adapters_bytes}
        if self.samples_bytes > self.activations_bytes:
            parts["samples"] = self.samples_bytes
        else:
            parts["activations"] = self.activations_bytes
        if self.caching_bytes > self.training_bytes:
            parts = {"caching latents and captions": self.caching_bytes}
        parts["CUDA"] = self.overhead_bytes
        return f"{certainty} {format_gigabytes(self.total_bytes)}: " + ", ".join(
            f"{name} {num_bytes / GIBIBYTE:.1f}" for name, num_bytes in parts.items()
        )
