"""Settings are read back from the header of a LoRA: ours whole, kohya's as far as they map."""

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.unit.training.test_loop import dataset, train  # noqa: F401 (a fixture)
from trainers.__main__ import make_parser
from trainers.commands.sdxl import CONFIGS, REQUIRED
from trainers.commands.settings import read_settings
from trainers.dataset.bucket_config import BucketConfig
from trainers.dataset.caption_variants import CaptionConfig
from trainers.sdxl.config import SDXLConfig
from trainers.training.config import TrainingConfig
from trainers.training.earlier_settings import read_earlier_settings
from trainers.training.metadata import describe_adapter
from trainers.training.run_settings import RunSettings

IN_GRAPH = (SDXLConfig, BucketConfig, CaptionConfig)
KOHYA = {  # as sd-scripts 0.9 writes it
    "ss_network_module": "networks.lora",
    "ss_network_dim": "32",
    "ss_network_alpha": "16.0",
    "ss_learning_rate": "0.0004",
    "ss_unet_lr": "0.0002",
    "ss_text_encoder_lr": "5e-05",
    "ss_resolution": "(1024, 1024)",
    "ss_optimizer": "bitsandbytes.optim.adamw.AdamW8bit(weight_decay=0.1,betas=(0.9, 0.99))",
    "ss_max_train_steps": "1600",
    "ss_batch_size_per_device": "2",
    "ss_seed": "42",
    "ss_min_snr_gamma": "5.0",
    "ss_noise_offset": "None",
    "ss_multires_noise_iterations": "6",
    "ss_multires_noise_discount": "0.2",
    "ss_ip_noise_gamma": "0.1",
    "ss_debiased_estimation": "False",
    "ss_loss_type": "huber",
    "ss_huber_schedule": "exponential",
    "ss_huber_c": "0.15",
    "ss_adaptive_noise_scale": "0.5",
    "ss_lr_scheduler": "constant_with_warmup",
    "ss_gradient_checkpointing": "True",
    "ss_keep_tokens": "1",
    "ss_steps": "1600",
    "ss_session_id": "123",
    "ss_tag_frequency": "{}",
}


def write(path: Path, metadata: dict[str, str]) -> Path:
    save_file({"x.alpha": torch.ones(())}, path, metadata)
    return path


def test_all_settings_of_our_own_lora_come_back(dataset, tmp_path):  # noqa: F811
    trained = train(dataset, tmp_path, rank=3, ema_decay=0.5, seed=9, caption_dropout=0.25)
    earlier = read_earlier_settings(trained.path, (TrainingConfig, BucketConfig, CaptionConfig))
    again = RunSettings.read(TrainingConfig, earlier.values)
    assert again.training.rank == 3 and again.training.seed == 9 and again.training.caption_dropout == 0.25
    assert again.buckets == BucketConfig(resolution=64, bucket_reso_steps=32)
    assert earlier.left_out == ["trigger word 'zwx': it is set where the images are loaded"]


def test_what_is_obsolete_or_elsewhere_is_named(tmp_path):
    settings = {"rank": 8, "network_weights": "a.safetensors", "magic": 3, "resolution": 100, "optimizer": None}
    path = write(tmp_path / "a.safetensors", {"lora_trainer_config": json.dumps(settings)})
    earlier = read_earlier_settings(path, IN_GRAPH)
    assert earlier.values == {"rank": 8}
    assert earlier.left_out[:2] == [
        "network_weights a.safetensors: only the name of the file is known, not its folder",
        "magic 3: there is no such setting here",
    ]
    assert "resolution must be a multiple of 64, got 100" in earlier.left_out[2]


def test_settings_are_checked_together(tmp_path):
    """4096 is only allowed with a larger max_bucket_reso than the default."""
    settings = {"resolution": 4096, "max_bucket_reso": 8192}
    path = write(tmp_path / "a.safetensors", {"lora_trainer_config": json.dumps(settings)})
    assert read_earlier_settings(path, IN_GRAPH).values == settings


