"""Recomputes each block's activations in the backward pass."""

from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint


def checkpoint_blocks(blocks: Iterable[nn.Module]) -> int:
    """Let each block recompute its activations. Return how many did not do so already."""
    count = 0
    for block in blocks:
        if not hasattr(block, "_plain_forward"):
            block._plain_forward = block.forward  # type: ignore[assignment]
            block.forward = _Checkpointed(block, block._plain_forward)  # type: ignore[assignment]
            count += 1
    return count


def uncheckpoint_blocks(blocks: Iterable[nn.Module]) -> None:
    """Let blocks keep their activations again."""
    for block in blocks:
        if hasattr(block, "_plain_forward"):
            block.forward = block._plain_forward  # type: ignore[assignment]
            del block._plain_forward


class _Checkpointed:
    """Runs a block without keeping its activations.

    The recomputation must be torch's reentrant kind: it runs under the caller's
    `allow_mutation_on_saved_tensors`. The other kind keeps recomputed tensors by itself: where a
    block writes into one of them (FLUX adds in place), gradients are wrong without an error.
    """

    def __init__(self, block: nn.Module, forward: Callable[..., Any]) -> None:
        self._block = block
        self._forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        leaves, structure = tree_flatten((args, kwargs))
        if not (torch.is_grad_enabled() and self._needs_gradients(leaves)):
            return self._forward(*args, **kwargs)

        def run(_: Tensor, *leaves: Any) -> Any:
            args, kwargs = tree_unflatten([_copy(leaf) for leaf in leaves], structure)
            return self._forward(*args, **kwargs)

        # the reentrant kind needs an input with a gradient, and the first block has none
        anchor = torch.zeros((), requires_grad=True)
        return checkpoint(run, anchor, *leaves, use_reentrant=True)

    def _needs_gradients(self, leaves: list[Any]) -> bool:
        inputs = (leaf for leaf in leaves if isinstance(leaf, Tensor))
        return any(tensor.requires_grad for tensor in chain(inputs, self._block.parameters()))


def _copy(value: Any) -> Any:
    """A block may write into its inputs, which the recomputation needs as they were."""
    return value.clone() if isinstance(value, Tensor) and value.is_floating_point() else value
