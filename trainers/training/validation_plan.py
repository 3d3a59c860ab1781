"""What a run measures its progress on: the same images, noise and timesteps every time, within a
budget that is counted, not timed. Imports no torch.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from ..dataset.crop_plan import TrainingItem
from .config import TrainingConfig
from .schedule import Schedule
from .seeds import derive_seed

MAX_SHARE = 0.03  # of the run's computing
NEVER = -1  # of validate_every_n_steps
USUAL_DRAWS, MIN_DRAWS, MAX_DRAWS = 16, 4, 64
MIN_INTERVALS, MAX_INTERVALS = 10, 25  # of a run, if validate_every_n_steps is 0

ValidationKind = Literal["held-out", "stable loss", ""]


@dataclass(frozen=True)
class ValidationDraw:
    """One prediction that is measured. `index` seeds its noise; `noise_level` is the timestep as a
    share of all, 0: a clean image.
    """

    index: int
    item: TrainingItem
    noise_level: float


@dataclass(frozen=True)
class ValidationPlan:
    """The draws, and after how many steps they are measured. Without draws nothing is."""

    kind: ValidationKind = ""
    held_out: tuple[TrainingItem, ...] = ()  # to be encoded, never trained on
    draws: tuple[ValidationDraw, ...] = ()
    every: int = 0
    total_steps: int = 0
    notice: str = ""

    def is_due(self, step: int) -> bool:
        return bool(self.draws) and (step % self.every == 0 or step == self.total_steps)

    @property
    def number(self) -> int:
        """Tells draws apart: values of other draws cannot be compared."""
        facts = [(draw.item.image.sha256, draw.item.crop.target_hw, draw.noise_level) for draw in self.draws]
        return derive_seed("validation draws", str(facts)) % 2**31

    @property
    def items(self) -> list[TrainingItem]:
        """The items of all draws, each once."""
        return list({draw.item.index: draw.item for draw in self.draws}.values())


def plan_validation(
    items: Sequence[TrainingItem], held_out: Sequence[TrainingItem], config: TrainingConfig, schedule: Schedule
) -> ValidationPlan:
    """Choose the draws, and the steps after which they are measured.

    All measurements together take at most MAX_SHARE of the run's computing. A run that is too short
    for a few draws has no validation.
    """
    if config.validate_every_n_steps == NEVER:
        return ValidationPlan(held_out=tuple(held_out))
    budget = count_budget(config, schedule)
    every = config.validate_every_n_steps or _choose_interval(budget, schedule.total_steps)
    if budget < MIN_DRAWS * count_measurements(every, schedule.total_steps):  # asked for too often
        every = _find_shortest_interval(budget, schedule.total_steps)
    if not every:
        return ValidationPlan(held_out=tuple(held_out), notice=_explain_too_short(config, held_out))
    chosen = held_out or [item for item in items if item.repeat == 0 and not item.image.is_regularization]
    num_draws = min(budget // count_measurements(every, schedule.total_steps), MAX_DRAWS)
    return ValidationPlan(
        kind="held-out" if held_out else "stable loss",
        held_out=tuple(held_out),
        draws=choose_draws(chosen, num_draws, seed=config.seed),
        every=every,
        total_steps=schedule.total_steps,
        notice=_explain_interval(config.validate_every_n_steps, every),
    )


def count_budget(config: TrainingConfig, schedule: Schedule) -> int:
    """Count the draws that all measurements of a run may have together.

    Training one sample takes as long as two forward passes without gradients, as the base's weights
    need no gradients, and with gradient checkpointing three. With ema_decay each draw is predicted
    twice.
    """
    samples = schedule.total_steps * schedule.num_samples / schedule.steps_per_epoch / schedule.num_processes
    forward_passes = MAX_SHARE * samples * (3 if config.gradient_checkpointing else 2)
    return int(forward_passes / (2 if config.ema_decay else 1))


def count_measurements(every: int, total_steps: int) -> int:
    """One before the first step, one after each interval, and one at the end."""
    return 1 + math.ceil(total_steps / every)


def _choose_interval(budget: int, total_steps: int) -> int:
    intervals = min(max(budget // USUAL_DRAWS - 1, MIN_INTERVALS), MAX_INTERVALS)
    return max(1, math.ceil(total_steps / intervals))


def _find_shortest_interval(budget: int, total_steps: int) -> int:
    """0: not even two measurements fit."""
    intervals = budget // MIN_DRAWS - 1
    return math.ceil(total_steps / intervals) if intervals > 0 else 0


def choose_draws(items: Sequence[TrainingItem], num_draws: int, *, seed: int) -> tuple[ValidationDraw, ...]:
    """Spread the draws evenly over all noise levels, and over the items: each is used about equally
    often, at levels that are evenly spread too.
    """
    ordered = sorted(items, key=lambda item: derive_seed(seed, "validation", item.image.sha256, *item.crop.target_hw))
    return tuple(
        ValidationDraw(index, ordered[index % len(ordered)], (index + 0.5) / num_draws) for index in range(num_draws)
    )


def _explain_interval(wanted: int, every: int) -> str:
    if wanted in (0, every):
        return ""
    return (
        f"validate_every_n_steps: {_name_interval(wanted)} would take more than {MAX_SHARE:.0%} of the run, so it is "
        f"{_name_interval(every)}"
    )


def _name_interval(every: int) -> str:
    return "every step" if every == 1 else f"every {every} steps"


def _explain_too_short(config: TrainingConfig, held_out: Sequence[TrainingItem]) -> str:
    """Only if somebody has asked for it."""
    if not (held_out or config.validate_every_n_steps or config.early_stop):
        return ""
    return f"the run is too short to measure its progress in {MAX_SHARE:.0%} of its computing: there is no validation"


def batch_by_size(draws: Sequence[ValidationDraw], batch_size: int) -> Iterator[list[ValidationDraw]]:
    """Yield batches of one size each."""
    by_size: dict[tuple[int, int], list[ValidationDraw]] = {}
    for draw in draws:
        by_size.setdefault(draw.item.crop.target_hw, []).append(draw)
    for same in by_size.values():
        yield from (same[start : start + batch_size] for start in range(0, len(same), batch_size))
