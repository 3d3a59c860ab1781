"""What the facts in a program's output mean for the run: events for the host, and the proof that it
does what it was told to.
"""

import math
import re
import time
from pathlib import Path

from PIL import Image

from ..training.events import CheckpointSaved, Notice, SamplesDrawn, StageProgress, StageStarted, StepDone
from ..training.host import Host
from ..training.run_folder import LossLog, RunFolder
from .commands import warmup_steps
from .config import MusubiConfig
from .output import TRAINING_BAR, Bar, Counted, Epoch, Fact, Found, Merging, Saving, WeightsLoaded
from .plan import Plan
from .safetensors_header import read_header

_POLYNOMIAL_END = 1e-7  # of the schedule in transformers
_STEP_FILE = re.compile(r".*-step(?P<step>\d{8})")
# Those that are drawn at the end of an epoch (e000002) are drawn at that step already; only e000000
# is before the first one.
_SAMPLE_FILE = re.compile(r".*_(?P<step>\d{6}|e000000)_\d{2}_\d{14}.*\.png")


class Contradicted(Exception):
    """What Musubi has just said shows that it does something else than it was told to: it is
    stopped.
    """


class Listener:
    """Hears what one program says; shows its bars."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._stage = ""

    def take(self, fact: Fact) -> None:
        """Raises Contradicted."""
        if isinstance(fact, Bar):
            self._show(fact.description or "working", fact.step, fact.total)

    def missing(self) -> str:
        """What it should have said before it ended and did not; "" when all is well."""
        return ""

    def _show(self, stage: str, step: int, total: int) -> None:
        self._enter(stage, total)
        self._host.report(StageProgress(stage, step, max(total, step, 1)))

    def _enter(self, stage: str, total: int) -> None:
        if stage != self._stage:
            self._stage = stage
            self._host.report(StageStarted(stage, total))


class ImageCounter(Listener):
    """The cache scripts: each [[datasets]] has a bar of its own, in batches."""

    def __init__(self, title: str, host: Host, *, num_images: int, batch_size: int) -> None:
        super().__init__(host)
        self._title, self._num_images, self._batch_size = title, num_images, batch_size
        self._num_found: int | None = None
        self._batches_before = self._batches = 0

    def take(self, fact: Fact) -> None:
        match fact:
            case Found("images", number):
                self._num_found = (self._num_found or 0) + number
            case Counted(number):
                self._count(number)
            case _:
                super().take(fact)

    def missing(self) -> str:
        if not self._num_images or self._num_found in (None, self._num_images):
            return ""
        return f"it found {self._num_found} of {self._num_images} images"

    def _count(self, number: int) -> None:
        if number < self._batches:  # the next one's bar
            self._batches_before += self._batches
        self._batches = number
        done = (self._batches_before + number) * self._batch_size
        self._show(self._title, min(done, self._num_images) if self._num_images else done, self._num_images)


class TrainingProgress(Listener):
    """The training script: every step, checkpoint and sample image as an event, and whether it
    trains what it should.

    Musubi shows its own moving average of the loss and nothing else of it: that is what `losses`
    are.
    """

    def __init__(self, plan: Plan, folder: RunFolder, host: Host, loss_log: LossLog) -> None:
        super().__init__(host)
        self.losses: list[float] = []
        self.num_modules = 0
        self._plan, self._folder, self._loss_log = plan, folder, loss_log
        self._samples = _SampleImages(plan.output_dir / "sample")
        self._started_at = 0.0
        self._epoch = 1
        self._is_merging = False
        self._saving: Path | None = None
        self._drawn: Bar | None = None  # once; its loss is that of the step before

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
            case Found("modules", number):
                self._check_modules(number)
            case Found("items", number):
                self._check_items(number)
            case WeightsLoaded():
                self._check_weights(fact)
            case _:
                super().take(fact)

    def missing(self) -> str:
        """To be asked when it has ended: a step that was drawn once will not be drawn again."""
        self._take_waiting()
        done = len(self.losses)
        return "" if done == self._plan.num_steps else f"it trained {done} of {self._plan.num_steps} steps"

    def finish(self) -> None:
        """Whatever its end was. A plot that cannot be written stops nothing."""
        if not self.losses:
            return
        try:
            self._folder.write_loss_plot(self.losses)
        except OSError as error:
            self._host.report(Notice(f"the loss curve could not be written: {error}"))

    def report_last(self) -> None:
        """What was said and drawn behind the last step."""
        self._report_checkpoint()
        self._report_samples()

    @property
    def _total(self) -> int:
        return self._plan.steps_before + self._plan.num_steps

    def _take_drawing(self, bar: Bar) -> None:
        """tqdm draws a step when it is counted, with the loss of the step before, and again with
        its own. Of fast steps the second alone is drawn.
        """
        if bar.step <= len(self.losses):
            return
        if self._drawn is not None and self._drawn.step == bar.step:
            self._drawn = None
            self._step_done(bar)
            return
        self._take_waiting()
        self._drawn = bar

    def _take_waiting(self) -> None:
        bar, self._drawn = self._drawn, None
        if bar is not None:
            self._step_done(bar)

    def _step_done(self, bar: Bar) -> None:
        if bar.loss is None:
            return
        if not math.isfinite(bar.loss):
            raise Contradicted(
                f"the loss of step {bar.step} is {bar.loss}. Lower learning_rate, or set mixed_precision to bf16"
            )
        self.losses += [bar.loss] * (bar.step - len(self.losses))
        event = self._event(bar)
        self._host.report(event)
        self._loss_log.add(event)
        self._report_samples()

    def _event(self, bar: Bar) -> StepDone:
        step = self._plan.steps_before + bar.step
        # the bar's own is not there at first
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
            raise Contradicted("no layer gets a LoRA. Are exclude_patterns and include_patterns right?")

    def _check_merged(self, number: int) -> None:
        config, has_converted = self._plan.config, self._plan.command("base_weights") is not None
        path = self._plan.base_weights_path if has_converted else Path(config.base_weights)
        num_given = len({name.partition(".")[0] for name in read_header(path)})
        if not number:
            raise Contradicted(
                f"nothing of base_weights ({config.base_weights}) fits the model. Is it made for "
                f"{self._plan.architecture.title}?"
            )
        if number != num_given:
            self._host.report(
                Notice(
                    f"of base_weights ({config.base_weights}) only {number} of {num_given} modules were merged: the "
                    "others fit no layer"
                )
            )

    def _check_items(self, number: int) -> None:
        if self._plan.num_items and number != self._plan.num_items:
            raise Contradicted(f"it trains on {number} samples per epoch, and the dataset has {self._plan.num_items}")

    def _check_weights(self, loaded: WeightsLoaded) -> None:
        path = self._plan.config.network_weights
        if loaded.num_unexpected:
            raise Contradicted(
                f"network_weights ({path}): {loaded.num_unexpected} tensors fit no layer. Is it made for "
                f"{self._plan.architecture.title}?"
            )
        if loaded.num_missing:
            self._host.report(
                Notice(
                    f"network_weights ({path}) has nothing for {loaded.num_missing} tensors: they begin as in a new "
                    "LoRA"
                )
            )

    def _report_checkpoint(self) -> None:
        path, self._saving = self._saving, None
        step = step_of(path) if path is not None else None
        if path is not None and step is not None:
            self._host.report(CheckpointSaved(path, self._plan.steps_before + step))

    def _report_samples(self) -> None:
        for step, image in self._samples.new():
            step += self._plan.steps_before
            self._host.report(SamplesDrawn(image, self._folder.write_samples(image, step=step), step))


def step_of(path: Path) -> int | None:
    """NAME-step00000250.safetensors: 250, as the run that wrote it counts; None for another
    name.
    """
    match = _STEP_FILE.fullmatch(path.stem)
    return int(match["step"]) if match else None


def learning_rate_at(config: MusubiConfig, step: int) -> float:
    """Of optimizer step 1, 2, ...: Musubi does not show it. The schedules of transformers, which it
    takes.
    """
    done, warmup, peak = step - 1, warmup_steps(config), config.learning_rate
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
    """Images that Musubi has drawn since they were last asked for, those of a step side by
    side.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: set[str] = set()

    def new(self) -> list[tuple[int, Image.Image]]:
        by_step: dict[int, list[Path]] = {}
        for path in sorted(self._folder.glob("*.png")):
            match = _SAMPLE_FILE.fullmatch(path.name)
            if match and path.name not in self._known:
                by_step.setdefault(int(match["step"].removeprefix("e")), []).append(path)
        return [(step, row) for step, paths in sorted(by_step.items()) if (row := self._whole_row(paths))]

    def _whole_row(self, paths: list[Path]) -> Image.Image | None:
        """None while Musubi is still writing one of the files: they are asked for again."""
        try:
            row = _side_by_side(paths)
        except OSError:
            return None
        self._known.update(path.name for path in paths)
        return row


def _side_by_side(paths: list[Path]) -> Image.Image:
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
