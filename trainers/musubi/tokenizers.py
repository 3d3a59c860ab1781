"""Checks for the tokenizers that Musubi Tuner downloads from Hugging Face on its first run.

Without them transformers 4 fails, while transformers 5 goes on with an empty tokenizer and encodes
captions into nonsense.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from .installation import Installation

_ON = ("1", "on", "yes", "true")


def find_missing_tokenizers(repositories: Sequence[str], installation: Installation) -> list[str]:
    """Return those that are neither in Hugging Face's cache nor in Musubi's folder, where its
    programs run.
    """
    return [repository for repository in repositories if not _is_there(repository, installation)]


def require_fetchable(repositories: Sequence[str], installation: Installation) -> None:
    """Raise ValueError if one is missing and the environment forbids downloads."""
    missing = find_missing_tokenizers(repositories, installation)
    switches = [name for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if os.environ.get(name, "").lower() in _ON]
    if missing and switches:
        raise ValueError(
            f"{', '.join(missing)} is not in the Hugging Face cache ({next(_list_caches())}), and {switches[0]} "
            "forbids downloading it. "
            "Set it to 0 for the first run with this architecture, or copy the cache of another machine"
        )


def _is_there(repository: str, installation: Installation) -> bool:
    snapshots = (cache / f"models--{repository.replace('/', '--')}" / "snapshots" for cache in _list_caches())
    return (installation.folder / repository).is_dir() or any(any(folder.glob("*/*")) for folder in snapshots)


def _list_caches() -> Iterator[Path]:
    """Yield the folders where huggingface_hub and transformers look, in their order."""
    for name in ("TRANSFORMERS_CACHE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(name):
            yield Path(os.environ[name]).expanduser()
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "huggingface")
    yield Path(home).expanduser() / "hub"
