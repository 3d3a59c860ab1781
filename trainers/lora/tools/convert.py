"""Writes a LoRA under the names of other programs."""

from collections.abc import Mapping

from torch import Tensor

from ...wording import name_examples
from .content import LoraContent
from .kinds import DIFFERENCES, UP, to_low_rank


def rename(content: LoraContent, new_names: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the tensors with each module under its new name, and the rest of their names kohya's.
    Modules that `new_names` lacks keep theirs.
    """
    named = {
        f"{new_names.get(name, name)}.{role}": tensor
        for name, parts in content.modules.items()
        for role, tensor in parts.items()
    }
    return {**named, **content.others}


def rename_for_peft(content: LoraContent, new_names: Mapping[str, str], label: str) -> dict[str, Tensor]:
    """Return the tensors as PEFT names them (lora_A, lora_B). PEFT's files have no alpha, so each
    `up` is scaled instead: its alpha is its rank then, with which every reader begins.

    Raises:
        ValueError: a module is no plain LoRA, or has no name there.
    """
    unknown = [name for name in content.modules if name not in new_names]
    if unknown:
        raise ValueError(f"{label}: diffusers has no names for {len(unknown)} of its modules: {name_examples(unknown)}")
    kinds = sorted(set(content.kinds()) - {"LoRA"})
    others = [name for parts in content.modules.values() for name in parts if name in DIFFERENCES] + [*content.others]
    if kinds or others:
        found = " and ".join(kinds) or name_examples(others)
        raise ValueError(
            f"{label}: it holds {found}; diffusers loads plain LoRA only. Resize it first: LoHa and LoKr become LoRA"
        )
    tensors: dict[str, Tensor] = {}
    for name, parts in content.modules.items():
        module = to_low_rank(parts, f"{label}: {name}")
        scale = module.alpha / module.rank
        dtype = parts[UP].dtype
        tensors[f"{new_names[name]}.lora_A.weight"] = module.down.to(dtype).contiguous()
        tensors[f"{new_names[name]}.lora_B.weight"] = module.up if scale == 1 else (module.up.float() * scale).to(dtype)
    return tensors


def add_paths(content: LoraContent, paths: Mapping[str, str]) -> dict[str, str]:
    """Return the dotted path of each module of the network, by its kohya name: those that the file
    shows, else those of the base model in `paths`.
    """
    return {name: found for name in content.modules if (found := content.paths.get(name) or paths.get(name))}
