"""The loss scale of fp16: it keeps small gradients above fp16's smallest number.

The numbers are those of torch's GradScaler: twice the scale after 2000 good steps, half of it after
an overflow. GradScaler keeps its scale on the device, and each look at it waits for the device.
Here the gradient norm, which every step reads anyway, tells whether a gradient overflowed.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

START = 2.0**16
GROWTH, BACKOFF = 2.0, 0.5
GROWTH_INTERVAL = 2000


class LossScale:
    """The scale is a power of two, so that it changes no digit of a gradient. Off, it is 1."""

    def __init__(self, *, is_on: bool) -> None:
        self._is_on = is_on
        self._good_steps = 0  # since the scale has changed
        self.value = START if is_on else 1.0

    def scale(self, loss: Tensor) -> Tensor:
        return loss * self.value if self._is_on else loss

    @torch.no_grad()
    def unscale(self, parameters: Sequence[Tensor]) -> None:
        """Divide the gradients by the scale, in place."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self._is_on and gradients:
            torch._foreach_mul_(gradients, 1 / self.value)

    def update(self, *, has_overflowed: bool) -> None:
        """Choose the scale of the next step."""
        if not self._is_on:
            return
        self._good_steps = 0 if has_overflowed else self._good_steps + 1
        if has_overflowed:
            self.value *= BACKOFF
        elif self._good_steps == GROWTH_INTERVAL:
            self.value *= GROWTH
            self._good_steps = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the entries of GradScaler's state that a run changes; nothing if it is off."""
        return {"scale": self.value, "_growth_tracker": self._good_steps} if self._is_on else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of this class or of GradScaler, which earlier versions kept."""
        self.value, self._good_steps = float(state["scale"]), int(state["_growth_tracker"])
