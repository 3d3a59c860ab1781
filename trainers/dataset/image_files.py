"""Checks one image file and reads its pixels, in bounded memory whatever size the file claims."""

import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageColor, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from ..files.hashes import file_sha256
from ..wording import format_gigabytes
from .image_guards import MAX_SCANS, count_scans, strip_large_descriptions

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif")
# We do not read these, but users see images: the report names them instead of ignoring them.
OTHER_IMAGE_EXTENSIONS = (".gif", ".apng", ".tif", ".tiff", ".jfif", ".heic", ".heif", ".jxl", ".jp2", ".tga", ".psd")
MAX_FILE_BYTES = 2**30
MAX_PIXELS = 100_000_000  # 400 MB in Pillow, which keeps four bytes per pixel

# Only these decoders: Pillow would start Ghostscript for a PostScript file named .png. The JPEG
# decoder also reads MPO.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "AVIF")
# everything that Pillow's decoders raise
_DAMAGE = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    RuntimeError,
    OverflowError,
    struct.error,
    zlib.error,
)
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATIONS_ON_SIDE = (5, 6, 7, 8)
_pillow_limit = threading.Lock()


class UnusableImage(ValueError):
    """The file cannot be trained on; the message says why, without the file's name."""


class UnreadFormat(UnusableImage):
    """An image in a format that we do not read."""


@dataclass(frozen=True)
class ImageFacts:
    """size_hw: (height, width) as displayed. has_alpha: whether the image can be transparent."""

    size_hw: tuple[int, int]
    has_alpha: bool


def inspect_image(path: Path) -> ImageFacts:
    """Decode the whole file, a JPEG at an eighth of its size, so that damage shows before training.

    Raises:
        UnusableImage: the file is empty, not an image, damaged, animated, or too large to decode
            in bounded memory.
    """
    with _open(path) as image:
        if isinstance(image, JpegImageFile) and count_scans(path) > MAX_SCANS:
            raise UnusableImage(
                f"it is a progressive JPEG of more than {MAX_SCANS} scans, which take minutes to decode. Save it again"
            )
        # The extra images in an MPO file are what cameras add to a photo: a preview, a depth map or
        # a gain map.
        num_frames = 1 if isinstance(image, JpegImageFile) else getattr(image, "n_frames", 1)
        if num_frames > 1:
            raise UnusableImage(
                f"it is animated ({num_frames} frames); save the frame that you want as a separate image"
            )
        width, height = image.size
        _prepare_decoding(image, max_pixels=0)
        image.load()
        size_hw = (width, height) if _read_orientation(image) in _ORIENTATIONS_ON_SIDE else (height, width)
        return ImageFacts(size_hw, _has_alpha(image))


def read_rgb(path: Path, *, alpha_background: str, max_pixels: int | None = None) -> Image.Image:
    """Return the image as displayed (EXIF orientation applied), transparent parts over the colour
    `alpha_background`.

    A JPEG of more than `max_pixels` (default 100 million) is decoded at a half, quarter or eighth
    of its size: the full image is never in memory, and training scales it down to a few megapixels
    anyway.

    Raises:
        UnusableImage: as in `inspect_image`, if the file has changed since.
    """
    with _open(path) as image:
        pixels = _decode_upright(image, max_pixels)
        if not _has_alpha(image):
            rgb = pixels if pixels.mode == "RGB" else pixels.convert("RGB")
        else:
            rgba = pixels.convert("RGBA")
            rgb = Image.new("RGB", rgba.size, ImageColor.getrgb(alpha_background)[:3])
            rgb.paste(rgba, mask=rgba)
        return _drop_metadata(rgb)


def read_alpha(path: Path) -> Image.Image | None:
    """Return the opacity as displayed, mode "L" (255: opaque), or None if the file has no
    transparency.
    """
    with _open(path) as image:
        if not _has_alpha(image):
            return None
        return _drop_metadata(_decode_upright(image).convert("RGBA").getchannel("A"))


def read_grey(path: Path) -> Image.Image:
    """Return the brightness as displayed, mode "L", transparent parts black. Used for masks."""
    return _drop_metadata(read_rgb(path, alpha_background="black").convert("L"))


