"""The files that Train LoRA (Musubi Tuner) lets the user choose: ComfyUI's models, and the files of
earlier runs. A workflow cannot name others.
"""

import re
from pathlib import Path

import folder_paths

from ...trainers.musubi.architectures import Architecture, ModelFile
from . import folders

_QUANTIZED = re.compile(r"fp8|fp4|int8|int4|mxfp|gguf", re.IGNORECASE)


def list_model_files(folder: str) -> list[str]:
    return folder_paths.get_filename_list(folder)


def find_model_file(folder: str, name: str) -> Path:
    return Path(folder_paths.get_full_path_or_raise(folder, name))


def guess_file(architecture: Architecture, file: ModelFile, names: list[str]) -> str:
    """Guess the default: the file that its help names, or one in diffusion_models that is named
    like the architecture; "[None]" if there is neither.
    """
    usual = re.findall(r"[\w.-]+\.safetensors", file.help)
    named = [name for name in names if re.split(r"[\\/]", name)[-1] in usual]
    wants_quantized = "BF16" not in file.weight_dtypes
    similar = [
        name
        for name in names
        if file.folder == "diffusion_models"
        and _strip_name(architecture.name) in _strip_name(name)
        and bool(_QUANTIZED.search(name)) == wants_quantized
    ]
    found = [*named, *similar]
    return found[0] if found and file.required else folders.NONE


def _strip_name(name: str) -> str:
    """Keep letters and digits only, so that z_image_bf16.safetensors contains z-image."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def list_raw_loras() -> list[str]:
    """Return the LoRAs of earlier runs as Musubi wrote them, as paths in the folder of runs."""
    return _list_in_runs("*/musubi/*.safetensors")


def find_raw_lora(name: str) -> Path:
    return _find_in_runs(name, list_raw_loras())


def list_states() -> list[str]:
    """Return the states of earlier runs, as paths in the folder of runs."""
    return _list_in_runs("*/musubi/*-state")


def find_state(name: str) -> Path:
    return _find_in_runs(name, list_states())


def _list_in_runs(pattern: str) -> list[str]:
    runs = folders.get_work_folder() / "runs"
    return sorted((path.relative_to(runs).as_posix() for path in runs.glob(pattern)), reverse=True)


def _find_in_runs(name: str, names: list[str]) -> Path:
    """Return the path of a listed file. A state gets unpickled, so it must be one of ours even if
    its name comes from a link, which ComfyUI does not check.
    """
    if name not in names:
        raise ValueError(
            f"{name} is not in an earlier run in {folders.get_work_folder() / 'runs'}. Refresh (R) and choose again"
        )
    return folders.get_work_folder() / "runs" / name
