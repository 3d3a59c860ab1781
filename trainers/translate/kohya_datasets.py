"""Moves sd-scripts' datasets (--dataset_config: [general], [[datasets]], [[datasets.subsets]]) to
[[datasets]] tables and the settings that all datasets share here.
"""

from collections.abc import Mapping
from typing import Any

from .translation import Note, Translator
from .values import read_bool, read_float, read_tables, read_text, read_whole, show

# Settings of a subset that a table has here.
_OF_A_TABLE = ("image_dir", "num_repeats", "is_reg", "class_tokens", "alpha_mask", "caption_prefix")
_IN_OTHER_WORDS = {"batch_size": "train_batch_size"}  # than in a training configuration


def merge_datasets(translator: Translator, content: Mapping[str, Any]) -> None:
    """Put one table for each subset into the settings, and what the subsets share among the given
    settings. Where they differ, the first counts, and the others are noted as a loss.

    Raises:
        ValueError: there is no subset, or one without images, or they are no tables.
    """
    general = content.get("general", {})
    datasets = _merge_resolutions(translator, read_tables(content.get("datasets", [])))
    subsets = [
        {**general, **_without_subsets(dataset), **subset}
        for dataset in datasets
        for subset in read_tables(dataset.get("subsets", []))
    ]
    if not subsets:
        raise ValueError("the dataset configuration has no [[datasets.subsets]] table, so there are no images")
    weight = translator.get("prior_loss_weight", read_float, 1.0)
    translator.settings["datasets"] = [
        _make_table(translator, subset, number, weight) for number, subset in enumerate(subsets, start=1)
    ]
    translator.get("train_data_dir", read_text)
    translator.get("reg_data_dir", read_text)
    for name in dict.fromkeys(name for subset in subsets for name in subset if name not in _OF_A_TABLE):
        _share(translator, name, [subset.get(name) for subset in subsets])


def _without_subsets(dataset: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in dataset.items() if name != "subsets"}


def _merge_resolutions(translator: Translator, datasets: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same subsets at several resolutions are one dataset with extra_resolutions."""
    sides = [dataset.get("resolution") for dataset in datasets]
    is_same = all(dataset.get("subsets") == datasets[0].get("subsets") for dataset in datasets)
    if len(datasets) < 2 or not is_same or not all(isinstance(side, int) for side in sides):
        return datasets
    if len(set(sides)) == len(sides):
        extra = ", ".join(str(side) for side in sides[1:])
        part = translator.name_part(f"resolution of the other [[datasets]] ({extra})")
        translator.take(part, extra, ours="extra_resolutions")
    return datasets[:1]


def _make_table(translator: Translator, subset: Mapping[str, Any], number: int, weight: float) -> dict[str, Any]:
    place = f"subset {number}"
    values = Translator(place, subset, ())
    images = values.get("image_dir", read_text)
    if not images:
        raise ValueError(f"[[datasets.subsets]] table {number} has no image_dir. Give the folder that holds the images")
    table: dict[str, Any] = {"images": images, "num_repeats": values.get("num_repeats", read_whole, 1)}
    caption = values.get("class_tokens", read_text)
    if caption:
        table["fallback_caption"] = caption
    table["mask_source"] = "alpha" if values.get("alpha_mask", read_bool, False) else "off"
    if values.get("is_reg", read_bool, False):
        table |= {"is_regularization": True, "loss_weight": weight}
    prefix = values.get("caption_prefix", read_text, "").strip()
    if prefix.endswith(",") and "is_regularization" not in table:
        table["trigger_word"] = prefix.strip(" ,")
    elif prefix:
        part = translator.name_part(f"caption_prefix {show(prefix)} of {place}")
        translator.lose(part, "only trigger_word is put in front of captions, with a comma")
    shown = ", ".join(f"{name} {show(value)}" for name, value in table.items())
    translator.add_taken(Note(f"[[datasets.subsets]] {number}", f"[[datasets]] {shown}"))
    return table


def _share(translator: Translator, name: str, values: list[Any]) -> None:
    target = _IN_OTHER_WORDS.get(name, name)
    values = [translator.given.get(target) if value is None else value for value in values]
    first = next(value for value in values if value is not None)
    translator.given[target] = first
    if any(value != first for value in values):
        shown = ", ".join("not given" if value is None else show(value) for value in values)
        part = translator.name_part(f"{name} of the subsets ({shown})")
        translator.lose(part, f"all images share one value here: {show(first)} is taken")
