"""What differs between runs: their settings, dataset and base model, and how their losses ended."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..resume.file_names import RESULT
from .curve import LossCurve
from .fields import get_text, read_object
from .record import RunRecord, read_record

MAX_POINTS = 400
# What a run has found or made, or what says nothing of its training.
_NO_SETTINGS = ("versions", "continued_from", "finished_early", "images", "notes", "left_out")


@dataclass(frozen=True)
class ComparedRun:
    """A run, and everything that its manifest says by "section.name"."""

    record: RunRecord
    facts: dict[str, Any]
    lora: str  # the path of the result, "" without one

    @property
    def name(self) -> str:
        return self.record.summary.name

    @property
    def points(self) -> list[tuple[int, float]]:
        """The loss over the steps, averaged."""
        curve = self.record.curve
        return [
            (step, loss if average is None else average)
            for step, loss, average in zip(curve.step, curve.loss, curve.average, strict=True)
        ]


def read_run(folder: Path) -> ComparedRun:
    record = read_record(folder, LossCurve(folder / "loss.csv"), max_points=MAX_POINTS)
    manifest = read_object(folder / "manifest.json", record.notes)
    facts = {name: value for name, value in manifest.items() if name not in _NO_SETTINGS}
    lora = get_text(read_object(folder / RESULT, record.notes), "path")
    return ComparedRun(record, dict(_flatten(facts)), lora)


def _flatten(entries: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in entries.items():
        if isinstance(value, dict) and name not in _NO_SETTINGS:
            yield from _flatten(value, f"{prefix}{name}.")
        elif name not in _NO_SETTINGS:
            yield f"{prefix}{name}", value


def list_differences(runs: Sequence[ComparedRun]) -> list[tuple[str, list[str]]]:
    """Return the facts that are not the same in all runs, with the value of each run."""
    names = dict.fromkeys(name for run in runs for name in run.facts)
    rows = [(name, [_show(run.facts.get(name)) for run in runs]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def list_results(runs: Sequence[ComparedRun]) -> list[tuple[str, list[str]]]:
    """Return how far the runs are, and their losses."""
    records = [run.record for run in runs]
    return [
        ("status", [record.summary.status for record in records]),
        ("steps", [f"{record.summary.step} of {record.summary.total}" for record in records]),
        ("last average loss", [_show(run.points[-1][1] if run.points else None) for run in runs]),
        ("lowest average loss", [_show(min((loss for _, loss in run.points), default=None)) for run in runs]),
        ("validation", [record.validation.kind or "-" for record in records]),
        ("best validation loss", [_find_best(record) for record in records]),
        ("last validation loss", [_show(record.validation.loss[-1:] or None) for record in records]),
    ]


def _find_best(record: RunRecord) -> str:
    validation = record.validation
    if not validation.loss:
        return "-"
    loss, step = min(zip(validation.loss, validation.step, strict=True))
    return f"{loss:.4g} at step {step}"


def _show(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list) and len(value) == 1:
        return _show(value[0])
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)
