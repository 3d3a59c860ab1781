"""The command lines of Musubi Tuner, as lists of arguments. Its flags are written only here and in
the table of architectures.
"""

import shlex
from dataclasses import dataclass
from pathlib import Path

from .architectures import Architecture, Stage
from .config import MusubiConfig, Recipe, split_literal_arguments
from .installation import Installation


@dataclass(frozen=True)
class Command:
    """A program with its arguments. `stage` is "base_weights", "latents", "text", "train" or
    "convert".
    """

    stage: str
    argv: tuple[str, ...]

    def text(self) -> str:
        """Quote the command for a POSIX shell. Only for display: no shell ever runs it."""
        return shlex.join(self.argv)


@dataclass(frozen=True)
class TrainingFiles:
    """The files that one training reads and writes. `prompts` is None without sample images."""

    dataset_toml: Path
    output_dir: Path
    output_name: str
    prompts: Path | None = None


_OPTIMIZERS = {
    "AdamW8bit": ("adamw8bit", ()),
    "AdamW": ("adamw", ()),
    # Without these, Musubi's Adafactor ignores the given learning rate and sets its own.
    "Adafactor": ("adafactor", ("relative_step=False", "scale_parameter=False", "warmup_init=False")),
    "Prodigy": ("prodigyopt.Prodigy", ("use_bias_correction=True", "safeguard_warmup=True")),
}
_ATTENTION = {
    "sdpa": ("--sdpa",),
    "flash_attn": ("--flash_attn", "--split_attn"),
    "xformers": ("--xformers", "--split_attn"),
}
SHIFTED_SAMPLINGS = ("shift", "sigma")  # the others have their own shift, or none


def build_cache_arguments(recipe: Recipe, stage: Stage) -> tuple[str, ...]:
    """Return the arguments that decide what a cache script writes, all except the dataset."""
    fp8 = (recipe.architecture.fp8_text_encoder,) if stage == "text" and recipe.config.fp8_text_encoder else ()
    return (*_build_row_arguments(recipe, stage), *fp8, "--batch_size", "1")


def build_cache_command(recipe: Recipe, stage: Stage, *, dataset_toml: Path, installation: Installation) -> Command:
    script = recipe.architecture.cache_latents if stage == "latents" else recipe.architecture.cache_text
    return Command(
        stage,
        (
            *_build_script_call(installation, script),
            "--dataset_config",
            str(dataset_toml),
            *build_cache_arguments(recipe, stage),
        ),
    )


def build_train_command(
    recipe: Recipe, files: TrainingFiles, *, has_control: bool, steps_before: int, installation: Installation
) -> Command:
    """Return the training command. The resumed run did `steps_before` of max_train_steps; Musubi
    itself counts from 0 again.
    """
    architecture, config = recipe.architecture, recipe.config
    arguments = (
        *_build_row_arguments(recipe, "train"),
        *(architecture.arguments_with_control if has_control else architecture.arguments_without_control),
        *(argument for variant in architecture.choose_variants(recipe.options) for argument in variant.arguments),
        *("--dataset_config", str(files.dataset_toml)),
        *_build_network_arguments(architecture, config),
        *_build_optimizer_arguments(config),
        *_build_memory_arguments(architecture, config),
        *_build_timestep_arguments(config),
        *("--max_train_steps", str(config.max_train_steps - steps_before), "--seed", str(config.seed)),
        *_build_loader_arguments(config),
        *_build_saving_arguments(config, files),
        *_build_sampling_arguments(config, files),
    )
    return Command("train", (*_build_script_call(installation, architecture.train), *arguments))


def build_convert_command(
    architecture: Architecture, source: Path, target: Path, *, installation: Installation
) -> Command | None:
    """Return the call of Musubi's own script that converts its file for ComfyUI; None if no script
    is needed, or none does it right.
    """
    if architecture.conversion == "convert_lora":
        return _build_convert_lora("convert", source, target, "other", installation)
    if architecture.conversion == "hunyuan_video_1_5":
        script = "networks/convert_hunyuan_video_1_5_lora_to_comfy.py"
        return Command("convert", (*_build_script_call(installation, script), str(source), str(target)))
    return None


def build_base_weights_command(source: Path, target: Path, *, installation: Installation) -> Command:
    """Return the command that renames an adapter's tensors as Musubi does. Musubi silently merges
    nothing from a file with other names.
    """
    return _build_convert_lora("base_weights", source, target, "default", installation)


def _build_convert_lora(stage: str, source: Path, target: Path, form: str, installation: Installation) -> Command:
    return Command(
        stage,
        (
            *_build_script_call(installation, "convert_lora.py"),
            "--input",
            str(source),
            "--output",
            str(target),
            "--target",
            form,
        ),
    )


def _build_script_call(installation: Installation, script: str) -> tuple[str, str]:
    return str(installation.python), str(installation.sources / script)


