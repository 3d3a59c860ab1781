"""Encodes each image to latents and each caption to embeddings, once, before the training starts.

Letters: B images, C channels, H W latent height and width, S tokens, E embedding width, P pooled
width.
"""

from collections.abc import Iterable

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from ..dataset.crop_plan import TrainingItem
from ..dataset.read_ahead import read_crops_ahead
from ..files.tensor_cache import TensorCache, content_key
from ..training.events import StageProgress
from ..training.host import Host
from .model.sdxl_model import SDXLModel
from .model.text import TextEmbeddings, encode_captions


class LatentStore:
    """Scaled latents of cropped images, float32 [C, H, W] on the CPU, plain and mirrored."""

    def __init__(self, cache: TensorCache, *, vae_hash: str) -> None:
        self._cache = cache
        self._vae_hash = vae_hash

    def get(self, item: TrainingItem, *, flip: bool) -> Tensor:
        tensors = self._cache.get(self._make_key(item, flip))
        assert tensors is not None, f"{item.image.name} was not encoded"
        return tensors["latents"].float()

    @torch.no_grad()
    def encode(
        self, items: Iterable[TrainingItem], vae: AutoencoderKL, host: Host, *, flips: tuple[bool, ...], total: int
    ) -> None:
        """Encode the images that are not cached yet.

        Raises:
            ValueError: the VAE gives NaN or infinity for an image. The message names the image,
                which is not cached.
        """

        def list_missing(item: TrainingItem) -> list[bool]:
            return [flip for flip in flips if self._cache.get(self._make_key(item, flip)) is None]

        for count, (item, crop) in enumerate(read_crops_ahead(items, lambda item: bool(list_missing(item))), start=1):
            host.check_interrupted()
            if crop is not None:
                pixel_values = _to_pixel_values(crop)
                for flip in list_missing(item):
                    latents = _encode_image(vae, pixel_values.flip(-1) if flip else pixel_values, item.image.name)
                    self._cache.put(self._make_key(item, flip), {"latents": latents})
            host.report(StageProgress("caching", count, total, item.image.name))

    def _make_key(self, item: TrainingItem, flip: bool) -> str:
        return content_key(kind="sdxl latents", **item.describe_pixels(), flip=flip, vae=self._vae_hash)


def _to_pixel_values(crop: Image.Image) -> Tensor:
    """Return a cropped image as [1, 3, 8H, 8W] in -1..1."""
    pixels = torch.from_numpy(np.array(crop))
    return pixels.permute(2, 0, 1)[None].contiguous().float() / 127.5 - 1


def _encode_image(vae: AutoencoderKL, pixel_values: Tensor, name: str) -> Tensor:
    """Encode one image to scaled latents [C, H, W] float32: the mean of the posterior, so that an
    image always has the same latents.
    """
    latents = encode_means(vae, pixel_values.to(vae.device)) * vae.config["scaling_factor"]
    if not torch.isfinite(latents).all():
        raise ValueError(
            f"{name}: the VAE gave NaN or infinite latents in float32. The image was not cached. "
            "The base model's VAE may be damaged: try another one, such as sdxl_vae.safetensors"
        )
    return latents[0].float()


def encode_means(vae: AutoencoderKL, pixel_values: Tensor) -> Tensor:
    """Return the mean of the posterior [B, C, H, W], unscaled, for pixel values [B, 3, 8H, 8W]."""
    return vae.encode(pixel_values, return_dict=False)[0].mean


class EmbeddingStore:
    """Text embeddings of captions, the empty one included, on the CPU in the text encoders'
    dtype.
    """

    def __init__(self, cache: TensorCache, *, text_hashes: tuple[str, str]) -> None:
        self._cache = cache
        self._text_hashes = text_hashes

    def get(self, caption: str) -> TextEmbeddings:
        tensors = self._cache.get(self._make_key(caption))
        assert tensors is not None, f"{caption!r} was not encoded"
        return TextEmbeddings(tensors["prompt_embeds"], tensors["pooled_prompt_embeds"])

    @torch.no_grad()
    def encode(self, captions: Iterable[str], model: SDXLModel, host: Host) -> None:
        assert model.text_encoder is not None and model.text_encoder_2 is not None
        captions = sorted(set(captions))
        for count, caption in enumerate(captions, start=1):
            host.check_interrupted()
            if self._cache.get(self._make_key(caption)) is None:
                embeddings = encode_captions(model.text_encoder, model.text_encoder_2, [caption])
                self._cache.put(
                    self._make_key(caption),
                    {
                        "prompt_embeds": embeddings.prompt_embeds,
                        "pooled_prompt_embeds": embeddings.pooled_prompt_embeds,
                    },
                )
            host.report(StageProgress("caching", count, len(captions), "captions"))

    def _make_key(self, caption: str) -> str:
        return content_key(kind="sdxl text", caption=caption, text_encoders=self._text_hashes)
