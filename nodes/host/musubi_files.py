"""The files that Train LoRA (Musubi Tuner) lets the user choose: ComfyUI's models, and the files of
earlier runs. A workflow cannot name others.
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
    """Return the states of earlier runs, as paths in the folder of runs. Uploaded ones are left
    out: a state gets unpickled, so it must have our seal.
    """
    runs, key = folders.get_work_folder() / "runs", _read_key()
    return [name for name in _list_in_runs("*/musubi/*-state") if has_seal(runs / name, key)]


def find_state(name: str) -> Path:
    return _find_in_runs(name, list_states())


@contextmanager
def copy_state(state: str) -> Iterator[str]:
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


def _list_in_runs(pattern: str) -> list[str]:
    runs = folders.get_work_folder() / "runs"
    return sorted((path.relative_to(runs).as_posix() for path in runs.glob(pattern)), reverse=True)


def _find_in_runs(name: str, names: list[str]) -> Path:
    """Return the path of a listed file. The name may come from a link, which ComfyUI does not
    check.
    """
    if name not in names:
        raise ValueError(
            f"{name} is not in an earlier run in {folders.get_work_folder() / 'runs'}. Refresh (R) and choose again"
        )
    return folders.get_work_folder() / "runs" / name
