"""Writes a LoRA file and verifies it. read.py reads files; header.py makes the metadata.

Files have kohya's names with `.alpha`, the only form that ComfyUI, Forge, A1111, sd-scripts and
diffusers all load completely and at the right strength.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..files.atomic_write import atomic_write
from ..wording import name_examples
from .header import hash_tensors, serialize
from .modules import LoraModule, ModuleKey, ModuleNames
from .read import read_lora

ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Verification:
    """The result of loading a saved file. `up_norm` is the Euclidean norm of all up weights."""

    num_modules: int
    num_expected: int
    up_norm: float

    def text(self) -> str:
        return f"{self.num_modules}/{self.num_expected} modules load"


def to_kohya(
    modules: Mapping[ModuleKey, LoraModule], names: Mapping[ModuleKey, str], *, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Convert modules to the file's tensors: contiguous, on the CPU, in the order of `names`.

    Raises:
        ValueError: `modules` has a key that `names` lacks.
    """
    unknown = [key for key in modules if key not in names]
    if unknown:
        raise ValueError(
            f"{len(unknown)} LoRA modules have no place in the model: {name_examples(' '.join(key) for key in unknown)}"
        )
    state_dict = {}
    for key, name in names.items():
        if key not in modules:
            continue
        module = modules[key]
        state_dict[f"{name}.lora_down.weight"] = _export(module.down, dtype)
        state_dict[f"{name}.lora_up.weight"] = _export(module.up, dtype)
        state_dict[f"{name}.alpha"] = _make_alpha_tensor(module.alpha, dtype)
    return state_dict


def _export(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.detach().to("cpu", dtype, copy=True).contiguous()


def _make_alpha_tensor(alpha: float, dtype: torch.dtype) -> Tensor:
    """Return a scalar tensor; float32 if the file's dtype would round alpha, as that would change
    the strength of the whole module.
    """
    rounded = torch.tensor(alpha, dtype=dtype)
    return rounded if rounded.item() == alpha else torch.tensor(alpha, dtype=torch.float32)


def save_lora(
    path: Path,
    state_dict: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    *,
    check: Callable[[dict[str, Tensor]], ResultT] = lambda _: None,
    overwrite: bool = False,
) -> ResultT:
    """Write a `.safetensors` file with the hashes by which model managers find it again.

    `check` gets the tensors that were read back, before the file gets its name: if it raises, there
    is no file. Returns what it returns.

    Raises:
        FileExistsError: the name is taken, and `overwrite` is off.
        OSError: the disk is full or the folder is not writable.
    """
    tensors = dict(state_dict)
    header = {**metadata, **hash_tensors(tensors, metadata)}
    with atomic_write(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(serialize(tensors, header))
        return check(_read_back(temporary, path))


def _read_back(temporary: Path, path: Path) -> dict[str, Tensor]:
    try:
        return load_file(temporary)
    except SafetensorError as error:
        raise RuntimeError(f"{path}: what was written cannot be read back ({error}). Is the disk damaged?") from error


def verify_lora(
    source: Path | Mapping[str, Tensor],
    names: ModuleNames,
    *,
    expected: Collection[ModuleKey] | None = None,
    label: Path | None = None,
) -> Verification:
    """Check that a file, or the tensors of one, hold what was trained: the `expected` modules, by
    default all of `names`. Errors call tensors by `label`.

    Raises:
        RuntimeError: the file cannot be read, a module is missing or was not trained, a value is
            not finite, or all updates are zero.
    """
    expected = dict.fromkeys(names if expected is None else expected)
    path = label or (source if isinstance(source, Path) else Path("the LoRA"))
    try:
        modules = read_lora(source, names)
    except ValueError as error:
        raise RuntimeError(f"the saved LoRA cannot be loaded: {error}") from error
    _check_complete(path, modules, names, expected)
    broken = [names[key] for key, module in modules.items() if not module.is_finite()]
    if broken:
        raise RuntimeError(
            f"{path}: {len(broken)} of {len(modules)} modules hold values that are not finite: {name_examples(broken)}"
        )
    up_norm = math.sqrt(sum(module.up.double().square().sum().item() for module in modules.values()))
    if up_norm == 0:
        raise RuntimeError(
            f"{path}: all up weights are zero, so the LoRA changes nothing. Was the learning rate 0, or was nothing "
            "trained?"
        )
    return Verification(num_modules=len(modules), num_expected=len(expected), up_norm=up_norm)


def holds_tensors(path: Path, tensors: Mapping[str, Tensor]) -> bool:
    """Tell whether there is a file with these tensors and no others."""
    try:
        found = load_file(path)
    except (OSError, SafetensorError):
        return False
    return found.keys() == tensors.keys() and all(
        found[name].dtype == tensor.dtype and torch.equal(found[name], tensor) for name, tensor in tensors.items()
    )


def require_same_tensors(path: Path, found: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Compare what was read back, of whatever LoRA, with what was written.

    Raises:
        RuntimeError: a tensor differs, a value is not finite, or all up weights are zero.
    """
    different = [
        name
        for name in {**tensors, **found}
        if name not in found or name not in tensors or not torch.equal(found[name], tensors[name])
    ]
    if different:
        raise RuntimeError(
            f"{path}: {len(different)} tensors differ from what was written: {name_examples(different)}. "
            "Is the disk damaged?"
        )
    broken = [name for name, tensor in found.items() if not bool(tensor.isfinite().all())]
    if broken:
        raise RuntimeError(f"{path}: {len(broken)} tensors hold values that are not finite: {name_examples(broken)}")
    ups = [tensor for name, tensor in found.items() if name.endswith((".lora_up.weight", ".lora_B.weight"))]
    if ups and not any(bool(tensor.any()) for tensor in ups):
        raise RuntimeError(
            f"{path}: all up weights are zero, so the LoRA changes nothing. Was the learning rate 0, or was nothing "
            "trained?"
        )


def _check_complete(
    path: Path, modules: Mapping[ModuleKey, LoraModule], names: Mapping[ModuleKey, str], expected: Collection[ModuleKey]
) -> None:
    missing = [" ".join(key) for key in expected if key not in modules]
    if missing:
        raise RuntimeError(f"{path}: {len(missing)} of {len(expected)} modules are missing: {name_examples(missing)}")
    surplus = [names[key] for key in modules if key not in expected]
    if surplus:
        raise RuntimeError(f"{path}: {len(surplus)} modules were not trained: {name_examples(surplus)}")
