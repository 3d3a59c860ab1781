"""The tokenizers that Musubi Tuner fetches from Hugging Face at its first run, and whether they are
there.

Its transformers 4 fails without them; transformers 5 goes on with an empty tokenizer, and encodes
captions that mean nothing.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from .installation import Installation

_ON = ("1", "on", "yes", "true")


def missing_tokenizers(repositories: Sequence[str], installation: Installation) -> list[str]:
    """Those of which neither Hugging Face's cache nor Musubi's own folder, where its programs run,
    has anything.
    """
    return [repository for repository in repositories if not _is_there(repository, installation)]


def require_fetchable(repositories: Sequence[str], installation: Installation) -> None:
    """Raises ValueError when one is missing and the environment forbids to fetch it."""
    missing = missing_tokenizers(repositories, installation)
    switches = [name for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if os.environ.get(name, "").lower() in _ON]
    if missing and switches:
        raise ValueError(
            f"{', '.join(missing)} is not in the Hugging Face cache ({next(_caches())}), and {switches[0]} forbids "
            "to fetch it. "
            "Set it to 0 for the first run with this architecture, or copy the cache of another machine"
        )


def _is_there(repository: str, installation: Installation) -> bool:
    snapshots = (cache / f"models--{repository.replace('/', '--')}" / "snapshots" for cache in _caches())
    return (installation.folder / repository).is_dir() or any(any(folder.glob("*/*")) for folder in snapshots)


def _caches() -> Iterator[Path]:
    """Where huggingface_hub and transformers look, the first that is used first."""
    for name in ("TRANSFORMERS_CACHE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(name):
            yield Path(os.environ[name]).expanduser()
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "huggingface")
    yield Path(home).expanduser() / "hub"
