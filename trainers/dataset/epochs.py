"""The order of an epoch: batches, each of one size."""

import random
from collections import defaultdict

from .bucket_sizes import Size
from .crop_plan import TrainingItem


def batch_epoch(items: list[TrainingItem], *, batch_size: int, seed: int, epoch: int) -> list[list[TrainingItem]]:
    """Return every item once, in batches of one size, in an order drawn from the seed and the
    epoch. The last batch of a size may be smaller.
    """
    by_size: dict[Size, list[TrainingItem]] = defaultdict(list)
    for item in items:
        by_size[item.crop.target_hw].append(item)
    rng = random.Random(f"{seed}/epoch/{epoch}")
    batches = []
    for size in sorted(by_size):
        shuffled = rng.sample(by_size[size], len(by_size[size]))
        batches += [shuffled[start : start + batch_size] for start in range(0, len(shuffled), batch_size)]
    rng.shuffle(batches)
    return batches
