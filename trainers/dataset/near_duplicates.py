"""Finds images that look the same (resized, recompressed or slightly cropped copies) by perceptual
hashes, and compares their colours.

Each image is hashed as a whole and in nine slightly smaller windows; two images are near-duplicates
if the whole of one matches the whole or a window of the other. This finds copies that lost up to
about a tenth of their width and height.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
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


def group_near_duplicates(
    fingerprints: Sequence[Fingerprint], *, check_interrupted: Callable[[], None] = lambda: None
) -> list[list[int]]:
    """Group images that look alike, by position; an image joins a group if it matches any member.
    Groups have two or more images.
    """
    if not fingerprints:
        return []
    looks = _Looks(fingerprints)
    group_of = np.arange(len(fingerprints))  # the smallest position in each image's group
    for start in range(0, len(fingerprints), _ROWS_AT_ONCE):
        for image, are_close in enumerate(looks.compare_hashes(start, _ROWS_AT_ONCE), start=start):
            check_interrupted()
            for other in looks.find_alike(image, are_close & (group_of != group_of[image])[:, None]):
                first, second = sorted((group_of[image], group_of[other]))
                group_of[group_of == second] = first
    groups = defaultdict(list)
    for position, group in enumerate(group_of):
        groups[group].append(position)
    return [group for group in groups.values() if len(group) > 1]


class _Looks:
    """The fingerprints as arrays: hashes [images, 10, 64], colours [images, 10, 432], shapes and
    mean brightnesses.
    """

    def __init__(self, fingerprints: Sequence[Fingerprint]) -> None:
        self._hashes = np.stack([one.hashes for one in fingerprints])
        self._colours = np.stack([one.colours for one in fingerprints])
        self._brightness = self._colours.mean(axis=2)  # [images, 10]
        self._shapes = np.array([one.shape for one in fingerprints])

    def compare_hashes(self, start: int, count: int) -> np.ndarray:
        """Tell for `count` whole images whether each window of every image is close to them:
        [count, images, 10].
        """
        whole, windows = self._hashes[start : start + count, 0], self._hashes.reshape(-1, self._hashes.shape[-1])
        distances = (whole.shape[1] - whole @ windows.T) / 2  # Hamming distance
        return (distances <= MAX_HASH_DISTANCE).reshape(len(whole), *self._hashes.shape[:2])

    def find_alike(self, image: int, candidates: np.ndarray) -> np.ndarray:
        """Find the images that have about the same shape, and in one of these windows [images, 10]
        the same colours in the same places.
        """
        ratio = self._shapes / self._shapes[image]
        candidates &= (np.maximum(ratio, 1 / ratio) <= MAX_SHAPE_RATIO)[:, None]
        # colours differ by no less than their means
        candidates &= np.abs(self._brightness - self._brightness[image, 0]) <= MAX_COLOUR_DISTANCE
        others, windows = np.nonzero(candidates)
        differences = np.abs(self._colours[others, windows] - self._colours[image, 0]).mean(axis=1)
        return np.unique(others[differences <= MAX_COLOUR_DISTANCE])
