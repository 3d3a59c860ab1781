"""Everything that a run writes: manifest, dataset report, losses, samples, checkpoints, the LoRA.

With several processes only the main one writes.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..files.hashes import file_sha256
from ..files.names import save_under_free_name
from ..lora.file import Verification, holds_tensors, save_lora, to_kohya, verify_lora
from .best_step import BestStep, find_best
from .distributed import World
from .ema import AdapterEma
from .embedding_file import explain_embedding, find_embedding_path, save_embedding
from .events import CheckpointSaved, Notice, SamplesDrawn, StageStarted, StepDone
from .family import PreparedModel, Progress
from .plan import TrainingPlan
from .resume.choose_run import StartingPoint
from .resume.identity import RunIdentity
from .resume.run_lock import RunLock
from .resume.state_ring import remove_newer
from .run_folder import LossLog, RunFolder
from .run_log import LoggedHost
from .sample_sheet import draw_grid
from .state_keeper import RunHistory
from .trained_lora import TrainedLora

SECONDS_BETWEEN_TRIES = 60.0  # of a checkpoint that could not be written
SAVE_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


ResultT = TypeVar("ResultT")


class RunWriter:
    """Knows which files are due after a step, and writes them into the run folder."""

    def __init__(
        self,
        model: PreparedModel,
        plan: TrainingPlan,
        host: LoggedHost,
        run_folder: RunFolder,
        world: World,
        *,
        history: RunHistory,
        averaged: Callable[[], AbstractContextManager[None]] = nullcontext,
        ema: AdapterEma | None = None,
        identity: RunIdentity | None = None,
        start: StartingPoint | None = None,
    ) -> None:
        self._model = model
        self._plan = plan
        self._config = plan.settings.training
        self._host = host
        self._folder = run_folder
        self._world = world
        self._history = history
        self._averaged = averaged
        self._ema = ema
        self._identity = identity
        self._start = start
        self._loss_log: LossLog | None = None
        self._has_curve = False
        self._lacks_ema = False
        self._has_missed_checkpoint = False
        self._next_try_at = 0.0
        self._checkpoints: list[Path] = []
        self._saved_best: BestStep | None = None
        self._started_at = time.time()

    @contextmanager
    def open(self) -> Iterator[None]:
        """Make the run folder, or lock the one of the run that goes on; keep its logs open inside
        the block, and plot the losses at its end.
        """
        if not self._world.is_main:
            yield
            return
        if self._start is None or not self._start.in_place:
            self._folder.create(self._build_manifest(), self._identity)
        with RunLock(self._folder.path):
            self._begin_session()
            with (
                self._host.open(self._folder.log_path),
                self._folder.log(self._history.losses) as self._loss_log,
            ):
                try:
                    yield
                finally:
                    self._write_curve()

    def _write_curve(self) -> None:
        if self._loss_log is None:  # a row could not be written, and the later ones are missing
            self._try("loss.csv", lambda: self._folder.rewrite_losses(self._history.losses))
        elif not self._try("loss.csv", self._loss_log.flush):
            self._loss_log = None
        if self._history.losses and not self._has_curve:
            self._has_curve = self._try("the loss curve", self._write_loss_plot)

    def _begin_session(self) -> None:
        self._folder.write_text("dataset.txt", self._plan.crops.report.text())
        if self._start is None:
            return
        step = self._history.num_steps
        if self._start.in_place:
            self._folder.write_origin()
            self._folder.remove_unfinished()
            remove_newer(self._folder.states, step)
            self._checkpoints += sorted(self._folder.checkpoints.glob("*.safetensors"))
            self._saved_best = self._find_saved_best()
        self._folder.amend_manifest(continued_from={"run": self._start.folder.name, "step": step})
        self._host.report(Notice(f"going on with {self._start.folder.name} at step {step}"))

    def _write_loss_plot(self) -> None:
        self._folder.write_loss_plot(self._history.losses, self._history.validation)

    def write_validation(self, best: BestStep | None) -> None:
        """Write the whole curve again, as it is short, and the LoRA if this step is the best."""
        best_step = best.step if best else None
        self._host.status.set(validation={"kind": self._plan.validation.kind, "best_step": best_step})
        self._try("validation.csv", lambda: self._folder.write_validation(self._history.validation))
        if best and best.step == self._history.num_steps and self._history.has_learned and self._config.save_best:
            self._try("the best LoRA so far", lambda: self._save_best(best))

    def _save_best(self, best: BestStep) -> None:
        with self._ema.in_place() if best.is_ema and self._ema else nullcontext():
            self._write_lora(self._folder.best_path, self._build_tensors(), overwrite=True)
        self._saved_best = best

    def _describe_best(self) -> dict[str, Any] | None:
        """For result.json: the file is that of the best step, whatever happened in between."""
        saved = self._saved_best
        if saved is None or not self._folder.best_path.is_file():
            return None
        return {"step": saved.step, "path": str(self._folder.best_path.absolute()), "loss": saved.loss}

    def _find_saved_best(self) -> BestStep | None:
        """The best step of the run that goes on, if the file there is its LoRA. A killed run may
        have saved a later one, which this one will reach again.
        """
        best = find_best(self._history.validation, self._plan.validation.kind)
        try:
            with safe_open(self._folder.best_path, "pt") as file:
                header = file.metadata() or {}
        except (OSError, SafetensorError):
            return None
        return best if best and header.get("ss_steps") == str(best.step) else None

    def add_step(self, event: StepDone) -> None:
        self._history.losses.append(event.loss)
        self._history.has_learned |= event.learning_rate > 0
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

    def save_last_step(self, *, can_go_on: bool) -> None:
        """Keep the weights of the last finished step of a run that ends early.

        The run has an error already: an error of this save is reported, and does not replace it.
        """
        if not (self._world.is_main and self._history.has_learned):
            return
        path = self._folder.checkpoint_path(step=self._history.num_steps)
        try:
            if not path.exists():
                path, _ = self._save_somewhere(path, self._save_checkpoint)
            self._host.report(Notice(self._say_how_to_go_on(path, can_go_on)))
        except (OSError, RuntimeError) as error:
            self._host.report(Notice(f"the weights of the last step could not be saved: {error}"))

    def _say_how_to_go_on(self, path: Path, can_go_on: bool) -> str:
        """For whoever stopped a run, or whose run failed."""
        step, total = self._history.num_steps, self._plan.schedule.total_steps
        if can_go_on:
            return (
                f"Start the same again, and it goes on at step {step} of {total} ({self._folder.path.name}). The LoRA "
                f"so far is {path}"
            )
        return (
            f"The weights of the last step are kept in {path}. To go on from them, start again with network_weights: "
            "this file, the same rank, and as many steps as are left"
        )

    def draw_due_samples(self, step: int) -> None:
        every = self._config.sample_every_n_steps
        if not every or step % every or not self._world.is_main:
            return
        if self._folder.samples_path(step=step).exists():  # drawn before the run was stopped
            return
        with self._averaged():
            rows = self._model.draw_samples()
        image, labels = draw_grid(rows), [sample.label for sample in self._plan.texts.samples]

        def write() -> None:
            self._folder.extend_sample_sheet(rows, labels=labels, step=step)
            self._host.report(SamplesDrawn(image, self._folder.write_samples(image, step=step), step))

        self._try("the samples", write)

    def save_final(self, *, finished_early: bool = False) -> TrainedLora:
        self._host.report(StageStarted("saving"))
        path, ema_path, tensors = self._folder.final_path, None, self._build_tensors()
        if self._world.is_main:
            path, verification = self._save_lora(path, tensors)
            self._host.report(Notice(f"{path}: {self._summarize(verification)}"))
            if self._model.adapted.embeddings:
                self._host.report(Notice(explain_embedding(path, word=self._model.adapted.embeddings.word)))
            ema_path = self._save_ema(path)
        self._world.wait_for_all()
        losses, steps = self._history.losses, self._history.num_steps
        return TrainedLora(
            tensors,
            self._build_header(path.stem),
            list(losses),
            steps,
            path,
            list(self._checkpoints),
            finished_early=finished_early,
            ema_path=ema_path,
            best_path=self._folder.best_path if self._describe_best() else None,
            embedding_path=find_embedding_path(path) if self._model.adapted.embeddings else None,
        )

    def _save_lora(self, wanted: Path, tensors: dict[str, Tensor]) -> tuple[Path, Verification]:
        """Save under the first free name. The file may be there already, from a process that was
        killed before it had marked the run as finished.
        """
        if self._start is not None and self._start.in_place and holds_tensors(wanted, tensors):
            self._write_embedding(wanted)
            return wanted, self._verify(tensors, wanted)
        return self._save_somewhere(wanted, lambda path: self._write_lora(path, tensors))

    def _save_ema(self, path: Path) -> Path | None:
        """Save the average beside the LoRA; what fails is reported, as the LoRA is saved."""
        if self._ema is None:
            return None
        try:
            with self._ema.in_place():
                ema_path, _ = self._save_lora(path.with_name(f"{path.stem}-ema.safetensors"), self._build_tensors())
        except (OSError, RuntimeError) as error:
            self._host.report(
                Notice(f"the average of the LoRA could not be saved: {error}. Start the same again to save it")
            )
            self._lacks_ema = True
            return None
        self._host.report(Notice(f"{ema_path}: the average over the steps"))
        return ema_path

    def write_result(self, trained: TrainedLora, *, reason: str = "") -> None:
        """Mark the run as finished, when nothing else is left to write. Without the mark it would
        be gone on with, so that a failure stops nothing.
        """
        if not self._world.is_main or trained.path is None:
            return
        path, early = trained.path, trained.finished_early
        result = {
            "path": str(path.absolute()),
            "sha256": file_sha256(path),
            "steps": trained.steps,
            "total_steps": self._plan.schedule.total_steps,
            "finished_early": early,
            "reason": reason,
            "best": self._describe_best(),
            "ema_path": str(trained.ema_path) if trained.ema_path else None,
        }
        self._write_curve()
        if early:
            entry = {"step": trained.steps, "total_steps": self._plan.schedule.total_steps}
            entry |= {"reason": reason} if reason else {}
            self._try("the manifest", lambda: self._folder.amend_manifest(finished_early=entry))
        self._host.status.finish(early=early, message=str(path))
        if not self._lacks_ema:
            self._try("result.json", lambda: self._folder.write_result(result))

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
        return f"{verification.text()}, {num_parameters:,} parameters, {self._history.num_steps} steps in {duration}"

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
        if self._history.has_learned and self._world.is_main and not path.exists():
            self._write_lora(path, self._build_tensors())
            self._checkpoints.append(path)
            self._host.report(CheckpointSaved(path, self._history.num_steps))

    def _write_lora(self, path: Path, tensors: dict[str, Tensor], *, overwrite: bool = False) -> Verification:
        """Verify the LoRA, and write it. It gets its name when it was read back."""
        verification = self._verify(tensors, path)
        save_lora(path, tensors, self._build_header(path.stem), overwrite=overwrite)
        self._write_embedding(path)
        return verification

    def _write_embedding(self, lora: Path) -> None:
        """After the LoRA, which has found a free name."""
        embeddings = self._model.adapted.embeddings
        if embeddings:
            with self._averaged():
                save_embedding(lora, self._model.adapted.read_embeddings(), word=embeddings.word)

    def _verify(self, tensors: dict[str, Tensor], path: Path) -> Verification:
        adapted = self._model.adapted
        return verify_lora(tensors, adapted.names, expected=list(adapted.read()), label=path)

    def _build_tensors(self) -> dict[str, Tensor]:
        adapted = self._model.adapted
        with self._averaged():
            return to_kohya(adapted.read(), adapted.names, dtype=SAVE_DTYPES[self._config.save_dtype])

    def _build_header(self, title: str) -> dict[str, str]:
        return self._model.metadata(Progress(title, self._history.num_steps, self._started_at))

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
