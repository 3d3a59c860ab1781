"""The console as the host of a trainer: tqdm, logging and Ctrl-C."""

import logging
import math
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import torch
from tqdm import tqdm

from ..critical_section import raise_when_safe, was_interrupted
from ..wording import format_gigabytes
from .device import DeviceMemory, default_device
from .events import (
    CheckpointSaved,
    Event,
    ImageCaptioned,
    Interrupted,
    Notice,
    Request,
    SamplesDrawn,
    StageProgress,
    StageStarted,
    StepDone,
    Validated,
)

SIGNALS: dict[str, Request] = {"SIGUSR1": "finish", "SIGUSR2": "pause"}
logger = logging.getLogger(__name__)


class ConsoleHost(DeviceMemory):
    """Reports with tqdm and logging. Ctrl-C stops the trainer at its next step, a second Ctrl-C at
    once. SIGUSR1 finishes the run with the LoRA so far, SIGUSR2 pauses it.

    Use it as a context manager: it handles the interrupt signal and owns the bar only inside the
    block.
    """

    def __init__(self, device: torch.device | None = None, *, quiet: bool = False) -> None:
        super().__init__(device or default_device())
        self._quiet = quiet
        self._bar: tqdm | None = None
        self._interrupted = False
        self._request: Request | None = None
        self._previous_handlers: dict[int, Any] = {}

    def __enter__(self) -> "ConsoleHost":
        if threading.current_thread() is threading.main_thread():
            self._handle(signal.SIGINT, self._on_interrupt)
            self._interrupted = was_interrupted()
            for name, request in SIGNALS.items():
                if hasattr(signal, name):  # Windows has neither
                    self._handle(getattr(signal, name), partial(self._on_request, request))
        return self

    def _handle(self, number: int, handler: Callable[[int, FrameType | None], None]) -> None:
        self._previous_handlers[number] = signal.signal(number, handler)

    def __exit__(self, *exception: object) -> None:
        self._close_bar()
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def _on_request(self, request: Request, number: int, frame: FrameType | None) -> None:
        self._request = request

    def take_request(self) -> Request | None:
        request, self._request = self._request, None
        return request

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._interrupted:
            raise_when_safe(KeyboardInterrupt())
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
            case Validated():
                self._say(event.text())
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
