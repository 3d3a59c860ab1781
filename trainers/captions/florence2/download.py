"""Downloads a Florence-2 model from huggingface.co into a folder: only on request, only
safetensors, and resumable.
"""

import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
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

    After an error, the next call continues with what is there. An interrupt takes effect at once;
    the current file is then finished in the background.

    Raises:
        ValueError: there is no such model, it needs a login, or it is not a Florence-2 model with
            safetensors.
        RuntimeError: huggingface.co cannot be reached.
    """
    folder = root / check_model_id(model_id)
    with _translate_errors(model_id):
        total = _require_model(model_id)
    folder.mkdir(parents=True, exist_ok=True)
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="florence2-download")
    running = executor.submit(_fetch, model_id, folder)
    try:
        while not _is_done(running):
            check_interrupted()
            on_progress(min(_count_bytes(folder), total), total)
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
    with _translate_errors(model_id):
        running.result()
    return ModelFolder.open(folder).path


def _is_done(running: Future[object]) -> bool:
    return bool(wait([running], timeout=SECONDS_BETWEEN_LOOKS).done)


def _fetch(model_id: str, folder: Path) -> object:
    from huggingface_hub import snapshot_download

    return snapshot_download(model_id, local_dir=folder, allow_patterns=[*WANTED_FILES, *WEIGHT_FILES])


def _require_model(model_id: str) -> int:
    """Check the model's list of files, and return the bytes to download."""
    from huggingface_hub import HfApi

    files = {
        file.rfilename: file.size or 0 for file in HfApi().model_info(model_id, files_metadata=True).siblings or []
    }
    weights = [name for name in files if name.endswith(".safetensors") and "/" not in name]
    if not weights or "config.json" not in files:
        raise ValueError(
            f"{model_id} has no .safetensors file. Other formats can contain programs and are not downloaded. "
            "Choose another model, such as florence-community/Florence-2-base"
        )
    return sum(files[name] for name in weights) + sum(size for name, size in files.items() if name in WANTED_FILES)


@contextmanager
def _translate_errors(model_id: str) -> Iterator[None]:
    """Turn huggingface_hub's errors into ours, in the user's words."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    # The bases are the errors of its HTTP library, which differs between its major versions.
    unreachable: Any = (OSError, LocalEntryNotFoundError, *HfHubHTTPError.__bases__)
    try:
        yield
    except GatedRepoError as error:
        raise ValueError(
            f"{model_id}: its owner requires you to log in and agree first, at https://huggingface.co/{model_id}"
        ) from error
    except RepositoryNotFoundError as error:
        raise ValueError(f"{model_id}: there is no such model on huggingface.co. Is the name right?") from error
    except OfflineModeIsEnabled as error:
        raise RuntimeError(
            f"{model_id} cannot be downloaded: HF_HUB_OFFLINE is set. Unset it, or {_BY_HAND}"
        ) from error
    except unreachable as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RuntimeError(
            f"{model_id} cannot be downloaded: huggingface.co cannot be reached or gave an error ({reason}). Run it "
            f"again to continue, or {_BY_HAND}"
        ) from error


def _count_bytes(folder: Path) -> int:
    """Count the bytes in the folder, unfinished files included. A file may be renamed meanwhile."""
    total = 0
    for file in folder.rglob("*"):
        try:
            total += file.stat().st_size if file.is_file() else 0
        except FileNotFoundError:
            continue
    return total
