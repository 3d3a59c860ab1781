"""The folder of one run: manifest, loss.csv, loss plot, checkpoints, samples and log."""

import csv
import json
import logging
import math
import os
import platform
import re
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO, get_args

from PIL import Image

from ..files.atomic_write import atomic_write
from ..files.names import check_output_name, find_free_path, require_short_path
from ..files.orphans import remove_orphans
from .events import Request, StepDone
from .loss_plot import draw_loss_plot
from .resume.file_names import IDENTITY, RESULT, STATES
from .resume.identity import RunIdentity
from .sample_sheet import SampleRows, extend_sheet

SECONDS_BETWEEN_LOOKS = 0.5  # for requests: a look costs two questions to the disk
COLUMNS = ("step", "epoch", "loss", "average_loss", "learning_rate", "steps_per_second")


class RunFolder:
    """Owns `<output folder>/runs/<name>-<date>-<time>` and the path of the final LoRA.

    The LoRA goes to the output folder, or with `keep_inside` to the run folder. Nothing is written
    before `create`. `origin` says who asked for the run.
    """

    def __init__(
        self, output_folder: Path, name: str, *, keep_inside: bool = False, origin: Mapping[str, Any] | None = None
    ) -> None:
        self.name = check_output_name(name)
        self.output_folder = output_folder
        self.path = find_free_path(self.runs_folder / f"{self.name}-{time.strftime('%Y%m%d-%H%M%S')}")
        self.keeps_inside = keep_inside
        self._origin = origin
        self._looked_at = -math.inf

    @property
    def runs_folder(self) -> Path:
        return self.output_folder / "runs"

    @property
    def final_path(self) -> Path:
        return (self.path if self.keeps_inside else self.output_folder) / f"{self.name}.safetensors"

    def require_free_name(self) -> None:
        """Raises FileExistsError if the name of the LoRA is taken."""
        if self.final_path.exists():
            raise FileExistsError(
                f"{self.final_path} exists already. Choose another output name; it was not overwritten"
            )

    def reopen(self, path: Path) -> None:
        """Go on in the folder of an earlier run, which may have had another name. What was asked of
        it when it had ended already is forgotten.
        """
        self.path = path
        for request in get_args(Request):
            (path / request).unlink(missing_ok=True)
        if self.keeps_inside:
            self.name = re.sub(r"-\d{8}-\d{6}(-\d+)?$", "", path.name)

    @property
    def states(self) -> Path:
        return self.path / STATES

    @property
    def log_path(self) -> Path:
        return self.path / "run.log"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def require_writable(self) -> None:
        """Check that files of this run can be written. Nothing is left behind, not even by a run
        that was killed days ago.

        Raises:
            OSError: the folder cannot be written.
            ValueError: on Windows, a path would be longer than the system allows.
        """
        remove_orphans(self.output_folder)
        longest = self.checkpoint_path(step=10**7).absolute()
        require_short_path(longest.with_name(f".{longest.name}.12345678.tmp"))
        folder = self.output_folder.absolute()
        while not folder.exists():
            folder = folder.parent
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise OSError(
                f"{self.output_folder} cannot be written ({error.strerror}). Choose another output folder, or change "
                "the rights of this one"
            ) from error

    def create(self, manifest: dict[str, Any], identity: RunIdentity | None = None) -> None:
        """Make the folder and write the manifest, with the versions of our packages added."""
        self.path.mkdir(parents=True)
        self.write_text("manifest.json", json.dumps({**manifest, "versions": _read_versions()}, indent=2, default=str))
        if identity is not None:
            self.write_text(IDENTITY, identity.to_json())
        self.write_origin()

    def amend_manifest(self, **entries: Any) -> None:
        """Add entries to the manifest, or replace them."""
        path = self.path / "manifest.json"
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):  # somebody has removed or edited it
            manifest = {}
        self.write_text("manifest.json", json.dumps({**manifest, **entries}, indent=2, default=str))

    def write_origin(self) -> None:
        if self._origin is not None:
            self.write_text("origin.json", json.dumps(self._origin))

    def write_result(self, result: dict[str, Any]) -> None:
        self.write_text(RESULT, json.dumps(result, indent=2))

    def take_request(self) -> Request | None:
        """Return what a file named "finish" or "pause" asks for, and remove it. It is noticed
        within half a second, or after a longer step.
        """
        now = time.monotonic()
        if now - self._looked_at < SECONDS_BETWEEN_LOOKS:
            return None
        self._looked_at = now
        for request in get_args(Request):
            path = self.path / request
            if path.exists():
                path.unlink(missing_ok=True)
                return request
        return None

    def write_text(self, name: str, text: str) -> None:
        with atomic_write(self.path / name, overwrite=True) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def write_loss_plot(self, losses: list[float], validation: Sequence[Sequence[float]] = ()) -> None:
        points = [(int(step), loss) for step, loss, *_ in validation]
        with atomic_write(self.path / "loss.png", overwrite=True) as temporary:
            draw_loss_plot(losses, title=self.name, validation=points).save(temporary, format="PNG")

    def write_validation(self, rows: Sequence[Sequence[float]]) -> None:
        lines = [
            f"{step:.0f},{loss!r},{'' if math.isnan(ema_loss) else repr(ema_loss)}" for step, loss, ema_loss, *_ in rows
        ]
        self.write_text("validation.csv", "\n".join(["step,loss,ema_loss", *lines]) + "\n")

    def rewrite_losses(self, losses: Sequence[float]) -> None:
        """Write loss.csv again, with a row for every step."""
        rows = _read_loss_rows(self.path / "loss.csv", losses)
        with atomic_write(self.path / "loss.csv", overwrite=True) as temporary:
            temporary.write_text("".join(",".join(row) + "\r\n" for row in (COLUMNS, *rows)), "utf-8", newline="")

    def write_samples(self, image: Image.Image, *, step: int) -> Path:
        path = self.samples_path(step=step)
        with atomic_write(path, overwrite=True) as temporary:
            image.save(temporary, format="PNG")
        return path

    def extend_sample_sheet(self, rows: SampleRows, *, labels: Sequence[str], step: int) -> None:
        (self.path / "samples").mkdir(exist_ok=True)
        extend_sheet(self.path / "samples" / "all.png", rows, labels=labels, step=step)

    def samples_path(self, *, step: int) -> Path:
        return self.path / "samples" / f"{self.name}-step{step:08d}.png"

    def remove_unfinished(self) -> None:
        """Remove what a killed process was writing. Call it with the run's lock."""
        for folder in (self.path, self.states, self.checkpoints, self.path / "samples"):
            for path in folder.glob(".*.tmp"):
                with suppress(OSError):
                    path.unlink()

    def checkpoint_path(self, *, step: int, epoch: int | None = None) -> Path:
        """Return a path named as in sd-scripts: NAME-step00000100 for steps, NAME-000002 for
        epochs.
        """
        suffix = f"step{step:08d}" if epoch is None else f"{epoch:06d}"
        return self.checkpoints / f"{self.name}-{suffix}.safetensors"

    @property
    def best_path(self) -> Path:
        return self.path / f"{self.name}-best.safetensors"

    @contextmanager
    def log(self, earlier: Sequence[float] = ()) -> Iterator["LossLog"]:
        """Keep loss.csv open inside the block, and add the package's warnings to run.log. `earlier`
        are the losses of the steps that are done; later rows are removed.
        """
        handler = logging.FileHandler(self.log_path, encoding="utf-8")
        handler.setLevel(logging.WARNING)  # the run's events are there already
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        package_logger = logging.getLogger(__name__.rsplit(".", 2)[0])
        package_logger.addHandler(handler)
        rows = _read_loss_rows(self.path / "loss.csv", earlier)
        stream = open(self.path / "loss.csv", "w", newline="", encoding="utf-8")  # noqa: SIM115
        try:
            yield _start_log(stream, rows)
        finally:
            with suppress(OSError):  # a full disk: the last second of the log is lost, and nothing else
                stream.close()
            package_logger.removeHandler(handler)
            with suppress(OSError):
                handler.close()


