"""The exponential moving average of the adapters: smoother than the last step, from one copy."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from ..critical_section import critical_section
from .flat_weights import FlatWeights


class AdapterEma:
    """Averages parameters over steps. At first the decay is smaller, (1 + n) / (10 + n) after n
    steps, so that the random start is soon forgotten (as in diffusers' EMAModel with use_ema_warmup
    off, and in TensorFlow).

    Each average is laid out as FlatWeights.flat.
    """

    def __init__(self, weights: Sequence[FlatWeights], decay: float) -> None:
        self._weights = list(weights)
        self._decay = decay
        self.averages = [each.flat.detach().clone() for each in weights]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the weights after `step` steps."""
        decay = min(self._decay, (1 + step) / (10 + step))
        for average, weights in zip(self.averages, self._weights, strict=True):
            average.lerp_(weights.flat, 1 - decay)

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
        for weights, average in zip(self._weights, self.averages, strict=True):
            kept = weights.flat.detach().clone()
            weights.flat.copy_(average)
            average.copy_(kept)
            weights.publish()
