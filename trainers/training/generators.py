"""torch's random numbers, from the run's seed. The host's global generators stay as they are."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .seeds import derive_seed


def generator_for(*parts: int | str) -> torch.Generator:
    """Return a generator on the CPU, so that every device trains on the same noise."""
    return torch.Generator().manual_seed(derive_seed(*parts))


@contextmanager
def seed_globals(device: torch.device, *parts: int | str) -> Iterator[None]:
    """Seed the global generators for a block that takes no generator, and restore them."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(derive_seed(*parts))
        yield
