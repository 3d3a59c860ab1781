"""How fast earlier runs were: their settings and speed, from the manifest.json and loss.csv that
RunFolder wrote.
"""

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

MIN_STEPS = 20  # the first ones are slower
PRIOR = "prior_loss_weight"
# With prior_loss_weight a step has two forward passes and one backward pass more. Measured on a
# CPU: 2.2 times the time of a step without, with and without gradient checkpointing; 2.4 times with
# the encoding of the captions and all else.
PRIOR_STEP_TIME = 2.3


@dataclass(frozen=True)
class EarlierRun:
    """`factor` is in seconds_per_step: the run had prior preservation and the new one will not, or
    the reverse.
    """

    name: str
    device: str
    base_model: str
    num_steps: int
    seconds_per_step: float
    factor: float = 1.0

    def times(self, factor: float) -> "EarlierRun":
        return replace(self, seconds_per_step=self.seconds_per_step * factor, factor=factor)

    def text(self) -> str:
        where = f"{self.name} on {self.device} with {self.base_model}"
        if self.factor == 1:
            return f"{self.seconds_per_step:.2f} s per step, as in {where}"
        prior = "with" if self.factor > 1 else "without"
        return (
            f"{self.seconds_per_step:.2f} s per step, reckoned {prior} prior_loss_weight from the "
            f"{self.seconds_per_step / self.factor:.2f} s in {where}"
        )


def latest_run_like(
    runs_folder: Path, settings: Mapping[str, Mapping[str, Any]], *, precision: str
) -> EarlierRun | None:
    """The latest run of MIN_STEPS or more whose manifest has these values, in its sections
    "training" and "buckets".

    prior_loss_weight matters only as on or off. One in which that is as here comes first; its time
    is not reckoned.
    """
    wanted = {
        section: {name: value for name, value in values.items() if name != PRIOR}
        for section, values in settings.items()
    }
    has_prior = bool(settings.get("training", {}).get(PRIOR))
    found = list(_runs_like(runs_folder, wanted, precision=precision))
    same = (run for run, has_own_prior in found if has_own_prior == has_prior)
    other = (run.times(PRIOR_STEP_TIME if has_prior else 1 / PRIOR_STEP_TIME) for run, _ in found)
    return next(chain(same, other), None)


def _runs_like(
    runs_folder: Path, settings: Mapping[str, Mapping[str, Any]], *, precision: str
) -> Iterator[tuple[EarlierRun, bool]]:
    """The latest first, each with whether it had prior preservation."""
    for manifest_file in sorted(
        runs_folder.glob("*/manifest.json"), key=lambda path: path.stat().st_mtime, reverse=True
    ):
        try:
            manifest = json.loads(manifest_file.read_text(encoding="utf-8"))
        except ValueError:
            continue  # a run that was stopped while it wrote it
        if _has(manifest, settings) and manifest.get("precision") == precision:
            run = _read(manifest_file.parent, manifest)
            if run is not None and run.num_steps >= MIN_STEPS:
                yield run, bool(manifest.get("training", {}).get(PRIOR))


def _has(manifest: Mapping[str, Any], settings: Mapping[str, Mapping[str, Any]]) -> bool:
    return all(
        manifest.get(section, {}).get(name) == value
        for section, values in settings.items()
        for name, value in values.items()
    )


def _read(folder: Path, manifest: Mapping[str, Any]) -> EarlierRun | None:
    rows = list(_rows(folder / "loss.csv"))
    if not rows or not rows[-1][1]:
        return None
    base_model = str(manifest.get("base_model", {}).get("name") or "an unnamed model")
    num_steps, steps_per_second = rows[-1]
    return EarlierRun(
        folder.name, str(manifest.get("device", "an unknown device")), base_model, num_steps, 1 / steps_per_second
    )


def _rows(path: Path) -> Iterator[tuple[int, float]]:
    """(step, steps per second so far); a last line that was cut off is passed over."""
    if not path.is_file():
        return
    with open(path, newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            if row.get("step") and row.get("steps_per_second"):
                yield int(row["step"]), float(row["steps_per_second"])
