"""progress.json of a run: what it does now, for the panel and other programs."""

import json
import math
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from .events import (
    CheckpointSaved,
    Event,
    Interrupted,
    Notice,
    Paused,
    RunDescribed,
    StageProgress,
    StageStarted,
    StepDone,
)

FILE_NAME = "progress.json"
SECONDS_BETWEEN_WRITES = 1.0
MAX_NOTICES = 20


class LiveStatus:
    """Rewrites the file at most once a second. It shows what is happening; nothing is restored from
    it, so that a failed write does not matter.
    """

    def __init__(self) -> None:
        self._path: Path | None = None
        self._written_at = -math.inf
        self._content: dict[str, Any] = {
            "status": "running",
            "stage": "",
            "step": 0,
            "total": 0,
            "message": "",
            "settings": "",
            "memory_budget_bytes": 0,
            "notices": [],
            "process": os.getpid(),
            "started_at": time.time(),
        }

    def open(self, folder: Path) -> None:
        self._path = folder / FILE_NAME
        self._write()

    def add(self, event: Event) -> None:
        match event:
            case StageStarted(stage, total):
                self._update(stage=stage, **({"total": total} if stage == "training" else {}))
            case StepDone():
                self._update(**_describe_step(event))
            case RunDescribed(message, budget):
                self._update(settings=message, memory_budget_bytes=budget)
            case Notice(message):
                self._add_notice(message)
            case StageProgress() | CheckpointSaved():
                pass
            case _:
                return
        if time.monotonic() - self._written_at >= SECONDS_BETWEEN_WRITES:
            self._write()

    def set(self, **values: Any) -> None:
        """Set values that no event has, such as those of the validation."""
        self._update(**values)

    def finish(self, *, early: bool, message: str) -> None:
        self._end("finished early" if early else "finished", message)

    def end(self) -> None:
        """The run ended without an error. `finish` says more."""
        if self._path is not None:
            self._end("finished", "")

    def fail(self, error: BaseException) -> None:
        message = self._content["notices"][-1] if self._content["notices"] else ""
        if isinstance(error, Paused):
            self._end("paused", message)
        elif isinstance(error, (Interrupted, KeyboardInterrupt, SystemExit)):
            self._end("cancelled", message)
        else:
            self._end("failed", f"{type(error).__name__}: {error}\n{message}".strip())

    def _end(self, status: str, message: str) -> None:
        self._update(status=status, message=message, eta_seconds=None)
        self._write()
        self._path = None

    def _add_notice(self, message: str) -> None:
        self._content["notices"] = [*self._content["notices"], message][-MAX_NOTICES:]

    def _update(self, **values: Any) -> None:
        self._content.update(values)

    def _write(self) -> None:
        self._written_at = time.monotonic()
        if self._path is None:
            return
        temporary = self._path.with_name(f".{FILE_NAME}.tmp")  # one process has the run's lock
        with suppress(OSError):  # a full disk, or on Windows a reader
            try:
                temporary.write_text(json.dumps({**self._content, "updated_at": time.time()}), encoding="utf-8")
                os.replace(temporary, self._path)
            except OSError:
                temporary.unlink(missing_ok=True)
                raise


def _describe_step(event: StepDone) -> Mapping[str, Any]:
    return {
        "step": event.step,
        "total": event.total,
        "loss": _finite(event.loss),
        "average_loss": _finite(event.average_loss),
        "learning_rate": _finite(event.learning_rate),
        "steps_per_second": _finite(event.steps_per_second),
        "eta_seconds": _finite(event.eta_seconds),
        "memory_bytes": event.memory_bytes,
    }


def _finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None
