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

from ..files.tensor_cache import TensorCache, content_key
from ..training.events import StageProgress
from ..training.host import Host
from .model.sdxl_model import SDXLModel
from .model.text import TextEmbeddings, encode_captions


def encode_image(vae: AutoencoderKL, crop: Image.Image, *, flip: bool) -> Tensor:
    """Encode one image to scaled latents [C, H, W] float32: the mean of the posterior, so that an
    image always has the same latents.
    """
    pixels = torch.from_numpy(np.array(crop))
    pixel_values = pixels.permute(2, 0, 1)[None].contiguous().float() / 127.5 - 1
    means = encode_means(vae, (pixel_values.flip(-1) if flip else pixel_values).to(vae.device))
    return (means * vae.config["scaling_factor"])[0].float()


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

    def lacks(self, captions: Iterable[str]) -> bool:
        """Tell whether one of them has yet to be encoded."""
        return any(self._cache.get(self._make_key(caption)) is None for caption in captions)

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
