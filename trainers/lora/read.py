"""Reads a LoRA in every common spelling: kohya's, PEFT's, diffusers' and ComfyUI's."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ..wording import name_examples
from .modules import LoraModule, ModuleKey, ModuleNames, flatten_name
from .other_kinds import guess_base_model, refuse_other_kinds


def read_lora(source: Path | Mapping[str, Tensor], names: ModuleNames) -> dict[ModuleKey, LoraModule]:
    """Read the modules of a LoRA file, or of a dict of its tensors (ComfyUI's LORA_MODEL), in the
    order of `names`.

    Reads kohya's names (LDM or diffusers form), PEFT's, diffusers' (new and old) and those of
    ComfyUI's trainer. Alpha is the tensor `.alpha`, else the value in PEFT's or diffusers'
    metadata, else the rank. Ranks can differ between modules. Tensors keep their dtype. ComfyUI's
    trainer flattens a convolution's `down` to [rank, in * kernel * kernel]; reshape it to the
    layer's shape.

    Raises:
        ValueError: not a complete `.safetensors` file, not a LoRA, or a LoRA for another model.
    """
    label = "this LoRA" if isinstance(source, Mapping) else str(source)
    tensors, settings = (dict(source), {}) if isinstance(source, Mapping) else load_tensors(Path(source))
    refuse_other_kinds(tensors, label)
    parts = _group_by_module(tensors, names, label)
    return {
        key: _build_module(key, parts[key], settings, names, f"{label}: {names[key]}") for key in names if key in parts
    }


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return a file's tensors and PEFT settings (rank, alpha, patterns; empty if it has none)."""
    if path.suffix.lower() != ".safetensors":
        raise ValueError(
            f"{path}: only .safetensors files are read. A .pt, .bin or .ckpt file is a pickle, which can run any "
            "code when opened"
        )
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    try:
        tensors = load_file(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole .safetensors file ({error}). Download or copy it again") from error
    return tensors, _read_peft_settings(path, metadata)


def _read_peft_settings(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Read the settings from the header (diffusers) or from adapter_config.json next to
    `adapter_model.safetensors` (PEFT).
    """
    if "lora_adapter_metadata" in metadata:
        return json.loads(metadata["lora_adapter_metadata"])
    config = path.with_name("adapter_config.json")
    if path.name == "adapter_model.safetensors" and config.is_file():
        return json.loads(config.read_text(encoding="utf-8"))
    return {}


_FACTOR = re.compile(
    r"(?P<base>.+?)"
    r"(?:\.lora_|[._]lora\.|\.lora_linear_layer\.)(?P<role>down|up|A|B)"
    r"(?:\.(?!weight$|bias$)\w+)?"  # PEFT's name of the adapter
    r"(?:\.weight)?"
)
_ALPHA = re.compile(r"(?P<base>.+?)(?:[._]lora|\.lora_linear_layer)?\.(?P<role>alpha)")
_ROLES = {"A": "down", "B": "up"}


def _group_by_module(
    tensors: Mapping[str, Tensor], names: ModuleNames, label: str
) -> dict[ModuleKey, dict[str, Tensor]]:
    """Group the tensors "down", "up" and "alpha" of each module."""
    parts: dict[ModuleKey, dict[str, Tensor]] = {}
    unmatched = []
    for name, tensor in tensors.items():
        match = _FACTOR.fullmatch(name) or _ALPHA.fullmatch(name)
        key = names.spellings.get(_normalize_base(match["base"])) if match else None
        if match is None or key is None:
            unmatched.append(name)
            continue
        role = _ROLES.get(match["role"], match["role"])
        if role in parts.setdefault(key, {}):
            raise ValueError(f"{label}: {names[key]} appears twice, once as {name}")
        parts[key][role] = tensor
    if unmatched or not tensors:
        raise ValueError(
            f"{label}: {len(unmatched)} of {len(tensors)} keys do not fit this model: {name_examples(unmatched)}. "
            f"{_guess_content(tensors)}"
        )
    return parts


def _normalize_base(base: str) -> str:
    """Remove wrapper levels from names such as `unet.down_blocks.1...attn1.processor.to_q`, and
    replace dots by underscores.
    """
    return flatten_name(base.replace("base_model.model.", "").replace(".processor.", "."))


def _build_module(
    key: ModuleKey, parts: Mapping[str, Tensor], settings: Mapping[str, Any], names: ModuleNames, label: str
) -> LoraModule:
    missing = [role for role in ("down", "up") if role not in parts]
    if missing:
        raise ValueError(f"{label} has no {' and no '.join(missing)} weight; the file is not complete")
    down, up = parts["down"], parts["up"]
    if down.ndim not in (2, 4) or up.ndim not in (2, 4) or up.shape[1] != down.shape[0]:
        raise ValueError(f"{label}: down {list(down.shape)} and up {list(up.shape)} do not belong together")
    if "alpha" in parts:
        return LoraModule(down, up, float(parts["alpha"].item()))
    own_settings = _select_settings(key[0], settings, names.main_component)
    return LoraModule(down, up, float(_read_alpha(key[1], down.shape[0], own_settings)))


def _select_settings(component: str, settings: Mapping[str, Any], main_component: str) -> Mapping[str, Any]:
    """Select PEFT's settings of one component. Those without a prefix are the main component's."""
    prefix = f"{component}."
    prefixed = {name.removeprefix(prefix): value for name, value in settings.items() if name.startswith(prefix)}
    return prefixed or (settings if component == main_component else {})


def _read_alpha(path: str, rank: int, settings: Mapping[str, Any]) -> float:
    """Read a module's alpha by PEFT's rule: `alpha_pattern` that matches the end of the module's
    path, else `lora_alpha`. rsLoRA divides by sqrt(rank) instead of rank.
    """
    alpha = settings.get("lora_alpha", rank)
    for pattern, special in (settings.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", f"text_model.{path}"):
            alpha = special
            break
    return alpha * math.sqrt(rank) if settings.get("use_rslora") else alpha


def _guess_content(tensors: Mapping[str, Tensor]) -> str:
    if not any(_FACTOR.fullmatch(name) for name in tensors):
        return "The file holds no LoRA weights; is it a whole model?"
    return guess_base_model(tensors)
