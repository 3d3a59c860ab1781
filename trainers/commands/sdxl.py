"""Train a LoRA for SDXL from a folder of images and a base model."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..dataset.bucket_config import BucketConfig
from ..dataset.caption_variants import CaptionConfig
from ..dataset.config import DatasetConfig
from ..dataset.prepared_folder import write_prepared_folder
from ..files.cache_folder import default_cache_folder
from ..sdxl.config import SDXLConfig
from ..training.events import Notice
from ..training.plan import plan_training
from ..training.presets import describe
from ..training.run_folder import RunFolder
from ..training.run_settings import RunSettings
from .settings import (
    add_setting_flags,
    check_base_dtype,
    check_presets,
    load_packages,
    read_dataset_configs,
    read_settings,
    require_base_model,
    resolve_presets,
    scan_datasets,
)

if TYPE_CHECKING:
    from ..training.trained_lora import TrainedLora

SUMMARY = "train an SDXL LoRA"
CONFIGS = (DatasetConfig, SDXLConfig, BucketConfig, CaptionConfig)
REQUIRED = ("images", "base", "output")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_setting_flags(parser, CONFIGS, required=REQUIRED)
    parser.add_argument(
        "--new-run", dest="resume", action="store_const", const="new", default=argparse.SUPPRESS, help="--resume new"
    )


def run(options: argparse.Namespace) -> int:
    train(read_settings(options, configs=CONFIGS, required=REQUIRED))
    return 0


def train(settings: dict[str, Any]) -> "TrainedLora":
    """Check everything that needs no model, then load the model and train."""
    dataset_settings = read_dataset_configs(settings)
    RunSettings.read(SDXLConfig, settings)
    check_presets(settings)
    check_base_dtype(settings)
    run_folder = RunFolder(Path(settings.get("output_dir", "output")), settings["output"])
    run_folder.require_writable()
    require_base_model(settings["base"])
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))  # `accelerate launch` sets it
    dataset = scan_datasets(dataset_settings)
    run_settings = resolve_presets(settings, dataset, num_processes=num_processes)
    plan = plan_training(dataset, run_settings, num_processes=num_processes)
    # torch and diffusers take seconds to import: errors in settings and folders come first
    load_packages()
    from ..files.tensor_cache import TensorCache
    from ..sdxl.check.out_of_memory import explaining_out_of_memory
    from ..sdxl.family import SDXLFamily
    from ..sdxl.model.sdxl_model import load_model
    from ..training.console_host import ConsoleHost
    from ..training.distributed import current_world
    from ..training.loop import train_lora
    from ..training.resume.choose_run import AUTO

    world, device = current_world(settings.get("device"))
    with ConsoleHost(device, quiet=not world.is_main) as host:
        if settings.get("goal") or settings.get("memory"):
            host.report(Notice(describe(run_settings)))
        if settings.get("prepared_dir") and world.is_main:
            write_prepared_folder(plan.crops, Path(settings["prepared_dir"]), check_interrupted=host.check_interrupted)
        with explaining_out_of_memory(plan, device, base_dtype=settings.get("base_dtype", "")):
            return train_lora(
                SDXLFamily(lambda _: load_model(Path(settings["base"])), base_dtype=settings.get("base_dtype", "")),
                plan,
                host,
                run_folder=run_folder,
                cache=TensorCache(Path(settings.get("cache_dir") or default_cache_folder())),
                world=world,
                resume=settings.get("resume") or AUTO,
            )
