"""RunReader: the runs in one folder, for callers that ask again and again, from several threads."""

import os
from collections import OrderedDict
from collections.abc import Collection
from pathlib import Path
from threading import Lock

from .curve import LossCurve
from .record import REQUESTS, RunRecord, RunSummary, is_run_folder, read_record, read_summary

MAX_LISTED = 200
MAX_LOOKED_AT = 1_000
MAX_POINTS = 1_000
_MAX_CURVES = 16


class UnknownRun(LookupError):
    """There is no run of this name."""


class RunNotAlive(RuntimeError):
    """The run has ended, so that nobody reads a request."""


class RunReader:
    """Remembers the curves that were asked for last, to read only what is new in them."""

    def __init__(self) -> None:
        self._curves: OrderedDict[Path, LossCurve] = OrderedDict()
        self._lock = Lock()

    def list_runs(
        self, runs_folder: Path, *, nodes: Collection[str] = (), workflow: str | None = None
    ) -> list[RunSummary]:
        """Return the runs, the latest first; with `nodes`, only those of these execution ids. With
        `workflow` too, those of other workflows are left out, and those of none come last: programs
        send prompts without a workflow.
        """
        runs = (read_summary(folder) for folder in _list_folders(runs_folder))
        if nodes:
            runs = (run for run in runs if run.node_id in nodes)
        if workflow:
            runs = (run for run in runs if run.workflow_id in (workflow, None))
            runs = iter(sorted(runs, key=lambda run: run.workflow_id is None))
        return [run for run, _ in zip(runs, range(MAX_LISTED), strict=False)]

    def read_run(self, runs_folder: Path, name: str, *, max_points: int) -> RunRecord:
        """Raises UnknownRun if there is no run of this name in the folder."""
        folder = _find_folder(runs_folder, name)
        with self._lock:
            curve = self._curves.pop(folder, None) or LossCurve(folder / "loss.csv")
            self._curves[folder] = curve
            if len(self._curves) > _MAX_CURVES:
                self._curves.popitem(last=False)
            return read_record(folder, curve, max_points=min(max_points, MAX_POINTS))

    def ask_run(self, runs_folder: Path, name: str, request: str) -> None:
        """Ask a living run to finish or to pause.

        Raises:
            UnknownRun: there is no run of this name in the folder.
            RunNotAlive: it has ended.
        """
        assert request in REQUESTS
        folder = _find_folder(runs_folder, name)
        summary = read_summary(folder)
        if not summary.can_ask:
            raise RunNotAlive(f"{name} is {summary.status}: only a run that is going on can be asked to {request}")
        (folder / request).touch()


def _find_folder(runs_folder: Path, name: str) -> Path:
    """Return the folder of the run. A name is never a path, and a link never leads elsewhere."""
    folder = runs_folder / name
    is_name = name not in ("", ".", "..") and not set(name) & set("/\\:\0")
    if not is_name or folder.is_symlink() or not is_run_folder(folder):
        raise UnknownRun("There is no run of this name")
    return folder


def _list_folders(runs_folder: Path) -> list[Path]:
    """Return the folders of runs, the one that was written to last first."""
    try:
        with os.scandir(runs_folder) as entries:
            folders = [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    times = {folder: _find_time(folder) for folder in folders}
    latest = sorted((folder for folder in folders if times[folder]), key=times.__getitem__, reverse=True)
    return latest[:MAX_LOOKED_AT]


def _find_time(folder: Path) -> float:
    """Return when the run was written to last, 0 if it is no run."""
    for name in ("progress.json", "loss.csv", "manifest.json"):
        try:
            return (folder / name).stat().st_mtime
        except OSError:
            continue
    return 0.0
