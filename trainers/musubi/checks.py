"""Checks before Musubi Tuner starts: files, number formats, settings and disk space that would stop
or spoil the training.
"""

import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..patterns import match_in_time
from .architectures import Architecture, ModelFile
from .commands import SHIFTED_SAMPLINGS
from .config import MusubiConfig, Recipe
from .safetensors_header import TensorFacts, main_dtype, read_header
from .state_folder import list_missing, read_steps_done

_QUANTIZED = re.compile(
    r"(\.(scale_weight|weight_scale|weight_scale_2|scale_input|input_scale|comfy_quant)|(^|\.)scaled_fp8)$"
)
_SPLIT = re.compile(r"(?P<start>.*-)(?P<number>\d{5})-of-(?P<total>\d{5})\.safetensors")
_DISTILLED = re.compile(r"(?<!de)(?<!de[_-])turbo|lightning|distill", re.IGNORECASE)  # De-Turbo is made for training
# Per image and resolution, its caption included: more than enough for all but Ideogram 4, which
# caches 13 layers of text.
_CACHE_BYTES = 12 << 20
_MARGIN_BYTES = 1 << 30
_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}


@dataclass(frozen=True)
class ModelFacts:
    """The headers of the model files that exist."""

    headers: Mapping[str, dict[str, TensorFacts]]

    @property
    def dit_dtype(self) -> str:
        """Number format as a safetensors header has it ("BF16"); "" if unknown."""
        return main_dtype(self.headers.get("dit", {}))


def check_models(
    architecture: Architecture, models: Mapping[str, Path], options: Mapping[str, str]
) -> tuple[ModelFacts, list[str]]:
    """Read the headers of the model files. Return them, and every problem with files and options,
    each with its remedy.
    """
    problems = _check_names("option", options, (option.name for option in architecture.options), architecture)
    problems += _check_names("model file", models, (file.name for file in architecture.models), architecture)
    for option in architecture.options:
        if options.get(option.name, option.default) not in option.choices:
            problems.append(f"{option.name} must be one of {', '.join(option.choices)}; got {options[option.name]!r}")
    headers: dict[str, dict[str, TensorFacts]] = {}
    for file in architecture.models:
        problems += _check_need(file, architecture, models, options)
        if file.name in models:
            headers[file.name], wrong = _check_file(file, models[file.name])
            problems += wrong
    return ModelFacts(headers), problems


def _check_names(kind: str, given: Iterable[str], known: Iterable[str], architecture: Architecture) -> list[str]:
    known = list(known)
    shown = ", ".join(known) or "none"
    return [f"{architecture.title} has no {kind} {name!r}. Known: {shown}" for name in given if name not in known]


def _check_need(
    file: ModelFile, architecture: Architecture, models: Mapping[str, Path], options: Mapping[str, str]
) -> list[str]:
    is_needed = file.required
    if file.only_with is not None:
        name, value = file.only_with
        default = next(option.default for option in architecture.options if option.name == name)
        is_needed = options.get(name, default) == value
        if file.name in models and not is_needed:
            return [
                f"{file.name} is only used with {name} {value}, but {name} is {options.get(name, default)}. Leave "
                f"out the file, or change {name}"
            ]
    return (
        [f"{file.name} is missing. Choose a file in {file.folder}: {file.help}"]
        if is_needed and file.name not in models
        else []
    )


def _check_file(file: ModelFile, path: Path) -> tuple[dict[str, TensorFacts], list[str]]:
    is_pickled = file.may_be_pickled and path.suffix.lower() in (".pt", ".pth")
    if path.suffix.lower() != ".safetensors" and not is_pickled:
        remedy = (
            "Musubi Tuner cannot train on GGUF"
            if path.suffix.lower() == ".gguf"
            else "Other formats are pickles, which can run any code"
        )
        return {}, [
            f"{file.name}: {path} is not a .safetensors file. {remedy}; use a .safetensors file in {_name_dtypes(file)}"
        ]
    if not path.is_file():
        return {}, [f"{file.name}: {path}: there is no such file. Choose one in {file.folder}"]
    if is_pickled:
        return {}, []
    try:
        header = read_header(path)
    except (ValueError, OSError) as error:
        return {}, [f"{file.name}: {error}"]
    return header, _check_header(file, path, header) + _check_parts(file, path)


