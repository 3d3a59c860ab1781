"""The cost of a training: steps, memory, disk space and, known from an earlier run, time."""

from dataclasses import dataclass
from pathlib import Path

from ..training.plan import TrainingPlan
from ..training.schedule import Schedule
from .disk_use import DiskUse, estimate_disk_use
from .earlier_runs import EarlierRun, find_latest_run_like
from .family_check import ConfigT, FamilyCheck


@dataclass(frozen=True)
class Cost:
    """The cost of a training. None: unknown, without an earlier run or with nothing to train."""

    schedule: Schedule | None = None
    memory_text: str = ""
    memory_bytes: int | None = None
    disk: DiskUse | None = None
    earlier_run: EarlierRun | None = None

    @property
    def seconds(self) -> float | None:
        """The time for the steps alone, without loading and caching."""
        if self.earlier_run is None or self.schedule is None:
            return None
        return self.schedule.total_steps * self.earlier_run.seconds_per_step


@dataclass(frozen=True)
class Surroundings:
    """The machine: the memory of its GPU if known, the output folder, and the device as torch calls
    it ("": unknown).
    """

    device_bytes: int | None = None
    output_folder: Path = Path("output")
    device: str = ""


def estimate_cost(plan: TrainingPlan[ConfigT], family: FamilyCheck[ConfigT], surroundings: Surroundings) -> Cost:
    config, buckets = plan.settings.training, plan.settings.buckets
    of_family = family.estimate(plan)
    disk = estimate_disk_use(plan, of_family.cache, num_parameters=of_family.num_parameters)
    settings = {
        "training": {name: getattr(config, name) for name in family.speed_settings},
        "buckets": {"resolution": buckets.resolution, "extra_resolutions": buckets.extra_resolutions},
        "base_model": family.base_model,
    }
    earlier_run = find_latest_run_like(surroundings.output_folder / "runs", settings, precision=family.precision)
    memory = of_family.memory
    memory_text = ". ".join([memory.text(), *of_family.notes])
    return Cost(plan.schedule, memory_text, memory.total_bytes, disk, earlier_run)
