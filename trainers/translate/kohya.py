"""Translates a training configuration of sd-scripts (--config_file) with its datasets."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import kohya_table as table
from .kohya_datasets import merge_datasets
from .network import take_network
from .optimizer import read_arguments, take_optimizer
from .sample_lines import read_lines, write_lines
from .translation import Translation, Translator
from .values import is_off, read_bool, read_float, read_text, show

PROGRAM = "sd-scripts"
# Reads a file that the configuration names: its text, or the tables of a TOML or JSON file.
FileReader = Callable[[str], Any]
_SIDE_STEP = 64
_HUB_NAME = re.compile(r"[\w-]+/[\w.-]+")  # OWNER/MODEL of Hugging Face
_CHECKPOINTS = (".safetensors", ".ckpt")


def flatten(content: Mapping[str, Any]) -> dict[str, Any]:
    """Put all sections into one table, as sd-scripts does: their names mean nothing."""
    flat: dict[str, Any] = {}
    for name, value in content.items():
        flat.update(value if isinstance(value, dict) else {name: value})
    return flat


def translate_kohya(
    given: Mapping[str, Any],
    configs: Sequence[type],
    *,
    read_file: FileReader,
    datasets: Mapping[str, Any] | None = None,
    program: str = PROGRAM,
    labels: Mapping[str, str] | None = None,
) -> Translation:
    """Translate flat settings by sd-scripts' names. `datasets` is the content of --dataset_config,
    if the settings do not name such a file.

    Raises:
        ValueError: it does not train an SDXL LoRA, its optimizer or network do not exist here, or
            a value is of the wrong kind.
    """
    translator = Translator(program, given, configs, labels)
    named = translator.get("dataset_config", read_text)
    if named:
        datasets = read_file(named)
    _require_sdxl(translator)
    _take_base(translator)
    _take_datasets(translator, datasets)
    translator.take_rows((*table.ROWS, *table.DATASET_ROWS))
    for decisive, values, row in table.DEPENDENT_ROWS:
        if translator.given.get(decisive) in values:
            translator.take_rows([row])
        elif not is_off(translator.given.get(row.name)):
            translator.without_effect(row.name, f"counts only where {decisive} is {' or '.join(values)}")
    _take_multires_discount(translator)
    _take_buckets(translator)
    _take_rates(translator)
    _take_steps(translator)
    _take_schedule(translator)
    _take_optimizer(translator)
    take_network(translator)
    _take_samples(translator, read_file)
    return _finish(translator)


def translate_dataset_config(datasets: Mapping[str, Any], configs: Sequence[type]) -> Translation:
    """Translate a --dataset_config alone: the training's own settings stay ours."""
    translator = Translator(f"{PROGRAM} (datasets only)", {}, configs)
    _take_datasets(translator, datasets)
    translator.take_rows(table.DATASET_ROWS)
    _take_buckets(translator)
    return _finish(translator)


def _finish(translator: Translator) -> Translation:
    translator.note_table(table.SAME, translator.same)
    translator.note_table(table.WITHOUT_EFFECT, translator.without_effect)
    translator.note_table(table.LOST, translator.lose)
    return translator.finish(lambda name: table.OTHER_MODELS.fullmatch(name) is not None)


def _require_sdxl(translator: Translator) -> None:
    if translator.get("v2", read_bool, False):
        raise ValueError(f"{translator.label('v2')} is on: this configuration is for Stable Diffusion 2, not for SDXL")


def _take_base(translator: Translator) -> None:
    base = translator.get("pretrained_model_name_or_path", read_text)
    if base is None:
        return
    take_base_model(translator, "pretrained_model_name_or_path", base)


def take_base_model(translator: Translator, name: str, base: str) -> None:
    """Take a file or folder; the name of a model on Hugging Face is none."""
    if _HUB_NAME.fullmatch(base) and not base.endswith(_CHECKPOINTS) and not Path(base).exists():
        translator.lose(name, "nothing is downloaded: give the file or folder of the model with --base")
    else:
        translator.take(name, base, ours="base")


# --- datasets ---


def _take_datasets(translator: Translator, datasets: Mapping[str, Any] | None) -> None:
    if datasets is not None:
        merge_datasets(translator, datasets)
        has_masks = any(table["mask_source"] == "alpha" for table in translator.settings["datasets"])
    else:
        _take_folders(translator)
        has_masks = translator.get("alpha_mask", read_bool, False)
        translator.take("alpha_mask", "alpha" if has_masks else "off", ours="mask_source")
        _take_prefix(translator)
    if has_masks:  # sd-scripts learns nothing where they are black
        translator.take("alpha_mask", 0.0, ours="unmasked_weight")
        translator.get("masked_loss", read_bool)
    _check_caption_extension(translator)


