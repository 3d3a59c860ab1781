"""Pictures that come from other programs, not from files: kept as a folder of PNG, mask and caption
files, named by its content.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from ..wording import pluralize
from .image_folder import MASK_SUFFIX


def store_pictures(
    pictures: Sequence[Image.Image],
    captions: Sequence[str],
    folder: Path,
    *,
    masks: Sequence[Image.Image | None] = (),
    check_interrupted: Callable[[], None] = lambda: None,
) -> Path:
    """Write picture N as 000N.png, its caption as 000N.txt unless it is empty, and its mask (mode
    "L") as 000N-masklabel.png if it has one.

    They go to a folder below `folder`, whole or not at all. The same pictures, captions and masks
    always give the same folder; where it exists, nothing is written.

    Raises:
        ValueError: there are neither as many captions as pictures, nor one for all, nor none; or
            not as many masks as pictures.
    """
    captions, masks = _caption_for_each(captions, len(pictures)), _mask_for_each(masks, len(pictures))
    target = folder / _content_hash(pictures, captions, masks)
    if target.is_dir():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".pictures-", dir=folder))
    try:
        for number, (picture, caption, mask) in enumerate(zip(pictures, captions, masks, strict=True), start=1):
            check_interrupted()
            picture.save(temporary / f"{number:04}.png", compress_level=1)
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
        if not target.is_dir():  # another process has stored the same pictures meanwhile
            raise


def _caption_for_each(captions: Sequence[str], num_pictures: int) -> list[str]:
    if not captions:
        return [""] * num_pictures
    if len(captions) == 1:
        return [captions[0]] * num_pictures
    if len(captions) != num_pictures:
        raise ValueError(
            f"{pluralize(num_pictures, 'picture')} came, but {len(captions)} captions. Give one caption per picture, "
            "in the same order, or one for all"
        )
    return list(captions)


def _mask_for_each(masks: Sequence[Image.Image | None], num_pictures: int) -> list[Image.Image | None]:
    if masks and len(masks) != num_pictures:
        raise ValueError(
            f"{pluralize(num_pictures, 'picture')} came, but {pluralize(len(masks), 'mask')}. Connect one mask per "
            "picture, in the same order"
        )
    return list(masks) or [None] * num_pictures


def _content_hash(pictures: Sequence[Image.Image], captions: Sequence[str], masks: Sequence[Image.Image | None]) -> str:
    digest = hashlib.sha256()
    for picture, caption, mask in zip(pictures, captions, masks, strict=True):
        digest.update(f"{picture.mode} {picture.size} {len(caption)} {caption}\n".encode())
        digest.update(picture.tobytes())
        if mask is not None:
            digest.update(f"mask {mask.mode} {mask.size}\n".encode())
            digest.update(mask.tobytes())
    return digest.hexdigest()[:32]
