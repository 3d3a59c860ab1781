"""One training by Musubi Tuner: plan, caches, training, conversion, verification. Its programs run
one after the other, and their output is checked.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from ..config import as_dict
from ..dataset.dataset import Dataset
from ..files.names import save_under_free_name
from ..lora.file import require_sound, save_lora
from ..training.events import Interrupted, Notice, StageStarted
from ..training.host import Host
from ..training.resume.run_lock import RunLock
from ..training.run_folder import LossLog, RunFolder
from ..training.run_log import LoggedHost
from ..training.trained_lora import TrainedLora
from .commands import Command, build_convert_command
from .conversion import is_whole_file, list_modules, read_converted, require_num_modules
from .failure import STAGES, MusubiFailed, describe_failure, format_last_lines
from .installation import Installation
from .output import OutputReader
from .plan import MusubiJob, Plan, make_plan
from .process import NotStarted, run_process
from .progress import Contradiction, ImageCounter, Listener, TrainingProgress, read_step
from .tokenizers import find_missing_tokenizers, require_fetchable

logger = logging.getLogger(__name__)

LOG_NAME = "musubi.log"
COMMANDS_NAME = "commands.txt"


class MusubiTrainer:
    """Trains in processes of Musubi's own Python. All runs share the latents and text encoder
    outputs in `cache_root`.
    """

    def __init__(self, job: MusubiJob, installation: Installation, *, run_folder: RunFolder, cache_root: Path) -> None:
        self._job = job
        self._installation = installation
        self._run_folder = run_folder
        self._cache_root = cache_root

    def train(
        self, dataset: Dataset | None, host: Host, *, control: Dataset | None = None, dataset_toml: str = ""
    ) -> TrainedLora:
        """Train on a dataset (with another one of control images), or on a user's own
        dataset.toml.

        Raises:
            ValueError: a file, setting or image is wrong; nothing was started, and there is no run
                folder.
            Interrupted, MusubiFailed, RuntimeError: as `run`.
        """
        plan = make_plan(
            self._job,
            dataset,
            self._installation,
            self._run_folder.path,
            self._cache_root,
            name=self._run_folder.name,
            control=control,
            dataset_toml=dataset_toml,
        )
        return self.run(plan, host)

    def run(self, plan: Plan, host: Host) -> TrainedLora:
        """Train what `make_plan` has planned for this job and this run folder.

        Raises:
            Interrupted: the user cancelled; complete checkpoints are kept.
            MusubiFailed: a program failed or did not do what it was told to; complete checkpoints
                are kept.
            RuntimeError: an image has changed, or a cache or the LoRA is incomplete or broken.
        """
        host = LoggedHost(host)
        tokenizers = plan.architecture.list_tokenizers(self._job.options)
        if plan.prompts_text or not plan.cache_is_complete:
            require_fetchable(tokenizers, self._installation)
        self._run_folder.require_free_name()
        self._run_folder.create(self._build_manifest(plan))
        self._run_folder.write_text(COMMANDS_NAME, plan.text())
        for notice in plan.notices:
            host.report(Notice(notice))
        host.report(StageStarted("preparing"))
        plan.write(check_interrupted=host.check_interrupted)
        with (
            RunLock(self._run_folder.path),
            host.open(self._run_folder.log_path),
            self._run_folder.log() as loss_log,
            open(self._run_folder.path / LOG_NAME, "ab") as log,
        ):
            return _Run(plan, self._installation, self._run_folder, host, loss_log, log, tokenizers=tokenizers).train()

    def _build_manifest(self, plan: Plan) -> dict[str, Any]:
        installation = self._installation
        return {
            "architecture": plan.architecture.name,
            "options": dict(self._job.options),
            "models": {name: str(path) for name, path in self._job.models.items()},
            "training": as_dict(plan.config) | self._describe_resume(),
            "musubi_tuner": {
                "version": installation.version,
                "folder": str(installation.folder),
                "python": str(installation.python),
            },
            "num_images": plan.num_images,
            "num_items": plan.num_items,
            "caches": str(plan.staged.cache_root),
            "total_steps": plan.config.max_train_steps,
            "steps_before": plan.steps_before,
        }

    def _describe_resume(self) -> dict[str, str]:
        """The copy that Musubi reads is gone after the run."""
        return {"resume": self._job.chosen_resume} if self._job.chosen_resume else {}


class _FinishNow(Exception):
    """The user wants the LoRA of the last checkpoint."""


class _Run:
    """One run, from the first program to the saved LoRA."""

    def __init__(
        self,
        plan: Plan,
        installation: Installation,
        folder: RunFolder,
        host: LoggedHost,
        loss_log: LossLog,
        log: BinaryIO,
        *,
        tokenizers: tuple[str, ...],
    ) -> None:
        self._plan = plan
        self._installation = installation
        self._folder = folder
        self._host = host
        self._log = log
        self._tokenizers = tokenizers
        self._training = TrainingProgress(plan, folder, host, loss_log)
        self._started_at = time.time()
        self._raw_path = plan.raw_path
        self._is_asked_to_finish = False

    def train(self) -> TrainedLora:
        self._run_stage("base_weights", Listener(self._host))
        self._fill_caches()
        self._train()
        return self._finish()

    def _fill_caches(self) -> None:
        plan = self._plan
        if plan.cache_is_complete:
            self._host.report(
                Notice(f"using the caches of an earlier run with the same images: {plan.staged.cache_root}")
            )
            return
        for stage in ("latents", "text"):
            counter = ImageCounter(
                STAGES[stage], self._host, num_images=plan.num_images, batch_size=plan.config.train_batch_size
            )
            self._run_stage(stage, counter)
        if missing := find_missing_tokenizers(self._tokenizers, self._installation):
            raise MusubiFailed(
                f"Musubi Tuner encoded the captions without {', '.join(missing)}, which could not be downloaded. Go "
                "online and start again"
            )
        plan.staged.confirm_caches()

    def _train(self) -> None:
        try:
            self._run_stage("train", self._training, check_interrupted=self._check_requests)
            self._training.report_last()
        except _FinishNow:
            self._raw_path = self._find_whole_checkpoints()[-1]
            self._host.report(Notice(f"finished now, with the LoRA of step {read_step(self._raw_path)}"))
        except (Interrupted, MusubiFailed):
            self._save_last_checkpoint()
            raise
        finally:
            self._training.finish()

    def _check_requests(self) -> None:
        """Between Musubi's lines of output.

        Raises:
            Interrupted: the user cancelled.
            _FinishNow: the user wants the LoRA so far, and there is a checkpoint.
        """
        self._host.check_interrupted()
        request = self._folder.take_request() or self._host.take_request()
        if request == "pause":
            self._host.report(
                Notice("Musubi Tuner cannot pause. Finish now keeps its last checkpoint; cancel stops the run")
            )
        if request == "finish" and not self._is_asked_to_finish:
            self._is_asked_to_finish = True
            if not self._find_whole_checkpoints():
                self._host.report(Notice("there is no checkpoint yet: the run finishes after the first one"))
        if self._is_asked_to_finish and self._find_whole_checkpoints():
            raise _FinishNow

    def _finish(self) -> TrainedLora:
        plan, training, raw_path = self._plan, self._training, self._raw_path
        self._host.report(StageStarted("saving"))
        require_num_modules(raw_path, training.num_modules)
        try:
            tensors, metadata = self._convert_for_comfyui(raw_path)
            path, _ = save_under_free_name(self._folder.final_path, lambda path: _save(path, tensors, metadata))
        except MusubiFailed as error:
            raise MusubiFailed(f"{error}\nThe LoRA as Musubi Tuner trained it is kept: {raw_path}") from error
        checkpoints = self._save_checkpoints()
        duration = time.strftime("%H:%M:%S", time.gmtime(time.time() - self._started_at))
        summary = f"{len(list_modules(tensors))} modules, {len(training.losses)} steps in {duration}"
        self._host.report(Notice(f"{path}: {summary}"))
        early = raw_path != plan.raw_path
        steps = plan.steps_before + (read_step(raw_path) or 0) if early else plan.config.max_train_steps
        self._host.status.finish(early=early, message=str(path))
        return TrainedLora(tensors, metadata, training.losses, steps, path, checkpoints, finished_early=early)

    def _save_checkpoints(self) -> list[Path]:
        """Convert each checkpoint for ComfyUI, except that of the last step: it is the LoRA."""
        done = {self._plan.num_steps, read_step(self._raw_path)}
        raw_paths = [path for path in self._find_whole_checkpoints() if read_step(path) not in done]
        return [path for raw_path in raw_paths if (path := self._save_checkpoint(raw_path))]

    def _save_checkpoint(self, raw_path: Path) -> Path | None:
        path = self._folder.checkpoint_path(step=self._plan.steps_before + (read_step(raw_path) or 0))
        try:
            _save(path, *self._convert_for_comfyui(raw_path))
        except (RuntimeError, OSError) as error:  # a checkpoint is not worth failing the whole run
            self._host.report(Notice(f"the checkpoint {raw_path} was not converted: {error}"))
            return None
        return path

    def _save_last_checkpoint(self) -> None:
        """Save what a stopped run leaves. Musubi writes in place, so half-written checkpoints are
        removed first.
        """
        for path in self._find_raw_checkpoints():
            if not is_whole_file(path):
                path.unlink()
        whole = self._find_raw_checkpoints()
        if not whole:
            return
        command = self._build_convert_command(whole[-1])
        if command is not None:  # converting takes seconds, and the user wants to stop now
            self._host.report(
                Notice(
                    f"the last checkpoint is {whole[-1]}. Convert it before you load it into ComfyUI: {command.text()}"
                )
            )
        elif path := self._save_checkpoint(whole[-1]):
            self._host.report(Notice(f"the last checkpoint is {path}"))

    def _find_whole_checkpoints(self) -> list[Path]:
        return [path for path in self._find_raw_checkpoints() if is_whole_file(path)]

    def _find_raw_checkpoints(self) -> list[Path]:
        names = self._plan.output_dir.glob("*.safetensors")
        return sorted((path for path in names if read_step(path) is not None), key=lambda path: read_step(path) or 0)

    def _convert_for_comfyui(self, raw_path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Convert as the architecture needs, and verify."""
        command = self._build_convert_command(raw_path)
        if command is not None:
            self._run(command, Listener(self._host), self._host.check_interrupted)
        path = self._get_converted_path(raw_path) if command else raw_path
        return read_converted(path, self._plan.architecture)

    def _build_convert_command(self, raw_path: Path) -> Command | None:
        return build_convert_command(
            self._plan.architecture, raw_path, self._get_converted_path(raw_path), installation=self._installation
        )

    def _get_converted_path(self, raw_path: Path) -> Path:
        return self._plan.converted_path.with_name(raw_path.name)

    def _run_stage(
        self, stage: str, listener: Listener, *, check_interrupted: Callable[[], None] | None = None
    ) -> None:
        command = self._plan.find_command(stage)
        if command is not None:
            self._host.report(StageStarted("loading" if stage == "train" else STAGES[stage]))
            self._run(command, listener, check_interrupted or self._host.check_interrupted)

    def _run(self, command: Command, listener: Listener, check_interrupted: Callable[[], None]) -> None:
        """Run a program. Raises MusubiFailed if it fails, or does not do what it was told to."""
        logger.info("%s: %s", command.stage, command.text())
        self._log.write(f"\n$ {command.text()}\n".encode())
        reader = OutputReader(listener.take)
        try:
            returncode = run_process(
                command,
                self._installation,
                listener=reader,
                log=self._log,
                check_interrupted=check_interrupted,
            )
            reader.finish()
            missing = "" if returncode else listener.describe_missing()
        except NotStarted as error:
            raise MusubiFailed(str(error)) from error
        except Contradiction as contradiction:
            raise MusubiFailed(
                f"Musubi Tuner was stopped at {STAGES[command.stage]}: {contradiction}.\n"
                f"{self._format_last_lines(reader)}"
            ) from None
        finally:
            self._log.flush()
        if returncode:
            log_path = self._folder.path / LOG_NAME
            raise describe_failure(
                command.stage, list(reader.lines), returncode=returncode, log=log_path, tokenizers=self._tokenizers
            )
        if missing:
            raise MusubiFailed(
                f"Musubi Tuner ended {STAGES[command.stage]} without an error, but {missing}.\n"
                f"{self._format_last_lines(reader)}"
            )

    def _format_last_lines(self, reader: OutputReader) -> str:
        return format_last_lines(list(reader.lines), self._folder.path / LOG_NAME)


def _save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    require_sound(tensors, path)
    save_lora(path, tensors, metadata)
