"""run.log of a run: its events in words, in order, from before its folder exists until its end."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

import torch

from .events import (
    CheckpointSaved,
    Event,
    ImageCaptioned,
    Notice,
    Request,
    SamplesDrawn,
    StageProgress,
    StageStarted,
    StepDone,
    Validated,
)
from .host import Host
from .live_status import LiveStatus

STEPS_BETWEEN_LINES = 50


class LoggedHost:
    """The host of a run, whose events also go to the run's log and to its progress.json. Those
    before `open` are kept until then.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._early: list[str] = []
        self._stream: TextIO | None = None
        self.status = LiveStatus()

    @property
    def device(self) -> torch.device:
        return self._host.device

    def check_interrupted(self) -> None:
        self._host.check_interrupted()

    def take_request(self) -> Request | None:
        return self._host.take_request()

    def reset_peak_memory(self) -> None:
        self._host.reset_peak_memory()

    def peak_memory_bytes(self) -> int:
        return self._host.peak_memory_bytes()

    def release_memory(self) -> None:
        self._host.release_memory()

    def report(self, event: Event) -> None:
        text = describe_event(event)
        if text:
            self._write(text)
        self.status.add(event)
        self._host.report(event)

    def warn(self, message: str) -> None:
        self.report(Notice(message))

    @contextmanager
    def open(self, path: Path) -> Iterator[None]:
        """Write to the file inside the block, and how the block ended."""
        self._stream = open(path, "a", encoding="utf-8")  # noqa: SIM115 - on a full disk, closing raises
        try:
            self._stream.writelines(self._early)
            self._early.clear()
            self.status.open(path.parent)
            yield
        except BaseException as error:
            self._write(f"ended early: {type(error).__name__}: {error}".rstrip(": "))
            self.status.fail(error)
            raise
        else:
            self._write("finished")
            self.status.end()
        finally:
            stream, self._stream = self._stream, None
            with suppress(OSError):
                stream.close()

    def _write(self, text: str) -> None:
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n"
        if self._stream is None:
            self._early.append(line)
            return
        with suppress(OSError):  # a full disk stops no training
            self._stream.write(line)
            self._stream.flush()


def describe_event(event: Event) -> str:
    """One line; nothing for what comes too often."""
    match event:
        case StageStarted(stage, total):
            return f"{stage}, {total} steps" if total else stage
        case StepDone(step=step) if step == 1 or step % STEPS_BETWEEN_LINES == 0 or step == event.total:
            return f"step {step}/{event.total}: loss {event.average_loss:.4f}, {event.steps_per_second:.3g} steps/s"
        case CheckpointSaved(path, step):
            return f"step {step}: saved {path}"
        case SamplesDrawn(path=path, step=step):
            return f"step {step}: drew {path}"
        case Validated():
            return event.text()
        case Notice(message):
            return message
        case StageProgress() | StepDone() | ImageCaptioned():
            return ""
