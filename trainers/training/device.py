"""The device that computes a training: which one, its precision and its memory."""

import sys
from typing import TypeVar

import torch
from torch import nn

# By the value of mixed_precision; "no" is float32.
COMPUTE_DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def default_device() -> torch.device:
    """Return the GPU that torch uses at present, of whatever maker, or the CPU."""
    if not torch.accelerator.is_available():
        return torch.device("cpu")
    kind = torch.accelerator.current_accelerator()
    assert kind is not None
    return torch.device(kind.type, torch.accelerator.current_device_index())


def choose_device(name: str | None) -> torch.device:
    """Return the device that torch calls `name`, or the best one available.

    Raises:
        ValueError: torch does not know it, the machine lacks it, or it is DirectML's.
    """
    if not name:
        return default_device()
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device {name!r} is none that torch knows. This machine has {_list_devices()}") from None
    require_supported(device)
    is_there = device.type == default_device().type and (device.index or 0) < torch.accelerator.device_count()
    if device.type != "cpu" and not is_there:
        raise ValueError(f"device {name!r} is not there. This machine has {_list_devices()}")
    return device


def require_supported(device: torch.device) -> None:
    """Refuse DirectML, which torch calls privateuseone and which lacks what a backward pass needs.

    Raises:
        ValueError: it is DirectML.
    """
    if device.type == "privateuseone":
        raise ValueError(
            "DirectML cannot train: its torch lacks parts of the backward pass. Use torch with ROCm for AMD, with XPU "
            "for Intel, or the CPU"
        )


def _list_devices() -> str:
    kind = default_device().type
    num_devices = torch.accelerator.device_count() if kind != "cpu" else 0
    return ", ".join([*(f"{kind}:{index}" for index in range(num_devices)), "cpu"])


def usual_precision(device: torch.device) -> str:
    """Return "bf16" where the GPU computes it natively, "no" on a CPU and where half precision
    gives wrong numbers, and else "fp16".
    """
    if device.type == "cpu":
        return "no"
    if _computes_bf16(device):
        return "bf16"
    return "no" if device.type == "mps" or _is_gtx_16(device) else "fp16"


def _computes_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "mps":
        return torch.backends.mps.is_macos_or_newer(14, 0)
    return getattr(torch.get_device_module(device), "is_bf16_supported", lambda: False)()


def _is_gtx_16(device: torch.device) -> bool:
    """Tell whether convolutions in fp16 give NaN, as they do on the GTX 16 series and its kin."""
    if device.type != "cuda":
        return False
    name = torch.cuda.get_device_name(device)
    kin = ("GTX 16", "T500", "T550", "T600", "T1000", "T1200", "T2000", "MX450", "MX550", "CMP 30HX")
    return any(model in name for model in kin)


def count_memory_bytes(device: torch.device) -> int | None:
    """Return the memory of a GPU; None where it is not known, or shared with the rest."""
    if device.type not in ("cuda", "xpu"):
        return None
    return torch.get_device_module(device).get_device_properties(device).total_memory


def count_free_bytes(device: torch.device) -> int | None:
    """Return the memory of a GPU that a tensor can have now; None where count_memory_bytes gives
    None.
    """
    if device.type not in ("cuda", "xpu"):
        return None
    backend = torch.get_device_module(device)
    free_bytes, _ = backend.mem_get_info(device)
    return free_bytes + backend.memory_reserved(device) - backend.memory_allocated(device)


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
        if self.device.type in ("cuda", "xpu"):
            torch.get_device_module(self.device).reset_peak_memory_stats(self.device)

    def peak_memory_bytes(self) -> int:
        if self.device.type in ("cuda", "xpu"):
            return torch.get_device_module(self.device).max_memory_allocated(self.device)
        if self.device.type == "mps":
            return torch.mps.driver_allocated_memory()
        return _process_peak_bytes()

    def release_memory(self) -> None:
        if self.device.type in ("cuda", "xpu", "mps"):
            torch.get_device_module(self.device).empty_cache()


def _process_peak_bytes() -> int:
    if sys.platform == "win32":
        return 0  # the peak would take another package; the report leaves memory out
    import resource  # does not exist on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether the device had too little memory, by the words of each backend."""
    words = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
    )
