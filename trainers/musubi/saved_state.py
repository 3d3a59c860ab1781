"""Seals the states that our runs wrote, and lets only those be continued where clients can write.

A state is unpickled by Musubi Tuner, which can run code, and it is in a folder that clients of
ComfyUI can upload to. The seal is a file in the state: what it holds, signed with a key that no
client can read.
"""

import contextlib
import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ..files.atomic_write import atomic_write
from ..files.config_folder import default_config_folder
from ..training.events import Notice
from ..training.host import Host
from .state_folder import is_complete_state, read_steps_done

SEAL_NAME = "lora_trainer_seal.json"
# Accelerate's files; no others are sealed, and so no others are read.
_FILES = re.compile(r"(model\.safetensors|(optimizer|scheduler|sampler)\.bin|scaler\.pt|random_states_\d+\.pkl)")


def get_key_file() -> Path:
    return default_config_folder() / "states.key"


def read_key() -> bytes:
    """Return the key of this user on this machine; b"" if there is none, or it cannot be read."""
    try:
        return get_key_file().read_bytes()
    except OSError:
        return b""


def make_key() -> bytes:
    """Return the key, which is made when it is first needed. Raises OSError."""
    path = get_key_file()
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError), atomic_write(path) as temporary:
            temporary.write_bytes(secrets.token_bytes(32))
        path.chmod(0o600)
    return path.read_bytes()


def seal_state(folder: Path, key: bytes) -> None:
    """Raises OSError."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": _hash_blocks(_read_blocks(path))}
        for path in sorted(folder.iterdir())
        if _FILES.fullmatch(path.name)
    }
    content = {"name": folder.name, "files": files}
    with atomic_write(folder / SEAL_NAME, overwrite=True) as temporary:
        temporary.write_text(json.dumps({**content, "seal": _sign(content, key)}, indent=1), encoding="utf-8")


def has_seal(folder: Path, key: bytes) -> bool:
    """Return whether the folder has our seal and files of the sizes that it says. `copy_sealed`
    compares the rest.
    """
    try:
        files = _read_seal(folder, key)
        return all((folder / name).stat().st_size == entry["bytes"] for name, entry in files.items())
    except (OSError, ValueError):
        return False


def copy_sealed(folder: Path, target: Path, key: bytes) -> None:
    """Copy what is sealed, and nothing else, to a new folder where nobody can change it any more.

    Raises:
        ValueError: the state has no seal of ours, or has been changed since.
        OSError: it cannot be read, or there is no room for the copy.
    """
    files = _read_seal(folder, key)
    target.mkdir()
    for name, entry in files.items():
        with open(target / name, "wb") as stream:
            digest = _hash_blocks(_write_through(_read_blocks(folder / name), stream))
        if digest != entry["sha256"]:
            raise ValueError(f"{folder / name} is not as our run wrote it")


class StateSealer:
    """Seals the states of one run as they become complete. Its problems are notices: they are not
    worth a training.
    """

    def __init__(self, output_dir: Path, host: Host) -> None:
        self._output_dir, self._host = output_dir, host
        self._done: set[Path] = set()

    def seal(self, *, before_step: int | None = None) -> None:
        """Seal the new states; with `before_step` only those of earlier steps, which Musubi has
        finished writing.
        """
        for folder in sorted(set(self._output_dir.glob("*-state")) - self._done):
            step = read_steps_done(folder)
            if step is None or not is_complete_state(folder) or (before_step is not None and step >= before_step):
                continue
            self._done.add(folder)
            try:
                seal_state(folder, make_key())
            except OSError as error:
                if folder.is_dir():  # else Musubi has removed it meanwhile, for a newer one
                    self._host.report(
                        Notice(f"{folder} cannot be continued in ComfyUI, only on the command line: {error}")
                    )


def _read_seal(folder: Path, key: bytes) -> dict[str, Any]:
    """Return the sealed files. Raises ValueError or OSError."""
    try:
        content = json.loads((folder / SEAL_NAME).read_text(encoding="utf-8"))
        seal = content.pop("seal")
        if key and content["name"] == folder.name and hmac.compare_digest(_sign(content, key), seal):
            return content["files"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise ValueError(f"{folder} has no seal of a run on this machine")


def _sign(content: dict[str, Any], key: bytes) -> str:
    return hmac.new(key, json.dumps(content, sort_keys=True).encode(), hashlib.sha256).hexdigest()


def _read_blocks(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            yield block


def _write_through(blocks: Iterator[bytes], stream: BinaryIO) -> Iterator[bytes]:
    for block in blocks:
        stream.write(block)
        yield block


def _hash_blocks(blocks: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()
