"""Translates a .json file of kohya_ss, the graphical interface of sd-scripts."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from .kohya import FileReader, translate_kohya
from .translation import Translation
from .values import is_off, read_bool, read_float, read_text, read_whole

PROGRAM = "kohya_ss"
# What it calls otherwise than sd-scripts.
_NAMES = {
    "resolution": "max_resolution",
    "optimizer_type": "optimizer",
    "cache_text_encoder_outputs": "sdxl_cache_text_encoder_outputs",
    "no_half_vae": "sdxl_no_half_vae",
    "network_module": "LoRA_type",
    "network_weights": "lora_network_weights",  # of old files
}
_LYCORIS = "lycoris.kohya"
# The network of each LoRA_type, with the algorithm of LyCORIS.
_NETWORKS = {
    "Standard": ("networks.lora", ""),
    "Kohya LoCon": ("networks.lora", ""),
    "Kohya DyLoRA": ("networks.dylora", ""),
    "Kohya LoHa": ("networks.loha", ""),
    "Kohya LoKr": ("networks.lokr", ""),
    "LoRA-FA": ("networks.lora_fa", ""),
    "LoCon": (_LYCORIS, "locon"),
}
_CONVOLUTIONS = ("conv_dim", "conv_alpha")
_DROPOUTS = ("rank_dropout", "module_dropout")
_BLOCKS = (
    "down_lr_weight",
    "mid_lr_weight",
    "up_lr_weight",
    "block_lr_zero_threshold",
    "block_dims",
    "block_alphas",
    "conv_block_dims",
    "conv_block_alphas",
)
_LORA_PLUS = ("loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio")
_OF_LYCORIS = ("train_norm", "use_tucker", "use_scalar", "rank_dropout_scale", "bypass_mode", "dora_wd")
_OF_LOKR = ("factor", "decompose_both", "full_matrix")
# Arguments of one network or the other, which the file always has, and what starts the program.
_OF_THE_NETWORK = (
    *(*_CONVOLUTIONS, *_DROPOUTS, *_BLOCKS, *_LORA_PLUS, *_OF_LYCORIS, *_OF_LOKR),
    *("use_cp", "constrain", "rescaled", "train_on_input", "unit", "LyCORIS_preset"),
)
_OF_THE_START = (
    *("epoch", "lr_warmup", "model_list", "sdxl", "use_wandb", "training_preset", "noise_offset_type"),
    *("num_processes", "num_machines", "multi_gpu", "gpu_ids", "num_cpu_threads_per_process", "main_process_port"),
    *("dynamo_mode", "dynamo_use_fullgraph", "dynamo_use_dynamic", "extra_accelerate_launch_args"),
    *("stop_text_encoder_training_pct", "sdxl_checkbox"),
)
_OTHER_MODELS = ("v2", "flux1_checkbox", "sd3_checkbox", "lumina_checkbox", "hunyuan_image_checkbox", "anima_checkbox")


def translate_kohya_gui(
    given: Mapping[str, Any], configs: Sequence[type], *, read_file: FileReader, datasets: Mapping[str, Any] | None
) -> Translation:
    """Translate the content of the file.

    Raises:
        ValueError: as for sd-scripts; or it is for another model than SDXL.
    """
    _require_sdxl(given)
    kohya = {name: value for name, value in given.items() if name not in _OF_THE_NETWORK + _OF_THE_START}
    for name, label in _NAMES.items():
        if label in kohya:
            kohya[name] = kohya.pop(label)
    kohya["xformers"] = given.get("xformers") not in (None, "", "none", False)
    # Zeros that sd-scripts' parser would not take for "off".
    for name in ("seed", "clip_skip", "max_timestep", "min_timestep", "max_train_epochs", "max_train_steps", "unet_lr"):
        if is_off(kohya.get(name)):
            kohya.pop(name, None)
    kohya |= _choose_network(given)
    kohya |= _choose_steps(given)
    kohya |= _choose_noise(given)
    kohya |= _choose_rates(given)
    kohya |= _read_flags(str(kohya.pop("additional_parameters", None) or ""))
    labels = {name: label for name, label in _NAMES.items() if label in given}
    labels["network_module"] = f"LoRA_type {given['LoRA_type']} ="
    if is_off(given.get("max_train_epochs")):
        labels["max_train_epochs"] = "epoch"
    if is_off(given.get("lr_warmup_steps")):
        labels["lr_warmup_steps"] = "lr_warmup (percent)"
    return translate_kohya(kohya, configs, read_file=read_file, datasets=datasets, program=PROGRAM, labels=labels)


def _require_sdxl(given: Mapping[str, Any]) -> None:
    on = [name for name in _OTHER_MODELS if not is_off(given.get(name))]
    if on or ("sdxl" in given and not read_bool(given["sdxl"])):
        what = on[0] if on else "sdxl off"
        raise ValueError(f"this configuration of {PROGRAM} is not for SDXL ({what}), and only SDXL's are translated")
    if "LoRA_type" not in given:
        raise ValueError(f"this configuration of {PROGRAM} trains no LoRA (it has no LoRA_type)")


def _choose_network(given: Mapping[str, Any]) -> dict[str, Any]:
    kind = read_text(given["LoRA_type"])
    module, algorithm = _NETWORKS.get(kind, ("", ""))
    if kind.startswith("LyCORIS/"):
        module, algorithm = _LYCORIS, kind.removeprefix("LyCORIS/").lower()
    names = [*_DROPOUTS, *_LORA_PLUS]
    names += _BLOCKS if module == "networks.lora" else ()
    names += _CONVOLUTIONS if kind != "Standard" else ()
    names += (*_OF_LYCORIS, *_OF_LOKR) if module == _LYCORIS else ()
    names += ("factor",) if module == "networks.lokr" else ()
    arguments = [f"{name}={given[name]}" for name in names if not _is_usual(name, given.get(name))]
    if module == _LYCORIS:
        arguments += [f"algo={algorithm}", f"preset={given.get('LyCORIS_preset') or 'full'}"]
    return {"network_module": module or kind, "network_args": arguments}


def _read_flags(text: str) -> dict[str, Any]:
    """Read flags of sd-scripts, which users write into additional_parameters."""
    flags: dict[str, Any] = {}
    name = ""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"additional_parameters {text}: {error}") from None
    for word in words:
        if word.startswith("--"):
            name, _, value = word[2:].partition("=")
            flags[name] = value or True
        elif name:
            flags[name] = word if flags[name] is True else f"{flags[name]} {word}"
    return flags


def _is_usual(name: str, value: Any) -> bool:
    return is_off(value) or (name == "factor" and value == -1)


def _choose_steps(given: Mapping[str, Any]) -> dict[str, Any]:
    """max_train_epochs, then max_train_steps, then epoch; the warm-up is in percent."""
    chosen: dict[str, Any] = {"max_train_epochs": None}
    if not is_off(given.get("max_train_epochs")):
        chosen["max_train_epochs"] = read_whole(given["max_train_epochs"])
    elif is_off(given.get("max_train_steps")):
        chosen["max_train_epochs"] = read_whole(given.get("epoch") or 1)
    if is_off(given.get("lr_warmup_steps")):
        chosen["lr_warmup_steps"] = read_float(given.get("lr_warmup") or 0) / 100
    return chosen


def _choose_noise(given: Mapping[str, Any]) -> dict[str, Any]:
    """noise_offset_type says which of two kinds counts."""
    if given.get("noise_offset_type") == "Multires":
        return dict.fromkeys(("noise_offset", "noise_offset_random_strength", "adaptive_noise_scale"))
    return dict.fromkeys(("multires_noise_iterations", "multires_noise_discount"))


def _choose_rates(given: Mapping[str, Any]) -> dict[str, Any]:
    """A rate of 0 leaves its part untrained, but two of them mean learning_rate."""
    texts, unet = (read_float(given.get(name) or 0) for name in ("text_encoder_lr", "unet_lr"))
    if unet and not texts:
        return {"network_train_unet_only": True, "text_encoder_lr": None}
    if texts and not unet:
        return {"network_train_text_encoder_only": True}
    return {} if texts else {"text_encoder_lr": None}
