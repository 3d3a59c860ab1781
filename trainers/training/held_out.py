"""Which images a run never trains on: those given for validation, and a share of the others.
Imports no torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..dataset.dataset import Dataset
from ..dataset.image import TrainingImage
from ..dataset.report import DatasetReport
from ..wording import pluralize
from .seeds import derive_seed

MIN_TRAINING_IMAGES = 4


@dataclass(frozen=True)
class Split:
    """The images to train on, and those that are held out (None: none)."""

    training: Dataset
    held_out: Dataset | None


def hold_out_images(dataset: Dataset, *, share: float, seed: int) -> Split:
    """Hold out the images that are marked with is_validation, and `share` of the others. Those are
    chosen by the seed and their content, and copies of one image go together. Regularization images
    stay.

    Raises:
        ValueError: too few images would be left to train on.
    """
    given = [image for image in dataset.images if image.is_validation]
    others = [image for image in dataset.images if not image.is_validation]
    if not any(not image.is_regularization for image in others):
        if given:
            raise ValueError(f"{dataset.folder_name}: nothing but validation images. Join a dataset to train on")
        return Split(dataset, None)
    chosen = _choose_hashes(others, share, seed, dataset.folder_name) if share else set()
    chosen |= {image.sha256 for image in given}
    held_out = [*given, *(image for image in others if image.sha256 in chosen and not image.is_regularization)]
    if not held_out:
        return Split(dataset, None)
    left = [image for image in others if image.is_regularization or image.sha256 not in chosen]
    if not any(not image.is_regularization for image in left):
        raise ValueError(f"{dataset.folder_name}: every image is a validation image too, so none is left to train on")
    return Split(replace(dataset, images=left), _make_held_out(dataset, held_out))


def _choose_hashes(images: Sequence[TrainingImage], share: float, seed: int, folder_name: str) -> set[str]:
    """Choose `share` of the different images with a caption, at least one."""
    hashes = {image.sha256 for image in images if image.caption and not image.is_regularization}
    most = len(hashes) - MIN_TRAINING_IMAGES
    if most < 1:
        found = pluralize(len(hashes), "different image")
        raise ValueError(
            f"{folder_name}: validation_share {share:g} holds out images, and {found} with a caption is too few for "
            f"that: at least {MIN_TRAINING_IMAGES} must be left to train on. Set validation_share to 0"
        )
    count = min(max(round(share * len(hashes)), 1), most)
    return set(sorted(hashes, key=lambda sha256: derive_seed(seed, "held out", sha256))[:count])


def _make_held_out(dataset: Dataset, images: list[TrainingImage]) -> Dataset:
    """Each image is used once, whatever its repeats; copies of one image are one."""
    once = {image.sha256: replace(image, num_repeats=1) for image in reversed(images)}
    kept = list(reversed(once.values()))
    return replace(dataset, images=kept, num_repeats=1, report=DatasetReport(len(kept)))
