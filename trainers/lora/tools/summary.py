"""Says what a LoRA file is: modules, strength, base model, trigger words, training and hashes."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from ...files.text_input import parse_json
from ...wording import format_megabytes, name_first, pluralize
from ..header import hash_tensors
from .content import LoraContent
from .kinds import ALPHA, DOWN, name_kind, to_low_rank
from .low_rank import truncate_product
from .metadata import FIELDS, HASHES, HISTORY, read_tag_frequency

_PARTS = (
    ("lora_te1_", "text encoder 1"),
    ("lora_te2_", "text encoder 2"),
    ("lora_te_", "text encoder"),
    ("text_encoder", "text encoder"),
)
_TRAINING = {
    "ss_sd_model_name": "base model's file",
    "ss_network_module": "network",
    "ss_network_args": "network arguments",
    "ss_num_train_images": "images",
    "ss_num_reg_images": "regularization images",
    "ss_resolution": "resolution",
    "ss_steps": "steps",
    "ss_max_train_steps": "steps planned",
    "ss_num_epochs": "epochs",
    "ss_total_batch_size": "batch size",
    "ss_unet_lr": "learning rate",
    "ss_learning_rate": "learning rate",
    "ss_text_encoder_lr": "learning rate of the text encoders",
    "ss_optimizer": "optimizer",
    "ss_lr_scheduler": "schedule",
    "ss_min_snr_gamma": "min-SNR gamma",
    "ss_noise_offset": "noise offset",
    "ss_seed": "seed",
    "ss_training_comment": "comment",
}
Rows = list[tuple[str, str]]


def list_facts(content: LoraContent, tensors: Mapping[str, Tensor]) -> dict[str, Rows]:
    """Return what there is to say by heading, each as rows of a name and a text. `tensors` are
    those of the file, which its hashes cover.
    """
    sections = {
        "": _describe_file(content, tensors),
        "Modules": _describe_modules(content),
        "Training": _describe_training(content.metadata),
        "Hashes": _describe_hashes(content.metadata, tensors),
    }
    return {heading: rows for heading, rows in sections.items() if rows}


def format_facts(sections: Mapping[str, Rows]) -> str:
    """Lay the facts out as text, with the names in one column."""
    width = max((len(name) for rows in sections.values() for name, _ in rows), default=0)
    blocks = [
        "\n".join([*([heading] if heading else []), *(f"{name.ljust(width)}  {text}" for name, text in rows)])
        for heading, rows in sections.items()
    ]
    return "\n\n".join(blocks)


def find_trigger_words(metadata: Mapping[str, str]) -> str:
    return metadata.get("modelspec.trigger_phrase", "")


def _describe_file(content: LoraContent, tensors: Mapping[str, Tensor]) -> Rows:
    metadata = content.metadata
    kinds = ", ".join(f"{pluralize(number, 'module')} of {kind}" for kind, number in content.kinds().items())
    rows = [
        ("kind", kinds),
        ("size", format_megabytes(sum(tensor.nbytes for tensor in tensors.values()))),
        ("numbers", _list_dtypes(tensors.values())),
        ("base model", _join(metadata, "ss_base_model_version", "modelspec.architecture")),
        *((name.replace("_", " "), metadata.get(key, "")) for name, key in FIELDS.items()),
        ("most frequent tags", _list_tags(metadata)),
        *(("made by", step) for step in _list_steps(metadata)),
        ("other tensors", name_first(content.others, 3)),
    ]
    return [(name, text) for name, text in rows if text]


def _list_steps(metadata: Mapping[str, str]) -> list[str]:
    """What the tools did, one text for each: "merge: sources a and b, rank 8"."""
    try:
        steps = parse_json(metadata.get(HISTORY, "[]").encode())
    except ValueError:
        return [metadata[HISTORY]]
    return [_describe_step(step) for step in steps if isinstance(step, dict)] if isinstance(steps, list) else []


def _describe_step(step: dict[str, Any]) -> str:
    sources = [source for source in step.get("sources", []) if isinstance(source, dict)]
    named = [
        f"{source.get('name')} at {source['strength']:g}" if "strength" in source else str(source.get("name"))
        for source in sources
    ]
    rest = [f"{name} {value}" for name, value in step.items() if name not in ("tool", "sources")]
    return f"{step.get('tool')}: {', '.join([*named, *rest])}"


def _join(metadata: Mapping[str, str], *keys: str) -> str:
    return ", ".join(dict.fromkeys(filter(None, (metadata.get(key, "") for key in keys))))


def _list_dtypes(tensors: Iterable[Tensor]) -> str:
    counts = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors if tensor.ndim)
    return ", ".join(counts)


def _list_tags(metadata: Mapping[str, str]) -> str:
    counts: Counter[str] = Counter()
    for tags in read_tag_frequency(metadata).values():
        counts.update({tag: number for tag, number in tags.items() if isinstance(number, int)})
    return ", ".join(f"{tag} ({number})" for tag, number in counts.most_common(8))


def _describe_modules(content: LoraContent) -> Rows:
    """One row for each part of the model. The norm is the Frobenius norm of all its updates."""
    parts: dict[str, list[str]] = {}
    for name in content.modules:
        part = next((title for prefix, title in _PARTS if name.startswith(prefix)), "UNet or transformer")
        parts.setdefault(part, []).append(name)
    return [(part, _describe_part(content, names)) for part, names in parts.items()]


def _describe_part(content: LoraContent, names: list[str]) -> str:
    found = [content.modules[name] for name in names]
    ranks = [module[DOWN].shape[0] for module in found if DOWN in module]
    alphas = [float(module[ALPHA].item()) for module in found if ALPHA in module]
    facts = [pluralize(len(names), "module")]
    if ranks:
        facts.append(f"rank {_show_range(ranks)}")
    if ranks and len(alphas) < len(ranks):
        facts.append("no alpha (as rank)")
    if alphas:
        facts.append(f"alpha {_show_range(alphas)}")
    if not {name_kind(module) for module in found} & {"DoRA", "difference", "nothing"}:
        norms = [truncate_product(to_low_rank(content.modules[name], name)).norm for name in names]
        facts.append(f"norm {math.hypot(*norms):.4g}")
    return ", ".join(facts)


def _show_range(numbers: list[float] | list[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _describe_training(metadata: Mapping[str, str]) -> Rows:
    rows = {title: metadata[key] for key, title in _TRAINING.items() if metadata.get(key, "None") not in ("None", "{}")}
    return list(rows.items())


def _describe_hashes(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> Rows:
    computed = hash_tensors(tensors, metadata)
    rows = []
    for key in HASHES:
        stored = metadata.get(key)
        if stored is None:
            rows.append((key, f"{computed[key]} (the header has none)"))
        elif stored != computed[key]:
            rows.append((key, f"{computed[key]}, but the header says {stored}: edit the file to hash it again"))
        else:
            rows.append((key, stored))
    return rows
