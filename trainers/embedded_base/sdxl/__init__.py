"""The embedded SDXL as a file.

`weights.safetensors` has SDXL's original single-file layout, in float16, without the two token
tables, which are drawn from a seed. `write_embedded_checkpoint` adds them, so that every SDXL
loader reads the file.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save

from ...files.atomic_write import atomic_write

SHIPPED_WEIGHTS = Path(__file__).parent / "weights.safetensors"
TOKEN_TABLES = (
    "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight",
    "conditioner.embedders.1.model.token_embedding.weight",
)


def write_embedded_checkpoint(path: Path) -> None:
    """Write the embedded SDXL as an SDXL checkpoint (about 32 MB).

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
    from .architecture import make_token_tables

    tables = zip(TOKEN_TABLES, make_token_tables(), strict=True)
    return {**load_file(SHIPPED_WEIGHTS), **{name: table.half() for name, table in tables}}
