"""One run of the real trainer, watched: its losses, its times, its memory, its prepared model."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from trainers.dataset.config import DatasetConfig
from trainers.dataset.dataset import Dataset
from trainers.dataset.scan import scan_folder
from trainers.files.tensor_cache import TensorCache
from trainers.sdxl.check.out_of_memory import explaining_out_of_memory
from trainers.sdxl.config import SDXLConfig
from trainers.sdxl.family import SDXLFamily
from trainers.sdxl.prepared_model import PreparedSDXL
from trainers.training.device import DeviceMemory
from trainers.training.distributed import World
from trainers.training.events import Event, Interrupted, Notice, SamplesDrawn, StageStarted, StepDone
from trainers.training.host import Host
from trainers.training.loop import train_lora
from trainers.training.plan import TrainingPlan, plan_training
from trainers.training.run_folder import RunFolder
from trainers.training.run_settings import RunSettings
from trainers.training.trained_lora import TrainedLora

from .bench import Bench, LoadModel
from .report import Report

OnStep = Callable[["Trial", StepDone], None]
COMMON = {
    "lr_warmup_steps": 0.0,
    "learning_rate": 1e-3,
    "validate_every_n_steps": -1,
    "save_state_every_n_minutes": 0.0,
    "save_dtype": "fp32",
}


class OutOfTime(Interrupted):
    """The section's share of the time is used up."""


class WatchingHost(DeviceMemory):
    """The host of a trial. It stops the run at the section's deadline."""

    def __init__(self, trial: "Trial", deadline: float, on_step: Sequence[OnStep]) -> None:
        super().__init__(trial.device)
        self._trial = trial
        self._deadline = deadline
        self._on_step = on_step
        self._stage = "loading"

    def check_interrupted(self) -> None:
        if time.monotonic() > self._deadline:
            raise OutOfTime("the section's time is used up")

    def take_request(self) -> None:
        return None

    def report(self, event: Event) -> None:
        match event:
            case StageStarted(stage=stage):
                self.end_stage(stage)
            case StepDone():
                self._trial.add_step(event)
                for each in self._on_step:
                    each(self._trial, event)
            case SamplesDrawn():
                self._trial.num_samples += 1
            case Notice(message):
                self._trial.notices.append(message)

    def end_stage(self, next_stage: str) -> None:
        """Keep the peak of the stage that ends: the training itself begins with a new one."""
        peaks = self._trial.peak_bytes
        if self.device.type == "cuda":
            peaks[self._stage] = max(peaks.get(self._stage, 0), self.peak_memory_bytes())
        self._stage = next_stage
        self.reset_peak_memory()


class WatchedFamily(SDXLFamily):
    """SDXL, whose prepared model the trial can look at."""

    def __init__(self, trial: "Trial", load_model: LoadModel) -> None:
        super().__init__(lambda _: load_model())
        self._trial = trial

    def prepare(self, plan: TrainingPlan[SDXLConfig], host: Host, *, cache: TensorCache, world: World) -> PreparedSDXL:
        prepared = super().prepare(plan, host, cache=cache, world=world)
        self._trial.model = prepared
        for each in self._trial.on_prepared:
            each(prepared)
        return prepared


@dataclass
class Trial:
    """A run of the trainer in the folder `folder`. `train` can be called again, to go on."""

    bench: Bench
    report: Report
    folder: Path
    dataset: Dataset
    load_model: LoadModel
    device: torch.device
    settings: dict[str, Any]
    cache: TensorCache = field(default_factory=lambda: TensorCache(None))
    on_step: list[OnStep] = field(default_factory=list)
    on_prepared: list[Callable[[PreparedSDXL], None]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    peak_bytes: dict[str, int] = field(default_factory=dict)  # allocated, by stage; on CUDA only
    num_samples: int = 0
    model: PreparedSDXL | None = None
    run_folder: RunFolder | None = None

    def train(self, *, resume: str = "new") -> TrainedLora:
        """Train, then let go of the model: its memory is free again."""
        host = WatchingHost(self, self.report.deadline, self.on_step)
        self.run_folder = RunFolder(self.folder, "lora")
        plan = self.plan()
        try:
            with explaining_out_of_memory(plan, host.device):
                return train_lora(
                    WatchedFamily(self, self.load_model),
                    plan,
                    host,
                    run_folder=self.run_folder,
                    cache=self.cache,
                    resume=resume,
                )
        finally:
            host.end_stage("ended")
            self.model = None
            self.bench.free()

    def plan(self) -> TrainingPlan[SDXLConfig]:
        return plan_training(self.dataset, RunSettings.read(SDXLConfig, self.settings))

    def add_step(self, event: StepDone) -> None:
        self.times.append(time.perf_counter())
        self.losses.append(event.loss)

    def seconds_per_step(self, *, warm_up: int) -> float:
        """Return the mean of the steps after the first `warm_up` ones. Each step ends with the only
        wait for the device, so the clock of the host is right.
        """
        times = self.times[warm_up - 1 :]
        return (times[-1] - times[0]) / (len(times) - 1)


def make_trial(
    bench: Bench,
    report: Report,
    name: str,
    *,
    load_model: LoadModel | None = None,
    device: torch.device | None = None,
    size_wh: tuple[int, int] | None = None,
    num_images: int = 2,
    **settings: Any,
) -> Trial:
    """Prepare a run on the tiny model (or `load_model`) with images of one size."""
    size_wh = size_wh or (64, 64)
    area = (size_wh[0] * size_wh[1]) ** 0.5
    sizes = {"resolution": round(area / 64) * 64, "bucket_reso_steps": bench.sizes.bucket_reso_steps}
    return Trial(
        bench,
        report,
        bench.out / "runs" / report.name / name,
        draw_dataset(bench.out / "images", size_wh, num_images),
        load_model or bench.load_tiny,
        device or bench.device,
        {**COMMON, **sizes, "max_bucket_reso": 2048, "max_train_steps": 4, **settings},
    )


def draw_dataset(folder: Path, size_wh: tuple[int, int], num_images: int) -> Dataset:
    """Draw images of coloured noise with captions, once per size and number."""
    width, height = size_wh
    folder = folder / f"{num_images} of {width}x{height}"
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(num_images):
        coarse = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8))
        coarse.resize(size_wh, Image.Resampling.BICUBIC).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a thing, number {number}")
    return scan_folder(DatasetConfig(images=str(folder), trigger_word="zwx"))
