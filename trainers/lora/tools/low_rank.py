"""Low-rank mathematics: a product or a matrix, cut to its largest singular values. Tensors in,
tensors out.

Letters: O outputs, I inputs (input channels * kernel height * kernel width of a convolution), R
rank.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..modules import LoraModule

_OVERSAMPLING, _ITERATIONS = 16, 4


@dataclass(frozen=True)
class Truncated:
    """A module with alpha = rank, and Frobenius norms: of what came in, and of what was cut off."""

    module: LoraModule
    norm: float
    error: float


def join(modules: list[tuple[LoraModule, float]]) -> LoraModule:
    """Return the weighted sum of updates, exactly: their factors next to each other, with alpha =
    rank = the sum of ranks. The weights are strengths.
    """
    shape = max((module.down.shape[1:] for module, _ in modules), key=len)
    downs = [module.down.float().reshape(module.rank, *shape) for module, _ in modules]
    ups = [_scale_up(module, strength) for module, strength in modules]
    up = torch.cat(ups, dim=1)
    return LoraModule(torch.cat(downs), up.reshape(*up.shape, *[1] * (len(shape) - 1)), float(up.shape[1]))


def _scale_up(module: LoraModule, strength: float) -> Tensor:
    return module.up.float().flatten(1) * (strength * module.alpha / module.rank)  # [O, R]


def truncate_product(module: LoraModule, *, rank: int = 0, norm_share: float = 1.0) -> Truncated:
    """Cut an update to its largest singular values, which are exact: with up = Qu Ru and down^T =
    Qd Rd they are those of the small matrix Ru Rd^T. `rank` 0: as many as `norm_share` needs.
    """
    up = module.up.double().flatten(1) * (module.alpha / module.rank)  # [O, R]
    down = module.down.double().flatten(1)  # [R, I]
    q_up, r_up = torch.linalg.qr(up)
    q_down, r_down = torch.linalg.qr(down.T)
    left, values, right = torch.linalg.svd(r_up @ r_down.T, full_matrices=False)
    norm = torch.linalg.vector_norm(values).item()
    kept = choose_rank(values, norm, rank=rank, norm_share=norm_share)
    cut = _make_module(q_up @ left, values[:kept], right @ q_down.T, module.down.shape[1:])
    return Truncated(cut, norm, torch.linalg.vector_norm(values[kept:]).item())


def truncate_matrix(
    weight: Tensor, *, rank: int, norm_share: float = 1.0, generator: torch.Generator | None = None
) -> Truncated:
    """Cut a weight [O, I] or [O, channels, height, width] to its largest singular values.

    Where the rank is small next to the matrix, they come from a random subspace (Halko, Martinsson
    and Tropp 2011, algorithm 4.4, with 16 more dimensions and 4 iterations), drawn by the
    `generator`; elsewhere they are exact. The error is measured either way: it is the norm of
    everything that was not kept.
    """
    matrix = weight.float().flatten(1)  # [O, I]
    norm = torch.linalg.vector_norm(matrix).item()
    num_drawn = rank + _OVERSAMPLING
    if 3 * num_drawn > min(matrix.shape):
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    else:
        left, values, right = _svd_in_subspace(matrix, num_drawn, generator)
    kept = choose_rank(values, norm, rank=rank, norm_share=norm_share)
    cut = _make_module(left, values[:kept], right, weight.shape[1:])
    rest = matrix - (cut.up.flatten(1) @ cut.down.flatten(1)).to(matrix.device)
    return Truncated(cut, norm, torch.linalg.vector_norm(rest).item())


def _svd_in_subspace(matrix: Tensor, size: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.randn(matrix.shape[1], size, generator=generator).to(matrix)
    basis = torch.linalg.qr(matrix @ draw).Q
    for _ in range(_ITERATIONS):
        basis = torch.linalg.qr(matrix.T @ basis).Q
        basis = torch.linalg.qr(matrix @ basis).Q
    left, values, right = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    return basis @ left, values, right


def _make_module(left: Tensor, values: Tensor, right: Tensor, shape: torch.Size) -> LoraModule:
    """Make a module of the first columns of left [O, R] and rows of right [R, I]. Both factors get
    the root of the singular values, so that neither is out of the range of half precision.
    """
    kept, roots = len(values), values.sqrt()
    up = (left[:, :kept] * roots).float().cpu()
    down = (right[:kept] * roots[:, None]).float().cpu().reshape(kept, *shape)
    return LoraModule(down.contiguous(), up.reshape(*up.shape, *[1] * (len(shape) - 1)), float(kept))


def choose_rank(values: Tensor, norm: float, *, rank: int, norm_share: float) -> int:
    """Return how many of the singular values, largest first, to keep: the fewest whose share of the
    Frobenius norm, sqrt(sum of their squares) / norm, is at least `norm_share`. At most `rank`
    unless it is 0, at least 1, and none that are only rounding.
    """
    values = values.double().cpu()
    rounding = torch.finfo(torch.float32).eps * len(values) * float(values[0])
    num_real = int((values > rounding).sum())
    shares = values.square().cumsum(0).sqrt() / (norm or 1.0)
    enough = int((shares < norm_share * (1 - 1e-7)).sum()) + 1
    return max(1, min(enough, num_real, rank or len(values)))
