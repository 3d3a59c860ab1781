"""Converts a LoRA between kohya's, diffusers' and ComfyUI's names. Names with dots of other models
than SDXL come from their own file: kohya's have underscores for dots and for underscores.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from ..lora.modules import ModuleNames
from ..lora.tools.content import NETWORK, LoraContent
from ..lora.tools.convert import rename, rename_for_peft
from ..wording import name_examples
from .checkpoint_layers import list_layers, open_checkpoint
from .lora_spellings import diffusers_names, host_names, names_of_checkpoint, standard_names
from .model.layout import LDM_PREFIX


@dataclass(frozen=True)
class BaseNames:
    """`names` are SDXL's modules; `paths` are those of another model's network by kohya's names."""

    names: ModuleNames
    paths: Mapping[str, str] = field(default_factory=dict)


def standard_base_names() -> BaseNames:
    return BaseNames(standard_names())


def read_base_names(path: Path) -> BaseNames:
    """Read the names in a base model's file.

    Raises:
        ValueError: it is not a .safetensors file of a model.
    """
    with open_checkpoint(path) as file:
        if any(name.startswith(LDM_PREFIX["text_encoder_2"]) for name in file.names):
            return BaseNames(names_of_checkpoint(file.names))
        layers = list_layers(file)
    paths = {name: layer.path for name, layer in layers.items() if name.startswith(NETWORK)}
    return BaseNames(standard_names(), paths)


def convert(content: LoraContent, base: BaseNames, *, to: str, label: str) -> dict[str, Tensor]:
    """Return a file's tensors with the names of `to`: kohya, diffusers or comfyui.

    Raises:
        ValueError: they cannot be told, or diffusers loads no such LoRA.
    """
    if to == "diffusers":
        return _to_diffusers(content, base, label)
    if to == "comfyui":
        return rename(content, _find_host_names(content, base, label))
    dotted = [name for name in content.modules if "." in name and name.startswith("transformer.")]
    if dotted:
        raise ValueError(
            f"{label}: {len(dotted)} modules have diffusers' names of another model than SDXL "
            f"({name_examples(dotted, 1)}), whose layers are cut differently. ComfyUI loads such a file as it is"
        )
    return content.tensors()


def _to_diffusers(content: LoraContent, base: BaseNames, label: str) -> dict[str, Tensor]:
    if not content.keys:
        raise ValueError(
            f"{label}: it is not for SDXL. diffusers cuts the layers of other models differently, and loads a LoRA "
            "with kohya's names by itself: convert it to kohya"
        )
    return rename_for_peft(content, diffusers_names(base.names), label)


def _find_host_names(content: LoraContent, base: BaseNames, label: str) -> dict[str, str]:
    if content.keys:
        return host_names(base.names)
    paths = {**base.paths, **content.paths}
    unknown = [name for name in content.modules if name.startswith(NETWORK) and name not in paths]
    if unknown:
        raise ValueError(
            f"{label}: which of the underscores in {name_examples(unknown, 1)} are dots? Give the base model's file "
            "with --base"
            if not base.paths
            else f"{label}: {len(unknown)} modules are not in the base model: {name_examples(unknown)}"
        )
    return {name: f"diffusion_model.{path}" for name, path in paths.items()}
