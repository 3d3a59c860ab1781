"""The files of a run folder: its state, LoRAs, samples, validation losses. Nothing outside of the
folder is looked at, whatever its files name.
"""

import os
import re
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PureWindowsPath
from stat import S_ISREG
from typing import Any, Literal

from ...wording import pluralize
from .fields import get_number, get_object, get_text, get_whole

MAX_VALIDATIONS = 2_000
MAX_VALIDATION_BYTES = 2**20
MAX_ENTRIES = 20_000
_SAMPLE = re.compile(r".*-step(?P<step>\d{8,15})\.png")
_CHECKPOINT = re.compile(r".*-(?:step(?P<step>\d{8,15})|(?P<epoch>\d{6,15}))\.safetensors")

LoraKind = Literal["final", "best", "ema", "checkpoint"]
_KINDS = ("final", "best", "ema", "checkpoint")


@dataclass(frozen=True)
class Validation:
    """Columns of equal length. `kind`: "held-out", "stable loss" or "", if there is none."""

    kind: str = ""
    best_step: int | None = None
    step: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    ema_loss: list[float | None] = field(default_factory=list)


@dataclass(frozen=True)
class Sample:
    name: str
    step: int


@dataclass(frozen=True)
class LoraFile:
    """A LoRA that the run has saved. Of step and epoch at most one is known, from its name."""

    kind: LoraKind
    path: str
    bytes: int
    step: int | None
    epoch: int | None
    is_best: bool


@dataclass(frozen=True)
class _File:
    name: str
    path: str
    bytes: int
    time: float


def read_validation(folder: Path, progress: dict[str, Any], notes: list[str]) -> Validation:
    about = get_object(progress, "validation")
    best = get_number(about, "best_step")
    result = Validation(get_text(about, "kind"), None if best is None else int(best))
    rows = _read_validation_rows(folder / "validation.csv")
    if None in rows:
        notes.append(f"validation.csv: {pluralize(rows.count(None), 'line')} cannot be read")
    for step, loss, ema_loss in [row for row in rows if row is not None][-MAX_VALIDATIONS:]:
        result.step.append(step)
        result.loss.append(loss)
        result.ema_loss.append(ema_loss)
    return result


def _read_validation_rows(path: Path) -> list[tuple[int, float, float | None] | None]:
    """Return the rows, None for one that cannot be read. The writer may be in the middle of the
    last line. Of a very long file only the beginning counts.
    """
    try:
        with open(path, "rb") as stream:
            content = stream.read(MAX_VALIDATION_BYTES)
    except OSError:  # usually it is not there
        return []
    header, *lines = content.decode("utf-8", "replace").split("\n")[:-1] or [""]
    columns = header.strip().split(",")
    return [_parse_row(dict(zip(columns, line.strip().split(","), strict=False))) for line in lines if line.strip()]


def _parse_row(cells: dict[str, str]) -> tuple[int, float, float | None] | None:
    step, loss, ema_loss = (_parse(cells.get(name, "")) for name in ("step", "loss", "ema_loss"))
    return None if step is None or loss is None else (int(step), loss, ema_loss)


def _parse(cell: str) -> float | None:
    try:
        return get_number({"cell": float(cell)}, "cell")
    except ValueError:
        return None


def list_samples(folder: Path, *, max_samples: int) -> tuple[list[Sample], int]:
    """Return the latest samples, the last one first, and how many there are."""
    found = [
        Sample(file.name, int(match["step"]))
        for file in _list_files(folder / "samples")
        if (match := _SAMPLE.fullmatch(file.name))
    ]
    found.sort(key=lambda sample: (sample.step, sample.name), reverse=True)
    return found[:max_samples], len(found)


def list_loras(
    folder: Path, progress: dict[str, Any], result: dict[str, Any], *, max_loras: int
) -> tuple[list[LoraFile], int]:
    """Return the results, then the checkpoints, the last one first; and how many there are."""
    files = _list_loras(folder)
    best = _find_best(files, progress, result)
    ema_name = _get_name(result, "ema_path")
    finished = [_describe_lora(file, _name_kind(file.name, best.name, ema_name), best) for file in files]
    finished.sort(key=lambda lora: (_KINDS.index(lora.kind), lora.path))
    checkpoints = sorted(_list_loras(folder / "checkpoints"), key=_get_age)
    loras = [*finished, *(_describe_lora(file, "checkpoint", best) for file in checkpoints)]
    return loras[:max_loras], len(loras)


@dataclass(frozen=True)
class _Best:
    """The file name of the best LoRA, and its step."""

    name: str = ""
    step: int | None = None


def _find_best(files: list[_File], progress: dict[str, Any], result: dict[str, Any]) -> _Best:
    """What the result says. Until a run has one, its status says the step."""
    if result:
        best = get_object(result, "best")
        return _Best(_get_name(best, "path"), get_whole(best, "step") or None)
    step = get_whole(get_object(progress, "validation"), "best_step")
    name = next((file.name for file in files if file.name.endswith("-best.safetensors")), "")
    return _Best(name, step) if step and name else _Best()


def _name_kind(name: str, best_name: str, ema_name: str) -> LoraKind:
    return "ema" if name == ema_name else "best" if name == best_name else "final"


def _list_loras(folder: Path) -> list[_File]:
    return [file for file in _list_files(folder) if file.name.endswith(".safetensors")]


def _get_age(file: _File) -> tuple[float, str]:
    """Return what sorts the latest first. Names of steps and of epochs cannot be compared."""
    return -file.time, file.name


def _describe_lora(file: _File, kind: LoraKind, best: _Best) -> LoraFile:
    is_best = file.name == best.name
    numbers = _CHECKPOINT.fullmatch(file.name)
    step, epoch = (numbers["step"], numbers["epoch"]) if numbers else (None, None)
    if is_best and step is None and epoch is None:
        step = best.step
    return LoraFile(
        kind=kind,
        path=file.path,
        bytes=file.bytes,
        step=None if step is None else int(step),
        epoch=None if epoch is None else int(epoch),
        is_best=is_best,
    )


def _get_name(entries: dict[str, Any], name: str) -> str:
    """Return the file name of a path from any system: the folder may have been moved."""
    return PureWindowsPath(get_text(entries, name)).name


def _list_files(folder: Path) -> list[_File]:
    """Return plain files; not the temporary ones, whose names begin with a dot."""
    try:
        with os.scandir(folder) as entries:
            found = [_read_entry(entry) for entry in islice(entries, MAX_ENTRIES) if not entry.name.startswith(".")]
    except OSError:  # usually it is not there
        return []
    return [file for file in found if file is not None]


def _read_entry(entry: os.DirEntry[str]) -> _File | None:
    """Return None for a link, a folder, and what was deleted meanwhile."""
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError:
        return None
    return _File(entry.name, entry.path, status.st_size, status.st_mtime) if S_ISREG(status.st_mode) else None