def _start_log(stream: TextIO, rows: Iterable[Sequence[str]]) -> "LossLog":
    try:
        return LossLog(stream, rows)
    except OSError as error:  # that of a write names no file
        raise OSError(error.errno, error.strerror, stream.name) from error


class LossLog:
    """Writes one line per optimizer step, and flushes about once a second."""

    def __init__(self, stream: TextIO, rows: Iterable[Sequence[str]] = ()) -> None:
        self._stream = stream
        self._writer = csv.writer(stream)
        self._writer.writerow(COLUMNS)
        self._writer.writerows(rows)
        self._flushed_at = 0.0

    def add(self, event: StepDone) -> None:
        self._writer.writerow(
            [
                event.step,
                event.epoch,
                repr(event.loss),
                f"{event.average_loss:.8g}",
                f"{event.learning_rate:.6g}",
                f"{event.steps_per_second:.4g}",
            ]
        )
        if time.monotonic() - self._flushed_at > 1:
            self._stream.flush()
            self._flushed_at = time.monotonic()

    def flush(self) -> None:
        self._stream.flush()
        os.fsync(self._stream.fileno())


def _read_loss_rows(path: Path, losses: Sequence[float]) -> list[list[str]]:
    """The rows of the steps that are done. One that was lost with its process has only its loss."""
    found: dict[str, list[str]] = {}
    if losses and path.is_file():
        with suppress(csv.Error, UnicodeDecodeError), open(path, newline="", encoding="utf-8") as stream:
            found = {row[0]: row for row in csv.reader(stream) if len(row) == len(COLUMNS)}
    return [found.get(str(step), [str(step), "", repr(loss), "", "", ""]) for step, loss in enumerate(losses, 1)]


def _read_versions() -> dict[str, str]:
    packages = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "pillow")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}}
