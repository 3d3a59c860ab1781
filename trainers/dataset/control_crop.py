"""The part of a control image that goes with a crop, and its pixels."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageOps

from .crop import Crop, is_same_shape
from .crop_plan import TrainingItem
from .image import TrainingImage


@dataclass(frozen=True)
class ControlCrop:
    """A control image as the model sees it. box: left, top, right, bottom in its own pixels."""

    image: TrainingImage
    box: tuple[int, int, int, int]
    flip: bool = False

    def describe_pixels(self) -> dict[str, Any]:
        """Everything that decides the pixels, for keys of what is computed from them."""
        return {
            "image": self.image.sha256,
            "alpha_background": self.image.alpha_background if self.image.has_alpha else None,
            "box": self.box,
            "flip": self.flip,
        }

    def read(self) -> Image.Image:
        """Return its pixels in RGB, at the size of the file."""
        pixels = self.image.read()
        left, top, right, bottom = self.box
        height, width = self.image.size_hw
        if pixels.size != (width, height):  # a huge JPEG is decoded at a fraction of its size
            across, down = pixels.width / width, pixels.height / height
            left, top, right, bottom = (
                round(left * across),
                round(top * down),
                round(right * across),
                round(bottom * down),
            )
        pixels = pixels.crop((left, top, right, bottom))
        return ImageOps.mirror(pixels) if self.flip else pixels


def crop_control_images(item: TrainingItem, *, flip: bool) -> tuple[ControlCrop, ...]:
    """Return the item's control images. One of its image's shape is cropped like it, so that both
    stay aligned; others are whole. All are mirrored with the image.
    """
    image = item.image
    return tuple(
        ControlCrop(control, _find_box(control.size_hw, image.size_hw, item.crop), flip)
        for control in image.control_images
    )


def show_whole(controls: Iterable[TrainingImage]) -> tuple[ControlCrop, ...]:
    return tuple(ControlCrop(control, (0, 0, control.size_hw[1], control.size_hw[0])) for control in controls)


def _find_box(size_hw: tuple[int, int], image_hw: tuple[int, int], crop: Crop) -> tuple[int, int, int, int]:
    height, width = size_hw
    if not is_same_shape(size_hw, image_hw):
        return 0, 0, width, height
    (top, left), (target_height, target_width) = crop.top_left_yx, crop.target_hw
    down, across = height / crop.resized_hw[0], width / crop.resized_hw[1]
    return (
        round(left * across),
        round(top * down),
        round((left + target_width) * across),
        round((top + target_height) * down),
    )