def test_kohya_s_settings_come_as_far_as_there_are_any_here(tmp_path):
    earlier = read_earlier_settings(write(tmp_path / "k.safetensors", KOHYA), IN_GRAPH)
    assert earlier.values == {
        "min_snr_gamma": 5.0,
        "noise_offset": 0.0,
        "multires_noise_iterations": 6,
        "multires_noise_discount": 0.2,
        "ip_noise_gamma": 0.1,
        "snr_weighting": "min_snr",
        "loss_type": "huber",
        "huber_schedule": "exponential",
        "huber_c": 0.15,
        "rank": 32,
        "alpha": 16.0,
        "learning_rate": 2e-4,
        "max_train_steps": 1600,
        "train_batch_size": 2,
        "gradient_checkpointing": True,
        "seed": 42,
        "resolution": 1024,
        "keep_tokens": 1,
        "optimizer": "AdamW8bit",
        "weight_decay": 0.1,
        "optimizer_args": "betas=(0.9,0.99)",
    }
    text = earlier.text()
    assert "ss_adaptive_noise_scale 0.5: no counterpart here" in text and "ss_text_encoder_lr 5e-05" in text
    assert "lr_scheduler must be one of" in text and "session_id" not in text


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"ss_optimizer": "dadaptation.DAdaptAdam"}, "ss_optimizer dadaptation.DAdaptAdam: none of"),
        (
            {"ss_network_module": "networks.oft"},
            "ss_network_module networks.oft: LoRA, DoRA, LoHa, LoKr are trained here",
        ),
        (
            {"ss_network_module": "lycoris.kohya", "ss_network_args": '{"algo": "boft"}'},
            "ss_network_module lycoris.kohya: LoRA, DoRA, LoHa, LoKr are trained here",
        ),
        ({"ss_resolution": "(768, 1024)"}, "ss_resolution (768, 1024): cannot be read as resolution"),
        ({"ss_network_args": '{"use_tucker": "True"}'}, "ss_network_args use_tucker=True: no counterpart here"),
    ],
)
def test_what_kohya_has_and_we_do_not_is_listed(tmp_path, metadata, said):
    earlier = read_earlier_settings(write(tmp_path / "k.safetensors", {"ss_network_dim": "4", **metadata}), IN_GRAPH)
    assert any(entry.startswith(said) for entry in earlier.left_out), earlier.left_out


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "there is no such file"),
        (b"no tensors", "not a .safetensors file"),
        ({"title": "x"}, "neither ours nor those of sd-scripts"),
        ({"lora_trainer_config": "{"}, "cannot be read"),
    ],
)
def test_a_file_without_settings_is_refused(tmp_path, content, said):
    path = tmp_path / "x.safetensors"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        write(path, content)
    with pytest.raises(ValueError, match=said):
        read_earlier_settings(path, IN_GRAPH)


def read_flags(*flags: str) -> dict:
    options = make_parser().parse_args(["sdxl", "--images", "a", "--base", "b", "--output", "c", *flags])
    return read_settings(options, configs=CONFIGS, required=REQUIRED)


def test_flags_win_over_the_lora_and_the_rest_is_said(tmp_path, caplog):
    header = {"rank": 8, "num_train_epochs": 9, "max_train_steps": 700, "seed": 5}
    path = write(
        tmp_path / "a.safetensors",
        {"lora_trainer_config": json.dumps(header), "modelspec.trigger_phrase": "zwx"},
    )
    with caplog.at_level(logging.WARNING):
        settings = read_flags("--like", str(path), "--rank", "4")
    assert settings["rank"] == 4 and settings["seed"] == 5 and settings["num_train_epochs"] == 9
    assert settings["trigger_word"] == "zwx" and "a.safetensors: 5 settings" in caplog.text
    fewer = read_flags("--like", str(path), "--max-train-steps", "10")
    assert fewer["max_train_steps"] == 10 and "num_train_epochs" not in fewer, "epochs would win over the steps"


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ({}, {"adapter": "lora"}),
        ({"algo": "locon", "dora_wd": True}, {"adapter": "dora"}),
        ({"algo": "loha"}, {"adapter": "loha"}),
        (
            {"algo": "lokr", "factor": "8", "decompose_both": "True"},
            {"adapter": "lokr", "lokr_factor": 8, "lokr_decompose_both": True},
        ),
    ],
)
def test_the_adapter_of_lycoris_is_taken(tmp_path, args, expected):
    header = {**KOHYA, "ss_network_module": "lycoris.kohya", "ss_network_args": json.dumps(args)}
    values = read_earlier_settings(write(tmp_path / "a.safetensors", header), IN_GRAPH).values
    assert {name: value for name, value in values.items() if name == "adapter" or "lokr" in name} == expected


def test_the_convolutions_of_sd_scripts_are_taken(tmp_path):
    header = {**KOHYA, "ss_network_args": '{"conv_dim": "8", "conv_alpha": "4"}'}
    values = read_earlier_settings(write(tmp_path / "a.safetensors", header), IN_GRAPH).values
    assert (values["conv_rank"], values["conv_alpha"]) == (8, 4.0)


@pytest.mark.parametrize("adapter", ["lora", "dora", "loha", "lokr"])
def test_what_our_header_tells_lycoris_is_read_as_the_same_adapter(tmp_path, adapter):
    config = SDXLConfig(adapter=adapter, lokr_factor=4)
    args, module = describe_adapter(config), "lycoris.kohya" if describe_adapter(config) else "networks.lora"
    header = {**KOHYA, "ss_network_module": module, "ss_network_args": json.dumps(args)}
    values = read_earlier_settings(write(tmp_path / "a.safetensors", header), IN_GRAPH).values
    assert values.get("adapter", "lora") == adapter and values.get("lokr_factor", 4) == 4
