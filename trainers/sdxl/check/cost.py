"""The cost of an SDXL training: steps, memory, disk space and, known from an earlier run, time."""

from dataclasses import dataclass
from pathlib import Path

from ...training.plan import TrainingPlan
from ...training.schedule import Schedule
from ..config import SDXLConfig
from .disk_use import DiskUse, estimate_disk_use
from .earlier_runs import EarlierRun, find_latest_run_like

# The settings that decide the speed of a step, apart from image sizes.
SPEED_SETTINGS = (
    "train_batch_size",
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "optimizer",
    "train_text_encoders",
    "target_modules",
    "rank",
    "prior_loss_weight",
)


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
    """The machine: its precision, the memory of its GPU if known, and the output folder."""

    precision: str = "bf16"
    device_bytes: int | None = None
    output_folder: Path = Path("output")


def estimate_cost(plan: TrainingPlan[SDXLConfig], surroundings: Surroundings) -> Cost:
    # diffusers takes seconds to import
    from ...captions.clip_tokenizer import count_chunks, token_ids
    from ..model.standard_unet import standard_unet
    from .memory import bytes_per_parameter, estimate_memory

    config, buckets = plan.settings.training, plan.settings.buckets
    largest_hw = max(plan.crops.bucket_counts, key=lambda size: size[0] * size[1])
    memory = estimate_memory(standard_unet(), config, size_hw=largest_hw, precision=surroundings.precision)
    num_parameters = round(memory.adapters_bytes / bytes_per_parameter(config.optimizer))
    num_chunks = [count_chunks(len(ids)) for ids in token_ids(plan.texts.list_all())]
    disk = estimate_disk_use(
        plan.all_items,
        config,
        plan.schedule,
        chunks_by_text=num_chunks,
        random_flip=buckets.random_flip,
        num_parameters=num_parameters,
    )
    resolutions = {"resolution": buckets.resolution, "extra_resolutions": buckets.extra_resolutions}
    settings = {"training": {name: getattr(config, name) for name in SPEED_SETTINGS}, "buckets": resolutions}
    earlier_run = find_latest_run_like(surroundings.output_folder / "runs", settings, precision=surroundings.precision)
    return Cost(plan.schedule, memory.text(), memory.total_bytes, disk, earlier_run)