def _check_header(file: ModelFile, path: Path, header: dict[str, TensorFacts]) -> list[str]:
    allows_fp8 = "F8_E4M3" in file.weight_dtypes
    quantized = next((name for name in header if _QUANTIZED.search(name)), "")
    if quantized and not allows_fp8:
        return [
            f"{file.name}: {path} is quantized for inference ({quantized}). Musubi Tuner needs the file in "
            f"{_name_dtypes(file)}"
        ]
    dtype = main_dtype(header)
    if dtype not in file.weight_dtypes:
        return [
            f"{file.name}: the weights of {path} are {dtype or 'empty'}. Musubi Tuner needs the file in "
            f"{_name_dtypes(file)}"
        ]
    return []


def _name_dtypes(file: ModelFile) -> str:
    names = {"BF16": "bf16", "F16": "fp16", "F32": "fp32", "F8_E4M3": "fp8"}
    return " or ".join(names[dtype] for dtype in file.weight_dtypes)


def _check_parts(file: ModelFile, path: Path) -> list[str]:
    match = _SPLIT.fullmatch(path.name)
    if match is None:
        return []
    parts = [
        f"{match['start']}{number:05}-of-{match['total']}.safetensors" for number in range(1, int(match["total"]) + 1)
    ]
    missing = [part for part in parts if not (path.parent / part).is_file()]
    return (
        [f"{file.name}: {path.parent}: {', '.join(missing)} is missing. The model has {int(match['total'])} parts"]
        if missing
        else []
    )


def check_settings(recipe: Recipe, *, dit_dtype: str = "", has_control: bool = False) -> list[str]:
    """Return what this architecture cannot do with these settings, each with its remedy."""
    architecture, config = recipe.architecture, recipe.config
    problems = _check_combinations(recipe, has_control=has_control)
    problems += _check_resolutions(architecture, config) + _check_precision(architecture, config, dit_dtype)
    return problems + _check_lora_files(config) + _check_resume(config)


def check_patterns(config: MusubiConfig, facts: ModelFacts) -> list[str]:
    """Return which expressions would not come to an end in Musubi Tuner, tried on the names in the
    model file.
    """
    names = [name.removesuffix(".weight") for name in facts.headers.get("dit", {})]
    problems = []
    for setting in ("exclude_patterns", "include_patterns"):
        for pattern in getattr(config, setting).split():
            try:
                match_in_time(pattern, names, setting=setting)
            except ValueError as error:
                problems.append(str(error))
    return problems


def _check_combinations(recipe: Recipe, *, has_control: bool) -> list[str]:
    architecture, config, options = recipe.architecture, recipe.config, recipe.options
    title, limit = architecture.title, architecture.find_swap_limit(options)
    takes_turns = has_control or config.attention == "flash_attn"
    rules = [
        (
            config.blocks_to_swap > limit,
            f"blocks_to_swap must be {limit} or less for {title}, got {config.blocks_to_swap}",
        ),
        (
            architecture.swap_needs_single_images
            and config.blocks_to_swap
            and config.train_batch_size > 1
            and takes_turns,
            f"{title} swaps blocks with control images or flash_attn only at train_batch_size 1, got "
            f"{config.train_batch_size}",
        ),
        (
            config.fp8 and not architecture.fp8_arguments,
            f"fp8 is on, but {title} is trained from a file that is fp8 already. Turn it off",
        ),
        (
            config.fp8_text_encoder and not architecture.has_fp8_text_encoder(options),
            f"fp8_text_encoder is on, but {title} has no 8-bit text encoder here. Turn it off",
        ),
        # Musubi adds them to the unscaled 8-bit numbers, and still reports that all are merged.
        (
            config.base_weights and (config.fp8 or not architecture.fp8_arguments),
            "base_weights cannot be merged into 8-bit weights: Musubi Tuner would lose nearly all of them. Turn off "
            "fp8; blocks_to_swap saves memory too",
        ),
        (
            config.weighting_scheme != "none" and not architecture.allows_weighting,
            f"weighting_scheme must be none for {title}, got {config.weighting_scheme}",
        ),
        (
            config.timestep_sampling == "shift" and not config.discrete_flow_shift,
            "timestep_sampling is shift, but discrete_flow_shift is 0. Set discrete_flow_shift (usually 1 to 7), or "
            "set timestep_sampling to auto",
        ),
    ]
    return [message for is_broken, message in rules if is_broken]


