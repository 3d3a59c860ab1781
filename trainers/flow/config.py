"""The settings that only a training of a flow model has."""

from dataclasses import dataclass

from ..config import param
from ..training.config import TrainingConfig


@dataclass(frozen=True)
class FlowConfig(TrainingConfig):
    """The settings of a training on any model of the graph: TrainingConfig's and those of
    the flow.
    """

    target_modules: str = param(
        "auto",
        "Layers that get a LoRA. auto: attention and MLP of every block. Or a regular expression that matches "
        "whole module names of the model.",
    )
    discrete_flow_shift: float = param(
        0.0,
        "Moves the training towards high noise levels, as in sampling: above 1, more noise. 0: the model's own shift.",
        min=0.0,
        max=100.0,
    )
    loss_weighting: str = param(
        "none",
        "Weight of the loss by noise level. none: all alike; min_snr: as Min-SNR with gamma 5; bell: the middle "
        "counts most.",
        choices=("none", "min_snr", "bell"),
    )
