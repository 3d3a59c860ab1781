"""Where the images of Load Images come from: a folder, a zip, the address of one, or other
nodes.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from ...trainers.dataset.dataset import Dataset
from ...trainers.dataset.given_images import store_images
from ...trainers.dataset.image_files import EXTENSIONS, OTHER_IMAGE_EXTENSIONS
from ...trainers.dataset.image_folder import list_dataset_files
from ...trainers.files.hashes import file_sha256
from . import folders
from .progress import ComfyHost

# A setting of the server's owner, and so of the environment: a shared workflow must not make this
# machine ask its neighbours.
ALLOW_PRIVATE_URLS = "LORA_TRAINER_ALLOW_PRIVATE_URLS"
MAX_DOWNLOAD_BYTES = 4 * 2**30
PREVIEW_SIZE = 768


@dataclass(frozen=True)
class Source:
    kind: Literal["folder", "zip", "url", "sockets"]
    location: str = ""


@dataclass(frozen=True)
class Images:
    """A folder to scan. `name` is what the user calls it, where the folder's own name says
    nothing.
    """

    folder: Path
    name: str = ""


def find_source(folder: str, path: str) -> Source:
    """What the two widgets point at; nothing is read or fetched.

    Raises:
        ValueError, FileNotFoundError: both are set, or there is no such folder or zip.
    """
    path = path.strip().strip('"')
    if folder != folders.NONE and path:
        raise ValueError(
            f"folder ({folder}) and path ({path}) are both set. Empty path, or set folder to {folders.NONE}"
        )
    if folder != folders.NONE:
        return _folder_source(folders.input_folder(folder))
    if not path:
        return Source("sockets")
    if path.lower().startswith(("http://", "https://")):
        return Source("url", path)
    place = Path(os.path.expanduser(path))  # which leaves "~someone" as it is where there is no such user
    if place.suffix.lower() == ".zip" and place.is_file():
        return Source("zip", str(place))
    return _folder_source(place)


def _folder_source(folder: Path) -> Source:
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: there is no such folder or .zip file. Give the folder that holds the images"
        )
    if not any(_is_ours(path.name, EXTENSIONS + OTHER_IMAGE_EXTENSIONS) for path in folder.rglob("*")):
        raise ValueError(f"{folder}: no images in it. Images are {', '.join(EXTENSIONS)}")
    return Source("folder", str(folder))


def fingerprint(folder: str, path: str, *, recursive: bool) -> str:
    """A hash of the names and bytes of all images, masks and captions. Touching a file without
    changing it changes nothing.
    """
    source = find_source(folder, path)
    if source.kind == "zip":
        return _file_hash(Path(source.location))
    if source.kind != "folder":
        return source.location
    root = Path(source.location)
    lines = [
        f"{file.relative_to(root).as_posix()} {_file_hash(file)}"
        for file in list_dataset_files(root, recursive=recursive)
    ]
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _is_ours(name: str, extensions: tuple[str, ...]) -> bool:
    return name.lower().endswith(extensions) and not name.startswith(".")


def _file_hash(path: Path) -> str:
    status = path.stat()
    return _hash_of_version(str(path), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=20_000)
def _hash_of_version(path: str, _size: int, _modified_ns: int) -> str:
    return file_sha256(Path(path))


def open_source(
    source: Source, *, images: list[Any] | None, masks: list[Any] | None, captions: list[str] | None, host: ComfyHost
) -> Images:
    """Bring the images into a folder on this machine, if they are not in one.

    Raises:
        ValueError: no source or more than one, or images, masks and captions that do not belong
            together.
        OSError: an address cannot be fetched; the next run goes on where this one stopped.
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
    """Raises ValueError unless images come either from what the widgets name or from the sockets,
    of which those `connected` bring something.
    """
    if source.kind == "sockets" and "images" not in connected:
        raise ValueError("no images: choose a folder, write a path or an address, or connect images")
    if source.kind != "sockets" and connected:
        raise ValueError(
            f"{' and '.join(connected)} are connected, and {source.location} is chosen too. Use one source: "
            "disconnect them, or empty folder and path"
        )


def require_used_masks(masks: list[Any] | None, mask_source: str) -> None:
    """Raises ValueError where masks are connected that the setting leaves aside."""
    if masks and mask_source != "files":
        raise ValueError(f"masks are connected, and mask_source is {mask_source}. Set it to files, or disconnect masks")


def _unpack(source: Source, host: ComfyHost) -> Images:
    from ...trainers.dataset.image_archive import unpack_images
    from ...trainers.files.download import download

    archive = Path(source.location)
    if source.kind == "url":
        archive = download(
            source.location,
            folders.cache_folder() / "downloads",
            max_bytes=MAX_DOWNLOAD_BYTES,
            allow_private=os.environ.get(ALLOW_PRIVATE_URLS) == "1",
            check_interrupted=host.check_interrupted,
            on_progress=host.byte_counter("downloading"),
        )
    folder = unpack_images(
        archive,
        folders.cache_folder() / "archives",
        check_interrupted=host.check_interrupted,
        on_progress=host.counter("unpacking"),
    )
    return Images(folder, name=Path(source.location.split("?")[0]).stem)


def _store(images: list[Any], masks: list[Any] | None, captions: list[str] | None, host: ComfyHost) -> Images:
    pil_images = _images_of(images)
    folder = store_images(
        pil_images,
        captions or [],
        folders.cache_folder() / "pictures",
        masks=_masks_for(pil_images, masks) if masks else (),
        check_interrupted=host.check_interrupted,
    )
    return Images(folder, name="pictures")


def _images_of(batches: Iterable[torch.Tensor]) -> list[Image.Image]:
    """From IMAGE tensors [B, height, width, 3 or 4] in 0..1."""
    return [Image.fromarray(_eight_bits(image)) for batch in batches for image in batch]


def _masks_for(images: Sequence[Image.Image], batches: Iterable[torch.Tensor]) -> list[Image.Image]:
    """From MASK tensors [B, height, width] or [height, width] in 0..1, as large as their
    images.
    """
    masks = [_eight_bits(mask) for batch in batches for mask in (batch if batch.ndim == 3 else batch[None])]
    empty = [str(number) for number, mask in enumerate(masks, start=1) if not mask.any()]
    if empty:
        raise ValueError(
            f"the mask of image {', '.join(empty)} is all black, so nothing of it would be learned. White is "
            "learned: is Invert Mask missing?"
        )
    sizes = [image.size for image in images[: len(masks)]] + [None] * (len(masks) - len(images))
    return [Image.fromarray(mask).resize(size or mask.shape[::-1]) for mask, size in zip(masks, sizes, strict=True)]


def _eight_bits(values: torch.Tensor) -> np.ndarray:
    return (values.detach().float().clamp(0, 1) * 255).round().byte().cpu().numpy()


def image_list(dataset: Dataset, host: ComfyHost) -> list[torch.Tensor]:
    """IMAGE tensors [1, height, width, 3], none larger than PREVIEW_SIZE: two hundred photos at
    full size would fill the memory.
    """
    tensors = []
    for image in dataset.images:
        host.check_interrupted()
        pixels = image.read()
        pixels.thumbnail((PREVIEW_SIZE, PREVIEW_SIZE))
        tensors.append(torch.from_numpy(np.array(pixels)).float().div(255)[None])
    return tensors