def _check_resolutions(architecture: Architecture, config: MusubiConfig) -> list[str]:
    step = architecture.resolution_step
    return [
        f"resolution must be a multiple of {step} for {architecture.title}, got {size}. "
        f"The nearest are {size - size % step or step} and {size - size % step + step}"
        for size in config.resolutions
        if size % step or size < step
    ]


def _check_precision(architecture: Architecture, config: MusubiConfig, dit_dtype: str) -> list[str]:
    needed = {"BF16": "bf16", "F16": "fp16"}.get(dit_dtype, "")
    if not architecture.precision_follows_dit or not needed or config.mixed_precision in (needed, "no"):
        return []
    return [
        f"mixed_precision is {config.mixed_precision}, but the model file is in {needed}, and {architecture.title} "
        "can only be trained in the file's format. Set mixed_precision to auto"
    ]


def _check_lora_files(config: MusubiConfig) -> list[str]:
    """network_weights must have Musubi's own names: Musubi ignores all others silently."""
    problems: list[str] = []
    for name in ("network_weights", "base_weights"):
        path = Path(getattr(config, name))
        if not getattr(config, name):
            continue
        try:
            header = read_header(path) if path.is_file() and path.suffix.lower() == ".safetensors" else None
        except (ValueError, OSError) as error:
            problems.append(f"{name}: {error}")
            continue
        if header is None:
            problems.append(f"{name}: {path} is not an existing .safetensors file")
        elif name == "network_weights" and not has_musubi_names(header):
            problems.append(
                f"network_weights: {path} does not have Musubi Tuner's own names: it was converted. Use the raw file "
                "in the run's folder"
            )
        elif name == "network_weights":
            problems += _check_rank(path, header, config.rank)
    return problems


def has_musubi_names(header: Mapping[str, TensorFacts]) -> bool:
    """Return whether Musubi reads all of a LoRA file: it silently ignores all other names."""
    return bool(header) and all(name.startswith("lora_unet_") for name in header)


def _check_rank(path: Path, header: Mapping[str, TensorFacts], rank: int) -> list[str]:
    ranks = {tensor.shape[0] for name, tensor in header.items() if name.endswith(".lora_down.weight") and tensor.shape}
    return (
        [
            f"network_weights: {path} has rank {', '.join(map(str, sorted(ranks)))}, but rank is {rank}. Set rank "
            "to that of the file"
        ]
        if ranks - {rank}
        else []
    )


def _check_resume(config: MusubiConfig) -> list[str]:
    if not config.resume:
        return []
    folder = Path(config.resume)
    missing = list_missing(folder)
    if missing:
        return [
            f"resume: {folder} is not a complete state of Musubi Tuner: {', '.join(missing)} is missing. Use an "
            "earlier one"
        ]
    if read_steps_done(folder) is None:
        return [
            f"resume: the name {folder.name} does not say how many steps were done. Use a folder such as "
            "NAME-step00000250-state"
        ]
    if (done := read_steps_done(folder) or 0) >= config.max_train_steps:
        return [f"resume: {done} steps are done already. Set max_train_steps above that, got {config.max_train_steps}"]
    if config.lr_scheduler != "constant":
        return [
            f"resume: Musubi Tuner cannot continue lr_scheduler {config.lr_scheduler}: it would start over. Use "
            "network_weights instead of resume, or set lr_scheduler to constant"
        ]
    return []


