"""The content of a LoRA file of any kind, module by module, under kohya's names: what the tools
read and write. read.py reads LoRAs to train on.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...files.weight_file import open_weights
from ...wording import name_examples
from ..modules import LoraModule, ModuleKey, ModuleNames, flatten_name
from ..other_kinds import find_other_kind
from ..read import load_tensors, read_peft_alpha
from .kinds import ALPHA, DOWN, MID, UP, Parts, name_kind

NETWORK = "lora_unet_"  # kohya's prefix of the UNet or transformer
_HOST_NETWORK = "diffusion_model."
_ROLES = {"down": DOWN, "A": DOWN, "up": UP, "B": UP, "mid": MID}
_PARTS = (
    re.compile(
        r"(?P<base>.+?)(?:\.lora_|[._]lora\.|\.lora_linear_layer\.)(?P<role>down|up|mid|A|B)"
        r"(?:\.(?!weight$|bias$)\w+)?(?:\.weight)?"  # PEFT's name of the adapter
    ),
    re.compile(r"(?P<base>.+)\.(?P<role>hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2)|dora_scale|diff|diff_b)"),
    re.compile(r"(?P<base>.+?)(?:[._]lora|\.lora_linear_layer)?\.(?P<role>alpha)"),
)
_WRAPPERS = ("base_model.model.", "unet.base_model.model.")


@dataclass(frozen=True)
class LoraContent:
    """`modules` have kohya's names where they can be told, else the file's own. `paths` are those
    in the network whose dots the file shows. `keys` are the modules' in SDXL; there are none if the
    LoRA is for another model. `others` are tensors of no module, such as embeddings.
    """

    modules: dict[str, Parts]
    metadata: dict[str, str] = field(default_factory=dict)
    others: dict[str, Tensor] = field(default_factory=dict)
    paths: dict[str, str] = field(default_factory=dict)
    keys: dict[str, ModuleKey] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of a file with kohya's names."""
        named = {f"{name}.{role}": tensor for name, parts in self.modules.items() for role, tensor in parts.items()}
        return {**named, **self.others}

    def kinds(self) -> dict[str, int]:
        """How many modules there are of each kind."""
        kinds = [name_kind(parts) for parts in self.modules.values()]
        return {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}

    def with_modules(self, modules: dict[str, Parts]) -> "LoraContent":
        return replace(self, modules=modules)


@dataclass(frozen=True)
class LoraFile:
    """A file as it is. `settings` are PEFT's, from its header or from a file next to it."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    settings: dict[str, Any]


def read_file(path: Path) -> LoraFile:
    """Raises ValueError if it is not a complete .safetensors file."""
    tensors, settings = load_tensors(path)
    with open_weights(path) as file:
        return LoraFile(tensors, file.metadata, settings)


def read_content(path: Path, names: ModuleNames) -> LoraContent:
    """Read a file. `names` are SDXL's: its modules are known by every spelling.

    Raises:
        ValueError: not a complete .safetensors file, or not a LoRA, LoHa or LoKr.
    """
    file = read_file(path)
    return make_content(file.tensors, names, metadata=file.metadata, settings=file.settings, label=str(path))


def make_content(
    tensors: Mapping[str, Tensor],
    names: ModuleNames,
    *,
    metadata: Mapping[str, str] | None = None,
    settings: Mapping[str, Any] | None = None,
    label: str = "this LoRA",
) -> LoraContent:
    """Group the tensors of a file, or of ComfyUI's LORA_MODEL, by module. `settings` are PEFT's.

    Raises:
        ValueError: there is no LoRA in them, or one of a kind that the tools do not know.
    """
    grouped, others = _group(tensors)
    if not grouped:
        raise ValueError(f"{label}: the file holds no LoRA weights ({name_examples(tensors) or 'nothing at all'})")
    kind, found = find_other_kind(others)
    if kind:
        raise ValueError(f"{label}: this file is {kind} ({found}). The tools work with LoRA, LoHa and LoKr")
    keys = _find_keys(grouped, names)
    content = LoraContent({}, dict(metadata or {}), others)
    for base, parts in grouped.items():
        path = base.removeprefix(_HOST_NETWORK) if base.startswith(_HOST_NETWORK) else ""
        name = names[keys[base]] if keys else _to_kohya(base)
        if name in content.modules:
            raise ValueError(f"{label}: {name} appears twice, once as {base}")
        component, _, rest = base.partition(".")
        key, main = (keys[base], names.main_component) if keys else ((component, rest), component)
        content.modules[name] = _add_alpha(parts, settings or {}, key, main, f"{label}: {name}")
        if keys:
            content.keys[name] = keys[base]
        elif path:
            content.paths[name] = path
    return content


def to_parts(module: LoraModule, dtype: torch.dtype) -> Parts:
    """Return a module's tensors for a file. Its alpha is kept in float32 if `dtype` would round it:
    it is the strength of the whole module.
    """
    alpha = torch.tensor(module.alpha, dtype=dtype)
    if alpha.item() != module.alpha:
        alpha = torch.tensor(module.alpha, dtype=torch.float32)
    down, up = (weight.to("cpu", dtype, copy=True).contiguous() for weight in (module.down, module.up))
    return {DOWN: down, UP: up, ALPHA: alpha}


def find_dtype(contents: Iterable[LoraContent]) -> torch.dtype:
    """The finest number format of the weights; bfloat16 next to float16 needs float32."""
    found = {
        tensor.dtype
        for content in contents
        for parts in content.modules.values()
        for role, tensor in parts.items()
        if role != ALPHA and tensor.is_floating_point()
    }
    return found.pop() if len(found) == 1 else torch.float32


def _group(tensors: Mapping[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    grouped: dict[str, dict[str, Tensor]] = {}
    others: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        match = next((match for pattern in _PARTS if (match := pattern.fullmatch(name))), None)
        if match is None:
            others[name] = tensor
        else:
            grouped.setdefault(_strip(match["base"]), {})[_ROLES.get(match["role"], match["role"])] = tensor
    return grouped, others


def _strip(base: str) -> str:
    for wrapper in _WRAPPERS:
        base = base.replace(wrapper, "")
    return base.replace(".processor.", ".")


def _find_keys(bases: Iterable[str], names: ModuleNames) -> dict[str, ModuleKey]:
    """The modules in SDXL; none unless all of them are SDXL's."""
    keys = {base: names.spellings.get(flatten_name(base)) for base in bases}
    return {base: key for base, key in keys.items() if key} if all(keys.values()) else {}


def _to_kohya(base: str) -> str:
    """ComfyUI reads its own names of a network and kohya's alike. Others stay: not every reader
    knows them by another spelling.
    """
    return NETWORK + flatten_name(base.removeprefix(_HOST_NETWORK)) if base.startswith(_HOST_NETWORK) else base


def _add_alpha(
    parts: dict[str, Tensor], settings: Mapping[str, Any], key: ModuleKey, main_component: str, label: str
) -> dict[str, Tensor]:
    """Make the alpha of PEFT's settings a tensor, as in kohya's files."""
    if ALPHA in parts or DOWN not in parts or not settings:
        return parts
    alpha = read_peft_alpha(key, parts[DOWN].shape[0], settings, main_component, label)
    return {**parts, ALPHA: torch.tensor(alpha)}
