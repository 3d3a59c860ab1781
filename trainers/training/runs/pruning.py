"""What of old runs can be deleted, and its deletion. It never takes what another program has
written, and nothing of a run that is going on.
"""

import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..resume.file_names import RESULT, STATES
from ..resume.run_lock import RunLock
from .fields import get_text, read_object
from .record import is_run_folder

SECONDS_PER_DAY = 24 * 60 * 60
_OWN = frozenset(
    {
        "manifest.json",
        "identity.json",
        "progress.json",
        "origin.json",
        "result.json",
        "dataset.txt",
        "loss.csv",
        "loss.png",
        "validation.csv",
        "run.log",
        "lock",
        "finish",
        "pause",
        "samples",
        "checkpoints",
        STATES,
    }
)


@dataclass(frozen=True)
class Prunable:
    """Files or folders of a run that can go, and why."""

    run: Path
    what: str
    paths: Sequence[Path]

    @property
    def num_bytes(self) -> int:
        return sum(map(count_bytes, self.paths))


def list_runs(runs_folder: Path) -> list[Path]:
    """Return the folders of runs, the one that was written to last first."""
    if not runs_folder.is_dir():
        return []
    folders = [path for path in runs_folder.iterdir() if path.is_dir() and not path.is_symlink()]
    return sorted(filter(is_run_folder, folders), key=find_last_time, reverse=True)


def find_last_time(run: Path) -> float:
    """Return when one of the run's own files was last written."""
    return max((_read_time(path) for path in run.iterdir() if path.name in _OWN), default=0.0)


def _read_time(path: Path) -> float:
    with suppress(OSError):
        return path.stat().st_mtime
    return 0.0


def count_bytes(path: Path) -> int:
    """Return the size of a file, or of everything in a folder. Links count as nothing."""
    files = path.rglob("*") if path.is_dir() and not path.is_symlink() else [path]
    return sum(_read_size(file) for file in files)


def _read_size(path: Path) -> int:
    with suppress(OSError):
        if path.is_file() and not path.is_symlink():
            return path.stat().st_size
    return 0


def list_prunable(runs: Iterable[Path], *, days: float, with_loras: bool) -> list[Prunable]:
    """List what can go of these runs: states of runs that have their LoRA, temporary files of
    processes that were killed, and runs without a LoRA that nothing was written to for `days`.

    With `with_loras` also the checkpoints of old runs that have their LoRA, and old runs that
    were stopped with their checkpoints. The LoRA of a finished run always stays.
    """
    return [found for run in runs for found in _list_of(run, days=days, with_loras=with_loras)]


def _list_of(run: Path, *, days: float, with_loras: bool) -> Iterator[Prunable]:
    is_old = time.time() - find_last_time(run) > days * SECONDS_PER_DAY
    has_loras = any(path.parent.name != STATES for path in run.rglob("*.safetensors"))
    if _has_result(run):
        yield from _list_of_finished(run, is_old=is_old, with_loras=with_loras)
    elif is_old and (with_loras or not has_loras):
        kind = "stopped run with checkpoints" if has_loras else "run without a LoRA"
        yield Prunable(run, kind, [path for path in run.iterdir() if _is_own(path)])


def _list_of_finished(run: Path, *, is_old: bool, with_loras: bool) -> Iterator[Prunable]:
    states = sorted((run / STATES).glob("*.safetensors"))
    leftovers = [path for folder in (run, run / STATES, run / "checkpoints") for path in folder.glob(".*.tmp")]
    checkpoints = sorted((run / "checkpoints").glob("*.safetensors"))
    if states or leftovers:
        yield Prunable(run, "state of a finished run", [*states, *leftovers])
    if checkpoints and is_old and with_loras:
        yield Prunable(run, "checkpoints of a finished run", checkpoints)


def _has_result(run: Path) -> bool:
    """Whether the run has its LoRA, wherever that is."""
    path = get_text(read_object(run / RESULT, []), "path")
    return (bool(path) and Path(path).is_file()) or any(run.glob("*.safetensors"))


def _is_own(path: Path) -> bool:
    return path.name in _OWN or path.suffix in (".tmp", ".safetensors")


def delete(prunable: Prunable) -> int:
    """Delete it, and the folder if it is empty then. Return the number of bytes.

    Raises:
        RunInUse: a process has begun to train the run.
        OSError: something cannot be deleted.
    """
    num_bytes = prunable.num_bytes
    with RunLock(prunable.run):
        for path in prunable.paths:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != "lock":
                path.unlink(missing_ok=True)
    if any(path.name == "manifest.json" for path in prunable.paths):
        _remove_folder(prunable.run)
    return num_bytes


def _remove_folder(run: Path) -> None:
    """Remove the lock, and the folder unless there is something of another program in it."""
    with suppress(OSError):
        (run / "lock").unlink(missing_ok=True)
        run.rmdir()
