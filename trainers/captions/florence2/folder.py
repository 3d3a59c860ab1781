"""Inspects the folder of a downloaded Florence-2 model: its files, its kind and its hash. Reads no
weights.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...files.hashes import file_sha256

_WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_TOKENIZER_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
_OTHER_FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
)


@dataclass(frozen=True)
class ModelFolder:
    """config: the content of config.json. Legacy folders (microsoft's, PromptGen's) use the names
    of their own Python files, which are never run.
    """

    path: Path
    config: dict[str, Any]
    weight_files: tuple[Path, ...]

    @classmethod
    def open(cls, path: Path) -> "ModelFolder":
        """Open the folder. Raises FileNotFoundError or ValueError unless it has a complete
        Florence-2 model.
        """
        if not path.is_dir():
            raise FileNotFoundError(
                f"{path}: there is no such folder. Give the folder of a Florence-2 model, with its config.json"
            )
        config = read_json(path / "config.json")
        if not config:
            raise ValueError(f"{path} has no config.json. Give the folder of a Florence-2 model, with all its files")
        if config.get("model_type") != "florence2":
            raise ValueError(f"{path} is not a Florence-2 model but {config.get('model_type', 'of an unknown kind')}")
        if not any(all((path / name).is_file() for name in names) for names in _TOKENIZER_FILES):
            raise ValueError(
                f"{path} has neither tokenizer.json nor vocab.json and merges.txt. Copy the model's other files "
                "next to its weights"
            )
        return cls(path, config, _find_weight_files(path))

    @property
    def is_legacy(self) -> bool:
        return self.config.get("text_config", {}).get(
            "model_type"
        ) == "florence2_language" or "dim_embed" in self.config.get("vision_config", {})

    def hash_content(self) -> str:
        """Hash the bytes of every file that affects the captions."""
        files = [*self.weight_files, *(file for name in _OTHER_FILES if (file := self.path / name).is_file())]
        lines = [
            f"{file.name} {_hash_version(str(file), file.stat().st_size, file.stat().st_mtime_ns)}" for file in files
        ]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def find_models(root: Path) -> list[str]:
    """List the folders with a complete Florence-2 model, one or two levels below `root`, by
    relative path.
    """
    if not root.is_dir():
        return []
    return sorted(folder.relative_to(root).as_posix() for folder in _list_subfolders(root) if _is_model(folder))


def read_json(path: Path) -> dict[str, Any]:
    """Return the file's content, empty if there is no such file. Raises ValueError if it is not a
    JSON object.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error}). Download it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not a JSON object. Download it again")
    return content


def _list_subfolders(root: Path) -> Iterator[Path]:
    for folder in root.iterdir():
        if folder.is_dir() and not folder.name.startswith("."):
            yield folder
            yield from (inner for inner in folder.iterdir() if inner.is_dir() and not inner.name.startswith("."))


def _is_model(folder: Path) -> bool:
    try:
        ModelFolder.open(folder)
    except (ValueError, OSError):
        return False
    return True


def _find_weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the weight files, in safetensors if available, else pickled."""
    found = next((folder / name for name in _WEIGHT_FILES if (folder / name).is_file()), None)
    if found is None:
        raise ValueError(
            f"{folder} has no weights: neither {_WEIGHT_FILES[0]} nor {_WEIGHT_FILES[2]}. Download the rest of the "
            "model"
        )
    if found.suffix != ".json":
        return (found,)
    names = sorted(set(read_json(found).get("weight_map", {}).values()))
    missing = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
    if missing or not names:
        raise ValueError(f"{folder} lacks {', '.join(missing) or 'its weights'}. Download the rest of the model")
    return tuple(folder / name for name in names)


@lru_cache(maxsize=100)
def _hash_version(path: str, _size: int, _modified_ns: int) -> str:
    return file_sha256(Path(path))
