"""What an SDXL training will cost: steps, memory, disk space and, from an earlier run, time."""

from dataclasses import dataclass
from pathlib import Path

from ...training.plan import TrainingPlan
from ...training.schedule import Schedule
from ..config import SDXLConfig
from .disk_use import DiskUse, estimate_disk_use
from .earlier_runs import EarlierRun, latest_run_like

# What decides the speed of a step, beside the images' sizes.
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
    """None: not known, because there is nothing to train."""

    schedule: Schedule | None = None
    memory_text: str = ""
    memory_bytes: int | None = None
    disk: DiskUse | None = None
    earlier_run: EarlierRun | None = None

    @property
    def seconds(self) -> float | None:
        """For the steps alone, without loading and caching."""
        if self.earlier_run is None or self.schedule is None:
            return None
        return self.schedule.total_steps * self.earlier_run.seconds_per_step


@dataclass(frozen=True)
class Surroundings:
    """The machine: the precision that it computes in, its GPU's memory where that is known, and
    where the run will write.
    """

    precision: str = "bf16"
    device_bytes: int | None = None
    output_folder: Path = Path("output")


def estimate_cost(plan: TrainingPlan[SDXLConfig], surroundings: Surroundings) -> Cost:
    # diffusers takes seconds to import: not before it is needed
    from ...captions.clip_tokenizer import count_chunks, token_ids
    from ..model.standard_unet import standard_unet
    from .memory import bytes_per_parameter, estimate_memory

    config, buckets = plan.settings.training, plan.settings.buckets
    largest_hw = max(plan.crops.bucket_counts, key=lambda size: size[0] * size[1])
    memory = estimate_memory(standard_unet(), config, size_hw=largest_hw, precision=surroundings.precision)
    num_parameters = round(memory.adapters_bytes / bytes_per_parameter(config.optimizer))
    num_chunks = [count_chunks(len(ids)) for ids in token_ids(plan.texts.all())]
    disk = estimate_disk_use(
        plan.crops,
        config,
        plan.schedule,
        chunks_by_text=num_chunks,
        random_flip=buckets.random_flip,
        num_parameters=num_parameters,
    )
    resolutions = {"resolution": buckets.resolution, "extra_resolutions": buckets.extra_resolutions}
    settings = {"training": {name: getattr(config, name) for name in SPEED_SETTINGS}, "buckets": resolutions}
    earlier_run = latest_run_like(surroundings.output_folder / "runs", settings, precision=surroundings.precision)
    return Cost(plan.schedule, memory.text(), memory.total_bytes, disk, earlier_run)
