"""Reads the pixels of a crop and of its mask."""

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
    return image.crop(_make_box(crop))


def read_mask_crop(item: TrainingItem) -> Image.Image | None:
    """Return the item's mask, resized and cropped like its image: mode "L" (255: learned), exactly
    target_hw; None if it has none.
    """
    mask = item.image.read_mask()
    if mask is None:
        return None
    height, width = item.crop.resized_hw
    if mask.size != (width, height):
        mask = mask.resize((width, height), Image.Resampling.BILINEAR)
    return mask.crop(_make_box(item.crop))


def _make_box(crop: Crop) -> tuple[int, int, int, int]:
    (top, left), (height, width) = crop.top_left_yx, crop.target_hw
    return left, top, left + width, top + height
