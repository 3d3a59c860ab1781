"""The command lines of Musubi Tuner, as lists of arguments: the only place besides the table where
its flags are written.
"""

import shlex
from dataclasses import dataclass
from pathlib import Path

from .architectures import Architecture, Stage
from .config import MusubiConfig, Recipe, literal_arguments
from .installation import Installation


@dataclass(frozen=True)
class Command:
    """A program and its arguments. `stage`: "base_weights", "latents", "text", "train" or
    "convert".
    """

    stage: str
    argv: tuple[str, ...]

    def text(self) -> str:
        """Quoted for a POSIX shell, for showing; it is never run through one."""
        return shlex.join(self.argv)


@dataclass(frozen=True)
class TrainingFiles:
    """Where one training reads and writes. `prompts` None: no sample images."""

    dataset_toml: Path
    output_dir: Path
    output_name: str
    prompts: Path | None = None


_OPTIMIZERS = {
    "AdamW8bit": ("adamw8bit", ()),
    "AdamW": ("adamw", ()),
    # Without these Musubi's Adafactor sets its own learning rate and ignores the one that it is
    # given.
    "Adafactor": ("adafactor", ("relative_step=False", "scale_parameter=False", "warmup_init=False")),
    "Prodigy": ("prodigyopt.Prodigy", ("use_bias_correction=True", "safeguard_warmup=True")),
}
_ATTENTION = {
    "sdpa": ("--sdpa",),
    "flash_attn": ("--flash_attn", "--split_attn"),
    "xformers": ("--xformers", "--split_attn"),
}
SHIFTED_SAMPLINGS = ("shift", "sigma")  # the others have a shift of their own, or none


def cache_arguments(recipe: Recipe, stage: Stage) -> tuple[str, ...]:
    """Everything but the dataset that decides what a cache script writes."""
    fp8 = (recipe.architecture.fp8_text_encoder,) if stage == "text" and recipe.config.fp8_text_encoder else ()
    return (*_row_arguments(recipe, stage), *fp8, "--batch_size", "1")


def cache_command(recipe: Recipe, stage: Stage, *, dataset_toml: Path, installation: Installation) -> Command:
    script = recipe.architecture.cache_latents if stage == "latents" else recipe.architecture.cache_text
    return Command(
        stage, (*_start(installation, script), "--dataset_config", str(dataset_toml), *cache_arguments(recipe, stage))
    )


def train_command(
    recipe: Recipe, files: TrainingFiles, *, has_control: bool, steps_before: int, installation: Installation
) -> Command:
    """Of the config's max_train_steps, `steps_before` were done by the run that is resumed: Musubi
    counts from 0.
    """
    architecture, config = recipe.architecture, recipe.config
    arguments = (
        *_row_arguments(recipe, "train"),
        *(architecture.arguments_with_control if has_control else architecture.arguments_without_control),
        *(argument for variant in architecture.chosen(recipe.options) for argument in variant.arguments),
        *("--dataset_config", str(files.dataset_toml)),
        *_network_arguments(architecture, config),
        *_optimizer_arguments(config),
        *_memory_arguments(architecture, config),
        *_timestep_arguments(config),
        *("--max_train_steps", str(config.max_train_steps - steps_before), "--seed", str(config.seed)),
        *_loader_arguments(config),
        *_saving_arguments(config, files),
        *_sampling_arguments(config, files),
    )
    return Command("train", (*_start(installation, architecture.train), *arguments))


def convert_command(
    architecture: Architecture, source: Path, target: Path, *, installation: Installation
) -> Command | None:
    """Musubi's own script that makes its file one for ComfyUI; None where none is needed, or none
    does it right.
    """
    if architecture.conversion == "convert_lora":
        return _convert_lora("convert", source, target, "other", installation)
    if architecture.conversion == "hunyuan_video_1_5":
        script = "networks/convert_hunyuan_video_1_5_lora_to_comfy.py"
        return Command("convert", (*_start(installation, script), str(source), str(target)))
    return None


def base_weights_command(source: Path, target: Path, *, installation: Installation) -> Command:
    """Gives an adapter Musubi's own names, without which Musubi merges nothing of it and says
    nothing.
    """
    return _convert_lora("base_weights", source, target, "default", installation)


def _convert_lora(stage: str, source: Path, target: Path, form: str, installation: Installation) -> Command:
    return Command(
        stage,
        (*_start(installation, "convert_lora.py"), "--input", str(source), "--output", str(target), "--target", form),
    )


def _start(installation: Installation, script: str) -> tuple[str, str]:
    return str(installation.python), str(installation.sources / script)


def _row_arguments(recipe: Recipe, stage: Stage) -> tuple[str, ...]:
    """Model files, options and fixed arguments that the script of this stage has."""
    architecture, models = recipe.architecture, recipe.models
    files = [
        (file.flag, str(models[file.name]))
        for file in architecture.models
        if stage in file.stages and file.name in models
    ]
    variants = zip(architecture.options, architecture.chosen(recipe.options), strict=True)
    chosen = [(option.flag, variant.value or variant.name) for option, variant in variants if stage in option.stages]
    return (*(part for pair in (*files, *chosen) for part in pair), *architecture.fixed_arguments.get(stage, ()))