def _take_folders(translator: Translator) -> None:
    images = translator.get("train_data_dir", read_text)
    regularization = translator.get("reg_data_dir", read_text)
    weight = translator.get("prior_loss_weight", read_float, 1.0)
    if images and regularization:
        translator.settings["datasets"] = [
            {"images": images},
            {"images": regularization, "is_regularization": True, "loss_weight": weight},
        ]
        translator.take_table("train_data_dir", "images of the first [[datasets]] table")
        translator.take_table("reg_data_dir", "images of the second [[datasets]] table, with is_regularization")
        translator.take_table("prior_loss_weight", f"loss_weight {weight:g} of the regularization images")
    elif images:
        translator.take("train_data_dir", images, ours="images")
        if translator.is_given("prior_loss_weight"):
            translator.without_effect("prior_loss_weight", "it weighs regularization images, and there are none")


def _take_prefix(translator: Translator) -> None:
    prefix = translator.get("caption_prefix", read_text, "")
    if prefix.strip().endswith(","):
        remark = "captions that have it are left as they are"
        translator.take("caption_prefix", prefix.strip(" ,"), ours="trigger_word", remark=remark)
    elif prefix.strip():
        translator.lose("caption_prefix", "only trigger_word is put in front of captions, with a comma")


def _check_caption_extension(translator: Translator) -> None:
    misspelt = translator.get("caption_extention", read_text)  # an old name of sd-scripts
    extension = translator.get("caption_extension", read_text, misspelt)
    name = "caption_extension" if translator.is_given("caption_extension") else "caption_extention"
    if extension in (".txt", ".caption"):
        translator.same(name, ".txt and .caption files are read")
    elif extension is not None:
        translator.lose(name, "only .txt and .caption files are read: rename them")


def _take_buckets(translator: Translator) -> None:
    _take_resolution(translator)
    has_buckets = translator.get("enable_bucket", read_bool, False)
    is_random = translator.get("random_crop", read_bool, False)
    if has_buckets and is_random:
        translator.lose("random_crop", "images in buckets are cropped at the centre")
    mode = "bucket" if has_buckets else "random_crop" if is_random else "center_crop"
    translator.take("enable_bucket", mode, ours="resize_mode")


def _take_resolution(translator: Translator) -> None:
    sides = read_sides(translator.get("resolution", lambda value: value), translator.label("resolution"))
    if not sides:
        return
    side = sides[0]
    if len(set(sides)) > 1:
        area = sides[0] * sides[1]
        side = max(_SIDE_STEP, round(area**0.5 / _SIDE_STEP) * _SIDE_STEP)
        translator.lose("resolution", f"resolution is the side of a square; {side} comes nearest to its area")
    translator.take("resolution", side, ours="resolution")


def read_sides(value: Any, label: str) -> list[int]:
    """Read 1024, "1024", "1024,768" or [1024, 768].

    Raises:
        ValueError: it is none of those.
    """
    if value is None or value == "":
        return []
    parts = value if isinstance(value, list) else str(value).replace("x", ",").split(",")
    try:
        sides = [int(part) for part in parts]
    except (TypeError, ValueError):
        sides = []
    if len(sides) not in (1, 2):
        raise ValueError(f"{label} must be one or two whole numbers, got {show(value)}")
    return sides


# --- training ---


def _take_rates(translator: Translator) -> None:
    """unet_lr and text_encoder_lr count before learning_rate; a part with rate 0 is not trained."""
    usual = translator.get("learning_rate", read_float, 2e-6)
    unet = translator.get("unet_lr", read_float, usual)
    if translator.get("network_train_text_encoder_only", read_bool, False) or unet == 0:
        name = "unet_lr" if unet == 0 else "network_train_text_encoder_only"
        raise ValueError(f"{translator.describe(name)}: only the text encoders are trained, which is not done here")
    translator.take("unet_lr" if translator.is_given("unet_lr") else "learning_rate", unet, ours="learning_rate")
    rates = translator.get("text_encoder_lr", _read_rates, []) or [usual]
    name = "text_encoder_lr" if translator.is_given("text_encoder_lr") else "learning_rate"
    if len(set(rates)) > 1:
        translator.lose("text_encoder_lr", "sd-scripts uses the first rate for both text encoders of SDXL, as here")
    if translator.get("network_train_unet_only", read_bool, False):
        translator.take("network_train_unet_only", False, ours="train_text_encoders")
        if translator.is_given("text_encoder_lr") and any(rates):
            translator.without_effect("text_encoder_lr", "the text encoders are not trained")
    elif not rates[0]:
        translator.take("text_encoder_lr", False, ours="train_text_encoders")
    else:
        translator.take("network_train_unet_only", True, ours="train_text_encoders")
        translator.take(name, rates[0], ours="text_encoder_learning_rate")
        translator.take(name, rates[0], ours="text_encoder_2_learning_rate")


