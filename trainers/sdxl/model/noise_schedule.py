"""SDXL's noise schedule. Letters: T timesteps of the schedule (1000)."""

from typing import Any

from diffusers import DDPMScheduler
from torch import Tensor

NUM_TIMESTEPS = 1000
# diffusers' settings for the schedule that all SDXL models share.
NOISE_SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": NUM_TIMESTEPS,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
}


def alphas_cumprod(*, zero_terminal_snr: bool) -> Tensor:
    """Return the cumulative alphas of SDXL's schedule, float32 [T]: scaled-linear betas from
    0.00085 to 0.012.

    With zero_terminal_snr the betas are rescaled so that the last step is pure noise (Lin et al.
    2023, algorithm 1).
    """
    schedule = DDPMScheduler(**NOISE_SCHEDULE, rescale_betas_zero_snr=zero_terminal_snr)
    return schedule.alphas_cumprod
