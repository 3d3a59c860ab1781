"""Describes a folder in one line: number of images, repeats, weights, masks and control images."""

from collections.abc import Iterable

from ..wording import pluralize
from .image import TrainingImage


def summarize_special(folder_name: str, images: list[TrainingImage], num_repeats: int) -> list[str]:
    """Return one line, or nothing if every image is used once, whole and with equal weight."""
    is_special = any(image.is_regularization or image.is_validation for image in images) or _list_special_features(
        images, num_repeats
    )
    return [describe_images(folder_name, images, num_repeats)] if is_special else []


def describe_images(folder_name: str, images: list[TrainingImage], num_repeats: int) -> str:
    """Return one line: number of images, repeats, loss weight, masks, control images."""
    num_regularization = sum(image.is_regularization for image in images)
    num_validation = sum(image.is_validation for image in images)
    num_others = len(images) - num_regularization - num_validation
    parts = [pluralize(num_others, "image")] if num_others or not images else []
    parts += [pluralize(num_regularization, "regularization image")] if num_regularization else []
    parts += [pluralize(num_validation, "validation image")] if num_validation else []
    parts += _list_special_features(images, num_repeats)
    return f"{folder_name}: {', '.join(parts)}"


def _list_special_features(images: list[TrainingImage], num_repeats: int) -> list[str]:
    num_masks = sum(bool(image.mask_sha256) for image in images)
    num_controlled = sum(bool(image.control_images) for image in images)
    repeats = _format_range(image.num_repeats * num_repeats for image in images)
    weights = _format_range(image.loss_weight for image in images)
    parts = [f"{repeats} repeats each"] if repeats != "1" else []
    parts += [f"loss weight {weights}"] if weights != "1" else []
    parts += [f"{num_masks} with a mask"] if num_masks else []
    parts += [f"{num_controlled} with control images"] if num_controlled else []
    return parts


def _format_range(values: Iterable[float]) -> str:
    ordered = sorted(set(values))
    return f"{ordered[0]:g}" if len(ordered) == 1 else f"{ordered[0]:g} to {ordered[-1]:g}"
