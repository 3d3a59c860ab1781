"""Turns the facts in a program's output into events for the host, and checks that the program does
what it was told to.
"""

import math
import re
import time
from pathlib import Path

from PIL import Image

from ..training.events import CheckpointSaved, Notice, SamplesDrawn, StageProgress, StageStarted, StepDone
from ..training.host import Host
from ..training.run_folder import LossLog, RunFolder
from .commands import count_warmup_steps
from .config import MusubiConfig
from .output import TRAINING_BAR, Bar, BatchCount, Epoch, Fact, Merging, Saving, StatedCount, WeightsLoaded
from .plan import Plan
from .safetensors_header import read_header
from .saved_state import StateSealer

_POLYNOMIAL_END = 1e-7  # the last learning rate of transformers' polynomial schedule
_STEP_FILE = re.compile(r".*-step(?P<step>\d{8})")
# Samples at the end of an epoch (e000002) repeat those of its last step. Only e000000, before the
# first step, is new.
_SAMPLE_FILE = re.compile(r".*_(?P<step>\d{6}|e000000)_\d{2}_\d{14}.*\.png")


class Contradiction(Exception):
    """Musubi's output shows that it does not do what it was told to, so it is stopped."""


class Listener:
    """Takes the facts of one program and shows its bars."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._stage = ""

    def take(self, fact: Fact) -> None:
        """Raises Contradiction."""
        if isinstance(fact, Bar):
            self._show(fact.description or "working", fact.step, fact.total)

    def describe_missing(self) -> str:
        """Describe what the program should have reported before it ended; "" if nothing is
        missing.
        """
        return ""

    def _show(self, stage: str, step: int, total: int) -> None:
        self._enter(stage, total)
        self._host.report(StageProgress(stage, step, max(total, step, 1)))

    def _enter(self, stage: str, total: int) -> None:
        if stage != self._stage:
            self._stage = stage
            self._host.report(StageStarted(stage, total))


class ImageCounter(Listener):
    """Counts the images of the cache scripts: each [[datasets]] has its own bar, in batches."""

    def __init__(self, title: str, host: Host, *, num_images: int, batch_size: int) -> None:
        super().__init__(host)
        self._title, self._num_images, self._batch_size = title, num_images, batch_size
        self._num_found: int | None = None
        self._batches_before = self._batches = 0

    def take(self, fact: Fact) -> None:
        match fact:
            case StatedCount("images", number):
                self._num_found = (self._num_found or 0) + number
            case BatchCount(number):
                self._count(number)
            case _:
                super().take(fact)

    def describe_missing(self) -> str:
        if not self._num_images or self._num_found in (None, self._num_images):
            return ""
        return f"it found {self._num_found} of {self._num_images} images"

    def _count(self, number: int) -> None:
        if number < self._batches:  # the bar of the next [[datasets]]
            self._batches_before += self._batches
        self._batches = number
        done = (self._batches_before + number) * self._batch_size
        self._show(self._title, min(done, self._num_images) if self._num_images else done, self._num_images)


class TrainingProgress(Listener):
    """Reports every step, checkpoint and sample image of the training script, and checks that it
    trains what it should.

    `losses` are moving averages: Musubi shows nothing else of the loss.
    """

    def __init__(self, plan: Plan, folder: RunFolder, host: Host, loss_log: LossLog) -> None:
        super().__init__(host)
        self.losses: list[float] = []
        self.num_modules = 0
        self._plan, self._folder, self._loss_log = plan, folder, loss_log
        self._samples = _SampleImages(plan.output_dir / "sample")
        self._sealer = StateSealer(plan.output_dir, host)
        self._started_at = 0.0
        self._epoch = 1
        self._is_merging = False
        self._saving: Path | None = None
        self._drawn: Bar | None = None  # drawn once; shows the loss of the step before

    def take(self, fact: Fact) -> None:
        self._report_checkpoint()
        match fact:
            case Bar(description=description) if description == TRAINING_BAR:
                self._started_at = self._started_at or time.monotonic()
                self._enter("training", self._total)
                self._take_drawing(fact)
            case Epoch(number):
                self._epoch = number
            case Saving(path):
                self._saving = path
            case Merging():
                self._is_merging = True
            case StatedCount("modules", number):
                self._check_modules(number)
            case StatedCount("items", number):
                self._check_items(number)
            case WeightsLoaded():
                self._check_weights(fact)
            case _:
                super().take(fact)

    def describe_missing(self) -> str:
        """Call this only after the end: it counts a step that was drawn once as done."""
        self._take_waiting()
        done = len(self.losses)
        return "" if done == self._plan.num_steps else f"it trained {done} of {self._plan.num_steps} steps"

    def finish(self) -> None:
        """Seal the last state and write the loss plot, however the training ended. A failure stops
        nothing.
        """
        self._sealer.seal()
        if not self.losses:
            return
        try:
            self._folder.write_loss_plot(self.losses)
        except OSError as error:
            self._host.report(Notice(f"the loss curve could not be written: {error}"))

    def report_last(self) -> None:
        """Report the checkpoint and the samples that came after the last step."""
        self._report_checkpoint()
        self._report_samples()

    @property
    def _total(self) -> int:
        return self._plan.steps_before + self._plan.num_steps

    def _take_drawing(self, bar: Bar) -> None:
        """Find out when a step is done. tqdm draws a step twice: when it is counted, with the loss
        of the step before, and then with its own loss. Of fast steps only the second is drawn.
        """
        if bar.step <= len(self.losses):
            return
        if self._drawn is not None and self._drawn.step == bar.step:
            self._drawn = None
            self._finish_step(bar)
            return
        self._take_waiting()
        self._drawn = bar

    def _take_waiting(self) -> None:
        bar, self._drawn = self._drawn, None
        if bar is not None:
            self._finish_step(bar)

    def _finish_step(self, bar: Bar) -> None:
        if bar.loss is None:
            return
        if not math.isfinite(bar.loss):
            raise Contradiction(
                f"the loss of step {bar.step} is {bar.loss}. Lower learning_rate, or set mixed_precision to bf16"
            )
        self.losses += [bar.loss] * (bar.step - len(self.losses))
        event = self._build_event(bar)
        self._host.report(event)
        self._loss_log.add(event)
        self._report_samples()
        self._sealer.seal(before_step=event.step)

    def _build_event(self, bar: Bar) -> StepDone:
        step = self._plan.steps_before + bar.step
        # at first, the bar shows no speed
        speed = bar.steps_per_second or bar.step / max(time.monotonic() - self._started_at, 1e-3)
        return StepDone(
            step,
            self._total,
            self._epoch,
            loss=self.losses[-1],
            average_loss=self.losses[-1],
            learning_rate=learning_rate_at(self._plan.config, step),
            steps_per_second=speed,
            eta_seconds=(self._total - step) / speed,
            memory_bytes=0,  # another process's
        )

    def _check_modules(self, number: int) -> None:
        was_merging, self._is_merging = self._is_merging, False
        if was_merging:
            self._check_merged(number)
        elif number:
            self.num_modules = number
        else:
            raise Contradiction("no layer gets a LoRA. Check exclude_patterns and include_patterns")

    def _check_merged(self, number: int) -> None:
        config, has_converted = self._plan.config, self._plan.find_command("base_weights") is not None
        path = self._plan.base_weights_path if has_converted else Path(config.base_weights)
        num_given = len({name.partition(".")[0] for name in read_header(path)})
        if not number:
            raise Contradiction(
                f"nothing in base_weights ({config.base_weights}) fits the model. Is it made for "
                f"{self._plan.architecture.title}?"
            )
        if number != num_given:
            self._host.report(
                Notice(
                    f"base_weights ({config.base_weights}): only {number} of {num_given} modules were merged; the "
                    "others fit no layer"
                )
            )

    def _check_items(self, number: int) -> None:
        if self._plan.num_items and number != self._plan.num_items:
            raise Contradiction(f"it trains on {number} samples per epoch, but the dataset has {self._plan.num_items}")

    def _check_weights(self, loaded: WeightsLoaded) -> None:
        path = self._plan.config.network_weights
        if loaded.num_unexpected:
            raise Contradiction(
                f"network_weights ({path}): {loaded.num_unexpected} tensors fit no layer. Is it made for "
                f"{self._plan.architecture.title}?"
            )
        if loaded.num_missing:
            self._host.report(
                Notice(
                    f"network_weights ({path}) has nothing for {loaded.num_missing} tensors, which start as in a new "
                    "LoRA"
                )
            )

    def _report_checkpoint(self) -> None:
        path, self._saving = self._saving, None
        step = read_step(path) if path is not None else None
        if path is not None and step is not None:
            self._host.report(CheckpointSaved(path, self._plan.steps_before + step))

    def _report_samples(self) -> None:
        for step, image in self._samples.read_new():
            step += self._plan.steps_before
            self._host.report(SamplesDrawn(image, self._folder.write_samples(image, step=step), step))


def read_step(path: Path) -> int | None:
    """Return 250 for NAME-step00000250.safetensors, by the count of the run that wrote it; None for
    other names.
    """
    match = _STEP_FILE.fullmatch(path.stem)
    return int(match["step"]) if match else None


def learning_rate_at(config: MusubiConfig, step: int) -> float:
    """Return the learning rate of optimizer step 1, 2, ..., which Musubi does not show. It uses the
    schedules of transformers.
    """
    done, warmup, peak = step - 1, count_warmup_steps(config), config.learning_rate
    if done < warmup:
        return peak * done / warmup
    share = min(1.0, (done - warmup) / max(1, config.max_train_steps - warmup))
    match config.lr_scheduler:
        case "linear":
            return peak * (1 - share)
        case "cosine" | "cosine_with_restarts":  # with one cycle
            return peak * 0.5 * (1 + math.cos(math.pi * share))
        case "polynomial":  # of power 1
            return (peak - _POLYNOMIAL_END) * (1 - share) + _POLYNOMIAL_END
        case _:
            return peak


class _SampleImages:
    """The sample images that Musubi draws."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: set[str] = set()

    def read_new(self) -> list[tuple[int, Image.Image]]:
        """Return (step, image) for the samples drawn since the last call. Those of one step are
        joined side by side.
        """
        by_step: dict[int, list[Path]] = {}
        for path in sorted(self._folder.glob("*.png")):
            match = _SAMPLE_FILE.fullmatch(path.name)
            if match and path.name not in self._known:
                by_step.setdefault(int(match["step"].removeprefix("e")), []).append(path)
        return [(step, row) for step, paths in sorted(by_step.items()) if (row := self._read_row(paths))]

    def _read_row(self, paths: list[Path]) -> Image.Image | None:
        """Return None while Musubi is still writing one of the files; the next call retries."""
        try:
            row = _join_side_by_side(paths)
        except OSError:
            return None
        self._known.update(path.name for path in paths)
        return row


def _join_side_by_side(paths: list[Path]) -> Image.Image:
    images = [_read(path) for path in paths]
    row = Image.new("RGB", (sum(image.width for image in images), max(image.height for image in images)))
    left = 0
    for image in images:
        row.paste(image, (left, 0))
        left += image.width
    return row


def _read(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")
