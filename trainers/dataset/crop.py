"""How one image is scaled, cropped and turned. Sizes are (height, width) in pixels."""

import math
import random
from dataclasses import dataclass, replace

from .bucket_sizes import Size

Box = tuple[int, int, int, int]  # left, top, right, bottom
_SMALL_SHAPE_DIFFERENCE = 0.02  # rounding, not a different crop


@dataclass(frozen=True)
class Crop:
    """A crop: the original is scaled to `resized_hw`, then `target_hw` is cut at `top_left_yx`. The
    cut is turned about its own middle: the image shows turned counter-clockwise by `angle` degrees.
    """

    original_hw: Size
    resized_hw: Size
    top_left_yx: tuple[int, int]
    target_hw: Size
    angle: float = 0.0


def make_crop(
    original_hw: Size, target_hw: Size, *, offset: tuple[float, float] = (0.5, 0.5), window_hw: Size | None = None
) -> Crop:
    """Scale the original, keeping its shape, until it just covers the target, and cut at `offset`,
    a share of the surplus (0.5: the centre). With `window_hw`, scale it until the target just shows
    a part of that size, in pixels of the original.
    """
    scale = max(target / original for target, original in zip(target_hw, original_hw, strict=True))
    if window_hw:
        scale = max(scale, min(target / side for target, side in zip(target_hw, window_hw, strict=True)))
    resized = tuple(
        max(target, round(original * scale)) for target, original in zip(target_hw, original_hw, strict=True)
    )
    top, left = (int((size - target) * share) for size, target, share in zip(resized, target_hw, offset, strict=True))
    return Crop(original_hw, (resized[0], resized[1]), (top, left), target_hw)


def move_to_subject(crop: Crop, subject: Box, *, offset: tuple[float, float]) -> Crop:
    """Move the crop to where it shows all of the subject, which is given in pixels of the original:
    at `offset`, a share of the range of such places. With 0.5, or if the crop is too small for the
    subject, their middles meet as nearly as the image allows.
    """
    left, top, right, bottom = subject
    sides = zip(crop.original_hw, crop.resized_hw, crop.target_hw, ((top, bottom), (left, right)), offset, strict=True)
    y, x = (
        _find_position(resized, target, start * resized / original, end * resized / original, share)
        for original, resized, target, (start, end), share in sides
    )
    return replace(crop, top_left_yx=(y, x))


def _find_position(length: int, target: int, start: float, end: float, share: float) -> int:
    lowest, highest = max(0, math.ceil(end) - target), min(math.floor(start), length - target)
    if lowest > highest:
        return min(max(0, round((start + end - target) / 2)), length - target)
    if share == 0.5:
        return min(max(lowest, round((start + end - target) / 2)), highest)
    return lowest + int((highest - lowest) * share)


def rotate_crop(crop: Crop, degrees: float) -> Crop:
    """Turn the crop by `degrees`. The original is enlarged until the turned cut lies within it, so
    that no corner is empty; the middle of the cut stays where it is, as nearly as that allows.
    """
    (height, width), turn = crop.target_hw, abs(math.radians(degrees))
    bounding_hw = (height * math.cos(turn) + width * math.sin(turn), width * math.cos(turn) + height * math.sin(turn))
    margins = [max(0, math.ceil((outer - side) / 2)) for outer, side in zip(bounding_hw, crop.target_hw, strict=True)]
    needed = [side + 2 * margin for side, margin in zip(crop.target_hw, margins, strict=True)]
    zoom = max(1.0, *(need / side for need, side in zip(needed, crop.resized_hw, strict=True)))
    resized = [max(need, round(side * zoom)) for need, side in zip(needed, crop.resized_hw, strict=True)]
    sides = zip(crop.top_left_yx, crop.resized_hw, crop.target_hw, resized, margins, strict=True)
    y, x = (
        min(max(margin, round((start + target / 2) * new / old - target / 2)), new - target - margin)
        for start, old, target, new, margin in sides
    )
    return Crop(crop.original_hw, (resized[0], resized[1]), (y, x), crop.target_hw, degrees)


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
