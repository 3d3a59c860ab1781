"""Makes learning-rate schedules: diffusers', and those that it does not have."""

import math
from collections.abc import Callable

from diffusers.optimization import get_scheduler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

Factor = Callable[[float], float]


def make_lr_scheduler(
    name: str,
    optimizer: Optimizer,
    *,
    warmup_steps: int,
    total_steps: int,
    decay_steps: int = 0,
    num_cycles: int = 1,
) -> LRScheduler:
    """Make the schedule of that name. Step it once per optimizer step. Every one has a warm-up.

    constant_with_cooldown and warmup_stable_decay fall in the last `decay_steps` steps only, or, in
    a run that is too short, from the end of the warm-up on.
    """
    if name in _COOLDOWNS:
        start = max(total_steps - decay_steps, warmup_steps)
        return _make_own(optimizer, _COOLDOWNS[name], warmup_steps=warmup_steps, start=start, end=total_steps)
    if name == "rex":
        return _make_own(optimizer, find_rex, warmup_steps=warmup_steps, start=warmup_steps, end=total_steps)
    if name == "constant" and warmup_steps:
        name = "constant_with_warmup"  # diffusers' "constant" silently ignores num_warmup_steps
    return get_scheduler(
        name, optimizer, num_warmup_steps=warmup_steps, num_training_steps=total_steps, num_cycles=num_cycles
    )


def _make_own(optimizer: Optimizer, fall: Factor, *, warmup_steps: int, start: int, end: int) -> LambdaLR:
    """Rise to 1, stay there until the step `start`, and fall until `end`."""

    def find_factor(step: int) -> float:
        if step < warmup_steps:
            return step / warmup_steps
        return fall(min((step - start) / (end - start), 1.0)) if step > start else 1.0

    return LambdaLR(optimizer, find_factor)


def find_rex(progress: float) -> float:
    """REX (Chen et al. 2021, "REX: Revisiting Budgeted Training with an Improved Schedule"):
    (1 - p) / (1/2 + (1 - p) / 2), for p from 0 to 1. It stays high for longer than a line.
    """
    return (1 - progress) / (0.5 + 0.5 * (1 - progress))


def find_cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def find_one_minus_root(progress: float) -> float:
    """1 - sqrt(p), the best cooldown of Hägele et al. 2024, "Scaling Laws and Compute-Optimal
    Training Beyond Fixed Training Durations".
    """
    return 1 - math.sqrt(progress)


# warmup_stable_decay is that of transformers and sd-scripts, which falls as a cosine
_COOLDOWNS: dict[str, Factor] = {"warmup_stable_decay": find_cosine, "constant_with_cooldown": find_one_minus_root}


def count_steps(setting: float, total_steps: int) -> int:
    """Return a setting such as lr_warmup_steps in steps. Below 1 it is a share of all steps, as in
    sd-scripts.
    """
    return round(setting * total_steps) if setting < 1 else min(int(setting), total_steps)
