"""Reads a LoRA in every common spelling: kohya's, PEFT's, diffusers' and ComfyUI's."""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..files.weight_file import read_weights
from ..wording import name_examples
from .modules import (
    MODULES,
    AdapterModule,
    DoraModule,
    LohaModule,
    LokrModule,
    LoraModule,
    ModuleKey,
    ModuleNames,
    flatten_name,
    is_finite,
)
from .other_kinds import guess_base_model, looks_like_another_model, refuse_other_kinds

MAX_NAME_LENGTH = 400  # of a tensor; real names have up to 150 characters


def read_lora(
    source: Path | Mapping[str, Tensor],
    names: ModuleNames,
    *,
    pass_over: Callable[[list[str]], None] | None = None,
) -> dict[ModuleKey, AdapterModule]:
    """Read the modules of a LoRA file, or of a dict of its tensors (ComfyUI's LORA_MODEL), in the
    order of `names`: LoRA, DoRA, LoHa or LoKr.

    Of the last three, LyCORIS' names are read. Of a LoRA: kohya's names (LDM or diffusers form),
    PEFT's, diffusers' (new and old) and those of ComfyUI's trainer. Alpha is the tensor `.alpha`,
    else the value in PEFT's or diffusers' metadata, else the rank. Ranks can differ between
    modules. Tensors keep their dtype. ComfyUI's trainer flattens a convolution's `down` to [rank,
    in * kernel * kernel]; reshape it to the layer's shape.

    `pass_over` is told the tensors that the base model has no use for, such as embeddings that came
    with the LoRA. Without it they are an error.

    Raises:
        ValueError: not a complete `.safetensors` file, not a LoRA, or a LoRA for another model.
    """
    label = "this LoRA" if isinstance(source, Mapping) else str(source)
    tensors, settings = (dict(source), {}) if isinstance(source, Mapping) else load_tensors(Path(source))
    _refuse_other_files(tensors, label)
    parts = _group_by_module(tensors, names, label, pass_over)
    return {
        key: _build_module(key, parts[key], settings, names, f"{label}: {names[key]}") for key in names if key in parts
    }


def check_sdxl_tensors(tensors: Mapping[str, Tensor], label: str) -> None:
    """Check what needs no model: that these are the tensors of a LoRA for SDXL, in numbers.

    Raises:
        ValueError: they are not.
    """
    _refuse_other_files(tensors, label)
    if not any(map(_match_weight, tensors)) or looks_like_another_model(tensors):
        raise ValueError(f"{label}: this is no LoRA for SDXL. {_guess_content(tensors)}")
    check_tensors(tensors, label)


def check_tensors(tensors: Mapping[str, Tensor], label: str) -> None:
    """Check that these are the tensors of a LoRA of a kind that is read, for whatever model, in
    numbers.

    Raises:
        ValueError: they are not.
    """
    _refuse_other_files(tensors, label)
    factors = {name: tensor for name, tensor in tensors.items() if _match_weight(name)}
    if not factors:
        raise ValueError(f"{label}: this is no LoRA. {_guess_content(tensors)}")
    for name, tensor in factors.items():
        _require_floats(tensor, f"{label}: {name}")
    broken = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not is_finite(tensor)]
    if broken:
        raise ValueError(
            f"{label}: {len(broken)} of {len(tensors)} tensors hold values that are not finite: "
            f"{name_examples(broken)}. The file is of no use; take an earlier checkpoint"
        )


def list_ranks(tensors: Mapping[str, Tensor]) -> list[int]:
    """The rank of every module of a LoRA or DoRA."""
    matches = ((_FACTOR.fullmatch(name), tensor) for name, tensor in tensors.items())
    return [tensor.shape[0] for match, tensor in matches if match and match["role"] in ("down", "A") and tensor.ndim]


def find_kind(tensors: Mapping[str, Tensor]) -> str:
    """Tell by the names of a LoRA's tensors which kind it is, in the words of the setting
    `adapter`.
    """
    for kind in ("loha", "lokr", "dora"):
        endings = tuple(f".{ending}" for ending in MODULES[kind].endings.values() if "lora" not in ending)
        if any(name.endswith(endings) for name in tensors):
            return kind
    return "lora"


