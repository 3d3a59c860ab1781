"""Looks at the structure of an image file before Pillow decodes it: descriptions that Pillow
refuses, scans that take minutes. Decodes no pixel.
"""

import io
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

MAX_DESCRIPTION_BYTES = 1 << 20  # unpacked: Pillow's limit
MAX_DESCRIPTIONS_BYTES = 16 << 20  # of one image
MAX_SCANS = 100  # of a progressive JPEG; programs write about ten
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8"
_START_OF_SCAN = b"\xff\xda"  # inside a scan, 0xff is followed by 0
_DESCRIPTIONS = (b"iCCP", b"zTXt", b"iTXt", b"tEXt")  # colour profile and texts
_BLOCK_BYTES = 1 << 20


def strip_large_descriptions(path: Path) -> io.BytesIO | None:
    """Return a PNG without its colour profile and texts if Pillow would refuse them: the pixels are
    the same. None for all other files.
    """
    if not has_large_description(path):
        return None
    stripped = io.BytesIO()
    with open(path, "rb") as stream:
        stripped.write(stream.read(len(_PNG)))
        for kind, length in _read_chunks(stream):
            if kind not in _DESCRIPTIONS:
                stream.seek(-8, os.SEEK_CUR)
                stripped.write(stream.read(length + 12))
    stripped.seek(0)
    return stripped


def has_large_description(path: Path) -> bool:
    """Return whether this is a PNG with a colour profile or text that Pillow refuses."""
    with open(path, "rb") as stream:
        if stream.read(len(_PNG)) != _PNG:
            return False
        total = 0
        for kind, length in _read_chunks(stream):
            if kind in _DESCRIPTIONS:
                size = length if length > MAX_DESCRIPTION_BYTES else _measure(kind, stream.read(length))
                total += size
                if size > MAX_DESCRIPTION_BYTES or total > MAX_DESCRIPTIONS_BYTES:
                    return True
    return False


def _read_chunks(stream: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Yield kind and length of each chunk of a PNG, the stream being at its content."""
    size = os.fstat(stream.fileno()).st_size
    position = len(_PNG)
    while position + 12 <= size:
        stream.seek(position)
        length, kind = struct.unpack(">I4s", stream.read(8))
        if position + 12 + length > size:
            return
        position += 12 + length
        yield kind, length


def _measure(kind: bytes, content: bytes) -> int:
    """Return the bytes of a description, unpacked; never unpack much more than the limit."""
    if kind == b"tEXt":
        return len(content)
    after_keyword = content.partition(b"\0")[2]
    if kind != b"iTXt":  # one byte for the method
        packed = after_keyword[1:]
    elif after_keyword[:1] == b"\1":  # it is packed: method, language, translated keyword
        packed = b"".join(after_keyword[2:].split(b"\0", 2)[2:])
    else:
        return len(content)
    try:
        return len(zlib.decompressobj().decompress(packed, MAX_DESCRIPTION_BYTES + 1))
    except zlib.error:  # Pillow ignores it
        return 0


def count_scans(path: Path) -> int:
    """Return the number of scans of a JPEG, 0 for other files. Stop counting above MAX_SCANS."""
    with open(path, "rb") as stream:
        if stream.read(len(_JPEG)) != _JPEG:
            return 0
        num_scans, last = 0, b""
        while num_scans <= MAX_SCANS and (block := stream.read(_BLOCK_BYTES)):
            num_scans += (last + block).count(_START_OF_SCAN)
            last = block[-1:]
        return num_scans
