"""Several folders in one TOML file: [[datasets]] tables, their defaults, and errors in them."""

import argparse
import re
from pathlib import Path

import pytest
from PIL import Image

from trainers.__main__ import main
from trainers.commands.sdxl import CONFIGS, REQUIRED, add_arguments
from trainers.commands.settings import read_dataset_configs, read_settings, scan_datasets

BASE = 'base = "x"\noutput = "y"\n'


def settings(tmp_path: Path, text: str, *flags: str) -> dict:
    (tmp_path / "run.toml").write_text(BASE + text, encoding="utf-8")
    return read(tmp_path, *flags)


def read(tmp_path: Path, *flags: str) -> dict:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return read_settings(
        parser.parse_args(["--config", str(tmp_path / "run.toml"), *flags]), configs=CONFIGS, required=REQUIRED
    )


def folder(path: Path, colour: tuple[int, int, int]) -> Path:
    path.mkdir()
    Image.new("RGB", (64, 64), colour).save(path / "a.png")
    return path


def test_each_table_is_a_folder_and_settings_outside_of_tables_are_its_defaults(tmp_path):
    toys, dogs = folder(tmp_path / "toys", (1, 0, 0)), folder(tmp_path / "dogs", (2, 0, 0))
    text = f"""
        trigger_word = "zwx"
        num_repeats = 4
        [[datasets]]
        images = {str(toys)!r}
        loss_weight = 2
        [[datasets]]
        images = {str(dogs)!r}
        is_regularization = true
        fallback_caption = "a dog"
        num_repeats = 1
    """
    dataset = scan_datasets(read_dataset_configs(settings(tmp_path, text)))
    assert [
        (image.name, image.caption, image.num_repeats, image.loss_weight, image.is_regularization)
        for image in dataset.images
    ] == [
        ("toys/a.png", "zwx", 4, 2.0, False),
        ("dogs/a.png", "a dog", 1, 1.0, True),
    ]


def test_flags_are_defaults_for_the_tables_too(tmp_path):
    (config,) = read_dataset_configs(settings(tmp_path, "[[datasets]]\nimages = 'x'", "--num-repeats", "3"))
    assert (config.images, config.num_repeats) == ("x", 3)


@pytest.mark.parametrize("tables", [False, True])
def test_validation_images_are_a_folder_more_with_the_settings_of_the_others(tmp_path, tables):
    toys, others = folder(tmp_path / "toys", (1, 0, 0)), folder(tmp_path / "others", (2, 0, 0))
    text = f"trigger_word = 'zwx'\n{'[[datasets]]' if tables else ''}\nimages = '{toys}'"
    configs = read_dataset_configs(settings(tmp_path, text, "--validation-images", str(others)))
    assert [(config.images, config.is_validation) for config in configs] == [(str(toys), False), (str(others), True)]
    dataset = scan_datasets(configs)
    assert [image.is_validation for image in dataset.images] == [False, True]
    assert {image.caption for image in dataset.images} == {"zwx"} and dataset.num_training_samples == 1


