"""Lays .safetensors files out block by block: the library's own functions hold the whole file in
memory once more. weight_file.py reads files.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .tensor_hash import as_bytes

Block = bytes | memoryview

# The library's order: large numbers first, so that every tensor lies at a multiple of its size.
_DTYPES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ORDER = {dtype: position for position, dtype in enumerate(_DTYPES)}


def lay_out(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Iterator[Block]:
    """Yield a file: its header, then the memory of each tensor. They must be contiguous and on the
    CPU.

    The tensors are where the library puts them. It orders metadata differently in every process;
    here the same content always gives the same file.
    """
    names = sorted(tensors, key=lambda name: (_ORDER[tensors[name].dtype], name))
    entries: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for name in names:
        tensor, start = tensors[name], end
        end += tensor.nbytes
        entries[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the data must start at a multiple of 8
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        yield as_bytes(tensors[name])


def cut(blocks: Iterable[Block], start: int, size: int) -> bytes:
    """Return what is at one place of the file, as far as it goes."""
    parts, position = [], 0
    for block in blocks:
        parts.append(block[max(0, start - position) : max(0, start + size - position)])
        position += len(block)
    return b"".join(parts)


def holds(path: Path, blocks: Iterable[Block]) -> bool:
    """Tell whether a file consists of these blocks."""
    with open(path, "rb") as stream:
        return all(np.array_equal(_to_array(stream.read(len(block))), _to_array(block)) for block in blocks) and (
            not stream.read(1)
        )


def _to_array(block: Block) -> np.ndarray:
    return np.frombuffer(block, dtype=np.uint8)
