"""How one image is scaled and cropped. Sizes are (height, width) in pixels."""

import random
from dataclasses import dataclass

from .bucket_sizes import Size

_SMALL_SHAPE_DIFFERENCE = 0.02  # rounding, not a different crop


@dataclass(frozen=True)
class Crop:
    """A crop: the original is scaled to `resized_hw`, then `target_hw` is cut at `top_left_yx`."""

    original_hw: Size
    resized_hw: Size
    top_left_yx: tuple[int, int]
    target_hw: Size


def make_crop(original_hw: Size, target_hw: Size, *, offset: tuple[float, float] = (0.5, 0.5)) -> Crop:
    """Scale the original, keeping its shape, until it just covers the target, and cut at `offset`,
    a share of the surplus (0.5: the centre).
    """
    scale = max(target / original for target, original in zip(target_hw, original_hw, strict=True))
    resized = tuple(
        max(target, round(original * scale)) for target, original in zip(target_hw, original_hw, strict=True)
    )
    top, left = (int((size - target) * share) for size, target, share in zip(resized, target_hw, offset, strict=True))
    return Crop(original_hw, (resized[0], resized[1]), (top, left), target_hw)


def is_same_shape(size_hw: Size, other_hw: Size) -> bool:
    """Tell whether a mask or control image shows the same part as its image, at whatever size."""
    one, other = size_hw[1] * other_hw[0], other_hw[1] * size_hw[0]
    return abs(one - other) <= max(one, other) * _SMALL_SHAPE_DIFFERENCE


def choose_offset(resize_mode: str, seed: int, sha256: str, repeat: int) -> tuple[float, float]:
    """Return make_crop's offset: the centre, or with random_crop one drawn for each repeat."""
    if resize_mode != "random_crop":
        return 0.5, 0.5
    rng = random.Random(f"{seed}/crop/{sha256}/{repeat}")
    return rng.random(), rng.random()