def image_sha256(path: Path) -> str:
    """Return the sha256 of the file. Raises UnusableImage if it is empty, too large to be an image
    that we read, or cannot be read.
    """
    try:
        size = path.stat().st_size
        if size == 0:
            raise UnusableImage("the file is empty (0 bytes)")
        if size > MAX_FILE_BYTES:
            raise UnusableImage(f"the file has {format_gigabytes(size)}; at most {format_gigabytes(MAX_FILE_BYTES)}")
        return file_sha256(path)
    except OSError as error:
        raise UnusableImage(f"it cannot be read ({error.strerror})") from error


@contextmanager
def _open(path: Path) -> Iterator[Image.Image]:
    """Open the file; turn Pillow's errors about damage and other formats into UnusableImage."""
    try:
        with _open_without_limit(path) as image:
            yield image
    except UnusableImage:
        raise
    except UnidentifiedImageError:
        raise UnusableImage(f"it is not a readable image ({', '.join(_list_formats())})") from None
    except _DAMAGE as error:
        raise UnusableImage(f"it is damaged ({error or type(error).__name__})") from error


def _open_without_limit(path: Path) -> Image.Image:
    """Read the header only. Pillow refuses images above 179 megapixels here; we check our own limit
    in `_prepare_decoding`.
    """
    with _pillow_limit:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(strip_large_descriptions(path) or path, formats=_list_formats())
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _list_formats() -> list[str]:
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]  # AVIF came with Pillow 11.3


def _prepare_decoding(image: Image.Image, *, max_pixels: int) -> None:
    """Let the JPEG decoder scale by 1/2, 1/4 or 1/8, as far as `max_pixels` needs; refuse images
    that would still take too much memory.
    """
    width, height = image.size
    if isinstance(image, JpegImageFile) and width * height > max_pixels:
        scale = next((scale for scale in (2, 4) if width * height <= max_pixels * scale**2), 8)
        image.draft(None, (max(1, width // scale), max(1, height // scale)))
        # At any scale, the decoder of a progressive JPEG keeps all coefficients.
        if image.info.get("progressive") and width * height > MAX_PIXELS:
            raise UnusableImage(
                f"{width} x {height} pixels are too many for a progressive JPEG. Save it as a baseline JPEG, or "
                "scale it down"
            )
    if image.width * image.height > MAX_PIXELS:
        raise UnusableImage(
            f"{width} x {height} pixels are too many to decode safely; at most {MAX_PIXELS // 1_000_000} "
            "megapixels. Scale it down"
        )


def _decode_upright(image: Image.Image, max_pixels: int | None = None) -> Image.Image:
    """Decode to eight bits per channel, turned as the EXIF data say.

    Not ImageOps.exif_transpose: it rewrites the EXIF data, and fails on data that a camera wrote
    wrong.
    """
    _prepare_decoding(image, max_pixels=MAX_PIXELS if max_pixels is None else max_pixels)
    image.load()
    transposition = _UPRIGHT.get(_read_orientation(image))
    pixels = image if transposition is None else image.transpose(transposition)
    return _convert_sixteen_bits(pixels) if _is_sixteen_bit(pixels) else pixels


def _read_orientation(image: Image.Image) -> int:
    return image.getexif().get(_ORIENTATION_TAG, 1)


def _has_alpha(image: Image.Image) -> bool:
    if _is_sixteen_bit(image):
        return False  # Pillow cannot convert a single grey level that counts as transparent
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def _is_sixteen_bit(image: Image.Image) -> bool:
    """True for grey PNGs of 16 bits; Pillow itself decodes coloured ones to 8 bits."""
    return image.mode.startswith("I")


def _convert_sixteen_bits(image: Image.Image) -> Image.Image:
    """Scale to 8 bits. Pillow's convert would clip at 255, which leaves almost everything white."""
    image.info.pop("transparency", None)
    return image.point(lambda value: value * (1 / 256)).convert("L")


def _drop_metadata(image: Image.Image) -> Image.Image:
    """Remove what describes the file (colour profile, transparent colour): it would be wrong in a
    saved copy.
    """
    image.info.clear()
    return image
