"""Everything that a run writes: manifest, dataset report, losses, samples, checkpoints, the LoRA.

With several processes only the main one writes.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files.names import find_free_path
from ..lora.file import Verification, save_lora, to_kohya, verify_lora
from .distributed import World
from .events import CheckpointSaved, Notice, SamplesDrawn, StageStarted, StepDone
from .family import PreparedModel, Progress
from .host import Host
from .plan import TrainingPlan
from .run_folder import RunFolder
from .trained_lora import TrainedLora

SAVE_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class RunWriter:
    """Knows which files are due after a step, and writes them into the run folder."""

    def __init__(
        self, model: PreparedModel, plan: TrainingPlan, host: Host, run_folder: RunFolder, world: World
    ) -> None:
        self._model = model
        self._plan = plan
        self._config = plan.settings.training
        self._host = host
        self._folder = run_folder
        self._world = world
        self._losses: list[float] = []
        self._checkpoints: list[Path] = []
        self._started_at = time.time()

    @contextmanager
    def open(self) -> Iterator[None]:
        """Make the run folder, keep its logs open inside the block, and plot the losses at its
        end.
        """
        if not self._world.is_main:
            yield
            return
        self._folder.create(self._build_manifest())
        self._folder.write_text("dataset.txt", self._plan.crops.report.text())
        with self._folder.log() as self._loss_log:
            try:
                yield
            finally:
                if self._losses:
                    self._folder.write_loss_plot(self._losses)

    def add_loss(self, event: StepDone) -> None:
        self._losses.append(event.loss)
        if self._world.is_main:
            self._loss_log.add(event)

    def save_due_checkpoints(self, step: int, epoch: int) -> None:
        for path in self._list_due_checkpoints(step, epoch):
            self._save_checkpoint(path)

    def save_last_step(self) -> None:
        """Save a checkpoint of the last finished step, if any, of a run that ends early."""
        self._save_checkpoint(self._folder.checkpoint_path(step=len(self._losses)))

    def draw_due_samples(self, step: int) -> None:
        every = self._config.sample_every_n_steps
        if not every or step % every or not self._world.is_main:
            return
        image = self._model.draw_samples()
        self._host.report(SamplesDrawn(image, self._folder.write_samples(image, step=step), step))

    def save_final(self) -> TrainedLora:
        self._host.report(StageStarted("saving"))
        # another run may have taken the name since this one began
        path = find_free_path(self._folder.final_path)
        if self._world.is_main:
            verification = self._write_lora(path)
            self._host.report(Notice(f"{path}: {self._summarize(verification)}"))
        self._world.wait_for_all()
        state_dict, metadata = self._build_lora(path.stem)
        return TrainedLora(state_dict, metadata, self._losses, len(self._losses), path, self._checkpoints)

    def _summarize(self, verification: Verification) -> str:
        duration = time.strftime("%H:%M:%S", time.gmtime(time.time() - self._started_at))
        num_parameters = self._model.adapted.num_parameters
        return f"{verification.text()}, {num_parameters:,} parameters, {len(self._losses)} steps in {duration}"

    def _list_due_checkpoints(self, step: int, epoch: int) -> Iterator[Path]:
        every_steps, every_epochs = self._config.save_every_n_steps, self._config.save_every_n_epochs
        schedule = self._plan.schedule
        if step == schedule.total_steps:
            return
        if every_steps and step % every_steps == 0:
            yield self._folder.checkpoint_path(step=step)
        if every_epochs and step % (every_epochs * schedule.steps_per_epoch) == 0:
            yield self._folder.checkpoint_path(step=step, epoch=epoch)

    def _save_checkpoint(self, path: Path) -> None:
        """Save a checkpoint, unless no step is finished or these weights are already saved."""
        if self._losses and self._world.is_main and not path.exists():
            self._write_lora(path)
            self._checkpoints.append(path)
            self._host.report(CheckpointSaved(path, len(self._losses)))

    def _write_lora(self, path: Path) -> Verification:
        """Save the LoRA, load it back and verify it."""
        save_lora(path, *self._build_lora(path.stem))
        adapted = self._model.adapted
        return verify_lora(path, adapted.names, expected=list(adapted.read(alpha=self._config.alpha)))

    def _build_lora(self, title: str) -> tuple[dict[str, Tensor], dict[str, str]]:
        adapted = self._model.adapted
        modules = adapted.read(alpha=self._config.alpha)
        tensors = to_kohya(modules, adapted.names, dtype=SAVE_DTYPES[self._config.save_dtype])
        return tensors, self._model.metadata(Progress(title, len(self._losses), self._started_at))

    def _build_manifest(self) -> dict[str, Any]:
        plan, adapted = self._plan, self._model.adapted
        return {
            **plan.settings.to_dict(),
            "dataset": {
                **plan.crops.report.to_dict(),
                "num_repeats": plan.dataset.num_repeats,
                "images": {
                    image.name: {"sha256": image.sha256, "caption": image.caption} for image in plan.dataset.images
                },
            },
            **self._model.facts(),
            "precision": self._model.precision,
            "device": str(self._host.device),
            "num_processes": self._world.size,
            "total_steps": plan.schedule.total_steps,
            "trainable_parameters": adapted.num_parameters,
            "modules": adapted.count_modules(),
        }
