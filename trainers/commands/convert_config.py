"""Translate a configuration of sd-scripts (.toml), kohya_ss (.json) or OneTrainer (.json) for an
SDXL LoRA to a TOML file of this trainer, with what was taken and what was not as comments. `sdxl
--config` reads such files directly too.
"""

import argparse
from pathlib import Path

from ..files.atomic_write import atomic_write
from ..files.setting_file import read_setting_file
from ..translate.foreign_config import translate_file
from ..translate.own_toml import write_toml
from .sdxl import CONFIGS
from .settings import DATASET_CONFIG_HELP

SUMMARY = "translate a configuration of sd-scripts, kohya_ss or OneTrainer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="their configuration: a .toml or .json file")
    parser.add_argument("--dataset-config", type=Path, help=DATASET_CONFIG_HELP)
    parser.add_argument(
        "-o", "--output", type=Path, help="the new TOML file (default: the settings are printed, not written)"
    )


def run(options: argparse.Namespace) -> int:
    if options.output and options.output.exists():
        raise FileExistsError(f"{options.output} exists already. Give a new name")
    content = read_setting_file(options.file)
    translation = translate_file(options.file, content, CONFIGS, dataset_config=options.dataset_config)
    if translation is None:
        raise ValueError(
            f"{options.file}: no configuration of sd-scripts, kohya_ss or OneTrainer. Settings of this trainer need no "
            "translation: give the file to `sdxl --config`"
        )
    text = write_toml(translation, file=options.file.name)
    if not options.output:
        print(text, end="")
        return 0
    with atomic_write(options.output) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(translation.text(options.file.name))
    print(f"Written to {options.output}")
    return 0
