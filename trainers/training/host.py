"""What a trainer needs from the program around it: a device, memory, a way to be cancelled, and
somewhere to report.

ComfyUI is one host (nodes/host/progress.py), a console another (console_host.py).
"""

from typing import Protocol

import torch

from .events import Event


class Host(Protocol):
    @property
    def device(self) -> torch.device:
        """Where to compute."""
        ...

    def check_interrupted(self) -> None:
        """Raise Interrupted when the user has cancelled; polled at least once per step."""
        ...

    def report(self, event: Event) -> None: ...

    def reset_peak_memory(self) -> None: ...

    def peak_memory_bytes(self) -> int:
        """Most memory in use since the last reset: the device's, or the process's on a CPU."""
        ...

    def release_memory(self) -> None:
        """Give memory that was freed back to the device, for example after a model was dropped."""
        ...
