"""Reads the settings of a command that trains or checks from its flags and from a TOML file with
[[datasets]] tables.
"""

import argparse
import logging
import os
import sys
from collections.abc import Collection, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..config import add_flags, build_config, from_mapping, list_field_names, select_settings
from ..dataset.config import DatasetConfig
from ..dataset.dataset import Dataset
from ..dataset.join import join_datasets
from ..dataset.scan import scan_folder
from ..files.setting_file import HOW_TO_WRITE_PATHS, read_setting_file
from ..packages import require_packages
from ..sdxl.config import BASE_DTYPES, SDXLConfig
from ..similar_names import describe_unknown
from ..training.earlier_settings import read_earlier_settings
from ..training.plan import make_step_counter
from ..training.presets import GOALS, MEMORY_PRESETS, choose_memory_preset, resolve
from ..training.run_settings import RunSettings
from ..translate.foreign_config import translate_file

logger = logging.getLogger(__name__)

DATASETS = "datasets"  # tables of DatasetConfig in the TOML file
CONFIG_HELP = (
    "TOML file with any of these settings, and [[datasets]] tables for several folders; or, for SDXL, a configuration "
    "of sd-scripts (.toml), kohya_ss (.json) or OneTrainer (.json). Flags win"
)
DATASET_CONFIG_HELP = "sd-scripts' TOML file of datasets, if their configuration does not name it"
# Settings of the command itself: which model, and where files go.
OWN_SETTINGS = {
    "base": "SDXL base model: a .safetensors checkpoint or a diffusers folder",
    "output": "name of the LoRA file",
    "output_dir": "folder for the LoRA and its run folder (default: output)",
    "cache_dir": "folder for latents and text embeddings, shared by all runs (default: the user's cache folder)",
    "validation_images": "folder of images that are never trained on, only used to measure what is learned, with the "
    "other settings of the dataset; the same as a [[datasets]] table with is_validation",
    "prepared_dir": "also write the cropped images with their captions into this new folder",
    "goal": f"what the LoRA should learn: {', '.join(GOALS)}. Decides rank, alpha, learning rate and steps where you "
    "do not (default: none; the settings' own defaults)",
    "memory": f"memory of the GPU: {', '.join(MEMORY_PRESETS)}, or auto. Decides resolution, batch, optimizer and "
    "gradient checkpointing where you do not (default: none)",
    "like": "a LoRA file: its settings are used where you give none, before goal and memory. All settings of a LoRA "
    "of this trainer; of one of sd-scripts those that there are here, and what is not taken is listed",
    "resume": "auto: a run of the same settings, images and base model is gone on with, or loaded if it is finished, "
    "and a shorter one is extended; new: none of it; or the name of a run folder to go on with (default: auto)",
    "base_dtype": f"keep the frozen weights of the UNet's transformers in fewer bits: {', '.join(BASE_DTYPES)}. "
    "fp8 and int8 take half of the memory for them, nf4 (by bitsandbytes) a quarter. Steps take longer, and what is "
    "learned differs a little (default: none; the precision that the training computes in)",
    "device": "torch device, such as cuda:1 or cpu (default: the best there is)",
}


def add_setting_flags(
    parser: argparse.ArgumentParser,
    configs: Sequence[type],
    *,
    required: Collection[str],
    without: Collection[str] = (),
) -> None:
    has_images = DatasetConfig in configs
    parser.add_argument(
        "--config", type=Path, help=CONFIG_HELP if has_images else "TOML file with any of these settings. Flags win"
    )
    if has_images:
        parser.add_argument("--dataset-config", type=Path, help=DATASET_CONFIG_HELP)
    for name, help_text in OWN_SETTINGS.items():
        if name in without:
            continue
        mark = " (required)" if name in required else ""
        parser.add_argument("--" + name.replace("_", "-"), default=argparse.SUPPRESS, help=help_text + mark)
    for config_class in configs:
        add_flags(parser, config_class, without=without)


def read_settings(
    options: argparse.Namespace, *, configs: Sequence[type], required: Collection[str], without: Collection[str] = ()
) -> dict[str, Any]:
    """Read the file, and override it with the flags that were given."""
    known = {*OWN_SETTINGS, *(name for config_class in configs for name in list_field_names(config_class))} - {*without}
    flags = {name: value for name, value in vars(options).items() if name in known}
    settings = {**_read_config(options, configs, known, flags), **flags}
    if settings.get("like"):
        settings = _add_earlier(settings, configs)
    missing = [name for name in required if not (settings.get(name) or (name == "images" and DATASETS in settings))]
    if missing:
        raise ValueError("missing " + ", ".join("--" + name for name in missing))
    return settings


def _add_earlier(settings: dict[str, Any], configs: Sequence[type]) -> dict[str, Any]:
    """Add the settings of an earlier LoRA where none are given, and say which."""
    earlier = read_earlier_settings(Path(settings["like"]), configs)
    values = dict(earlier.values)
    if settings.get("max_train_steps"):  # epochs would win over the steps that were asked for
        values.pop("num_train_epochs", None)
    logger.warning(earlier.text())
    return {**values, **settings}


