"""What a trainer needs from the program around it: a device, memory, cancellation, and a place to
report.

ComfyUI is one host (nodes/host/progress.py), the console another (console_host.py).
"""

from typing import Protocol

import torch

from .events import Event, Request


class Host(Protocol):
    @property
    def device(self) -> torch.device:
        """The device to compute on."""
        ...

    def check_interrupted(self) -> None:
        """Raise Interrupted if the user has cancelled. Called at least once per step."""
        ...

    def take_request(self) -> Request | None:
        """Return what the user asked for since the last call: "finish" now, with the LoRA so far,
        or "pause". Asked between steps.
        """
        ...

    def report(self, event: Event) -> None: ...

    def reset_peak_memory(self) -> None: ...

    def peak_memory_bytes(self) -> int:
        """Return the peak memory since the last reset: the device's, on a CPU the process's."""
        ...

    def release_memory(self) -> None:
        """Give freed memory back to the device, for example after a model was dropped."""
        ...
