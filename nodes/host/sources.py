"""Finds and opens the source of Load Images: a folder, a zip, its address, or other nodes."""

import hashlib
import os
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from ...trainers.dataset.dataset import Dataset
from ...trainers.dataset.given_images import store_images
from ...trainers.dataset.image_files import EXTENSIONS, OTHER_IMAGE_EXTENSIONS
from ...trainers.dataset.image_folder import list_dataset_files
from ...trainers.files.hashes import hash_unchanged_file
from ...trainers.training.events import Interrupted
from . import folders
from .allowed_folders import allowed_folders
from .progress import ComfyHost, check_interrupted

# An environment variable, set by the server's owner: a shared workflow must not make this machine
# send requests to its own network.
ALLOW_PRIVATE_URLS = "LORA_TRAINER_ALLOW_PRIVATE_URLS"
MAX_DOWNLOAD_BYTES = 4 * 2**30
PREVIEW_SIZE = 512
# Who queues a prompt waits for its check: no more than a network drive answers in a moment.
MAX_ENTRIES_LOOKED_AT = 2000
MAX_FOLDERS_LOOKED_INTO = 50


@dataclass(frozen=True)
class Source:
    kind: Literal["folder", "zip", "url", "sockets"]
    location: str = ""


@dataclass(frozen=True)
class Images:
    """A folder to scan. `name` is the user's name for it, if the folder's own name is
    meaningless.
    """

    folder: Path
    name: str = ""


def find_source(folder: str, path: str) -> Source:
    """Find what the two widgets point at, without reading or downloading it.

    Raises:
        ValueError, FileNotFoundError: both are set, the path may not be read here, or there is no
            such folder or zip.
    """
    path = path.strip().strip('"')
    if folder != folders.NONE and path:
        raise ValueError(
            f"folder ({folder}) and path ({path}) are both set. Empty path, or set folder to {folders.NONE}"
        )
    if folder != folders.NONE:
        return _check_folder(folders.find_input_folder(folder))
    if not path:
        return Source("sockets")
    if path.lower().startswith(("http://", "https://")):
        return Source("url", path)
    place = allowed_folders().require(path)
    if place.suffix.lower() == ".zip" and place.is_file():
        return Source("zip", str(place))
    return _check_folder(place)


def _check_folder(folder: Path) -> Source:
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: there is no such folder or .zip file. Give the folder that holds the images"
        )
    if not _may_have_images(folder):
        raise ValueError(f"{folder}: no images in it. Images are {', '.join(EXTENSIONS)}")
    return Source("folder", str(folder))


def _may_have_images(folder: Path) -> bool:
    """False once all of it was seen and there is none. A large folder is left to the scan, which
    can be cancelled, and so is one that cannot be read.
    """
    waiting, num_seen = deque([folder]), 0
    for _ in range(MAX_FOLDERS_LOOKED_INTO):
        if not waiting:
            return False
        try:
            with os.scandir(waiting.popleft()) as entries:
                for entry in entries:
                    num_seen += 1
                    if _is_ours(entry.name, EXTENSIONS + OTHER_IMAGE_EXTENSIONS) or num_seen == MAX_ENTRIES_LOOKED_AT:
                        return True
                    if entry.is_dir():
                        waiting.append(Path(entry.path))
        except PermissionError:
            return True
    return bool(waiting)


def find_control_folder(name: str, images: Path | None) -> Path | None:
    """Find the folder of control images: a whole path, or a name in the folder of the images, or in
    ComfyUI's input folder. None if `name` is empty.

    Raises:
        ValueError, FileNotFoundError: it may not be read here, or there is no such folder.
    """
    name = name.strip().strip('"')
    if not name:
        return None
    places = [place for place in (images, folders.find_input_folder("")) if place is not None]
    if Path(name).expanduser().is_absolute():
        found = allowed_folders().require(name)
    else:
        candidates = [allowed_folders().require(str(place / name)) for place in places]
        found = next((candidate for candidate in candidates if candidate.is_dir()), candidates[0])
    if not found.is_dir():
        raise FileNotFoundError(
            f"control_images: there is no folder {name}, neither in {' nor in '.join(map(str, places))}. Give the "
            "folder that holds the control images"
        )
    return found


def fingerprint(folder: str, path: str, *, recursive: bool, control_images: str = "") -> str | float:
    """Hash the names and bytes of all images, masks, captions and control images, and the remarks
    on other files. Touching a file without changing its content does not change the hash.

    Cancelled, it returns NaN, which is never equal: ComfyUI then stops at the node itself.
    """
    try:
        source = find_source(folder, path)
        return _hash_source(source, recursive=recursive) + _hash_controls(source, control_images, recursive=recursive)
    except Interrupted:
        return float("nan")


def _hash_source(source: Source, *, recursive: bool) -> str:
    if source.kind == "zip":
        return hash_unchanged_file(Path(source.location), check_interrupted=check_interrupted)
    if source.kind != "folder":
        return source.location
    return _hash_folder(Path(source.location), recursive=recursive)


def _hash_controls(source: Source, name: str, *, recursive: bool) -> str:
    try:
        folder = find_control_folder(name, Path(source.location) if source.kind == "folder" else None)
    except FileNotFoundError:  # in a zip, which is hashed as a whole; if nowhere, `execute` says so
        return ""
    return "" if folder is None else _hash_folder(folder, recursive=recursive)


