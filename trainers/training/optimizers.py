"""Make optimizers, from optimizer_table.py or by import path."""

import importlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from torch.optim import Optimizer

from ..packages import pip_install
from .config import TrainingConfig
from .layer_values import read_layer_values
from .optimizer_args import parse_optimizer_args
from .optimizer_table import OptimizerRow, find_optimizer


@runtime_checkable
class ScheduleFree(Protocol):
    """An optimizer that learns the average of the weights that it trains (Defazio et al. 2024, "The
    Road Less Scheduled"): eval() puts the averages in their place, train() takes them out again,
    exactly but for rounding.
    """

    def train(self) -> None: ...
    def eval(self) -> None: ...


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
    "betas=(0.9,0.99) d_coef=2", override its arguments. A schedule-free one is ready to step.

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
        _require_common_rate(row, groups)
    settings["lr"] = groups[0].learning_rate  # each group has its own; some optimizers want one here too
    param_groups = [{"params": list(group.parameters), "lr": group.learning_rate} for group in groups]
    optimizer_class = _import_class(row)
    _require_types(name, optimizer_class, parse_optimizer_args(extra_args))
    try:
        optimizer = optimizer_class(param_groups, **settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"optimizer_args {extra_args!r}: {name} does not take them ({error})") from error
    if isinstance(optimizer, ScheduleFree):
        optimizer.train()
    return optimizer


def can_step(name: str, device: torch.device) -> bool:
    """Tell whether the optimizer `name` works on the device, by one step. bitsandbytes may be
    installed without kernels for it.
    """
    try:
        return _step_once(name, device, weight_decay=0.0)
    except _FAILURES:
        return False


def require_step(name: str, device: torch.device, *, weight_decay: float, extra_args: str = "") -> None:
    """Make one step of the optimizer on the device, and forget it. Those of torch work everywhere.

    Raises:
        ValueError: it does not work there, or as make_optimizer.
        ImportError: its package is missing or broken.
    """
    package = find_optimizer(name).package
    if package == "torch":
        return
    try:
        _step_once(name, device, weight_decay=weight_decay, extra_args=extra_args)
    except ImportError:
        raise
    except torch.OutOfMemoryError:
        return  # the training needs far more, and says what to change
    except _FAILURES as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"optimizer {name} cannot train on {device} ({reason}). Choose AdamW, or install a {package} that works on "
            "this device"
        ) from error


# what bitsandbytes raises without its library, its kernels or a working CUDA
_FAILURES = (ImportError, OSError, RuntimeError, AttributeError)


def _step_once(name: str, device: torch.device, *, weight_decay: float, extra_args: str = "") -> bool:
    """Tell whether one step changed every value."""
    with torch.inference_mode(False):
        # 8-bit states begin at 4096 values
        weight = nn.Parameter(torch.ones(8192, device=device))
        weight.grad = torch.ones_like(weight)
        group = ParameterGroup("trial", [weight], 0.1)
        make_optimizer(name, [group], weight_decay=weight_decay, extra_args=extra_args).step()
        return bool((weight.detach() < 1).all())


def check_optimizer(config: TrainingConfig, rates: Mapping[str, float]) -> None:
    """Make the optimizer for one number per learning rate, those of single layers and of LoRA+ too,
    and forget it: whatever is wrong shows before anything is computed.

    Raises:
        ValueError, ModuleNotFoundError: as make_optimizer; or a setting does not go with a
            schedule-free optimizer.
    """
    name = config.optimizer
    rates = {**rates, **read_layer_values(config.network_reg_lrs, setting="network_reg_lrs")}
    if config.loraplus_lr_ratio:
        rates |= {f"up of {part}": config.loraplus_lr_ratio * rate for part, rate in rates.items()}
    groups = [ParameterGroup(part, [nn.Parameter(torch.zeros(1))], rate) for part, rate in rates.items()]
    optimizer = make_optimizer(name, groups, weight_decay=config.weight_decay, extra_args=config.optimizer_args)
    if not isinstance(optimizer, ScheduleFree):
        return
    if config.lr_scheduler != "constant":
        raise ValueError(
            f"optimizer {name} averages its weights instead of lowering the learning rate. Set lr_scheduler to "
            f"constant, not {config.lr_scheduler}; it may have a warm-up"
        )
    if config.ema_decay:
        raise ValueError(
            f"optimizer {name} averages its weights by itself. Set ema_decay to 0, not {config.ema_decay:g}"
        )


def _require_types(name: str, optimizer_class: type[Optimizer], given: Mapping[str, Any]) -> None:
    """Check what Python would accept in silence: every text and tuple counts as True."""
    if "lr" in given:
        raise ValueError("optimizer_args: lr has its own setting. Set learning_rate instead")
    defaults = inspect.signature(optimizer_class).parameters
    for argument, value in given.items():
        default = defaults[argument].default if argument in defaults else None
        if isinstance(default, bool) and not isinstance(value, bool):
            raise ValueError(f"optimizer_args: {argument} of {name} must be True or False, got {value!r}")
        if isinstance(default, tuple) and not (isinstance(value, tuple | list) and len(value) == len(default)):
            example = "(" + ",".join(map(str, default)) + ")"
            raise ValueError(
                f"optimizer_args: {argument} of {name} must be {len(default)} numbers such as {example}, got {value!r}"
            )


def _can_fuse(groups: Sequence[ParameterGroup]) -> bool:
    return all(parameter.device.type in ("cpu", "cuda") for group in groups for parameter in group.parameters)


def _require_common_rate(row: OptimizerRow, groups: Sequence[ParameterGroup]) -> None:
    rates = {group.learning_rate for group in groups}
    if len(rates) > 1:
        raise ValueError(
            f"{row.name} finds one learning rate for everything, but {sorted(rates)} were given. Set "
            "text_encoder_learning_rate and text_encoder_2_learning_rate to learning_rate "
            f"(usually {row.usual_learning_rate}), leave network_reg_lrs empty and loraplus_lr_ratio 0, or choose "
            "ProdigyPlusScheduleFree, which finds one for each part"
        )


def _import_class(row: OptimizerRow) -> type[Optimizer]:
    try:
        importlib.import_module(row.module.partition(".")[0])
        module = importlib.import_module(row.module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"optimizer {row.name} needs the package {row.package}, which is not installed: "
            f"{pip_install(row.package)}, or choose AdamW"
        ) from error
    except (ImportError, OSError, RuntimeError) as error:
        raise ImportError(
            f"optimizer {row.name}: the package {row.package} is installed but broken ({error}). Install it again: "
            f"{pip_install('--force-reinstall', '--no-deps', row.package)}, or choose AdamW"
        ) from error
    if row.own_module:
        module = importlib.import_module(row.own_module, __package__)
    found = getattr(module, row.class_name, None)
    if not (isinstance(found, type) and issubclass(found, Optimizer)):
        raise ValueError(f"optimizer {row.name}: {row.module} has no optimizer class {row.class_name}")
    return found
