"""Finds images that look the same (resized, recompressed or slightly cropped copies) by perceptual
hashes, and compares their colours.

Each image is hashed as a whole and in nine slightly smaller windows; two images are near-duplicates
if the whole of one matches the whole or a window of the other. This finds copies that lost up to
about a tenth of their width and height.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from PIL import Image

WINDOW_SHARE = 0.06  # of width and height that a window leaves out
# Of 64 bits. Unrelated images differ by about 32; copies cropped by a tenth of a side differ by
# 8 or less in nine cases of ten.
MAX_HASH_DISTANCE = 8
MAX_COLOUR_DISTANCE = 25  # mean difference on a scale of 0 to 255; the hash ignores colour
MAX_SHAPE_RATIO = 1.15
HASH_SIZE, COLOUR_SIZE, WINDOW_SIZE = 8, 12, 64
_ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class Fingerprint:
    """hashes [10, 64] of -1 and 1, colours [10, 432] from 0 to 255: the whole image first, then its
    windows. shape: width / height.
    """

    shape: float
    hashes: np.ndarray
    colours: np.ndarray


def fingerprint(image: Image.Image) -> Fingerprint:
    """Compute the fingerprint of an RGB image; a thumbnail of 200 pixels is enough.

    Raises:
        ModuleNotFoundError: ImageHash is not installed.
    """
    try:
        import imagehash
    except ModuleNotFoundError as error:
        if error.name != "imagehash":
            raise
        raise ModuleNotFoundError(
            "finding near-duplicates needs the package ImageHash: pip install ImageHash, or turn "
            "find_near_duplicates off",
            name="imagehash",
        ) from None
    hashes = [
        imagehash.phash(window, hash_size=HASH_SIZE).hash.ravel()
        for window in _cut_windows(image.convert("L"), WINDOW_SIZE)
    ]
    colours = [np.asarray(window).ravel() for window in _cut_windows(image, COLOUR_SIZE)]
    return Fingerprint(
        image.width / image.height,
        np.where(np.array(hashes), 1, -1).astype(np.float32),
        np.array(colours, dtype=np.float32),
    )


def _cut_windows(image: Image.Image, size: int) -> list[Image.Image]:
    """Return the whole image, then nine windows from corner to corner, each as size x size."""
    width, height = image.size
    left_out = [(0, 0, 0.0)] + [(x, y, WINDOW_SHARE) for x, y in product((0, 0.5, 1), repeat=2)]
    boxes = [
        (x * share * width, y * share * height, (1 + (x - 1) * share) * width, (1 + (y - 1) * share) * height)
        for x, y, share in left_out
    ]
    return [image.resize((size, size), Image.Resampling.BILINEAR, box) for box in boxes]


def group_near_duplicates(fingerprints: Sequence[Fingerprint]) -> list[list[int]]:
    """Group images that look alike, by position; an image joins a group if it matches any member.
    Groups have two or more images.
    """
    representative = list(range(len(fingerprints)))
    for first, second in _find_pairs(fingerprints):
        old, new = sorted((representative[first], representative[second]), reverse=True)
        representative = [new if position == old else position for position in representative]
    groups = defaultdict(list)
    for position, group in enumerate(representative):
        groups[group].append(position)
    return [group for group in groups.values() if len(group) > 1]


def _find_pairs(fingerprints: Sequence[Fingerprint]) -> list[tuple[int, int]]:
    if not fingerprints:
        return []
    whole = np.stack([one.hashes[0] for one in fingerprints])  # [images, 64]
    windows = np.concatenate([one.hashes for one in fingerprints])  # [images * 10, 64]
    num_windows = len(fingerprints[0].hashes)
    pairs = []
    for start in range(0, len(whole), _ROWS_AT_ONCE):
        distances = (whole.shape[1] - whole[start : start + _ROWS_AT_ONCE] @ windows.T) / 2  # Hamming distance
        for row, column in np.argwhere(distances <= MAX_HASH_DISTANCE):
            image, (other, window) = start + row, divmod(column, num_windows)
            if image != other and _matches(fingerprints[image], fingerprints[other], window):
                pairs.append((int(image), int(other)))
    return pairs


def _matches(whole: Fingerprint, other: Fingerprint, window: int) -> bool:
    """True if both have about the same shape, and the same colours in the same places."""
    ratio = whole.shape / other.shape
    return (
        max(ratio, 1 / ratio) <= MAX_SHAPE_RATIO
        and np.abs(whole.colours[0] - other.colours[window]).mean() <= MAX_COLOUR_DISTANCE
    )
