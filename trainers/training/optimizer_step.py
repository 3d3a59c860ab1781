"""From gradients to new weights: loss scaling, clipping, the NaN check, optimizer, schedule."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ..critical_section import critical_section
from .config import TrainingConfig
from .flat_weights import TrainedGroup
from .loss_scale import LossScale
from .lr_schedule import count_steps, make_lr_scheduler
from .optimizer_table import find_optimizer
from .optimizers import ParameterGroup, ScheduleFree, make_optimizer


class NonFiniteLoss(RuntimeError):
    """The loss or a gradient became NaN or infinite."""


class OptimizerStep:
    """Owns the optimizer, its learning-rate schedule and, for fp16, the loss scale."""

    def __init__(
        self,
        groups: Sequence[TrainedGroup],
        config: TrainingConfig,
        *,
        total_steps: int,
        precision: str,
    ) -> None:
        self._groups = groups
        self._max_norm = config.max_grad_norm or math.inf
        self._precision = precision
        self._optimizer = make_optimizer(
            config.optimizer,
            _choose_parameters(groups, config.optimizer),
            weight_decay=config.weight_decay,
            extra_args=config.optimizer_args,
        )
        self._lr_scheduler = make_lr_scheduler(
            config.lr_scheduler,
            self._optimizer,
            warmup_steps=count_steps(config.lr_warmup_steps, total_steps),
            total_steps=total_steps,
            decay_steps=count_steps(config.lr_decay_steps, total_steps),
            num_cycles=config.lr_num_cycles,
        )
        self._loss_scale = LossScale(is_on=precision == "fp16")

    @property
    def learning_rate(self) -> float:
        """The learning rate of the first group at the next update."""
        return float(self._lr_scheduler.get_last_lr()[0])

    @property
    def schedule_step(self) -> int:
        """How many steps the schedule has made, without those that overflowed in fp16."""
        return self._lr_scheduler.last_epoch

    def state_dict(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the optimizer's state and that of the loss scale."""
        return self._optimizer.state_dict(), self._loss_scale.state_dict()

    def restore(self, optimizer: dict[str, Any], scaler: dict[str, Any], *, schedule_step: int) -> None:
        """Go on from a state. The schedule is this run's, which may be longer than the earlier one.

        Raises:
            ValueError: the state is of another optimizer, or of other parameters.
        """
        try:
            self._optimizer.load_state_dict(optimizer)
        except (ValueError, KeyError) as error:
            raise ValueError(f"resume: the optimizer cannot go on from that state ({error})") from error
        _restore_dtypes(self._optimizer, optimizer)
        if scaler:
            self._loss_scale.load_state_dict(scaler)
        self._move_schedule_to(schedule_step)

    def _move_schedule_to(self, step: int) -> None:
        schedule = self._lr_scheduler
        assert isinstance(schedule, LambdaLR)  # all of diffusers' and ours are
        rates = [base * factor(step) for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
        schedule.load_state_dict(
            {**schedule.state_dict(), "last_epoch": step, "_step_count": step + 1, "_last_lr": rates}
        )
        for group, rate in zip(self._optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    @contextmanager
    @torch.no_grad()
    def averaged(self) -> Iterator[None]:
        """Inside the block the model has the weights that were learned: those of a schedule-free
        optimizer are the averages of those that it trains on, which come back bit for bit.
        """
        optimizer = self._optimizer
        if not isinstance(optimizer, ScheduleFree):
            yield
            return
        kept = [group.weights.flat.detach().clone() for group in self._groups]
        try:
            with critical_section():
                optimizer.eval()
                self._publish()
            yield
        finally:
            with critical_section():
                optimizer.train()
                for group, weights in zip(self._groups, kept, strict=True):
                    group.weights.flat.copy_(weights)
                self._publish()

    def _publish(self) -> None:
        for group in self._groups:
            group.weights.publish()

    def discard_gradients(self) -> None:
        for group in self._groups:
            group.weights.forget_gradients()

    def backward(self, loss: Tensor) -> None:
        self._loss_scale.scale(loss).backward()
        for group in self._groups:
            group.weights.collect_gradients()

    def update(self, step: int, loss: Tensor) -> float:
        """Unscale and clip the gradients, step optimizer and schedule, and return the loss.

        Raises:
            NonFiniteLoss: the loss or a gradient is NaN or infinite; no weight was changed.
        """
        self._pass_over_finished(step)
        self._loss_scale.unscale([group.weights.flat for group in self._groups])
        gradient_norm = self._clip()
        # one transfer for both: it is the step's only synchronization with the device
        loss_value, norm_value = torch.stack([loss, gradient_norm]).tolist()
        _require_finite(step, loss_value, norm_value, precision=self._precision, scale=self._loss_scale.value)
        has_overflowed = not math.isfinite(norm_value)
        if not has_overflowed:
            for group in self._groups:
                group.weights.share_gradients()
            self._optimizer.step()
            self._lr_scheduler.step()
            self._publish()
        self._loss_scale.update(has_overflowed=has_overflowed)
        self.discard_gradients()
        return loss_value

    def _pass_over_finished(self, step: int) -> None:
        """Without a gradient, optimizers leave weights and their state as they are."""
        for group in self._groups:
            if 0 < group.weights.last_step < step:
                group.weights.forget_gradients()

    @torch.no_grad()
    def _clip(self) -> Tensor:
        """Scale the gradients down to max_grad_norm, and return the norm that they had. The norm is
        that of the matrices' norms, as nn.utils.clip_grad_norm_ takes it.
        """
        gradients = [group.weights.flat.grad for group in self._groups]
        parts = [
            part
            for group, gradient in zip(self._groups, gradients, strict=True)
            if gradient is not None
            for part in group.weights.cut(gradient)
        ]
        norm = nn.utils.get_total_norm(parts)
        factor = (self._max_norm / (norm + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            if gradient is not None:
                gradient.mul_(factor)
        return norm


def _restore_dtypes(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """torch gives what it loads the dtype of the parameters, but some optimizers keep less."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, saved in state["state"].items():
        loaded = optimizer.state[parameters[index]]
        for name, value in saved.items():
            if isinstance(value, Tensor) and isinstance(loaded.get(name), Tensor):
                loaded[name] = loaded[name].to(value.dtype)


def _choose_parameters(groups: Sequence[TrainedGroup], optimizer: str) -> list[ParameterGroup]:
    """One flat tensor per group, or, for an optimizer that looks at shapes or at the norm of a
    matrix, all matrices.
    """
    is_elementwise = find_optimizer(optimizer).is_elementwise
    return [
        ParameterGroup(
            group.name,
            [group.weights.flat] if is_elementwise else group.weights.as_matrices(),
            group.learning_rate,
        )
        for group in groups
    ]


def _require_finite(step: int, loss: float, gradient_norm: float, *, precision: str, scale: float) -> None:
    """Raise NonFiniteLoss before the optimizer can spread NaN to every weight. In fp16 a gradient
    may overflow: that step is skipped.
    """
    overflow_is_normal = precision == "fp16" and scale > 1
    if math.isfinite(loss) and (math.isfinite(gradient_norm) or overflow_is_normal):
        return
    remedy = {
        "fp16": "Use mixed_precision bf16 or no: fp16 overflows on some base models",
        "bf16": "Lower the learning rate, or use mixed_precision no to find the cause",
        "no": "Lower the learning rate, and check the base model",
    }[precision]
    dtype = {"no": "float32", "fp16": "float16", "bf16": "bfloat16"}[precision]
    raise NonFiniteLoss(
        f"step {step}: loss {loss}, gradient norm {gradient_norm} in {dtype}. {remedy}. The weights of the last good "
        "step are kept as a checkpoint"
    )
