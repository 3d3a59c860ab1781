"""Where things lie in this ComfyUI."""

from pathlib import Path

import folder_paths

NONE = "[None]"
_CHECKPOINTS = "[checkpoint] "


def work_folder() -> Path:
    """Runs, caches and unpacked images, all below ComfyUI's output folder."""
    return Path(folder_paths.get_output_directory()) / "lora_trainer"


def cache_folder() -> Path:
    return work_folder() / "cache"


def input_folders() -> list[str]:
    """The folders below ComfyUI's input folder, by their path there."""
    return folder_paths.get_input_subfolders()


def input_folder(name: str) -> Path:
    """Raises ValueError when the name leads out of ComfyUI's input folder."""
    root = Path(folder_paths.get_input_directory())
    if not folder_paths.is_within_directory(str(root), str(root / name)):
        raise ValueError(
            f"{name} is not below ComfyUI's input folder {root}. To use a folder elsewhere, write it into path"
        )
    return root / name


def lora_files() -> list[str]:
    return folder_paths.get_filename_list("loras")


def lora_file(name: str) -> Path:
    return Path(folder_paths.get_full_path_or_raise("loras", name))


def starting_points() -> list[str]:
    """LoRAs to go on from: those that loaders list, then the checkpoints of earlier runs."""
    runs = sorted(work_folder().glob("runs/*/checkpoints/*.safetensors"), reverse=True)
    return [*lora_files(), *(_CHECKPOINTS + path.relative_to(work_folder()).as_posix() for path in runs)]


def starting_point(name: str) -> Path:
    """Raises ValueError when it is in none of the lists any more."""
    if not name.startswith(_CHECKPOINTS):
        return lora_file(name)
    if name not in starting_points():
        raise ValueError(f"{name} is not there any more. Refresh (R) and choose again")
    return work_folder() / name.removeprefix(_CHECKPOINTS)


def loras_folder() -> Path:
    """The folder that new LoRA files go to: the first of those that ComfyUI lists."""
    return Path(folder_paths.get_folder_paths("loras")[0])


def as_output(path: Path) -> dict[str, str]:
    """A file below the output folder, as ComfyUI's front end and /view name it."""
    relative = path.resolve().relative_to(Path(folder_paths.get_output_directory()).resolve())
    return {"filename": relative.name, "subfolder": relative.parent.as_posix(), "type": "output"}
