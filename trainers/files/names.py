"""Names for files that this pack writes: whether one is allowed, and which one is free."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

ResultT = TypeVar("ResultT")

RESERVED_NAMES = {"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(1, 10))}
FORBIDDEN_CHARACTERS = set('<>:"/\\|?*')


def check_output_name(name: str) -> str:
    """The name, if it can be a file's on every system.

    Raises:
        ValueError: it is empty, has a folder in it, or has characters or a name that some system
            reserves.
    """
    stem = name.removesuffix(".safetensors")
    bad = sorted({character for character in stem if character in FORBIDDEN_CHARACTERS or ord(character) < 32})
    if bad:
        raise ValueError(
            f"output name {name!r} has {' '.join(map(repr, bad))} in it. Give a plain file name without folders, "
            "such as my_lora"
        )
    if not stem.strip(". ") or stem != stem.strip() or stem.endswith("."):
        raise ValueError(
            f"output name {name!r} is empty or begins or ends with a space or dot. Give a plain file name, such as "
            "my_lora"
        )
    if stem.split(".")[0].lower() in RESERVED_NAMES:
        raise ValueError(f"output name {name!r} is reserved on Windows. Give another name, such as my_{stem}")
    if len(stem.encode()) > 200:
        raise ValueError(f"output name of {len(stem.encode())} bytes is too long; at most 200")
    return stem


def find_free_path(path: Path, *, companions: tuple[str, ...] = ()) -> Path:
    """Return the first of list_free_paths. Another process may take it a moment later."""
    return next(list_free_paths(path, companions=companions))


def save_under_free_name(
    wanted: Path, save: Callable[[Path], ResultT], *, companions: tuple[str, ...] = ()
) -> tuple[Path, ResultT]:
    """Call `save` with the first free name, and with the next one if another process took it
    meanwhile; returns the name and what `save` returned.
    """
    for path in list_free_paths(wanted, companions=companions):
        try:
            return path, save(path)
        except FileExistsError:
            continue
    raise FileExistsError(f"{wanted} and the 10,000 names after it exist already. Choose another name")


def list_free_paths(path: Path, *, companions: tuple[str, ...] = ()) -> Iterator[Path]:
    """Yield the path, then with -2, -3, ... before its .safetensors: those that do not exist, nor
    with one of the companions' suffixes.
    """
    stem, suffix = (path.stem, path.suffix) if path.suffix == ".safetensors" else (path.name, "")
    candidates = (path.with_name(f"{stem}-{i}{suffix}") if i > 1 else path for i in range(1, 10_000))
    for candidate in candidates:
        if not any(name.exists() for name in (candidate, *map(candidate.with_suffix, companions))):
            yield candidate
