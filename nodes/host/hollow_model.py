"""The graph's MODEL without data, on the meta device: what a step of it needs can be counted there,
without memory and without a GPU.
"""

from typing import Any, ClassVar

import torch
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor

from ...trainers.flow.base_model import Conditions
from ...trainers.flow.families import FlowFamilyRow
from .flow_model import GraphFlowModel, find_precision
from .twin import make_hollow_twin


def _attend(_: Any, *args: Any, **kwargs: Any) -> Tensor:
    return attention_pytorch(*args, **kwargs)


class HollowFlowModel(GraphFlowModel):
    """Predicts, as the real one does. It has neither text encoders nor a VAE."""

    # ComfyUI chooses some attention for a CPU by what memory is free
    _more_options: ClassVar[dict[str, Any]] = {"optimized_attention_override": _attend}

    def __init__(self, model: Any, family: FlowFamilyRow) -> None:
        self.family = family
        self.name = type(model.model).__name__
        self.precision = find_precision(model)
        self._adopt(make_hollow_twin(model), model)

    def _make_conds(self, noisy: Tensor, conditions: Conditions) -> dict[str, Any]:
        """ComfyUI looks at the values of texts and masks, so that only its answer loses its
        data.
        """
        found = super()._make_conds(torch.zeros(noisy.shape), conditions)
        return {name: _empty_cond(cond) for name, cond in found.items()}


def _empty_cond(cond: Any) -> Any:
    if isinstance(cond.cond, Tensor):
        return type(cond)(cond.cond.to("meta"))
    if isinstance(cond.cond, list):
        return type(cond)([each.to("meta") for each in cond.cond])
    return cond
