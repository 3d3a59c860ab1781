"""The base model that ships with the project: a tiny SDXL that draws coloured shapes. See README.md
in this folder.

`embedded_base.safetensors` has SDXL's original single-file layout, in float16, without the two
token tables, which are drawn from a seed. `write_embedded_checkpoint` adds them, so that every SDXL
loader reads the file.

    python -m trainers.embedded_base FILE.safetensors    # the checkpoint
    python -m trainers.embedded_base FOLDER              # the same model as a diffusers folder
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save

from ..files.atomic_write import atomic_write

SHIPPED_WEIGHTS = Path(__file__).parent / "embedded_base.safetensors"
TOKEN_TABLES = (
    "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight",
    "conditioner.embedders.1.model.token_embedding.weight",
)


def write_embedded_checkpoint(path: Path) -> None:
    """Write the embedded base as an SDXL checkpoint (about 32 MB).

    Raises:
        FileExistsError: `path` exists.
    """
    with atomic_write(path) as temporary:
        temporary.write_bytes(
            save(
                _load_with_token_tables(),
                {"modelspec.title": "embedded base", "modelspec.architecture": "stable-diffusion-xl-v1-base"},
            )
        )


def _load_with_token_tables() -> dict[str, torch.Tensor]:
    # imports diffusers, which takes seconds
    from .architecture import (
        TEXT_WIDTH_1,
        TEXT_WIDTH_2,
        TOKEN_TABLE_SEED,
        draw_token_table,
    )

    weights = load_file(SHIPPED_WEIGHTS)
    for index, (name, width) in enumerate(zip(TOKEN_TABLES, (TEXT_WIDTH_1, TEXT_WIDTH_2), strict=True)):
        weights[name] = draw_token_table(width, seed=TOKEN_TABLE_SEED + index).half()
    return weights