def test_without_tables_the_settings_describe_the_only_dataset(tmp_path):
    (config,) = read_dataset_configs(settings(tmp_path, "images = 'x'\nmask_source = 'alpha'"))
    assert (config.images, config.mask_source) == ("x", "alpha")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_what_windows_editors_write_is_read(tmp_path, encoding):
    (tmp_path / "run.toml").write_text("images = 'C:\\größe'\r\nbase = 'x'\noutput = 'y'", encoding=encoding)
    assert read(tmp_path)["images"] == "C:\\größe"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("images = 'größe'".encode("cp1252"), "run.toml: line 1 is not UTF-8 text. Save the file as UTF-8"),
        (b'a = 1\nimages = "C:\\Users"', "not valid TOML"),
        (b'images = "C:\\Users\\me"', "write paths in single quotes, as in images = 'C:\\photos"),
        (b'images = "C:\\new\\toys"', "images has a control character in it: 'C:\\new\\toys'"),
        (b'[[datasets]]\nimages = "C:\\toys"', "images has a control character in it"),
        (b'output = ["o"]', "output must be a text in quotes, got list ['o']"),
        (b"device = 0", "device must be a text in quotes, got int 0"),
        (b"network_dim = 4", "unknown setting network_dim (did you mean rank?)"),
        (b"unet_lr = 4\nlearnig_rate = 1", "learnig_rate (did you mean learning_rate?), unet_lr (did you mean"),
        (b"xyzzy = 4", "unknown setting xyzzy. Allowed: "),
        (b"a = " + b"[" * 100_000, "not valid TOML"),
        (None, "run.toml: there is no such file"),
    ],
)
def test_a_file_that_cannot_be_read_is_an_error_with_its_remedy(tmp_path, content, message):
    if content is not None:
        (tmp_path / "run.toml").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        read(tmp_path)


@pytest.mark.parametrize(
    ("flag", "meant"),
    [
        ("--learning_rate", "--learning-rate"),
        ("--network_dim=8", "--rank"),
        ("--network-alpha", "--alpha"),
        ("--train_data_dir", "--images"),
        ("--pretrained_model_name_or_path", "--base"),
        ("--lerning-rate", "--learning-rate"),
    ],
)
def test_a_flag_of_another_program_is_told_by_our_name(capsys, flag, meant):
    with pytest.raises(SystemExit):
        main(["sdxl", flag, "1"])
    assert f"{flag} (did you mean {meant}?)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "reason"),
    [
        ("--xformers", "attention is always PyTorch's own, which is as fast"),
        ("--cache_latents", "latents and texts are always cached"),
        ("--full_bf16", "the LoRA is always trained in float32"),
        ("--clip_skip", "SDXL reads the penultimate layer of its text encoders, in sd-scripts too"),
        ("--vae", "images are encoded with the base model's own VAE"),
        ("--enable_bucket", "images are always sorted into buckets"),
        ("--network_module", "see --adapter and --conv-rank"),
        ("--network_train_unet_only", "that is so without --train-text-encoders"),
        (
            "--face_crop_aug_range",
            "faces are not read from file names; crop_to_subject zoom cuts images down to their masks",
        ),
    ],
)
def test_a_flag_of_sd_scripts_that_is_not_here_is_refused_with_the_reason(capsys, flag, reason):
    with pytest.raises(SystemExit):
        main(["sdxl", flag])
    assert f"{flag} (not here: {reason})" in capsys.readouterr().err


def test_a_missing_file_has_no_number_in_its_message(capsys, tmp_path):
    assert main(["comfyui", str(tmp_path / "gone.json")]) == 1
    said = capsys.readouterr().err
    assert "Errno" not in said and "gone.json" in said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("images = 'x'\n[[datasets]]\nimages = 'z'", "images (x) and [[datasets]] are both given"),
        ("[[datasets]]\nnum_repeats = 2", "[[datasets]] table 1 has no images. Give the folder that holds the images"),
        ("[[datasets]]\nimages = 'x'\nrank = 2", "[[datasets]] table 1: unknown setting rank"),
        (
            "[[datasets]]\nimages = 'x'\nnum_repeats = 'two'",
            "[[datasets]] table 1: num_repeats must be int, got str 'two'",
        ),
        ("datasets = 'x'", "datasets must be tables under [[datasets]]"),
        ("datasets = []", "datasets must be tables under [[datasets]]"),
        (
            "[[datasets]]\nimages = 'x'\n[[datasets]]\nimages = 'x'\nis_regularization = true\ntrigger_word = 'zwx'",
            "must not have a trigger word",
        ),
    ],
)
def test_contradictory_or_wrong_settings_are_an_error(tmp_path, text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read_dataset_configs(settings(tmp_path, text))
