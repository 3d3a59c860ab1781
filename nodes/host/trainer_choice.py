"""Chooses the trainer by the MODEL of the graph, and names the settings that it does not use."""

from dataclasses import fields
from typing import Any

from ...trainers.config import list_field_names
from ...trainers.flow.config import FlowConfig
from ...trainers.sdxl.config import SDXLConfig
from .flow_training import train_flow
from .graph_training import TrainedInGraph, TrainingRequest
from .sdxl_training import train_sdxl
from .weights import is_sdxl

_AUTO, _AUTO_OF_SDXL = "auto", "attention_mlp"


def train_on_any_model(request: TrainingRequest) -> TrainedInGraph:
    """Train with the trainer for the MODEL.

    Raises:
        ValueError, RuntimeError, InterruptProcessingException: as train_sdxl and train_flow do.
    """
    if is_sdxl(request.base.model):
        targets = request.settings.get("target_modules", _AUTO)
        request = request.with_settings(target_modules=_AUTO_OF_SDXL if targets == _AUTO else targets)
        return train_sdxl(request, remarks=_name_unused(request.settings, SDXLConfig, FlowConfig, "SDXL has no"))
    return train_flow(request, remarks=_name_unused(request.settings, FlowConfig, SDXLConfig, "only SDXL has"))


def _name_unused(settings: dict[str, Any], config: type, other: type, reason: str) -> list[str]:
    """Return a remark on settings of the other trainer that were changed; none, if none was."""
    used = list_field_names(config)
    defaults = {spec.name: spec.default for spec in fields(other) if spec.name not in used}
    changed = [name for name, default in defaults.items() if settings.get(name, default) != default]
    return [f"Not used: {', '.join(changed)}, which {reason}."] if changed else []
