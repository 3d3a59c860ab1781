"""The tools as users call them: LoRAs and settings in; a LoRA with its header, and what to say of
it, out.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor

from ...wording import pluralize
from .config import ExtractConfig, MergeConfig, ResizeConfig
from .content import LoraContent, find_dtype
from .extract import LayerPair, extract
from .kinds import DOWN
from .merge import MergeSource, merge
from .metadata import ExtractedModel, describe_extracted, describe_merged, describe_resized
from .resize import resize

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class MadeLora:
    """A file's tensors, with kohya's names, and its header without hashes. `text` is for the
    user.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    num_modules: int
    text: str


def merge_loras(sources: Sequence[MergeSource], config: MergeConfig, *, title: str) -> MadeLora:
    """Raises ValueError as merge does."""
    dtype = _choose_dtype(config.save_dtype, [source.content for source in sources])
    merged = merge(sources, rank=config.rank, norm_share=config.norm_share, dtype=dtype)
    step = {
        "tool": "merge",
        "sources": [{**_name_source(source.content, source.label), "strength": source.strength} for source in sources],
        **_describe_cut(config, merged.error),
    }
    headers = [source.content.metadata for source in sources]
    return _finish(merged.content, describe_merged(merged.content, headers, step, title=title), merged.error)


def resize_lora(content: LoraContent, config: ResizeConfig, *, label: str) -> MadeLora:
    """Raises ValueError as resize does."""
    dtype = _choose_dtype(config.save_dtype, [content])
    resized = resize(content, rank=config.rank, norm_share=config.norm_share, dtype=dtype, label=label)
    step = {
        "tool": "resize",
        "sources": [_name_source(content, label)],
        **_describe_cut(config, resized.error),
    }
    return _finish(resized.content, describe_resized(resized.content, content.metadata, step), resized.error)


def extract_lora(
    layers: Iterable[LayerPair], config: ExtractConfig, model: ExtractedModel, *, tuned: str, device: torch.device
) -> MadeLora:
    """`tuned` names the fine-tuned model in the header. Raises ValueError as extract does."""
    dtype = DTYPES[config.save_dtype]
    found = extract(layers, rank=config.rank, norm_share=config.norm_share, dtype=dtype, device=device)
    step = {
        "tool": "extract",
        "tuned": tuned,
        "base": model.base_model_name,
        **_describe_cut(config, found.error),
    }
    made = _finish(found.content, describe_extracted(found.content, model, step), found.error)
    return replace(made, text=f"{made.text}; {pluralize(found.num_unchanged, 'layer')} equal in both models")


def _choose_dtype(save_dtype: str, contents: Sequence[LoraContent]) -> torch.dtype:
    return DTYPES[save_dtype] if save_dtype in DTYPES else find_dtype(contents)


def _name_source(content: LoraContent, label: str) -> dict[str, str]:
    """A LoRA by its name and hash: its maker's folders stay out of a file that is shared."""
    found = {"name": PurePath(label).name, "sshs_model_hash": content.metadata.get("sshs_model_hash", "")}
    return {name: value for name, value in found.items() if value}


def _describe_cut(config: ResizeConfig, error: float) -> dict[str, Any]:
    return {"rank": config.rank, "norm_share": config.norm_share, "error": float(f"{error:.3g}")}


def _finish(content: LoraContent, metadata: dict[str, str], error: float) -> MadeLora:
    ranks = [parts[DOWN].shape[0] for parts in content.modules.values() if DOWN in parts] or [0]
    range_of_ranks = f"{min(ranks)}" if min(ranks) == max(ranks) else f"{min(ranks)} to {max(ranks)}"
    kept = "nothing cut off" if error < 1e-6 else f"{error:.2%} of the norm cut off"
    text = f"{pluralize(len(content.modules), 'module')}, rank {range_of_ranks}, {kept}"
    return MadeLora(content.tensors(), metadata, len(content.modules), text)
