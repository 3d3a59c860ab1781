"""Predictions that are not training: without dropout, and without leaving a trace."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(*models: nn.Module | None) -> Iterator[None]:
    """Inside the block no module trains, so that the LoRA has no dropout. Each is put back by
    itself: a frozen base does not train, and the adapters on it do.
    """
    training = [module for model in models if model is not None for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
