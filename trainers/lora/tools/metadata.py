"""The header of a LoRA that a tool made: what came in stays, and what was done is added. header.py
makes that of a training; hashes are added when the file is written.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from ...files.text_input import parse_json
from ..header import describe_class_tokens
from .content import LoraContent
from .kinds import DOWN

HISTORY = "lora_trainer_tools"  # a JSON list: what each tool did, the latest last
HASHES = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256")
# The fields that users edit, by the name of their flag.
FIELDS = {
    "title": "modelspec.title",
    "author": "modelspec.author",
    "description": "modelspec.description",
    "trigger_words": "modelspec.trigger_phrase",
    "tags": "modelspec.tags",
    "usage_hint": "modelspec.usage_hint",
    "license": "modelspec.license",
}
_TRIGGER = FIELDS["trigger_words"]
_TAGS, _DATASETS = "ss_tag_frequency", "ss_datasets"
_ADAPTER_KEYS = ("ss_network_dim", "ss_network_alpha", "ss_network_module", "ss_network_args", "lora_adapter_metadata")


@dataclass(frozen=True)
class ExtractedModel:
    """What the header says of an extracted LoRA's base model; "" leaves a key out."""

    title: str
    base_model_version: str = ""
    architecture: str = ""
    implementation: str = ""
    base_model_name: str = ""


def describe_resized(content: LoraContent, metadata: Mapping[str, str], step: Mapping[str, Any]) -> dict[str, str]:
    """Return the header of a LoRA that came of one with this header."""
    kept = {key: value for key, value in metadata.items() if key not in (*HASHES, *_ADAPTER_KEYS)}
    return {**kept, **_describe_network(content), HISTORY: _add_step(metadata, step)}


def describe_converted(content: LoraContent, step: Mapping[str, Any], *, is_plain: bool) -> dict[str, str]:
    """Return the header of a LoRA under other names. `is_plain`: its alphas are its ranks now."""
    if is_plain:
        return describe_resized(content, content.metadata, step)
    kept = {key: value for key, value in content.metadata.items() if key not in (*HASHES, "lora_adapter_metadata")}
    return {**kept, HISTORY: _add_step(content.metadata, step)}


def describe_merged(
    content: LoraContent, headers: Sequence[Mapping[str, str]], step: Mapping[str, Any], *, title: str
) -> dict[str, str]:
    """Return the header of a merged LoRA: what all say alike, and all their trigger words and tags.
    It is no training of this pack, so there are no settings to train with again.
    """
    first, *others = headers
    common = {
        key: value
        for key, value in first.items()
        if key.startswith(("ss_", "modelspec.")) and all(other.get(key) == value for other in others)
    }
    named = [header.get("modelspec.title") or header.get("ss_output_name") or "?" for header in headers]
    words = _join_words(header.get(_TRIGGER, "") for header in headers)
    found = {
        **{key: value for key, value in common.items() if key not in (*HASHES, *_ADAPTER_KEYS)},
        _TRIGGER: words,
        "modelspec.tags": _join_words(header.get("modelspec.tags", "") for header in headers),
        _TAGS: json.dumps(_join_tags(headers)),
        _DATASETS: describe_class_tokens(words) if words else "",
        "ss_output_name": title,
        "modelspec.title": title,
        "modelspec.date": _now(),
        "modelspec.merged_from": ", ".join(named),
    }
    return {
        **{key: value for key, value in found.items() if value not in ("", "{}")},
        **_describe_network(content),
        HISTORY: json.dumps([step]),
    }


def describe_extracted(content: LoraContent, model: ExtractedModel, step: Mapping[str, Any]) -> dict[str, str]:
    found = {
        "ss_v2": "False" if model.base_model_version else "",
        "ss_base_model_version": model.base_model_version,
        "ss_output_name": model.title,
        "ss_sd_model_name": model.base_model_name,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": model.architecture,
        "modelspec.implementation": model.implementation,
        "modelspec.title": model.title,
        "modelspec.date": _now(),
    }
    return {
        **{key: value for key, value in found.items() if value},
        **_describe_network(content),
        HISTORY: json.dumps([step]),
    }


def edit(metadata: Mapping[str, str], changes: Mapping[str, str]) -> dict[str, str]:
    """Set entries of a header; an empty value removes one.

    Raises:
        ValueError: a hash is set by hand.
    """
    by_hand = [key for key in changes if key in HASHES]
    if by_hand:
        raise ValueError(f"{', '.join(by_hand)} cannot be set: it is computed from the tensors when the file is saved")
    edited = {**metadata, **changes}
    if _TRIGGER in changes:
        edited[_DATASETS] = _set_class_tokens(metadata.get(_DATASETS, ""), changes[_TRIGGER])
    return {key: value for key, value in edited.items() if value and key not in HASHES}


def _set_class_tokens(datasets: str, words: str) -> str:
    """Return kohya's description of datasets with the trigger words in the first one's first
    subset. "" if there is neither.
    """
    try:
        found = parse_json(datasets.encode())
        found[0]["subsets"][0]["class_tokens"] = words
    except (ValueError, LookupError, TypeError):
        return describe_class_tokens(words) if words else ""
    return json.dumps(found)


def _describe_network(content: LoraContent) -> dict[str, str]:
    """kohya's words for the adapter. For ranks that differ sd-scripts' resize writes Dynamic."""
    ranks = {parts[DOWN].shape[0] for parts in content.modules.values() if DOWN in parts}
    rank = str(max(ranks)) if len(ranks) == 1 else "Dynamic"
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": rank,
        "ss_network_alpha": rank,
        "ss_network_args": "{}",
    }


def _add_step(metadata: Mapping[str, str], step: Mapping[str, Any]) -> str:
    try:
        earlier = parse_json(metadata.get(HISTORY, "[]").encode())
    except ValueError:
        earlier = []  # somebody else's entry: it is replaced
    return json.dumps([*(earlier if isinstance(earlier, list) else []), step])


def _join_words(texts: Iterable[str]) -> str:
    words = (word.strip() for text in texts for word in text.split(","))
    return ", ".join(dict.fromkeys(filter(None, words)))


def _join_tags(headers: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Join kohya's counts of tags, whose folders may have the same name."""
    joined: dict[str, Any] = {}
    for header in headers:
        for folder, counts in read_tag_frequency(header).items():
            names = (folder if number == 1 else f"{folder} ({number})" for number in range(1, len(joined) + 2))
            joined[next(name for name in names if name not in joined)] = counts
    return joined


def read_tag_frequency(metadata: Mapping[str, str]) -> dict[str, dict[str, int]]:
    """Return kohya's counts of tags by folder; empty if the header has none that can be read."""
    try:
        found = parse_json(metadata.get(_TAGS, "{}").encode())
    except ValueError:
        return {}
    if not isinstance(found, dict):
        return {}
    return {str(folder): counts for folder, counts in found.items() if isinstance(counts, dict)}


def _now() -> str:
    return datetime.now(tz=timezone.utc).replace(microsecond=0).isoformat()
