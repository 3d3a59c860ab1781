"""Prepares images for Florence-2: resized to its square, scaled to 0..1, normalised.

Letters: B images, H W height and width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .folder import read_json

# ImageNet's values, with which every Florence-2 was trained. 3 is Pillow's number for bicubic.
_MEAN, _STD, _SIZE, _BICUBIC = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 768, 3


@dataclass(frozen=True)
class ImagePreparation:
    """The numbers in the folder's preprocessor_config.json. Rescaling and normalising are not
    optional: the model needs both.
    """

    size_hw: tuple[int, int] = (_SIZE, _SIZE)
    mean: tuple[float, ...] = _MEAN
    std: tuple[float, ...] = _STD
    resample: int = _BICUBIC

    @classmethod
    def read(cls, folder: Path) -> "ImagePreparation":
        """Read preprocessor_config.json, or processor_config.json as transformers 5 writes it."""
        settings = read_json(folder / "preprocessor_config.json") or read_json(folder / "processor_config.json").get(
            "image_processor", {}
        )
        size = settings.get("size", {})
        size_hw = (size.get("height", _SIZE), size.get("width", _SIZE)) if isinstance(size, dict) else (size, size)
        mean, std = settings.get("image_mean", _MEAN), settings.get("image_std", _STD)
        return cls(size_hw, tuple(mean), tuple(std), settings.get("resample", _BICUBIC))

    def pixel_values(self, images: Sequence[Image.Image]) -> Tensor:
        """Return the images as [B, 3, H, W] float32, red first."""
        height, width = self.size_hw
        resized = [image.convert("RGB").resize((width, height), Image.Resampling(self.resample)) for image in images]
        pixels = torch.from_numpy(np.stack([np.asarray(image) for image in resized])).permute(0, 3, 1, 2).float() / 255
        return (pixels - _shape_as_channels(self.mean)) / _shape_as_channels(self.std)


def _shape_as_channels(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values).view(3, 1, 1)