def _refuse_other_files(tensors: Mapping[str, Tensor], label: str) -> None:
    _refuse_long_names(tensors, label)
    refuse_other_kinds(tensors, label)


def _refuse_long_names(tensors: Mapping[str, Tensor], label: str) -> None:
    longest = max(tensors, key=len, default="")
    if len(longest) > MAX_NAME_LENGTH:
        raise ValueError(f"{label}: not a LoRA: a tensor has a name of {len(longest)} characters ({longest:.40}...)")


def load_tensors(path: Path, *, label: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return a file's tensors and PEFT settings (rank, alpha, patterns; empty if it has none)."""
    label = label or str(path)
    if path.suffix.lower() != ".safetensors":
        raise ValueError(
            f"{label}: only .safetensors files are read. A .pt, .bin or .ckpt file is a pickle, which can run any "
            "code when opened"
        )
    if not path.is_file():
        raise ValueError(f"{label}: there is no such file")
    try:
        tensors, metadata = read_weights(path)
    except OSError as error:
        raise ValueError(f"{label}: cannot be read ({error.strerror or error})") from error
    except SafetensorError as error:
        raise ValueError(f"{label}: not a whole .safetensors file ({error}). Download or copy it again") from error
    return tensors, _read_peft_settings(path, metadata)


def _read_peft_settings(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Read the settings from the header (diffusers) or from adapter_config.json next to
    `adapter_model.safetensors` (PEFT).
    """
    if "lora_adapter_metadata" in metadata:
        return _parse_settings(metadata["lora_adapter_metadata"], f"{path}: lora_adapter_metadata in its header")
    config = path.with_name("adapter_config.json")
    if path.name == "adapter_model.safetensors" and config.is_file():
        try:
            return _parse_settings(config.read_text(encoding="utf-8"), str(config))
        except UnicodeDecodeError as error:
            raise ValueError(f"{config}: not UTF-8 text ({error})") from error
    return {}


def _parse_settings(text: str, label: str) -> dict[str, Any]:
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{label} is not valid JSON ({error}). Save the LoRA again") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{label} is not a JSON object. Save the LoRA again")
    return settings


_FACTOR = re.compile(
    r"(?P<base>.+?)"
    r"(?:\.lora_|[._]lora\.|\.lora_linear_layer\.)(?P<role>down|up|A|B)"
    r"(?:\.(?!weight$|bias$)\w+)?"  # PEFT's name of the adapter
    r"(?:\.weight)?"
)
_ALPHA = re.compile(r"(?P<base>.+?)(?:[._]lora|\.lora_linear_layer)?\.(?P<role>alpha)")
_OTHER = re.compile(r"(?P<base>.+?)\.(?P<role>hada_w[12]_[ab]|lokr_w[12](_[ab])?|dora_scale)")
_ROLES = {"A": "down", "B": "up", "dora_scale": "magnitude"}


def _match_weight(name: str) -> re.Match[str] | None:
    return _FACTOR.fullmatch(name) or _OTHER.fullmatch(name)


def _group_by_module(
    tensors: Mapping[str, Tensor],
    names: ModuleNames,
    label: str,
    pass_over: Callable[[list[str]], None] | None,
) -> dict[ModuleKey, dict[str, Tensor]]:
    """Group the tensors of each module: "down", "up", "alpha", "magnitude", and those of other
    kinds by LyCORIS' words.
    """
    parts: dict[ModuleKey, dict[str, Tensor]] = {}
    unmatched, unused = [], []
    for name, tensor in tensors.items():
        match = _match_weight(name) or _ALPHA.fullmatch(name)
        base = _normalize_base(match["base"]) if match else None
        key = names.spellings.get(base) if base else None
        if match is None or key is None:
            is_unused = pass_over is not None and (match is None or base in names.unused)
            (unused if is_unused else unmatched).append(name)
            continue
        role = _ROLES.get(match["role"], match["role"])
        if role in parts.setdefault(key, {}):
            raise ValueError(f"{label}: {names[key]} appears twice, once as {name}")
        parts[key][role] = tensor
    if unmatched or not parts:
        misfits = unmatched or unused
        raise ValueError(
            f"{label}: {len(misfits)} of {len(tensors)} keys do not fit this model: {name_examples(misfits)}. "
            f"{_guess_content(tensors)}"
        )
    if pass_over is not None and unused:
        pass_over(unused)
    return parts


def _normalize_base(base: str) -> str:
    """Remove wrapper levels from names such as `unet.down_blocks.1...attn1.processor.to_q`, and
    replace dots by underscores.
    """
    return flatten_name(base.replace("base_model.model.", "").replace(".processor.", "."))


def _build_module(
    key: ModuleKey, parts: Mapping[str, Tensor], settings: Mapping[str, Any], names: ModuleNames, label: str
) -> AdapterModule:
    weights = {role: tensor for role, tensor in parts.items() if role != "alpha"}
    for role, tensor in weights.items():
        _require_floats(tensor, f"{label}, {role}")
    if any(role.startswith("hada_") for role in weights):
        return _build_loha(weights, parts, label)
    if any(role.startswith("lokr_") for role in weights):
        return _build_lokr(weights, parts, label)
    return _build_lora(key, parts, settings, names, label)


def _build_loha(weights: Mapping[str, Tensor], parts: Mapping[str, Tensor], label: str) -> LohaModule:
    fields = _rename(weights, LohaModule, label)
    _require(fields, ("w1_a", "w1_b", "w2_a", "w2_b"), label)
    shapes = {name: tensor.shape for name, tensor in fields.items()}
    outputs, inputs, ranks = (
        {shapes["w1_a"][0], shapes["w2_a"][0]},
        {shapes["w1_b"][-1], shapes["w2_b"][-1]},
        {shapes["w1_a"][-1], shapes["w2_a"][-1], shapes["w1_b"][0], shapes["w2_b"][0]},
    )
    if any(len(shape) != 2 for shape in shapes.values()) or (len(outputs), len(inputs), len(ranks)) != (1, 1, 1):
        raise _do_not_belong(fields, label)
    return LohaModule(**fields, alpha=_read_other_alpha(parts, rank=fields["w1_b"].shape[0], label=label))


def _build_lokr(weights: Mapping[str, Tensor], parts: Mapping[str, Tensor], label: str) -> LokrModule:
    fields = _rename(weights, LokrModule, label)
    for name in ("w1", "w2"):
        low = f"{name}_a", f"{name}_b"
        if name not in fields:
            _require(fields, low, label)
        elif any(half in fields for half in low):
            raise ValueError(f"{label} has {name} twice, whole and in two factors")
        left, right = (fields.get(half) for half in low)
        if left is not None and right is not None and (left.ndim, right.ndim, left.shape[1]) != (2, 2, len(right)):
            raise _do_not_belong(fields, label)
        if name in fields and fields[name].ndim not in (2, 4):
            raise _do_not_belong(fields, label)
    module = LokrModule(alpha=1.0, **fields)
    return LokrModule(alpha=_read_other_alpha(parts, rank=module.rank, label=label), **fields)


def _rename(weights: Mapping[str, Tensor], kind: type[AdapterModule], label: str) -> dict[str, Tensor]:
    """Return the tensors by the fields of the kind."""
    fields = {ending: field for field, ending in kind.endings.items()}
    surplus = [role for role in weights if role not in fields]
    if surplus:
        raise ValueError(f"{label} has {', '.join(surplus)} next to a {kind.kind}; only one kind per module is read")
    return {fields[role]: tensor for role, tensor in weights.items()}


def _require(fields: Mapping[str, Tensor], wanted: Iterable[str], label: str) -> None:
    missing = [name for name in wanted if name not in fields]
    if missing:
        raise ValueError(f"{label} has no {' and no '.join(missing)} weight; the file is not complete")


def _do_not_belong(fields: Mapping[str, Tensor], label: str) -> ValueError:
    shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in fields.items())
    return ValueError(f"{label}: {shapes} do not belong together")


def _read_other_alpha(parts: Mapping[str, Tensor], *, rank: int, label: str) -> float:
    return _read_alpha_tensor(parts["alpha"], label) if "alpha" in parts else float(rank)


def _build_lora(
    key: ModuleKey, parts: Mapping[str, Tensor], settings: Mapping[str, Any], names: ModuleNames, label: str
) -> LoraModule:
    _require(parts, ("down", "up"), label)
    down, up = parts["down"], parts["up"]
    if down.ndim not in (2, 4) or up.ndim not in (2, 4) or up.shape[1] != down.shape[0] or not down.shape[0]:
        raise ValueError(f"{label}: down {list(down.shape)} and up {list(up.shape)} do not belong together")
    if "alpha" in parts:
        alpha = _read_alpha_tensor(parts["alpha"], label)
    else:
        alpha = read_peft_alpha(key, down.shape[0], settings, names.main_component, label)
    if "magnitude" not in parts:
        return LoraModule(down, up, alpha)
    magnitude = parts["magnitude"]
    if sorted(magnitude.shape)[:-1] != [1] * (magnitude.ndim - 1):
        raise _do_not_belong(parts, label)
    return DoraModule(down, up, alpha, magnitude)


def read_peft_alpha(key: ModuleKey, rank: int, settings: Mapping[str, Any], main_component: str, label: str) -> float:
    """Read a module's alpha from PEFT's settings; `rank` if they have none."""
    return _read_alpha(key[1], rank, _select_settings(key[0], settings, main_component), label)


def _require_floats(weight: Tensor, label: str) -> None:
    if not weight.is_floating_point():
        dtype = str(weight.dtype).removeprefix("torch.")
        raise ValueError(
            f"{label}: weights of type {dtype}; allowed are floating-point numbers. Take the LoRA before it was "
            "quantized"
        )


def _read_alpha_tensor(alpha: Tensor, label: str) -> float:
    if alpha.numel() != 1 or alpha.dtype == torch.bool or alpha.is_complex():
        dtype = str(alpha.dtype).removeprefix("torch.")
        raise ValueError(f"{label}: alpha must be one number, got {list(alpha.shape)} of type {dtype}")
    return float(alpha.item())


def _select_settings(component: str, settings: Mapping[str, Any], main_component: str) -> Mapping[str, Any]:
    """Select PEFT's settings of one component. Those without a prefix are the main component's."""
    prefix = f"{component}."
    prefixed = {name.removeprefix(prefix): value for name, value in settings.items() if name.startswith(prefix)}
    return prefixed or (settings if component == main_component else {})


def _read_alpha(path: str, rank: int, settings: Mapping[str, Any], label: str) -> float:
    """Read a module's alpha by PEFT's rule: `alpha_pattern` that matches the end of the module's
    path, else `lora_alpha`. rsLoRA divides by sqrt(rank) instead of rank.
    """
    alpha = settings.get("lora_alpha", rank)
    patterns = settings.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise ValueError(f"{label}: alpha_pattern in the file's settings must be an object, got {patterns!r:.80}")
    for pattern, special in patterns.items():
        if f".text_model.{path}".endswith("." + _read_path_end(pattern, label)):
            alpha = special
            break
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
        raise ValueError(f"{label}: lora_alpha in the file's settings must be a finite number, got {alpha!r:.80}")
    return float(alpha * math.sqrt(rank) if settings.get("use_rslora") else alpha)


def _read_path_end(pattern: str, label: str) -> str:
    """The end of a path that PEFT's pattern means. PEFT matches regular expressions, but one from a
    file could run forever; what programs write are plain ends of paths.
    """
    plain = pattern.removeprefix(r".*\.").replace(r"\.", ".")
    if not re.fullmatch(r"[\w.]+", plain):
        raise ValueError(
            f"{label}: alpha_pattern {pattern!r:.80} in the file's settings is a regular expression, which is not "
            "read from files. Save the LoRA again in kohya's format, which has each module's own alpha"
        )
    return plain


def _guess_content(tensors: Mapping[str, Tensor]) -> str:
    if not any(map(_match_weight, tensors)):
        return "The file holds no LoRA weights; is it a whole model?"
    return guess_base_model(tensors)
