"""Train a slider for SDXL from a positive and a negative prompt, without images: a LoRA that leads
to the one at strength 1 and to the other at -1.
"""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import list_field_names
from ..dataset.bucket_config import BucketConfig
from ..files.cache_folder import default_cache_folder
from ..sdxl.slider.config import NOT_FOR_SLIDERS, SliderConfig
from ..sdxl.slider.plan import plan_slider
from ..training.presets import resolve
from ..training.run_folder import RunFolder
from .settings import (
    add_setting_flags,
    check_base_dtype,
    check_presets,
    load_packages,
    read_given,
    read_settings,
    require_base_model,
)

if TYPE_CHECKING:
    from ..training.trained_lora import TrainedLora

SUMMARY = "train an SDXL slider from two prompts, without images"
CONFIGS = (SliderConfig, BucketConfig)
REQUIRED = ("base", "output")
WITHOUT = (
    *NOT_FOR_SLIDERS,
    *(name for name in list_field_names(BucketConfig) if name != "resolution"),
    *("goal", "like", "validation_images", "prepared_dir"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_setting_flags(parser, CONFIGS, required=REQUIRED, without=WITHOUT)
    parser.add_argument(
        "--new-run", dest="resume", action="store_const", const="new", default=argparse.SUPPRESS, help="--resume new"
    )


def run(options: argparse.Namespace) -> int:
    train(read_settings(options, configs=CONFIGS, required=REQUIRED, without=WITHOUT))
    return 0


def train(settings: dict[str, Any]) -> "TrainedLora":
    """Check everything that needs no model, then load the model and train."""
    check_presets(settings)
    check_base_dtype(settings)
    given, memory = read_given(settings)
    plan = plan_slider(
        resolve(SliderConfig, given, goal=None, memory=memory, num_images=0),
        num_processes=int(os.environ.get("WORLD_SIZE", "1")),  # `accelerate launch` sets it
    )
    run_folder = RunFolder(Path(settings.get("output_dir", "output")), settings["output"])
    run_folder.require_writable()
    require_base_model(settings["base"])
    # torch and diffusers take seconds to import: errors in settings and folders come first
    load_packages()
    from ..files.tensor_cache import TensorCache
    from ..sdxl.check.out_of_memory import explaining_out_of_memory
    from ..sdxl.model.sdxl_model import load_model
    from ..sdxl.slider.family import SliderFamily
    from ..training.console_host import ConsoleHost
    from ..training.distributed import current_world
    from ..training.loop import train_lora
    from ..training.resume.choose_run import AUTO

    world, device = current_world(settings.get("device"))
    base_dtype = settings.get("base_dtype", "")
    with (
        ConsoleHost(device, quiet=not world.is_main) as host,
        explaining_out_of_memory(plan, device, base_dtype=base_dtype),
    ):
        return train_lora(
            SliderFamily(lambda _: load_model(Path(settings["base"])), base_dtype=base_dtype),
            plan,
            host,
            run_folder=run_folder,
            cache=TensorCache(Path(settings.get("cache_dir") or default_cache_folder())),
            world=world,
            resume=settings.get("resume") or AUTO,
        )
