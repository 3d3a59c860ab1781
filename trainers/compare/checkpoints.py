"""Which LoRAs are compared: single files, or all checkpoints of a run and its final LoRA."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..files.text_input import parse_json
from ..wording import name_examples

CHECKPOINTS = "checkpoints"
_STEP_IN_NAME = re.compile(r"-step(\d+)$")


@dataclass(frozen=True)
class Checkpoint:
    """One LoRA. `name` is its label in the grid; `path` is None for one in memory; `num_steps` is
    None if nothing says how long it was trained; `trigger_word` is "" if it has none.
    """

    name: str
    path: Path | None = None
    trigger_word: str = ""
    num_steps: int | None = None

    @property
    def source(self) -> str:
        """What errors call it."""
        return str(self.path or self.name)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a file's header, not its weights.

    Raises:
        ValueError: it is not a complete .safetensors file, or is not there.
    """
    return make_checkpoint(path.stem, read_metadata(path), path=path)


def make_checkpoint(name: str, metadata: Mapping[str, str], *, path: Path | None = None) -> Checkpoint:
    in_name = _STEP_IN_NAME.search(path.stem) if path else None
    steps = metadata.get("ss_steps") or (in_name[1] if in_name else "")
    return Checkpoint(
        name, path, metadata.get("modelspec.trigger_phrase", ""), int(steps) if re.fullmatch(r"\d+", steps) else None
    )


def read_metadata(path: Path) -> dict[str, str]:
    """The header's entries. Raises ValueError as read_checkpoint does."""
    if path.suffix.lower() != ".safetensors":
        raise ValueError(f"{path}: only .safetensors files are compared. Convert it, or give another file")
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    try:
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from error
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole .safetensors file ({error}). Download or copy it again") from error


# ---- runs ----


def find_run(runs: Path, name: str, *, require: Callable[[str], Path] = Path) -> Path:
    """Find a run's folder by its name in `runs`, by its path, or by the path of a LoRA in it.

    `require` makes a path of a text, and refuses those that may not be read.

    Raises:
        ValueError: there is none.
    """
    if name in _list_names(runs):
        return runs / name
    if not re.search(r"[/\\]", name):
        newest = sorted(_list_names(runs), key=lambda run: (runs / run).stat().st_mtime, reverse=True)
        known = f"The newest are {name_examples(newest)}" if newest else "There are none yet"
        raise ValueError(f"{name}: there is no such run in {runs}. {known}")
    path = require(name)
    folder = path.parent if path.suffix == ".safetensors" else path
    folder = folder.parent if folder.name == CHECKPOINTS else folder
    if not require(str(folder)).is_dir():
        raise ValueError(f"{name}: there is no such run. Give the name of a folder in {runs}")
    return folder


def _list_names(runs: Path) -> list[str]:
    return [path.name for path in runs.iterdir() if path.is_dir()] if runs.is_dir() else []


def list_run_checkpoints(run: Path, *, require: Callable[[str], Path] = Path) -> list[Checkpoint]:
    """List the checkpoints of a run and its final LoRA in the order of steps. Of files with the
    same number of steps only the last one counts; the final LoRA is after checkpoints.

    Raises:
        ValueError: it has none yet, or one cannot be read.
    """
    result = _read_result(run)
    best = _as_dict(result.get("best")).get("path")
    by_steps: dict[object, Checkpoint] = {}
    for path in sorted((run / CHECKPOINTS).glob("*.safetensors")):
        checkpoint = read_checkpoint(path)
        note = " (best)" if best and Path(str(best)).name == path.name else ""
        by_steps[checkpoint.num_steps or path] = replace(checkpoint, name=_name_step(checkpoint) + note)
    for path in _list_final_files(run, result, require):
        checkpoint = read_checkpoint(path)
        by_steps[checkpoint.num_steps or path] = replace(checkpoint, name=f"final, {_name_step(checkpoint)}")
    found = sorted(by_steps.values(), key=lambda checkpoint: checkpoint.num_steps or math.inf)
    averaged = result.get("ema_path")
    if averaged and (path := require(str(averaged))).is_file():
        found.append(replace(read_checkpoint(path), name="final, EMA"))
    if not found:
        raise ValueError(f"{run}: this run has no LoRA yet. Set save_every_n_steps, or wait for its end")
    return found


def _name_step(checkpoint: Checkpoint) -> str:
    assert checkpoint.path is not None
    return checkpoint.path.stem if checkpoint.num_steps is None else f"step {checkpoint.num_steps}"


def _read_result(run: Path) -> dict[str, Any]:
    """The run's result.json; empty if there is none, as after a cancel."""
    path = run / "result.json"
    if not path.is_file():
        return {}
    try:
        return _as_dict(parse_json(path.read_bytes()))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error}). Delete it; the LoRAs in the folder are found") from error


def _as_dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list_final_files(run: Path, result: dict[str, Any], require: Callable[[str], Path]) -> Iterator[Path]:
    """In the graph the final LoRA is in the run's folder; the command line writes it above, where
    only result.json names it.
    """
    averaged = Path(str(result.get("ema_path") or "")).name
    inside = [path for path in sorted(run.glob("*.safetensors")) if path.name != averaged]
    yield from inside
    named = result.get("path")
    if named and not inside and (path := require(str(named))).is_file():
        yield path
