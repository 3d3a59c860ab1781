"""The files that Train LoRA (Musubi Tuner) lets the user pick: ComfyUI's models, and what earlier
runs left behind. Nothing else can be named.
"""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import folder_paths

from ...trainers.files.client_folders import find_client_folder
from ...trainers.musubi.architectures import Architecture, ModelFile
from ...trainers.musubi.saved_state import copy_sealed, get_key_file, has_seal, read_key
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
    """What earlier runs can be resumed from, by its path in the folder of runs. Not what was
    uploaded there: a state is unpickled, so it must have our seal.
    """
    runs, key = folders.work_folder() / "runs", _read_key()
    return [name for name in _in_runs("*/musubi/*-state") if has_seal(runs / name, key)]


def state(name: str) -> Path:
    return _listed(name, states())


@contextmanager
def copied_state(state: str) -> Iterator[str]:
    """Give a copy of the state where no client can change it between the check and its use; "" for
    none.

    Raises:
        ValueError: it is not as our run wrote it, or there is no place for the copy.
    """
    if not state:
        yield ""
        return
    with tempfile.TemporaryDirectory(prefix="lora-trainer-", ignore_cleanup_errors=True) as place:
        _require_private(Path(place))
        copy = Path(place) / Path(state).name
        try:
            copy_sealed(Path(state), copy, _read_key())
        except ValueError as error:
            raise ValueError(
                f"resume: {error}. A state can run code when it is opened, so only untouched ones of our own runs are "
                "continued here. Choose another, or use network_weights"
            ) from error
        except OSError as error:
            raise ValueError(
                f"resume: {state} cannot be copied to {place}: {error}. Free some space there, or set TMPDIR (on "
                "Windows TMP) to another folder before ComfyUI starts"
            ) from error
        yield str(copy)


def _require_private(place: Path) -> None:
    found = find_client_folder(place, folders.list_client_folders())
    if found is not None:
        raise ValueError(
            f"resume: the system's folder for temporary files {place.parent} is below {found.name}, where clients of "
            "the server can write. Set TMPDIR (on Windows TMP) to another folder before ComfyUI starts"
        )


def _read_key() -> bytes:
    """Return b"" also where clients could have written it."""
    return b"" if find_client_folder(get_key_file(), folders.list_client_folders()) else read_key()


def _in_runs(pattern: str) -> list[str]:
    runs = folders.work_folder() / "runs"
    return sorted((path.relative_to(runs).as_posix() for path in runs.glob(pattern)), reverse=True)


def _listed(name: str, names: list[str]) -> Path:
    """The name may come over a link, past ComfyUI's own check."""
    if name not in names:
        raise ValueError(
            f"{name} is not among the earlier runs in {folders.work_folder() / 'runs'}. Refresh (R) and choose again"
        )
    return folders.work_folder() / "runs" / name
