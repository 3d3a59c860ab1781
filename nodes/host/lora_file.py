"""Writes a LORA_MODEL into the loras folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...trainers.files.atomic_write import atomic_write
from ...trainers.files.names import save_under_free_name
from ...trainers.lora.file import require_sound, save_lora
from ...trainers.lora.file_name import check_lora_file_name
from .lora import GraphLora

# The name of one tensor in each module, for every kind of module: LoRA, LoHa, LoKr, OFT, and the
# differences of norms and biases that core's trainer makes.
_MODULE_ENDINGS = (
    ".lora_up.weight",
    ".lora_B.weight",
    ".hada_w1_a",
    ".lokr_w1",
    ".lokr_w1_a",
    ".oft_blocks",
    ".diff",
    ".diff_b",
)


@dataclass(frozen=True)
class SavedLora:
    """`name` is the file's name in LoRA loaders: its path below the loras folder. `num_modules`
    were found in the file when it was read back.
    """

    path: Path
    name: str
    num_modules: int
    num_that_load: int | None

    def facts(self) -> dict[str, Any]:
        """For API clients, in the history."""
        return {"path": str(self.path), "lora_name": self.name, "modules": self.num_modules}

    def text(self) -> str:
        size = self.path.stat().st_size / 2**20
        loads = (
            f"{self.num_that_load}/{self.num_modules} modules load"
            if self.num_that_load is not None
            else f"{self.num_modules} modules"
        )
        return f"{self.name}: {loads}, {size:.1f} MB, read back and verified"


def save_to_loras_folder(
    lora: Mapping[str, Tensor], filename: str, *, folder: Path, preview: Tensor | None
) -> SavedLora:
    """Write the LoRA under the first free name, read it back, and save the preview [B, height,
    width, 3] next to it.

    Raises:
        ValueError: the name cannot be a file name, or this is not a LORA_MODEL.
        RuntimeError: its values are not finite, it changes nothing, or what was read back is not
            what was written. There is no file then.
    """
    name = check_lora_file_name(filename)
    tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in lora.items()}
    modules = _find_modules(tensors)
    metadata = lora.metadata if isinstance(lora, GraphLora) else {}
    wanted = folder / name.with_name(f"{name.name}.safetensors")

    def save(path: Path) -> None:
        save_lora(path, tensors, metadata)

    require_sound(tensors, wanted)
    path, _ = save_under_free_name(wanted, save, companions=(".png",) if preview is not None else ())
    if preview is not None:
        _save_preview(preview, path.with_suffix(".png"))
    num_that_load = lora.num_modules if isinstance(lora, GraphLora) else None
    return SavedLora(path, path.relative_to(folder).as_posix(), len(modules), num_that_load)


def _find_modules(tensors: Mapping[str, Tensor]) -> set[str]:
    """Find the modules. Raises ValueError if there are none."""
    modules = {name.removesuffix(ending) for name in tensors for ending in _MODULE_ENDINGS if name.endswith(ending)}
    if not modules:
        raise ValueError(
            f"this LORA_MODEL holds no LoRA weights ({', '.join(list(tensors)[:3]) or 'nothing at all'}). Connect "
            "Train LoRA's lora output"
        )
    return modules


def _save_preview(images: Tensor, path: Path) -> None:
    pixels = (images[0].float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    with atomic_write(path) as temporary:
        Image.fromarray(np.ascontiguousarray(pixels)).save(temporary, format="PNG")
