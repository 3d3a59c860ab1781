"""Token embeddings that are drawn from a seed: never trained, so they need not ship."""

import numpy as np
import torch


def draw_token_table(num_tokens: int, width: int, *, seed: int, std: float) -> torch.Tensor:
    """Draw the token embeddings [num_tokens, width], rounded to float16.

    In a random table an unknown word, such as a trigger word, is as distinct as a known one.
    NumPy's legacy generator promises the same stream in every version, and rounding to float16
    hides last-bit differences between C libraries.
    """
    table = np.random.RandomState(seed).standard_normal((num_tokens, width)) * std
    return torch.from_numpy(table).half().float()
