"""Parameters: ranges, flags, and values from files."""

import argparse
import re
from dataclasses import fields

import pytest

from trainers.config import add_flags, from_mapping
from trainers.sdxl.config import SDXLConfig
from trainers.training.optimizer_table import OPTIMIZERS


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"rank": 0}, "rank must be between 1 and 1024, got 0"),
        ({"learning_rate": -1e-4}, "learning_rate must be between 0.0 and 10.0, got -0.0001"),
        ({"learning_rate": float("nan")}, "learning_rate must be a finite number, got nan"),
        (
            {"optimizer": "SGD"},
            f"optimizer must be one of {', '.join(OPTIMIZERS)}, or an import path such as torch.optim.RAdam; got 'SGD'",
        ),
        ({"save_dtype": "fp8"}, "save_dtype must be one of fp32, fp16, bf16; got 'fp8'"),
        (
            {"train_text_encoders": True, "text_encoder_learning_rate": 0.0, "text_encoder_2_learning_rate": 0.0},
            "both text encoder learning rates are 0",
        ),
    ],
)
def test_a_setting_out_of_range_names_the_value_and_the_range(setting, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        SDXLConfig(**setting)


def test_every_field_has_help_and_a_flag():
    parser = argparse.ArgumentParser()
    add_flags(parser, SDXLConfig)
    flags = parser.format_help()
    for spec in fields(SDXLConfig):
        assert spec.metadata["help"], spec.name
        assert "--" + spec.name.replace("_", "-") in flags


def test_flags_that_are_not_given_set_no_value():
    parser = argparse.ArgumentParser()
    add_flags(parser, SDXLConfig)
    given = vars(parser.parse_args(["--rank", "8", "--no-gradient-checkpointing", "--learning-rate", "3e-4"]))
    assert given == {"rank": 8, "gradient_checkpointing": False, "learning_rate": 3e-4}


def test_a_mapping_becomes_a_config_and_floats_can_be_whole_numbers():
    assert from_mapping(SDXLConfig, {"alpha": 8, "rank": 8}, source="x.toml").alpha == 8.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"network_dim": 8}, "x.toml: unknown setting network_dim (did you mean rank?). Allowed: adapter, alpha,"),
        ({"rank": "8"}, "x.toml: rank must be int, got str '8'"),
        ({"rank": True}, "x.toml: rank must be int, got bool True"),
    ],
)
def test_the_error_for_a_wrong_mapping_names_its_source(values, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        from_mapping(SDXLConfig, values, source="x.toml")
