"""The settings of an SDXL LoRA training beyond those that every family has."""

from dataclasses import dataclass

from ..config import param
from ..training.config import TrainingConfig


@dataclass(frozen=True)
class SDXLConfig(TrainingConfig):
    """What an SDXL model can be told in addition to TrainingConfig."""

    target_modules: str = param(
        "attention_mlp",
        "Layers that get a LoRA: attention (560 modules of SDXL), attention_mlp (722, what sd-scripts trains), or a "
        "regular expression for whole module names.",
        advanced=True,
    )
    train_text_encoders: bool = param(
        False, "Also train a LoRA on the text encoders. Their outputs can then not be cached.", advanced=True
    )
    text_encoder_learning_rate: float = param(
        5e-5, "Peak learning rate of text encoder 1 (CLIP-L). 0: not trained.", min=0.0, max=10.0, advanced=True
    )
    text_encoder_2_learning_rate: float = param(
        5e-5, "Peak learning rate of text encoder 2 (CLIP-G). 0: not trained.", min=0.0, max=10.0, advanced=True
    )
    min_snr_gamma: float = param(
        5.0, "Min-SNR weighting of the loss (Hang et al. 2023); 5 is usual. 0: off.", min=0.0, max=100.0, advanced=True
    )
    noise_offset: float = param(
        0.0,
        "Adds a random brightness to the noise; 0.03 to 0.1 helps very dark or bright styles.",
        min=0.0,
        max=1.0,
        advanced=True,
    )
    prediction_type: str = param(
        "auto",
        "What the base model predicts; auto reads it from the model.",
        choices=("auto", "epsilon", "v_prediction"),
        advanced=True,
    )
    zero_terminal_snr: str = param(
        "auto",
        "Noise schedule rescaled to zero terminal SNR; auto reads it from the model.",
        choices=("auto", "on", "off"),
        advanced=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train_text_encoders and not (self.text_encoder_learning_rate or self.text_encoder_2_learning_rate):
            raise ValueError(
                "train_text_encoders is on, but both text encoder learning rates are 0. Set "
                "text_encoder_learning_rate or text_encoder_2_learning_rate above 0"
            )
