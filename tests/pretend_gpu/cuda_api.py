"""The functions of torch.cuda that trainers, ComfyUI and libraries call, for the pretended card.
torch's build for CPUs has them all, but they refuse or ask for NVIDIA's library.
"""

import contextlib
from types import SimpleNamespace
from typing import Any

import torch

from . import card

NAME, CAPABILITY = "Pretended GPU", (9, 0)


def replace_cuda_api() -> None:
    for name, function in _FUNCTIONS.items():
        setattr(torch.cuda, name, function)
    torch.cuda._initialized = True
    torch.cuda.Stream, torch.cuda.Event = _Stream, _Event  # type: ignore[misc]
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.amp.grad_scaler.torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch._C._cuda_getCurrentRawStream = lambda _index: 0  # bitsandbytes asks for it when it is imported
    torch.cuda.memory.mem_get_info = torch.cuda.mem_get_info
    # their states are torch's global CPU generator, which the card draws from
    torch.cuda.random.get_rng_state, torch.cuda.random.set_rng_state = (
        torch.cuda.get_rng_state,
        torch.cuda.set_rng_state,
    )


class _Stream:
    """A stream that is always idle: the card computes at once."""

    def __init__(self, device: Any = None, priority: int = 0, **_: Any) -> None:
        self.device = torch.device("cuda", 0)

    def synchronize(self) -> None: ...

    def wait_stream(self, _stream: object) -> None: ...

    def wait_event(self, _event: object) -> None: ...

    def record_event(self, event: "_Event | None" = None) -> "_Event":
        return event or _Event()

    def query(self) -> bool:
        return True

    def __enter__(self) -> "_Stream":
        return self

    def __exit__(self, *_: object) -> None: ...


class _Event:
    def __init__(self, **_: Any) -> None: ...

    def record(self, _stream: object = None) -> None: ...

    def wait(self, _stream: object = None) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, _event: object) -> float:
        return 0.0


def _memory_stats(_device: Any = None) -> dict[str, int]:
    live, peak = card.live_bytes(), card.peak_bytes()
    return {
        **{f"{kind}_bytes.all.current": live for kind in ("allocated", "reserved", "active")},
        **{f"{kind}_bytes.all.peak": peak for kind in ("allocated", "reserved", "active")},
        "num_ooms": 0,
    }


def _get_device_properties(_device: Any = None) -> SimpleNamespace:
    major, minor = CAPABILITY
    return SimpleNamespace(
        name=NAME, major=major, minor=minor, total_memory=card.total_bytes(), multi_processor_count=1, gcnArchName=""
    )


def _get_rng_state(_device: Any = None) -> torch.Tensor:
    return torch.zeros(16, dtype=torch.uint8)


def _limit_memory(fraction: float, _device: Any = None) -> None:
    card.set_total_bytes(int(fraction * card.DEFAULT_BYTES))


_DEFAULT_STREAM = _Stream()
_FUNCTIONS: dict[str, Any] = {
    "_lazy_init": lambda: None,
    "is_available": lambda: True,
    "is_initialized": lambda: True,
    "init": lambda: None,
    "device_count": lambda: 1,
    "current_device": lambda: 0,
    "set_device": lambda _device: None,
    "device": lambda _device: contextlib.nullcontext(),
    "device_of": lambda _tensor: contextlib.nullcontext(),
    "get_device_name": lambda _device=None: NAME,
    "get_device_capability": lambda _device=None: CAPABILITY,
    "get_device_properties": _get_device_properties,
    "get_arch_list": lambda: ["sm_90"],
    "get_allocator_backend": lambda: "native",
    "is_bf16_supported": lambda including_emulation=True: True,
    "is_current_stream_capturing": lambda: False,
    "mem_get_info": lambda _device=None: (card.total_bytes() - card.live_bytes(), card.total_bytes()),
    "memory_stats": _memory_stats,
    "memory_allocated": lambda _device=None: card.live_bytes(),
    "memory_reserved": lambda _device=None: card.live_bytes(),
    "max_memory_allocated": lambda _device=None: card.peak_bytes(),
    "max_memory_reserved": lambda _device=None: card.peak_bytes(),
    "reset_peak_memory_stats": lambda _device=None: card.reset_peak(),
    "set_per_process_memory_fraction": _limit_memory,
    "empty_cache": lambda: None,
    "ipc_collect": lambda: None,
    "synchronize": lambda _device=None: torch.accelerator.synchronize(),
    "stream": lambda stream: stream or contextlib.nullcontext(),
    "current_stream": lambda _device=None: _DEFAULT_STREAM,
    "default_stream": lambda _device=None: _DEFAULT_STREAM,
    "set_stream": lambda _stream: None,
    "get_rng_state": _get_rng_state,
    "set_rng_state": lambda _state, _device=None: None,
    "manual_seed": lambda _seed: None,
    "manual_seed_all": lambda _seed: None,
}
