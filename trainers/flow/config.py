"""The settings that only a training of a flow model has."""

from dataclasses import dataclass

from ..config import param
from ..training.config import TrainingConfig
from .families import MAX_TIMESTEP


@dataclass(frozen=True)
class FlowConfig(TrainingConfig):
    """The settings of a training on any model of the graph: TrainingConfig's and those of
    the noise levels.
    """

    target_modules: str = param(
        "auto",
        "Layers that get a LoRA. auto: attention and MLP of every block. Or a regular expression that matches "
        "whole module names of the model.",
    )
    timestep_sampling: str = param(
        "auto",
        "How often each noise level is trained. uniform: all alike; sigmoid and logit_normal: the middle more often. "
        "auto: what suits the model.",
        choices=("auto", "uniform", "sigmoid", "logit_normal"),
    )
    sigmoid_scale: float = param(
        1.0, "Width of timestep_sampling sigmoid: above 1, the ends are trained more often.", min=0.01, max=100.0
    )
    logit_mean: float = param(0.0, "Mean of timestep_sampling logit_normal. Above 0: more noise.", min=-10.0, max=10.0)
    logit_std: float = param(1.0, "Spread of timestep_sampling logit_normal.", min=0.01, max=10.0)
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
    noise_offset: float = param(
        0.0,
        "Random brightness added to the noise. Flow models seldom need it; 0: off.",
        min=0.0,
        max=1.0,
    )
    min_timestep: int = param(
        0,
        "Lowest timestep to train, of 1000, after the shift. 0: the model's own, which is 875 for the high-noise "
        "expert of Wan 2.2 and else the lowest.",
        min=0,
        max=999,
    )
    max_timestep: int = param(
        0,
        "Highest timestep to train, of 1000, after the shift. 0: the model's own, which is 875 for the low-noise "
        "expert of Wan 2.2 and else the highest.",
        min=0,
        max=1000,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.timesteps[0] >= self.timesteps[1]:
            raise ValueError(f"max_timestep must be above min_timestep {self.min_timestep}, got {self.max_timestep}")

    @property
    def timesteps(self) -> tuple[int, int]:
        """The lowest and the highest."""
        return self.min_timestep, self.max_timestep or MAX_TIMESTEP
