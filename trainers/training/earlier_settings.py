"""The settings that a LoRA was trained with, read from its file's header: all of them for a LoRA of
ours, and those of kohya's `ss_*` that have a counterpart here.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..config import from_mapping, list_field_names, select_settings
from .config import ADAPTERS
from .optimizer_table import OPTIMIZERS

OWN_KEY = "lora_trainer_config"
# The header has no folders: of a file only its name is known.
_FILES = ("network_weights",)


@dataclass(frozen=True)
class EarlierSettings:
    """Values by the names of settings here, and what could not be taken, in words."""

    name: str  # of the file
    maker: str
    values: dict[str, Any]
    left_out: list[str] = field(default_factory=list)

    def text(self) -> str:
        lines = [f"{self.name}: {len(self.values)} settings, written by {self.maker}"]
        lines += [f"  {name}: {_show(value)}" for name, value in self.values.items()]
        if self.left_out:
            lines.append("Not taken:")
            lines += [f"  {entry}" for entry in self.left_out]
        return "\n".join(lines)


def read_earlier_settings(path: Path, configs: Sequence[type]) -> EarlierSettings:
    """Read the settings of these configs from the header of a LoRA file.

    Raises:
        ValueError: it is no safetensors file, or has no settings in it.
    """
    metadata = _read_metadata(path)
    if OWN_KEY in metadata:
        found, left_out = _read_own(metadata, path), []
        maker = "this trainer"
    elif "ss_network_dim" in metadata:
        found, left_out = _read_kohya(metadata)
        maker = "sd-scripts, or a trainer with its names"
    else:
        raise ValueError(f"{path}: no settings in its header, neither ours nor those of sd-scripts")
    trigger = metadata.get("modelspec.trigger_phrase")
    if trigger:
        found["trigger_word"] = trigger
    values, problems = _choose_usable(found, configs)
    return EarlierSettings(path.name, maker, values, left_out + problems)


def _read_metadata(path: Path) -> Mapping[str, str]:
    try:
        with safe_open(path, "np") as file:
            return file.metadata() or {}
    except FileNotFoundError as error:
        raise ValueError(f"{path}: there is no such file") from error
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a .safetensors file that can be read ({error})") from error


def _choose_usable(found: dict[str, Any], configs: Sequence[type]) -> tuple[dict[str, Any], list[str]]:
    """Return the settings that the configs take, and why the others cannot be taken."""
    values, problems = {}, []
    for name, value in found.items():
        config = next((config for config in configs if name in list_field_names(config)), None)
        problem = _find_problem(name, value, config, found)
        if problem:
            problems.append(problem)
        else:
            values[name] = value
    return values, problems


def _find_problem(name: str, value: Any, config: type | None, found: dict[str, Any]) -> str:
    """Return why a setting cannot be taken, "" if it can."""
    if name == "trigger_word" and config is None:
        return f"trigger word {value!r}: it is set where the images are loaded"
    if config is None:
        return f"{name} {_show(value)}: there is no such setting here"
    if name in _FILES and value:
        return f"{name} {_show(value)}: only the name of the file is known, not its folder"
    others = {other: value for other, value in select_settings(config, found).items() if other not in _FILES}
    if _fits(config, others) is None:
        return ""
    return _fits(config, {name: value}) or ""  # which of them it is


def _fits(config: type, values: dict[str, Any]) -> str | None:
    """Return what is wrong with the values, None if nothing is."""
    required = {"images": "."} if "images" in list_field_names(config) else {}
    try:
        from_mapping(config, {**required, **values}, source="the LoRA")
    except ValueError as error:
        return str(error)
    return None


def _show(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text or "empty"


def _read_own(metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(metadata[OWN_KEY])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: the settings in its header cannot be read ({error})") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: the settings in its header are no table")
    return {name: value for name, value in settings.items() if value is not None}


# --- kohya ---


def _read_bool(text: str) -> bool:
    return text.lower() in ("true", "1")


def _read_whole(text: str) -> int:
    return int(float(text))


def _read_resolution(text: str) -> int:
    """Kohya writes "(1024, 1024)", "1024,1024" or "1024"."""
    sides = [int(side) for side in re.findall(r"\d+", text)]
    if not sides or len(set(sides)) > 1:
        raise ValueError(f"{text} is no square")
    return sides[0]


def _read_resize_mode(text: str) -> str:
    return "random_crop" if _read_bool(text) else "bucket"


def _read_color_aug(text: str) -> float:
    """As strong as sd-scripts' own, which has no strength."""
    return 0.1 if _read_bool(text) else 0.0


