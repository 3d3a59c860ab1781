"""Translates a configuration of OneTrainer (.json), with its concepts and samples."""

import re
from collections.abc import Mapping, Sequence
from pathlib import PureWindowsPath
from typing import Any

from . import onetrainer_table as table
from .kohya import FileReader, read_sides, take_base_model
from .optimizer import take_optimizer
from .sample_lines import write_lines
from .translation import Translation, Translator
from .values import is_off, read_bool, read_float, read_tables, read_text, read_whole, show

PROGRAM = "OneTrainer"
SDXL = "STABLE_DIFFUSION_XL_10_BASE"
_WITHOUT_DOTS = ("concepts", "samples", "scheduler_params", "additional_embeddings")  # lists
_OLD_NAMES = {
    "save_after": "save_every",
    "save_after_unit": "save_every_unit",
    "lora_layers": "layer_filter",
    "lora_layer_preset": "layer_filter_preset",
    "lora_layers_regex": "layer_filter_regex",
    "train_unet": "unet.train",
    "unet_learning_rate": "unet.learning_rate",
    "train_text_encoder": "text_encoder.train",
    "text_encoder_learning_rate": "text_encoder.learning_rate",
    "train_text_encoder_2": "text_encoder_2.train",
    "text_encoder_2_learning_rate": "text_encoder_2.learning_rate",
    "gradient_checkpointing": "unet.gradient_checkpointing",
}
_SCHEDULES = {"COSINE_WITH_HARD_RESTARTS": "cosine_with_restarts"}
_OPTIMIZERS = {
    "ADAMW": "AdamW",
    "ADAMW_8BIT": "AdamW8bit",
    "LION": "Lion",
    "LION_8BIT": "Lion8bit",
    "ADAFACTOR": "Adafactor",
    "PRODIGY": "Prodigy",
    "PRODIGY_PLUS_SCHEDULE_FREE": "ProdigyPlusScheduleFree",
    "SCHEDULE_FREE_ADAMW": "AdamWScheduleFree",
    "CAME": "CAME",
}
# The arguments that are passed on, with the values that their libraries choose too.
_ARGUMENTS: dict[str, dict[str, Any]] = {
    "AdamW": {"eps": 1e-8, "amsgrad": False},
    "AdamW8bit": {"eps": 1e-8},
    "Prodigy": {
        "eps": 1e-8,
        "decouple": True,
        "use_bias_correction": False,
        "safeguard_warmup": False,
        "d0": 1e-6,
        "d_coef": 1.0,
        "growth_rate": float("inf"),
        "slice_p": 1,
    },
    "Adafactor": {
        "scale_parameter": True,
        "relative_step": True,
        "warmup_init": False,
        "clip_threshold": 1.0,
        "decay_rate": -0.8,
    },
}
# Switches of single optimizers, which every file has on.
_ON_IN_EVERY_FILE = (
    *("weight_decay_by_lr", "split_groups", "split_groups_mean", "factored", "factored_fp32", "use_stableadamw"),
    *("d_limiter", "use_schedulefree", "rms_rescaling", "stochastic_rounding"),
)
_ADAPTERS = {"LORA": "lora", "LOHA": "loha", "LOKR": "lokr"}
# What turns each change of images on in a concept, and how strong it is.
_CHANGES = {
    "color_aug": {
        f"enable_random_{name}": f"random_{name}_max_strength" for name in ("brightness", "contrast", "saturation")
    },
    "rotation_aug": {"enable_random_rotate": "random_rotate_max_angle"},
}
_LAYERS = {"attn-mlp": "attention_mlp", "attn-only": "attention", "full": ".*"}


