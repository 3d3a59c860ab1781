"""Train a LoRA for SDXL from a folder of pictures and a base model."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .buckets import BucketConfig
from .config import add_flags, field_names, from_mapping
from .dataset import DatasetConfig
from .sdxl.config import SDXLConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from .base import TrainedLora

SUMMARY = "train an SDXL LoRA"
CONFIGS = (DatasetConfig, SDXLConfig, BucketConfig)
# Settings of the command itself: where the model is and where files go.
OWN_SETTINGS = {
    "base": "SDXL base model: a .safetensors checkpoint or a diffusers folder (required)",
    "output": "name of the LoRA file (required)",
    "output_dir": "folder for the LoRA and its run folder (default: 'output')",
    "cache_dir": "folder for latents and text embeddings, shared by all runs (default: the user's cache folder)",
    "prepared_dir": "also write the cropped pictures with their captions to this new folder",
    "device": "torch device, such as cuda:1 or cpu (default: the best there is)",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, help="TOML file with any of these settings; flags come first")
    for name, help_text in OWN_SETTINGS.items():
        parser.add_argument("--" + name.replace("_", "-"), default=argparse.SUPPRESS, help=help_text)
    for config_class in CONFIGS:
        add_flags(parser, config_class)


def run(options: argparse.Namespace) -> int:
    train(read_settings(options))
    return 0


def read_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Settings from the TOML file, overridden by the flags that were given."""
    known = {*OWN_SETTINGS, *(name for config_class in CONFIGS for name in field_names(config_class))}
    settings = _read_toml(options.config, known) if options.config else {}
    settings.update({name: value for name, value in vars(options).items() if name in known})
    missing = [name for name in ("images", "base", "output") if not settings.get(name)]
    if missing:
        raise ValueError("missing " + ", ".join("--" + name for name in missing))
    return settings


def _read_toml(path: Path, known: set[str]) -> dict[str, Any]:
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: not valid TOML: {error}") from error
    unknown = sorted(set(settings) - known)
    if unknown:
        raise ValueError(f"{path}: unknown setting {', '.join(unknown)}. Allowed: {', '.join(sorted(known))}")
    return settings


def train(settings: dict[str, Any]) -> "TrainedLora":
    """Check everything that can be checked without a model, then load it and train."""
    dataset_config, config, bucket_config = (_build(config_class, settings) for config_class in CONFIGS)
    # diffusers takes seconds to import: a wrong setting must not wait for it.
    import torch

    from .buckets import plan_crops, write_prepared_folder
    from .cache import TensorCache, default_cache_folder
    from .dataset import scan_folder
    from .distributed import current_world
    from .host import ConsoleHost
    from .run_folder import RunFolder
    from .sdxl.model import load_model
    from .sdxl.trainer import SDXLTrainer

    world, device = current_world()
    if "device" in settings:
        device = torch.device(settings["device"])
    run_folder = RunFolder(Path(settings.get("output_dir", "output")), settings["output"])
    with ConsoleHost(device, quiet=not world.is_main) as host:
        dataset = scan_folder(dataset_config, check_interrupted=host.check_interrupted)
        if settings.get("prepared_dir") and world.is_main:
            plan = plan_crops(dataset, bucket_config, seed=config.seed)
            write_prepared_folder(plan, Path(settings["prepared_dir"]), check_interrupted=host.check_interrupted)
        trainer = SDXLTrainer(
            config,
            bucket_config,
            lambda: load_model(Path(settings["base"])),
            run_folder=run_folder,
            cache=TensorCache(Path(settings.get("cache_dir") or default_cache_folder())),
            world=world,
        )
        return trainer.train(dataset, host)


def _build(config_class: type, settings: dict[str, Any]) -> Any:
    own = {name: settings[name] for name in field_names(config_class) if name in settings}
    return from_mapping(config_class, own, source="settings")
