"""Reads the settings of a command that trains or checks from its flags and from a TOML file with
[[datasets]] tables.
"""

import argparse
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from ..config import add_flags, build_config, from_mapping, list_field_names, select_settings
from ..dataset.config import DatasetConfig
from ..dataset.dataset import Dataset
from ..dataset.join import join_datasets
from ..dataset.scan import scan_folder

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DATASETS = "datasets"  # tables of DatasetConfig in the TOML file
# Settings of the command itself: which model, and where files go.
OWN_SETTINGS = {
    "base": "SDXL base model: a .safetensors checkpoint or a diffusers folder",
    "output": "name of the LoRA file",
    "output_dir": "folder for the LoRA and its run folder (default: output)",
    "cache_dir": "folder for latents and text embeddings, shared by all runs (default: the user's cache folder)",
    "prepared_dir": "also write the cropped images with their captions into this new folder",
    "device": "torch device, such as cuda:1 or cpu (default: the best there is)",
}


def add_setting_flags(parser: argparse.ArgumentParser, configs: Sequence[type], *, required: Collection[str]) -> None:
    parser.add_argument(
        "--config",
        type=Path,
        help="TOML file with any of these settings, and [[datasets]] tables for several folders; flags win",
    )
    for name, help_text in OWN_SETTINGS.items():
        mark = " (required)" if name in required else ""
        parser.add_argument("--" + name.replace("_", "-"), default=argparse.SUPPRESS, help=help_text + mark)
    for config_class in configs:
        add_flags(parser, config_class)


def read_settings(options: argparse.Namespace, *, configs: Sequence[type], required: Collection[str]) -> dict[str, Any]:
    """Read the TOML file, and override it with the flags that were given."""
    known = {*OWN_SETTINGS, *(name for config_class in configs for name in list_field_names(config_class))}
    settings = _read_toml(options.config, known) if options.config else {}
    settings.update({name: value for name, value in vars(options).items() if name in known})
    missing = [name for name in required if not (settings.get(name) or (name == "images" and DATASETS in settings))]
    if missing:
        raise ValueError("missing " + ", ".join("--" + name for name in missing))
    return settings


def _read_toml(path: Path, known: set[str]) -> dict[str, Any]:
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: not valid TOML: {error}") from error
    unknown = sorted(set(settings) - known - {DATASETS})
    if unknown:
        raise ValueError(f"{path}: unknown setting {', '.join(unknown)}. Allowed: {', '.join(sorted(known))}")
    return settings


def read_dataset_configs(settings: dict[str, Any]) -> list[DatasetConfig]:
    """Read one config per [[datasets]] table, with the settings outside of the tables as defaults.
    Without tables they are the one dataset.

    The trigger word outside of the tables does not apply to regularization images.
    """
    tables = settings.get(DATASETS)
    if tables is None:
        return [build_config(DatasetConfig, settings)]
    if not (isinstance(tables, list) and tables and all(isinstance(table, dict) for table in tables)):
        raise ValueError(
            f"datasets must be tables under [[datasets]], each with images and its other settings; got {tables!r}"
        )
    if settings.get("images"):
        raise ValueError(
            f"images ({settings['images']}) and [[datasets]] are both given. Give that folder a [[datasets]] table "
            "too, or leave out one of them"
        )
    defaults = select_settings(DatasetConfig, settings)
    return [_read_dataset_config(table, defaults, number) for number, table in enumerate(tables, start=1)]


def _read_dataset_config(table: dict[str, Any], defaults: dict[str, Any], number: int) -> DatasetConfig:
    if not table.get("images"):
        raise ValueError(f"[[datasets]] table {number} has no images. Give the folder that holds the images")
    if table.get("is_regularization"):
        defaults = {name: value for name, value in defaults.items() if name != "trigger_word"}
    return from_mapping(DatasetConfig, {**defaults, **table}, source=f"[[datasets]] table {number}")


def scan_datasets(configs: list[DatasetConfig]) -> Dataset:
    """Scan all folders and join them to one dataset."""
    return join_datasets([scan_folder(config) for config in configs])


def require_base_model(base: str) -> None:
    if not Path(base).exists():
        raise FileNotFoundError(f"{base}: no such base model")
