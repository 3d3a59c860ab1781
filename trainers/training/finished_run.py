"""Loads the LoRA of a run that is finished, instead of training it again."""

import csv
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from safetensors import safe_open

from ..files.atomic_write import atomic_write
from ..files.hashes import file_sha256
from .embedding_file import copy_embedding, find_embedding_path
from .resume.choose_run import FinishedRun
from .run_folder import RunFolder
from .trained_lora import TrainedLora


def load_finished(found: FinishedRun, run_folder: RunFolder, *, is_main: bool = True) -> TrainedLora:
    """Return the result of a finished run. Under another name its LoRA is copied to that name, by
    the main one of several processes.

    Raises:
        FileExistsError: another file has the wanted name.
        OSError: the LoRA cannot be read or copied.
    """
    run_folder.reopen(found.folder)
    path = found.lora
    if is_main and not run_folder.keeps_inside and path.absolute() != run_folder.final_path.absolute():
        path = _copy_lora(found, run_folder)
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a dict
        metadata = file.metadata() or {}
    checkpoints = sorted(run_folder.checkpoints.glob("*.safetensors"))
    return TrainedLora(
        tensors,
        metadata,
        list(_read_losses(found.folder / "loss.csv")),
        found.steps,
        path,
        checkpoints,
        finished_early=found.finished_early,
        was_loaded=True,
        best_path=run_folder.best_path if run_folder.best_path.is_file() else None,
        embedding_path=embedding if (embedding := find_embedding_path(path)).is_file() else None,
    )


def _copy_lora(found: FinishedRun, run_folder: RunFolder) -> Path:
    """An earlier copy is as good."""
    path = run_folder.final_path
    if not path.is_file() or file_sha256(path) != found.sha256:
        run_folder.require_free_name()
        with atomic_write(path) as temporary:
            shutil.copyfile(found.lora, temporary)
    copy_embedding(found.lora, path)
    return path


def _read_losses(path: Path) -> Iterator[float]:
    """They are for the plot: a file that somebody has changed gives what it still has."""
    with suppress(OSError, UnicodeDecodeError, csv.Error), open(path, newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            with suppress(TypeError, ValueError):
                yield float(row.get("loss") or "")
