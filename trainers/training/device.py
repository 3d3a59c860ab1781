"""The device that computes a training: which one, its precision and its memory."""

import sys
from typing import TypeVar

import torch
from torch import nn

# By the value of mixed_precision; "no" is float32.
COMPUTE_DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def default_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def choose_device(name: str | None) -> torch.device:
    """Return the device that torch calls `name`, or the best one available."""
    return torch.device(name) if name else default_device()


def usual_precision(device: torch.device) -> str:
    """Return "bf16" or "fp16" on CUDA, whichever the GPU computes natively, and "no" elsewhere."""
    if device.type != "cuda":
        return "no"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def resolve_precision(setting: str, device: torch.device) -> str:
    """Return the value of mixed_precision, with "auto" replaced by what suits the device."""
    return usual_precision(device) if setting == "auto" else setting


def move_module(module: ModuleT, device: torch.device, dtype: torch.dtype | None = None) -> ModuleT:
    """Call torch's own `to`. diffusers 0.42 overrides it to warn about modules that must stay
    float32; our models have none.
    """
    nn.Module.to(module, device, dtype)
    return module


class DeviceMemory:
    """Measures the peak memory of one torch device, and releases what is free."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def reset_peak_memory(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_memory_bytes(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        if self.device.type == "mps":
            return torch.mps.driver_allocated_memory()
        return _process_peak_bytes()

    def release_memory(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        elif self.device.type == "mps":
            torch.mps.empty_cache()


def _process_peak_bytes() -> int:
    if sys.platform == "win32":
        return 0  # the peak would take another package; the report leaves memory out
    import resource  # does not exist on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
