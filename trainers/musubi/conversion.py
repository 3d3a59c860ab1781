"""Reads the LoRA that Musubi wrote, under ComfyUI's names, and proves that ComfyUI loads all of
it.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from ..files.weight_file import read_weights
from .architectures import Architecture
from .safetensors_header import read_header

_HALVES = ((".lora_down.weight", ".lora_up.weight"), (".lora_A.weight", ".lora_B.weight"))
_DOWNS, _UPS = zip(*_HALVES, strict=True)
_ENDINGS = (*_DOWNS, *_UPS, ".alpha")


def read_converted(path: Path, architecture: Architecture) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors under the names that ComfyUI knows, and the header's metadata. If the row has
    a converter of Musubi's, `path` is its output.

    Raises:
        RuntimeError: the file cannot be read, or does not hold a trained LoRA of this architecture
            (require_whole).
    """
    tensors, metadata = _read(path)
    if architecture.conversion == "hidream_o1":
        tensors = {_rename_hidream(name): tensor for name, tensor in tensors.items()}
    require_whole(tensors, architecture, path=path)
    return tensors, metadata


def require_whole(tensors: Mapping[str, Tensor], architecture: Architecture, *, path: Path) -> None:
    """Require that each module has both halves and a name that ComfyUI knows, that all values are
    finite, and that something was learned.

    Raises:
        RuntimeError: one of these is not the case.
    """
    modules = list_modules(tensors)
    unknown = [name for name in tensors if not name.endswith(_ENDINGS)] + [
        name for name in modules if not architecture.fits(name)
    ]
    if unknown or not modules:
        raise RuntimeError(
            f"{path}: ComfyUI does not know {len(unknown)} of the names for {architecture.title}"
            f"{_name_example(unknown)}"
        )
    incomplete = [
        name
        for name in modules
        if not any(f"{name}{down}" in tensors and f"{name}{up}" in tensors for down, up in _HALVES)
    ]
    if incomplete:
        raise RuntimeError(
            f"{path}: {len(incomplete)} of {len(modules)} modules lack one of their halves{_name_example(incomplete)}"
        )
    broken = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    if broken:
        raise RuntimeError(
            f"{path}: {len(broken)} tensors hold values that are not finite{_name_example(broken)}. Lower the "
            "learning rate"
        )
    if not any(bool(tensor.any()) for name, tensor in tensors.items() if name.endswith(_UPS)):
        raise RuntimeError(f"{path}: all up weights are zero, so the LoRA changes nothing. Was the learning rate 0?")


def require_num_modules(raw_path: Path, num_modules: int) -> None:
    """Raise RuntimeError unless Musubi's own file has as many modules as Musubi said it trains."""
    try:
        found = len(list_modules(read_header(raw_path)))
    except FileNotFoundError:
        raise RuntimeError(f"{raw_path}: Musubi Tuner ended without an error, but wrote no LoRA") from None
    except ValueError as error:
        raise RuntimeError(str(error)) from error
    if found != num_modules:
        raise RuntimeError(
            f"{raw_path}: the LoRA has {found} modules, but Musubi Tuner said that it trains {num_modules}"
        )


def list_modules(names: Iterable[str]) -> list[str]:
    """Return the modules of a file's tensors, in file order."""
    return list(
        dict.fromkeys(name.removesuffix(ending) for name in names for ending in _ENDINGS if name.endswith(ending))
    )


def is_whole_file(path: Path) -> bool:
    """Return whether a file is complete. Musubi writes in place, so a stopped run can leave half a
    file under its final name.
    """
    try:
        return bool(read_header(path))
    except (ValueError, OSError):
        return False


def _name_example(names: list[str]) -> str:
    return f", such as {names[0]}" if names else ""


def _rename_hidream(name: str) -> str:
    """Drop the `model.` prefix, which ComfyUI's model does not have."""
    return name.replace("lora_unet_model_", "lora_unet_", 1) if name.startswith("lora_unet_model_") else name


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        return read_weights(path)
    except FileNotFoundError:
        raise RuntimeError(f"{path}: Musubi Tuner ended without an error, but wrote no LoRA") from None
    except SafetensorError as error:
        raise RuntimeError(f"{path}: the LoRA that Musubi Tuner wrote cannot be read: {error}") from error
