"""Reads the header of a .safetensors file, without its tensors and without torch."""

import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ..files.text_input import parse_json

MAX_HEADER_BYTES = 100_000_000  # the format's own limit


@dataclass(frozen=True)
class TensorFacts:
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int


def read_header(path: Path) -> dict[str, TensorFacts]:
    """Read every tensor's number format (such as "BF16"), shape and size.

    Raises:
        ValueError: this is not a complete .safetensors file.
        OSError: the file cannot be read.
    """
    size = path.stat().st_size
    with open(path, "rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise ValueError(f"{path}: not a complete .safetensors file. Download or copy it again")
        text = stream.read(length)
    try:
        entries = parse_json(text)
        facts = {name: _facts(entry) for name, entry in entries.items() if name != "__metadata__"}
        end = max((entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"), default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        raise ValueError(
            f"{path}: not a complete .safetensors file: its header cannot be read. Download or copy it again"
        ) from None
    if size < 8 + length + end:
        raise ValueError(
            f"{path}: the file ends too early ({size} of {8 + length + end} bytes). Download or copy it again"
        )
    return facts


def _facts(entry: dict) -> TensorFacts:
    start, end = entry["data_offsets"]
    return TensorFacts(str(entry["dtype"]), tuple(int(side) for side in entry["shape"]), int(end) - int(start))


def main_dtype(header: dict[str, TensorFacts]) -> str:
    """Return the number format of most bytes; "" for an empty file."""
    num_bytes: Counter[str] = Counter()
    for tensor in header.values():
        num_bytes[tensor.dtype] += tensor.num_bytes
    return max(num_bytes, key=lambda dtype: num_bytes[dtype], default="")
