"""Optimizers and learning-rate schedules, each from its own package."""

import ast
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share a peak learning rate."""

    name: str
    parameters: Sequence[nn.Parameter]
    learning_rate: float


def make_optimizer(
    name: str, groups: Sequence[ParameterGroup], *, weight_decay: float, extra_args: str = ""
) -> Optimizer:
    """Build the optimizer called `name`; extra_args overrides its own arguments, as in
    "betas=(0.9,0.99) d_coef=2".

    Raises:
        ValueError: extra_args cannot be read, the optimizer does not take one of them, or it cannot
            train these groups.
        ModuleNotFoundError: its package is missing; the message says how to install it.
    """
    settings: dict[str, Any] = {"weight_decay": weight_decay, **parse_optimizer_args(extra_args)}
    param_groups = [{"params": list(group.parameters), "lr": group.learning_rate} for group in groups]
    try:
        return _BUILDERS[name](param_groups, settings)
    except TypeError as error:
        raise ValueError(f"optimizer_args {extra_args!r}: {name} does not take them ({error})") from error


def parse_optimizer_args(text: str) -> dict[str, Any]:
    """{"betas": (0.9, 0.99)} from "betas=(0.9,0.99)"; values are Python literals, nothing is
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


def _adamw(groups: list[dict[str, Any]], settings: dict[str, Any]) -> Optimizer:
    # fused: one kernel for all of the adapters' many small matrices.
    fused = all(parameter.device.type in ("cpu", "cuda") for group in groups for parameter in group["params"])
    return torch.optim.AdamW(groups, **{"fused": fused, **settings})


def _adamw_8bit(groups: list[dict[str, Any]], settings: dict[str, Any]) -> Optimizer:
    return _package("bitsandbytes", "AdamW8bit").optim.AdamW8bit(groups, **settings)


def _lion(groups: list[dict[str, Any]], settings: dict[str, Any]) -> Optimizer:
    return _package("lion_pytorch", "Lion", "lion-pytorch").Lion(groups, **settings)


def _adafactor(groups: list[dict[str, Any]], settings: dict[str, Any]) -> Optimizer:
    # The learning rate is ours: its own relative steps would ignore learning_rate and lr_scheduler.
    fixed_rate = {"scale_parameter": False, "relative_step": False, "warmup_init": False}
    return _package("transformers.optimization", "Adafactor", "transformers").Adafactor(
        groups, **{**fixed_rate, **settings}
    )


def _prodigy(groups: list[dict[str, Any]], settings: dict[str, Any]) -> Optimizer:
    rates = {group["lr"] for group in groups}
    if len(rates) > 1:
        raise ValueError(
            f"Prodigy finds one learning rate for everything, but {sorted(rates)} were given. "
            "Set text_encoder_learning_rate and text_encoder_2_learning_rate to learning_rate (usually 1)"
        )
    usual = {"use_bias_correction": True, "safeguard_warmup": True}
    return _package("prodigyopt", "Prodigy").Prodigy(groups, lr=rates.pop(), **{**usual, **settings})


_BUILDERS = {"AdamW": _adamw, "AdamW8bit": _adamw_8bit, "Lion": _lion, "Adafactor": _adafactor, "Prodigy": _prodigy}


def _package(module: str, optimizer: str, distribution: str | None = None) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        name = distribution or module
        raise ModuleNotFoundError(
            f"optimizer {optimizer} needs the package {name}, which is not installed: pip install {name}, or choose "
            "AdamW"
        ) from error


def make_lr_scheduler(
    name: str, optimizer: Optimizer, *, warmup_steps: int, total_steps: int, num_cycles: int = 1
) -> LRScheduler:
    """diffusers' schedule of that name, to be stepped once per optimizer step. "constant" keeps its
    warm-up, too.
    """
    if name == "constant" and warmup_steps:
        name = "constant_with_warmup"  # diffusers' "constant" ignores num_warmup_steps without a word
    return get_scheduler(
        name, optimizer, num_warmup_steps=warmup_steps, num_training_steps=total_steps, num_cycles=num_cycles
    )


def warmup_steps(setting: float, total_steps: int) -> int:
    """A number of steps, or below 1 the share of all steps, as sd-scripts reads lr_warmup_steps."""
    return round(setting * total_steps) if setting < 1 else min(int(setting), total_steps)