def _read_rates(value: Any) -> list[float]:
    return [read_float(rate) for rate in (value if isinstance(value, list) else [value])]


def _take_steps(translator: Translator) -> None:
    epochs = translator.get("max_train_epochs", read_float, 0)
    steps = translator.get("max_train_steps", read_float, 1600)
    if epochs:
        translator.take("max_train_epochs", int(epochs), ours="num_train_epochs")
        if translator.is_given("max_train_steps"):
            translator.without_effect("max_train_steps", "max_train_epochs decides")
    else:
        translator.take("max_train_steps", int(steps), ours="max_train_steps")


def _take_schedule(translator: Translator) -> None:
    """A whole number of warm-up steps, or their share as a number with a point."""
    name = translator.get("lr_scheduler", read_text, "constant")
    if name.startswith("adafactor"):
        name = "constant"  # its optimizer is refused
    ours = "constant" if name == "constant_with_warmup" else name
    translator.take("lr_scheduler", ours, ours="lr_scheduler")
    warmup = translator.get("lr_warmup_steps", read_float, 0.0)
    if name == "constant" and warmup:
        translator.without_effect("lr_warmup_steps", "lr_scheduler constant has no warm-up")
        warmup = 0.0
        translator.settings["lr_warmup_steps"] = 0.0
    else:
        translator.take("lr_warmup_steps", warmup, ours="lr_warmup_steps")
    power = translator.get("lr_scheduler_power", read_float, 1.0)
    ratio = translator.get("lr_scheduler_min_lr_ratio", read_float, 0.0)
    if name == "polynomial" and power != 1:
        translator.lose("lr_scheduler_power", "the polynomial has power 1, a straight line")
    if ratio:
        translator.lose("lr_scheduler_min_lr_ratio", "the learning rate falls to 0")
    translator.get("lr_scheduler_timescale", read_float)


def _take_optimizer(translator: Translator) -> None:
    name = translator.get("optimizer_type", read_text, "AdamW")
    for flag, meant in (("use_8bit_adam", "AdamW8bit"), ("use_lion_optimizer", "Lion")):
        if translator.get(flag, read_bool, False):
            name = meant
    arguments = translator.get("optimizer_args", read_arguments, {})
    take_optimizer(translator, "optimizer_type", name, arguments, args_key="optimizer_args")


def _take_multires_discount(translator: Translator) -> None:
    if translator.given.get("multires_noise_iterations"):
        discount = translator.get("multires_noise_discount", read_float, 0.3)
        translator.take("multires_noise_discount", discount, ours="multires_noise_discount")
    elif translator.is_given("multires_noise_discount"):
        translator.get("multires_noise_discount", read_float)


# --- samples ---


def _take_samples(translator: Translator, read_file: FileReader) -> None:
    named = translator.get("sample_prompts", lambda value: value)
    if not named:
        return
    if not isinstance(named, str):
        raise ValueError(f"{translator.label('sample_prompts')} must be the name of a file, got {named!r}")
    try:
        content = named if _is_prompt_text(named) else read_file(named)
    except FileNotFoundError:
        translator.without_effect("sample_prompts", f"there is no file {named}; the first caption is drawn")
        return
    text, unknown = _read_prompts(content)
    translator.take("sample_prompts", text, ours="sample_prompt")
    if unknown:
        options = ", ".join("--" + name for name in unknown)
        translator.without_effect("sample_prompts", f"the options {options} are not known for samples here")


def _is_prompt_text(named: str) -> bool:
    """The GUI has the prompts themselves in its file."""
    return "\n" in named.strip() or Path(named).suffix.lower() not in (".txt", ".toml", ".json")


def _read_prompts(content: Any) -> tuple[str, list[str]]:
    if isinstance(content, str):
        return read_lines(content)
    if isinstance(content, dict):  # a TOML file: [prompt] and [[prompt.subset]]
        common = content.get("prompt", {})
        content = [{**common, **subset} for subset in common.get("subset", [])]
    lines = [each for each in content if isinstance(each, str)]
    text, unknown = read_lines("\n".join(lines))
    tables = write_lines([each for each in content if isinstance(each, dict)])
    return "\n".join(part for part in (text, tables) if part), unknown
