"""Caches computed tensors, on disk for later runs and in memory for this one, under a key made from
their inputs.
"""

import hashlib
import json
import logging
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from .atomic_write import atomic_write
from .orphans import remove_orphans
from .tensor_hash import hash_named_tensors
from .weight_file import ChangedFile, read_weights
from .weight_writer import lay_out

# Enough for several thousand images at 1024 pixels with their captions. The rest is read from disk
# each time.
MAX_BYTES_IN_MEMORY = 4 * 2**30
logger = logging.getLogger(__name__)


_CHECKSUM = "sha256"


def content_key(**parts: object) -> str:
    """Return a file name made from everything that determines the tensors, as named JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:40]


def _compute_checksum(key: str, tensors: dict[str, Tensor]) -> str:
    """Over everything in an entry, its key included."""
    return hash_named_tensors(tensors, hashlib.sha256(key.encode()))


class TensorCache:
    """Caches small dictionaries of tensors on the CPU. Entries are never stale, as a key covers
    everything that determines its tensors. Without a folder they stay in memory only.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._in_memory: dict[str, dict[str, Tensor]] = {}
        self._bytes_in_memory = 0
        self._is_swept = False

    def get(self, key: str) -> dict[str, Tensor] | None:
        if key in self._in_memory:
            return self._in_memory[key]
        tensors = self._read(key)
        if tensors is not None:
            self._remember(key, tensors)
        return tensors

    def put(self, key: str, tensors: dict[str, Tensor]) -> None:
        tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
        self._remember(key, tensors)
        if self.folder is not None:
            self._sweep_once(self.folder)
            checksum = _compute_checksum(key, tensors)
            with atomic_write(self._path_of(key), overwrite=True) as temporary, open(temporary, "wb") as stream:
                stream.writelines(lay_out(tensors, {_CHECKSUM: checksum}))

    def _sweep_once(self, folder: Path) -> None:
        if not self._is_swept:
            self._is_swept = True
            for subfolder in folder.glob("??"):
                remove_orphans(subfolder)

    def _remember(self, key: str, tensors: dict[str, Tensor]) -> None:
        num_bytes = sum(tensor.nbytes for tensor in tensors.values())
        if self.folder is None or self._bytes_in_memory + num_bytes <= MAX_BYTES_IN_MEMORY:
            self._in_memory[key] = tensors
            self._bytes_in_memory += num_bytes

    def _read(self, key: str) -> dict[str, Tensor] | None:
        if self.folder is None or not self._path_of(key).is_file():
            return None
        path = self._path_of(key)
        try:
            tensors, metadata = read_weights(path)
        except (SafetensorError, ChangedFile) as error:
            logger.warning("%s: unreadable cache file (%s); computing it again", path, error)
            return None
        stated = metadata.get(_CHECKSUM)  # entries of earlier versions have none: they are computed again
        if stated == _compute_checksum(key, tensors):
            return tensors
        if stated is not None:
            logger.warning("%s: damaged cache file (its checksum is wrong); computing it again", path)
        return None

    def _path_of(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / key[:2] / f"{key}.safetensors"
