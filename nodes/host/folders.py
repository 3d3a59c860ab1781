"""The folders of this ComfyUI."""

import os
from pathlib import Path

import folder_paths

from ...trainers.files.client_folders import ClientFolder
from ...trainers.training.resume.file_names import STATES

NONE = "[None]"
_CHECKPOINTS = "[checkpoint] "


def get_work_folder() -> Path:
    """Return the folder of runs, caches and unpacked images, below ComfyUI's output folder."""
    return Path(folder_paths.get_output_directory()) / "lora_trainer"


def get_cache_folder() -> Path:
    return get_work_folder() / "cache"


def get_runs_folder() -> Path:
    return get_work_folder() / "runs"


def list_client_folders() -> list[ClientFolder]:
    """Return the folders that clients of the server can write to: by uploads, as user data, by
    nodes, and by uploads of models. Not custom_nodes: no route of ComfyUI writes there, and what is
    there is run anyway.
    """
    own = {
        "input folder": folder_paths.get_input_directory(),
        "output folder": folder_paths.get_output_directory(),
        "temp folder": folder_paths.get_temp_directory(),
        "user folder": folder_paths.get_user_directory(),
        "models folder": folder_paths.models_dir,
    }
    models = [
        ClientFolder(f"ComfyUI's models folder {name}", Path(path))
        for name in folder_paths.folder_names_and_paths
        if name != "custom_nodes"
        for path in folder_paths.get_folder_paths(name)
    ]
    return [*(ClientFolder(f"ComfyUI's {name}", Path(path)) for name, path in own.items()), *models]


def list_input_folders() -> list[str]:
    """Return the folders below ComfyUI's input folder, as paths relative to it."""
    return folder_paths.get_input_subfolders()


def find_input_folder(name: str) -> Path:
    """Return the folder. Raises ValueError if the name leads out of ComfyUI's input folder."""
    root = Path(folder_paths.get_input_directory())
    if not folder_paths.is_within_directory(str(root), str(root / name)):
        raise ValueError(
            f"{name} is not below ComfyUI's input folder {root}. To use a folder elsewhere, write it into path"
        )
    return root / name


def list_lora_files() -> list[str]:
    return folder_paths.get_filename_list("loras")


def find_lora_file(name: str) -> Path:
    return Path(folder_paths.get_full_path_or_raise("loras", name))


def list_runs() -> list[str]:
    """The runs that can be gone on with, the newest first."""
    runs = [path.parent for path in get_work_folder().glob(f"runs/*/{STATES}") if any(path.iterdir())]
    return [path.name for path in sorted(runs, key=lambda path: path.stat().st_mtime, reverse=True)]


def list_starting_points() -> list[str]:
    """LoRAs to go on from: those that loaders list, then the checkpoints of earlier runs."""
    runs = sorted(get_work_folder().glob("runs/*/checkpoints/*.safetensors"), reverse=True)
    return [*list_lora_files(), *(_CHECKPOINTS + path.relative_to(get_work_folder()).as_posix() for path in runs)]


def find_starting_point(name: str) -> Path:
    """Raises ValueError when it is in none of the lists any more."""
    if not name.startswith(_CHECKPOINTS):
        return find_lora_file(name)
    if name not in list_starting_points():
        raise ValueError(f"{name} is not there any more. Refresh (R) and choose again")
    return get_work_folder() / name.removeprefix(_CHECKPOINTS)


def find_lora_name(path: Path) -> str | None:
    """Return the name by which loaders list this file, None if it is in none of their folders."""
    for folder in folder_paths.get_folder_paths("loras"):
        if folder_paths.is_within_directory(folder, str(path)):
            return os.path.relpath(path, folder)
    return None


def get_loras_folder() -> Path:
    """The folder that new LoRA files go to: the first of those that ComfyUI lists."""
    return Path(folder_paths.get_folder_paths("loras")[0])


def describe_output(path: Path) -> dict[str, str]:
    """Describe a file below the output folder as ComfyUI's front end and /view do."""
    relative = path.resolve().relative_to(Path(folder_paths.get_output_directory()).resolve())
    return {"filename": relative.name, "subfolder": relative.parent.as_posix(), "type": "output"}
