"""Everything that a run writes: manifest, dataset report, losses, samples, checkpoints, the LoRA.

With several processes only the main one writes.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..files.names import save_under_free_name
from ..lora.file import Verification, save_lora, to_kohya, verify_lora
from .distributed import World
from .events import CheckpointSaved, Notice, SamplesDrawn, StageStarted, StepDone
from .family import PreparedModel, Progress
from .host import Host
from .plan import TrainingPlan
from .run_folder import LossLog, RunFolder
from .trained_lora import TrainedLora

SECONDS_BETWEEN_TRIES = 60.0  # of a checkpoint that could not be written
SAVE_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


ResultT = TypeVar("ResultT")


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
        self._loss_log: LossLog | None = None
        self._has_learned = False  # a step with a learning rate above 0 is finished
        self._has_missed_checkpoint = False
        self._next_try_at = 0.0
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
                    self._try("the loss curve", lambda: self._folder.write_loss_plot(self._losses))

    def add_loss(self, event: StepDone) -> None:
        self._losses.append(event.loss)
        self._has_learned |= event.learning_rate > 0
        if self._loss_log is not None and not self._try("loss.csv", lambda: self._add_to_log(event)):
            self._loss_log = None

    def save_due_checkpoints(self, step: int, epoch: int) -> None:
        """Save the checkpoints that are due.

        One that cannot be written, such as on a full disk, stops nothing: a later step takes its
        place.
        """
        paths = list(self._list_due_checkpoints(step, epoch))
        if self._has_missed_checkpoint and time.monotonic() >= self._next_try_at:
            paths = paths or [self._folder.checkpoint_path(step=step)]
        if not paths:
            return
        is_saved = self._try("the checkpoint", lambda: [self._save_checkpoint(path) for path in paths])
        self._has_missed_checkpoint = not is_saved
        self._next_try_at = time.monotonic() + SECONDS_BETWEEN_TRIES

    def save_last_step(self) -> None:
        """Keep the weights of the last finished step of a run that ends early.

        The run has an error already: an error of this save is reported, and does not replace it.
        """
        wanted = self._folder.checkpoint_path(step=len(self._losses))
        if wanted.exists():
            return
        try:
            self._save_somewhere(wanted, self._save_checkpoint)
        except (OSError, RuntimeError) as error:
            self._host.report(Notice(f"the weights of the last step could not be saved: {error}"))

    def draw_due_samples(self, step: int) -> None:
        every = self._config.sample_every_n_steps
        if not every or step % every or not self._world.is_main:
            return
        image = self._model.draw_samples()

        def write() -> None:
            self._host.report(SamplesDrawn(image, self._folder.write_samples(image, step=step), step))

        self._try("the samples", write)

    def save_final(self) -> TrainedLora:
        self._host.report(StageStarted("saving"))
        path = self._folder.final_path
        if self._world.is_main:
            path, verification = self._save_somewhere(path, self._write_lora)
            self._host.report(Notice(f"{path}: {self._summarize(verification)}"))
        self._world.wait_for_all()
        state_dict, metadata = self._build_lora(path.stem)
        return TrainedLora(state_dict, metadata, self._losses, len(self._losses), path, self._checkpoints)

    def _add_to_log(self, event: StepDone) -> None:
        assert self._loss_log is not None
        self._loss_log.add(event)

    def _try(self, what: str, write: Callable[[], object]) -> bool:
        """Write something that is not the LoRA itself: a failure is reported and stops nothing."""
        try:
            write()
            return True
        except OSError as error:
            self._host.report(Notice(f"{what} could not be written: {error}"))
            return False

    def _save_somewhere(self, wanted: Path, save: Callable[[Path], ResultT]) -> tuple[Path, ResultT]:
        """Save under the first free name; if the folder cannot be written, in another one that can.

        Raises:
            OSError: that of the wanted folder, when no other could be written either.
        """
        try:
            return save_under_free_name(wanted, save)
        except OSError as error:
            first_error = error
        for folder in (self._folder.path, Path.home() / "lora_trainer_rescued", Path(tempfile.gettempdir())):
            try:
                path, result = save_under_free_name(folder / wanted.name, save)
            except OSError:
                continue
            self._host.report(Notice(f"{first_error}. The LoRA was saved as {path} instead: move it to a safe place"))
            return path, result
        raise first_error

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
        """Save a checkpoint, unless nothing was learned yet (a warm-up begins at learning rate 0),
        or the weights of this step are saved already.
        """
        if self._has_learned and self._world.is_main and not path.exists():
            self._write_lora(path)
            self._checkpoints.append(path)
            self._host.report(CheckpointSaved(path, len(self._losses)))

    def _write_lora(self, path: Path) -> Verification:
        """Write the LoRA, load it back and verify it; then it gets its name."""
        adapted = self._model.adapted
        expected = list(adapted.read(alpha=self._config.alpha))

        def check(found: dict[str, Tensor]) -> Verification:
            return verify_lora(found, adapted.names, expected=expected, label=path)

        return save_lora(path, *self._build_lora(path.stem), check=check)

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
