"""The settings that every model family has: the LoRA, the optimizer, steps, batches, files,
samples.

A family adds its own in a subclass. What the images are and how they are cropped: DatasetConfig and
BucketConfig.
"""

from dataclasses import dataclass

from ..config import check_ranges, param
from .optimizer_table import IMPORT_PATH, OPTIMIZERS


@dataclass(frozen=True)
class TrainingConfig:
    """Every field is a command-line flag and a node input. The defaults train a usable LoRA from 10
    to 200 images.
    """

    rank: int = param(16, "Rank of the LoRA matrices (kohya: network_dim). 8 to 32 for most subjects.", min=1, max=1024)
    alpha: float = param(
        16.0, "LoRA alpha; the LoRA acts with strength alpha / rank. Usually rank or half of it.", min=1e-3, max=4096
    )
    learning_rate: float = param(
        1e-4, "Peak learning rate of the UNet's LoRA. 1e-4 for AdamW, 1 for Prodigy.", min=0.0, max=10.0
    )
    max_train_steps: int = param(1500, "Optimizer steps. Ignored when num_train_epochs is set.", min=1, max=1_000_000)
    train_batch_size: int = param(1, "Pictures per forward pass (per GPU).", min=1, max=256)
    seed: int = param(0, "Seed of everything random in the run.", min=0, max=2**63 - 1)
    optimizer: str = param("AdamW", "Optimizer.", choices=tuple(OPTIMIZERS), pattern=IMPORT_PATH)
    mixed_precision: str = param(
        "auto",
        "Computation dtype; auto: bf16 where the GPU has it, else fp16; no (float32) on a CPU.",
        choices=("auto", "bf16", "fp16", "no"),
    )
    lora_dropout: float = param(
        0.0, "Probability of dropping an input of the LoRA while training.", min=0.0, max=0.95, advanced=True
    )
    network_weights: str = param(
        "", "LoRA file to start from (kohya, PEFT or diffusers names). Empty: start from zero.", advanced=True
    )
    num_train_epochs: int = param(
        0, "Passes over the dataset, repeats included. 0: use max_train_steps.", min=0, max=100_000, advanced=True
    )
    gradient_accumulation_steps: int = param(1, "Forward passes per optimizer step.", min=1, max=1024, advanced=True)
    gradient_checkpointing: bool = param(
        True, "Recompute activations in the backward pass: far less memory, about 25 % slower.", advanced=True
    )
    max_grad_norm: float = param(
        1.0, "Gradients are clipped to this norm. 0: no clipping.", min=0.0, max=1000.0, advanced=True
    )
    lr_scheduler: str = param(
        "cosine",
        "Learning-rate schedule after the warm-up (diffusers' names).",
        choices=("constant", "linear", "cosine", "cosine_with_restarts", "polynomial"),
        advanced=True,
    )
    lr_warmup_steps: float = param(
        0.05, "Warm-up: optimizer steps, or the share of all steps when below 1.", min=0.0, max=100_000.0, advanced=True
    )
    lr_num_cycles: int = param(1, "Cycles of cosine_with_restarts.", min=1, max=100, advanced=True)
    weight_decay: float = param(0.01, "Weight decay of the optimizer.", min=0.0, max=1.0, advanced=True)
    optimizer_args: str = param(
        "", 'More arguments of the optimizer, as sd-scripts takes them: "betas=(0.9,0.99) d_coef=2".', advanced=True
    )
    caption_dropout: float = param(
        0.05, "Share of training samples whose caption is replaced by an empty one.", min=0.0, max=1.0, advanced=True
    )
    save_every_n_steps: int = param(
        0, "Save a checkpoint every so many optimizer steps. 0: none.", min=0, max=1_000_000, advanced=True
    )
    save_every_n_epochs: int = param(
        0, "Save a checkpoint every so many epochs. 0: none.", min=0, max=100_000, advanced=True
    )
    save_dtype: str = param("bf16", "Number format of the saved LoRA.", choices=("fp32", "fp16", "bf16"), advanced=True)
    sample_every_n_steps: int = param(
        0,
        "Draw two pictures with the LoRA before the first step and every so many optimizer steps. 0: none.",
        min=0,
        max=1_000_000,
        advanced=True,
    )
    sample_prompt: str = param("", "Prompt of these pictures. Empty: the first picture's caption.", advanced=True)
    # 0.1, as OneTrainer: with 0 nothing at all holds the LoRA where masks are black, and its
    # pictures fall apart there.
    unmasked_weight: float = param(
        0.1,
        "Pictures with a mask: loss weight of what the mask leaves out. 0.1 is usual, 0: it is not learned at all.",
        min=0.0,
        max=1.0,
        advanced=True,
    )
    normalize_masked_loss: bool = param(
        False,
        "Pictures with a mask: divide the loss by the mask's mean, so that a small thing counts as much as a whole "
        "picture.",
        advanced=True,
    )
    prior_loss_weight: float = param(
        0.0,
        "Prior preservation without extra pictures: holds the LoRA to what the base model itself predicts for "
        "class_prompt. 0.5 to 1 is usual; "
        "a step takes 2.3 times as long (two forward passes and a backward pass more), and no more memory. 0: off.",
        min=0.0,
        max=100.0,
        advanced=True,
    )
    class_prompt: str = param(
        "",
        "What prior_loss_weight keeps as it is, such as: a photo of a dog. Several with | between, of which each "
        "sample draws one. "
        "Empty: each picture's own caption without the trigger word.",
        advanced=True,
    )

    def __post_init__(self) -> None:
        check_ranges(self)
