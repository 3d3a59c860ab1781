"""Random decisions that depend only on the run's seed and on what they are for. Imports no
torch.
"""

import hashlib


def derived_seed(*parts: int | str) -> int:
    """A 63-bit seed from any numbers and words, the same in every process and version."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def happens(probability: float, *parts: int | str) -> bool:
    """Whether something of this probability happens for these parts, such as (seed, "flip", 3,
    7).
    """
    return derived_seed(*parts) / 2**63 < probability