def _read_snr_weighting(text: str) -> str:
    return "debiased" if _read_bool(text) else "min_snr"


Reader = Callable[[str], Any]
# The name here, and how the text is read.
_KOHYA: dict[str, tuple[str, Reader]] = {
    "ss_network_dim": ("rank", _read_whole),
    "ss_network_alpha": ("alpha", float),
    "ss_learning_rate": ("learning_rate", float),
    "ss_unet_lr": ("learning_rate", float),  # it counts for the UNet where both are given
    "ss_max_train_steps": ("max_train_steps", _read_whole),
    "ss_batch_size_per_device": ("train_batch_size", _read_whole),
    "ss_gradient_accumulation_steps": ("gradient_accumulation_steps", _read_whole),
    "ss_gradient_checkpointing": ("gradient_checkpointing", _read_bool),
    "ss_seed": ("seed", _read_whole),
    "ss_resolution": ("resolution", _read_resolution),
    "ss_min_bucket_reso": ("min_bucket_reso", _read_whole),
    "ss_max_bucket_reso": ("max_bucket_reso", _read_whole),
    "ss_bucket_no_upscale": ("bucket_no_upscale", _read_bool),
    "ss_flip_aug": ("random_flip", _read_bool),
    "ss_color_aug": ("color_aug", _read_color_aug),
    "ss_random_crop": ("resize_mode", _read_resize_mode),
    "ss_lr_scheduler": ("lr_scheduler", str),
    "ss_lr_warmup_steps": ("lr_warmup_steps", float),
    "ss_max_grad_norm": ("max_grad_norm", float),
    "ss_scale_weight_norms": ("scale_weight_norms", float),
    "ss_mixed_precision": ("mixed_precision", str),
    "ss_network_dropout": ("lora_dropout", float),
    "ss_min_snr_gamma": ("min_snr_gamma", float),
    "ss_noise_offset": ("noise_offset", float),
    "ss_multires_noise_iterations": ("multires_noise_iterations", _read_whole),
    "ss_multires_noise_discount": ("multires_noise_discount", float),
    "ss_ip_noise_gamma": ("ip_noise_gamma", float),
    "ss_debiased_estimation": ("snr_weighting", _read_snr_weighting),
    "ss_loss_type": ("loss_type", str),
    "ss_huber_schedule": ("huber_schedule", str),
    "ss_huber_c": ("huber_c", float),
    "ss_caption_dropout_rate": ("caption_dropout", float),
    "ss_caption_tag_dropout_rate": ("tag_dropout", float),
    "ss_shuffle_caption": ("shuffle_captions", _read_bool),
    "ss_keep_tokens": ("keep_tokens", _read_whole),
}
# What was trained on and when, and what a finished run has counted: no settings.
_DESCRIPTIONS = re.compile(
    r"ss_(session_id|training_(started|finished)_at|training_comment|output_name|steps|epoch|num_\w+|total_batch_size"
    r"|sd_\w+|new_\w+|vae_\w+|dataset_dirs|reg_dataset_dirs|datasets|tag_frequency|bucket_info|enable_bucket|v2"
    r"|base_model_version|sd_scripts_commit_hash|cache_latents|lowram|full_fp16|network_module|network_args|optimizer)"
)
_EMPTY = ("", "None", "False", "0", "0.0", "{}", "[]", "[null, null]")
# Kohya leaves the key out, or writes None, where these are off.
_OFF_WHERE_MISSING = {"min_snr_gamma": 0.0, "noise_offset": 0.0}
_OPTIMIZER = re.compile(r"(?P<name>[\w.]+)(?:\((?P<args>.*)\))?")


