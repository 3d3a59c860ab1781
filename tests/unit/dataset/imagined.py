"""Datasets of images that exist in name only, to test plans."""

from pathlib import Path

from trainers.dataset.dataset import Dataset
from trainers.dataset.image import TrainingImage
from trainers.dataset.report import DatasetReport


def make_dataset(*sizes_hw: tuple[int, int], num_repeats: int = 1, strict: bool = False) -> Dataset:
    images = [
        TrainingImage(f"{i}.png", Path(f"{i}.png"), f"{i:064x}", size, f"caption {i}", False)
        for i, size in enumerate(sizes_hw)
    ]
    return Dataset(images, num_repeats, "", DatasetReport(len(images)), "pictures", strict)


def imagine_dataset(num_images: int, *, num_repeats: int = 1, sizes: bool = False) -> Dataset:
    """Return a dataset without files, which planning does not need."""
    images = [
        TrainingImage(
            f"{i}.png",
            Path("x"),
            f"{i:064}",
            (1024 + 7 * i % 900, 1024 + 13 * i % 700) if sizes else (1024, 1024),
            "a",
            False,
        )
        for i in range(num_images)
    ]
    return Dataset(images, num_repeats, "", DatasetReport(num_images), "imagined")
