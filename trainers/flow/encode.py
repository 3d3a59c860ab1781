"""Encodes each image to latents and each prompt to conditions, once, before the training."""

import json
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..dataset.crop_plan import TrainingItem
from ..files.tensor_cache import TensorCache, content_key
from ..training.events import StageProgress
from ..training.host import Host
from ..training.resume.packing import pack, unpack
from ..training.seeds import derive_seed
from .base_model import Conditions, FlowBaseModel
from .prompt import Prompt

_PLAIN = "plain"  # the entry of values that are no tensors


def encode_image(base: FlowBaseModel, item: TrainingItem, crop: Image.Image, flip: bool) -> Tensor:
    """Encode one image to latents as the network takes them, [C, ...] float32 on the CPU."""
    pixels = _to_tensor(crop)
    return base.encode_image(pixels.flip(2) if flip else pixels, seed=derive_seed("vae", item.image.sha256))


def _to_tensor(image: Image.Image) -> Tensor:
    """Return [1, H, W, 3] in 0..1."""
    return torch.from_numpy(np.array(image))[None].float() / 255


def _encode_prompt(base: FlowBaseModel, prompt: Prompt) -> Conditions:
    return base.encode_caption(prompt.caption, [_to_tensor(control.read()) for control in prompt.controls])


class ConditionStore:
    """What the encoders give for each prompt, on the CPU: of its caption, the empty one included,
    and of its control images.
    """

    def __init__(self, cache: TensorCache, *, text_hash: str, control_facts: Mapping[str, str]) -> None:
        """`control_facts` decide what becomes of control images."""
        self._cache = cache
        self._text_hash = text_hash
        self._control_facts = control_facts

    def get(self, prompt: Prompt) -> Conditions:
        tensors = self._cache.get(self._make_key(prompt))
        assert tensors is not None, f"{prompt} was not encoded"
        plain = json.loads(bytes(tensors[_PLAIN].numpy()))
        return unpack(plain, {name: tensor for name, tensor in tensors.items() if name != _PLAIN})

    def encode(self, prompts: Sequence[Prompt], base: FlowBaseModel, host: Host) -> None:
        for count, prompt in enumerate(prompts, start=1):
            host.check_interrupted()
            self.encode_one(prompt, base)
            host.report(StageProgress("caching", count, len(prompts), "captions"))

    def encode_one(self, prompt: Prompt, base: FlowBaseModel) -> None:
        key = self._make_key(prompt)
        if self._cache.get(key) is None:
            plain, tensors = pack(_encode_prompt(base, prompt))
            entry = torch.frombuffer(bytearray(json.dumps(plain).encode()), dtype=torch.uint8)
            self._cache.put(key, {**tensors, _PLAIN: entry})

    def _make_key(self, prompt: Prompt) -> str:
        controls = {"controls": prompt.describe_controls(), **self._control_facts} if prompt.controls else {}
        return content_key(kind="flow text", caption=prompt.caption, text_encoders=self._text_hash, **controls)