def _read_kohya(metadata: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    found: dict[str, Any] = dict(_OFF_WHERE_MISSING)
    left_out: list[str] = []
    for key, (name, read) in _KOHYA.items():
        text = metadata.get(key, "None")
        if text == "None":
            continue
        try:
            found[name] = read(text)
        except ValueError:
            left_out.append(f"{key} {text}: cannot be read as {name}")
    found |= _read_optimizer(metadata.get("ss_optimizer", ""), left_out)
    found |= _read_network(metadata, left_out)
    left_out += _list_unknown(metadata)
    return found, left_out


def _read_optimizer(text: str, left_out: list[str]) -> dict[str, Any]:
    """Read kohya's "bitsandbytes.optim.adamw.AdamW8bit(weight_decay=0.1,betas=(0.9, 0.99))"."""
    match = _OPTIMIZER.fullmatch(text)
    names = {name.lower(): name for name in OPTIMIZERS}
    name = names.get(match["name"].rpartition(".")[2].lower()) if match else None
    if match is None or name is None:
        left_out += [f"ss_optimizer {text}: none of {', '.join(OPTIMIZERS)}"] if text else []
        return {}
    given = dict(_split_arguments(match["args"] or ""))
    decay = given.pop("weight_decay", None)
    found: dict[str, Any] = {"optimizer": name}
    if decay is not None:
        found["weight_decay"] = float(decay)
    if given:
        found["optimizer_args"] = " ".join(f"{key}={value}" for key, value in given.items())
    return found


# Our adapter, by the algorithm of LyCORIS.
ALGORITHMS = {"lora": "lora", "locon": "lora", "loha": "loha", "lokr": "lokr"}
# The argument of sd-scripts or LyCORIS, the name here, and how the text is read.
_NETWORK_ARGS: dict[str, tuple[str, Reader]] = {
    "conv_dim": ("conv_rank", _read_whole),
    "conv_alpha": ("conv_alpha", float),
    "rank_dropout": ("rank_dropout", float),
    "module_dropout": ("module_dropout", float),
    "loraplus_lr_ratio": ("loraplus_lr_ratio", float),
    "factor": ("lokr_factor", _read_whole),
    "decompose_both": ("lokr_decompose_both", _read_bool),
    "full_matrix": ("lokr_full_matrix", _read_bool),
}


def _read_network(metadata: Mapping[str, str], left_out: list[str]) -> dict[str, Any]:
    """Read which adapter was trained: kohya's own LoRA, or one of LyCORIS by its arguments."""
    module = metadata.get("ss_network_module", "networks.lora")
    args = _parse_args(metadata.get("ss_network_args", "{}"))
    found: dict[str, Any] = {}
    adapter = ALGORITHMS.get(args.pop("algo", "lora").lower()) if module == "lycoris.kohya" else "lora"
    is_dora, _ = _read_bool(args.pop("dora_wd", "")), args.pop("wd_on_output", "")
    if adapter is None or module not in ("networks.lora", "lycoris.kohya", "None"):
        left_out.append(f"ss_network_module {module}: {', '.join(ADAPTERS.values())} are trained here")
    elif module == "lycoris.kohya":
        found["adapter"] = "dora" if is_dora and adapter == "lora" else adapter
    for key, text in args.items():
        name, read = _NETWORK_ARGS.get(key, ("", str))
        try:
            if name:
                found[name] = read(text)
        except ValueError:
            name = ""
        if not name and text not in _EMPTY:
            left_out.append(f"ss_network_args {key}={text}: no counterpart here")
    if found.get("conv_rank"):
        found.setdefault("conv_alpha", 1.0)  # sd-scripts' default
    return found


def _parse_args(text: str) -> dict[str, str]:
    try:
        args = json.loads(text)
    except ValueError:
        return {}
    return {name: str(value) for name, value in args.items()} if isinstance(args, dict) else {}


def _split_arguments(text: str) -> Iterator[tuple[str, str]]:
    """Yield names and values: "betas=(0.9, 0.99),d_coef=2"."""
    for part in re.split(r",\s*(?=\w+=)", text):
        name, _, value = part.partition("=")
        if value:
            yield name.strip(), re.sub(r"\s", "", value)


def _list_unknown(metadata: Mapping[str, str]) -> Iterator[str]:
    for key, value in sorted(metadata.items()):
        is_setting = key.startswith("ss_") and key not in _KOHYA and not _DESCRIPTIONS.fullmatch(key)
        if is_setting and value not in _EMPTY:
            yield f"{key} {value[:60]}: no counterpart here"
