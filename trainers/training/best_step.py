"""Decides by the validation which step is the best, and when a run learns nothing more."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .validation_plan import ValidationKind

# A later step is better only if it adds this share to what was gained so far. The loss on training
# images falls for as long as they are learned by heart, so that a very small gain says nothing
# there. A larger share would miss the end of a cosine schedule, where a little loss is much quality
# (benchmarks/README.md).
MIN_GAINS: dict[ValidationKind, float] = {"held-out": 0.0, "stable loss": 0.01}
# Of the run, without a better step. While the learning rate is high, the loss stands still for as
# long as a third of the run, and falls again with it.
PATIENCE = 0.4


@dataclass(frozen=True)
class BestStep:
    """`is_ema`: the moving average was better than the weights of the step."""

    step: int
    loss: float
    is_ema: bool


def find_best(rows: Sequence[Sequence[float]], kind: ValidationKind) -> BestStep | None:
    """Return the best step so far, from rows of the validation: step, loss, loss of the EMA, ...

    The first row is what the run began with, and no candidate. Every measurement is compared with
    the best before it, so that the best step so far never depends on later ones.
    """
    first, best = rows[0][1] if rows else math.nan, None
    for candidate in _list_candidates(rows[1:]):
        if best is None or candidate.loss < best.loss - MIN_GAINS[kind] * max(0.0, first - best.loss):
            best = candidate
    return best


def should_stop(rows: Sequence[Sequence[float]], kind: ValidationKind, *, total_steps: int) -> bool:
    """Tell whether the best step is at least PATIENCE of the run ago."""
    best = find_best(rows, kind)
    return best is not None and rows[-1][0] - best.step >= PATIENCE * total_steps


def _list_candidates(rows: Sequence[Sequence[float]]) -> Iterator[BestStep]:
    for step, loss, ema_loss, *_ in rows:
        is_ema = ema_loss < loss  # False for NaN, which is no EMA
        value = ema_loss if is_ema else loss
        if math.isfinite(value):
            yield BestStep(int(step), value, is_ema)
