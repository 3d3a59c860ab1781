"""Encodes each image to latents and each caption to conditions, once, before the training."""

import json
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from ..dataset.crop_pixels import read_crop
from ..dataset.crop_plan import TrainingItem
from ..files.tensor_cache import TensorCache, content_key
from ..training.events import StageProgress
from ..training.host import Host
from ..training.resume.packing import pack, unpack
from ..training.seeds import derive_seed
from .base_model import Conditions, FlowBaseModel

_PLAIN = "plain"  # the entry of values that are no tensors


class FlowLatentStore:
    """Latents of cropped images as the network takes them, float32 [C, ...] on the CPU, plain and
    mirrored.
    """

    def __init__(self, cache: TensorCache, *, vae_hash: str) -> None:
        self._cache = cache
        self._vae_hash = vae_hash

    def get(self, item: TrainingItem, *, flip: bool) -> Tensor:
        tensors = self._cache.get(self._make_key(item, flip))
        assert tensors is not None, f"{item.image.name} was not encoded"
        return tensors["latents"]

    def encode(
        self, items: Iterable[TrainingItem], base: FlowBaseModel, host: Host, *, flips: tuple[bool, ...], total: int
    ) -> None:
        """Encode the images that are not cached yet.

        Raises:
            ValueError: the VAE gives NaN or infinity for an image, which is not cached then.
        """
        for count, item in enumerate(items, start=1):
            host.check_interrupted()
            for flip in flips:
                key = self._make_key(item, flip)
                if self._cache.get(key) is None:
                    self._cache.put(key, {"latents": _encode_image(base, item, flip)})
            host.report(StageProgress("caching", count, total, item.image.name))

    def _make_key(self, item: TrainingItem, flip: bool) -> str:
        return content_key(kind="flow latents", **item.describe_pixels(), flip=flip, vae=self._vae_hash)


def _encode_image(base: FlowBaseModel, item: TrainingItem, flip: bool) -> Tensor:
    pixels = torch.from_numpy(np.array(read_crop(item)))[None].float() / 255
    latents = base.encode_image(pixels.flip(2) if flip else pixels, seed=derive_seed("vae", item.image.sha256))
    if not torch.isfinite(latents).all():
        raise ValueError(
            f"{item.image.name}: the VAE gave NaN or infinite latents. The image was not cached. The VAE may be "
            "damaged, or need another precision: start ComfyUI with --fp32-vae"
        )
    return latents


class ConditionStore:
    """What the text encoders give for each caption, the empty one included, on the CPU."""

    def __init__(self, cache: TensorCache, *, text_hash: str) -> None:
        self._cache = cache
        self._text_hash = text_hash

    def get(self, caption: str) -> Conditions:
        tensors = self._cache.get(self._make_key(caption))
        assert tensors is not None, f"{caption!r} was not encoded"
        plain = json.loads(bytes(tensors[_PLAIN].numpy()))
        return unpack(plain, {name: tensor for name, tensor in tensors.items() if name != _PLAIN})

    def encode(self, captions: Iterable[str], base: FlowBaseModel, host: Host) -> None:
        captions = sorted(set(captions))
        for count, caption in enumerate(captions, start=1):
            host.check_interrupted()
            key = self._make_key(caption)
            if self._cache.get(key) is None:
                plain, tensors = pack(base.encode_caption(caption))
                entry = torch.frombuffer(bytearray(json.dumps(plain).encode()), dtype=torch.uint8)
                self._cache.put(key, {**tensors, _PLAIN: entry})
            host.report(StageProgress("caching", count, len(captions), "captions"))

    def _make_key(self, caption: str) -> str:
        return content_key(kind="flow text", caption=caption, text_encoders=self._text_hash)
