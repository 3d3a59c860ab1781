"""Changes of an image's colours and angle, drawn once for each of its copies."""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image, ImageStat

from .bucket_config import BucketConfig

_HUE_PER_STRENGTH = 36.0  # degrees
_RED, _GREEN, _BLUE = 0.299, 0.587, 0.114  # their shares of grey by BT.601, as in Pillow's conversion
_Matrix = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class ColorChange:
    """Factors of brightness, contrast and saturation, and a turn of the hue in degrees."""

    brightness: float
    contrast: float
    saturation: float
    hue: float

    def apply(self, image: Image.Image) -> Image.Image:
        """Return the RGB image with other colours: hue, saturation, contrast about its mean grey,
        brightness. All are linear, so one matrix does them, without rounding in between.
        """
        mean_grey = ImageStat.Stat(image.convert("L")).mean[0]
        scale = self.contrast * self.brightness
        shift = (1 - self.contrast) * mean_grey * self.brightness
        rows = _multiply(_make_saturation(self.saturation), _make_hue(self.hue))
        return image.convert("RGB", tuple(value for row in rows for value in (*(scale * each for each in row), shift)))


@dataclass(frozen=True)
class Augmentation:
    """How one copy of an image differs from it. colors: None if they stay."""

    angle: float
    colors: ColorChange | None


def draw_augmentations(config: BucketConfig, *, seed: int, sha256: str) -> Iterator[Augmentation]:
    """Draw the changes of each copy of the image with this hash. The number of copies changes none
    of them.
    """
    for number in range(1, config.num_augmented_variants + 1 if config.has_variants else 1):
        rng = random.Random(f"{seed}/augmentation/{sha256}/{number}")
        angle, *shares = (rng.uniform(-1, 1) for _ in range(5))
        yield Augmentation(config.rotation_aug * angle, _scale_colors(config.color_aug, *shares))


def _scale_colors(
    strength: float, brightness: float, contrast: float, saturation: float, hue: float
) -> ColorChange | None:
    if not strength:
        return None
    factors = (1 + strength * share for share in (brightness, contrast, saturation))
    return ColorChange(*factors, hue=_HUE_PER_STRENGTH * strength * hue)


def _make_saturation(factor: float) -> _Matrix:
    """Mix each colour with its grey."""
    greys = [(1 - factor) * share for share in (_RED, _GREEN, _BLUE)]
    return tuple(tuple(grey + factor * (row == column) for column, grey in enumerate(greys)) for row in range(3))


def _make_hue(degrees: float) -> _Matrix:
    """Turn the colour difference in YUV (BT.601), which keeps every grey."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    u, v = 0.492, 0.877
    to_yuv = (
        (_RED, _GREEN, _BLUE),
        (-u * _RED, -u * _GREEN, u * (1 - _BLUE)),
        (v * (1 - _RED), -v * _GREEN, -v * _BLUE),
    )
    to_rgb = ((1, 0, 1 / v), (1, -_BLUE / _GREEN / u, -_RED / _GREEN / v), (1, 1 / u, 0))
    turn = ((1, 0, 0), (0, cosine, -sine), (0, sine, cosine))
    return _multiply(to_rgb, _multiply(turn, to_yuv))


def _multiply(left: _Matrix, right: _Matrix) -> _Matrix:
    columns = tuple(zip(*right, strict=True))
    return tuple(tuple(sum(a * b for a, b in zip(row, column, strict=True)) for column in columns) for row in left)
