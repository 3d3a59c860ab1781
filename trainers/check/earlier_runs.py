"""How fast earlier runs were, from the manifest.json and loss.csv that RunFolder wrote."""

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from ..files.text_input import parse_json
from ..training.prior_preservation import PRIOR_STEP_TIME

MIN_STEPS = 20  # the first ones are slower
PRIOR = "prior_loss_weight"


@dataclass(frozen=True)
class EarlierRun:
    """`factor` is included in seconds_per_step. It is not 1 if only one of this run and the new one
    has prior preservation.
    """

    name: str
    device: str
    base_model: str
    num_steps: int
    seconds_per_step: float
    factor: float = 1.0

    def scale_by(self, factor: float) -> "EarlierRun":
        return replace(self, seconds_per_step=self.seconds_per_step * factor, factor=factor)

    def text(self) -> str:
        where = f"{self.name} on {self.device} with {self.base_model}"
        if self.factor == 1:
            return f"{self.seconds_per_step:.2f} s per step, as in {where}"
        prior = "with" if self.factor > 1 else "without"
        return (
            f"{self.seconds_per_step:.2f} s per step, estimated {prior} prior_loss_weight from the "
            f"{self.seconds_per_step / self.factor:.2f} s in {where}"
        )


def find_latest_run_like(
    runs_folder: Path, settings: Mapping[str, Mapping[str, Any]], *, precision: str
) -> EarlierRun | None:
    """Find the latest run of at least MIN_STEPS whose manifest has these values in its sections
    "training" and "buckets".

    Of prior_loss_weight only on or off matters. A run with the same comes first; the time of
    another is scaled.
    """
    wanted = {
        section: {name: value for name, value in values.items() if name != PRIOR}
        for section, values in settings.items()
    }
    has_prior = bool(settings.get("training", {}).get(PRIOR))
    found = list(_find_runs_like(runs_folder, wanted, precision=precision))
    same = (run for run, has_own_prior in found if has_own_prior == has_prior)
    other = (run.scale_by(PRIOR_STEP_TIME if has_prior else 1 / PRIOR_STEP_TIME) for run, _ in found)
    return next(chain(same, other), None)


def _find_runs_like(
    runs_folder: Path, settings: Mapping[str, Mapping[str, Any]], *, precision: str
) -> Iterator[tuple[EarlierRun, bool]]:
    """Yield the runs, latest first, and whether each had prior preservation."""
    for manifest_file in sorted(
        runs_folder.glob("*/manifest.json"), key=lambda path: path.stat().st_mtime, reverse=True
    ):
        try:
            manifest = parse_json(manifest_file.read_text(encoding="utf-8"))
        except ValueError:
            continue  # the run was stopped while it wrote this file
        if _has_settings(manifest, settings) and manifest.get("precision") == precision:
            run = _read_run(manifest_file.parent, manifest)
            if run is not None and run.num_steps >= MIN_STEPS:
                yield run, bool(manifest.get("training", {}).get(PRIOR))


def _has_settings(manifest: Mapping[str, Any], settings: Mapping[str, Mapping[str, Any]]) -> bool:
    return all(
        manifest.get(section, {}).get(name) == value
        for section, values in settings.items()
        for name, value in values.items()
    )


def _read_run(folder: Path, manifest: Mapping[str, Any]) -> EarlierRun | None:
    rows = list(_read_rows(folder / "loss.csv"))
    if not rows or not rows[-1][1]:
        return None
    base_model = str(manifest.get("base_model", {}).get("name") or "an unnamed model")
    num_steps, steps_per_second = rows[-1]
    return EarlierRun(
        folder.name, str(manifest.get("device", "an unknown device")), base_model, num_steps, 1 / steps_per_second
    )


def _read_rows(path: Path) -> Iterator[tuple[int, float]]:
    """Yield (step, steps per second so far). A last line that was cut off is skipped."""
    if not path.is_file():
        return
    with open(path, newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            if row.get("step") and row.get("steps_per_second"):
                yield int(row["step"]), float(row["steps_per_second"])
