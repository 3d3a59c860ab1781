"""A run as its folder tells it: a summary for lists, and a record with all that a panel shows."""

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...wording import pluralize
from ..resume.run_lock import is_locked
from .curve import CurvePoints, LossCurve
from .fields import get_number, get_text, get_texts, get_whole, read_object
from .files import LoraFile, Sample, Validation, list_loras, list_samples, read_validation

STATUSES = ("running", "finished", "finished early", "cancelled", "paused", "failed")
REQUESTS = ("finish", "pause")
MAX_SAMPLES = 12
MAX_LORAS = 200
_STARTED = re.compile(r".*-(\d{8}-\d{6})(?: \(\d+\)|-\d+)?")


@dataclass(frozen=True)
class RunSummary:
    """A line in a list of runs. Times are in seconds since 1970, None if unknown."""

    name: str
    status: str
    stage: str
    step: int
    total: int
    started_at: float | None
    updated_at: float | None
    average_loss: float | None
    node_id: str
    workflow_id: str | None
    prompt_id: str
    can_ask: bool  # to finish or to pause


@dataclass(frozen=True)
class RunRecord:
    """Everything about a run, with lists of bounded length. `requests`: what it was asked for and
    has not done yet. `notes`: what of the folder could not be read.
    """

    summary: RunSummary
    loss: float | None
    learning_rate: float | None
    steps_per_second: float | None
    eta_seconds: float | None
    memory_bytes: int
    memory_budget_bytes: int
    message: str
    settings: str
    notices: list[str]
    requests: list[str]
    curve: CurvePoints
    validation: Validation
    samples: list[Sample]
    num_samples: int
    loras: list[LoraFile]
    num_loras: int
    notes: list[str]


def is_run_folder(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("progress.json", "manifest.json", "loss.csv"))


def read_summary(folder: Path) -> RunSummary:
    return _summarize(folder, read_object(folder / "progress.json", []), last_step=0)


def read_record(folder: Path, curve: LossCurve, *, max_points: int) -> RunRecord:
    """Read the folder. `curve` must be that of its loss.csv; what is new in the file is added to
    it.
    """
    notes: list[str] = []
    progress = read_object(folder / "progress.json", notes)
    result = read_object(folder / "result.json", notes)
    curve.refresh()
    if curve.num_unreadable:
        notes.append(f"loss.csv: {pluralize(curve.num_unreadable, 'line')} cannot be read")
    samples, num_samples = list_samples(folder, max_samples=MAX_SAMPLES)
    loras, num_loras = list_loras(folder, progress, result, max_loras=MAX_LORAS)
    return RunRecord(
        summary=_summarize(folder, progress, last_step=curve.last_step),
        loss=get_number(progress, "loss"),
        learning_rate=get_number(progress, "learning_rate"),
        steps_per_second=get_number(progress, "steps_per_second"),
        eta_seconds=get_number(progress, "eta_seconds"),
        memory_bytes=get_whole(progress, "memory_bytes"),
        memory_budget_bytes=get_whole(progress, "memory_budget_bytes"),
        message=get_text(progress, "message"),
        settings=get_text(progress, "settings"),
        notices=get_texts(progress, "notices"),
        requests=[name for name in REQUESTS if (folder / name).is_file()],
        curve=curve.points(max_points),
        validation=read_validation(folder, progress, notes),
        samples=samples,
        num_samples=num_samples,
        loras=loras,
        num_loras=num_loras,
        notes=notes,
    )


def _summarize(folder: Path, progress: dict[str, Any], *, last_step: int) -> RunSummary:
    origin = read_object(folder / "origin.json", [])
    status, is_alive = _find_status(folder, progress)
    return RunSummary(
        name=folder.name,
        status=status,
        stage=get_text(progress, "stage"),
        step=max(get_whole(progress, "step"), last_step),
        total=get_whole(progress, "total") or _read_total(folder, progress),
        started_at=get_number(progress, "started_at") or _read_start(folder.name),
        updated_at=get_number(progress, "updated_at"),
        average_loss=get_number(progress, "average_loss"),
        node_id=get_text(origin, "node_id"),
        workflow_id=get_text(origin, "workflow_id") or None,
        prompt_id=get_text(origin, "prompt_id"),
        can_ask=is_alive and status == "running",
    )


def _find_status(folder: Path, progress: dict[str, Any]) -> tuple[str, bool]:
    """Return the status, and whether the run's process is alive, which only matters while it seems
    to run.
    """
    written = get_text(progress, "status")
    if written in STATUSES and written != "running":
        return written, False
    if is_locked(folder):
        return "running", True
    if written == "running":
        return "stopped", False
    is_saved = any(folder.glob("*.safetensors"))  # a run of a version that wrote no progress.json
    return ("finished" if is_saved else "stopped"), False


def _read_total(folder: Path, progress: dict[str, Any]) -> int:
    """Old runs have no progress.json; the manifest can be large and is read for them only."""
    return 0 if progress else get_whole(read_object(folder / "manifest.json", []), "total_steps")


def _read_start(name: str) -> float | None:
    """Return the time in the folder's name."""
    match = _STARTED.fullmatch(name)
    try:
        return time.mktime(time.strptime(match[1], "%Y%m%d-%H%M%S")) if match else None
    except (ValueError, OverflowError):
        return None
