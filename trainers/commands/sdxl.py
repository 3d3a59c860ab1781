"""Train a LoRA for SDXL from a folder of pictures and a base model."""

import argparse
import os
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import add_flags, build_config, field_names, from_mapping, own_settings
from ..dataset.buckets import BucketConfig, write_prepared_folder
from ..dataset.caption_variants import CaptionConfig
from ..dataset.dataset import Dataset, DatasetConfig, join_datasets, scan_folder
from ..files.cache_folder import default_cache_folder
from ..sdxl.config import SDXLConfig
from ..training.plan import RunSettings, plan_training
from ..training.run_folder import RunFolder

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from ..training.trained_lora import TrainedLora

SUMMARY = "train an SDXL LoRA"
CONFIGS = (DatasetConfig, SDXLConfig, BucketConfig, CaptionConfig)
REQUIRED = ("images", "base", "output")
DATASETS = "datasets"  # tables of DatasetConfig in the TOML file
# Settings of the command itself: where the model is and where files go.
OWN_SETTINGS = {
    "base": "SDXL base model: a .safetensors checkpoint or a diffusers folder",
    "output": "name of the LoRA file",
    "output_dir": "folder for the LoRA and its run folder (default: 'output')",
    "cache_dir": "folder for latents and text embeddings, shared by all runs (default: the user's cache folder)",
    "prepared_dir": "also write the cropped pictures with their captions to this new folder",
    "device": "torch device, such as cuda:1 or cpu (default: the best there is)",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_setting_flags(parser, CONFIGS, required=REQUIRED)


def add_setting_flags(parser: argparse.ArgumentParser, configs: Sequence[type], *, required: Collection[str]) -> None:
    parser.add_argument(
        "--config",
        type=Path,
        help="TOML file with any of these settings, and [[datasets]] tables for several folders; flags come first",
    )
    for name, help_text in OWN_SETTINGS.items():
        mark = " (required)" if name in required else ""
        parser.add_argument("--" + name.replace("_", "-"), default=argparse.SUPPRESS, help=help_text + mark)
    for config_class in configs:
        add_flags(parser, config_class)


def run(options: argparse.Namespace) -> int:
    train(read_settings(options))
    return 0


def read_settings(
    options: argparse.Namespace, *, configs: Sequence[type] = CONFIGS, required: Collection[str] = REQUIRED
) -> dict[str, Any]:
    """Settings from the TOML file, overridden by the flags that were given."""
    known = {*OWN_SETTINGS, *(name for config_class in configs for name in field_names(config_class))}
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


def train(settings: dict[str, Any]) -> "TrainedLora":
    """Check everything that can be checked without a model, then load it and train."""
    dataset_settings = dataset_configs(settings)
    run_settings = RunSettings.read(SDXLConfig, settings)
    run_folder = RunFolder(Path(settings.get("output_dir", "output")), settings["output"])
    require_base_model(settings["base"])
    dataset = scan_datasets(dataset_settings)
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))  # as `accelerate launch` says
    plan = plan_training(dataset, run_settings, num_processes=num_processes)
    # torch and diffusers take seconds to import: what settings and folder show must not wait for
    # them.
    import torch

    from ..files.tensor_cache import TensorCache
    from ..sdxl.family import SDXLFamily
    from ..sdxl.model.sdxl_model import load_model
    from ..training.console_host import ConsoleHost
    from ..training.distributed import current_world
    from ..training.loop import train_lora

    world, device = current_world()
    if "device" in settings:
        device = torch.device(settings["device"])
    with ConsoleHost(device, quiet=not world.is_main) as host:
        if settings.get("prepared_dir") and world.is_main:
            write_prepared_folder(plan.crops, Path(settings["prepared_dir"]), check_interrupted=host.check_interrupted)
        return train_lora(
            SDXLFamily(lambda: load_model(Path(settings["base"]))),
            plan,
            host,
            run_folder=run_folder,
            cache=TensorCache(Path(settings.get("cache_dir") or default_cache_folder())),
            world=world,
        )


def require_base_model(base: str) -> None:
    if not Path(base).exists():
        raise FileNotFoundError(f"{base}: there is no such base model")


def dataset_configs(settings: dict[str, Any]) -> list[DatasetConfig]:
    """One for each [[datasets]] table, to which the settings outside of the tables are defaults;
    without tables these alone.

    A trigger word from outside is not for regularization pictures.
    """
    tables = settings.get(DATASETS)
    if tables is None:
        return [build_config(DatasetConfig, settings)]
    if not (isinstance(tables, list) and tables and all(isinstance(table, dict) for table in tables)):
        raise ValueError(
            f"datasets must be tables under [[datasets]], each with images and what else differs; got {tables!r}"
        )
    if settings.get("images"):
        raise ValueError(
            f"images ({settings['images']}) and [[datasets]] are both given. Give that folder a [[datasets]] table "
            "too, or leave out one of them"
        )
    defaults = own_settings(DatasetConfig, settings)
    return [_dataset_config(table, defaults, number) for number, table in enumerate(tables, start=1)]


def _dataset_config(table: dict[str, Any], defaults: dict[str, Any], number: int) -> DatasetConfig:
    if not table.get("images"):
        raise ValueError(f"[[datasets]] table {number} has no images. Give the folder that holds the pictures")
    if table.get("is_regularization"):
        defaults = {name: value for name, value in defaults.items() if name != "trigger_word"}
    return from_mapping(DatasetConfig, {**defaults, **table}, source=f"[[datasets]] table {number}")


def scan_datasets(configs: list[DatasetConfig]) -> Dataset:
    """All folders as one dataset."""
    return join_datasets([scan_folder(config) for config in configs])
