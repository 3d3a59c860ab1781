"""The largest singular vectors of a weight, without computing all of them."""

import torch
from torch import Tensor

OVERSAMPLING = 16  # directions that are followed and left out: they sharpen those that are kept
NUM_ITERATIONS = 8


def find_right_singular_vectors(weight: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """Return the right singular vectors of weight [O, I] for its largest singular values, in their
    order, [R, I] with R = min(number, O, I).

    By subspace iteration from a random start (Halko, Martinsson and Tropp 2011, algorithm 4.4).
    """
    width = min(number + OVERSAMPLING, *weight.shape)
    basis = torch.randn(weight.shape[1], width, generator=generator).to(weight)  # [I, width]
    for _ in range(NUM_ITERATIONS):
        basis = torch.linalg.qr(weight.t() @ (weight @ basis)).Q
    inside = torch.linalg.svd(weight @ basis, full_matrices=False).Vh  # [width, width]
    return (inside @ basis.t())[:number]
