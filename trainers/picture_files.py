"""One picture file: whether it can be trained on, and its pixels. Memory stays bounded whatever the file claims to be."""

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif")
MAX_PIXELS = 100_000_000  # 300 MB of RGB; a JPEG above it is decoded at a fraction of its size
_ORIENTATION_TAG, _ORIENTATIONS_ON_SIDE = 0x0112, {5, 6, 7, 8}


class UnusablePicture(ValueError):
    """The file cannot be trained on; the message says why, without the file's name."""


@dataclass(frozen=True)
class PictureFacts:
    """What a look at the whole file tells: sha256 of its bytes, (height, width) as displayed, and whether it has transparency."""

    sha256: str
    size_hw: tuple[int, int]
    has_alpha: bool


def inspect_picture(path: Path) -> PictureFacts:
    """Decode the file once, JPEG at an eighth of its size, so that damage is found before the training.

    Raises:
        UnusablePicture: it is empty, no picture, damaged, animated, or too large to be decoded in bounded memory.
    """
    if path.stat().st_size == 0:
        raise UnusablePicture("the file is empty (0 bytes)")
    with _opened(path) as image:
        if getattr(image, "n_frames", 1) > 1:
            raise UnusablePicture(f"it is animated ({getattr(image, 'n_frames', 0)} frames); save the frame that you want as a picture of its own")
        stored_width, stored_height = image.size
        has_alpha = _has_alpha(image)
        _shrink_while_decoding(image, limit=1_000_000)
        _require_decodable(image)
        image.load()
        on_side = image.getexif().get(_ORIENTATION_TAG) in _ORIENTATIONS_ON_SIDE
    return PictureFacts(_sha256(path), (stored_width, stored_height) if on_side else (stored_height, stored_width), has_alpha)


def read_rgb(path: Path, *, alpha_background: str) -> Image.Image:
    """The picture as displayed (EXIF orientation applied), transparent parts over `alpha_background`.

    A JPEG of more than 100 megapixels comes at a half, quarter or eighth of its size: it is cropped and scaled to a few
    megapixels anyway.
    """
    with _opened(path) as image:
        upright = _decoded(image)
        if not _has_alpha(image):
            return upright.convert("RGB")
        rgba = upright.convert("RGBA")
        background = Image.new("RGBA", rgba.size, alpha_background)
        return Image.alpha_composite(background, rgba).convert("RGB")


def read_alpha(path: Path) -> Image.Image | None:
    """The transparency as displayed, mode "L" (255: opaque), or None."""
    with _opened(path) as image:
        return _decoded(image).convert("RGBA").getchannel("A") if _has_alpha(image) else None


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Pillow's errors and warnings about damaged or huge files, as UnusablePicture; the size limit is ours."""
    try:
        with warnings.catch_warnings(), _without_pillows_limit():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                yield image
    except UnidentifiedImageError:
        raise UnusablePicture("it is not a picture that Pillow can read") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # what Pillow's decoders raise for damaged data
        if isinstance(error, (UnusablePicture, FileNotFoundError, PermissionError)):
            raise
        raise UnusablePicture(f"it is damaged ({error})") from error


@contextmanager
def _without_pillows_limit() -> Iterator[None]:
    """Pillow refuses above 179 megapixels already when it opens a file; MAX_PIXELS is checked before anything is decoded."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _decoded(image: Image.Image) -> Image.Image:
    _shrink_while_decoding(image, limit=MAX_PIXELS)
    _require_decodable(image)
    return ImageOps.exif_transpose(image)


def _shrink_while_decoding(image: Image.Image, *, limit: int) -> None:
    """Have the JPEG decoder halve the picture, at most three times, until it has `limit` pixels; other formats ignore it."""
    width, height = image.size
    for scale in (2, 4, 8):
        if image.format != "JPEG" or image.width * image.height <= limit:
            return
        image.draft(None, (max(1, width // scale), max(1, height // scale)))


def _require_decodable(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise UnusablePicture(
            f"{image.width} x {image.height} pixels are too many to decode safely; at most {MAX_PIXELS // 1_000_000} megapixels. Scale it down first"
        )


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def _sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        digest = hashlib.sha256()
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
