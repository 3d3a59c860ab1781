"""The settings of a training by Musubi Tuner, under our own names. Recommended values are in the
table of architectures, Musubi's flags in commands.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

from ..config import check_ranges, param
from ..patterns import find_syntax_error
from ..training.optimizer_args import parse_optimizer_args, split_optimizer_args
from .architectures import Architecture

OPEN = "auto"

TIMESTEP_SAMPLINGS = (
    OPEN,
    "sigma",
    "uniform",
    "sigmoid",
    "shift",
    "flux_shift",
    "flux2_shift",
    "ideogram4_shift",
    "qwen_shift",
    "krea2_shift",
    "logsnr",
    "qinglong_flux",
    "qinglong_qwen",
)


@dataclass(frozen=True)
class MusubiConfig:
    """Every field is a command-line flag and a node input. If its help says so, 0 or auto means the
    value that the architecture recommends.
    """

    rank: int = param(
        0,
        "Rank of the LoRA matrices (Musubi: network_dim). Usually 16 or 32. 0: what the architecture recommends.",
        min=0,
        max=1024,
    )
    alpha: float = param(
        0.0, "The LoRA acts with strength alpha / rank (Musubi: network_alpha). 0: the same as rank.", min=0.0, max=4096
    )
    learning_rate: float = param(
        0.0,
        "Peak learning rate. Usually 5e-5 to 2e-4 for AdamW and AdamW8bit, 1 for Prodigy. 0: what the "
        "architecture recommends.",
        min=0.0,
        max=10.0,
    )
    max_train_steps: int = param(
        1500,
        "Optimizer steps. Usually 1000 to 3000; the checkpoints of save_every_n_steps show when it is enough.",
        min=1,
        max=1_000_000,
    )
    train_batch_size: int = param(1, "Images per forward pass. Usually 1 or 2.", min=1, max=256)
    resolution: int = param(
        0,
        "Images are trained at an area of about resolution x resolution pixels, each in its own "
        "shape. A multiple of 16, for HiDream-O1 of 32. 0: what the architecture recommends.",
        min=0,
        max=4096,
    )
    # The maximum is NumPy's, which Musubi seeds with it.
    seed: int = param(0, "Seed of every random draw in the run.", min=0, max=2**32 - 1)
    caption_source: str = param(
        "captions",
        "captions: train each image on its own caption; trigger_word: train all images on the trigger word alone.",
        choices=("captions", "trigger_word"),
    )
    fp8: bool = param(
        False,
        "Keep the model's weights in 8 bits during training: about half the memory, slightly less "
        "exact. The file itself must still be bf16 or fp16.",
    )
    blocks_to_swap: int = param(
        0,
        "Number of the model's blocks that wait in main memory: less GPU memory, slower. 0: none; the "
        "maximum depends on the architecture.",
        min=0,
        max=100,
    )

    optimizer: str = param(
        "AdamW8bit",
        "Optimizer. AdamW8bit needs the package bitsandbytes in Musubi's Python, Prodigy prodigyopt.",
        choices=("AdamW8bit", "AdamW", "Adafactor", "Prodigy"),
    )
    optimizer_args: str = param("", 'More arguments of the optimizer: "weight_decay=0.01 betas=(0.9,0.99)".')
    lr_scheduler: str = param(
        "constant",
        "Learning-rate schedule after the warm-up. Only constant can be resumed.",
        choices=("constant", "linear", "cosine", "cosine_with_restarts", "polynomial"),
    )
    lr_warmup_steps: float = param(
        0.0, "Warm-up in optimizer steps, or as a share of all steps if below 1.", min=0.0, max=100_000.0
    )
    gradient_accumulation_steps: int = param(
        1, "Forward passes per optimizer step: a larger batch without more memory.", min=1, max=1024
    )
    gradient_checkpointing: bool = param(
        True, "Recompute activations in the backward pass: far less memory, somewhat slower."
    )
    max_grad_norm: float = param(
        1.0, "Gradients are clipped to this norm. Usually 1; 0: no clipping.", min=0.0, max=1000.0
    )
    network_dropout: float = param(
        0.0, "Probability of dropping an output of the LoRA's first matrix during training.", min=0.0, max=0.95
    )
    loraplus_lr_ratio: float = param(
        0.0, "LoRA+: how many times faster the second matrix learns. Usually 4; 0: off.", min=0.0, max=64.0
    )
    exclude_patterns: str = param(
        "", "Regular expressions, separated by spaces. Layers whose whole name matches one get no LoRA."
    )
    include_patterns: str = param(
        "",
        "Regular expressions, separated by spaces. Layers whose whole name matches one get a LoRA "
        "even if exclude_patterns matches.",
    )

    mixed_precision: str = param(
        OPEN,
        "Data type of the computation. auto: bf16, or fp16 where the model file is fp16 and must be trained so.",
        choices=(OPEN, "bf16", "fp16", "no"),
    )
    fp8_text_encoder: bool = param(
        False, "Run the text encoder in 8 bits while captions are encoded. For GPUs below about 16 GB."
    )
    attention: str = param(
        "sdpa",
        "Attention kernel. sdpa needs nothing; the others need a package in Musubi's Python.",
        choices=("sdpa", "flash_attn", "xformers"),
    )
    timestep_sampling: str = param(
        OPEN, "How the noise levels are drawn. auto: what the architecture recommends.", choices=TIMESTEP_SAMPLINGS
    )
    discrete_flow_shift: float = param(
        0.0,
        "Shift of the noise levels, if timestep_sampling is shift: above 1 draws more high ones. 0: "
        "what the architecture recommends.",
        min=0.0,
        max=100.0,
    )
    weighting_scheme: str = param(
        "none",
        "Loss weight by noise level. Usually none.",
        choices=("none", "logit_normal", "mode", "cosmap", "sigma_sqrt"),
    )

    extra_resolutions: str = param(
        "",
        "More resolutions in pixels that every image is trained at, such as: 768, 512. Each adds as "
        "many samples to an epoch. Empty: none.",
    )
    bucket_no_upscale: bool = param(True, "Never enlarge an image: small ones are trained at smaller sizes.")
    max_data_loader_n_workers: int = param(
        2, "Processes that read the caches during training. 0: the training process itself.", min=0, max=32
    )

    save_every_n_steps: int = param(
        250,
        "Save a checkpoint every n optimizer steps. A cancelled run keeps the last one.",
        min=1,
        max=1_000_000,
    )
    keep_last_n_checkpoints: int = param(0, "Number of newest checkpoints to keep. 0: all.", min=0, max=1000)
    save_state: bool = param(
        True, "With each checkpoint, also save what resume needs (optimizer, random numbers). The newest two are kept."
    )
    save_dtype: str = param("bf16", "Number format of the saved LoRA.", choices=("fp32", "fp16", "bf16"))
    sample_every_n_steps: int = param(
        0,
        "Draw sample images before the first step and every n optimizer steps. 0: none.",
        min=0,
        max=1_000_000,
    )
    sample_prompts: str = param(
        "",
        "Prompts of the sample images, one per line, with Musubi's options: --w 1024 --h 1024 --s 20 "
        "--l 4 (width, height, steps, CFG). Empty: the first image's caption.",
    )

    network_weights: str = param(
        "",
        "LoRA to start from, as Musubi writes it (not converted for ComfyUI), with the same rank. "
        "Weights only: steps count from 0. Empty: start from zero.",
    )
    base_weights: str = param(
        "",
        "LoRA to merge into the model before training, such as the training adapter of a distilled "
        "model (Turbo). Converted if Musubi would ignore it as it is. Not with fp8. Empty: none.",
    )
    base_weights_multiplier: float = param(
        1.0, "Strength at which base_weights is merged. Usually 1.", min=-10.0, max=10.0
    )
    resume: str = param(
        "",
        "State of an earlier run (NAME-step00000250-state) to continue with its optimizer and random "
        "numbers, up to max_train_steps. All settings must be as they were. Empty: start a new run.",
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        split_literal_arguments(self.optimizer_args)
        for name in ("exclude_patterns", "include_patterns"):
            _check_patterns(name, getattr(self, name))
        self._check_resolutions()
        if self.network_weights and self.resume:
            raise ValueError(
                "network_weights and resume are both set, but resume already loads the LoRA of its run. Leave one of "
                "them empty"
            )
        if self.fp8 and self.mixed_precision == "no":
            raise ValueError("fp8 is on, but mixed_precision is no. Set mixed_precision to bf16, or turn off fp8")

    @property
    def resolutions(self) -> tuple[int, ...]:
        """The resolution and the extra ones."""
        return (self.resolution, *(int(part) for part in self.extra_resolutions.split(",") if part.strip()))

    def _check_resolutions(self) -> None:
        try:
            resolutions = self.resolutions
        except ValueError:
            raise ValueError(
                "extra_resolutions must be numbers separated by commas, such as 768, 512; got "
                f"{self.extra_resolutions!r}"
            ) from None
        for extra in resolutions[1:]:
            if resolutions.count(extra) > 1 or extra < 1:
                raise ValueError(
                    "extra_resolutions must be above 0 and differ from each other and from resolution, got "
                    f"{self.extra_resolutions!r}"
                )


@dataclass(frozen=True)
class Recipe:
    """A training: a row of the table, a config without open values, and the model files and options
    by the row's names.
    """

    architecture: Architecture
    config: MusubiConfig
    models: Mapping[str, Path]
    options: Mapping[str, str]


def resolve(config: MusubiConfig, architecture: Architecture, *, dit_dtype: str = "") -> MusubiConfig:
    """Replace open values by those that the architecture recommends.

    `dit_dtype` is the model file's number format as a safetensors header has it ("BF16"); "" if
    unknown.
    """
    recommended = {**architecture.defaults, "mixed_precision": _choose_precision(architecture, dit_dtype)}
    open_values = {
        spec.name: recommended[spec.name]
        for spec in fields(config)
        if spec.name in recommended and _is_open(getattr(config, spec.name))
    }
    resolved = replace(config, **open_values)
    return replace(resolved, alpha=resolved.alpha or float(resolved.rank))


def _is_open(value: object) -> bool:
    return value in (0, OPEN) and not isinstance(value, bool)


def _choose_precision(architecture: Architecture, dit_dtype: str) -> str:
    return "fp16" if architecture.precision_follows_dit and dit_dtype == "F16" else "bf16"


def _check_patterns(name: str, patterns: str) -> None:
    for pattern in patterns.split():
        if wrong := find_syntax_error(pattern):
            raise ValueError(f"{name}: {pattern!r} is not a regular expression: {wrong}")
        if "=" in pattern:
            raise ValueError(f"{name}: {pattern!r} contains =, which Musubi Tuner cannot read. Write . instead")


def split_literal_arguments(text: str) -> list[str]:
    """Split "weight_decay=0.01, betas=(0.9,0.99)" at spaces and commas, and check each part.

    Raises:
        ValueError: a part is not name=value, or its value is not a Python literal.
    """
    parts = split_optimizer_args(text)
    parse_optimizer_args(text)
    unreadable = next((part for part in parts if part.count("=") != 1), None)
    if unreadable:
        raise ValueError(f"optimizer_args: cannot read {unreadable!r}. Musubi Tuner takes one = in each argument")
    return parts
