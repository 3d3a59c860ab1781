"""Chooses what a training begins with: a finished run, one to go on with, or nothing."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...files.hashes import file_sha256
from .file_names import RESULT, STATES
from .identity import RunIdentity, as_json, read_identity
from .run_lock import RunInUse, is_locked
from .state_file import TrainingState
from .state_ring import list_states, read_newest

AUTO, NEW = "auto", "new"


@dataclass(frozen=True)
class FinishedRun:
    """A run that has its LoRA already."""

    folder: Path
    lora: Path
    sha256: str
    finished_early: bool
    steps: int


@dataclass(frozen=True)
class StartingPoint:
    """A state to go on from. `in_place`: the run goes on in its own folder; else a new run begins
    with it, and the old one stays as it is.
    """

    folder: Path
    state: TrainingState
    in_place: bool


def choose_run(
    runs_folder: Path, identity: RunIdentity, resume: str, *, lora: Path, warn: Callable[[str], None]
) -> FinishedRun | StartingPoint | None:
    """Find the run to load or to go on with; None: begin a new one.

    `resume` is "auto" (a run of the same identity), "new" (none), or the name of a run, which may
    have had other settings and images. Of several finished runs it is the one that wrote `lora`,
    the file that is wanted, or else the newest.

    Raises:
        RunInUse: another process trains it.
        ValueError: there is no run of that name, or it has no usable state.
    """
    if resume == NEW:
        return None
    if resume not in ("", AUTO):
        return _continue_named(runs_folder / resume, identity, warn)
    same = [folder for folder, other in _list_same(runs_folder, identity) if other.total_steps == identity.total_steps]
    same.sort(key=lambda folder: _read_lora_path(folder) != lora.absolute())  # the others stay newest first
    finished = next(filter(None, map(read_finished, same)), None)
    if finished:
        return finished
    for folder in same:
        start = _read_start(folder, identity, warn, in_place=True)
        if start:
            return start
    return _extend(runs_folder, identity, warn)


def is_known(runs_folder: Path, sections: Mapping[str, Mapping[str, Any]]) -> bool:
    """Tell whether a run had these settings and images, whatever its base model was."""
    return any(
        other is not None and all(as_json(other.sections.get(name)) == as_json(own) for name, own in sections.items())
        for other in map(read_identity, _list_folders(runs_folder))
    )


def explain_new_run(runs_folder: Path, identity: RunIdentity, name: str) -> str:
    """Say what changed since the newest unfinished run of this name; nothing if there is none."""
    for folder in _list_folders(runs_folder):
        other = read_identity(folder)
        if other is None or not folder.name.startswith(f"{name}-") or (folder / RESULT).exists():
            continue
        differences = identity.list_differences(other)
        if differences and list_states(folder / STATES):
            more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
            return (
                f"a new run: {folder.name}, which is not finished, had {'; '.join(differences[:3])}{more}. To go on "
                "with it all the same, set resume to its name"
            )
        return ""
    return ""


def _read_lora_path(folder: Path) -> Path | None:
    """Return where a run wrote its LoRA; None if it did not, or its result cannot be read."""
    try:
        return Path(json.loads((folder / RESULT).read_text(encoding="utf-8"))["path"]).absolute()
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_finished(folder: Path) -> FinishedRun | None:
    """Return the result of a run; None if it has none, or its file is gone or was changed."""
    try:
        result: dict[str, Any] = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        lora = Path(result["path"])
        if lora.is_file() and file_sha256(lora) == result["sha256"]:
            return FinishedRun(folder, lora, result["sha256"], bool(result["finished_early"]), int(result["steps"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _list_folders(runs_folder: Path) -> list[Path]:
    """The newest first."""
    if not runs_folder.is_dir():
        return []
    folders = [path for path in runs_folder.iterdir() if path.is_dir()]
    return sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True)


def _list_same(runs_folder: Path, identity: RunIdentity) -> Iterator[tuple[Path, RunIdentity]]:
    for folder in _list_folders(runs_folder):
        other = read_identity(folder)
        if other is not None and other.fingerprint == identity.fingerprint:
            yield folder, other


def _read_start(
    folder: Path, identity: RunIdentity, warn: Callable[[str], None], *, in_place: bool, run: str = ""
) -> StartingPoint | None:
    """`run` is the fingerprint of the folder's run, if it is not this identity's."""
    if in_place and is_locked(folder):
        raise RunInUse(
            f"{folder.name}, a run of the same settings and images, is being trained by another process. Wait for its "
            "end, or start a new run (--new-run; in the graph: resume set to new)"
        )
    state = read_newest(folder / STATES, run or identity.fingerprint, max_step=identity.total_steps, warn=warn)
    return None if state is None else StartingPoint(folder, state, in_place)


def _extend(runs_folder: Path, identity: RunIdentity, warn: Callable[[str], None]) -> StartingPoint | None:
    """Begin with the state of the longest shorter run."""
    shorter = [
        (other.total_steps, folder)
        for folder, other in _list_same(runs_folder, identity)
        if other.total_steps < identity.total_steps and not is_locked(folder)
    ]
    for _, folder in sorted(shorter, reverse=True):
        start = _read_start(folder, identity, warn, in_place=False)
        if start:
            return start
    return None


def _continue_named(folder: Path, identity: RunIdentity, warn: Callable[[str], None]) -> StartingPoint:
    other = read_identity(folder) if folder.is_dir() else None
    if other is None:
        names = ", ".join(path.name for path in _list_folders(folder.parent)[:5] if read_identity(path)) or "none"
        raise ValueError(f"resume: there is no run {folder.name!r} to go on with. The newest: {names}")
    optimizer, earlier = (each.sections["settings"]["optimizer"] for each in (identity, other))
    if optimizer != earlier:
        raise ValueError(
            f"resume: {folder.name} was trained with {earlier}. Set optimizer to it, or start from one of the run's "
            "checkpoints with network_weights"
        )
    differences = identity.list_differences(other)
    is_same = not differences and other.total_steps == identity.total_steps
    start = _read_start(folder, identity, warn, in_place=is_same, run=other.fingerprint)
    if start is None:
        raise ValueError(
            f"resume: {folder.name} has no state of at most {identity.total_steps} steps. Raise max_train_steps, or "
            "start from one of its checkpoints with network_weights"
        )
    if differences:
        warn(f"{folder.name} goes on as a new run, with other settings or images: {'; '.join(differences)}")
    return start
