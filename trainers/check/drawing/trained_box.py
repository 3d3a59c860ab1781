"""The part of a thumbnail that is trained."""

from PIL import Image

from ..report import ImageUse


def find_trained_box(use: ImageUse, thumbnail: Image.Image) -> tuple[float, float, float, float]:
    """Find the part of the thumbnail that is trained: left, top, right, bottom."""
    crop = use.crop
    x_scale, y_scale = thumbnail.width / crop.resized_hw[1], thumbnail.height / crop.resized_hw[0]
    top, left = crop.top_left_yx
    return left * x_scale, top * y_scale, (left + crop.target_hw[1]) * x_scale, (top + crop.target_hw[0]) * y_scale
