"""The files that Train LoRA (Musubi Tuner) lets the user pick: ComfyUI's models, and what earlier
runs left behind. Nothing else can be named.
"""

import re
from pathlib import Path

import folder_paths

from ...trainers.musubi.architectures import Architecture, ModelFile
from . import folders

_QUANTIZED = re.compile(r"fp8|fp4|int8|int4|mxfp|gguf", re.IGNORECASE)


def model_files(folder: str) -> list[str]:
    return folder_paths.get_filename_list(folder)


def model_file(folder: str, name: str) -> Path:
    return Path(folder_paths.get_full_path_or_raise(folder, name))


def likely_file(architecture: Architecture, file: ModelFile, names: list[str]) -> str:
    """The file that its help names, or one of diffusion_models that is called like the
    architecture; "[None]" where there is neither.
    """
    usual = re.findall(r"[\w.-]+\.safetensors", file.help)
    named = [name for name in names if re.split(r"[\\/]", name)[-1] in usual]
    wants_quantized = "BF16" not in file.weight_dtypes
    similar = [
        name
        for name in names
        if file.folder == "diffusion_models"
        and _plain(architecture.name) in _plain(name)
        and bool(_QUANTIZED.search(name)) == wants_quantized
    ]
    found = [*named, *similar]
    return found[0] if found and file.required else folders.NONE


def _plain(name: str) -> str:
    """z_image_bf16.safetensors and z-image have the same letters."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def raw_loras() -> list[str]:
    """LoRAs of earlier runs as Musubi wrote them, by their path in the folder of runs."""
    return _in_runs("*/musubi/*.safetensors")


def raw_lora(name: str) -> Path:
    return _listed(name, raw_loras())


def states() -> list[str]:
    """What earlier runs can be resumed from, by its path in the folder of runs."""
    return _in_runs("*/musubi/*-state")


def state(name: str) -> Path:
    return _listed(name, states())


def _in_runs(pattern: str) -> list[str]:
    runs = folders.work_folder() / "runs"
    return sorted((path.relative_to(runs).as_posix() for path in runs.glob(pattern)), reverse=True)


def _listed(name: str, names: list[str]) -> Path:
    """A state is unpickled, so it must be one of ours even where the name comes over a link, past
    ComfyUI's own check.
    """
    if name not in names:
        raise ValueError(
            f"{name} is not among the earlier runs in {folders.work_folder() / 'runs'}. Refresh (R) and choose again"
        )
    return folders.work_folder() / "runs" / name
