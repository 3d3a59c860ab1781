"""Masks at the size of the latents, read once and cached.

Letters: B images, H W latent height and width.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..dataset.crop_pixels import read_mask_crop
from ..dataset.crop_plan import TrainingItem
from ..files.tensor_cache import TensorCache, content_key
from .events import Notice
from .host import Host


class MaskStore:
    """Masks of cropped images at the size of their latents, float32 [1, H, W] in 0..1 on the CPU.
    1 is learned in full.
    """

    def __init__(self, cache: TensorCache, *, pixels_per_latent: int) -> None:
        self._cache = cache
        self._pixels_per_latent = pixels_per_latent

    def get(self, item: TrainingItem, *, flip: bool) -> Tensor | None:
        """Return the mask of an item, or None if its image has no mask."""
        if not item.image.mask_sha256:
            return None
        tensors = self._cache.get(self._make_key(item))
        assert tensors is not None, f"the mask of {item.image.name} was not read"
        return tensors["mask"].flip(-1) if flip else tensors["mask"]

    def batch(self, items: Sequence[TrainingItem], flips: Sequence[bool]) -> Tensor | None:
        """Return masks [B, 1, H, W], with ones for images without a mask, or None if no image has
        one.
        """
        masks = [self.get(item, flip=flip) for item, flip in zip(items, flips, strict=True)]
        shape = next((mask.shape for mask in masks if mask is not None), None)
        if shape is None:
            return None
        return torch.stack([torch.ones(shape) if mask is None else mask for mask in masks])

    def encode(self, items: Iterable[TrainingItem], host: Host) -> None:
        """Read the masks that are not cached yet, and report those that are all black."""
        for item in items:
            if not item.image.mask_sha256:
                continue
            host.check_interrupted()
            if self._cache.get(self._make_key(item)) is None:
                self._cache.put(self._make_key(item), {"mask": _shrink_mask(item, self._pixels_per_latent)})
            mask = self.get(item, flip=False)
            if mask is not None and not mask.any():
                host.report(
                    Notice(
                        f"{item.image.name}: its mask is all black, so the whole image counts with unmasked_weight only"
                    )
                )

    def _make_key(self, item: TrainingItem) -> str:
        crop, image = item.crop, item.image
        return content_key(
            kind="mask",
            pixels_per_latent=self._pixels_per_latent,
            mask=image.mask_sha256,
            is_alpha=image.mask_path is None,
            resized_hw=crop.resized_hw,
            top_left_yx=crop.top_left_yx,
            target_hw=crop.target_hw,
            **({"angle": crop.angle} if crop.angle else {}),
        )


def _shrink_mask(item: TrainingItem, pixels_per_latent: int) -> Tensor:
    """Return the mask [1, H, W]: its mean over the pixels of each latent position."""
    mask = read_mask_crop(item)
    assert mask is not None, f"{item.image.name} has no mask"
    height, width = (side // pixels_per_latent for side in item.crop.target_hw)
    pixels = torch.from_numpy(np.array(mask))[None, None].float() / 255
    return F.interpolate(pixels, size=(height, width), mode="area")[0]


def mask_weights(mask: Tensor, *, unmasked_weight: float, normalize: bool) -> Tensor:
    """Return the loss weights [B, 1, H, W] of masks in 0..1: at least unmasked_weight everywhere,
    as in OneTrainer. With 0 they are the mask itself, as in sd-scripts.

    `normalize` divides the weights of each mask by their mean, so that a small subject counts as
    much as a whole image. An all-black mask has no subject and keeps unmasked_weight.
    """
    weights = mask.clamp(min=unmasked_weight)
    if normalize:
        has_subject = mask.amax(dim=(1, 2, 3), keepdim=True) > 0
        weights = torch.where(has_subject, weights / weights.mean(dim=(1, 2, 3), keepdim=True), weights)
    return weights
