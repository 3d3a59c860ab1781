"""Every row of sd-scripts' and OneTrainer's settings: their value, and ours."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from trainers.commands.sdxl import CONFIGS
from trainers.config import param
from trainers.translate import kohya_table, onetrainer_table
from trainers.translate.foreign_config import translate_file
from trainers.translate.translation import Translation

DATA = Path(__file__).parents[2] / "data"
KOHYA = {"network_module": "networks.lora"}
ONETRAINER = {"training_method": "LORA", "model_type": "STABLE_DIFFUSION_XL_10_BASE"}
GUI = {"LoRA_type": "Standard"}


@dataclass(frozen=True)
class LaterConfig:
    """Settings that this trainer may get: the tables know them already."""

    huber_scale: float = param(1.0)


def translate(content: dict[str, Any], configs=CONFIGS) -> Translation:
    translation = translate_file(Path("theirs"), content, configs)
    assert translation is not None
    return translation


KOHYA_ROWS = [
    ("pretrained_model_name_or_path", "C:\\models\\xl.safetensors", {"base": "C:\\models\\xl.safetensors"}),
    ("train_data_dir", "img", {"images": "img"}),
    ("output_name", "zwx", {"output": "zwx"}),
    ("output_dir", "out", {"output_dir": "out"}),
    ("network_dim", 8, {"rank": 8}),
    ("network_dim", "8", {"rank": 8}),
    ("network_alpha", 2, {"alpha": 2.0}),
    ("network_dropout", 0.1, {"lora_dropout": 0.1}),
    ("network_weights", "old.safetensors", {"network_weights": "old.safetensors"}),
    ("gradient_accumulation_steps", 4, {"gradient_accumulation_steps": 4}),
    ("gradient_checkpointing", True, {"gradient_checkpointing": True}),
    ("max_grad_norm", 0, {"max_grad_norm": 0.0}),
    ("seed", 3, {"seed": 3}),
    ("mixed_precision", "fp16", {"mixed_precision": "fp16"}),
    ("save_every_n_epochs", 2, {"save_every_n_epochs": 2}),
    ("save_every_n_steps", 200, {"save_every_n_steps": 200}),
    ("save_precision", "float", {"save_dtype": "fp32"}),
    ("save_precision", "fp16", {"save_dtype": "fp16"}),
    ("sample_every_n_steps", 100, {"sample_every_n_steps": 100}),
    ("validate_every_n_steps", 50, {"validate_every_n_steps": 50}),
    ("min_snr_gamma", 5, {"min_snr_gamma": 5.0}),
    ("noise_offset", 0.03, {"noise_offset": 0.03}),
    ("v_parameterization", True, {"prediction_type": "v_prediction"}),
    ("zero_terminal_snr", True, {"zero_terminal_snr": "on"}),
    ("torch_compile", True, {"torch_compile": True}),
    ("fp8_base", True, {"base_dtype": "fp8"}),
    ("train_batch_size", 4, {"train_batch_size": 4}),
    ("bucket_reso_steps", 32, {"bucket_reso_steps": 32}),
    ("min_bucket_reso", 512, {"min_bucket_reso": 512}),
    ("max_bucket_reso", 1536, {"max_bucket_reso": 1536}),
    ("bucket_no_upscale", True, {"bucket_no_upscale": True}),
    ("flip_aug", True, {"random_flip": True}),
    ("color_aug", True, {"color_aug": 0.1}),
    ("color_aug", False, {"color_aug": 0.0}),
    ("shuffle_caption", True, {"shuffle_captions": True}),
    ("keep_tokens", 2, {"keep_tokens": 2}),
    ("caption_separator", ";", {"caption_separator": ";"}),
    ("caption_dropout_rate", 0.1, {"caption_dropout": 0.1}),
    ("caption_tag_dropout_rate", 0.2, {"tag_dropout": 0.2}),
    ("enable_wildcard", True, {"use_wildcards": True}),
    ("validation_split", 0.1, {"validation_share": 0.1}),
    ("caption_prefix", "zwx, ", {"trigger_word": "zwx"}),
    ("alpha_mask", True, {"mask_source": "alpha", "unmasked_weight": 0.0}),
    ("resolution", "1024,1024", {"resolution": 1024}),
    ("resolution", [768, 768], {"resolution": 768}),
    ("resolution", 512, {"resolution": 512}),
    ("enable_bucket", True, {"resize_mode": "bucket"}),
    ("enable_bucket", False, {"resize_mode": "center_crop"}),
    ("random_crop", True, {"resize_mode": "random_crop"}),
    ("learning_rate", 1e-3, {"learning_rate": 1e-3, "text_encoder_learning_rate": 1e-3}),
    ("unet_lr", 2e-4, {"learning_rate": 2e-4, "text_encoder_learning_rate": 2e-6}),
    ("text_encoder_lr", 3e-5, {"text_encoder_learning_rate": 3e-5, "text_encoder_2_learning_rate": 3e-5}),
    ("text_encoder_lr", [3e-5], {"text_encoder_learning_rate": 3e-5, "text_encoder_2_learning_rate": 3e-5}),
    ("text_encoder_lr", 0, {"train_text_encoders": False}),
    ("network_train_unet_only", True, {"train_text_encoders": False}),
    ("max_train_steps", 900, {"max_train_steps": 900}),
    ("max_train_epochs", 9, {"num_train_epochs": 9}),
    ("lr_scheduler", "polynomial", {"lr_scheduler": "polynomial"}),
    ("lr_scheduler", "constant_with_warmup", {"lr_scheduler": "constant"}),
    ("optimizer_type", "adamw8BIT", {"optimizer": "AdamW8bit", "weight_decay": 0.01}),
    ("optimizer_type", "PagedAdamW8bit", {"optimizer": "AdamW8bit"}),
    ("optimizer_type", "prodigyopt.Prodigy", {"optimizer": "Prodigy", "weight_decay": 0.0}),
    ("optimizer_type", "torch.optim.RAdam", {"optimizer": "torch.optim.RAdam", "weight_decay": 0.0}),
    ("optimizer_type", "Lion", {"optimizer": "Lion", "weight_decay": 0.0}),
    ("scale_weight_norms", 1, {"scale_weight_norms": 1.0}),
    ("debiased_estimation_loss", True, {"snr_weighting": "debiased"}),
    ("ip_noise_gamma", 0.05, {"ip_noise_gamma": 0.05}),
    ("multires_noise_iterations", 6, {"multires_noise_iterations": 6, "multires_noise_discount": 0.3}),
    ("loss_type", "huber", {"loss_type": "huber", "huber_c": 0.1, "huber_schedule": "snr"}),
    ("min_timestep", 100, {"min_timestep": 100}),
    ("max_timestep", 900, {"max_timestep": 900}),
    ("lr_scheduler", "warmup_stable_decay", {"lr_scheduler": "warmup_stable_decay", "lr_decay_steps": 0.0}),
    ("network_args", ["conv_dim=8"], {"conv_rank": 8, "conv_alpha": 1.0}),
    ("network_args", "conv_dim=8 conv_alpha=4", {"conv_rank": 8, "conv_alpha": 4.0}),
    ("network_args", ["rank_dropout=0.1"], {"rank_dropout": 0.1}),
    ("network_args", ["module_dropout=0.1"], {"module_dropout": 0.1}),
    ("network_args", ["factor=8"], {"lokr_factor": 8}),
    ("network_args", ["decompose_both=True"], {"lokr_decompose_both": True}),
    ("network_args", ["full_matrix=True"], {"lokr_full_matrix": True}),
    ("network_args", ["rs_lora=True"], {"use_rslora": True}),
    ("network_args", ["loraplus_lr_ratio=4"], {"loraplus_lr_ratio": 4.0}),
    ("optimizer_type", "prodigyplus.ProdigyPlusScheduleFree", {"lr_scheduler": "constant", "lr_warmup_steps": 0.0}),
    ("use_8bit_adam", True, {"optimizer": "AdamW8bit"}),
    (
        "optimizer_args",
        ["weight_decay=0.1", "betas=0.9,0.99"],
        {"weight_decay": 0.1, "optimizer_args": "betas=(0.9,0.99)"},
    ),
]


@pytest.mark.parametrize(("name", "value", "ours"), KOHYA_ROWS)
def test_a_setting_of_sd_scripts_becomes_ours(name, value, ours):
    settings = translate({**KOHYA, name: value}).settings
    assert {key: settings.get(key) for key in ours} == ours


LATER_KOHYA_ROWS = [
    ({"loss_type": "huber", "huber_scale": 2}, "huber_scale 2", {"huber_scale": 2.0}),
]


@pytest.mark.parametrize(("given", "shown", "ours"), LATER_KOHYA_ROWS)
def test_a_row_without_a_setting_here_is_a_loss_and_maps_when_the_setting_comes(given, shown, ours):
    now = translate({**KOHYA, **given})
    assert [(note.name, note.text) for note in now.lost] == [(shown, "there is no such setting here")]
    later = translate({**KOHYA, **given}, (*CONFIGS, LaterConfig))
    assert {key: later.settings.get(key) for key in ours} == ours
    assert later.lost == []


def test_every_row_of_sd_scripts_is_tested():
    rows = (*kohya_table.ROWS, *kohya_table.DATASET_ROWS)
    tested = {name for name, *_ in KOHYA_ROWS} | {name for given, *_ in LATER_KOHYA_ROWS for name in given}
    assert [row.name for row in rows if row.name not in tested] == []
    arguments = str([value for name, value, _ in KOHYA_ROWS if name == "network_args"]) + str(LATER_KOHYA_ROWS)
    assert [row.name for row in kohya_table.NETWORK_ARG_ROWS if f"{row.name}=" not in arguments] == []


@pytest.mark.parametrize("reasons", [kohya_table.SAME, kohya_table.WITHOUT_EFFECT, kohya_table.LOST])
def test_settings_that_are_not_taken_are_listed_with_the_reason(reasons):
    for name, reason in reasons.items():
        translation = translate({**KOHYA, "train_data_dir": "img", name: "x" if name != "masked_loss" else True})
        assert f"{name}" in translation.text("") and reason in translation.text(""), name


def test_where_sd_scripts_leaves_a_setting_open_its_defaults_hold():
    settings = translate(KOHYA).settings
    ours = {
        **{"rank": 4, "alpha": 1.0, "learning_rate": 2e-6, "max_train_steps": 1600, "lr_scheduler": "constant"},
        **{"lr_warmup_steps": 0.0, "min_snr_gamma": 0.0, "caption_dropout": 0.0, "train_text_encoders": True},
        **{"bucket_no_upscale": False, "max_bucket_reso": 1024, "resize_mode": "center_crop", "save_dtype": "fp32"},
        **{"gradient_checkpointing": False, "optimizer": "AdamW", "weight_decay": 0.01, "mask_source": "off"},
    }
    assert {name: settings[name] for name in ours} == ours


def test_the_defaults_are_those_of_sd_scripts_own_parser():
    given = json.loads((DATA / "sd_scripts_flags.json").read_text(encoding="utf-8"))
    written = translate({**given, **KOHYA})
    off = {
        **{"prediction_type": "auto", "torch_compile": False},
        **{"zero_terminal_snr": "auto", "snr_weighting": "min_snr"},
    }
    assert written.settings == {**translate(KOHYA).settings, **off}
    assert written.lost == []


def test_every_flag_of_sd_scripts_is_known():
    flags = json.loads((DATA / "sd_scripts_flags.json").read_text(encoding="utf-8"))
    assert len(flags) > 180
    unknown = [flag for flag in set(flags) - {"config_file", "output_config", "dataset_config"} if not is_known(flag)]
    assert unknown == []


def is_known(flag: str) -> bool:
    """A value of the wrong kind raises: then it is known too."""
    try:
        lost = translate({**KOHYA, flag: "x"}).lost
    except ValueError:
        return True
    return not any(note.text == "is not known here" for note in lost)


ONETRAINER_ROWS = [
    ({"lora_rank": 8}, {"rank": 8}),
    ({"lora_alpha": 4}, {"alpha": 4.0}),
    ({"dropout_probability": 0.1}, {"lora_dropout": 0.1}),
    ({"lora_model_name": "a.safetensors"}, {"network_weights": "a.safetensors"}),
    ({"epochs": 7}, {"num_train_epochs": 7}),
    ({"batch_size": 3}, {"train_batch_size": 3}),
    ({"gradient_accumulation_steps": 2}, {"gradient_accumulation_steps": 2, "lr_warmup_steps": 100.0}),
    ({"train_dtype": "BFLOAT_16"}, {"mixed_precision": "bf16"}),
    ({"train_dtype": "TFLOAT_32"}, {"mixed_precision": "no"}),
    ({"output_dtype": "FLOAT_16"}, {"save_dtype": "fp16"}),
    ({"offset_noise_weight": 0.02}, {"noise_offset": 0.02}),
    ({"unmasked_weight": 0.3}, {"unmasked_weight": 0.3}),
    ({"normalize_masked_area_loss": True}, {"normalize_masked_loss": True}),
    ({"compile": True}, {"torch_compile": True}),
    ({"base_model_name": "xl.safetensors"}, {"base": "xl.safetensors"}),
    ({"output_model_destination": "C:\\out\\zwx.safetensors"}, {"output": "zwx", "output_dir": "C:/out"}),
    ({"masked_training": True}, {"mask_source": "files"}),
    ({}, {"mask_source": "off", "alpha": 1.0, "num_train_epochs": 100, "learning_rate": 3e-6, "resolution": 512}),
    ({"resolution": "1024"}, {"resolution": 1024, "bucket_no_upscale": False, "resize_mode": "bucket"}),
    ({"resolution": "1024,768"}, {"resolution": 1024, "extra_resolutions": "768"}),
    ({"aspect_ratio_bucketing": False}, {"resize_mode": "center_crop"}),
    ({"layer_filter_preset": "attn-mlp"}, {"target_modules": "attention_mlp"}),
    ({"layer_filter_preset": "full"}, {"target_modules": ".*"}),
    ({"layer_filter_preset": "custom", "layer_filter": "attn2.to_k, ff"}, {"target_modules": r".*(attn2\.to_k|ff).*"}),
    ({"learning_rate": 1e-4}, {"learning_rate": 1e-4, "text_encoder_learning_rate": 1e-4}),
    ({"unet": {"learning_rate": 5e-4}}, {"learning_rate": 5e-4}),
    ({"text_encoder": {"train": False}}, {"train_text_encoders": True, "text_encoder_learning_rate": 0.0}),
    ({"text_encoder": {"train": False}, "text_encoder_2": {"train": False}}, {"train_text_encoders": False}),
    ({"learning_rate": 1e-4, "learning_rate_scaler": "BOTH", "batch_size": 4}, {"learning_rate": 2e-4}),
    ({"learning_rate_scheduler": "LINEAR"}, {"lr_scheduler": "linear"}),
    ({"learning_rate_warmup_steps": 0.1}, {"lr_warmup_steps": 0.1}),
    ({"clip_grad_norm": None}, {"max_grad_norm": 0.0}),
    ({"optimizer": {"optimizer": "ADAMW_8BIT"}}, {"optimizer": "AdamW8bit", "weight_decay": 0.01}),
    ({"optimizer": "LION"}, {"optimizer": "Lion", "weight_decay": 0.0}),
    (
        {"optimizer": {"optimizer": "PRODIGY", "d_coef": 2.0, "safeguard_warmup": True, "use_bias_correction": False}},
        {"optimizer": "Prodigy", "optimizer_args": "use_bias_correction=False d_coef=2.0"},
    ),
    (
        {"optimizer": {"optimizer": "ADAFACTOR", "relative_step": False, "scale_parameter": False}},
        {"optimizer": "Adafactor", "optimizer_args": "eps=(1e-30,0.001)"},
    ),
    ({"loss_weight_fn": "MIN_SNR_GAMMA", "loss_weight_strength": 3}, {"min_snr_gamma": 3.0}),
    ({"min_snr_gamma": 5}, {"min_snr_gamma": 5.0}),
    (
        {"rescale_noise_scheduler_to_zero_terminal_snr": True},
        {"zero_terminal_snr": "on", "prediction_type": "v_prediction"},
    ),
    ({"force_v_prediction": True}, {"prediction_type": "v_prediction"}),
    ({"unet": {"gradient_checkpointing": False}}, {"gradient_checkpointing": False}),
    ({"gradient_checkpointing": "OFF"}, {"gradient_checkpointing": False}),
    ({"unet": {"weight_dtype": "NFLOAT_4"}}, {"base_dtype": "nf4"}),
    ({"ema": "CPU", "ema_decay": 0.81, "ema_update_step_interval": 2}, {"ema_decay": 0.9}),
    ({"save_every": 3, "save_every_unit": "EPOCH"}, {"save_every_n_epochs": 3}),
    ({"save_after": 30, "save_after_unit": "STEP"}, {"save_every_n_steps": 30}),
    ({"sample_after": 30, "sample_after_unit": "STEP"}, {"sample_every_n_steps": 30}),
    ({"samples": [{"prompt": "a|b", "seed": 0}]}, {"sample_prompt": "a b --d 0"}),
]


@pytest.mark.parametrize(("given", "ours"), ONETRAINER_ROWS, ids=lambda value: "-".join(value) or "nothing")
def test_a_setting_of_onetrainer_becomes_ours(given, ours):
    settings = translate({**ONETRAINER, **given}).settings
    assert {key: settings.get(key) for key in ours} == ours


def test_the_defaults_are_those_of_onetrainer_and_all_its_settings_are_known():
    given = json.loads((DATA / "onetrainer_settings.json").read_text(encoding="utf-8"))
    del given["base_model_name"], given["output_model_destination"]
    given |= {"layer_filter_preset": "full", "concept_file_name": "", "sample_definition_file_name": ""}
    written = translate({**given, **ONETRAINER})
    assert written.settings == {**translate(ONETRAINER).settings, "torch_compile": False}
    assert written.lost == []


@pytest.mark.parametrize(
    ("images", "ours", "lost"),
    [
        ([{"enable_random_rotate": True, "random_rotate_max_angle": 6}], (None, 6.0, 3), []),
        ([{"enable_random_rotate": False, "random_rotate_max_angle": 6}], (None, None, None), []),
        (
            [{"enable_random_brightness": True, "random_brightness_max_strength": 0.2}, {}],
            (0.2, None, 3),
            [("enable_random_brightness", "all images and colours share one strength here: 0.2 is taken")],
        ),
        (
            [{"enable_random_hue": True, "random_hue_max_strength": 0.2}],
            (None, None, None),
            [("enable_random_hue of a concept", "there is no such change of images or captions")],
        ),
    ],
)
def test_changes_of_onetrainers_images_become_ours(images, ours, lost):
    concepts = [{"path": "img", "image": {"image_variations": 3, **image}} for image in images]
    translation = translate({**ONETRAINER, "concepts": concepts})
    names = ("color_aug", "rotation_aug", "num_augmented_variants")
    assert tuple(translation.settings.get(name) for name in names) == ours
    assert [(note.name, note.text) for note in translation.lost] == lost


def test_every_row_of_onetrainer_is_tested():
    tested = {name for given, _ in ONETRAINER_ROWS for name in given}
    assert [row.name for row in onetrainer_table.ROWS if row.name not in tested] == []


@pytest.mark.parametrize(
    ("epochs", "unit", "after", "stop"),
    [
        (60, "EPOCH", 30, 0.5),
        (60, None, None, 0.5),
        (20, "EPOCH", 30, None),
        (60, "STEP", 200, 200.0),
        (60, "NEVER", 1, None),
    ],
)
def test_text_encoders_of_onetrainer_stop_where_they_do_there(epochs, unit, after, stop):
    part = {"train": True, "stop_training_after_unit": unit, "stop_training_after": after}
    content = {**ONETRAINER, "epochs": epochs, "text_encoder": part, "text_encoder_2": {"train": False}}
    assert translate(content).settings.get("stop_text_encoder_training") == stop


@pytest.mark.parametrize("name", onetrainer_table.LOST)
def test_what_onetrainer_has_and_this_trainer_has_not_is_a_loss_with_its_reason(name):
    part, _, inner = name.partition(".")
    value = [{}] if name == "additional_embeddings" else "OTHER"
    translation = translate({**ONETRAINER, part: {inner: value} if inner else value})
    assert (name, onetrainer_table.LOST[name][0]) in [(note.name.split()[0], note.text) for note in translation.lost]


@pytest.mark.parametrize(
    ("given", "ours"),
    [
        ({"epoch": 4}, {"num_train_epochs": 4}),
        ({"epoch": 4, "max_train_steps": 900}, {"max_train_steps": 900}),
        ({"epoch": 4, "max_train_epochs": "6"}, {"num_train_epochs": 6}),
        ({"lr_warmup": 10, "lr_scheduler": "cosine"}, {"lr_warmup_steps": 0.1}),
        ({"lr_warmup": 10, "lr_warmup_steps": 50, "lr_scheduler": "cosine"}, {"lr_warmup_steps": 50.0}),
        ({"max_resolution": "768,768"}, {"resolution": 768}),
        ({"optimizer": "AdamW8bit"}, {"optimizer": "AdamW8bit"}),
        ({"noise_offset": 0.1, "noise_offset_type": "Multires"}, {"noise_offset": 0.0}),
        ({"unet_lr": 1e-4, "text_encoder_lr": 0}, {"learning_rate": 1e-4, "train_text_encoders": False}),
        ({"unet_lr": 0, "text_encoder_lr": 0, "learning_rate": 1e-4}, {"text_encoder_learning_rate": 1e-4}),
        ({"additional_parameters": '--network_train_unet_only --min_snr_gamma=3'}, {"min_snr_gamma": 3.0}),
        ({"lora_network_weights": "old.safetensors"}, {"network_weights": "old.safetensors"}),
        ({"seed": ""}, {"seed": None}),
    ],
)  # fmt: skip
def test_what_kohya_ss_writes_otherwise_than_sd_scripts_becomes_ours(given, ours):
    settings = translate({**GUI, **given}).settings
    assert {key: settings.get(key) for key in ours} == ours


@pytest.mark.parametrize(
    ("network", "adapter"),
    [
        ({"network_module": "networks.loha"}, "loha"),
        ({"network_module": "lycoris.kohya", "network_args": ["algo=lokr", "preset=attn-mlp"]}, "lokr"),
        ({"network_module": "lycoris.kohya", "network_args": ["algo=lora", "preset=attn-mlp", "dora_wd=True"]}, "dora"),
    ],
)
def test_other_adapters_map(network, adapter):
    content = {"train_data_dir": "img", **network}
    assert translate(content).settings["adapter"] == adapter
    assert translate({**GUI, "LoRA_type": "LyCORIS/LoHa", "LyCORIS_preset": "attn-mlp"}).settings["adapter"] == "loha"
    assert translate({**ONETRAINER, "peft_type": "LOKR"}).settings["adapter"] == "lokr"


def test_lycoris_trains_convolutions_too_where_its_preset_is_full():
    content = {"network_module": "lycoris.kohya", "network_args": ["algo=locon"], "network_dim": 12}
    translation = translate(content)
    assert (translation.settings["conv_rank"], translation.settings["conv_alpha"]) == (12, 1.0)
    assert "LyCORIS's preset full trains other layers" in translation.lost[0].text
