"""ComfyHost: shows a trainer's events as ComfyUI's progress bar, progress text and previews, and
passes on its interrupts and its device.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import comfy.model_management
import comfy.utils
from comfy_execution.utils import get_executing_context
from PIL import Image
from server import PromptServer

from ...trainers.training.device import DeviceMemory
from ...trainers.training.events import (
    CheckpointSaved,
    Event,
    ImageCaptioned,
    Interrupted,
    Notice,
    Paused,
    Request,
    SamplesDrawn,
    StageProgress,
    StageStarted,
    StepDone,
    Validated,
)
from ...trainers.wording import format_gigabytes
from .prompt_queue import has_waiting_prompts, queue_again

logger = logging.getLogger(__name__)

# An update sends up to four messages (progress, progress_state, text, preview), so at most four per
# second.
SECONDS_BETWEEN_UPDATES = 1.0
SECONDS_BETWEEN_PREVIEWS = 5.0
PREVIEW_SIZE = 900
SECONDS_OF_A_TURN = 120.0  # loading the models again after the others' prompts takes up to half a minute
STARTING = "starting (the first time after a start of ComfyUI this takes up to 20 seconds)"


@dataclass
class _State:
    """The progress that the node shows."""

    step: int = 0
    total: int = 1
    text: str = ""


class ComfyHost(DeviceMemory):
    """The host of one node's run. Make it inside the node's execute: it reports for the node that
    is being executed.
    """

    def __init__(self, *, is_polite: bool = False) -> None:
        super().__init__(comfy.model_management.get_torch_device())
        self._is_polite = is_polite
        self._began_at = time.monotonic()
        self.gives_way = False  # paused for the prompts that wait
        self._is_stopping = False
        self._bar = comfy.utils.ProgressBar(1)
        self._state = _State()
        self._losses: list[float] = []
        self._validation: list[tuple[int, float]] = []
        self._samples: Image.Image | None = None
        self._image: Image.Image | None = None
        self._notices: list[str] = []
        self._updated_at = self._previewed_at = float("-inf")

    def finish(self, text: str) -> None:
        """Show the last text and the whole loss curve, which stay on the node, even right after
        another update.
        """
        self._updated_at = self._previewed_at = float("-inf")
        self._notices.clear()
        self._state = _State(1, 1, text)
        self._update()

    def end_cancelled(self, word: str = "Cancelled") -> None:
        """The last text: what was done, and what the run has said of its checkpoint."""
        self.send_text("\n".join([f"{word} at {self._state.text}", *reversed(self._notices)]))

    def end_paused(self) -> None:
        """After a pause for others the prompt waits at the end of the queue."""
        if self.gives_way and queue_again():
            self.end_cancelled("Other prompts go first; this one is queued again. Paused")
        else:
            self.end_cancelled("Paused")

    def check_interrupted(self) -> None:
        self._is_stopping |= comfy.model_management.processing_interrupted()
        check_interrupted()

    def take_request(self) -> Request | None:
        """A polite run pauses for prompts that wait, after at least SECONDS_OF_A_TURN. The buttons
        write into the run's folder.
        """
        if not self._is_polite or time.monotonic() - self._began_at < SECONDS_OF_A_TURN:
            return None
        self.gives_way = has_waiting_prompts()
        return "pause" if self.gives_way else None

    def release_memory(self) -> None:
        comfy.model_management.soft_empty_cache()

    def report(self, event: Event) -> None:
        match event:
            case StageStarted(stage, total):
                self._state = _State(0, max(total, 1), stage)
            case StageProgress():
                self._state = _State(
                    event.step, event.total, f"{event.stage} {event.step}/{event.total}: {event.detail}"
                )
            case StepDone():
                self._losses.append(event.loss)
                self._state = _State(event.step, event.total, _format_step(event))
            case Validated():
                self._validation.append((len(self._losses), event.loss))  # the plot is of this session
                return
            case SamplesDrawn():
                self._samples = event.image
                self._previewed_at = float("-inf")
            case ImageCaptioned():
                self._image = event.image
                self._state = _State(
                    event.step, event.total, f"captioning {event.step}/{event.total}: {event.name}\n{event.caption}"
                )
            case CheckpointSaved():
                logger.info("step %d: saved %s", event.step, event.path)
            case Notice():
                logger.info(event.message)
                self._notices.append(event.message)
                self.send_text(self._text())  # at once: the next update may be far, or never come
                return
        self._update()

    def _text(self) -> str:
        """What happens now, and below it what was said before: it is true for the whole run."""
        return "\n".join([self._state.text, *self._notices]).strip()

    def _update(self) -> None:
        """Send the current state, unless the last update was less than a second ago; the next event
        then sends it.
        """
        now = time.monotonic()
        if now - self._updated_at < SECONDS_BETWEEN_UPDATES:
            return
        self._updated_at = now
        self.send_text(self._text())
        try:
            self._bar.update_absolute(self._state.step, self._state.total, self._make_preview(now))
        except comfy.model_management.InterruptProcessingException:
            # The exception cleared the flag. Set it again: the trainer must save first.
            comfy.model_management.interrupt_current_processing(True)
            if not self._is_stopping:  # else it is saving already, and must say where
                self._is_stopping = True
                raise Interrupted("cancelled in ComfyUI") from None

    def make_counter(self, stage: str) -> Callable[[int, int, str], None]:
        """Return a callback for functions that report (done, total, name)."""
        return lambda done, total, name: self.report(StageProgress(stage, done, total, name))

    def make_byte_counter(self, stage: str) -> Callable[[int, int], None]:
        """Return a callback for functions that report (bytes done, total bytes, or 0 if unknown).
        It shows megabytes.
        """
        return lambda done, total: self.report(StageProgress(stage, done >> 20, max(total, done) >> 20, "MB"))

    def send_text(self, text: str) -> None:
        show_text(text)

    def _make_preview(self, now: float) -> tuple[str, Image.Image, int] | None:
        if self._image is not None:
            image, self._image = self._image, None
            return ("PNG", image, PREVIEW_SIZE)
        if len(self._losses) < 2 or now - self._previewed_at < SECONDS_BETWEEN_PREVIEWS:
            return None
        self._previewed_at = now
        from ...trainers.training.loss_plot import draw_loss_plot

        return ("PNG", _stack(self._samples, draw_loss_plot(self._losses, validation=self._validation)), PREVIEW_SIZE)


def check_interrupted() -> None:
    """Raise Interrupted if ComfyUI's flag is set. `cancellable` clears it after the trainer has
    stopped.
    """
    if comfy.model_management.processing_interrupted():
        raise Interrupted("cancelled in ComfyUI")


def show_text(text: str) -> None:
    """Show a text under the node that is being executed; do nothing if none is."""
    context = get_executing_context()
    if context is not None:
        # one of the front end's renderers reads it as Markdown, and would join all lines
        text = text.replace("\n", "  \n")
        PromptServer.instance.send_progress_text(text, context.node_id, PromptServer.instance.client_id)


@contextmanager
def cancellable(host: ComfyHost | None = None) -> Iterator[None]:
    """Around a node's work: an interrupt that it has answered stops the prompt as ComfyUI's own
    nodes do. What `host` was told stays on the node.
    """
    try:
        yield
    except Interrupted as interruption:
        if host is not None and isinstance(interruption, Paused):
            host.end_paused()
        elif host is not None:
            host.end_cancelled()
        comfy.model_management.interrupt_current_processing(False)
        raise comfy.model_management.InterruptProcessingException from None


def _format_step(event: StepDone) -> str:
    speed = event.steps_per_second
    rate = f"{speed:.2f} it/s" if speed >= 1 else f"{1 / speed:.1f} s/it"
    parts = [
        f"step {event.step}/{event.total}",
        f"loss {event.average_loss:.4f}",
        rate,
        f"ETA {_format_duration(event.eta_seconds)}",
    ]
    if event.memory_bytes:
        parts.append(format_gigabytes(event.memory_bytes))
    return " · ".join(parts)


def _format_duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _stack(samples: Image.Image | None, plot: Image.Image) -> Image.Image:
    """Put the samples above the loss plot, both at the same width."""
    if samples is None:
        return plot
    samples = samples.resize((plot.width, round(samples.height * plot.width / samples.width)))
    both = Image.new("RGB", (plot.width, samples.height + plot.height))
    both.paste(samples, (0, 0))
    both.paste(plot, (0, samples.height))
    return both
