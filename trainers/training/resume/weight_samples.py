"""A quick hash that tells base models apart, LoRAs and merges on them included."""

import hashlib

import torch
from torch import nn

SAMPLE = 4096  # values at the start, in the middle and at the end of each tensor


def hash_samples(module: nn.Module) -> str:
    """Return a sha256 over names, shapes, dtypes and samples of all weights. Whatever trains,
    merges or patches a tensor changes nearly all of its values, so that 7 GB need not be read.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(module.state_dict().items()):
        digest.update(f"{name} {list(weight.shape)} {weight.dtype}\n".encode())
        values = weight.detach().reshape(-1)
        for start in sorted({0, max(0, (len(values) - SAMPLE) // 2), max(0, len(values) - SAMPLE)}):
            sample = values[start : start + SAMPLE].cpu().contiguous()
            digest.update(sample.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:40]
