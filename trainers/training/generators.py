"""torch's random numbers, tied to the run's seed. Nothing touches the host's global generators."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .seeds import derived_seed


def generator_for(*parts: int | str) -> torch.Generator:
    """A generator on the CPU: every device trains on the same noise."""
    return torch.Generator().manual_seed(derived_seed(*parts))


@contextmanager
def seeded_globals(device: torch.device, *parts: int | str) -> Iterator[None]:
    """Seed the global generators for a block that cannot take a generator, and restore them."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(derived_seed(*parts))
        yield
