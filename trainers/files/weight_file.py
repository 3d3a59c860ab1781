"""Reads the tensors of a .safetensors file into memory. What they are is decided elsewhere."""

import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from .text_input import parse_json

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class ChangedFile(RuntimeError):
    """The file is not the one that was opened."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"{path} was changed while it was read. Wait until it is copied or downloaded completely, and start again"
        )


@dataclass(frozen=True)
class FileVersion:
    """What changes when a file is replaced, cut or written again."""

    num_bytes: int
    modified_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path | int) -> "FileVersion":
        """The version of a path or an open file. Raises OSError if there is none."""
        status = os.stat(path)
        return cls(status.st_size, status.st_mtime_ns, status.st_ino)


@contextmanager
def open_weights(path: Path) -> Iterator["WeightFile"]:
    """Open a file whose tensors are read into memory, one after the other.

    They are not mapped: a mapped file that gets shorter ends the whole process (SIGBUS) when its
    weights are used, which can be hours after it was opened.

    Raises:
        SafetensorError: this is not a complete .safetensors file.
        ChangedFile: it was replaced, cut or written before the block ended.
        OSError: it cannot be read.
    """
    version = FileVersion.of(path)
    # safe_open checks the header; nothing else of its mapping is used, not even by get_tensor. With
    # "pt" it would call torch, and turn what a signal raises there into an error of its own.
    with safe_open(path, framework="np") as header, open(path, "rb") as stream:
        if FileVersion.of(stream.fileno()) != version:
            raise ChangedFile(path)
        yield WeightFile(path, version, header, stream)
        if not is_unchanged(path, version):
            raise ChangedFile(path)


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return all tensors and the metadata. Raises as open_weights."""
    with open_weights(path) as file:
        return file.read(file.names), file.metadata


def is_unchanged(path: Path, version: FileVersion) -> bool:
    try:
        return FileVersion.of(path) == version
    except FileNotFoundError:
        return False


class WeightFile:
    """An open .safetensors file."""

    def __init__(self, path: Path, version: FileVersion, header: Any, stream: BufferedReader) -> None:
        self.version = version
        self.names: list[str] = list(header.keys())
        self.metadata: dict[str, str] = dict(header.metadata() or {})
        self.path, self._header, self._stream = path, header, stream
        self._starts = _read_starts(stream)

    def get_shapes(self, names: Iterable[str]) -> dict[str, tuple[int, ...]]:
        return {name: tuple(self._header.get_slice(name).get_shape()) for name in names}

    def get_dtypes(self, names: Iterable[str]) -> dict[str, str]:
        """Return the number formats as the format calls them, such as "BF16"."""
        return {name: self._header.get_slice(name).get_dtype() for name in names}

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Read tensors, in the order of the file. Raises ValueError for a number format that torch
        lacks.
        """
        names = list(names)
        tensors = {name: self._read(name) for name in sorted(names, key=self._starts.__getitem__)}
        return {name: tensors[name] for name in names}

    def _read(self, name: str) -> Tensor:
        facts = self._header.get_slice(name)
        if facts.get_dtype() not in _DTYPES:
            raise ValueError(f"{self.path}: {name} is in {facts.get_dtype()}. Known are {', '.join(_DTYPES)}")
        tensor = torch.empty(facts.get_shape(), dtype=_DTYPES[facts.get_dtype()])
        block = tensor.reshape(-1).view(torch.uint8).numpy().data
        self._stream.seek(self._starts[name])
        if self._stream.readinto(block) != block.nbytes:
            raise ChangedFile(self.path)
        return tensor


def _read_starts(stream: BufferedReader) -> Mapping[str, int]:
    """Return where in the file each tensor begins, by a header that was already checked."""
    (num_bytes,) = struct.unpack("<Q", stream.read(8))
    entries = parse_json(stream.read(num_bytes))
    return {name: 8 + num_bytes + entry["data_offsets"][0] for name, entry in entries.items() if name != "__metadata__"}