def collect_notices(recipe: Recipe, given: MusubiConfig) -> list[str]:
    """Return a notice for each setting that will not do what the user may expect. `given` is the
    config before its open values were filled in.
    """
    config = recipe.config
    dit = recipe.models["dit"].name
    notices: list[str] = []
    if _DISTILLED.search(dit) and not config.base_weights:
        notices.append(
            f"dit {dit} seems to be a distilled model, which training makes worse. Train the base model, or set "
            "base_weights to a training adapter"
        )
    is_own_shift = given.discrete_flow_shift not in (0, recipe.architecture.defaults["discrete_flow_shift"])
    if is_own_shift and config.timestep_sampling not in SHIFTED_SAMPLINGS:
        notices.append(
            f"discrete_flow_shift {given.discrete_flow_shift:g} changes nothing with timestep_sampling "
            f"{config.timestep_sampling}"
        )
    if config.sample_prompts.strip() and not config.sample_every_n_steps:
        notices.append("sample_prompts has no effect: sample_every_n_steps is 0")
    if config.base_weights_multiplier != 1 and not config.base_weights:
        notices.append("base_weights_multiplier changes nothing without base_weights")
    return notices


def check_disk_space(
    config: MusubiConfig,
    facts: ModelFacts,
    *,
    num_images: int,
    cache_root: Path,
    run_path: Path,
    caches_are_complete: bool,
    steps_before: int = 0,
) -> list[str]:
    """Estimate whether the caches and checkpoints fit on their drives."""
    caches = 0 if caches_are_complete else num_images * _CACHE_BYTES
    needed = {
        cache_root: caches,
        run_path: estimate_checkpoint_bytes(config, facts, num_steps=config.max_train_steps - steps_before),
    }
    by_drive: dict[int, tuple[Path, int]] = {}
    for path, num_bytes in needed.items():
        folder = _find_existing_folder(path)
        device = folder.stat().st_dev
        by_drive[device] = (folder, by_drive.get(device, (folder, 0))[1] + num_bytes)
    return [
        f"{folder}: caches and checkpoints need about {_format_gigabytes(num_bytes + _MARGIN_BYTES)}, but "
        f"{_format_gigabytes(free)} are free. "
        "Free some space, or save fewer checkpoints (save_every_n_steps, keep_last_n_checkpoints)"
        for folder, num_bytes in by_drive.values()
        if (free := shutil.disk_usage(folder).free) < num_bytes + _MARGIN_BYTES
    ]


def estimate_checkpoint_bytes(config: MusubiConfig, facts: ModelFacts, *, num_steps: int) -> int:
    """Return the bytes of all checkpoints and states that exist at the same time. All of the
    model's matrices are counted, since each might get a LoRA.
    """
    matrices = [
        tensor.shape
        for tensor in facts.headers.get("dit", {}).values()
        if len(tensor.shape) == 2 and min(tensor.shape) >= config.rank
    ]
    num_weights = config.rank * sum(rows + columns for rows, columns in matrices)
    num_checkpoints = num_steps // config.save_every_n_steps + 1
    if config.keep_last_n_checkpoints:
        num_checkpoints = min(num_checkpoints, config.keep_last_n_checkpoints + 1)
    optimizer_bytes = 2 if config.optimizer == "AdamW8bit" else 8
    num_states = min(3, num_checkpoints) if config.save_state else 0
    return num_weights * (num_checkpoints * _BYTES[config.save_dtype] + num_states * (4 + optimizer_bytes))


def _find_existing_folder(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _format_gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB"
