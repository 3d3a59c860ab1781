"""A flow model small enough to train in a unit test: two blocks that write into their input, texts
of different lengths, and a layer without effect.
"""

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor, nn

from trainers.flow.base_model import Conditions
from trainers.flow.families import FlowFamilyRow
from trainers.training.host import Host
from trainers.training.sample_prompts import SamplePrompt

CHANNELS, WIDTH, PIXELS = 4, 16, 8


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Linear(WIDTH, WIDTH)
        self.text_mlp = nn.Linear(WIDTH, WIDTH)
        self.modulation = nn.Linear(1, WIDTH)

    def forward(self, x: Tensor, text: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, positions, WIDTH], text [B, tokens, WIDTH], sigma [B, 1, 1]."""
        x += self.attn(torch.tanh(x * self.modulation(sigma))) + text.mean(1, keepdim=True)
        x += torch.tanh(self.mlp(x))
        return x, text + torch.tanh(self.text_mlp(text))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(CHANNELS, WIDTH)
        self.layers = nn.ModuleList([Block(), Block()])
        self.outside = nn.Linear(WIDTH, CHANNELS)

    def forward(self, noisy: Tensor, sigmas: Tensor, text: Tensor) -> Tensor:
        x = self.inside(noisy.flatten(2).transpose(1, 2))
        for block in self.layers:
            x, text = block(x, text, sigmas[:, None, None])
        return self.outside(x).transpose(1, 2).unflatten(2, noisy.shape[2:])


def _look_at(pixels: Tensor) -> Tensor:
    """Return [1, 1, WIDTH]: the colours of the left half and of the right half."""
    halves = nn.functional.adaptive_avg_pool2d(pixels.movedim(-1, 1) * 2 - 1, (1, 2)).flatten(1)  # [1, 6]
    mix = torch.randn(halves.shape[1], WIDTH, generator=torch.Generator().manual_seed(7))
    return (halves @ mix)[:, None]


@dataclass
class ToyBase:
    """A FlowBaseModel. The VAE averages squares of pixels."""

    family: FlowFamilyRow = field(default_factory=lambda: FlowFamilyRow("Toy", resolution_step=16, caption_tokens=4))
    name: str = "toy"
    pixels_per_latent: int = PIXELS
    precision: str = "no"
    num_computing: int = 0
    encoded: list[tuple[str, list[torch.Size]]] = field(default_factory=list)  # captions, sizes of control images

    def __post_init__(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.network = Network()

    def identify(self) -> dict[str, str]:
        return {"MODEL": "1", "CLIP": "2", "VAE": "3"}

    def encode_image(self, pixels: Tensor, *, seed: int) -> Tensor:
        small = nn.functional.avg_pool2d(pixels.movedim(-1, 1) * 2 - 1, PIXELS)
        return torch.cat([small, small.mean(1, keepdim=True)], 1)[0]

    def encode_caption(self, caption: str, control_images: Sequence[Tensor] = ()) -> Conditions:
        """A control image is one token more."""
        generator = torch.Generator().manual_seed(zlib.crc32(caption.encode()))
        text = torch.randn(1, self.count_tokens(caption), WIDTH, generator=generator)
        seen = [_look_at(pixels) for pixels in control_images]
        self.encoded.append((caption, [pixels.shape[1:3] for pixels in control_images]))
        return {"text": torch.cat([text, *seen], 1), "kind": "toy"}

    def count_tokens(self, caption: str) -> int:
        return len(caption.split()) + 1

    def release_encoders(self) -> None: ...

    def load_network(self, *, without: Sequence[nn.Module]) -> None: ...

    @contextmanager
    def computing(self) -> Iterator[None]:
        self.num_computing += 1
        try:
            with torch.autograd.graph.allow_mutation_on_saved_tensors():
                yield
        finally:
            self.num_computing -= 1

    def shift_level(self, level: float) -> float:
        return level

    def find_timestep(self, sigma: float) -> float:
        return 1000 * sigma

    def add_noise(self, latents: Tensor, noise: Tensor, sigmas: Tensor) -> Tensor:
        sigmas = sigmas[:, None, None, None]
        return sigmas * noise + (1 - sigmas) * latents

    def target(self, latents: Tensor, noise: Tensor, sigmas: Tensor) -> Tensor:
        return noise - latents

    def predict(self, noisy: Tensor, sigmas: Tensor, conditions: Sequence[Conditions]) -> Tensor:
        assert self.num_computing, "a prediction outside of computing()"
        parts = [
            self.network(noisy[index : index + 1], sigmas[index : index + 1], each["text"])
            for index, each in enumerate(conditions)
        ]
        return torch.cat(parts)

    def draw(
        self,
        positive: Conditions,
        negative: Conditions,
        prompt: SamplePrompt,
        *,
        size_hw: tuple[int, int],
        host: Host,
    ) -> list[Image.Image]:
        return [self._draw(positive, negative, prompt, seed, size_hw, host) for seed in prompt.seeds]

    def _draw(
        self,
        positive: Conditions,
        negative: Conditions,
        prompt: SamplePrompt,
        seed: int,
        size_hw: tuple[int, int],
        host: Host,
    ) -> Image.Image:
        """Euler's method with classifier-free guidance."""
        sides = [side // PIXELS for side in size_hw]
        latents = torch.randn(1, CHANNELS, *sides, generator=torch.Generator().manual_seed(seed)).to(host.device)
        texts = [
            {name: value.to(host.device) if isinstance(value, Tensor) else value for name, value in each.items()}
            for each in (positive, negative)
        ]
        with self.computing():
            for step in range(prompt.num_steps):
                host.check_interrupted()
                sigmas = torch.tensor([1 - step / prompt.num_steps], device=host.device)
                flow, other = (self.predict(latents, sigmas, [each]) for each in texts)
                latents = latents - (other + prompt.guidance_scale * (flow - other)) / prompt.num_steps
        pixels = nn.functional.interpolate(latents[:, :3], scale_factor=PIXELS)[0].movedim(0, -1)
        return Image.fromarray(((pixels + 1) / 2).clamp(0, 1).mul(255).byte().cpu().numpy())
