"""Checks names for files that this pack writes, and finds free ones."""

from pathlib import Path

RESERVED_NAMES = {"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(1, 10))}
FORBIDDEN_CHARACTERS = set('<>:"/\\|?*')


def check_output_name(name: str) -> str:
    """Return the name without .safetensors, if every system allows it as a file name.

    Raises:
        ValueError: the name is empty, contains a folder, or has characters or is a name that some
            system reserves.
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
    """Return the path, or the path with -2, -3, ... before its .safetensors: the first that does
    not exist, also not with a companion's suffix.
    """
    stem, suffix = (path.stem, path.suffix) if path.suffix == ".safetensors" else (path.name, "")
    candidates = (path.with_name(f"{stem}-{i}{suffix}") if i > 1 else path for i in range(1, 10_000))
    return next(
        candidate
        for candidate in candidates
        if not any(name.exists() for name in (candidate, *map(candidate.with_suffix, companions)))
    )
