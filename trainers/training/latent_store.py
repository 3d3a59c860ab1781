"""Encodes each image to latents, once, before the training starts."""

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor

from ..dataset.crop_plan import TrainingItem
from ..dataset.read_ahead import read_crops_ahead
from ..files.tensor_cache import TensorCache, content_key
from .distributed import World
from .events import StageProgress, StageStarted
from .host import Host
from .masks import MaskStore
from .plan import TrainingPlan

# Takes an item, its crop, and whether to mirror it; returns latents [C, ...] float32.
ImageEncoder = Callable[[TrainingItem, Image.Image, bool], Tensor]


class LatentStore:
    """Latents of cropped images, float32 [C, ...] on the CPU, plain and mirrored.

    - kind: names what else decides them, besides the pixels and the model.
    - model_hash: of the VAE, or whatever makes them.
    - remedy: what to do if it gives NaN. One sentence.
    """

    def __init__(self, cache: TensorCache, *, kind: str, model_hash: str, remedy: str) -> None:
        self._cache = cache
        self._kind = kind
        self._model_hash = model_hash
        self._remedy = remedy

    def get(self, item: TrainingItem, *, flip: bool) -> Tensor:
        tensors = self._cache.get(self._make_key(item, flip))
        assert tensors is not None, f"{item.image.name} was not encoded"
        return tensors["latents"].float()

    def has(self, item: TrainingItem, *, flip: bool = False) -> bool:
        return self._cache.get(self._make_key(item, flip)) is not None

    def put(self, item: TrainingItem, latents: Tensor, *, flip: bool = False) -> None:
        """Keep the latents of an item.

        Raises:
            ValueError: they have NaN or infinity. The message names the item.
        """
        self._require_finite(latents, item)
        self._cache.put(self._make_key(item, flip), {"latents": latents})

    def lacks(self, plan: TrainingPlan) -> bool:
        """Tell whether one of the plan's images has yet to be encoded."""
        return any(self._list_missing(item, list_flips(plan)) for item in plan.all_items)

    def _list_missing(self, item: TrainingItem, flips: tuple[bool, ...]) -> list[bool]:
        return [flip for flip in flips if not self.has(item, flip=flip)]

    @torch.no_grad()
    def encode(
        self, items: Sequence[TrainingItem], encode_image: ImageEncoder, host: Host, *, flips: tuple[bool, ...]
    ) -> None:
        """Encode the images that are not cached yet.

        Raises:
            ValueError: the VAE gives NaN or infinity for an image. The message names the image,
                which is not cached.
        """
        crops = read_crops_ahead(items, lambda item: bool(self._list_missing(item, flips)))
        for count, (item, crop) in enumerate(crops, start=1):
            host.check_interrupted()
            if crop is not None:
                for flip in self._list_missing(item, flips):
                    self.put(item, encode_image(item, crop, flip), flip=flip)
            host.report(StageProgress("caching", count, len(items), item.image.name))

    def _require_finite(self, latents: Tensor, item: TrainingItem) -> None:
        if not torch.isfinite(latents).all():
            raise ValueError(f"{item.image.name}: NaN or infinite latents, which were not cached. {self._remedy}")

    def _make_key(self, item: TrainingItem, flip: bool) -> str:
        return content_key(kind=self._kind, **item.describe_pixels(), flip=flip, vae=self._model_hash)


def list_flips(plan: TrainingPlan) -> tuple[bool, ...]:
    return (False, True) if plan.settings.buckets.random_flip else (False,)


def cache_latents(
    plan: TrainingPlan, latents: LatentStore, masks: MaskStore, encode_image: ImageEncoder, host: Host, world: World
) -> None:
    """Encode all images and masks; with several processes, each its own share first."""
    host.report(StageStarted("caching", len(plan.all_items)))
    for items in world.put_own_share_first(plan.all_items):
        latents.encode(items, encode_image, host, flips=list_flips(plan))
        masks.encode(items, host)
