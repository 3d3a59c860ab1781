"""One file with everything that a training needs to go on. It is valid, or it is not used.

A safetensors file, so that any tool can look into it; nothing in it is code.
"""

import hashlib
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from ...files.atomic_write import atomic_write
from ...files.tensor_hash import hash_named_tensors
from ...files.weight_file import ChangedFile, read_weights
from ...files.weight_writer import lay_out
from .packing import pack, unpack

FORMAT = 1
_CONTENT, _CHECKSUM, _FORMAT = "content", "blake2b", "format"


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
        stream.writelines(lay_out(state.tensors, metadata))


def read_state(path: Path) -> TrainingState:
    """Read a file that write_state wrote.

    Raises:
        DamagedState: its checksum is wrong, or it is of another version.
        OSError: it cannot be read.
    """
    try:
        tensors, header = read_weights(path)
        if header[_FORMAT] != str(FORMAT):
            raise DamagedState(f"{path}: written by another version")
        if header[_CHECKSUM] != _compute_checksum(header[_CONTENT], tensors):
            raise DamagedState(f"{path}: its checksum is wrong")
        return TrainingState(**unpack(json.loads(header[_CONTENT]), tensors))
    except (SafetensorError, ChangedFile, ValueError, KeyError, TypeError) as error:
        raise error if isinstance(error, DamagedState) else DamagedState(f"{path}: {error}") from error


def _compute_checksum(content: str, tensors: dict[str, Tensor]) -> str:
    return hash_named_tensors(tensors, hashlib.blake2b(content.encode(), digest_size=16))