def _read_config(
    options: argparse.Namespace, configs: Sequence[type], known: set[str], flags: dict[str, Any]
) -> dict[str, Any]:
    """Read our own TOML file, or translate another program's and say what became of it."""
    given_dataset_config: Path | None = getattr(options, "dataset_config", None)
    path: Path | None = options.config or given_dataset_config
    if path is None:
        return {}
    content = read_setting_file(path)
    dataset_config = given_dataset_config if options.config else None
    translation = translate_file(path, content, configs, dataset_config=dataset_config)
    if translation is None:
        _check_own(path, content, known | ({DATASETS} if DatasetConfig in configs else set()))
        return content
    if SDXLConfig not in configs:
        raise ValueError(f"{path}: a configuration of {translation.program} for SDXL. Give it to the command sdxl")
    logger.warning(translation.text(path.name))
    # what would win over a flag
    winning = {"max_train_steps": "num_train_epochs", "images": DATASETS}
    hidden = {theirs for flag, theirs in winning.items() if flag in flags}
    return {name: value for name, value in translation.settings.items() if name not in hidden}


def _check_own(path: Path, settings: dict[str, Any], known: set[str]) -> None:
    unknown = sorted(set(settings) - known)
    if unknown:
        raise ValueError(
            f"{path}: unknown setting {describe_unknown(unknown, known)}. Allowed: {', '.join(sorted(known))}"
        )
    tables = settings.get(DATASETS)
    for table in (settings, *(tables if isinstance(tables, list) else ())):
        if isinstance(table, dict):
            _check_paths(path, table)


def _check_paths(path: Path, table: dict[str, Any]) -> None:
    """Check that folders and files are texts, and that no backslash became a tab or the like."""
    for name in (*OWN_SETTINGS, "images", "network_weights"):
        value = table.get(name, "")
        if not isinstance(value, str):
            raise ValueError(f"{path}: {name} must be a text in quotes, got {type(value).__name__} {value!r}")
        if not value.isprintable():
            raise ValueError(f"{path}: {name} has a control character in it: {value!r}. {HOW_TO_WRITE_PATHS}")


def read_dataset_configs(settings: dict[str, Any]) -> list[DatasetConfig]:
    """Read one config per [[datasets]] table, with the settings outside of the tables as defaults.
    Without tables they are the one dataset.

    The trigger word outside of the tables does not apply to regularization images.
    """
    configs = _read_dataset_tables(settings)
    folder = settings.get("validation_images")
    if not folder:
        return configs
    return [*configs, build_config(DatasetConfig, {**settings, "images": folder, "is_validation": True})]


def _read_dataset_tables(settings: dict[str, Any]) -> list[DatasetConfig]:
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


def check_presets(settings: dict[str, Any]) -> None:
    """Raises ValueError for a goal or memory that there is not."""
    for name, allowed in (("goal", tuple(GOALS)), ("memory", ("auto", *MEMORY_PRESETS))):
        value = settings.get(name)
        if value is not None and value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")


def check_base_dtype(settings: dict[str, Any]) -> None:
    """Raises ValueError for a base_dtype that there is not."""
    value = settings.get("base_dtype")
    if value is not None and value not in BASE_DTYPES:
        raise ValueError(f"base_dtype must be one of {', '.join(BASE_DTYPES)}; got {value!r}")


def resolve_presets(settings: dict[str, Any], dataset: Dataset, *, num_processes: int = 1) -> RunSettings[SDXLConfig]:
    """The settings with those that were not given from the presets, if there are any."""
    given, memory = read_given(settings)
    return resolve(
        SDXLConfig,
        given,
        goal=settings.get("goal"),
        memory=memory,
        num_images=dataset.num_training_samples,
        count_steps=make_step_counter(dataset, num_processes=num_processes),
    )


def read_given(settings: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Return the settings of the training that were given, and the memory preset."""
    given = {name: value for name, value in settings.items() if name not in OWN_SETTINGS}
    memory = settings.get("memory")
    if memory == "auto":
        memory = _choose_memory()
    if memory and find_spec("bitsandbytes") is None:  # there is none for macOS
        given.setdefault("optimizer", "AdamW")
    return given, memory


def _choose_memory() -> str:
    import torch

    if not torch.cuda.is_available():
        raise ValueError(f"memory is auto, and there is no CUDA GPU. Choose one of {', '.join(MEMORY_PRESETS)}")
    return choose_memory_preset(torch.cuda.get_device_properties(0).total_memory)


def load_packages() -> None:
    """Import the packages that take many seconds, and say so first. Call it when everything is
    checked that needs none of them.

    Raises:
        ImportError: one is missing or broken.
    """
    if os.environ.get("RANK", "0") == "0":  # of the processes of `accelerate launch`, one talks
        print("Loading torch, transformers, diffusers and peft ...", file=sys.stderr)
    require_packages()


def require_base_model(base: str) -> None:
    if not Path(base).exists():
        raise FileNotFoundError(f"{base}: no such base model")
