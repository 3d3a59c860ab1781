"""The objective of a slider, as a pure function.

Letters: B batch, C channels, H W latent height and width.
"""

from torch import Tensor


def slider_target(base_pred: Tensor, direction: Tensor, *, guidance: float) -> Tensor:
    """Return what the LoRA should predict for the target prompt, [B, C, H, W]: the frozen base's
    prediction for it, and `guidance` times the direction (equation 8 of Gandikota et al. 2023, with
    one attribute per sample).

    The direction is the base's prediction for positive less that for negative. At strength -1 the
    guidance is negative.
    """
    return base_pred + guidance * direction
