"""Merges LoRAs into one: the sum of their effects, exact or cut to fewer ranks."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...wording import name_examples
from ..modules import LoraModule
from .content import LoraContent, to_parts
from .kinds import DIFFERENCES, Parts, to_low_rank
from .low_rank import Truncated, join, truncate_product
from .resize import Resized, measure_error


@dataclass(frozen=True)
class MergeSource:
    """A LoRA with the strength that it has in the merged one; errors call it by `label`."""

    content: LoraContent
    strength: float
    label: str


def merge(sources: Sequence[MergeSource], *, rank: int, norm_share: float, dtype: torch.dtype) -> Resized:
    """Return a LoRA whose effect is the sum of the sources'. With `rank` 0 and `norm_share` 1 it is
    exact: ranks add up. Else each module is cut as by resize.

    Raises:
        ValueError: there are fewer than two, they name their modules differently, or a module is
            a DoRA, incomplete or of another size.
    """
    if len(sources) < 2:
        raise ValueError("merging needs two LoRAs or more")
    _require_same_names(sources)
    modules: dict[str, Parts] = {}
    cut: list[Truncated] = []
    for name in dict.fromkeys(name for source in sources for name in source.content.modules):
        having = [source for source in sources if name in source.content.modules]
        modules[name] = _add_differences(name, having)
        factors = [source for source in having if not source.content.modules[name].keys() <= set(DIFFERENCES)]
        if not factors:
            continue
        joined = _join(name, factors)
        if rank or norm_share < 1:
            cut.append(truncate_product(joined, rank=rank, norm_share=norm_share))
            joined = cut[-1].module
        modules[name] = {**to_parts(joined, dtype), **modules[name]}
    first = sources[0].content
    paths = {name: path for source in sources for name, path in source.content.paths.items()}
    keys = {name: key for source in sources for name, key in source.content.keys.items()}
    others = _join_others(sources)
    return Resized(LoraContent(modules, first.metadata, others, paths, keys), measure_error(cut))


def _join(name: str, sources: Sequence[MergeSource]) -> LoraModule:
    try:
        return join(
            [
                (to_low_rank(source.content.modules[name], f"{source.label}: {name}"), source.strength)
                for source in sources
            ]
        )
    except RuntimeError as error:
        labels = " and ".join(source.label for source in sources)
        raise ValueError(
            f"{labels} have different sizes of {name}, so they are for different base models ({error})"
        ) from error


def _add_differences(name: str, sources: Sequence[MergeSource]) -> Parts:
    """Add up whole weight differences (.diff, .diff_b)."""
    totals: dict[str, Tensor] = {}
    for source in sources:
        for role in DIFFERENCES:
            if (difference := source.content.modules[name].get(role)) is None:
                continue
            weighted = source.strength * difference.float()
            totals[role] = totals[role] + weighted if role in totals else weighted
    return totals


def _join_others(sources: Sequence[MergeSource]) -> dict[str, Tensor]:
    """Tensors of no module, such as embeddings: two that differ cannot be added."""
    joined: dict[str, Tensor] = {}
    for source in sources:
        for name, tensor in source.content.others.items():
            if name in joined and not torch.equal(joined[name], tensor):
                raise ValueError(f"{source.label}: {name} is in another LoRA too, with other values")
            joined[name] = tensor
    return joined


def _require_same_names(sources: Sequence[MergeSource]) -> None:
    """Two spellings of one module in a file would hide each other when it is loaded."""
    spellings = {source.label: _find_spelling(source.content) for source in sources}
    if len(set(filter(None, spellings.values()))) > 1:
        described = ", ".join(f"{label} as {spelling}..." for label, spelling in spellings.items() if spelling)
        raise ValueError(
            f"the LoRAs name the modules of their network differently: {described}. They are for different base "
            "models, or one was saved by a program whose names cannot be translated without its model"
        )


def _find_spelling(content: LoraContent) -> str:
    """The first words of the network's names; "" if only text encoders are changed."""
    prefixes = ("lora_unet_", "lora_transformer_", "lycoris_", "transformer.", "lora_prior_unet_")
    names = [name for name in content.modules if not name.startswith(("lora_te", "text_encoder"))]
    if not names:
        return ""
    if content.keys:
        return "SDXL's lora_unet_"
    return next((prefix for prefix in prefixes if names[0].startswith(prefix)), name_examples(names, 1))
