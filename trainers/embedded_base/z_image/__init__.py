"""The embedded Z-Image as files.

`weights.safetensors` has the weights of the three files that users of Z-Image have, in float16,
each under its folder's name. What is drawn from a seed or has no effect is not shipped:
`write_embedded_z_image` adds it.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from ...files.atomic_write import atomic_write

SHIPPED_WEIGHTS = Path(__file__).parent / "weights.safetensors"
TOKEN_TABLE = "model.embed_tokens.weight"
DIFFUSION_MODEL, TEXT_ENCODER, VAE = "diffusion_models", "text_encoders", "vae"  # folders in ComfyUI
# Other names than a real Z-Image's, so that nobody takes them for one
MODEL_NAME = "embedded_z_image.safetensors"
TEXT_ENCODER_NAME = "embedded_qwen_3.safetensors"
VAE_NAME = "embedded_z_image_vae.safetensors"


@dataclass(frozen=True)
class ZImageFiles:
    model: Path
    text_encoder: Path
    vae: Path


def write_embedded_z_image(models: Path) -> ZImageFiles:
    """Write the embedded Z-Image into subfolders of ComfyUI's folder `models` (about 32 MB).

    Raises:
        FileExistsError: one of the files exists.
    """
    files = ZImageFiles(
        model=models / DIFFUSION_MODEL / MODEL_NAME,
        text_encoder=models / TEXT_ENCODER / TEXT_ENCODER_NAME,
        vae=models / VAE / VAE_NAME,
    )
    parts = load_parts()
    for folder, path in ((DIFFUSION_MODEL, files.model), (TEXT_ENCODER, files.text_encoder), (VAE, files.vae)):
        with atomic_write(path) as temporary:
            temporary.write_bytes(save(parts[folder], {"modelspec.title": f"embedded Z-Image, {folder}"}))
    return files


def load_parts() -> dict[str, dict[str, torch.Tensor]]:
    """Load the weights of the three files by folder, all of them, in float16."""
    # imports diffusers, which takes seconds
    from .architecture import make_token_table
    from .layout import add_zeros_to_text_encoder, add_zeros_to_transformer

    parts: dict[str, dict[str, torch.Tensor]] = {DIFFUSION_MODEL: {}, TEXT_ENCODER: {}, VAE: {}}
    for name, weight in load_file(SHIPPED_WEIGHTS).items():
        folder, _, name_in_file = name.partition("/")
        parts[folder][name_in_file] = weight
    text_encoder = {**add_zeros_to_text_encoder(parts[TEXT_ENCODER]), TOKEN_TABLE: make_token_table().half()}
    return {
        DIFFUSION_MODEL: add_zeros_to_transformer(parts[DIFFUSION_MODEL]),
        TEXT_ENCODER: text_encoder,
        VAE: parts[VAE],
    }
