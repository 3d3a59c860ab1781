"""Cuts a LoRA to fewer ranks by its singular values, module by module."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from .content import LoraContent, to_parts
from .kinds import DIFFERENCES, Parts, name_kind, to_low_rank
from .low_rank import Truncated, truncate_product


@dataclass(frozen=True)
class Resized:
    """`error` is the Frobenius norm of what was cut off all modules, as a share of the norm of what
    came in.
    """

    content: LoraContent
    error: float


def resize(content: LoraContent, *, rank: int, norm_share: float, dtype: torch.dtype, label: str) -> Resized:
    """Return the same LoRA with at most `rank` in each module, and as many singular values as
    `norm_share` needs. LoHa and LoKr become LoRA; whole differences stay.

    Raises:
        ValueError: nothing would be cut, or a module is a DoRA or incomplete.
    """
    if not rank and norm_share == 1:
        raise ValueError("rank is 0 and norm_share 1, so nothing would be cut. Set one of them")
    modules: dict[str, Parts] = {}
    cut: list[Truncated] = []
    for name, parts in content.modules.items():
        if name_kind(parts) == "difference":
            modules[name] = parts
            continue
        module = to_low_rank(parts, f"{label}: {name}")
        cut.append(truncate_product(module, rank=rank, norm_share=norm_share))
        modules[name] = {**to_parts(cut[-1].module, dtype), **keep_differences(parts)}
    return Resized(content.with_modules(modules), measure_error(cut))


def keep_differences(parts: Parts) -> Parts:
    return {role: tensor for role, tensor in parts.items() if role in DIFFERENCES}


def measure_error(cut: Iterable[Truncated]) -> float:
    """Return the share of the whole Frobenius norm that was cut off."""
    cut = list(cut)
    norm = math.hypot(*(each.norm for each in cut))
    return math.hypot(*(each.error for each in cut)) / norm if norm else 0.0
