"""What a flow training needs of a base model, whoever runs it. Nothing here knows ComfyUI.

Letters: B batch, C channels, H W height and width.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from PIL import Image
from torch import Tensor, nn

from ..training.host import Host
from ..training.sample_prompts import SamplePrompt
from .families import FlowFamilyRow

# What the text encoder gives for one caption: nested lists and dicts of tensors and plain values.
Conditions = Any


class FlowBaseModel(Protocol):
    """A loaded base model with its text encoders and VAE."""

    name: str
    family: FlowFamilyRow
    pixels_per_latent: int
    precision: str  # that the model computes in: "no" (float32), "bf16" or "fp16"

    @property
    def network(self) -> nn.Module:
        """The module whose layers are trained."""
        ...

    def identify(self) -> dict[str, str]:
        """Return a hash for each part that the result depends on."""
        ...

    def encode_image(self, pixels: Tensor, *, seed: int) -> Tensor:
        """Encode [1, H, W, 3] in 0..1 to latents as the network takes them, [C, ...] float32 on the
        CPU. `seed` is for a VAE that draws.
        """
        ...

    def encode_caption(self, caption: str, control_images: Sequence[Tensor] = ()) -> Conditions:
        """Encode a caption, with what the model sees beside it: [1, H, W, 3] in 0..1 each, of any
        size.

        Raises:
            ValueError: the text encoder is another model's.
        """
        ...

    def count_tokens(self, caption: str) -> int: ...

    def release_encoders(self) -> None:
        """Free the device of text encoders and VAE."""
        ...

    def load_network(self, *, without: Sequence[nn.Module]) -> None:
        """Bring what a step needs to the device, except the frozen weights of these blocks."""
        ...

    def computing(self) -> AbstractContextManager[None]:
        """Forward and backward passes run inside of it."""
        ...

    def shift_level(self, level: float) -> float:
        """Return the sigma of the model's own schedule, by which it is sampled, for a noise level
        in 0..1.
        """
        ...

    def find_timestep(self, sigma: float) -> float:
        """Return the timestep of a sigma, 0 to 1000: 1000 is pure noise."""
        ...

    def add_noise(self, latents: Tensor, noise: Tensor, sigmas: Tensor) -> Tensor:
        """All [B, C, ...]; sigmas [B]."""
        ...

    def target(self, latents: Tensor, noise: Tensor, sigmas: Tensor) -> Tensor:
        """Return what the network should answer."""
        ...

    def predict(self, noisy: Tensor, sigmas: Tensor, conditions: Sequence[Conditions]) -> Tensor:
        """Return what the network answers, [B, C, ...] float32. One entry of conditions per
        sample.
        """
        ...

    def draw(
        self,
        positive: Conditions,
        negative: Conditions,
        prompt: SamplePrompt,
        *,
        size_hw: tuple[int, int],
        host: Host,
    ) -> list[Image.Image]:
        """Draw an image for each seed of the prompt, with the network as it is. The conditions are
        on the CPU.

        Raises:
            Interrupted: the host cancelled.
        """
        ...
