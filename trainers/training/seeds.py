"""Random decisions that depend only on the run's seed and their purpose. Imports no torch."""

import hashlib


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed from numbers and words, the same in every process and version."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def happens(probability: float, *parts: int | str) -> bool:
    """Decide with this probability. Equal parts, such as (seed, "flip", 3, 7), decide alike."""
    return derive_seed(*parts) / 2**63 < probability
