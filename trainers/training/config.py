"""The settings that every model family has: LoRA, optimizer, steps, batches, files, samples.

A family adds more in a subclass. DatasetConfig has the images, BucketConfig how they are cropped.
"""

from dataclasses import dataclass

from ..config import check_ranges, param
from .layer_values import read_layer_values
from .optimizer_table import IMPORT_PATH, OPTIMIZERS, list_usual_learning_rates

ADAPTERS = {"lora": "LoRA", "dora": "DoRA", "loha": "LoHa", "lokr": "LoKr"}  # and what they are called in texts
AUTO_BLOCKS, MAX_BLOCKS = -1, 1000  # of blocks_to_swap
MAX_TIMESTEP = 1000  # pure noise
MAX_RANK, MAX_LEARNING_RATE = 1024, 10.0
DEFAULT_SAMPLER, AUTO_SCHEDULER = "euler", "auto"


@dataclass(frozen=True)
class TrainingConfig:
    """Each field is a command-line flag and a node input. The defaults train a usable LoRA from 10
    to 200 images.
    """

    rank: int = param(16, "Rank of the LoRA matrices (kohya: network_dim). Usually 8 to 32.", min=1, max=MAX_RANK)
    alpha: float = param(
        16.0,
        "The LoRA acts with strength alpha / rank (kohya: network_alpha). Usually rank or half of it.",
        min=1e-3,
        max=4096,
    )
    learning_rate: float = param(
        1e-4,
        f"Peak learning rate of the model's LoRA. Usually {list_usual_learning_rates()}.",
        min=0.0,
        max=MAX_LEARNING_RATE,
    )
    max_train_steps: int = param(
        1500,
        "Optimizer steps. Usually 1000 to 4000 at one sample per step. Ignored if num_train_epochs is set.",
        min=1,
        max=1_000_000,
    )
    train_batch_size: int = param(1, "Images per forward pass and GPU. Usually 1 to 4.", min=1, max=256)
    seed: int = param(
        0,
        "Seed of every random draw. The same seed, settings, images and machine give the same LoRA.",
        min=0,
        max=2**63 - 1,
    )
    optimizer: str = param(
        "AdamW",
        "Optimizer. AdamW8bit is AdamW with its states in 8 bits; Lion needs the package "
        "lion-pytorch, Prodigy prodigyopt, AdamWScheduleFree schedulefree, ProdigyPlusScheduleFree "
        "prodigy-plus-schedule-free, CAME came-pytorch. Those that are ScheduleFree take lr_scheduler constant only; "
        "ProdigyPlusScheduleFree learns better with max_grad_norm 0.",
        choices=tuple(OPTIMIZERS),
        pattern=IMPORT_PATH,
    )
    mixed_precision: str = param(
        "auto",
        "Data type of the computation. auto: bf16 if the GPU has it; no (float32) on a CPU, a GTX 16 "
        "card or a Mac before macOS 14, where fp16 gives wrong numbers; else fp16. In ComfyUI, a CPU "
        "trains a bf16 model in bf16.",
        choices=("auto", "bf16", "fp16", "no"),
    )
    lora_dropout: float = param(
        0.0, "Probability of dropping an input of the LoRA during training. Usually 0 to 0.1.", min=0.0, max=0.95
    )
    network_weights: str = param(
        "",
        "LoRA file to start from (kohya, PEFT, diffusers or ComfyUI names), of at most this rank. Its "
        "layers are trained too. Empty: start from zero.",
    )
    num_train_epochs: int = param(
        0,
        "Passes over the dataset, repeats included. Usually 10 to 100. 0: max_train_steps decides.",
        min=0,
        max=100_000,
    )
    gradient_accumulation_steps: int = param(
        1, "Forward passes per optimizer step: a larger batch without more memory.", min=1, max=1024
    )
    gradient_checkpointing: bool = param(
        True, "Recompute activations in the backward pass: far less memory, about 25 % slower."
    )
    max_grad_norm: float = param(
        1.0, "Gradients are clipped to this norm. Usually 1; 0: no clipping.", min=0.0, max=1000.0
    )
    lr_scheduler: str = param(
        "cosine",
        "Learning-rate schedule after the warm-up, by diffusers' names. rex stays high for longer than linear; "
        "warmup_stable_decay (as a cosine) and constant_with_cooldown (as 1 - sqrt) fall in the last lr_decay_steps "
        "only.",
        choices=(
            "constant",
            "linear",
            "cosine",
            "cosine_with_restarts",
            "polynomial",
            "rex",
            "warmup_stable_decay",
            "constant_with_cooldown",
        ),
    )
    lr_warmup_steps: float = param(
        0.05,
        "Warm-up in optimizer steps, or as a share of all steps if below 1. Usually 0 to 0.1.",
        min=0.0,
        max=100_000.0,
    )
    lr_num_cycles: int = param(1, "Number of cycles of cosine_with_restarts.", min=1, max=100)
    weight_decay: float = param(0.01, "Weight decay of the optimizer. Usually 0.01.", min=0.0, max=1.0)
    optimizer_args: str = param(
        "",
        'More arguments of the optimizer, with spaces or commas between them, as in sd-scripts: "betas=(0.9,0.99) '
        'd_coef=2".',
    )
    caption_dropout: float = param(
        0.05, "Share of samples that are trained with an empty caption. Usually 0 to 0.1.", min=0.0, max=1.0
    )
    save_every_n_steps: int = param(
        0, "Save a checkpoint every n optimizer steps. Usually 250 to 500; 0: none.", min=0, max=1_000_000
    )
    save_every_n_epochs: int = param(0, "Save a checkpoint every n epochs. 0: none.", min=0, max=100_000)
    save_dtype: str = param(
        "bf16", "Number format of the saved LoRA. Training itself is in float32.", choices=("fp32", "fp16", "bf16")
    )
    sample_every_n_steps: int = param(
        0,
        "Draw sample images before the first step and every n optimizer steps. Usually 250; 0: none.",
        min=0,
        max=1_000_000,
    )
    sample_prompt: str = param(
        "",
        "Prompts of the sample images, one per line or with vertical bars between them; the word trigger in curly "
        "brackets becomes the trigger word. A line can have sd-scripts' options: --n blurry --w 832 --h 1216 --d 7 "
        "--s 28 --l 6. Empty: the first image's caption. Edit models see the first image's control images; with the "
        "option --ci, which names an image, those of that image.",
    )
    # 0.1, as in OneTrainer: with 0 nothing constrains the LoRA where masks are black, and its
    # images fall apart there.
    unmasked_weight: float = param(
        0.1,
        "For images with a mask: loss weight where the mask is black. Usually 0.1; 0: nothing is learned there.",
        min=0.0,
        max=1.0,
    )
    normalize_masked_loss: bool = param(
        False,
        "For images with a mask: divide the loss by the mask's mean, so that a small subject counts "
        "as much as a whole image.",
    )
    prior_loss_weight: float = param(
        0.0,
        "Prior preservation without extra images: keeps the LoRA close to what the base model "
        "predicts for class_prompt. Usually 0.5. It looks at every fifth sample: steps "
        "take 1.3 times as long on average, and no more memory. 0: off.",
        min=0.0,
        max=100.0,
    )
    class_prompt: str = param(
        "",
        "What prior_loss_weight preserves, such as: a photo of a dog. Put vertical bars between "
        "several prompts; each sample draws one. Empty: each image's own caption without the trigger "
        "word.",
    )

    save_state_every_n_minutes: float = param(
        3.0,
        "Save everything that the run needs to go on: after a crash at most this much is lost. The last two are kept. "
        "It takes less than 1 % of the time. 0: only when the run ends or stops.",
        min=0.0,
        max=10_000.0,
    )
    ema_decay: float = param(
        0.0,
        "Also keep the moving average of the LoRA over the steps, and save it beside the LoRA as NAME-ema. Usually "
        "0.99 to 0.999; 0: off.",
        min=0.0,
        max=0.99999,
    )
    step_down_on_oom: bool = param(
        False,
        "When memory runs out, go on with a setting that needs less and trains the same: gradient checkpointing, "
        "then half the images per forward pass, then weights in main memory (blocks_to_swap).",
    )
    validation_share: float = param(
        0.0,
        "Share of the images that is held out: never trained on, only used to measure what is learned. Usually 0.1 to "
        "0.2, from 20 images on. 0: the same fixed draws of training images are measured, the stable loss.",
        min=0.0,
        max=0.5,
    )
    validate_every_n_steps: int = param(
        0,
        "Measure the loss on the same images, noise and timesteps every n optimizer steps, for at most 3 % of the "
        "run's computing. 0: as often as that allows, at most 25 times; -1: never.",
        min=-1,
        max=1_000_000,
    )
    save_best: bool = param(
        True, "Also keep the best LoRA by validation, as NAME-best in the run's folder. It may be of an earlier step."
    )
    early_stop: bool = param(
        False,
        "End the run when the validation has found no better step for 40 % of it, as if you had clicked Finish now. "
        "Useful for runs that are far too long; with a falling learning rate the last steps are often the best.",
    )
    sample_negative_prompt: str = param("", "What the sample images should not show. Usually empty.")
    sample_seeds: str = param("0, 1", "Seeds of the sample images, with commas between them: one image each.")
    sample_steps: int = param(20, "Sampler steps of a sample image. Usually 20 to 30.", min=1, max=200)
    sample_guidance_scale: float = param(
        5.0,
        "Guidance of the sample images (CFG). Usually 4 to 7; 1: none. Models that read a guidance, such as FLUX.1 "
        "dev, get it as FluxGuidance gives it, without CFG: usually 2 to 4.",
        min=0.0,
        max=30.0,
    )
    sample_size: str = param(
        "", "Width x height of the sample images, such as 832x1216. Empty: the size that most images have."
    )

    blocks_to_swap: int = param(
        AUTO_BLOCKS,
        "Blocks of the model whose weights stay in main memory and come to the GPU one by one: less memory, slower. It "
        "turns gradient_checkpointing on. SDXL has 86, of which 70 have most of the weights. -1: as few as it takes to "
        "fit; 0: none.",
        min=AUTO_BLOCKS,
        max=MAX_BLOCKS,
    )

    lr_decay_steps: float = param(
        0.2,
        "Steps in which warmup_stable_decay and constant_with_cooldown fall, at the end of the run, or their share of "
        "all steps if below 1. Usually 0.1 to 0.2.",
        min=0.0,
        max=100_000.0,
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
    noise_offset: float = param(
        0.0,
        "Random brightness added to the noise. 0.03 to 0.1 helps very dark or bright styles; flow models seldom need "
        "it. 0: off.",
        min=0.0,
        max=1.0,
    )

    loss_type: str = param(
        "l2",
        "What an error costs. l2: its square; l1: its size; huber and smooth_l1: the square for small errors and the "
        "size for large ones, so that outliers in the images count less.",
        choices=("l2", "l1", "huber", "smooth_l1"),
    )
    huber_c: float = param(
        0.1, "Where huber and smooth_l1 change from square to size: lower is earlier.", min=1e-4, max=1.0
    )
    huber_schedule: str = param(
        "snr",
        "How huber_c depends on the noise level. constant: not; exponential and snr: 1 without noise, huber_c at "
        "pure noise.",
        choices=("constant", "exponential", "snr"),
    )
    multires_noise_iterations: int = param(
        0,
        "Levels of coarser noise that are added, each 2 to 4 times as coarse as the one before: learns very dark, "
        "bright and large shapes better. Usually 6 to 10; 0: off.",
        min=0,
        max=20,
    )
    multires_noise_discount: float = param(
        0.3,
        "How much each level of multires_noise_iterations counts, relative to the one before. Usually 0.1 to 0.3.",
        min=0.0,
        max=1.0,
    )
    ip_noise_gamma: float = param(
        0.0,
        "Input perturbation (Ning et al. 2023): so much more noise in what the model sees, but not in what it should "
        "find. Usually 0.05 to 0.1; 0: off.",
        min=0.0,
        max=1.0,
    )
    immiscible_noise: int = param(
        0,
        "Draws of noise per sample, of which the nearest to the image is used (immiscible diffusion, Li et al. 2024). "
        "Usually 4; 0: off.",
        min=0,
        max=1024,
    )

    adapter: str = param(
        "lora",
        "What is trained of each layer. lora: works everywhere. dora: LoRA that learns the length of each column of a "
        "weight separately; a step takes longer. loha, lokr: products of small matrices, by LyCORIS; lokr gives the "
        "smallest files. ComfyUI and Forge load all four.",
        choices=tuple(ADAPTERS),
    )
    lokr_factor: int = param(
        -1,
        "For adapter lokr: the smaller factor of each side of a weight (LyCORIS: factor). Usually 4 to 16: the larger, "
        "the smaller the file. -1: both factors as close to each other as possible, the smallest file.",
        min=-1,
        max=1024,
    )
    lokr_decompose_both: bool = param(
        False,
        "For adapter lokr: the smaller of its two matrices too is a product of low rank (LyCORIS: decompose_both).",
    )
    lokr_full_matrix: bool = param(
        False,
        "For adapter lokr: both matrices are trained whole; rank and alpha have no effect (LyCORIS: full_matrix).",
    )

    use_rslora: bool = param(
        False,
        "Rank-stabilized LoRA: strength alpha / sqrt(rank) instead of alpha / rank, for ranks above 64. alpha then is "
        "usually 1 to 8. The file has the alpha that acts the same in every program.",
    )
    rank_dropout: float = param(
        0.0,
        "Probability of dropping a rank of a LoRA or DoRA in a step, for each image (sd-scripts: rank_dropout). "
        "Usually 0.1 to 0.3 against overfitting; 0: off.",
        min=0.0,
        max=0.95,
    )
    module_dropout: float = param(
        0.0,
        "Probability of leaving out the whole adapter of a layer in a step (sd-scripts: module_dropout). Usually 0.1 "
        "to 0.3 against overfitting; 0: off.",
        min=0.0,
        max=0.95,
    )
    scale_weight_norms: float = param(
        0.0,
        "After every step, the change of each layer's weight is scaled down to this norm (sd-scripts: "
        "scale_weight_norms, max-norm). Usually 1, against burnt images and for LoRAs that are combined; 0: off.",
        min=0.0,
        max=1000.0,
    )

    network_reg_dims: str = param(
        "",
        "Ranks of single layers, as pairs of a regular expression and a rank (sd-scripts: network_reg_dims, PEFT: "
        "rank_pattern), such as: up_blocks.0=32, mid_block=8, .*ff.*=4. An expression matches any part of a module's "
        "name; the first that matches counts. alpha is in the same ratio to each rank. Empty: all have rank.",
    )
    network_reg_lrs: str = param(
        "",
        "Peak learning rates of single layers, written as in network_reg_dims (sd-scripts: network_reg_lrs), such as: "
        "up_blocks.0=2e-4, mid_block=5e-5. Empty: all have learning_rate.",
    )

    loraplus_lr_ratio: float = param(
        0.0,
        "LoRA+ (Hayou et al. 2024): the up matrices of a LoRA or DoRA learn at so many times the learning rate of the "
        "down matrices (sd-scripts: loraplus_lr_ratio). Usually 4 to 16, with a lower learning_rate; 0: the same rate.",
        min=0.0,
        max=1000.0,
    )

    init_lora_weights: str = param(
        "kaiming",
        "First values of a LoRA's down matrices; up starts at zero, so that nothing changes at first. kaiming: random. "
        "svd: the directions of its inputs that each frozen weight answers to most, its top right singular vectors; "
        "takes seconds to minutes at the start.",
        choices=("kaiming", "svd"),
    )

    sample_sampler: str = param(
        DEFAULT_SAMPLER,
        "Sampler of the sample images in ComfyUI, as in KSampler. Usually that of your own images. The command sdxl "
        "has no ComfyUI, and draws by DDIM.",
    )
    sample_scheduler: str = param(
        AUTO_SCHEDULER,
        "Noise schedule of the sample images in ComfyUI, as in KSampler. auto: normal for SDXL, simple for other "
        "models.",
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.init_lora_weights == "svd" and self.adapter != "lora":
            raise ValueError(f"init_lora_weights svd is for adapter lora, not for {self.adapter}. Set it to kaiming")
        _check_layer_values(self)
        if self.loraplus_lr_ratio and self.adapter not in ("lora", "dora"):
            raise ValueError(
                f"loraplus_lr_ratio is for adapter lora and dora, which have up matrices, not for {self.adapter}. "
                "Set it to 0"
            )
        if self.timesteps[0] >= self.timesteps[1]:
            raise ValueError(f"max_timestep must be above min_timestep {self.min_timestep}, got {self.max_timestep}")
        if self.lokr_factor == 0:
            raise ValueError("lokr_factor must be -1, or 1 or more, got 0")
        if self.rank_dropout and self.adapter not in ("lora", "dora"):
            raise ValueError(
                f"rank_dropout is for adapter lora and dora, not for {self.adapter}. Set it to 0, or use module_dropout"
            )

    @property
    def timesteps(self) -> tuple[int, int]:
        """The lowest and the highest."""
        return self.min_timestep, self.max_timestep or MAX_TIMESTEP


def _check_layer_values(config: TrainingConfig) -> None:
    if (config.network_reg_dims or config.network_reg_lrs) and not config.learning_rate:
        raise ValueError("network_reg_dims and network_reg_lrs need a learning_rate above 0: they are for its layers")
    for rank in read_layer_values(config.network_reg_dims, setting="network_reg_dims").values():
        if not (rank.is_integer() and rank <= MAX_RANK):
            raise ValueError(f"network_reg_dims: a rank must be a whole number from 1 to {MAX_RANK}, got {rank:g}")
    for rate in read_layer_values(config.network_reg_lrs, setting="network_reg_lrs").values():
        if rate > MAX_LEARNING_RATE:
            raise ValueError(f"network_reg_lrs: a learning rate must be at most {MAX_LEARNING_RATE:g}, got {rate:g}")
