"""torch's random numbers, from the run's seed. The host's global generators stay as they are."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from .seeds import derive_seed


def generator_for(*parts: int | str) -> torch.Generator:
    """Return a generator on the CPU, so that every device trains on the same noise."""
    return torch.Generator().manual_seed(derive_seed(*parts))


def draw_noise(shape: Sequence[int], *, seed: int, step: int, item: int, noise_offset: float = 0.0) -> Tensor:
    """Return the noise of `item` in `step`, for one image's latents: channels first.

    noise_offset adds noise_offset * N(0, 1), one draw per channel (crosslabs.org, "Diffusion with
    Offset Noise").
    """
    noise = torch.randn(tuple(shape), generator=generator_for(seed, "noise", step, item))
    if noise_offset:
        offset_shape = (shape[0], *[1] * (len(shape) - 1))
        noise += noise_offset * torch.randn(offset_shape, generator=generator_for(seed, "noise_offset", step, item))
    return noise


@contextmanager
def seed_globals(device: torch.device, *parts: int | str) -> Iterator[None]:
    """Seed the global generators for a block that takes no generator, and restore them."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(derive_seed(*parts))
        yield
