"""The console as the host of a trainer: tqdm, logging and Ctrl-C."""

import logging
import math
import signal
import sys
import threading
from types import FrameType
from typing import Any

import torch
from tqdm import tqdm

from ..wording import format_gigabytes
from .device import DeviceMemory, default_device
from .events import (
    CheckpointSaved,
    Event,
    ImageCaptioned,
    Interrupted,
    Notice,
    SamplesDrawn,
    StageProgress,
    StageStarted,
    StepDone,
)

logger = logging.getLogger(__name__)


class ConsoleHost(DeviceMemory):
    """Reports with tqdm and logging. Ctrl-C stops the trainer at its next step, a second Ctrl-C at
    once.

    Use it as a context manager: it handles the interrupt signal and owns the bar only inside the
    block.
    """

    def __init__(self, device: torch.device | None = None, *, quiet: bool = False) -> None:
        super().__init__(device or default_device())
        self._quiet = quiet
        self._bar: tqdm | None = None
        self._interrupted = False
        self._previous_handler: Any = None

    def __enter__(self) -> "ConsoleHost":
        if threading.current_thread() is threading.main_thread():
            self._previous_handler = signal.signal(signal.SIGINT, self._on_interrupt)
        return self

    def __exit__(self, *exception: object) -> None:
        self._close_bar()
        if self._previous_handler is not None:
            signal.signal(signal.SIGINT, self._previous_handler)

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = True
        logger.warning("Stopping at the next step; press Ctrl-C again to stop at once.")

    def check_interrupted(self) -> None:
        if self._interrupted:
            raise Interrupted("cancelled by Ctrl-C")

    def report(self, event: Event) -> None:
        match event:
            case StageStarted(stage, total):
                self._start_bar(stage, total)
            case StageProgress(step=step, detail=detail):
                self._move_bar(step, detail)
            case StepDone():
                self._move_bar(event.step, describe_step(event))
            case CheckpointSaved(path, step):
                self._say(f"step {step}: saved {path}")
            case SamplesDrawn(path=path, step=step):
                self._say(f"step {step}: drew {path}")
            case ImageCaptioned(name=name, caption=caption, step=step):
                self._say(f"{name}: {caption}")
                self._move_bar(step, name)
            case Notice(message):
                self._say(message)

    def _start_bar(self, stage: str, total: int) -> None:
        self._close_bar()
        if total and not self._quiet:
            self._bar = tqdm(total=total, desc=stage, dynamic_ncols=True, leave=stage == "training")

    def _move_bar(self, step: int, postfix: str) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(postfix, refresh=False)
            self._bar.update(step - self._bar.n)

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _say(self, message: str) -> None:
        logger.info(message)
        if not self._quiet:
            tqdm.write(message, file=sys.stderr)


def describe_step(event: StepDone) -> str:
    """Return one line: the loss, and the learning rate and memory if known. tqdm's bar already
    shows speed and remaining time.
    """
    learning_rate = "" if math.isnan(event.learning_rate) else f", lr {event.learning_rate:.1e}"
    memory = f", {format_gigabytes(event.memory_bytes)}" if event.memory_bytes else ""
    return f"loss {event.average_loss:.4f}{learning_rate}{memory}"
