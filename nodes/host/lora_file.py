"""Writing a LORA_MODEL into the loras folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...trainers.atomic_write import atomic_write
from ...trainers.lora_file_name import check_lora_file_name
from ...trainers.lora_format import require_same_tensors, save_lora
from ...trainers.run_folder import free_path
from .lora import GraphLora


@dataclass(frozen=True)
class SavedLora:
    """`name` is the file's in LoRA loaders: its path below the loras folder. `num_modules` were found when it was read back."""

    path: Path
    name: str
    num_modules: int
    num_that_load: int | None

    def text(self) -> str:
        size = self.path.stat().st_size / 2**20
        loads = f"{self.num_that_load}/{self.num_modules} modules load" if self.num_that_load is not None else f"{self.num_modules} modules"
        return f"{self.name}: {loads}, {size:.1f} MB, read back and verified"


def save_to_loras_folder(lora: Mapping[str, Tensor], filename: str, *, folder: Path, preview: Tensor | None) -> SavedLora:
    """Write the LoRA under the first free name, read it back, and put the preview [B, height, width, 3] beside it.

    Raises:
        ValueError: the name cannot be a file's, or this is no LORA_MODEL.
        RuntimeError: what was read back is not what was written, not finite, or changes nothing.
    """
    tensors = {name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in lora.items()}
    modules = {name.rsplit(".", 2)[0] for name in tensors if name.endswith((".lora_up.weight", ".lora_B.weight", ".diff"))}
    if not modules:
        raise ValueError(f"this LORA_MODEL holds no LoRA weights ({', '.join(list(tensors)[:3]) or 'nothing at all'}). Connect Train LoRA's lora output")
    name = check_lora_file_name(filename)
    path = free_path(folder / name.with_name(f"{name.name}.safetensors"), companions=(".png",) if preview is not None else ())
    save_lora(path, tensors, lora.metadata if isinstance(lora, GraphLora) else {})
    require_same_tensors(path, tensors)
    if preview is not None:
        _save_preview(preview, path.with_suffix(".png"))
    num_that_load = lora.num_modules if isinstance(lora, GraphLora) else None
    return SavedLora(path, path.relative_to(folder).as_posix(), len(modules), num_that_load)


def _save_preview(images: Tensor, path: Path) -> None:
    pixels = (images[0].float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    with atomic_write(path) as temporary:
        Image.fromarray(np.ascontiguousarray(pixels)).save(temporary, format="PNG")
