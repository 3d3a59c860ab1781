"""One file with everything that a training needs to go on. It is valid, or it is not used.

A safetensors file, so that any tool can look into it; nothing in it is code.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from ...files.atomic_write import atomic_write
from ...files.tensor_hash import as_bytes, hash_named_tensors
from .packing import pack, unpack

FORMAT = 1
_CONTENT, _CHECKSUM, _FORMAT = "content", "blake2b", "format"
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class DamagedState(ValueError):
    """The file is cut, altered, or none of ours."""


@dataclass(frozen=True)
class TrainingState:
    """A training after `step` steps. All random draws depend on the seed and the step, so that the
    step is the random state and the position in the data too.
    """

    run: str  # the fingerprint of its identity
    step: int
    losses: list[float]  # of all steps
    has_learned: bool
    adapters: dict[str, Tensor]  # float32, by the names in the LoRA file
    optimizer: dict[str, Any]  # its state_dict
    schedule_step: int  # of the learning rate; steps that overflowed in fp16 do not count
    scaler: dict[str, Any]
    ema: dict[str, Tensor]  # as adapters; empty without EMA
    validation: list[list[float]]  # rows of validation.csv
    seconds: float  # of training so far


@dataclass(frozen=True)
class PackedState:
    """A copy of a state, which a thread can write while the training goes on."""

    step: int
    content: str
    tensors: dict[str, Tensor]


def pack_state(state: TrainingState) -> PackedState:
    """Copy a state to the CPU.

    Raises:
        TypeError: the optimizer keeps something that is neither a tensor nor a plain value.
    """
    content, tensors = pack({field.name: getattr(state, field.name) for field in fields(state)})
    return PackedState(state.step, json.dumps(content), tensors)


def write_state(path: Path, state: PackedState) -> None:
    """Write the file under a temporary name, and give it its own when it is on the disk.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    checksum = _compute_checksum(state.content, state.tensors)
    metadata = {_FORMAT: str(FORMAT), _CONTENT: state.content, _CHECKSUM: checksum}
    with atomic_write(path, overwrite=True) as temporary, open(temporary, "wb") as stream:
        for block in _serialize(state.tensors, metadata):
            stream.write(block)


def _serialize(tensors: dict[str, Tensor], metadata: dict[str, str]) -> Iterator[bytes | memoryview]:
    """Yield the file block by block: safetensors' own functions hold all of it in memory again."""
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little")
    yield text
    yield from map(as_bytes, tensors.values())


def read_state(path: Path) -> TrainingState:
    """Read a file that write_state wrote.

    Raises:
        DamagedState: its checksum is wrong, or it is of another version.
        OSError: it cannot be read.
    """
    content = path.read_bytes()
    try:
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        if header[_FORMAT] != str(FORMAT):
            raise DamagedState(f"{path}: written by another version")
        if header[_CHECKSUM] != _compute_checksum(header[_CONTENT], tensors):
            raise DamagedState(f"{path}: its checksum is wrong")
        return TrainingState(**unpack(json.loads(header[_CONTENT]), tensors))
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise error if isinstance(error, DamagedState) else DamagedState(f"{path}: {error}") from error


def _compute_checksum(content: str, tensors: dict[str, Tensor]) -> str:
    return hash_named_tensors(tensors, hashlib.blake2b(content.encode(), digest_size=16))
