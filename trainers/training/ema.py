"""The exponential moving average of the adapters: smoother than the last step, from one copy."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ..critical_section import critical_section


class AdapterEma:
    """Averages parameters over steps. At first the decay is smaller, (1 + n) / (10 + n) after n
    steps, so that the random start is soon forgotten (as in diffusers' EMAModel with use_ema_warmup
    off, and in TensorFlow).
    """

    def __init__(self, parameters: Sequence[Tensor], decay: float) -> None:
        self._parameters = [parameter.detach() for parameter in parameters]
        self._decay = decay
        self.averages = [parameter.clone() for parameter in self._parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the parameters after `step` steps."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.averages, self._parameters, 1 - decay)

    def load(self, averages: Sequence[Tensor]) -> None:
        for own, other in zip(self.averages, averages, strict=True):
            own.copy_(other)

    @contextmanager
    @torch.no_grad()
    def in_place(self) -> Iterator[None]:
        """Inside the block the model has the averages as its adapters."""
        is_swapped = False
        try:
            with critical_section():  # a signal between two tensors would leave a mixture
                self._swap()
                is_swapped = True
            yield
        finally:
            if is_swapped:
                with critical_section():
                    self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for parameter, average in zip(self._parameters, self.averages, strict=True):
            kept = parameter.clone()
            parameter.copy_(average)
            average.copy_(kept)
