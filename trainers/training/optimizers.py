"""Make optimizers, from optimizer_table.py or by import path, and learning-rate schedules."""

import ast
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from diffusers.optimization import get_scheduler
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .optimizer_table import OptimizerRow, find_optimizer


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share a peak learning rate."""

    name: str
    parameters: Sequence[nn.Parameter]
    learning_rate: float


def make_optimizer(
    name: str, groups: Sequence[ParameterGroup], *, weight_decay: float, extra_args: str = ""
) -> Optimizer:
    """Make the optimizer called `name`, from the table or by its import path. `extra_args`, such as
    "betas=(0.9,0.99) d_coef=2", override its arguments.

    Raises:
        ValueError: extra_args cannot be read, the optimizer does not take one of them or cannot
            train these groups, or the import path names no optimizer.
        ModuleNotFoundError: its package is missing; the message says how to install it.
    """
    row = find_optimizer(name)
    settings = {**row.arguments, "weight_decay": weight_decay, **parse_optimizer_args(extra_args)}
    if row.can_be_fused:
        settings.setdefault("fused", _can_fuse(groups))
    if row.finds_learning_rate:
        settings["lr"] = _require_common_rate(row, groups)
    param_groups = [{"params": list(group.parameters), "lr": group.learning_rate} for group in groups]
    optimizer_class = _import_class(row)
    try:
        return optimizer_class(param_groups, **settings)
    except TypeError as error:
        raise ValueError(f"optimizer_args {extra_args!r}: {name} does not take them ({error})") from error


def parse_optimizer_args(text: str) -> dict[str, Any]:
    """Read "betas=(0.9,0.99)" as {"betas": (0.9, 0.99)}. Values are Python literals and never
    evaluated.
    """
    settings = {}
    for part in text.split():
        name, separator, value = part.partition("=")
        try:
            if not (separator and name.isidentifier()):
                raise ValueError("no name=value")
            settings[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            raise ValueError(
                f"optimizer_args: cannot read {part!r}. Write name=value pairs without spaces inside, such as "
                '"betas=(0.9,0.99) d_coef=2"'
            ) from None
    return settings


def _can_fuse(groups: Sequence[ParameterGroup]) -> bool:
    return all(parameter.device.type in ("cpu", "cuda") for group in groups for parameter in group.parameters)


def _require_common_rate(row: OptimizerRow, groups: Sequence[ParameterGroup]) -> float:
    rates = {group.learning_rate for group in groups}
    if len(rates) > 1:
        raise ValueError(
            f"{row.name} finds one learning rate for everything, but {sorted(rates)} were given. Set "
            "text_encoder_learning_rate and text_encoder_2_learning_rate to learning_rate "
            f"(usually {row.usual_learning_rate})"
        )
    return rates.pop()


def _import_class(row: OptimizerRow) -> type[Optimizer]:
    try:
        importlib.import_module(row.module.partition(".")[0])
        module = importlib.import_module(row.module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"optimizer {row.name} needs the package {row.package}, which is not installed: pip install "
            f"{row.package}, or choose AdamW"
        ) from error
    found = getattr(module, row.class_name, None)
    if not (isinstance(found, type) and issubclass(found, Optimizer)):
        raise ValueError(f"optimizer {row.name}: {row.module} has no optimizer class {row.class_name}")
    return found


def make_lr_scheduler(
    name: str, optimizer: Optimizer, *, warmup_steps: int, total_steps: int, num_cycles: int = 1
) -> LRScheduler:
    """Make diffusers' schedule of that name. Step it once per optimizer step. "constant" has a
    warm-up too.
    """
    if name == "constant" and warmup_steps:
        name = "constant_with_warmup"  # diffusers' "constant" silently ignores num_warmup_steps
    return get_scheduler(
        name, optimizer, num_warmup_steps=warmup_steps, num_training_steps=total_steps, num_cycles=num_cycles
    )


def warmup_steps(setting: float, total_steps: int) -> int:
    """Return the warm-up in steps. A setting below 1 is a share of all steps, as in sd-scripts."""
    return round(setting * total_steps) if setting < 1 else min(int(setting), total_steps)
