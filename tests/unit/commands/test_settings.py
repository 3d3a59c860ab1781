"""Several folders in one TOML file: [[datasets]] tables, their defaults, and errors in them."""

import argparse
import re
from pathlib import Path

import pytest
from PIL import Image

from trainers.commands.sdxl import CONFIGS, REQUIRED, add_arguments
from trainers.commands.settings import read_dataset_configs, read_settings, scan_datasets

BASE = 'base = "x"\noutput = "y"\n'


def settings(tmp_path: Path, text: str, *flags: str) -> dict:
    (tmp_path / "run.toml").write_text(BASE + text, encoding="utf-8")
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


def test_without_tables_the_settings_describe_the_only_dataset(tmp_path):
    (config,) = read_dataset_configs(settings(tmp_path, "images = 'x'\nmask_source = 'alpha'"))
    assert (config.images, config.mask_source) == ("x", "alpha")


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
