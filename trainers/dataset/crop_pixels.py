"""Reads the pixels of a crop and of its mask."""

import math

from PIL import Image

from .crop import Crop
from .crop_plan import TrainingItem


def read_crop(item: TrainingItem) -> Image.Image:
    """Return the item's image as it is trained: RGB, exactly target_hw."""
    crop = item.crop
    image = item.image.read()
    resized_height, resized_width = crop.resized_hw
    if image.size != (resized_width, resized_height):
        image = image.resize((resized_width, resized_height), Image.Resampling.LANCZOS)
    image = _cut(image, crop, Image.Resampling.BICUBIC)
    return item.colors.apply(image) if item.colors else image


def read_mask_crop(item: TrainingItem) -> Image.Image | None:
    """Return the item's mask, resized, cropped and turned like its image: mode "L" (255: learned),
    exactly target_hw; None if it has none.
    """
    mask = item.image.read_mask()
    if mask is None:
        return None
    height, width = item.crop.resized_hw
    if mask.size != (width, height):
        mask = mask.resize((width, height), Image.Resampling.BILINEAR)
    return _cut(mask, item.crop, Image.Resampling.BILINEAR)


def _cut(image: Image.Image, crop: Crop, resampling: Image.Resampling) -> Image.Image:
    (top, left), (height, width) = crop.top_left_yx, crop.target_hw
    if not crop.angle:
        return image.crop((left, top, left + width, top + height))
    cosine, sine = math.cos(math.radians(crop.angle)), math.sin(math.radians(crop.angle))
    middle_x, middle_y = left + width / 2, top + height / 2
    # where each pixel of the result comes from: x of the original, then y
    to_original = (
        (cosine, -sine, middle_x - cosine * width / 2 + sine * height / 2),
        (sine, cosine, middle_y - sine * width / 2 - cosine * height / 2),
    )
    return image.transform((width, height), Image.Transform.AFFINE, (*to_original[0], *to_original[1]), resampling)