def _network_arguments(architecture: Architecture, config: MusubiConfig) -> tuple[str, ...]:
    arguments = [
        "--network_module",
        architecture.network_module,
        "--network_dim",
        str(config.rank),
        "--network_alpha",
        number_text(config.alpha),
    ]
    if config.network_dropout:
        arguments += ["--network_dropout", number_text(config.network_dropout)]
    own = [f"loraplus_lr_ratio={number_text(config.loraplus_lr_ratio)}"] if config.loraplus_lr_ratio else []
    if config.exclude_patterns.strip():
        own.append(f"exclude_patterns={[*config.exclude_patterns.split(), *architecture.excluded_by_default]}")
    if config.include_patterns.strip():
        own.append(f"include_patterns={config.include_patterns.split()}")
    if own:
        arguments += ["--network_args", *own]
    if config.network_weights:
        arguments += ["--network_weights", config.network_weights]
    if config.base_weights:
        arguments += [
            "--base_weights",
            config.base_weights,
            "--base_weights_multiplier",
            number_text(config.base_weights_multiplier),
        ]
    return tuple(arguments)


def _optimizer_arguments(config: MusubiConfig) -> tuple[str, ...]:
    name, usual = _OPTIMIZERS[config.optimizer]
    own = literal_arguments(config.optimizer_args)
    given = {argument.partition("=")[0] for argument in own}
    optimizer_args = [*(argument for argument in usual if argument.partition("=")[0] not in given), *own]
    arguments = ["--optimizer_type", name, "--learning_rate", number_text(config.learning_rate)]
    if optimizer_args:
        arguments += ["--optimizer_args", *optimizer_args]
    warmup = warmup_steps(config)
    # Musubi refuses a warm-up before "constant".
    scheduler = "constant_with_warmup" if config.lr_scheduler == "constant" and warmup else config.lr_scheduler
    arguments += ["--lr_scheduler", scheduler, "--lr_warmup_steps", str(warmup)]
    arguments += [
        "--max_grad_norm",
        number_text(config.max_grad_norm),
        "--gradient_accumulation_steps",
        str(config.gradient_accumulation_steps),
    ]
    return tuple(arguments)


def warmup_steps(config: MusubiConfig) -> int:
    """Steps, or below 1 the share of all steps; of all, also when a run is resumed."""
    setting = config.lr_warmup_steps
    return round(setting * config.max_train_steps) if setting < 1 else min(int(setting), config.max_train_steps)


def _memory_arguments(architecture: Architecture, config: MusubiConfig) -> tuple[str, ...]:
    arguments = [*_ATTENTION[config.attention], "--mixed_precision", config.mixed_precision]
    arguments += ["--gradient_checkpointing"] if config.gradient_checkpointing else []
    arguments += architecture.fp8_arguments if config.fp8 else []
    arguments += [architecture.fp8_text_encoder] if config.fp8_text_encoder else []
    arguments += ["--blocks_to_swap", str(config.blocks_to_swap)] if config.blocks_to_swap else []
    return tuple(arguments)


def _timestep_arguments(config: MusubiConfig) -> tuple[str, ...]:
    is_shifted = config.timestep_sampling in SHIFTED_SAMPLINGS and config.discrete_flow_shift
    shift = ("--discrete_flow_shift", number_text(config.discrete_flow_shift)) if is_shifted else ()
    return ("--timestep_sampling", config.timestep_sampling, *shift, "--weighting_scheme", config.weighting_scheme)


def _loader_arguments(config: MusubiConfig) -> tuple[str, ...]:
    workers = config.max_data_loader_n_workers
    persistent = ("--persistent_data_loader_workers",) if workers else ()  # an error without workers
    return ("--max_data_loader_n_workers", str(workers), *persistent)


def _saving_arguments(config: MusubiConfig, files: TrainingFiles) -> tuple[str, ...]:
    every = config.save_every_n_steps
    # One argument with "=", because a name may begin with a hyphen.
    arguments = ["--output_dir", str(files.output_dir), f"--output_name={files.output_name}"]
    arguments += ["--save_precision", config.save_dtype, "--save_every_n_steps", str(every)]
    if config.keep_last_n_checkpoints:
        # Musubi counts in steps: those of the last N - 1 checkpoints stay, and the new one.
        arguments += ["--save_last_n_steps", str((config.keep_last_n_checkpoints - 1) * every)]
    if config.save_state:
        # Two stay: the newest may be half written when the run is stopped.
        arguments += ["--save_state", "--save_last_n_steps_state", str(every)]
    if config.resume:
        arguments += ["--resume", config.resume]
    return tuple(arguments)


def _sampling_arguments(config: MusubiConfig, files: TrainingFiles) -> tuple[str, ...]:
    if files.prompts is None:
        return ()
    return (
        "--sample_prompts",
        str(files.prompts),
        "--sample_every_n_steps",
        str(config.sample_every_n_steps),
        "--sample_at_first",
    )


def number_text(value: float) -> str:
    """Without an exponent: argparse takes "-1e-05" for a flag."""
    text = f"{value:.12f}".rstrip("0")
    return text + "0" if text.endswith(".") else text