def _build_row_arguments(recipe: Recipe, stage: Stage) -> tuple[str, ...]:
    """Return the model files, options and fixed arguments of this stage's script."""
    architecture, models = recipe.architecture, recipe.models
    files = [
        (file.flag, str(models[file.name]))
        for file in architecture.models
        if stage in file.stages and file.name in models
    ]
    variants = zip(architecture.options, architecture.choose_variants(recipe.options), strict=True)
    chosen = [(option.flag, variant.value or variant.name) for option, variant in variants if stage in option.stages]
    return (*(part for pair in (*files, *chosen) for part in pair), *architecture.fixed_arguments.get(stage, ()))


def _build_network_arguments(architecture: Architecture, config: MusubiConfig) -> tuple[str, ...]:
    arguments = [
        "--network_module",
        architecture.network_module,
        "--network_dim",
        str(config.rank),
        "--network_alpha",
        format_number(config.alpha),
    ]
    if config.network_dropout:
        arguments += ["--network_dropout", format_number(config.network_dropout)]
    own = [f"loraplus_lr_ratio={format_number(config.loraplus_lr_ratio)}"] if config.loraplus_lr_ratio else []
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
            format_number(config.base_weights_multiplier),
        ]
    return tuple(arguments)


def _build_optimizer_arguments(config: MusubiConfig) -> tuple[str, ...]:
    name, usual = _OPTIMIZERS[config.optimizer]
    own = split_literal_arguments(config.optimizer_args)
    given = {argument.partition("=")[0] for argument in own}
    optimizer_args = [*(argument for argument in usual if argument.partition("=")[0] not in given), *own]
    arguments = ["--optimizer_type", name, "--learning_rate", format_number(config.learning_rate)]
    if optimizer_args:
        arguments += ["--optimizer_args", *optimizer_args]
    warmup = count_warmup_steps(config)
    # Musubi refuses a warm-up before "constant".
    scheduler = "constant_with_warmup" if config.lr_scheduler == "constant" and warmup else config.lr_scheduler
    arguments += ["--lr_scheduler", scheduler, "--lr_warmup_steps", str(warmup)]
    arguments += [
        "--max_grad_norm",
        format_number(config.max_grad_norm),
        "--gradient_accumulation_steps",
        str(config.gradient_accumulation_steps),
    ]
    return tuple(arguments)


def count_warmup_steps(config: MusubiConfig) -> int:
    """Return the warm-up in steps. A setting below 1 is a share of all steps, those before a resume
    included.
    """
    setting = config.lr_warmup_steps
    return round(setting * config.max_train_steps) if setting < 1 else min(int(setting), config.max_train_steps)


def _build_memory_arguments(architecture: Architecture, config: MusubiConfig) -> tuple[str, ...]:
    arguments = [*_ATTENTION[config.attention], "--mixed_precision", config.mixed_precision]
    arguments += ["--gradient_checkpointing"] if config.gradient_checkpointing else []
    arguments += architecture.fp8_arguments if config.fp8 else []
    arguments += [architecture.fp8_text_encoder] if config.fp8_text_encoder else []
    arguments += ["--blocks_to_swap", str(config.blocks_to_swap)] if config.blocks_to_swap else []
    return tuple(arguments)


def _build_timestep_arguments(config: MusubiConfig) -> tuple[str, ...]:
    is_shifted = config.timestep_sampling in SHIFTED_SAMPLINGS and config.discrete_flow_shift
    shift = ("--discrete_flow_shift", format_number(config.discrete_flow_shift)) if is_shifted else ()
    return ("--timestep_sampling", config.timestep_sampling, *shift, "--weighting_scheme", config.weighting_scheme)


def _build_loader_arguments(config: MusubiConfig) -> tuple[str, ...]:
    workers = config.max_data_loader_n_workers
    persistent = ("--persistent_data_loader_workers",) if workers else ()  # an error without workers
    return ("--max_data_loader_n_workers", str(workers), *persistent)


def _build_saving_arguments(config: MusubiConfig, files: TrainingFiles) -> tuple[str, ...]:
    every = config.save_every_n_steps
    # One argument with "=", because a name may begin with a hyphen.
    arguments = ["--output_dir", str(files.output_dir), f"--output_name={files.output_name}"]
    arguments += ["--save_precision", config.save_dtype, "--save_every_n_steps", str(every)]
    if config.keep_last_n_checkpoints:
        # Musubi counts steps: it keeps the last N - 1 checkpoints and the new one.
        arguments += ["--save_last_n_steps", str((config.keep_last_n_checkpoints - 1) * every)]
    if config.save_state:
        # Keep two: the newest may be half written when the run is stopped.
        arguments += ["--save_state", "--save_last_n_steps_state", str(every)]
    if config.resume:
        arguments += ["--resume", config.resume]
    return tuple(arguments)


def _build_sampling_arguments(config: MusubiConfig, files: TrainingFiles) -> tuple[str, ...]:
    if files.prompts is None:
        return ()
    return (
        "--sample_prompts",
        str(files.prompts),
        "--sample_every_n_steps",
        str(config.sample_every_n_steps),
        "--sample_at_first",
    )


def format_number(value: float) -> str:
    """Format without an exponent: argparse takes "-1e-05" for a flag."""
    text = f"{value:.12f}".rstrip("0")
    return text + "0" if text.endswith(".") else text
