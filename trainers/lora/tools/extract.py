"""Extracts a LoRA from the difference of two models, one layer at a time."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .content import LoraContent, to_parts
from .kinds import Parts
from .low_rank import Truncated, truncate_matrix
from .resize import measure_error


class LayerPair(NamedTuple):
    """A weight of both models, read when it is its turn. `name` is kohya's."""

    name: str
    read_tuned: Callable[[], Tensor]
    read_base: Callable[[], Tensor]


@dataclass(frozen=True)
class Extracted:
    """`error` is the Frobenius norm of what the LoRA does not hold of the changed layers, as a
    share of the norm of their change. `num_unchanged` layers are equal in both models.
    """

    content: LoraContent
    error: float
    num_unchanged: int


@torch.no_grad()
def extract(
    layers: Iterable[LayerPair], *, rank: int, norm_share: float, dtype: torch.dtype, device: torch.device
) -> Extracted:
    """Return the difference tuned - base as a LoRA with at most `rank` in each module.

    Only one layer of both models is in memory at a time.

    Raises:
        ValueError: the models have layers of different sizes, or do not differ.
    """
    modules: dict[str, Parts] = {}
    cut: list[Truncated] = []
    num_unchanged = 0
    generator = torch.Generator().manual_seed(0)
    for layer in layers:
        difference = _subtract(layer, device)
        if not difference.any():
            num_unchanged += 1
            continue
        cut.append(truncate_matrix(difference, rank=rank, norm_share=norm_share, generator=generator))
        modules[layer.name] = to_parts(cut[-1].module, dtype)
    if not modules:
        raise ValueError(f"the two models do not differ in any of {num_unchanged} layers, so there is no LoRA in them")
    return Extracted(LoraContent(modules), measure_error(cut), num_unchanged)


def _subtract(layer: LayerPair, device: torch.device) -> Tensor:
    tuned, base = layer.read_tuned(), layer.read_base()
    if tuned.shape != base.shape:
        raise ValueError(
            f"{layer.name} is {list(tuned.shape)} in the tuned model and {list(base.shape)} in the base model; they "
            "are not of the same kind"
        )
    difference = tuned.to(device, torch.float32) - base.to(device, torch.float32)
    if not bool(difference.isfinite().all()):
        raise ValueError(f"{layer.name} holds values that are not finite. Take another file of the model")
    return difference
