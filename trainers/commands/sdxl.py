"""Train a LoRA for SDXL from a folder of pictures and a base model."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import build_config
from ..dataset.bucket_config import BucketConfig
from ..dataset.caption_variants import CaptionConfig
from ..dataset.config import DatasetConfig
from ..dataset.crop_plan import plan_crops
from ..dataset.prepared_folder import write_prepared_folder
from ..files.cache_folder import default_cache_folder
from ..sdxl.config import SDXLConfig
from ..training.run_folder import RunFolder
from .settings import add_setting_flags, dataset_configs, read_settings, require_base_model, scan_datasets

if TYPE_CHECKING:
    from ..training.events import TrainedLora

SUMMARY = "train an SDXL LoRA"
CONFIGS = (DatasetConfig, SDXLConfig, BucketConfig, CaptionConfig)
REQUIRED = ("images", "base", "output")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_setting_flags(parser, CONFIGS, required=REQUIRED)


def run(options: argparse.Namespace) -> int:
    train(read_settings(options, configs=CONFIGS, required=REQUIRED))
    return 0


def train(settings: dict[str, Any]) -> "TrainedLora":
    """Check everything that can be checked without a model, then load it and train."""
    dataset_settings = dataset_configs(settings)
    config, bucket_config, captions = (build_config(config_class, settings) for config_class in CONFIGS[1:])
    run_folder = RunFolder(Path(settings.get("output_dir", "output")), settings["output"])
    require_base_model(settings["base"])
    dataset = scan_datasets(dataset_settings)
    plan = plan_crops(dataset, bucket_config, seed=config.seed)
    # torch and diffusers take seconds to import: what settings and folder show must not wait for
    # them.
    import torch

    from ..files.tensor_cache import TensorCache
    from ..sdxl.model.sdxl_model import load_model
    from ..sdxl.trainer import SDXLTrainer
    from ..training.distributed import current_world
    from ..training.host import ConsoleHost

    world, device = current_world()
    if "device" in settings:
        device = torch.device(settings["device"])
    with ConsoleHost(device, quiet=not world.is_main) as host:
        if settings.get("prepared_dir") and world.is_main:
            write_prepared_folder(plan, Path(settings["prepared_dir"]), check_interrupted=host.check_interrupted)
        trainer = SDXLTrainer(
            config,
            bucket_config,
            lambda: load_model(Path(settings["base"])),
            run_folder=run_folder,
            cache=TensorCache(Path(settings.get("cache_dir") or default_cache_folder())),
            world=world,
            captions=captions,
        )
        return trainer.train(dataset, host)
