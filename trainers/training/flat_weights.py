"""The trained matrices of one group as one tensor: clipping, the update, the average and the
conversion to half precision are then a few operations, however many layers there are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

AT_ONCE = 64  # gradients that are gathered together: more would hold a second copy of all of them


class FlatWeights:
    """`flat` [N] float32 is what the optimizer changes. The layers compute with a copy of it in
    `dtype`; for float32 that is `flat` itself.

    The parameters given become views of it, in their order.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], dtype: torch.dtype = torch.float32) -> None:
        self.parameters = list(parameters)
        self.flat = nn.Parameter(torch.cat([each.detach().float().flatten() for each in self.parameters]))
        self._sizes = [each.numel() for each in self.parameters]
        self._computing = self.flat.detach().to(dtype)
        for parameter, view in zip(self.parameters, self.split(self._computing), strict=True):
            parameter.data = view
            parameter.grad = None
        self._matrices: list[nn.Parameter] = []
        self.last_step = 0  # the optimizer passes them over after it; 0: it never does

    def split(self, flat: Tensor) -> list[Tensor]:
        """Return views of a tensor that is laid out as `flat`, in the shapes of the parameters."""
        return [part.view_as(each) for part, each in zip(self.cut(flat), self.parameters, strict=True)]

    def cut(self, flat: Tensor) -> Sequence[Tensor]:
        """Return the same views without their shapes, by one operation."""
        return flat.detach().split(self._sizes)

    def as_matrices(self) -> list[nn.Parameter]:
        """Return views of `flat` for an optimizer that looks at shapes or at single matrices. They
        get their gradients by share_gradients.
        """
        self._matrices = [nn.Parameter(view) for view in self.split(self.flat)]
        return self._matrices

    @torch.no_grad()
    def publish(self) -> None:
        """Give the layers what `flat` is now."""
        if self._computing.dtype != self.flat.dtype:
            self._computing.copy_(self.flat)

    @torch.no_grad()
    def collect_gradients(self) -> None:
        """Add the layers' gradients to that of `flat`, in float32, and forget them. A layer without
        one counts as zero.
        """
        is_first = self.flat.grad is None
        gradient = torch.empty_like(self.flat) if self.flat.grad is None else self.flat.grad
        end = 0
        for first in range(0, len(self.parameters), AT_ONCE):
            new = torch.cat([_take_gradient(each) for each in self.parameters[first : first + AT_ONCE]])
            part = gradient[end : end + len(new)]
            end += len(new)
            part.copy_(new) if is_first else part.add_(new)
        self.flat.grad = gradient

    def share_gradients(self) -> None:
        """Give the matrices their part of the gradient of `flat`."""
        if self._matrices and self.flat.grad is not None:
            for matrix, part in zip(self._matrices, self.split(self.flat.grad), strict=True):
                matrix.grad = part

    def forget_gradients(self) -> None:
        for each in (self.flat, *self._matrices, *self.parameters):
            each.grad = None


@dataclass(frozen=True)
class TrainedGroup:
    """The trained weights of one component, which share a peak learning rate."""

    name: str
    weights: FlatWeights
    learning_rate: float


def _take_gradient(parameter: nn.Parameter) -> Tensor:
    gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    parameter.grad = None
    return gradient.flatten()
