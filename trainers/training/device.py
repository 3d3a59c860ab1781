"""The device that a training computes on: which one, in which precision, and its memory."""

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


def chosen_device(name: str | None) -> torch.device:
    """As torch names it; without a name, the best there is."""
    return torch.device(name) if name else default_device()


def usual_precision(device: torch.device) -> str:
    """Half precision on CUDA only, in the kind that the device computes in by itself."""
    if device.type != "cuda":
        return "no"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def resolve_precision(setting: str, device: torch.device) -> str:
    """The value of mixed_precision, with "auto" decided by the device."""
    return usual_precision(device) if setting == "auto" else setting


def move_module(module: ModuleT, device: torch.device, dtype: torch.dtype | None = None) -> ModuleT:
    """torch's own `to`. diffusers 0.42 wraps it in a warning about modules that must stay float32,
    of which the models here have none.
    """
    nn.Module.to(module, device, dtype)
    return module


class DeviceMemory:
    """Peak memory and its release for one torch device."""

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
        return 0  # no peak without a further package; the report then leaves memory out
    import resource  # does not exist on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
