"""What must be true of the files of a run, whatever has happened to it."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file

from trainers.training.resume.run_lock import is_locked
from trainers.training.resume.state_file import DamagedState, read_state


def list_damage(folder: Path, *, after_power_cut: bool = False) -> list[str]:
    """Every file that has its final name is whole, and no run is locked. progress.json is not
    synced, as nothing is restored from it: a power cut may empty it.
    """
    damaged = [f"{path.name}: {reason}" for path in _list_final(folder) if (reason := _find_damage(path))]
    if after_power_cut:
        damaged = [entry for entry in damaged if not entry.startswith("progress.json")]
    return damaged + [f"{run.name} is locked" for run in list_runs(folder) if is_locked(run)]


def list_runs(folder: Path) -> list[Path]:
    return sorted((folder / "runs").iterdir()) if (folder / "runs").is_dir() else []


def _list_final(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".safetensors", ".json", ".png") and not path.name.startswith("."):
            yield path


def _find_damage(path: Path) -> str:
    try:
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".png":
            with Image.open(path) as image:
                image.load()
        elif path.parent.name == "state":
            read_state(path)
        else:
            load_file(path)
    except (OSError, ValueError, SafetensorError, DamagedState) as error:
        return f"{type(error).__name__} {error}"
    return ""


def list_leftovers(folder: Path) -> list[str]:
    """Temporary files in runs that have their LoRA."""
    return [str(path.name) for run in list_runs(folder) if (run / "result.json").exists() for path in run.rglob(".*")]


def compare_with(whole: Path, folder: Path, *, was_full: bool = False) -> list[str]:
    """What is not as in the run that nothing has happened to. Of a disk that was full for a moment
    a LoRA may be in the run's folder, as its own could not be written then.
    """
    (reference,) = list_runs(whole)
    finished = [run for run in list_runs(folder) if (run / "result.json").exists()]
    if len(finished) != 1:
        return [f"{len(finished)} runs are finished"]
    problems = []
    for key in ("path", "ema_path"):
        ours, theirs = (_read_result(run, key) for run in (finished[0], reference))
        problems += [] if _are_equal(ours, theirs) else [f"{key}: another LoRA"]
    ours, theirs = (_read_losses(run) for run in (finished[0], reference))
    if ours != theirs:
        problems.append(f"loss.csv: {len(ours)} rows, not those {len(theirs)}")
    problems += _compare_validation(finished[0], reference)
    names = [{path.name for path in folder.glob("*.safetensors")} for folder in (folder, whole)]
    if names[0] != names[1] and not was_full:
        problems.append(f"the LoRAs are {sorted(names[0])}")
    return problems + [f"left over: {name}" for name in list_leftovers(folder)]


def _compare_validation(run: Path, reference: Path) -> list[str]:
    """The curve, the best step and its LoRA, and why the run has ended."""
    curves = [
        path.read_text() if path.exists() else "" for path in (run / "validation.csv", reference / "validation.csv")
    ]
    problems = [] if curves[0] == curves[1] else ["validation.csv: another curve"]
    ours, theirs = (json.loads((each / "result.json").read_text()) for each in (run, reference))
    if ours["reason"] != theirs["reason"]:
        problems.append(f"it ended with {ours['reason']!r}, not {theirs['reason']!r}")
    ours, theirs = (result["best"] or {"step": None, "path": None} for result in (ours, theirs))
    if ours["step"] != theirs["step"]:
        problems.append(f"the best step is {ours['step']}, not {theirs['step']}")
    elif theirs["path"] and not _are_equal(Path(ours["path"]), Path(theirs["path"])):
        problems.append("the best step: another LoRA")
    return problems


def _read_result(run: Path, key: str) -> Path | None:
    name = json.loads((run / "result.json").read_text())[key]
    return Path(name) if name else None


def _are_equal(path: Path | None, other: Path | None) -> bool:
    if path is None or other is None or not path.exists():
        return path is other
    ours, theirs = load_file(path), load_file(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def _read_losses(run: Path) -> list[tuple[str, str]]:
    with open(run / "loss.csv", newline="") as stream:
        return [(row["step"], row["loss"]) for row in csv.DictReader(stream)]
