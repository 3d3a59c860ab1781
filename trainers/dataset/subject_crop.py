"""Where an image is cut around its subject: the white part of its mask."""

import math

from PIL import Image

from .bucket_config import BucketConfig
from .bucket_sizes import Size
from .crop import Box

_WHITE = 128  # of 255, from which a mask counts as white


def find_subject(mask: Image.Image, size_hw: Size) -> Box | None:
    """Return the box around the white part of a mask (mode "L", of any size), in pixels of its
    image; None if nothing of it is white.
    """
    box = mask.point([255 * (value >= _WHITE) for value in range(256)]).getbbox()
    if box is None:
        return None
    across, down = size_hw[1] / mask.width, size_hw[0] / mask.height
    left, top, right, bottom = box
    return math.floor(left * across), math.floor(top * down), math.ceil(right * across), math.ceil(bottom * down)


def choose_window(size_hw: Size, subject: Box | None, config: BucketConfig) -> Size:
    """Return the size of the part of an image that is trained, in its own pixels: with
    crop_to_subject zoom the subject and its margins, enlarged to the pixels that the resolution
    needs, else the whole image. Squares are cut to squares.
    """
    if subject is None or config.crop_to_subject != "zoom":
        return size_hw
    left, top, right, bottom = subject
    height, width = ((end - start) * (1 + 2 * config.subject_margin) for start, end in ((top, bottom), (left, right)))
    if config.resize_mode != "bucket":
        height = width = max(height, width)
    growth = max(1.0, config.resolution / math.sqrt(height * width))
    height, width = min(math.ceil(height * growth), size_hw[0]), min(math.ceil(width * growth), size_hw[1])
    area = config.resolution**2  # one side may have met the edge of the image
    return min(max(height, math.ceil(area / width)), size_hw[0]), min(max(width, math.ceil(area / height)), size_hw[1])
