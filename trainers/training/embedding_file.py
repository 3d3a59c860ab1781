"""The file of trained tokens that belongs to a LoRA file: embeddings/NAME.safetensors beside it.

ComfyUI, Forge and A1111 read it from their folder of embeddings: clip_l [N, 768] and clip_g
[N, 1280] for SDXL.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..files.atomic_write import atomic_write
from ..lora.file import save_lora

FOLDER = "embeddings"


def find_embedding_path(lora: Path) -> Path:
    """Return where the tokens of that LoRA are, if it has any."""
    return lora.parent / FOLDER / lora.name


def save_embedding(lora: Path, vectors: Mapping[str, Tensor], *, word: str) -> Path:
    """Write the vectors in float32. The file of an earlier LoRA of that name is replaced.

    Raises:
        OSError, RuntimeError: as save_lora.
    """
    path = find_embedding_path(lora)
    path.parent.mkdir(exist_ok=True)
    tensors = {name: vector.detach().to("cpu", torch.float32, copy=True) for name, vector in vectors.items()}
    save_lora(path, tensors, {"modelspec.title": path.stem, "modelspec.trigger_phrase": word}, overwrite=True)
    return path


def explain_embedding(lora: Path, *, word: str) -> str:
    """Say what to do with the file."""
    path = find_embedding_path(lora)
    return (
        f"{path}: the new tokens. Copy it to the embeddings folder of ComfyUI or Forge, and in prompts write "
        f"embedding:{path.stem} (in Forge {path.stem}) in place of {word}"
    )


def copy_embedding(lora: Path, copy: Path) -> None:
    """Copy the tokens of a LoRA, if it has any, to where those of its copy are."""
    source, target = find_embedding_path(lora), find_embedding_path(copy)
    if source.is_file():
        target.parent.mkdir(exist_ok=True)
        with atomic_write(target, overwrite=True) as temporary:
            shutil.copyfile(source, temporary)
