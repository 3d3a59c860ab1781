"""Finds the LoRAs that a comparison names: runs, LoRA files and paths, and one from a link."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...trainers.compare.checkpoints import (
    Checkpoint,
    find_run,
    list_run_checkpoints,
    make_checkpoint,
    read_checkpoint,
    read_metadata,
)
from ...trainers.files.hashes import hash_unchanged_file
from ...trainers.lora.read import load_tensors
from . import folders
from .allowed_folders import allowed_folders
from .lora import GraphLora


@dataclass(frozen=True)
class Contender:
    """A LoRA of the comparison. `linked` is that of a link; without it, the checkpoint's file
    counts.
    """

    checkpoint: Checkpoint
    linked: Mapping[str, Tensor] | None = None

    def load(self) -> Mapping[str, Tensor]:
        """Raises ValueError if the file cannot be read."""
        if self.linked is not None:
            return self.linked
        assert self.checkpoint.path is not None
        return load_tensors(self.checkpoint.path)[0]

    def hash(self) -> str:
        if self.linked is not None:
            return _hash_tensors(self.linked)
        assert self.checkpoint.path is not None
        return hash_unchanged_file(self.checkpoint.path)

    def make_graph_lora(self, tensors: Mapping[str, Tensor], *, num_modules: int) -> Mapping[str, Tensor]:
        """The LORA_MODEL for Save LoRA and Apply LoRA; one from a link as it came."""
        if self.linked is not None:
            return self.linked
        assert self.checkpoint.path is not None
        return GraphLora(tensors, metadata=read_metadata(self.checkpoint.path), num_modules=num_modules)


def find_contenders(run: str, loras: str, linked: Mapping[str, Tensor] | None = None) -> list[Contender]:
    """Find them in the order in which they are drawn: the run's, those of the lines, that of the
    link.

    Raises:
        ValueError: one is not there, may not be read, or is no whole .safetensors file.
    """
    found = [Contender(checkpoint) for checkpoint in _list_checkpoints(run, loras)]
    if linked is not None:
        metadata = linked.metadata if isinstance(linked, GraphLora) else {}
        found.append(Contender(make_checkpoint(metadata.get("ss_output_name", "LORA_MODEL"), metadata), linked))
    return found


def fingerprint(run: str, loras: str) -> list[tuple[str, int, int]]:
    """Another value if a file was added, replaced or removed."""
    paths = [checkpoint.path for checkpoint in _list_checkpoints(run, loras) if checkpoint.path]
    return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]


def _list_checkpoints(run: str, loras: str) -> list[Checkpoint]:
    require = allowed_folders().require
    runs = folders.get_runs_folder()
    checkpoints: list[Checkpoint] = []
    if run.strip():
        checkpoints += list_run_checkpoints(find_run(runs, _clean(run), require=require), require=require)
    for line in filter(None, map(_clean, loras.splitlines())):
        path = _find_listed(line) or _find_path(line, runs)
        checkpoints += list_run_checkpoints(path, require=require) if path.is_dir() else [read_checkpoint(path)]
    return list({checkpoint.path: checkpoint for checkpoint in checkpoints}.values())


def _clean(text: str) -> str:
    return text.strip().strip('"').strip()


def _find_listed(name: str) -> Path | None:
    """The file if LoRA loaders list it, with or without .safetensors."""
    listed = {entry.replace("\\", "/"): entry for entry in folders.list_lora_files()}
    wanted = name.replace("\\", "/")
    entry = listed.get(wanted) or listed.get(f"{wanted}.safetensors")
    return folders.find_lora_file(entry) if entry else None


def _find_path(text: str, runs: Path) -> Path:
    """A file, or the folder of a run."""
    require = allowed_folders().require
    if re.search(r"[/\\]", text):
        path = require(text)
        return find_run(runs, text, require=require) if path.is_dir() else path
    if text.lower().endswith(".safetensors"):
        raise ValueError(f"{text}: no LoRA loader lists this file. Refresh (R), or give its whole path")
    return find_run(runs, text, require=require)


def _hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
