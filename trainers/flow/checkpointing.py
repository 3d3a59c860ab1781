"""Recomputes each block's activations in the backward pass, and can bring its frozen weights to the
device only for as long as they are used.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def checkpoint_blocks(blocks: Iterable[nn.Module]) -> int:
    """Let each block recompute its activations. Return how many did not do so already.

    Raises:
        RuntimeError: this torch is too old.
    """
    if not hasattr(torch._C._autograd, "_top_saved_tensors_default_hooks"):
        raise RuntimeError(
            f"gradient_checkpointing needs torch 2.8 or newer, this is {torch.__version__}. Update torch, or set "
            "gradient_checkpointing to off"
        )
    count = 0
    for block in blocks:
        if not hasattr(block, "_plain_forward"):
            block._plain_forward = block.forward  # type: ignore[assignment]
            block.forward = _Checkpointed(block._plain_forward)  # type: ignore[assignment]
            count += 1
    return count


class _Checkpointed:
    def __init__(self, forward: Callable[..., Any]) -> None:
        self._forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self._forward(*args, **kwargs)
        return checkpoint(self._run, *args, use_reentrant=False, context_fn=_make_contexts, **kwargs)

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        """A block may write into its inputs, which the recomputation needs as they were."""
        own_args = [_copy(value) for value in args]
        return self._forward(*own_args, **{name: _copy(value) for name, value in kwargs.items()})


def _make_contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Of the forward pass, which keeps nothing, and of the recomputation."""
    return nullcontext(), _copy_saved()


@contextmanager
def _copy_saved() -> Iterator[None]:
    """Copy the activations that a recomputation keeps for the backward pass.

    A block may write into a tensor after autograd has saved it (`x += ...`, as FLUX's blocks do).
    allow_mutation_on_saved_tensors takes care of that only where its own hooks save tensors. The
    checkpoint's hooks keep an alias: the gradients would silently be those of the overwritten
    values.
    """
    keep, give = torch._C._autograd._top_saved_tensors_default_hooks(False)  # the checkpoint's own
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: keep(_copy_activation(tensor)), give):
        yield


def _copy_activation(tensor: Tensor) -> Tensor:
    return tensor if isinstance(tensor, nn.Parameter) else tensor.detach().clone()


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) and value.is_floating_point() else value


class BlockStreamer:
    """Keeps the frozen weights of blocks in main memory, and copies those of one block to the device
    for each time that it runs: forward, and again in the recomputation. The adapters stay on the
    device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.held_bytes = self.peak_bytes = 0

    def stream(self, block: nn.Module) -> None:
        forward, places = block.forward, _list_frozen(block)

        def run(*args: Any, **kwargs: Any) -> Any:
            self._count(places, 1)
            try:
                for module, name, weight in places:
                    module._parameters[name] = _copy_to(weight, self._device)
                return forward(*args, **kwargs)
            finally:
                for module, name, weight in places:
                    module._parameters[name] = weight
                self._count(places, -1)

        block.forward = run  # type: ignore[assignment]

    def _count(self, places: list[tuple[nn.Module, str, nn.Parameter]], sign: int) -> None:
        self.held_bytes += sign * sum(weight.numel() * weight.element_size() for _, _, weight in places)
        self.peak_bytes = max(self.peak_bytes, self.held_bytes)


def _list_frozen(block: nn.Module) -> list[tuple[nn.Module, str, nn.Parameter]]:
    return [
        (module, name, weight)
        for module in block.modules()
        for name, weight in module._parameters.items()
        if weight is not None and not weight.requires_grad
    ]


def _copy_to(weight: nn.Parameter, device: torch.device) -> nn.Parameter:
    return nn.Parameter(weight.detach().to(device, copy=True), requires_grad=False)
