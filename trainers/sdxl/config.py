"""The settings that only an SDXL training has."""

from dataclasses import dataclass

from ..config import param
from ..training.config import TrainingConfig

BASE_DTYPES = ("fp8", "int8", "nf4")  # of the frozen weights, by training/quantized_linear.py


@dataclass(frozen=True)
class SDXLConfig(TrainingConfig):
    """The settings of an SDXL training: TrainingConfig's, and those that need an SDXL model."""

    target_modules: str = param(
        "attention_mlp",
        "Layers that get a LoRA: attention (560 modules of SDXL), attention_mlp (722, the same as in sd-scripts), "
        "b-lora (the attention of the two blocks that B-LoRA trains, for one image), b-lora-content or b-lora-style "
        "(one of them), or a regular expression that matches whole module names of diffusers' UNet.",
    )
    train_text_encoders: bool = param(
        False,
        "Also train a LoRA on both text encoders (CLIP-L and CLIP-G). Slower and more memory, because "
        "their outputs cannot be cached.",
    )
    text_encoder_learning_rate: float = param(
        5e-5,
        "Peak learning rate of text encoder 1 (CLIP-L). Usually half of learning_rate; with Prodigy "
        "the same. 0: not trained.",
        min=0.0,
        max=10.0,
    )
    text_encoder_2_learning_rate: float = param(
        5e-5,
        "Peak learning rate of text encoder 2 (CLIP-G). Usually half of learning_rate; with Prodigy "
        "the same. 0: not trained.",
        min=0.0,
        max=10.0,
    )
    min_snr_gamma: float = param(
        5.0, "Min-SNR weighting of the loss (Hang et al. 2023). Usually 5; 0: off.", min=0.0, max=100.0
    )
    prediction_type: str = param(
        "auto",
        "What the base model predicts. auto: read it from the model.",
        choices=("auto", "epsilon", "v_prediction"),
    )
    zero_terminal_snr: str = param(
        "auto",
        "Rescale the noise schedule to zero terminal SNR. auto: read it from the model.",
        choices=("auto", "on", "off"),
    )
    torch_compile: bool = param(
        False,
        "Compile the UNet's blocks with torch.compile: faster steps, after one to several minutes for the first ones. "
        "Worth it from about 1000 steps on. Needs Triton, and all weights on the GPU.",
    )

    snr_weighting: str = param(
        "min_snr",
        "Weight of the loss by the noise level. min_snr: with min_snr_gamma; soft_min_snr: the same without the corner "
        "(Crowson et al. 2024); debiased: 1 / sqrt(SNR) (Yu et al. 2023), without min_snr_gamma.",
        choices=("min_snr", "soft_min_snr", "debiased"),
    )

    stop_text_encoder_training: float = param(
        0.0,
        "Optimizer step after which the text encoders are no longer trained, or share of all steps if below 1. Usually "
        "0.3 to 0.5; 0: they are trained to the end.",
        min=0.0,
        max=1_000_000.0,
    )

    conv_rank: int = param(
        0,
        "Rank of the UNet's convolutions (sd-scripts and LyCORIS: conv_dim, a LoCon): above 0, those of all ResNet "
        "blocks, downsamplers and upsamplers are trained too, and the small layers between them with rank. Usually 4 "
        "to 16. 0: only those that target_modules names, with rank.",
        min=0,
        max=1024,
    )
    conv_alpha: float = param(
        0.0,
        "alpha of conv_rank. Usually conv_rank or half of it. 0: in the same ratio as alpha to rank.",
        min=0.0,
        max=4096.0,
    )

    num_new_tokens: int = param(
        0,
        "Pivotal tuning: so many new tokens are trained for both text encoders, together with the LoRA, and stand for "
        "the trigger word in captions and samples. They are saved in embeddings/NAME.safetensors beside the LoRA, for "
        "the embeddings folder of ComfyUI or Forge. The text encoders run in every step. Usually 1 to 4; 0: off.",
        min=0,
        max=64,
    )
    token_learning_rate: float = param(
        5e-4,
        "Peak learning rate of the new tokens. Usually 3e-4 to 1e-3; with Prodigy that of the others.",
        min=0.0,
        max=10.0,
    )
    token_initializer: str = param(
        "",
        "Words whose vectors the new tokens start from, token by token and then again from the first. Usually what the "
        "subject is, such as: dog. Empty: the trigger word.",
    )

    @property
    def runs_text_encoders(self) -> bool:
        """Whether every step needs the text encoders."""
        return self.train_text_encoders or self.num_new_tokens > 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_new_tokens and not self.token_learning_rate:
            raise ValueError(
                f"num_new_tokens is {self.num_new_tokens}, but token_learning_rate is 0: they would stay as they are. "
                "Set it above 0, or num_new_tokens to 0"
            )
        if self.train_text_encoders and not (self.text_encoder_learning_rate or self.text_encoder_2_learning_rate):
            raise ValueError(
                "train_text_encoders is on, but both text encoder learning rates are 0. Set "
                "text_encoder_learning_rate or text_encoder_2_learning_rate above 0"
            )
        if self.stop_text_encoder_training and not (self.train_text_encoders and self.learning_rate):
            raise ValueError(
                f"stop_text_encoder_training is {self.stop_text_encoder_training:g}, but "
                + (
                    "learning_rate is 0: nothing"
                    if self.train_text_encoders
                    else "train_text_encoders is off: no text encoder"
                )
                + " would be trained after it. Set it to 0"
            )
