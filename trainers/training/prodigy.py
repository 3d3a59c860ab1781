"""Prodigy (Mishchenko and Defazio, 2023) as in prodigyopt, with one wait for the device per step.

prodigyopt asks the device for two numbers of each matrix, one after the other: 2888 times a step
for SDXL. Here the sums stay on the device until all of them are there.
"""

import math
from collections.abc import Callable
from typing import Any

import prodigyopt
import torch
from torch import Tensor

Group = dict[str, Any]


class Prodigy(prodigyopt.Prodigy):
    """The settings, the state and, up to rounding, the numbers are prodigyopt's."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        first = self.param_groups[0]
        if first["slice_p"] != 1 or first["fsdp_in_use"] or not first["decouple"] or not first["betas"][0]:
            return super().step(closure)  # rare settings, which are its own affair
        loss = closure() if closure is not None else None
        params = {index: _list_trained(group) for index, group in enumerate(self.param_groups)}
        self._start([param for each in params.values() for param in each])
        rate = self._find_rate()
        step_size = first["d"] * rate * _correct_bias(first)
        sums = [
            self._accumulate(self.param_groups[index], each, step_size)
            for index, each in params.items()
            if each and self.param_groups[index]["lr"] > 0
        ]
        numerator, denominator = torch.stack(sums).sum(0).tolist() if sums else (0.0, 0.0)
        if denominator == 0:
            return loss
        self._adapt(numerator * first["d"] / first["d0"] * step_size, denominator, rate)
        for index, each in params.items():
            self._move(self.param_groups[index], each, step_size)
        return loss

    def _find_rate(self) -> float:
        rate = max(group["lr"] for group in self.param_groups)
        if any(group["lr"] not in (rate, 0.0) for group in self.param_groups):
            raise RuntimeError("Prodigy finds one learning rate: groups can have the same one, or 0")
        return rate

    def _start(self, params: list[Tensor]) -> None:
        """Make the states that are missing. The start of a matrix of zeros is one zero."""
        params = [param for param in params if "step" not in self.state[param]]
        if not params:
            return
        are_zero = torch.stack([~param.any() for param in params]).tolist()
        for param, is_zero in zip(params, are_zero, strict=True):
            self.state[param].update(
                step=0,
                s=torch.zeros_like(param.flatten()),
                p0=param.new_zeros(()) if is_zero else param.flatten().clone(),
                exp_avg=torch.zeros_like(param),
                exp_avg_sq=torch.zeros_like(param),
            )

    def _accumulate(self, group: Group, params: list[Tensor], step_size: float) -> Tensor:
        """Bring the averages up to date, and return what the new estimate of d is a quotient of, on
        the device: [numerator, denominator].
        """
        d, (beta1, beta2), beta3 = group["d"], group["betas"], _find_beta3(group)
        gradients = [param.grad for param in params if param.grad is not None]  # of all
        averages, squares, weighted = (self._list(params, name) for name in ("exp_avg", "exp_avg_sq", "s"))
        flat = [gradient.flatten() for gradient in gradients]
        moved = [start - param.flatten() for start, param in zip(self._list(params, "p0"), params, strict=True)]
        numerators = torch.stack([torch.dot(one, other) for one, other in zip(flat, moved, strict=True)])
        torch._foreach_mul_(averages, beta1)
        torch._foreach_add_(averages, gradients, alpha=d * (1 - beta1))
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, value=d * d * (1 - beta2))
        torch._foreach_mul_(weighted, beta3)
        torch._foreach_add_(weighted, flat, alpha=d / group["d0"] * (d if group["safeguard_warmup"] else step_size))
        return torch.stack([numerators.sum(), torch.stack(torch._foreach_norm(weighted, 1)).sum()])

    def _adapt(self, added: float, denominator: float, rate: float) -> None:
        first = self.param_groups[0]
        d, numerator = first["d"], first["d_numerator"] * _find_beta3(first) + added
        d_hat, d_max = d, first["d_max"]
        if rate > 0:
            d_hat = first["d_coef"] * numerator / denominator
            d = max(d, d_hat) if d == first["d0"] else d
            d_max = max(d_max, d_hat)
            d = min(d_max, d * first["growth_rate"])
        for group in self.param_groups:
            group.update(d_numerator=numerator, d_denom=denominator, d=d, d_max=d_max, d_hat=d_hat, k=group["k"] + 1)

    def _move(self, group: Group, params: list[Tensor], step_size: float) -> None:
        if not params:
            return
        for param in params:
            self.state[param]["step"] += 1
        roots = torch._foreach_sqrt(self._list(params, "exp_avg_sq"))
        torch._foreach_add_(roots, group["d"] * group["eps"])
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - group["weight_decay"] * step_size)
        torch._foreach_addcdiv_(params, self._list(params, "exp_avg"), roots, value=-step_size)

    def _list(self, params: list[Tensor], name: str) -> list[Tensor]:
        return [self.state[param][name] for param in params]


def _list_trained(group: Group) -> list[Tensor]:
    return [param for param in group["params"] if param.grad is not None]


def _find_beta3(group: Group) -> float:
    return math.sqrt(group["betas"][1]) if group["beta3"] is None else group["beta3"]


def _correct_bias(group: Group) -> float:
    beta1, beta2 = group["betas"]
    count = group["k"] + 1
    return math.sqrt(1 - beta2**count) / (1 - beta1**count) if group["use_bias_correction"] else 1.0
