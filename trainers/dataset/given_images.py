"""Stores images that come from other programs, not from files, as a folder of PNG, mask and caption
files that is named after its content.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from ..files.text_input import require_characters
from ..wording import pluralize
from .image_folder import MASK_SUFFIX


def store_images(
    images: Sequence[Image.Image],
    captions: Sequence[str],
    folder: Path,
    *,
    masks: Sequence[Image.Image | None] = (),
    check_interrupted: Callable[[], None] = lambda: None,
) -> Path:
    """Write image N as 000N.png, its caption as 000N.txt unless it is empty, and its mask (mode
    "L") as 000N-masklabel.png if it has one. Return the folder.

    The new folder inside `folder` is written completely or not at all. The same images, captions
    and masks always give the same folder; if it exists, nothing is written.

    Raises:
        ValueError: the number of captions is not the number of images, one (for all) or zero, or
            the number of masks is not the number of images or zero.
    """
    captions, masks = _expand_captions(captions, len(images)), _expand_masks(masks, len(images))
    target = folder / _hash_content(images, captions, masks)
    if target.is_dir():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".pictures-", dir=folder))
    try:
        for number, (image, caption, mask) in enumerate(zip(images, captions, masks, strict=True), start=1):
            check_interrupted()
            image.save(temporary / f"{number:04}.png", compress_level=1)
            if caption.strip():
                (temporary / f"{number:04}.txt").write_text(caption, encoding="utf-8")
            if mask is not None:
                mask.convert("L").save(temporary / f"{number:04}{MASK_SUFFIX}.png", compress_level=1)
        temporary.chmod(0o755)
        _rename(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _rename(temporary: Path, target: Path) -> None:
    try:
        temporary.rename(target)
    except OSError:
        if not target.is_dir():  # another process has stored the same images in the meantime
            raise


def _expand_captions(captions: Sequence[str], num_images: int) -> list[str]:
    if not captions:
        return [""] * num_images
    if len(captions) == 1:
        return [captions[0]] * num_images
    if len(captions) != num_images:
        raise ValueError(
            f"got {pluralize(num_images, 'image')}, but {len(captions)} captions. Give one caption per image, "
            "in the same order, or one for all"
        )
    return list(captions)


def _expand_masks(masks: Sequence[Image.Image | None], num_images: int) -> list[Image.Image | None]:
    if masks and len(masks) != num_images:
        raise ValueError(
            f"got {pluralize(num_images, 'image')}, but {pluralize(len(masks), 'mask')}. Connect one mask per "
            "image, in the same order"
        )
    return list(masks) or [None] * num_images


def _hash_content(images: Sequence[Image.Image], captions: Sequence[str], masks: Sequence[Image.Image | None]) -> str:
    digest = hashlib.sha256()
    for image, caption, mask in zip(images, captions, masks, strict=True):
        require_characters(caption, "captions")
        digest.update(f"{image.mode} {image.size} {len(caption)} {caption}\n".encode())
        digest.update(image.tobytes())
        if mask is not None:
            digest.update(f"mask {mask.mode} {mask.size}\n".encode())
            digest.update(mask.tobytes())
    return digest.hexdigest()[:32]