def translate_onetrainer(given: Mapping[str, Any], configs: Sequence[type], *, read_file: FileReader) -> Translation:
    """Translate the content of the file. What it leaves open has OneTrainer's defaults.

    Raises:
        ValueError: it does not train an SDXL LoRA, its optimizer or adapter do not exist here, or a
            value is of the wrong kind.
    """
    translator = Translator(PROGRAM, _flatten(given), configs)
    _require_sdxl_lora(translator)
    take_base_model_if_given(translator)
    _take_output(translator)
    translator.take_rows(table.ROWS)
    _take_concepts(translator, read_file)
    _take_sizes(translator)
    _take_adapter(translator)
    _take_layers(translator)
    _take_rates(translator)
    _take_schedule(translator)
    _take_optimizer(translator)
    _take_loss(translator)
    _take_memory(translator)
    _take_ema(translator)
    _take_saves(translator)
    _take_samples(translator, read_file)
    translator.note_table(table.WITHOUT_EFFECT, translator.without_effect)
    for name, (reason, off) in table.LOST.items():
        value = translator.get(name, lambda value: value)
        if not (is_off(value) or value in off):
            translator.lose(name, reason)
    return translator.finish(lambda name: table.OTHER_MODELS.fullmatch(name) is not None)


def _flatten(given: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in given.items():
        if isinstance(value, dict) and name not in _WITHOUT_DOTS:
            flat |= {f"{name}.{part}": each for part, each in value.items()}
        elif name == "optimizer":
            flat["optimizer.optimizer"] = value
        else:
            flat[_OLD_NAMES.get(name, name)] = value
    return flat


def _require_sdxl_lora(translator: Translator) -> None:
    for name, needed, usual in (("training_method", "LORA", "FINE_TUNE"), ("model_type", SDXL, "STABLE_DIFFUSION_15")):
        value = translator.get(name, read_text, usual)
        if value != needed:
            raise ValueError(f"{name} is {value}, and only {needed} of {PROGRAM} is translated: LoRAs for SDXL")


def take_base_model_if_given(translator: Translator) -> None:
    base = translator.get("base_model_name", read_text)
    if base:
        take_base_model(translator, "base_model_name", base)


def _take_output(translator: Translator) -> None:
    destination = translator.get("output_model_destination", read_text)
    if destination:
        path = PureWindowsPath(destination)  # it reads both kinds of slashes
        translator.take("output_model_destination", path.stem, ours="output")
        if str(path.parent) != ".":
            translator.take("output_model_destination", path.parent.as_posix(), ours="output_dir")


# --- concepts ---


def _take_concepts(translator: Translator, read_file: FileReader) -> None:
    """The list is in the file, or in a file of its own."""
    concepts = translator.get("concepts", read_tables)
    named = translator.get("concept_file_name", read_text)
    if not concepts and named:
        try:
            concepts = read_tables(read_file(named))
        except FileNotFoundError:
            translator.lose("concept_file_name", "there is no such file: give the images with --images or --config")
            return
    used = [concept for concept in concepts or [] if concept.get("enabled", True)]
    tables = [made for concept in used if (made := _make_table(translator, concept))]
    if tables:
        translator.settings["datasets"] = tables
        _take_shared(translator, used)
        _take_changes(translator, [concept.get("image") or {} for concept in used])
    _take_masks(translator)


def _take_masks(translator: Translator) -> None:
    is_masked = translator.get("masked_training", read_bool, False)
    translator.take("masked_training", "files" if is_masked else "off", ours="mask_source")
    prior = "prior_loss_weight keeps what the base model knows, in the whole image"
    for name, usual, reason in (
        ("unmasked_probability", 0.1, "masks always count"),
        ("masked_prior_preservation_weight", 0.0, prior),
    ):
        value = translator.get(name, read_float, usual)
        if is_masked and value:
            translator.lose(name, reason)
        elif value and translator.is_given(name):
            translator.without_effect(name, "masks are not used")


def _make_table(translator: Translator, concept: Mapping[str, Any]) -> dict[str, Any] | None:
    label = f"concept {concept.get('name') or concept.get('path') or '?'}"
    kind = concept.get("type", "VALIDATION" if concept.get("validation_concept") else "STANDARD")
    if not concept.get("path"):
        raise ValueError(f"{label} has no path. Give it the folder that holds its images")
    if kind not in ("STANDARD", "VALIDATION"):
        part = translator.name_part(f"{label}, type {kind}")
        translator.lose(part, "its images are left out; prior_loss_weight keeps what the base model knows")
        return None
    made: dict[str, Any] = {"images": concept["path"], "recursive": bool(concept.get("include_subdirectories", False))}
    made["num_repeats"] = _read_repeats(translator, concept, label)
    if concept.get("loss_weight", 1.0) != 1.0:
        made["loss_weight"] = read_float(concept["loss_weight"])
    if kind == "VALIDATION":
        made["is_validation"] = True
    _take_prompt_source(translator, concept.get("text") or {}, made, label)
    shown = ", ".join(f"{name} {show(value)}" for name, value in made.items())
    translator.take_table(translator.name_part(label), f"[[datasets]] {shown}")
    return made


def _read_repeats(translator: Translator, concept: Mapping[str, Any], label: str) -> int:
    """balancing: repeats of each image; in old files it is called repeats."""
    repeats = read_float(concept.get("balancing", concept.get("repeats", 1.0)))
    whole = max(1, round(repeats))
    if concept.get("balancing_strategy", "REPEATS") != "REPEATS":
        part = translator.name_part(f"{label}, balancing_strategy {concept['balancing_strategy']}")
        translator.lose(part, "num_repeats counts uses of each image; 1 is taken")
        return 1
    if repeats != whole:
        part = translator.name_part(f"{label}, balancing {repeats:g}")
        translator.lose(part, f"num_repeats is a whole number; {whole} is taken")
    return whole


def _take_prompt_source(translator: Translator, text: Mapping[str, Any], made: dict[str, Any], label: str) -> None:
    source = text.get("prompt_source", "sample")
    if source != "sample":
        part = translator.name_part(f"{label}, prompt_source {source}")
        translator.lose(part, "captions are .txt or .caption files next to the images; fallback_caption is for all")


def _take_shared(translator: Translator, concepts: Sequence[Mapping[str, Any]]) -> None:
    """What each concept has of its own there, and all images share here."""
    rows = (
        ("image", "enable_random_flip", "random_flip", False, read_bool),
        ("text", "enable_tag_shuffling", "shuffle_captions", False, read_bool),
        ("text", "keep_tags_count", "keep_tokens", 1, read_whole),
        ("text", "tag_delimiter", "caption_separator", ",", read_text),
    )
    for group, name, ours, usual, read in rows:
        values = [read((concept.get(group) or {}).get(name, usual)) for concept in concepts]
        if name in ("keep_tags_count", "tag_delimiter") and not translator.settings.get("shuffle_captions"):
            continue
        part = translator.name_part(f"{name} of the concepts ({', '.join(show(value) for value in values)})")
        translator.take(part, values[0], ours=ours)
        if len(set(values)) > 1:
            translator.lose(part, f"all images share one value here: {show(values[0])} is taken")
    for group, prefixes in (
        ("image", ("enable_",)),
        ("text", ("enable_", "tag_dropout_enable", "caps_randomize_enable")),
    ):
        taken = [name for of, name, *_ in rows if of == group] + ["enable_crop_jitter"]
        taken += [switch for limits in _CHANGES.values() for switch in limits]
        on = {
            name
            for concept in concepts
            for name, value in (concept.get(group) or {}).items()
            if name.startswith(prefixes) and name not in taken and value is True
        }
        for name in sorted(on):
            translator.lose(
                translator.name_part(f"{name} of a concept"), "there is no such change of images or captions"
            )


def _take_changes(translator: Translator, images: Sequence[Mapping[str, Any]]) -> None:
    """Take random colours and angles of the concepts' images, the strongest of each for all."""
    is_changed = False
    for ours, limits in _CHANGES.items():
        strengths = {
            (switch, read_float(image.get(limit, 0.0)) if image.get(switch) is True else 0.0)
            for image in images
            for switch, limit in limits.items()
        }
        strongest = max(strength for _, strength in strengths)
        if not strongest:
            continue
        is_changed = True
        part = translator.name_part(", ".join(sorted({switch for switch, strength in strengths if strength})))
        translator.take(part, strongest, ours=ours)
        if len({strength for _, strength in strengths}) > 1:
            translator.lose(part, f"all images and colours share one strength here: {strongest:g} is taken")
    if is_changed:
        variations = max(read_whole(image.get("image_variations", 1)) for image in images)
        translator.take(translator.name_part("image_variations"), variations, ours="num_augmented_variants")


def _take_sizes(translator: Translator) -> None:
    """OneTrainer enlarges small images, and has sizes of its own down to 1 : 4."""
    text = str(translator.get("resolution", lambda value: value, "512"))
    sizes = [read_sides(part.strip(), "resolution") for part in text.split(",")]
    squares = [sides[0] for sides in sizes if len(set(sides)) == 1]
    if not squares:
        translator.lose("resolution", "resolution is the side of a square")
    else:
        translator.take("resolution", squares[0], ours="resolution")
    if len(squares) > 1:
        translator.take("resolution", ", ".join(map(str, squares[1:])), ours="extra_resolutions")
        translator.lose("resolution", "there every step draws one; here an epoch has every image once at each")
    has_buckets = translator.get("aspect_ratio_bucketing", read_bool, True)
    translator.take("aspect_ratio_bucketing", "bucket" if has_buckets else "center_crop", ours="resize_mode")
    translator.take("aspect_ratio_bucketing", False, ours="bucket_no_upscale")


# --- LoRA ---


def _take_adapter(translator: Translator) -> None:
    kind = translator.get("peft_type", read_text, "LORA")
    adapter = _ADAPTERS.get(kind)
    if translator.get("lora_decompose", read_bool, False) and adapter == "lora":
        adapter, kind = "dora", "LORA with lora_decompose"
    if adapter is None:
        raise ValueError(
            f"peft_type {kind}: no such adapter is trained here. Write LORA into the file for a plain LoRA, which the "
            "other settings may not suit"
        )
    translator.take("peft_type", adapter, ours="adapter")


def _take_layers(translator: Translator) -> None:
    """Of a preset, or a list of texts of which a layer's name must have one."""
    preset = translator.get("layer_filter_preset", read_text, "full")
    text = translator.get("layer_filter", read_text, "")
    is_regular = translator.get("layer_filter_regex", read_bool, False)
    if preset in _LAYERS:
        translator.take("layer_filter_preset", _LAYERS[preset], ours="target_modules")
        return
    parts = [part.strip() for part in text.split(",")]
    parts = [part if is_regular else re.escape(part) for part in parts]
    translator.take("layer_filter", f".*({'|'.join(parts)}).*", ours="target_modules")


def _take_rates(translator: Translator) -> None:
    """A part without a rate has learning_rate. All are scaled by the root of the batch if asked."""
    usual = translator.get("learning_rate", read_float, 3e-6)
    scale = _read_scale(translator)
    if not translator.get("unet.train", read_bool, True):
        raise ValueError("unet.train is off: only the text encoders are trained, which is not done here")
    name = "unet.learning_rate" if translator.is_given("unet.learning_rate") else "learning_rate"
    unet = translator.get("unet.learning_rate", read_float, usual)
    translator.take(name, unet * scale, ours="learning_rate")
    rates = [_read_text_encoder_rate(translator, part, usual) * scale for part in ("text_encoder", "text_encoder_2")]
    translator.take("text_encoder.train", any(rates), ours="train_text_encoders")
    if any(rates):
        translator.take("text_encoder.train", rates[0], ours="text_encoder_learning_rate")
        translator.take("text_encoder_2.train", rates[1], ours="text_encoder_2_learning_rate")


def _read_text_encoder_rate(translator: Translator, part: str, usual: float) -> float:
    is_trained = translator.get(f"{part}.train", read_bool, True)
    rate = translator.get(f"{part}.learning_rate", read_float, usual)
    if is_trained and rate:
        _take_stop(translator, part)
    return rate if is_trained else 0.0


def _take_stop(translator: Translator, part: str) -> None:
    """After 30 epochs where the file does not say; here after steps, or a share of the run."""
    unit = translator.get(f"{part}.stop_training_after_unit", read_text, "EPOCH")
    number = translator.get(f"{part}.stop_training_after", read_float, 30.0)
    epochs = translator.get("epochs", read_whole, 100)
    if unit == "STEP":
        translator.take(f"{part}.stop_training_after", number, ours="stop_text_encoder_training")
    elif unit == "EPOCH" and number < epochs:
        translator.take(f"{part}.stop_training_after", number / epochs, ours="stop_text_encoder_training")
    elif unit not in ("EPOCH", "NEVER"):
        translator.lose(f"{part}.stop_training_after_unit", "the text encoders stop after steps or a share of the run")


def _read_scale(translator: Translator) -> float:
    scaler = translator.get("learning_rate_scaler", read_text, "NONE").removeprefix("GLOBAL_")
    batch = translator.get("batch_size", read_whole, 1)
    accumulation = translator.get("gradient_accumulation_steps", read_whole, 1)
    samples = {"NONE": 1, "BATCH": batch, "GRADIENT_ACCUMULATION": accumulation, "BOTH": batch * accumulation}
    if scaler not in samples:
        raise ValueError(f"learning_rate_scaler must be one of {', '.join(samples)}, got {scaler}")
    if scaler != "NONE":
        translator.take_table("learning_rate_scaler", f"learning rates times {samples[scaler] ** 0.5:g}")
    return samples[scaler] ** 0.5


def _take_schedule(translator: Translator) -> None:
    """Warm-up steps above 1 are forward passes, below that they are a share of the run."""
    name = translator.get("learning_rate_scheduler", read_text, "CONSTANT")
    translator.take("learning_rate_scheduler", _SCHEDULES.get(name, name.lower()), ours="lr_scheduler")
    if name == "COSINE_WITH_RESTARTS":
        translator.settings.pop("lr_scheduler", None)
        translator.lose(
            "learning_rate_scheduler", "its rate rises as slowly as it falls; cosine_with_restarts jumps up"
        )
    if name == "COSINE_WITH_HARD_RESTARTS":
        cycles = translator.get("learning_rate_cycles", read_float, 1.0)
        translator.take("learning_rate_cycles", round(cycles), ours="lr_num_cycles")
    elif translator.is_given("learning_rate_cycles"):
        translator.get("learning_rate_cycles", read_float)
    warmup = translator.get("learning_rate_warmup_steps", read_float, 200.0)
    if warmup > 1:
        warmup = float(int(warmup / translator.get("gradient_accumulation_steps", read_whole, 1)))
    translator.take("learning_rate_warmup_steps", warmup, ours="lr_warmup_steps")
    clipping = translator.get("clip_grad_norm", read_float, 1.0)
    if "clip_grad_norm" in translator.given and not translator.is_given("clip_grad_norm"):
        clipping = 0.0
    translator.take("clip_grad_norm", clipping, ours="max_grad_norm")


def _take_optimizer(translator: Translator) -> None:
    """OneTrainer writes the arguments of all optimizers into the file, most of them off."""
    name = translator.get("optimizer.optimizer", read_text) or "ADAMW"
    ours = _OPTIMIZERS.get(name, name)
    given = {
        key.removeprefix("optimizer."): translator.get(key, lambda value: value)
        for key in translator.given
        if key.startswith("optimizer.") and key != "optimizer.optimizer" and key not in table.WITHOUT_EFFECT
    }
    given = {key: value for key, value in given.items() if value is not None and key not in _ON_IN_EVERY_FILE}
    take_optimizer(translator, "optimizer.optimizer", ours, _choose_arguments(ours, given), args_key="optimizer")
    for key, value in given.items():
        if not is_off(value):
            translator.lose(f"optimizer.{key}", f"it is no argument that {ours} has here")


def _choose_arguments(ours: str, given: dict[str, Any]) -> dict[str, Any]:
    """Take the arguments of the optimizer out of `given`, and return those that are not usual."""
    usual = _ARGUMENTS.get(ours, {})
    chosen = {key: given.pop(key) for key in ("weight_decay", *usual) if key in given}
    chosen = {key: value for key, value in chosen.items() if key == "weight_decay" or value != usual[key]}
    if "beta1" in given and "beta2" in given:
        chosen["betas"] = (given.pop("beta1"), given.pop("beta2"))
    if ours == "Adafactor":
        chosen["eps"] = (given.pop("eps", 1e-30), given.pop("eps2", 1e-3))
        chosen = {"scale_parameter": False, "relative_step": False, **chosen}
    return chosen


def _take_loss(translator: Translator) -> None:
    weighting = translator.get("loss_weight_fn", read_text, "CONSTANT")
    strength = translator.get("loss_weight_strength", read_float, 5.0)
    gamma = translator.get("min_snr_gamma", read_float, 0.0)  # of old files
    if weighting == "MIN_SNR_GAMMA":
        gamma = strength
    translator.take("loss_weight_fn", gamma, ours="min_snr_gamma")
    if weighting == "DEBIASED_ESTIMATION":
        translator.take("loss_weight_fn", "debiased", ours="snr_weighting")
    elif weighting not in ("CONSTANT", "MIN_SNR_GAMMA"):
        translator.lose("loss_weight_fn", "there is no such weighting of the loss")
    if translator.get("rescale_noise_scheduler_to_zero_terminal_snr", read_bool, False):
        translator.take("rescale_noise_scheduler_to_zero_terminal_snr", "on", ours="zero_terminal_snr")
        translator.take("rescale_noise_scheduler_to_zero_terminal_snr", "v_prediction", ours="prediction_type")
    if translator.get("force_v_prediction", read_bool, False):
        translator.take("force_v_prediction", "v_prediction", ours="prediction_type")
    low = translator.get("min_noising_strength", read_float, 0.0)
    high = translator.get("max_noising_strength", read_float, 1.0)
    translator.take("min_noising_strength", round(low * 1000), ours="min_timestep")
    if high != 1:
        translator.take("max_noising_strength", round(high * 1000), ours="max_timestep")
    dropouts = [
        translator.get(f"{part}.dropout_probability", read_float, 0.0) for part in ("text_encoder", "text_encoder_2")
    ]
    remark = "there each encoder by itself, here the whole caption" if dropouts[0] else ""
    translator.take("text_encoder.dropout_probability", dropouts[0], ours="caption_dropout", remark=remark)
    if dropouts[0] != dropouts[1]:
        translator.lose("text_encoder_2.dropout_probability", "captions are dropped for both text encoders")


def _take_memory(translator: Translator) -> None:
    checkpointing = translator.get("unet.gradient_checkpointing", lambda value: value, True)
    translator.take("unet.gradient_checkpointing", checkpointing not in (False, "OFF"), ours="gradient_checkpointing")
    dtype = translator.get("unet.weight_dtype", read_text, "FLOAT_32")
    kept = table.read_base_dtype(dtype)
    if kept in ("fp8", "int8", "nf4"):
        translator.take("unet.weight_dtype", kept, ours="base_dtype")
    elif kept:
        translator.lose("unet.weight_dtype", "base_dtype has no such number format")
    elif translator.is_given("unet.weight_dtype"):
        translator.same("unet.weight_dtype", "the frozen weights have the number format of mixed_precision")


def _take_ema(translator: Translator) -> None:
    """There every n-th step moves the average, here every step does."""
    mode = translator.get("ema", read_text, "OFF")
    decay = translator.get("ema_decay", read_float, 0.999)
    interval = translator.get("ema_update_step_interval", read_whole, 5)
    if mode != "OFF":
        remark = "the average is a second file, NAME-ema"
        translator.take("ema", decay ** (1 / max(1, interval)), ours="ema_decay", remark=remark)


# --- files ---


def _take_saves(translator: Translator) -> None:
    number = translator.get("save_every", read_whole, 0)
    unit = translator.get("save_every_unit", read_text, "NEVER")
    ours = {"EPOCH": "save_every_n_epochs", "STEP": "save_every_n_steps"}.get(unit)
    if ours:
        translator.take("save_every", number, ours=ours)
    elif unit != "NEVER":
        translator.without_effect("save_every_unit", "checkpoints are saved every n epochs or steps")


def _take_samples(translator: Translator, read_file: FileReader) -> None:
    number = translator.get("sample_after", read_whole, 10)
    unit = translator.get("sample_after_unit", read_text, "MINUTE")
    if unit == "STEP":
        translator.take("sample_after", number, ours="sample_every_n_steps")
    elif unit != "NEVER" and translator.is_given("sample_after_unit"):
        translator.without_effect("sample_after_unit", "samples are counted in steps: sample_every_n_steps")
    samples = translator.get("samples", read_tables)
    named = translator.get("sample_definition_file_name", read_text)
    name = "samples" if samples else "sample_definition_file_name"
    if not samples and named:
        try:
            samples = read_tables(read_file(named))
        except FileNotFoundError:
            translator.without_effect(name, "there is no such file; the first caption is drawn")
    if samples:
        part = translator.name_part(f"{name} ({len(samples)})")
        translator.take(part, write_lines(samples), ours="sample_prompt")
