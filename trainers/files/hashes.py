"""Hashes that identify files: images in the cache, base models in a LoRA's header."""

import hashlib
from collections.abc import Callable
from pathlib import Path

LEGACY_START, LEGACY_SIZE = 1 << 20, 1 << 16
MAX_KNOWN = 20_000


def file_sha256(path: Path, *, check_interrupted: Callable[[], None] = lambda: None) -> str:
    """Return the sha256 of a whole file, kohya's `ss_new_sd_model_hash`. Reads in blocks; a 7 GB
    checkpoint takes a few seconds.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            check_interrupted()
            digest.update(block)
    return digest.hexdigest()


_known: dict[tuple[Path, int, int], str] = {}


def hash_unchanged_file(path: Path, *, check_interrupted: Callable[[], None] = lambda: None) -> str:
    """Return file_sha256, and do not read a file again whose size and time are as they were."""
    check_interrupted()
    status = path.stat()
    version = (path, status.st_size, status.st_mtime_ns)
    if version not in _known:
        if len(_known) >= MAX_KNOWN:
            _known.clear()
        _known[version] = file_sha256(path, check_interrupted=check_interrupted)
    return _known[version]


def legacy_file_hash(path: Path) -> str:
    """Return the 8-digit model hash of old A1111 versions, kohya's `ss_sd_model_hash`: it covers
    64 KiB of the file, from 1 MiB on.
    """
    with open(path, "rb") as stream:
        stream.seek(LEGACY_START)
        return legacy_hash(stream.read(LEGACY_SIZE))


def legacy_hash(block: bytes) -> str:
    """Return the legacy hash of the 64 KiB block."""
    return hashlib.sha256(block).hexdigest()[:8]
