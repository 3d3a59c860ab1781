"""Derivatives for ComfyUI's fused kernels, which have none: the backward pass recomputes the
package's own plain version.
"""

import logging
from functools import cache
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)


@cache
def add_derivatives() -> None:
    """Once per process. Without comfy_kitchen there are no fused kernels."""
    try:
        import comfy_kitchen  # noqa: F401 - it registers the kernels
        from comfy_kitchen.backends.eager import rope
    except ImportError:
        return
    for name in (name for name in dir(rope) if "rope" in name):
        plain = getattr(rope, name)
        if callable(plain) and hasattr(torch.ops.comfy_kitchen, name):
            _add_derivative(f"comfy_kitchen::{name}", plain)


def _add_derivative(kernel: str, plain: Any) -> None:
    def remember(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.inputs = inputs

    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        with torch.enable_grad():
            inputs = [_detach(value) for value in ctx.inputs]
            outputs = plain(*inputs)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        wanted = [value for value in inputs if isinstance(value, Tensor) and value.requires_grad]
        found = iter(torch.autograd.grad(outputs, wanted, gradients, allow_unused=True))
        return tuple(next(found) if isinstance(x, Tensor) and x.requires_grad else None for x in inputs)

    try:
        torch.library.register_autograd(kernel, backward, setup_context=remember)
    except RuntimeError as error:  # a newer package has one of its own
        logger.debug("%s keeps its own derivative: %s", kernel, error)


def _detach(value: Any) -> Any:
    return value.detach().requires_grad_(value.is_floating_point()) if isinstance(value, Tensor) else value
