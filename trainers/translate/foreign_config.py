"""Recognizes the configuration of another program by its settings, and translates it. Files that it
names are looked for in the current folder, then next to it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files.setting_file import read_setting_file
from .kohya import flatten, translate_dataset_config, translate_kohya
from .kohya_gui import translate_kohya_gui
from .onetrainer import translate_onetrainer
from .translation import Translation

# Any of these tells whose file it is; none is a setting of this trainer.
_KOHYA = (
    "pretrained_model_name_or_path",
    "train_data_dir",
    "network_module",
    "output_name",
    "dataset_config",
    "optimizer_type",
    "max_train_epochs",
)
_KOHYA_GUI = ("LoRA_type", "max_resolution", "sdxl_no_half_vae", "model_list")
_ONETRAINER = ("training_method", "concept_file_name", "base_model_name", "output_model_destination")
_OWN = ("base", "output", "images", "rank", "alpha")


def translate_file(
    path: Path, content: Any, configs: Sequence[type], *, dataset_config: Path | None = None
) -> Translation | None:
    """Translate the content of a TOML or JSON file. None: it is this trainer's own.

    Raises:
        ValueError: it cannot be translated.
    """
    datasets = read_setting_file(dataset_config) if dataset_config else None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: no configuration, but a list, such as OneTrainer's concepts. Give the whole one")

    def read_file(name: str) -> Any:
        return _read_named_file(name, path.parent)

    try:
        if _has_any(content, _ONETRAINER):
            return translate_onetrainer(content, configs, read_file=read_file)
        if _has_any(content, _KOHYA_GUI):
            return translate_kohya_gui(content, configs, read_file=read_file, datasets=datasets)
        if _is_dataset_config(content):
            return translate_dataset_config(content, configs)
        flat = flatten(content)
        if datasets is not None or (_has_any(flat, _KOHYA) and not _has_any(flat, _OWN)):
            return translate_kohya(flat, configs, read_file=read_file, datasets=datasets)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return None


def _has_any(content: Mapping[str, Any], names: Sequence[str]) -> bool:
    return any(name in content for name in names)


def _is_dataset_config(content: Mapping[str, Any]) -> bool:
    tables = content.get("datasets")
    return isinstance(tables, list) and any(isinstance(table, dict) and "subsets" in table for table in tables)


def _read_named_file(name: str, folder: Path) -> Any:
    """Prompts in a .txt file are text, others are tables.

    Raises:
        FileNotFoundError: there is no such file.
    """
    path = next((place for place in (Path(name), folder / name) if place.is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{name}: there is no such file")
    return path.read_text(encoding="utf-8-sig") if path.suffix == ".txt" else read_setting_file(path)
