"""Gradient checkpointing of SDXL's parts."""

from diffusers import UNet2DConditionModel
from torch import nn
from transformers import PreTrainedModel


def enable_gradient_checkpointing(module: nn.Module) -> None:
    # diffusers and transformers checkpoint only in training mode, which changes nothing else: these
    # models have no dropout
    module.train()
    if isinstance(module, UNet2DConditionModel):
        module.enable_gradient_checkpointing()
    else:
        assert isinstance(module, PreTrainedModel)
        module.gradient_checkpointing_enable({"use_reentrant": False})
