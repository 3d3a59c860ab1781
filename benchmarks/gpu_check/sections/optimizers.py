"""Every optimizer that is installed, with and without gradient checkpointing, on the tiny model."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from trainers.sdxl.prepared_model import PreparedSDXL
from trainers.training.optimizer_table import OPTIMIZERS, OptimizerRow
from trainers.training.optimizers import can_step

from ..bench import Bench
from ..report import Report
from ..trial import Trial, make_trial

NAME, TITLE = "optimizers", "Optimizers"
SHARE_SECONDS, NEEDED_SECONDS = 45.0, 10.0
SECONDS_PER_RUN = 3.0
NUM_STEPS = 3
LEARNING_RATES = {"Lion": 1e-4, "Prodigy": 1.0, "ProdigyPlusScheduleFree": 1.0}


def run(bench: Bench, report: Report) -> None:
    for row in OPTIMIZERS.values():
        if not can_step(row.name, bench.device):
            report.skip(row.name, f"{row.package} is not installed, or cannot step on {bench.device}")
            continue
        # every run takes seconds on a CPU, so the tiny check has both for one optimizer only
        for checkpointing in (True, False) if not bench.is_tiny or row.name == "AdamW" else (False,):
            name = f"{row.name}, checkpointing {'on' if checkpointing else 'off'}"
            if bench.is_tiny or report.has_time(name, SECONDS_PER_RUN):
                _check(bench, report, row, name, checkpointing=checkpointing)


def _check(bench: Bench, report: Report, row: OptimizerRow, name: str, *, checkpointing: bool) -> None:
    trial = make_trial(
        bench,
        report,
        name.replace(",", "").replace(" ", "-"),
        optimizer=row.name,
        learning_rate=LEARNING_RATES.get(row.name, 1e-3),
        lr_scheduler="constant",  # as the schedule-free ones need
        gradient_checkpointing=checkpointing,
        max_train_steps=NUM_STEPS,
        mixed_precision=bench.half,
    )
    start: list[Tensor] = []
    trial.on_prepared.append(lambda model: start.extend(copy_weights(model)))
    facts: dict[str, Any] = {}
    with watched_optimizers() as optimizers:
        trial.on_step.append(lambda trial, _: facts.update(_look(trial, start, optimizers)))
        trial.train()
    ok = all(map(math.isfinite, trial.losses)) and facts["moved"] > 0 and facts["places"] == [bench.device.type]
    places = ", ".join(facts["places"])
    report.check(
        name,
        ok,
        value=f"loss {trial.losses[0]:.4f} to {trial.losses[-1]:.4f}, moved by {facts['moved']:.2g}, on {places}",
        goal=f"finite, weights move, adapters and states on {bench.device.type}",
    )


@contextmanager
def watched_optimizers() -> Iterator[list[Optimizer]]:
    """Collect the optimizers that step inside the block."""
    found: list[Optimizer] = []

    def add(optimizer: Optimizer, *_: Any) -> None:
        if optimizer not in found:
            found.append(optimizer)

    hook = register_optimizer_step_post_hook(add)
    try:
        yield found
    finally:
        hook.remove()


def copy_weights(model: PreparedSDXL) -> list[Tensor]:
    return [flat.detach().cpu().clone() for flat in model.adapted.flat_weights]


def _look(trial: Trial, start: Sequence[Tensor], optimizers: Sequence[Optimizer]) -> dict[str, Any]:
    """Return how far the weights are from their start, and where everything is that is trained."""
    assert trial.model is not None
    now = copy_weights(trial.model)
    moved = max((after - before).abs().max().item() for before, after in zip(start, now, strict=True))
    tensors = [*trial.model.adapted.flat_weights, *list_state_tensors(optimizers)]
    return {"moved": moved, "places": sorted({tensor.device.type for tensor in tensors})}


def list_state_tensors(optimizers: Sequence[Optimizer]) -> list[Tensor]:
    """List the states that are more than a number: the count of steps may be in main memory."""
    return [
        value
        for optimizer in optimizers
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor) and value.dim()
    ]
