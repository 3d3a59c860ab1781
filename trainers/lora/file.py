"""Writes a LoRA file and verifies it. read.py reads files; header.py makes the metadata.

Files have kohya's names with `.alpha`, the only form that ComfyUI, Forge, A1111, sd-scripts and
diffusers all load completely and at the right strength. DoRA, LoHa and LoKr have LyCORIS' names for
their tensors.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..files.atomic_write import atomic_write
from ..files.weight_file import ChangedFile, read_weights
from ..files.weight_writer import holds, lay_out
from ..wording import name_examples
from .header import hash_tensors
from .modules import AdapterModule, DoraModule, ModuleKey, ModuleNames, is_finite
from .read import read_lora


@dataclass(frozen=True)
class Verification:
    """The result of loading a saved file. `learned_norm` is the Euclidean norm of all matrices that
    start at zero: the `up` of a LoRA.
    """

    num_modules: int
    num_expected: int
    learned_norm: float

    def text(self) -> str:
        return f"{self.num_modules}/{self.num_expected} modules load"


def to_kohya(
    modules: Mapping[ModuleKey, AdapterModule], names: Mapping[ModuleKey, str], *, dtype: torch.dtype
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
        for ending, tensor in modules[key].tensors().items():
            state_dict[f"{name}.{ending}"] = _export(tensor, _choose_dtype(ending, dtype))
        state_dict[f"{name}.alpha"] = _make_alpha_tensor(modules[key].alpha, dtype)
    return state_dict


def _choose_dtype(ending: str, dtype: torch.dtype) -> torch.dtype:
    """Lengths stay in float32: in bf16 their error would be as large as what is learned."""
    return torch.float32 if ending == DoraModule.endings["magnitude"] else dtype


def _export(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.detach().to("cpu", dtype, copy=True).contiguous()


def _make_alpha_tensor(alpha: float, dtype: torch.dtype) -> Tensor:
    """Return a scalar tensor; float32 if the file's dtype would round alpha, as that would change
    the strength of the whole module.
    """
    rounded = torch.tensor(alpha, dtype=dtype)
    return rounded if rounded.item() == alpha else torch.tensor(alpha, dtype=torch.float32)


def save_lora(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, overwrite: bool = False
) -> None:
    """Write a `.safetensors` file with the hashes by which model managers find it again, and read
    it back before it gets its name. The tensors must be contiguous and on the CPU.

    Raises:
        FileExistsError: the name is taken, and `overwrite` is off.
        OSError: the disk is full or the folder is not writable.
        RuntimeError: what was read back is not what was written. There is no file then.
    """
    header = {**metadata, **hash_tensors(tensors, metadata)}
    with atomic_write(path, overwrite=overwrite) as temporary:
        with open(temporary, "wb") as stream:
            stream.writelines(lay_out(tensors, header))
        if not holds(temporary, lay_out(tensors, header)):
            raise RuntimeError(f"{path}: what was read back is not what was written. Is the disk damaged?")


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
    learned_norm = math.hypot(
        *(torch.linalg.vector_norm(module.learned, dtype=torch.float64).item() for module in modules.values())
    )
    if learned_norm == 0:
        raise _changes_nothing(path)
    return Verification(num_modules=len(modules), num_expected=len(expected), learned_norm=learned_norm)


def holds_tensors(path: Path, tensors: Mapping[str, Tensor]) -> bool:
    """Tell whether there is a file with these tensors and no others."""
    try:
        found, _ = read_weights(path)
    except (OSError, SafetensorError, ChangedFile):
        return False
    return found.keys() == tensors.keys() and all(
        found[name].dtype == tensor.dtype and torch.equal(found[name], tensor) for name, tensor in tensors.items()
    )


# The matrices that start at zero, of each kind.
_LEARNED = (".lora_up.weight", ".lora_B.weight", ".hada_w2_a", ".lokr_w2", ".lokr_w2_b")


def require_sound(tensors: Mapping[str, Tensor], label: Path) -> None:
    """Check a LoRA of whatever kind.

    Raises:
        RuntimeError: a value is not finite, or nothing was learned.
    """
    broken = [name for name, tensor in tensors.items() if not is_finite(tensor)]
    if broken:
        raise RuntimeError(
            f"{label}: {len(broken)} of {len(tensors)} tensors hold values that are not finite: "
            f"{name_examples(broken)}. Train with a lower learning rate"
        )
    ups = [tensor for name, tensor in tensors.items() if name.endswith(_LEARNED)]
    if ups and not any(bool(tensor.any()) for tensor in ups):
        raise _changes_nothing(label)


def _changes_nothing(label: Path) -> RuntimeError:
    return RuntimeError(
        f"{label}: all up weights are zero, so the LoRA changes nothing. Was the learning rate 0, or was nothing "
        "trained?"
    )


def _check_complete(
    path: Path,
    modules: Mapping[ModuleKey, AdapterModule],
    names: Mapping[ModuleKey, str],
    expected: Collection[ModuleKey],
) -> None:
    missing = [" ".join(key) for key in expected if key not in modules]
    if missing:
        raise RuntimeError(f"{path}: {len(missing)} of {len(expected)} modules are missing: {name_examples(missing)}")
    surplus = [names[key] for key in modules if key not in expected]
    if surplus:
        raise RuntimeError(f"{path}: {len(surplus)} modules were not trained: {name_examples(surplus)}")