def _hash_folder(root: Path, *, recursive: bool) -> str:
    files = list_dataset_files(root, recursive=recursive, check_interrupted=check_interrupted)
    lines = [
        f"{file.relative_to(root).as_posix()} {hash_unchanged_file(file, check_interrupted=check_interrupted)}"
        for file in files.read
    ]
    lines += [f"{remark.name}: {remark.reason}" for remark in files.remarks]
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _is_ours(name: str, extensions: tuple[str, ...]) -> bool:
    return name.lower().endswith(extensions) and not name.startswith(".")


def open_source(
    source: Source, *, images: list[Any] | None, masks: list[Any] | None, captions: list[str] | None, host: ComfyHost
) -> Images:
    """Bring the images into a folder on this machine, unless they already are in one.

    Raises:
        ValueError: there is no source or more than one, or images, masks and captions do not
            match.
        OSError: a download failed; the next run continues it.
    """
    require_one_source(
        source,
        connected=[name for name, value in (("images", images), ("masks", masks), ("captions", captions)) if value],
    )
    if images:
        return _store(images, masks, captions, host)
    if source.kind == "folder":
        return Images(Path(source.location))
    return _unpack(source, host)


def require_one_source(source: Source, *, connected: list[str]) -> None:
    """Raise ValueError unless the images come either from the widgets or from the sockets.
    `connected` are the sockets with values.
    """
    if source.kind == "sockets" and "images" not in connected:
        raise ValueError("no images: choose a folder, write a path or an address, or connect images")
    if source.kind != "sockets" and connected:
        raise ValueError(
            f"{' and '.join(connected)} are connected, and {source.location} is chosen too. Use one source: "
            "disconnect them, or clear folder and path"
        )


def require_used_masks(masks: list[Any] | None, mask_source: str) -> None:
    """Raise ValueError if masks are connected but mask_source ignores them."""
    if masks and mask_source != "files":
        raise ValueError(f"masks are connected, but mask_source is {mask_source}. Set it to files, or disconnect masks")


def _unpack(source: Source, host: ComfyHost) -> Images:
    from ...trainers.dataset.image_archive import unpack_images
    from ...trainers.files.download import download

    archive = Path(source.location)
    if source.kind == "url":
        archive = download(
            source.location,
            folders.get_cache_folder() / "downloads",
            max_bytes=MAX_DOWNLOAD_BYTES,
            allow_private=os.environ.get(ALLOW_PRIVATE_URLS) == "1",
            check_interrupted=host.check_interrupted,
            on_progress=host.make_byte_counter("downloading"),
        )
    folder = unpack_images(
        archive,
        folders.get_cache_folder() / "archives",
        check_interrupted=host.check_interrupted,
        on_progress=host.make_counter("unpacking"),
    )
    return Images(folder, name=Path(source.location.split("?")[0]).stem)


def _store(images: list[Any], masks: list[Any] | None, captions: list[str] | None, host: ComfyHost) -> Images:
    pil_images = _convert_images(images)
    folder = store_images(
        pil_images,
        captions or [],
        folders.get_cache_folder() / "pictures",
        masks=_convert_masks(pil_images, masks) if masks else (),
        check_interrupted=host.check_interrupted,
    )
    return Images(folder, name="pictures")


def _convert_images(batches: Iterable[torch.Tensor]) -> list[Image.Image]:
    """Convert IMAGE tensors [B, height, width, 3 or 4] in 0..1."""
    return [Image.fromarray(_to_eight_bits(image)) for batch in batches for image in batch]


def _convert_masks(images: Sequence[Image.Image], batches: Iterable[torch.Tensor]) -> list[Image.Image]:
    """Convert MASK tensors [B, height, width] or [height, width] in 0..1, and resize them to their
    images.
    """
    masks = [_to_eight_bits(mask) for batch in batches for mask in (batch if batch.ndim == 3 else batch[None])]
    empty = [str(number) for number, mask in enumerate(masks, start=1) if not mask.any()]
    if empty:
        raise ValueError(
            f"the mask of image {', '.join(empty)} is all black, so nothing of it would be learned. White is "
            "learned: is Invert Mask missing?"
        )
    sizes = [image.size for image in images[: len(masks)]] + [None] * (len(masks) - len(images))
    return [Image.fromarray(mask).resize(size or mask.shape[::-1]) for mask, size in zip(masks, sizes, strict=True)]


def _to_eight_bits(values: torch.Tensor) -> np.ndarray:
    return (values.detach().float().clamp(0, 1) * 255).round().byte().cpu().numpy()


def read_images(dataset: Dataset, host: ComfyHost) -> list[torch.Tensor]:
    """Return IMAGE tensors [1, height, width, 3], none larger than PREVIEW_SIZE: two hundred photos
    at full size would fill the memory.
    """
    tensors, report = [], host.make_counter("reading")
    for number, image in enumerate(dataset.images, start=1):
        host.check_interrupted()
        pixels = image.read()
        pixels.thumbnail((PREVIEW_SIZE, PREVIEW_SIZE))
        tensors.append(torch.from_numpy(np.array(pixels)).float().div(255)[None])
        report(number, len(dataset.images), image.name)
    return tensors
