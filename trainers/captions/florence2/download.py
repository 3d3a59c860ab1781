"""Downloads a Florence-2 model from huggingface.co into a folder: only on request, only
safetensors, and resumable.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .folder import ModelFolder

WANTED_FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
)
WEIGHT_FILES = ("*.safetensors", "model.safetensors.index.json")
SECONDS_BETWEEN_LOOKS = 0.5
PROGRAM = Path(__file__).with_name("hub_program.py")
_BY_HAND = "copy the model's folder into models/florence2"
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"


def check_model_id(model_id: str) -> str:
    """Return the id without spaces. Raises ValueError unless it is OWNER/NAME."""
    model_id = model_id.strip()
    if not re.fullmatch(f"{_PART}/{_PART}", model_id) or ".." in model_id:
        raise ValueError(
            "model_id must be OWNER/NAME as on huggingface.co, such as florence-community/Florence-2-base, got "
            f"{model_id!r}"
        )
    return model_id


def find_downloaded_model(model_id: str, root: Path) -> Path | None:
    """Return the model's folder below `root`, or None if it is not there or not complete."""
    folder = root / check_model_id(model_id)
    try:
        return ModelFolder.open(folder).path
    except (ValueError, OSError):
        return None


def download_model(
    model_id: str,
    root: Path,
    *,
    check_interrupted: Callable[[], None] = lambda: None,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> Path:
    """Download the model into `root`/OWNER/NAME and return that folder. `on_progress` gets the
    bytes so far and the total (0: unknown).

    After an error or an interrupt, the next call continues with what is there.

    Raises:
        ValueError: there is no such model, it needs a login, or it is not a Florence-2 model with
            safetensors.
        RuntimeError: huggingface.co cannot be reached.
    """
    folder = root / check_model_id(model_id)
    files = _ask_hub(model_id, look=check_interrupted)["files"]
    total = _count_wanted_bytes(model_id, files)
    folder.mkdir(parents=True, exist_ok=True)

    def look() -> None:
        check_interrupted()
        on_progress(min(_count_bytes(folder), total), total)

    _ask_hub(model_id, folder, look=look)
    return ModelFolder.open(folder).path


def _ask_hub(model_id: str, folder: Path | None = None, *, look: Callable[[], None]) -> dict[str, Any]:
    """Run the program: with a folder, it downloads the model into it. What `look` raises ends it.

    It is a process, because nothing can end a download of huggingface_hub in this one.
    """
    task = {
        "model_id": model_id,
        "folder": str(folder) if folder else "",
        "patterns": [*WANTED_FILES, *WEIGHT_FILES],
        "path": [entry for entry in sys.path if entry],
    }
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, "-I", str(PROGRAM), json.dumps(task)],
            stdin=subprocess.PIPE,
            stdout=output,
            start_new_session=True,  # Ctrl-C in the terminal is answered by `look`
        )
        try:
            while not _has_ended(process):
                look()
        finally:
            process.kill()
            process.communicate()
        output.seek(0)
        return _read_answer(model_id, process.returncode, output.read())


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(SECONDS_BETWEEN_LOOKS)
    except subprocess.TimeoutExpired:
        return False
    return True


def _read_answer(model_id: str, returncode: int, output: bytes) -> dict[str, Any]:
    if returncode:
        raise RuntimeError(
            f"{model_id} cannot be downloaded: huggingface_hub ended with an error, which the log has in full. "
            f"Update huggingface_hub, or {_BY_HAND}"
        )
    answer = json.loads(output.splitlines()[-1])
    match answer.get("problem"):
        case "gated":
            raise ValueError(
                f"{model_id}: its owner requires you to log in and agree first, at https://huggingface.co/{model_id}"
            )
        case "missing":
            raise ValueError(f"{model_id}: there is no such model on huggingface.co. Is the name right?")
        case "offline":
            raise RuntimeError(f"{model_id} cannot be downloaded: HF_HUB_OFFLINE is set. Unset it, or {_BY_HAND}")
        case "unreachable":
            raise RuntimeError(
                f"{model_id} cannot be downloaded: huggingface.co cannot be reached or gave an error "
                f"({answer['reason']}). Run it again to continue, or {_BY_HAND}"
            )
    return answer


def _count_wanted_bytes(model_id: str, files: dict[str, int]) -> int:
    """Check the model's list of files, and return the bytes to download."""
    weights = [name for name in files if name.endswith(".safetensors") and "/" not in name]
    if not weights or "config.json" not in files:
        raise ValueError(
            f"{model_id} has no .safetensors file. Other formats can contain programs and are not downloaded. "
            "Choose another model, such as florence-community/Florence-2-base"
        )
    return sum(files[name] for name in weights) + sum(size for name, size in files.items() if name in WANTED_FILES)


def _count_bytes(folder: Path) -> int:
    """Count the bytes in the folder, unfinished files included. A file may be renamed meanwhile."""
    total = 0
    for file in folder.rglob("*"):
        try:
            total += file.stat().st_size if file.is_file() else 0
        except FileNotFoundError:
            continue
    return total
