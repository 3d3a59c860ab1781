"""Joins several datasets into one."""

from collections.abc import Sequence
from dataclasses import replace

from .dataset import Dataset
from .image import TrainingImage
from .report import DatasetReport, Remark
from .summary import describe_images


def join_datasets(datasets: Sequence[Dataset]) -> Dataset:
    """Join datasets into one. Every image keeps its repeats, weight and trigger word, and gets its
    folder's name in front of its own.

    Raises:
        ValueError: `datasets` is empty.
    """
    if not datasets:
        raise ValueError("no dataset to join. Connect at least one")
    if len(datasets) == 1:
        return datasets[0]
    named = list(zip(_make_names_distinct([dataset.folder_name for dataset in datasets]), datasets, strict=True))
    images = [_join_image(image, name, dataset) for name, dataset in named for image in dataset.images]
    left_out = [
        replace(remark, name=f"{name}/{remark.name}") for name, dataset in named for remark in dataset.report.left_out
    ]
    notes = [
        replace(remark, name=f"{name}/{remark.name}") for name, dataset in named for remark in dataset.report.notes
    ]
    summary = [
        line
        for name, dataset in named
        for line in dataset.report.summary or [describe_images(name, dataset.images, dataset.num_repeats)]
    ]
    report = DatasetReport(len(images), left_out, notes + _note_shared_images(images), summary=summary)
    trigger_words = dict.fromkeys(word for image in images if (word := image.trigger_word))
    return Dataset(
        images,
        1,
        ", ".join(trigger_words),
        report,
        " + ".join(name for name, _ in named),
        any(dataset.strict for dataset in datasets),
    )


def _join_image(image: TrainingImage, folder_name: str, dataset: Dataset) -> TrainingImage:
    return replace(
        image,
        name=f"{folder_name}/{image.name}",
        num_repeats=image.num_repeats * dataset.num_repeats,
        trigger_word=dataset.get_trigger_word(image),
        subset=f"{folder_name}/{image.subset}" if image.subset else folder_name,
    )


def _make_names_distinct(names: list[str]) -> list[str]:
    """Number repeated names: the second "toys" becomes "toys (2)"."""
    distinct: list[str] = []
    for name in names:
        number, candidate = 1, name
        while candidate in distinct:
            number += 1
            candidate = f"{name} ({number})"
        distinct.append(candidate)
    return distinct


def _note_shared_images(images: list[TrainingImage]) -> list[Remark]:
    """List images that are in several datasets. They are used in each, as that may be intended."""
    first: dict[tuple[str, ...], TrainingImage] = {}
    again = [(image, first[image.content]) for image in images if first.setdefault(image.content, image) is not image]
    return [Remark(image.name, f"it is the same file as {other.name}; both are used") for image, other in again]
